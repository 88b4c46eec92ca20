"""Spike counts of trials from NWB files."""

from __future__ import annotations

import os
from itertools import compress
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .._data.masked import as_array, refuse_masked
from ._intervals import Floats, without
from ._spike_times import trials_from_spike_times


def trials_from_nwb(
    nwb: Any,
    *,
    bin_size: float,
    align_to: str = "start_time",
    window: tuple[float, float] | None = None,
) -> Bunch:
    """Count the spikes of an NWB file's units in the bins of its trials.

    Parameters
    ----------
    nwb : str, path or pynwb.NWBFile
        A local HDF5 file, or a file that pynwb has opened (remote, Zarr) and that is still open.
        It must have a table of units with ``spike_times``, and one of trials.
    bin_size : float
        Width of a bin in seconds.
    align_to : str, default="start_time"
        Column of the trials table with the time of one event for each trial.
    window : tuple (start, stop), default=None
        Where each trial starts and stops, in seconds from its event; negative is before. It must
        hold a whole number of bins. None takes whole trials, from ``start_time`` to ``stop_time``.

    Returns
    -------
    Bunch
        With these entries:

        spikes : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts: an array with a ``window``, a list without. NaN where a unit was not
            observed, by its ``obs_intervals`` or by the file's ``invalid_times``.
        trials : pandas.DataFrame
            The rows of the trials table, one for each trial of ``spikes``, by trial id. Trials
            that have no event (NaN), and those of which no bin of any unit was observed, are left
            out of both.
        units : pandas.DataFrame
            The columns of the units table that have one value for each unit, by unit id; one row
            for each neuron of ``spikes``.
        bin_size : float
            As given.

    Raises
    ------
    ImportError
        If pynwb is needed and not installed.
    TypeError
        If ``nwb`` is neither a path nor a file.
    ValueError
        If the file lacks a table or a column, no trial is left, or as in
        `trials_from_spike_times`.

    See Also
    --------
    trials_from_spike_times : How times are rounded, and events from other tables.

    Notes
    -----
    NWB asks that bins within ``invalid_times`` be left out of every analysis, so they are NaN for
    all units. Without ``obs_intervals`` a trial that reaches beyond the recording shows silence
    where there was no recording.

    Examples
    --------
    >>> from sklearn_sae.io import trials_from_nwb
    >>> data = trials_from_nwb(
    ...     "session.nwb", bin_size=0.01, align_to="go_cue_time", window=(-0.2, 0.5)
    ... )  # doctest: +SKIP
    >>> good = data.units["quality"] == "good"  # doctest: +SKIP
    >>> spikes, labels = data.spikes[:, :, good], data.trials["target"]  # doctest: +SKIP
    """
    if not isinstance(nwb, str | os.PathLike):
        return _trials(nwb, bin_size, align_to, window)
    with _import_pynwb().NWBHDF5IO(os.fspath(nwb), mode="r", load_namespaces=True) as file:
        return _trials(file.read(), bin_size, align_to, window)


def _import_pynwb() -> Any:
    try:
        import pynwb
    except ImportError as error:
        raise ImportError(
            "trials_from_nwb needs pynwb to open a file, and it is not installed. Install it with: "
            'pip install "sklearn_sae[nwb]"'
        ) from error
    return pynwb


def _trials(nwb: Any, bin_size: float, align_to: str, window: Any) -> Bunch:
    units, trials = _table(nwb, "units"), _table(nwb, "trials")
    if window is None and align_to != "start_time":
        raise ValueError(
            f"align_to={align_to!r} needs a window, such as window=(-0.1, 0.5). Without one, whole "
            "trials are taken, from start_time to stop_time."
        )
    names = ["start_time", "stop_time"] if window is None else [align_to]
    times = np.stack([_times(trials, name) for name in names], axis=1)
    timed = np.isfinite(times).all(axis=1)
    if not timed.any():
        raise ValueError(f"No trial is left: none of {len(trials)} has {' and '.join(names)}.")
    spikes = trials_from_spike_times(
        [units["spike_times"][i] for i in range(len(units))],
        bin_size=bin_size,
        align_to=times[timed] if window is None else times[timed, 0],
        window=window,
        obs_intervals=_observed(nwb, units),
    )
    seen = np.array([not np.isnan(trial).all() for trial in spikes])
    if not seen.any():
        raise ValueError("No trial is left: in none of them was any unit observed.")
    rows = np.flatnonzero(timed)[seen]
    return Bunch(
        spikes=spikes[seen] if window is not None else list(compress(spikes, seen)),
        # References to time series point into a file that may be closed.
        trials=trials.to_dataframe(exclude={"timeseries"}).iloc[rows],
        units=units.to_dataframe(exclude=_not_one_value_each(units)),
        bin_size=bin_size,
    )


def _table(nwb: Any, name: str) -> Any:
    if not hasattr(nwb, name):
        raise TypeError(f"nwb must be a path or a pynwb.NWBFile, got {type(nwb).__name__}.")
    table = getattr(nwb, name)
    if table is None or len(table) == 0:
        raise ValueError(
            f"The file has no table of {name}, or an empty one. Take times from where they are, "
            f"and pass them to trials_from_spike_times; its tables of intervals are "
            f"{sorted(nwb.intervals or ())}."
        )
    if name == "units" and "spike_times" not in table.colnames:
        raise ValueError(
            f"The units of the file have no spike_times; their columns are {table.colnames}."
        )
    return table


def _times(trials: Any, name: str) -> Floats:
    if name in trials.colnames:
        column = trials[name][:]
        refuse_masked(f"Column {name}", column)
        try:
            times = np.asarray(column, dtype=float)
            if times.ndim == 1:
                return times
        except (TypeError, ValueError):
            pass
    raise ValueError(
        f"align_to={name!r} is not a column of times in the trials table; its columns are "
        f"{', '.join(trials.colnames)}."
    )


def _observed(nwb: Any, units: Any) -> list[Floats] | None:
    """When each unit was observed; None if the file says nothing about it."""
    observed = None
    if "obs_intervals" in units.colnames:
        observed = [
            as_array(f"obs_intervals[{i}]", units["obs_intervals"][i]).reshape(-1, 2)
            for i in range(len(units))
        ]
    if nwb.invalid_times is not None and len(nwb.invalid_times):
        invalid = np.stack([_times(nwb.invalid_times, x) for x in ("start_time", "stop_time")], 1)
        # NWB marks an interval without a known end by NaN.
        invalid = np.where(np.isnan(invalid), [-np.inf, np.inf], invalid)
        always = np.array([[-np.inf, np.inf]])
        observed = [without(x, invalid) for x in observed or [always] * len(units)]
    return observed


def _not_one_value_each(units: Any) -> set[str]:
    """Columns that are ragged, refer to rows of another table, or hold arrays."""
    columns = {name: units[name] for name in units.colnames}
    return {
        name
        for name, column in columns.items()
        if hasattr(column, "target") or hasattr(column, "table") or np.ndim(column.data) > 1
    }
