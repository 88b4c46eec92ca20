"""Fixed points on the trajectories, and their eigenvalues in the complex plane."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._data.validation import if_known
from ..analysis import FixedPoints, find_fixed_points
from ._style import (
    FOUND,
    KIND_COLOURS,
    KIND_MARKERS,
    QUIET,
    TRUE,
    Projection,
    as_trials,
    finish,
    legend,
    lines,
    new_axes,
)


class FixedPointDisplay:
    """Fixed points by kind on the trajectories, with their unstable directions.

    Colour is stability (stable, saddle, unstable), shape is the motion (circle: node; square:
    spiral; triangle: flip; diamond: none of them), hollow is a slow point. Lines through a point
    are the directions, or planes, in which motion grows.

    Parameters
    ----------
    fixed_points : FixedPoints
        From `find_fixed_points`.
    latents : array of shape (n_trials, n_bins, dim), list of (n_bins_i, dim) or None, default=None
        Trajectories to draw behind.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    trajectories_ : matplotlib line or None
        The trajectories.
    points_ : list of matplotlib lines
        One marker for each point drawn.
    directions_ : list of matplotlib lines
        The unstable directions.

    Examples
    --------
    >>> from sklearn_sae.analysis import find_fixed_points
    >>> from sklearn_sae.datasets import Lorenz
    >>> from sklearn_sae.plotting import FixedPointDisplay
    >>> states = Lorenz().trajectory(1000)
    >>> found = find_fixed_points(Lorenz(), states, random_state=0)
    >>> len(FixedPointDisplay(found, states).plot(dimensions=(0, 2)).points_)
    3
    """

    def __init__(self, fixed_points: FixedPoints, latents: Any = None) -> None:
        self.fixed_points = fixed_points
        self.latents = latents

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        inputs: Any = None,
        dimensions: Any = None,
        outside: bool = False,
        n_trials: int = 50,
        ax: Any = None,
        **kwargs: Any,
    ) -> FixedPointDisplay:
        """Infer latents, find the fixed points, and draw both.

        Parameters
        ----------
        estimator : NODESAE or RNNSAE
            Fitted.
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if the estimator was fitted with some.
        dimensions : sequence of 2 or 3 ints, default=None
            Latents to draw; None: all of up to three, else three principal components.
        outside : bool, default=False
            Draw also points far from all trajectories.
        n_trials : int, default=50
            Most trials to draw.
        ax : matplotlib Axes, default=None
            Where to draw, 3-D for three dimensions; None makes a figure.
        **kwargs : dict
            Further arguments of `find_fixed_points`.

        Returns
        -------
        FixedPointDisplay
            With the artists.
        """
        latents = estimator.transform(X, **if_known(inputs))
        display = cls(find_fixed_points(estimator, latents, **kwargs), latents)
        return display.plot(ax=ax, dimensions=dimensions, outside=outside, n_trials=n_trials)

    def plot(
        self,
        *,
        ax: Any = None,
        dimensions: Any = None,
        outside: bool = False,
        n_trials: int = 50,
    ) -> FixedPointDisplay:
        """Draw; parameters as in `from_estimator`.

        Returns
        -------
        FixedPointDisplay
            With the artists.
        """
        shown = self.fixed_points if outside else self.fixed_points[~self.fixed_points.outside]
        trials = [] if self.latents is None else as_trials("latents", self.latents)[:n_trials]
        if not trials and not len(shown):
            raise ValueError("There is nothing to draw: no fixed point and no latents.")
        projection = Projection(np.concatenate([*trials, shown.points]), dimensions)
        self.ax_ = new_axes(type(self).__name__, ax, three_d=projection.n_axes == 3)
        self.figure_ = self.ax_.figure
        self.trajectories_ = None
        if trials:
            (self.trajectories_,) = self.ax_.plot(
                *projection(lines(trials)).T, color=QUIET, lw=0.7, alpha=0.6, zorder=1
            )
        self.points_: list[Any] = []
        self.directions_: list[Any] = []
        for i in range(len(shown)):
            self._draw_directions(shown, i, projection)
            self._draw_point(shown, i, projection)
        projection.label(self.ax_)
        if len(shown):
            handles = {str(point.get_label()): point for point in self.points_}
            legend(self.ax_, list(handles.values()), beside=ax is None)
        finish(self.ax_)
        return self

    def _draw_point(self, shown: FixedPoints, i: int, projection: Projection) -> None:
        stability, _, motion = str(shown.kinds[i]).partition(" ")
        colour = KIND_COLOURS[stability]
        (point,) = self.ax_.plot(
            *projection(shown.points[i : i + 1]).T,
            KIND_MARKERS[motion],
            color=colour,
            markerfacecolor="white" if shown.slow[i] else colour,
            markeredgecolor=colour if shown.slow[i] else "black",
            ms=9,
            ls="none",
            zorder=4,
            label=f"{shown.kinds[i]}{' (slow)' if shown.slow[i] else ''}",
        )
        self.points_.append(point)

    def _draw_directions(self, shown: FixedPoints, i: int, projection: Projection) -> None:
        length = 0.35 * shown.radius
        colour = KIND_COLOURS[str(shown.kinds[i]).split()[0]]
        for k in np.flatnonzero(shown.exponents[i].real > 0):
            vector, turn = shown.eigenvectors[i, :, k], shown.eigenvalues[i, k].imag
            if turn < 0:
                continue  # the other one of a pair
            if turn > 0:
                # A pair of eigenvectors spans a plane; its ellipse is one turn of the motion.
                angle = np.linspace(0, 2 * np.pi, 60)[:, None]
                path = (np.exp(1j * angle) * vector).real
            else:
                # An eigenvector comes with any phase.
                vector = (vector * np.exp(-1j * np.angle(vector[np.abs(vector).argmax()]))).real
                path = np.outer([-1.0, 1.0], vector)
            path = shown.points[i] + length * path
            (line,) = self.ax_.plot(*projection(path).T, color=colour, lw=1.8, zorder=3)
            self.directions_.append(line)


class EigenvalueDisplay:
    """Multipliers in the complex plane, with the unit circle: found against true.

    A mode outside the circle grows, one inside decays, its angle is its turn per bin. Multipliers
    of flows are exp(eigenvalue x bin), so that flows and maps are drawn on one scale.

    Parameters
    ----------
    found : FixedPoints
        From `find_fixed_points`.
    true : FixedPoints or None, default=None
        Of the true system, to compare with.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    circle_ : matplotlib line
        The unit circle.
    found_, true_ : matplotlib lines
        The multipliers; ``true_`` is None without true points.

    Examples
    --------
    >>> from sklearn_sae.analysis import find_fixed_points
    >>> from sklearn_sae.datasets import Arneodo
    >>> from sklearn_sae.plotting import EigenvalueDisplay
    >>> found = find_fixed_points(Arneodo(), Arneodo().trajectory(500), random_state=0)
    >>> len(EigenvalueDisplay(found).plot().found_.get_xdata())
    9
    """

    def __init__(self, found: FixedPoints, true: FixedPoints | None = None) -> None:
        self.found = found
        self.true = true

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        inputs: Any = None,
        true: FixedPoints | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> EigenvalueDisplay:
        """Find the fixed points of a fitted estimator and draw their multipliers.

        Parameters
        ----------
        estimator : NODESAE or RNNSAE
            Fitted.
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if the estimator was fitted with some.
        true : FixedPoints, default=None
            Of the true system.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Further arguments of `find_fixed_points`.

        Returns
        -------
        EigenvalueDisplay
            With the artists.
        """
        latents = estimator.transform(X, **if_known(inputs))
        found = find_fixed_points(estimator, latents, **kwargs)
        return cls(found, true).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> EigenvalueDisplay:
        """Draw on ``ax``, or in a new figure.

        Returns
        -------
        EigenvalueDisplay
            With the artists.
        """
        self.ax_ = new_axes(type(self).__name__, ax, size=(6.0, 5.0))
        self.figure_ = self.ax_.figure
        angle = np.linspace(0, 2 * np.pi, 400)
        (self.circle_,) = self.ax_.plot(
            np.cos(angle), np.sin(angle), color=QUIET, lw=1.5, label="unit circle"
        )
        self.true_ = None
        if self.true is not None:
            values = self.true.multipliers.ravel()
            (self.true_,) = self.ax_.plot(
                values.real, values.imag, "o", mfc="none", mec=TRUE, ms=11, mew=1.6, label="true"
            )
        values = self.found.multipliers.ravel()
        (self.found_,) = self.ax_.plot(
            values.real, values.imag, "x", color=FOUND, ms=8, mew=2.2, label="found"
        )
        shown = [line for line in (self.found_, self.true_) if line is not None]
        x, y = np.concatenate([np.array(line.get_data()) for line in shown], axis=1)
        if len(x):
            # Only the arc near the multipliers: most turn little in a bin.
            margin = 0.12
            self.ax_.set_xlim(min(x.min(), 0.9) - margin, max(x.max(), 1.0) + margin)
            self.ax_.set_ylim(min(y.min(), -0.1) - margin, max(y.max(), 0.1) + margin)
        self.ax_.set_aspect("equal")
        self.ax_.set(xlabel="real part of multiplier (per bin)", ylabel="imaginary part (per bin)")
        self.ax_.legend(frameon=False, fontsize=11, loc="best")
        finish(self.ax_)
        return self
