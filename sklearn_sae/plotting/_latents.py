"""Latents as lines in two or three dimensions, or over time where there is but one."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._data.validation import if_known
from ._style import (
    Projection,
    as_trials,
    finish,
    legend,
    lines,
    look,
    new_axes,
    one_label_each,
)


class LatentTrajectoryDisplay:
    """Latents of trials, coloured by label.

    Parameters
    ----------
    latents : array of shape (n_trials, n_bins, n_latents), or list of (n_bins_i, n_latents)
        What to draw; also states of a true system.
    labels : array-like of shape (n_trials,), default=None
        Condition of each trial; one colour each, then the same dashed. None: all in one colour.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    lines_ : list of matplotlib lines
        One for each label, in their sorted order.
    starts_ : list of matplotlib artists
        Dots at the initial conditions, one artist for each label.

    Examples
    --------
    >>> from sklearn_sae.datasets import Lorenz
    >>> from sklearn_sae.plotting import LatentTrajectoryDisplay
    >>> display = LatentTrajectoryDisplay(Lorenz().trajectory(500)).plot()
    >>> display.ax_.get_xlabel()
    'latent 0 (a.u.)'
    """

    def __init__(self, latents: Any, labels: Any = None) -> None:
        self.latents = latents
        self.labels = labels

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        inputs: Any = None,
        labels: Any = None,
        dimensions: Any = None,
        n_trials: int = 50,
        ax: Any = None,
    ) -> LatentTrajectoryDisplay:
        """Infer the latents of trials and draw them.

        Parameters
        ----------
        estimator : NODESAE or RNNSAE
            Fitted.
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if the estimator was fitted with some.
        labels : array-like of shape (n_trials,), default=None
            Condition of each trial.
        dimensions : sequence of 2 or 3 ints, default=None
            Latents to draw; None: all of up to three (one alone over time), else three principal
            components.
        n_trials : int, default=50
            Most trials to draw, evenly spaced.
        ax : matplotlib Axes, default=None
            Where to draw, 3-D for three dimensions; None makes a figure.

        Returns
        -------
        LatentTrajectoryDisplay
            With the artists.
        """
        display = cls(estimator.transform(X, **if_known(inputs)), labels)
        return display.plot(ax=ax, dimensions=dimensions, n_trials=n_trials)

    def plot(
        self, *, ax: Any = None, dimensions: Any = None, n_trials: int = 50
    ) -> LatentTrajectoryDisplay:
        """Draw; parameters as in `from_estimator`.

        Returns
        -------
        LatentTrajectoryDisplay
            With the artists.
        """
        trials = as_trials("latents", self.latents)
        projection = Projection(np.concatenate(trials), dimensions)
        labels = one_label_each(self.labels, len(trials))
        paths = [projection(trial) for trial in trials]
        if projection.n_axes == 1:
            # One latent has no space to move in: draw it over time.
            paths = [np.column_stack([np.arange(len(path)), path]) for path in paths]
            projection.labels = ["time (bins)", *projection.labels]
        self.ax_ = new_axes(type(self).__name__, ax, three_d=projection.n_axes == 3)
        self.figure_ = self.ax_.figure
        self.lines_, self.starts_ = [], []
        drawn = np.unique(np.linspace(0, len(trials) - 1, n_trials).round().astype(int))
        for i, label in enumerate(np.unique(labels)):
            chosen = [paths[row] for row in drawn if labels[row] == label]
            if not chosen:
                continue
            (line,) = self.ax_.plot(
                *lines(chosen).T, **look(i), lw=0.9, alpha=0.7, label=str(label)
            )
            first = np.array([path[0] for path in chosen])
            (dots,) = self.ax_.plot(*first.T, ".", color=line.get_color(), ms=5)
            self.lines_.append(line)
            self.starts_.append(dots)
        projection.label(self.ax_)
        if self.labels is not None:
            legend(self.ax_, self.lines_, beside=ax is None)
        finish(self.ax_)
        return self
