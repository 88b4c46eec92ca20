"""Long recordings as windows that overlap, and what was inferred in these as one again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._data.masked import as_array


@dataclass(frozen=True)
class ChopLayout:
    """Where windows lie in a recording: `chop` makes it, `merge` needs it.

    Parameters
    ----------
    n_bins : int
        Bins of the recording.
    window : int
        Bins of a window.
    overlap : int
        Bins that a window shares with the next one.
    """

    n_bins: int
    window: int
    overlap: int

    @property
    def starts(self) -> NDArray[np.integer]:
        """First bin of each window."""
        step = self.window - self.overlap
        return step * np.arange(1 + math.ceil(max(0, self.n_bins - self.window) / step))


def chop(recording: ArrayLike, window: int, overlap: int) -> tuple[list[NDArray[Any]], ChopLayout]:
    """Cut a continuous recording into windows that overlap, which estimators take as trials.

    A window starts every ``window - overlap`` bins, until one reaches the end of the recording.
    If it reaches beyond, it is padded with NaN: not observed.

    Parameters
    ----------
    recording : array-like of shape (n_bins, n_neurons)
        Spike counts; NaN = not observed.
    window : int
        Bins of a window, at least 2.
    overlap : int
        Bins that a window shares with the next, 0 <= overlap < window.

    Returns
    -------
    windows : list of n_windows arrays of shape (window, n_neurons)
        Views, save for a padded one: a memory map stays on disk, integers stay integers. Have an
        array with ``np.stack(windows)``.
    layout : ChopLayout
        What `merge` needs to put them together; ``layout.starts`` holds the first bin of each.

    Raises
    ------
    ValueError
        If a shape or a number is not one of those allowed.

    Notes
    -----
    Windows that overlap share spikes. For cross-validation, first cut the recording into the
    stretches to train and to test on, then chop each of them.

    Without overlap the last window may hold a few observed bins, from which little can be inferred.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.io import chop
    >>> windows, layout = chop(np.arange(9)[:, np.newaxis], window=4, overlap=1)
    >>> [w.ravel().tolist() for w in windows]
    [[0, 1, 2, 3], [3, 4, 5, 6], [6.0, 7.0, 8.0, nan]]
    >>> layout
    ChopLayout(n_bins=9, window=4, overlap=1)
    """
    recording = as_array("recording", recording)
    if recording.ndim != 2 or len(recording) == 0:
        hint = " These are trials already." if recording.ndim == 3 else ""
        raise ValueError(
            f"recording must have shape (n_bins, n_neurons), got {recording.shape}.{hint}"
        )
    numbers: tuple[tuple[str, Any, int], ...] = (("window", window, 2), ("overlap", overlap, 0))
    for name, value, least in numbers:
        if not isinstance(value, Integral) or value < least:
            raise ValueError(
                f"{name} must be a number of bins, an int >= {least}, got {value!r}. From seconds: "
                f"round({name} / bin_size)."
            )
    if overlap >= window:
        raise ValueError(
            f"overlap must be less than window, got overlap={overlap} and window={window}."
        )
    layout = ChopLayout(len(recording), int(window), int(overlap))
    windows = [recording[start : start + window] for start in layout.starts]
    n_missing = window - len(windows[-1])
    if n_missing:
        missing = np.full((n_missing, recording.shape[1]), np.nan, dtype=np.float32)
        windows[-1] = np.concatenate([windows[-1], missing])
    return windows, layout


def merge(pieces: Sequence[ArrayLike] | NDArray[Any], layout: ChopLayout) -> NDArray[np.floating]:
    """Put windows together again: rates, latents or whatever was inferred in each.

    Where windows overlap, bins are averaged. A model is least sure of the bins at the ends of a
    window: the first hang on the initial condition alone, and at either end spikes are missing on
    one side. So weights fall towards both ends, as the fourth power of the bins left to the end,
    over ``overlap`` bins and one more, and each window fades into the next without a seam. They
    are divided by their sum in each bin.

    Parameters
    ----------
    pieces : sequence of n_windows arrays of shape (window, ...)
        One for each window that `chop` gave, in the same order, with any axes after the bins:
        ``predict(windows)`` or ``transform(windows)``, from one model.
    layout : ChopLayout
        As `chop` gave it.

    Returns
    -------
    ndarray of shape (n_bins, ...)
        The weighted mean, float32 if ``pieces`` are. Where windows agree it is their value to the
        last bit, so ``merge(*chop(recording, ...))`` equals ``recording``. What a piece holds
        beyond the end of the recording is dropped; NaN elsewhere stays NaN.

    Raises
    ------
    ValueError
        If ``pieces`` are not as many and as long as ``layout`` says, or their other axes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.io import chop, merge
    >>> _, layout = chop(np.zeros((6, 1)), window=4, overlap=2)
    >>> merge([np.zeros(4), np.full(4, 3.0)], layout)
    array([0.        , 0.        , 0.17647059, 2.82352941, 3.        ,
           3.        ])
    """
    if not isinstance(layout, ChopLayout):
        raise ValueError(
            f"layout must be the ChopLayout that chop returned, got {type(layout).__name__}: "
            "windows, layout = chop(...)."
        )
    arrays = [as_array("pieces", piece) for piece in pieces]
    starts, window = layout.starts, layout.window
    if len(arrays) != len(starts) or any(x.shape[:1] != (window,) for x in arrays):
        raise ValueError(
            f"pieces must be {len(starts)} windows of {window} bins each for {layout}; got "
            f"{len(arrays)}, of shapes {sorted({x.shape for x in arrays})[:3]}."
        )
    if len({x.shape for x in arrays}) > 1:
        raise ValueError(
            f"All pieces must have one shape, got {sorted({x.shape for x in arrays})[:3]}."
        )
    ramp = np.minimum(np.arange(window) + 1, window - np.arange(window))
    # Linear ramps let through enough of the first bins, which may be far off, for steps to show.
    weights = np.minimum(ramp, layout.overlap + 1).astype(float) ** 4
    merged = np.zeros(
        (layout.n_bins, *arrays[0].shape[1:]),
        np.result_type(np.float32, *{x.dtype for x in arrays}),
    )
    total = np.zeros(layout.n_bins)
    for start, piece in zip(starts, arrays, strict=True):
        piece = piece[: layout.n_bins - start]
        bins = slice(start, start + len(piece))
        total[bins] += weights[: len(piece)]
        share = (weights[: len(piece)] / total[bins]).reshape(-1, *[1] * (piece.ndim - 1))
        # A running mean: a sum divided by a sum of weights would change the last bit.
        merged[bins] += (piece - merged[bins]) * share
    return merged
