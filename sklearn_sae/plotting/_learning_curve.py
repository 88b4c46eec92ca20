"""How training went."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._data.masked import refuse_masked
from ._style import COLOURS, finish, new_axes


class LearningCurveDisplay:
    """Loss of each epoch, and scores of trials that were held out.

    The loss is the mean negative log-likelihood per observed entry, without the part that only
    depends on the counts. It jumps where the fit to all trials begins, and where ``dispersion_``,
    by which it is divided, is measured anew. With an encoder or inferred inputs it is that within
    the horizon: while the horizon grows, the task grows harder, and the loss may rise.

    Parameters
    ----------
    loss : sequence of float
        ``loss_curve_`` of an estimator.
    validation_scores : sequence of float or None, default=None
        ``validation_scores_``, in bits per spike.
    validation_epochs : sequence of int or None, default=None
        ``validation_epochs_``, the number of epochs before each score; None are the last epochs.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    loss_ : matplotlib line
        The loss.
    score_ax_, scores_ : matplotlib Axes and line, or None
        The scores, on an axis of their own at the right.

    Examples
    --------
    >>> from sklearn_sae.plotting import LearningCurveDisplay
    >>> LearningCurveDisplay([1.2, 1.0, 0.9]).plot().ax_.get_xlabel()
    'epoch'
    """

    def __init__(
        self, loss: Any, validation_scores: Any = None, validation_epochs: Any = None
    ) -> None:
        self.loss = loss
        self.validation_scores = validation_scores
        self.validation_epochs = validation_epochs

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> LearningCurveDisplay:
        """Draw what a fitted estimator recorded.

        Parameters
        ----------
        estimator : NODESAE or RNNSAE
            Fitted.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        LearningCurveDisplay
            With the artists.
        """
        scores = getattr(estimator, "validation_scores_", None)
        epochs = getattr(estimator, "validation_epochs_", None)
        return cls(estimator.loss_curve_, scores, epochs).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> LearningCurveDisplay:
        """Draw on ``ax``, or in a new figure.

        Returns
        -------
        LearningCurveDisplay
            With the artists.
        """
        refuse_masked("loss", self.loss)
        refuse_masked("validation_scores", self.validation_scores)
        self.ax_ = new_axes(type(self).__name__, ax, size=(6.0, 4.0))
        self.figure_ = self.ax_.figure
        epochs = np.arange(1, len(self.loss) + 1)
        (self.loss_,) = self.ax_.plot(epochs, self.loss, color=COLOURS[0], lw=2)
        self.ax_.set(xlabel="epoch", ylabel="loss (nats per entry)")
        self.score_ax_ = self.scores_ = None
        finish(self.ax_)
        if self.validation_scores is not None and len(self.validation_scores):
            of_scores = self.validation_epochs
            if of_scores is None:
                of_scores = epochs[-len(self.validation_scores) :]
            self.score_ax_ = self.ax_.twinx()
            (self.scores_,) = self.score_ax_.plot(
                of_scores,
                self.validation_scores,
                color=COLOURS[1],
                marker="." if len(self.validation_scores) < 20 else None,
                lw=2,
                ls="--",
            )
            self.score_ax_.set_ylabel("validation score (bits per spike)")
            finish(self.score_ax_)
            self.score_ax_.spines["right"].set_visible(True)
            self.ax_.yaxis.label.set_color(COLOURS[0])
            self.score_ax_.yaxis.label.set_color(COLOURS[1])
        return self
