"""A plane through the attractor, with the motion in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._data.masked import refuse_masked
from .._data.validation import if_known
from ..analysis._state_space import as_rows, as_state_space
from ._style import FOUND, finish, new_axes, principal_axes


class VectorFieldDisplay:
    """Streamlines of the dynamics in a plane through the states, with speed as colour.

    The plane holds the mean of the states and their first two principal directions, or one that is
    given. Arrows are the part of the motion that lies in the plane; colour is the whole speed.

    Parameters
    ----------
    system : NODESAE, RNNSAE, System or callable
        As in `find_fixed_points`. Of a map, what one bin adds to the state is drawn.
    states : array-like of shape (..., dim)
        Latents or true states: they decide the plane, and those near to it are drawn as dots.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    speed_ : matplotlib mesh
        The speed.
    stream_ : matplotlib StreamplotSet
        The streamlines.
    states_ : matplotlib line
        States near the plane.
    colorbar_ : matplotlib Colorbar
        Scale of the speed.

    Examples
    --------
    >>> from sklearn_sae.datasets import Rossler
    >>> from sklearn_sae.plotting import VectorFieldDisplay
    >>> display = VectorFieldDisplay(Rossler(), Rossler().trajectory(500)).plot(grid=20)
    >>> display.ax_.get_xlabel()
    'PC 1 (a.u.)'
    """

    def __init__(self, system: Any, states: Any) -> None:
        self.system = system
        self.states = states

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        inputs: Any = None,
        plane: Any = None,
        grid: int = 40,
        ax: Any = None,
    ) -> VectorFieldDisplay:
        """Infer latents and draw the dynamics in a plane through them.

        Parameters
        ----------
        estimator : NODESAE or RNNSAE
            Fitted, with at least 2 latents.
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if the estimator was fitted with some.
        plane : tuple (origin, direction, direction), default=None
            Of vectors (dim,); None is the plane of the first two principal components.
        grid : int, default=40
            Points along each side.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        VectorFieldDisplay
            With the artists.
        """
        latents = estimator.transform(X, **if_known(inputs))
        return cls(estimator, latents).plot(ax=ax, plane=plane, grid=grid)

    def plot(self, *, ax: Any = None, plane: Any = None, grid: int = 40) -> VectorFieldDisplay:
        """Draw; parameters as in `from_estimator`.

        Returns
        -------
        VectorFieldDisplay
            With the artists.
        """
        states = as_rows("states", self.states)
        dim = states.shape[1]
        if dim < 2:
            raise ValueError("A plane needs states of at least 2 dimensions, got 1.")
        space = as_state_space(self.system, dim, states=states)
        if plane is None:
            origin, axes = principal_axes(states, 2)
            labels = ["PC 1 (a.u.)", "PC 2 (a.u.)"]
        else:
            refuse_masked("plane", plane)
            origin = np.asarray(plane[0], dtype=float)
            # Orthonormal, so that distances in the picture are distances.
            axes = np.linalg.qr(np.array(plane[1:], dtype=float).T)[0].T
            axes *= np.sign((axes * np.array(plane[1:])).sum(axis=1, keepdims=True))
            labels = ["along the plane's first direction (a.u.)", "across it (a.u.)"]
        flat = (states - origin) @ axes.T
        low, high = flat.min(axis=0), flat.max(axis=0)
        margin = 0.1 * (high - low)
        x, y = (np.linspace(*ends, grid) for ends in zip(low - margin, high + margin, strict=True))
        points = np.stack(np.meshgrid(x, y), axis=-1)
        motion = space.velocity((origin + points @ axes).reshape(-1, dim))
        if not space.discrete:
            motion = motion * space.bin_width
        speed = np.linalg.norm(motion, axis=1).reshape(grid, grid)
        u, v = np.moveaxis((motion @ axes.T).reshape(grid, grid, 2), -1, 0)

        self.ax_ = new_axes(type(self).__name__, ax)
        self.figure_ = self.ax_.figure
        self.speed_ = self.ax_.pcolormesh(
            x, y, speed, cmap="cividis", shading="gouraud", rasterized=True
        )
        self.stream_ = self.ax_.streamplot(
            x, y, u, v, color="white", linewidth=0.8, density=1.1, arrowsize=1.0
        )
        away = np.linalg.norm(states - origin - flat @ axes, axis=1)
        near = flat[away <= np.quantile(away, 0.2)]
        (self.states_,) = self.ax_.plot(
            *near[:: max(1, len(near) // 2000)].T,
            ".",
            color=FOUND,
            ms=3,
            alpha=0.8,
            label="states near the plane",
        )
        self.colorbar_ = self.figure_.colorbar(self.speed_, ax=self.ax_)
        self.colorbar_.set_label("speed (distance per bin)", size=13)
        self.ax_.set(xlabel=labels[0], ylabel=labels[1])
        self.ax_.legend(
            frameon=False, fontsize=11, markerscale=3, loc="lower left", bbox_to_anchor=(0, 0.99)
        )
        finish(self.ax_)
        return self
