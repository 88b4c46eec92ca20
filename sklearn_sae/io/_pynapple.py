"""Spike counts of trials from pynapple objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._intervals import Floats, united
from ._spike_times import trials_from_spike_times

#: pynapple takes 1e-6 s off the end of an interval that the next one touches.
TOUCHING = 1.5e-6


def trials_from_pynapple(
    tsgroup: Any,
    *,
    bin_size: float,
    align_to: Any,
    window: tuple[float, float] | None = None,
) -> NDArray[Any] | list[NDArray[Any]]:
    """Count the spikes of a pynapple TsGroup in the bins of trials.

    Parameters
    ----------
    tsgroup : pynapple.TsGroup
        Spike times of all neurons. Bins not wholly inside its ``time_support`` become NaN. Give
        ``TsGroup(..., time_support=...)`` the extent of the recording: without it, pynapple takes
        that from the first spike to the last.
    bin_size : float
        Width of a bin in seconds.
    align_to : pynapple.Ts, Tsd or IntervalSet, or array-like
        With a ``window``, one event for each trial; without one, an IntervalSet that holds the
        start and the stop of each trial. Intervals that pynapple shortened by a microsecond, as
        it does where they touch, get it back.
    window : tuple (start, stop), default=None
        Where each trial starts and stops, in seconds from its event; negative is before. It must
        hold a whole number of bins.

    Returns
    -------
    spikes : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
        Spike counts, one trial for each event or interval, neurons in the order of
        ``tsgroup.index``: an array with a ``window``, a list without. The smallest unsigned
        integers that hold them, or float32 if any bin is NaN.

    Raises
    ------
    TypeError
        If ``tsgroup`` is not a TsGroup, or ``align_to`` is one.
    ValueError
        As in `trials_from_spike_times`.

    See Also
    --------
    trials_from_spike_times : How times are rounded and what happens at the ends.

    Notes
    -----
    pynapple keeps times in order: sort labels by the times of their events too. In pynapple an
    interval includes its end; here a bin, and so a trial, does not.

    Examples
    --------
    >>> import pynapple as nap
    >>> from sklearn_sae.io import trials_from_pynapple
    >>> recording = nap.IntervalSet(0, 10)
    >>> units = nap.TsGroup(
    ...     {0: nap.Ts([0.5, 1.2, 7.0]), 1: nap.Ts([1.25, 8.0])}, time_support=recording
    ... )
    >>> trials_from_pynapple(
    ...     units, bin_size=0.1, align_to=nap.Ts([1.0, 7.0]), window=(0.0, 0.3)
    ... )[0]
    array([[0, 0],
           [0, 0],
           [1, 1]], dtype=uint8)
    >>> trials = nap.IntervalSet([0, 5], [2, 8.5])
    >>> [len(trial) for trial in trials_from_pynapple(units, bin_size=0.1, align_to=trials)]
    [20, 35]
    """
    if not (hasattr(tsgroup, "time_support") and hasattr(tsgroup, "items")):
        raise TypeError(
            f"tsgroup must be a pynapple.TsGroup, got {type(tsgroup).__name__}. For a single "
            "neuron, pass TsGroup({0: ts})."
        )
    neurons = [tsgroup[i].t for i in tsgroup.index]
    return trials_from_spike_times(
        neurons,
        bin_size=bin_size,
        align_to=_times(align_to),
        window=window,
        obs_intervals=[united(tsgroup.time_support.values, TOUCHING)] * len(neurons),
    )


def _times(align_to: Any) -> Any:
    if hasattr(align_to, "t"):
        return align_to.t
    if hasattr(align_to, "start") and hasattr(align_to, "end"):
        return _mended(align_to.values)
    if hasattr(align_to, "time_support"):
        raise TypeError(
            "align_to must be a Ts or Tsd of events or an IntervalSet, got "
            f"{type(align_to).__name__}. Take one of its members."
        )
    return align_to


def _mended(intervals: Floats) -> Floats:
    """Sorted intervals, those that pynapple shortened back at their length."""
    ends = intervals[:, 1].copy()
    following = intervals[1:, 0]
    ends[:-1] = np.where(following - ends[:-1] < TOUCHING, following, ends[:-1])
    return np.stack([intervals[:, 0], ends], axis=1)
