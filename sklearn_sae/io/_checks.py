"""Times that users hand in become checked arrays, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._data.masked import as_array, refuse_masked
from ._binning import HALF_NANOSECOND
from ._intervals import Floats, united


def check_spike_times(spike_times: Any) -> list[NDArray[Any]]:
    """Sorted times of each neuron, as precise as they were given."""
    if isinstance(spike_times, Mapping):
        raise ValueError(
            "spike_times must be a list with one array of times for each neuron, got a "
            f"{type(spike_times).__name__}. Pass list(spike_times.values())."
        )
    neurons = _as_list("spike_times", spike_times, "array of times for each neuron")
    if not neurons:
        raise ValueError("spike_times is empty: there are no neurons.")
    for i, times in enumerate(neurons):
        name = f"spike_times[{i}]"
        array = _numbers(name, times)
        if array.ndim != 1:
            hint = " For a single neuron, pass [spike_times]." if array.ndim == 0 else ""
            raise ValueError(
                "spike_times must be a list with one 1D array of times for each neuron, but "
                f"{name} has shape {array.shape}.{hint}"
            )
        bad = ~np.isfinite(array)
        if bad.any():
            raise ValueError(
                f"{name} holds {bad.sum()} time(s) that are NaN or infinite. Leave them out: "
                "times[np.isfinite(times)]."
            )
        neurons[i] = np.sort(array)
    return neurons


def check_events(align_to: Any) -> NDArray[Any]:
    """One finite time for each trial."""
    events = _numbers("align_to", align_to)
    if events.ndim != 1:
        hint = ""
        if events.ndim == 2:
            hint = " To align trials to the start of each epoch, pass align_to[:, 0]."
        raise ValueError(
            "With a window, align_to must have shape (n_trials,), one event for each trial; got "
            f"{events.shape}.{hint}"
        )
    _check_trials(np.isfinite(events), "np.isfinite(align_to)")
    return events


def check_epochs(align_to: Any) -> NDArray[Any]:
    """A finite start and stop for each trial."""
    epochs = _numbers("align_to", align_to)
    if epochs.ndim != 2 or epochs.shape[1] != 2:
        hint = " For trials around events, pass a window too." if epochs.ndim == 1 else ""
        raise ValueError(
            "Without a window, align_to must have shape (n_trials, 2), a start and a stop for each "
            f"trial; got {epochs.shape}.{hint}"
        )
    _check_trials(np.isfinite(epochs).all(axis=1), "np.isfinite(align_to).all(axis=1)")
    backwards = np.flatnonzero(epochs[:, 1] < epochs[:, 0])
    if len(backwards):
        i = backwards[0]
        raise ValueError(
            f"align_to[{i}] = {epochs[i].tolist()} stops before it starts ({len(backwards)} trials "
            "in all). Each row must be a start and a stop."
        )
    return epochs


def check_bin_size(bin_size: Any) -> float:
    """A positive number of seconds."""
    if not isinstance(bin_size, int | float | np.number) or not 0 < bin_size < np.inf:
        raise ValueError(
            f"bin_size must be a positive number of seconds, got {bin_size!r}. For 10 ms pass 0.01."
        )
    return float(bin_size)


def check_window(window: Any, bin_size: float) -> tuple[float, int]:
    """Start of the window and its number of bins."""
    ends = as_array("window", window)
    if ends.shape != (2,) or not np.isfinite(_numbers("window", ends)).all() or ends[0] >= ends[1]:
        raise ValueError(
            "window must be (start, stop) with start < stop, in seconds from the event and "
            f"negative before it, such as (-0.1, 0.5); got {window!r}."
        )
    start, stop = map(float, ends)
    n_bins = max(1, round((stop - start) / bin_size))
    if abs(start + n_bins * bin_size - stop) > HALF_NANOSECOND:
        raise ValueError(
            f"window={window!r} holds {(stop - start) / bin_size:.6g} bins of bin_size={bin_size:g}"
            f" s, and must hold whole ones. End it at {start + n_bins * bin_size:.9g}, or choose "
            "another bin_size."
        )
    return start, n_bins


def check_obs_intervals(obs_intervals: Any, n_neurons: int) -> list[Floats]:
    """Disjoint, sorted intervals of each neuron."""
    hint = "If all neurons were observed together, pass [intervals] * n_neurons."
    neurons = _as_list("obs_intervals", obs_intervals, "array (n_intervals, 2) for each neuron")
    if len(neurons) != n_neurons:
        raise ValueError(
            f"obs_intervals must hold one array (n_intervals, 2) for each of {n_neurons} neurons; "
            f"got {len(neurons)}. {hint}"
        )
    for i, intervals in enumerate(neurons):
        name = f"obs_intervals[{i}]"
        array = _numbers(name, intervals).astype(float)
        if not array.size:
            array = array.reshape(0, 2)
        if array.ndim != 2 or array.shape[1] != 2:
            raise ValueError(
                f"{name} must have shape (n_intervals, 2), a start and a stop for each interval; "
                f"got {array.shape}. {hint}"
            )
        wrong = np.flatnonzero(~(array[:, 0] <= array[:, 1]))
        if len(wrong):
            raise ValueError(
                f"{name}[{wrong[0]}] = {array[wrong[0]].tolist()} must be a start and a stop, "
                "start <= stop, without NaN."
            )
        neurons[i] = united(array)
    return neurons


def _check_trials(finite: NDArray[np.bool_], keep: str) -> None:
    if not len(finite):
        raise ValueError("align_to is empty: there are no trials.")
    if not finite.all():
        raise ValueError(
            f"align_to is NaN or infinite in {(~finite).sum()} of {len(finite)} trials, first in "
            f"trial {finite.argmin()}. Leave these out, and their labels with them: "
            f"keep = {keep}; align_to[keep], labels[keep]."
        )


def _as_list(name: str, values: Any, what: str) -> list[Any]:
    refuse_masked(name, values)
    try:
        return list(values)
    except TypeError as error:
        raise ValueError(f"{name} must be a list with one {what}, got {values!r}.") from error


def _numbers(name: str, values: Any) -> NDArray[Any]:
    refuse_masked(name, values)
    message = f"{name} must hold times in seconds, got {type(values).__name__}: {values!r}."
    try:
        array = np.asarray(values)
        # Columns of tables may hold numbers as objects.
        array = array.astype(float) if array.dtype == object else array
    except (TypeError, ValueError) as error:
        raise ValueError(message) from error
    if array.dtype.kind not in "iuf":
        raise ValueError(message)
    return array
