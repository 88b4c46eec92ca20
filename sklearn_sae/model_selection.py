"""Choosing among the candidates of a search."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._data.masked import as_array

__all__ = ["smallest_within_one_standard_error"]

Array = NDArray[np.floating]


def smallest_within_one_standard_error(cv_results: dict[str, Any]) -> int:
    """Candidate with the fewest latents that scores like the best, for ``refit=`` of a search.

    The rule takes the smallest ``n_latents`` whose mean score is within one standard error of the
    best: more latents may not be better by more than chance [1]_. Of several candidates with that
    many latents it takes the one with the best score.

    Parameters
    ----------
    cv_results : dict
        ``cv_results_`` of a search over ``n_latents``, of an estimator by itself or in a pipeline
        (``"nodesae__n_latents"``), with one score. Candidates whose score is NaN do not count.

    Returns
    -------
    int
        Position of the candidate.

    Raises
    ------
    ValueError
        If the search was not over ``n_latents``, had several scores, or no candidate was scored.

    See Also
    --------
    sklearn_sae.plotting.LatentDimensionDisplay : Draws scores and choice.

    References
    ----------
    .. [1] Breiman, L., Friedman, J., Olshen, R. & Stone, C. (1984). Classification and Regression
       Trees, section 3.4.3.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_sae import NODESAE
    >>> from sklearn_sae.model_selection import smallest_within_one_standard_error
    >>> spikes = np.random.default_rng(0).poisson(1.0, (12, 10, 5))
    >>> search = GridSearchCV(
    ...     NODESAE(max_epochs=1, random_state=0),
    ...     {"n_latents": [1, 2]},
    ...     cv=2,
    ...     refit=smallest_within_one_standard_error,
    ... ).fit(spikes)
    >>> search.best_params_["n_latents"] in (1, 2)
    True
    """
    n_latents, mean, error = candidate_scores(cv_results)
    best = int(np.nanargmax(mean))
    good = mean >= mean[best] - error[best]
    chosen = good & (n_latents == n_latents[good].min())
    return int(np.where(chosen, mean, -np.inf).argmax())


def candidate_scores(cv_results: dict[str, Any]) -> tuple[NDArray[np.integer], Array, Array]:
    """``n_latents``, mean score and standard error of each candidate of a search."""
    names = [key for key in cv_results if key.startswith("param_") and key.endswith("n_latents")]
    if len(names) != 1 or "mean_test_score" not in cv_results:
        tried = [key.removeprefix("param_") for key in cv_results if key.startswith("param_")]
        raise ValueError(
            "cv_results must come from a search over n_latents with one score; it has the "
            f"parameters {tried} and {'a' if 'mean_test_score' in cv_results else 'no'} "
            "mean_test_score."
        )
    mean = as_array("mean_test_score", cv_results["mean_test_score"], float)
    if np.isnan(mean).all():
        raise ValueError(
            "cv_results has no candidate with a score: every mean_test_score is NaN. Search with "
            'error_score="raise" to see why.'
        )
    # Scores of the training trials have a split each, too.
    n_splits = sum(key.startswith("split") and key.endswith("_test_score") for key in cv_results)
    # The standard deviation that searches report divides by n, a standard error by n - 1.
    std = as_array("std_test_score", cv_results["std_test_score"], float)
    return _tried(names[0], cv_results[names[0]]), mean, std / np.sqrt(max(n_splits - 1, 1))


def _tried(key: str, values: Any) -> NDArray[np.integer]:
    """Values of a parameter; searches mask those that a candidate leaves at the estimator's own."""
    masked = np.flatnonzero(np.ma.getmaskarray(np.ma.asarray(values)))
    if len(masked):
        name = key.removeprefix("param_")
        raise ValueError(
            f"cv_results does not say what {name} was in candidate {masked[0]}, whose grid leaves "
            f"it out. Give {name} in every grid of the search."
        )
    return np.asarray(values, dtype=int)
