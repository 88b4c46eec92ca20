"""What all displays share: matplotlib when it is needed, colours, axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._data.masked import as_array, refuse_masked

Array = NDArray[np.floating]

#: Okabe & Ito (2008): told apart by colour-blind readers, and in grey by their order here.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: With these, 28 labels are told apart.
DASHES = ("-", "--", ":", "-.")
#: Of a figure with many axes.
N_COLUMNS = 3
TRUE, FOUND, QUIET = "#000000", "#D55E00", "#9AA5AD"
KIND_COLOURS = {"stable": "#0072B2", "saddle": "#D55E00", "unstable": "#CC79A7", "neutral": "#666"}
KIND_MARKERS = {"node": "o", "spiral": "s", "flip": "^", "": "D"}


def import_pyplot(display: str) -> Any:
    """matplotlib.pyplot, or an error that says how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{display}.plot needs matplotlib, which is not installed. Install it with: "
            'pip install "sklearn_sae[plot]"'
        ) from error
    return plt


def new_axes(display: str, ax: Any, *, three_d: bool = False, size: Any = (6.0, 4.5)) -> Any:
    """``ax``, or the only axes of a new figure."""
    plt = import_pyplot(display)
    if ax is not None:
        if three_d and not hasattr(ax, "get_zlim"):
            raise ValueError(
                f"ax must be 3-D for {display} of three dimensions; make it with "
                'subplot(projection="3d"), or pass dimensions=(0, 1) to draw two.'
            )
        return ax
    if not three_d:
        return plt.figure(figsize=size, layout="constrained").add_subplot()
    figure = plt.figure(figsize=(7.0, 5.5), layout="constrained")
    # The layout does not know how far the labels of 3-D axes reach.
    axes = figure.add_subplot(projection="3d")
    axes.set_box_aspect(None, zoom=0.85)
    return axes


def grid_of_axes(display: str, ax: Any, n_axes: int, of: str, *, share_y: bool = False) -> Any:
    """``ax`` as an array of ``n_axes``, one for each ``of``, or those of a new figure."""
    plt = import_pyplot(display)
    if ax is None:
        n_columns = min(N_COLUMNS, n_axes)
        n_rows = math.ceil(n_axes / n_columns)
        size = (3.4 * n_columns + 0.4, 2.4 * n_rows + 0.6)
        _, axes = plt.subplots(
            n_rows, n_columns, figsize=size, layout="constrained", squeeze=False, sharey=share_y
        )
        for unused in axes.ravel()[n_axes:]:
            unused.remove()
        return axes.ravel()[:n_axes]
    axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(axes) != n_axes:
        raise ValueError(
            f"ax must hold one Axes for each of {n_axes} {of}, got {len(axes)}. Choose as many "
            f"{of.replace(' ', '_')}=[...], or leave ax=None."
        )
    return axes


def label_grid(axes: Any, x: str, y: str, *, own: bool) -> None:
    """Name the axes: of our ``own`` grid, the lowest in each column and the first in each row."""
    for i, axis in enumerate(axes):
        if not own or i + N_COLUMNS >= len(axes):
            axis.set_xlabel(x, size=13)
        if not own or i % N_COLUMNS == 0:
            axis.set_ylabel(y, size=13)


def finish(ax: Any) -> None:
    """Large enough to read at half size, and without lines that say nothing."""
    for axis in (ax.xaxis, ax.yaxis, *([ax.zaxis] if hasattr(ax, "zaxis") else [])):
        axis.label.set_size(13)
    ax.title.set_size(14)
    ax.tick_params(labelsize=11)
    if hasattr(ax, "zaxis"):
        ax.locator_params(nbins=4)
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.set_pane_color((1, 1, 1, 0))
            axis.labelpad = 8
    else:
        ax.spines[["top", "right"]].set_visible(False)


def legend(ax: Any, handles: list[Any], *, beside: bool) -> None:
    """A legend beside the axes, where it covers nothing, or where there is room in them."""
    owner, place = (ax.figure, "outside right upper") if beside else (ax, "best")
    made = owner.legend(handles=handles, loc=place, frameon=False, fontsize=11)
    for handle in made.legend_handles:
        # Lines are thin for the many trials, not for the one sample.
        handle.set(alpha=1.0, linewidth=max(handle.get_linewidth(), 2.0))


def as_trials(name: str, values: Any) -> list[Array]:
    """Trials (n_bins_i, n) of an array (n_trials, n_bins, n), a list, or one trial."""
    refuse_masked(name, values)
    if isinstance(values, list | tuple) and len(values) and np.ndim(values[0]) == 2:
        return [np.asarray(trial, dtype=float) for trial in values]
    array = np.asarray(values, dtype=float)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"{name} must be an array (n_trials, n_bins, n), a list of arrays (n_bins_i, n), or "
            f"one trial (n_bins, n); got shape {array.shape}."
        )
    return [array] if array.ndim == 2 else list(array)


def one_label_each(labels: Any, n_trials: int) -> Any:
    """Labels of all trials as an array; zeros if there are none."""
    labels = np.zeros(n_trials) if labels is None else as_array("labels", labels)
    if len(labels) != n_trials:
        raise ValueError(
            f"labels must have one entry for each of {n_trials} trials, got {len(labels)}."
        )
    return labels


def look(i: int) -> dict[str, str]:
    """How lines of the label that comes at place ``i`` look."""
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i // len(COLOURS) % len(DASHES)]}


def principal_axes(states: Array, n_axes: int) -> tuple[Array, Array]:
    """Mean and the first ``n_axes`` principal directions (n_axes, dim) of rows."""
    mean = states.mean(axis=0)
    _, directions = np.linalg.eigh((states - mean).T @ (states - mean))
    directions = directions[:, ::-1].T[:n_axes]
    # A sign of its own for each direction: pictures should not flip from run to run.
    largest = np.abs(directions).argmax(axis=1)
    return mean, directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]


class Projection:
    """From states to what is drawn: chosen dimensions, all of up to three, or principal axes."""

    def __init__(self, states: ArrayLike, dimensions: Any = None) -> None:
        rows: Array = np.asarray(states, dtype=float)
        rows = rows[np.isfinite(rows).all(axis=1)]
        dim = rows.shape[1]
        self.mean: Array = np.zeros(dim)
        if dimensions is not None:
            chosen = [int(i) for i in dimensions]
            if len(chosen) not in (2, 3) or not all(0 <= i < dim for i in chosen):
                raise ValueError(
                    f"dimensions must be two or three of 0 to {dim - 1}, got {dimensions!r}."
                )
        else:
            chosen = list(range(dim))
        if len(chosen) <= 3:
            self.axes: Array = np.eye(dim)[chosen]
            self.labels = [f"latent {i} (a.u.)" for i in chosen]
        else:
            self.mean, self.axes = principal_axes(rows, 3)
            self.labels = [f"PC {i + 1} (a.u.)" for i in range(3)]
        self.n_axes = len(self.axes)

    def __call__(self, states: ArrayLike) -> Array:
        """States (..., dim) as (..., n_axes)."""
        return (np.asarray(states, dtype=float) - self.mean) @ self.axes.T

    def label(self, ax: Any) -> None:
        """Name the axes."""
        setters = (ax.set_xlabel, ax.set_ylabel, getattr(ax, "set_zlabel", None))
        for setter, label in zip(setters, self.labels, strict=False):
            setter(label)


def lines(trials: list[Array]) -> Array:
    """Trials one after the other, with a row of NaN between them that lifts the pen."""
    gap = np.full((1, trials[0].shape[1]), np.nan)
    return np.concatenate([part for trial in trials for part in (trial, gap)])
