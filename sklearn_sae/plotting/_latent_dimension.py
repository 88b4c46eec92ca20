"""Which n_latents a search speaks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._style import COLOURS, QUIET, finish, new_axes


class LatentDimensionDisplay:
    """Score against ``n_latents``, with the choice of the one-standard-error rule marked.

    The rule takes the smallest ``n_latents`` whose mean score is within one standard error of the
    best: more latents may not be better by more than chance [1]_.

    Parameters
    ----------
    cv_results : dict
        ``cv_results_`` of a fitted search over ``n_latents``, by itself or in a pipeline
        (``"nodesae__n_latents"``). Of several candidates with one ``n_latents``, the best counts.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    errorbar_ : matplotlib ErrorbarContainer
        Mean scores with standard errors.
    threshold_ : matplotlib line
        The best mean score less one standard error.
    chosen_ : matplotlib line
        Marker of the choice.
    n_latents_ : int
        The choice.

    References
    ----------
    .. [1] Breiman, L., Friedman, J., Olshen, R. & Stone, C. (1984). Classification and Regression
       Trees, section 3.4.3.

    Examples
    --------
    >>> from sklearn_sae.plotting import LatentDimensionDisplay
    >>> results = {
    ...     "param_n_latents": [1, 2, 3], "mean_test_score": [0.2, 0.5, 0.501],
    ...     "std_test_score": [0.01, 0.01, 0.01], "split0_test_score": [0.21, 0.51, 0.511],
    ...     "split1_test_score": [0.19, 0.49, 0.491],
    ... }
    >>> LatentDimensionDisplay(results).plot().n_latents_
    2
    """

    def __init__(self, cv_results: dict) -> None:
        self.cv_results = cv_results

    @classmethod
    def from_estimator(cls, search: Any, *, ax: Any = None) -> LatentDimensionDisplay:
        """Draw what a fitted search over ``n_latents`` found.

        Parameters
        ----------
        search : GridSearchCV or another search with ``cv_results_``
            Fitted.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        LatentDimensionDisplay
            With the artists.
        """
        return cls(search.cv_results_).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> LatentDimensionDisplay:
        """Draw on ``ax``, or in a new figure.

        Returns
        -------
        LatentDimensionDisplay
            With the artists.
        """
        n_latents, mean, error = self._summary()
        best = int(mean.argmax())
        threshold = mean[best] - error[best]
        self.n_latents_ = int(n_latents[mean >= threshold].min())
        at = int(np.flatnonzero(n_latents == self.n_latents_)[0])
        self.ax_ = new_axes(type(self).__name__, ax, size=(6.0, 4.0))
        self.figure_ = self.ax_.figure
        self.threshold_ = self.ax_.axhline(
            threshold, color=QUIET, ls=":", lw=1.8, label="best less one standard error"
        )
        self.errorbar_ = self.ax_.errorbar(
            n_latents, mean, error, fmt="o-", color=COLOURS[0], capsize=4, lw=1.8, ms=6
        )
        (self.chosen_,) = self.ax_.plot(
            self.n_latents_,
            mean[at],
            "o",
            mfc="none",
            mec=COLOURS[1],
            mew=2.5,
            ms=15,
            ls="none",
            label=f"choice: {self.n_latents_}",
        )
        self.ax_.set_xticks(n_latents)
        self.ax_.set(xlabel="n_latents", ylabel="score (bits per spike)")
        self.ax_.legend(frameon=False, fontsize=11, loc="lower right")
        finish(self.ax_)
        return self

    def _summary(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sorted ``n_latents``, and the best candidate's mean score and standard error."""
        results = self.cv_results
        names = [key for key in results if key.endswith("n_latents") and key.startswith("param_")]
        if len(names) != 1 or "mean_test_score" not in results:
            raise ValueError(
                "cv_results must come from a search over n_latents with one score; it has the "
                f"parameters {[key[6:] for key in results if key.startswith('param_')]}."
            )
        n_splits = sum(key.startswith("split") and key.endswith("_test_score") for key in results)
        tried = np.asarray(results[names[0]], dtype=int)
        mean = np.asarray(results["mean_test_score"], dtype=float)
        # The standard deviation that searches report divides by n, a standard error by n - 1.
        error = np.asarray(results["std_test_score"], dtype=float) / np.sqrt(max(n_splits - 1, 1))
        values = np.unique(tried)
        best = [max(np.flatnonzero(tried == value), key=lambda i: mean[i]) for value in values]
        return values, mean[best], error[best]
