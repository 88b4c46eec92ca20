"""Spike counts of trials from lists of spike times."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._binning import Bins, tolerance
from ._checks import (
    check_bin_size,
    check_epochs,
    check_events,
    check_obs_intervals,
    check_spike_times,
    check_window,
)


def trials_from_spike_times(
    spike_times: Any,
    *,
    bin_size: float,
    align_to: ArrayLike,
    window: tuple[float, float] | None = None,
    obs_intervals: Any = None,
) -> NDArray[Any] | list[NDArray[Any]]:
    """Count spikes in the bins of trials.

    Parameters
    ----------
    spike_times : sequence of n_neurons arrays of shape (n_spikes_i,)
        Times of each neuron's spikes in seconds, in any order.
    bin_size : float
        Width of a bin in seconds.
    align_to : array-like of shape (n_trials,) or (n_trials, 2)
        With a ``window``, the time of one event for each trial; without one, the start and the stop
        of each trial. In seconds, on the clock of ``spike_times``.
    window : tuple (start, stop), default=None
        Where each trial starts and stops, in seconds from its event; negative is before. It must
        hold a whole number of bins.
    obs_intervals : sequence of n_neurons array-likes of shape (n_intervals_i, 2), default=None
        When each neuron was observed, in seconds; intervals that overlap or touch are one. Bins
        not wholly inside become NaN. None says that everything was observed: then a trial that
        reaches beyond the recording shows silence where there was no recording.

    Returns
    -------
    spikes : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
        Spike counts, one trial for each row of ``align_to``: an array with a ``window``, a list
        without. The smallest unsigned integers that hold them, or float32 if any bin is NaN.

    Raises
    ------
    ValueError
        If shapes do not fit, a time is NaN or infinite, an epoch or an interval stops before it
        starts, ``window`` does not hold whole bins, or bins are narrower than the times are
        precise.

    Warns
    -----
    UserWarning
        If there are spikes and none of them is in any trial.

    Notes
    -----
    A bin holds the spikes with start <= time < stop. Decimals such as 0.3 have no exact binary
    form, so a time that falls short of an edge by less than half a nanosecond counts as on it: for
    all times below 2 million seconds that are given to the nanosecond, counts are those of exact
    decimal arithmetic. Where the numbers themselves are coarser (seconds since 1970, float32),
    1.5 times their spacing at the largest time takes the place of half a nanosecond; that is
    exact to the microsecond for float64 seconds since 1970.

    An epoch has as many whole bins as fit from its start; what is left at its end is not used.

    A missing event (NaN) is an error here, since leaving it out would silently shift trials
    against your labels: drop it from both, ``keep = ~np.isnan(events)``.

    Examples
    --------
    >>> from sklearn_sae.io import trials_from_spike_times
    >>> spike_times = [[0.1, 0.3, 0.302], [0.25, 0.3005]]
    >>> spikes = trials_from_spike_times(
    ...     spike_times, bin_size=0.001, align_to=[0.3, 0.1], window=(-0.001, 0.003)
    ... )
    >>> spikes.shape, spikes.dtype
    ((2, 4, 2), dtype('uint8'))
    >>> spikes[0]
    array([[0, 0],
           [1, 1],
           [0, 0],
           [1, 0]], dtype=uint8)

    Whole trials of unequal length, the second neuron lost after 0.2 s:

    >>> trials = trials_from_spike_times(
    ...     spike_times,
    ...     bin_size=0.1,
    ...     align_to=[[0.0, 0.2], [0.1, 0.4]],
    ...     obs_intervals=[[[0.0, 1.0]], [[0.0, 0.2]]],
    ... )
    >>> trials[1]
    array([[ 1.,  0.],
           [ 0., nan],
           [ 2., nan]], dtype=float32)
    """
    bin_size = check_bin_size(bin_size)
    stored = check_spike_times(spike_times)
    neurons = [times.astype(float) for times in stored]
    if window is None:
        epochs = check_epochs(align_to)
        precision = _precision([*stored, epochs], bin_size)
        bins = Bins.within_epochs(epochs.astype(float), bin_size, precision)
    else:
        start, n_bins = check_window(window, bin_size)
        events = check_events(align_to)
        precision = _precision([*stored, events], bin_size)
        bins = Bins.around_events(events.astype(float), start, n_bins, bin_size, precision)

    counts = [_smallest(bins.count(times)) for times in neurons]
    _warn_of_silence(counts, neurons)
    spikes = np.stack(counts, axis=1)
    if obs_intervals is not None:
        intervals = check_obs_intervals(obs_intervals, len(neurons))
        observed = np.stack([bins.covered(of_neuron) for of_neuron in intervals], axis=1)
        if not observed.all():
            spikes = spikes.astype(np.float32)
            spikes[~observed] = np.nan
    if window is None:
        return np.split(spikes, bins.first[1:])
    return spikes.reshape(len(bins.origins), -1, len(neurons))


def _precision(times: list[NDArray[Any]], bin_size: float) -> float:
    precision = tolerance(times)
    if precision > bin_size / 2:
        raise ValueError(
            f"bin_size={bin_size:g} s is too small: the largest times are only precise to "
            f"{precision:.1g} s. Times must be in seconds and are best stored as float64."
        )
    return precision


def _smallest(counts: NDArray[Any]) -> NDArray[Any]:
    return counts.astype(np.min_scalar_type(counts.max(initial=0)))


def _warn_of_silence(counts: list[NDArray[Any]], neurons: list[Any]) -> None:
    if any(map(len, neurons)) and not any(neuron.any() for neuron in counts):
        first = min(times[0] for times in neurons if len(times))
        last = max(times[-1] for times in neurons if len(times))
        warnings.warn(
            f"No spike is in any trial; spikes are between {first:g} and {last:g} s. Are "
            "spike_times, align_to and window all in seconds, on one clock?",
            stacklevel=3,
        )
