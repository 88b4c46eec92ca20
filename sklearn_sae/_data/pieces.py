"""Long trials cut into pieces, each with an initial condition of its own."""

from __future__ import annotations

import math

import numpy as np

from .trials import Trials
from .units import Units

__all__ = ["Pieces"]


class Pieces(Trials):
    """Trials cut into pieces of one length, without a copy of them.

    Pieces overlap by a few bins where a trial is no multiple of their length.

    Parameters
    ----------
    whole : Trials
    longest : int
        Bins of a piece, at most.
    units : Units
        In which pieces are read.

    Attributes
    ----------
    trial, start : int arrays of shape (n_pieces,)
        The trial that each piece is of, in order, and its first bin there.
    """

    def __init__(self, whole: Trials, longest: int, units: Units | None = None) -> None:
        n_bins = math.ceil(whole.n_bins / math.ceil(whole.n_bins / longest))
        starts = [_starts(length, n_bins) for length in whole.lengths()]
        self.trial = np.repeat(np.arange(len(whole)), [len(each) for each in starts])
        self.start = np.concatenate(starts)
        views = [
            whole.view(int(trial))[start : start + n_bins]
            for trial, start in zip(self.trial, self.start, strict=True)
        ]
        inputs = None
        if whole.inputs is not None:
            bins = self.start[:, np.newaxis] + np.arange(n_bins)
            inputs = whole.inputs[self.trial[:, np.newaxis], bins]
        super().__init__(views, has_missing=whole.has_missing, inputs=inputs)
        self.units = units or Units()


def _starts(length: int, n_bins: int) -> np.ndarray:
    """First bins of the pieces of a trial of so many bins."""
    n_pieces = math.ceil(length / n_bins)
    return np.linspace(0, max(length - n_bins, 0), n_pieces).round().astype(int)
