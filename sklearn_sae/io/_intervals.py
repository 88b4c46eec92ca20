"""Sets of time intervals: arrays (n_intervals, 2) of starts and stops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def united(intervals: Floats, gap: float = 0.0) -> Floats:
    """The same set, sorted, with intervals joined that overlap or are at most ``gap`` apart."""
    intervals = intervals[np.argsort(intervals[:, 0])]
    reached = np.maximum.accumulate(intervals[:, 1])
    new = np.r_[True, intervals[1:, 0] > reached[:-1] + gap]
    last = np.r_[new[1:], True]
    # Without intervals both have one entry too many.
    return np.stack([intervals[new[: len(intervals)], 0], reached[last[: len(intervals)]]], axis=1)


def without(intervals: Floats, removed: Floats) -> Floats:
    """The parts of ``intervals`` that lie outside ``removed``."""
    removed = united(removed)
    gaps = np.stack([np.r_[-np.inf, removed[:, 1]], np.r_[removed[:, 0], np.inf]], axis=1)
    starts = np.maximum.outer(intervals[:, 0], gaps[:, 0])
    stops = np.minimum.outer(intervals[:, 1], gaps[:, 1])
    return np.stack([starts[starts < stops], stops[starts < stops]], axis=1)
