"""Which n_latents a search speaks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..model_selection import candidate_scores, smallest_within_one_standard_error
from ._style import COLOURS, QUIET, finish, new_axes

SCORE_NAME = "score (bits per spike)"


class LatentDimensionDisplay:
    """Score against ``n_latents``, with the choice of the one-standard-error rule marked.

    The rule is that of `smallest_within_one_standard_error`: the smallest ``n_latents`` whose mean
    score is within one standard error of the best.

    Parameters
    ----------
    cv_results : dict
        ``cv_results_`` of a fitted search over ``n_latents``, by itself or in a pipeline
        (``"nodesae__n_latents"``). Of several candidates with one ``n_latents``, the best counts.
    score_name : str, default="score (bits per spike)"
        Label of the scores. The default is the estimators' own score.

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

    def __init__(self, cv_results: dict, *, score_name: str = SCORE_NAME) -> None:
        self.cv_results = cv_results
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls, search: Any, *, score_name: str = SCORE_NAME, ax: Any = None
    ) -> LatentDimensionDisplay:
        """Draw what a fitted search over ``n_latents`` found.

        Parameters
        ----------
        search : GridSearchCV or another search with ``cv_results_``
            Fitted.
        score_name : str, default="score (bits per spike)"
            Label of the scores.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        LatentDimensionDisplay
            With the artists.
        """
        return cls(search.cv_results_, score_name=score_name).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> LatentDimensionDisplay:
        """Draw on ``ax``, or in a new figure.

        Returns
        -------
        LatentDimensionDisplay
            With the artists.
        """
        tried, mean, error = candidate_scores(self.cv_results)
        chosen = smallest_within_one_standard_error(self.cv_results)
        self.n_latents_ = int(tried[chosen])
        best = int(np.nanargmax(mean))
        self.ax_ = new_axes(type(self).__name__, ax, size=(6.0, 4.0))
        self.figure_ = self.ax_.figure
        self.threshold_ = self.ax_.axhline(
            mean[best] - error[best],
            color=QUIET,
            ls=":",
            lw=1.8,
            label="best less one standard error",
        )
        # The best candidate with each n_latents, those without a score left out.
        by_score = np.argsort(-mean)[: np.isfinite(mean).sum()]
        n_latents, first = np.unique(tried[by_score], return_index=True)
        shown = by_score[first]
        self.errorbar_ = self.ax_.errorbar(
            n_latents,
            mean[shown],
            error[shown],
            fmt="o-",
            color=COLOURS[0],
            capsize=4,
            lw=1.8,
            ms=6,
        )
        (self.chosen_,) = self.ax_.plot(
            self.n_latents_,
            mean[chosen],
            "o",
            mfc="none",
            mec=COLOURS[1],
            mew=2.5,
            ms=15,
            ls="none",
            label=f"choice: {self.n_latents_}",
        )
        # Searches double rather than count, and small numbers would run into each other.
        self.ax_.set_xscale("log")
        self.ax_.set_xticks(n_latents, n_latents)
        self.ax_.minorticks_off()
        self.ax_.set(xlabel="n_latents", ylabel=self.score_name)
        self.ax_.legend(frameon=False, fontsize=11, loc="best")
        finish(self.ax_)
        return self
