"""Which bin a time falls into, whatever floating point made of its decimals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

#: Times closer than this are one: 0.3 / 0.001 gives 299.99999999999994, and 0.3 is bin 300.
HALF_NANOSECOND = 5e-10


def tolerance(arrays: list[NDArray[Any]]) -> float:
    """Seconds by which two equal times may differ, given how they are stored."""
    largest = (np.abs(times).max() for times in arrays if times.size)
    # An integer is as good as the float64 it becomes.
    steps = (np.spacing(x if isinstance(x, np.floating) else np.float64(x)) for x in largest)
    # A difference of two times is off by up to one step, half of it from either.
    return max(HALF_NANOSECOND, 1.5 * max(map(float, steps), default=0.0))


@dataclass(frozen=True)
class Bins:
    """The bins of all trials, those of one trial after those of another.

    ``origins`` is where each trial's clock reads 0, and trial i has the first ``n_bins[i]`` of the
    bins between ``edges``. Bins include their start and not their stop. Whatever lies less than
    ``tolerance`` from an edge is on it.
    """

    origins: Floats
    n_bins: Ints
    edges: Floats
    tolerance: float

    @classmethod
    def around_events(
        cls, events: Floats, start: float, n_bins: int, bin_size: float, tolerance: float
    ) -> Bins:
        """As many bins in every trial, from ``start`` after its event."""
        edges = start + bin_size * np.arange(n_bins + 1)
        return cls(events, np.full(len(events), n_bins), edges, tolerance)

    @classmethod
    def within_epochs(cls, epochs: Floats, bin_size: float, tolerance: float) -> Bins:
        """All whole bins of epochs (n_trials, 2)."""
        lengths = epochs[:, 1] - epochs[:, 0] + tolerance
        edges = bin_size * np.arange(int(lengths.max() / bin_size) + 2)
        n_bins = np.searchsorted(edges, lengths, side="right") - 1
        return cls(epochs[:, 0], n_bins, edges[: n_bins.max() + 1], tolerance)

    @property
    def first(self) -> Ints:
        """Where each trial's bins begin among all bins."""
        return np.cumsum(self.n_bins) - self.n_bins

    def count(self, times: Floats) -> Ints:
        """How many of the sorted ``times`` fall into each bin."""
        trial, member = self._near(times, times)
        since = times[member] - self.origins[trial]
        bins = np.searchsorted(self.edges, since + self.tolerance, side="right") - 1
        inside = (bins >= 0) & (bins < self.n_bins[trial])
        return np.bincount((self.first[trial] + bins)[inside], minlength=self.n_bins.sum())

    def covered(self, intervals: Floats) -> NDArray[np.bool_]:
        """Whether each bin lies wholly inside one of the disjoint, sorted ``intervals``."""
        starts, stops = intervals.T
        trial, member = self._near(starts, stops)
        start = starts[member] - self.origins[trial] - self.tolerance
        stop = stops[member] - self.origins[trial] + self.tolerance
        n_bins = self.n_bins[trial]
        begin = np.minimum(np.searchsorted(self.edges, start, side="left"), n_bins)
        end = np.clip(np.searchsorted(self.edges, stop, side="right") - 1, begin, n_bins)
        change = np.zeros(self.n_bins.sum() + 1, dtype=int)
        np.add.at(change, self.first[trial] + begin, 1)
        np.add.at(change, self.first[trial] + end, -1)
        return np.cumsum(change[:-1]) > 0

    def _near(self, starts: Floats, stops: Floats) -> tuple[Ints, Ints]:
        """Pairs (trial, i) of trials and the sorted intervals that may reach into them."""
        margin = 2 * self.tolerance
        low = np.searchsorted(stops, self.origins + self.edges[0] - margin, side="left")
        high = np.searchsorted(
            starts, self.origins + self.edges[self.n_bins] + margin, side="right"
        )
        n = np.maximum(high - low, 0)
        trial = np.repeat(np.arange(len(n)), n)
        return trial, np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + low[trial]
