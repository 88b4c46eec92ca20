"""Inferred inputs over time: their mean in the trials of each label, around an event."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._data.masked import as_array
from ._style import (
    Array,
    as_trials,
    finish,
    grid_of_axes,
    label_grid,
    legend,
    lines,
    look,
    one_label_each,
)

MOST_INPUTS = 6


class InferredInputsDisplay:
    """Inferred inputs over time: mean and standard error over the trials of each label.

    Parameters
    ----------
    inferred : array of shape (n_trials, n_bins, n_inferred_inputs), or list of arrays (n_bins_i,
    n_inferred_inputs)
        From ``infer_inputs``; also known inputs, to compare with.
    labels : array-like of shape (n_trials,), default=None
        Condition of each trial; one colour each. None: all trials together.
    event : int or array-like of shape (n_trials,), default=None
        Bin of an event, the same in all trials or one for each. Trials are brought into line there,
        and time counts from it. A mean is over those trials that have the bin. None: time counts
        from the first bin.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for each inferred input.
    figure_ : matplotlib Figure
        Where it was drawn.
    means_ : list of lists of matplotlib lines
        For each inferred input one line for each label, in their sorted order.
    bands_ : list of lists of matplotlib artists
        Likewise, mean plus and minus standard error; not where there is one trial only. Empty lists
        if single trials are drawn.
    trials_ : list of lists of matplotlib lines
        Likewise, all single trials of a label; empty lists if bands are drawn.
    events_ : list of matplotlib lines
        The event in each of the axes; empty if there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.plotting import InferredInputsDisplay
    >>> inferred = np.random.default_rng(0).normal(size=(20, 30, 2))
    >>> inferred[:10, 12, 0] += 5  # a pulse in half of the trials
    >>> display = InferredInputsDisplay(inferred, np.repeat(["go", "stop"], 10), event=12).plot()
    >>> [axis.get_title() for axis in display.axes_]
    ['inferred input 0', 'inferred input 1']
    """

    def __init__(self, inferred: Any, labels: Any = None, *, event: Any = None) -> None:
        self.inferred = inferred
        self.labels = labels
        self.event = event

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        inputs: Any = None,
        labels: Any = None,
        event: Any = None,
        inferred_inputs: Any = None,
        single_trials: bool = False,
        bin_size: float | None = None,
        ax: Any = None,
    ) -> InferredInputsDisplay:
        """Infer the inputs of trials and draw them.

        Parameters
        ----------
        estimator : NODESAE or RNNSAE
            Fitted with ``n_inferred_inputs``.
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if the estimator was fitted with some.
        labels : array-like of shape (n_trials,), default=None
            Condition of each trial.
        event : int or array-like of shape (n_trials,), default=None
            Bin of an event, the same in all trials or one for each.
        inferred_inputs : int or sequence of int, default=None
            Which to draw; None: the six that vary most.
        single_trials : bool, default=False
            Draw all trials as thin lines, in place of the standard error.
        bin_size : float, default=None
            Seconds in a bin, for an axis in seconds.
        ax : matplotlib Axes or sequence of them, default=None
            One for each inferred input; None makes a figure, in which all share one scale.

        Returns
        -------
        InferredInputsDisplay
            With the artists.
        """
        display = cls(estimator.infer_inputs(X, inputs=inputs), labels, event=event)
        return display.plot(
            ax=ax,
            inferred_inputs=inferred_inputs,
            single_trials=single_trials,
            bin_size=bin_size,
        )

    def plot(
        self,
        *,
        ax: Any = None,
        inferred_inputs: Any = None,
        single_trials: bool = False,
        bin_size: float | None = None,
    ) -> InferredInputsDisplay:
        """Draw; parameters as in `from_estimator`.

        Returns
        -------
        InferredInputsDisplay
            With the artists.
        """
        trials = as_trials("inferred", self.inferred)
        labels = one_label_each(self.labels, len(trials))
        bins, aligned = align(trials, one_event_each(self.event, trials))
        time = bins * (bin_size or 1.0)
        if inferred_inputs is None:
            inferred_inputs = np.sort(np.argsort(-np.nanstd(aligned, axis=(0, 1)))[:MOST_INPUTS])
        chosen = check_chosen(inferred_inputs, aligned.shape[2])
        self.axes_ = grid_of_axes(
            type(self).__name__, ax, len(chosen), "inferred inputs", share_y=True
        )
        self.figure_ = self.axes_[0].figure
        self.means_: list[list[Any]] = []
        self.bands_: list[list[Any]] = []
        self.trials_: list[list[Any]] = []
        self.events_: list[Any] = []
        for axis, number in zip(self.axes_, chosen, strict=True):
            if self.event is not None:
                # Below the lines: it is where to look, not what to see.
                self.events_.append(axis.axvline(0, color="#6B7680", lw=1.5, zorder=0))
            for artists in (self.means_, self.bands_, self.trials_):
                artists.append([])
            for i, label in enumerate(np.unique(labels)):
                of_label = aligned[labels == label, :, number]
                self._draw(axis, time, of_label, look(i), str(label), single_trials)
            axis.set_title(f"inferred input {number}")
            finish(axis)
        origin = "time" if self.event is None else "time from event"
        unit = "bins" if bin_size is None else "s"
        label_grid(self.axes_, f"{origin} ({unit})", "input (a.u.)", own=ax is None)
        if self.labels is not None:
            legend(self.axes_[0], self.means_[0], beside=ax is None)
        return self

    def _draw(
        self, axis: Any, time: Any, values: Any, style: Any, label: str, single_trials: bool
    ) -> None:
        n_trials = np.isfinite(values).sum(axis=0)
        mean = np.nansum(values, axis=0) / np.where(n_trials, n_trials, np.nan)
        if single_trials:
            paths = lines([np.column_stack([time, trial]) for trial in values])
            (thin,) = axis.plot(*paths.T, **style, lw=0.5, alpha=0.35, zorder=1)
            self.trials_[-1].append(thin)
        else:
            squares = np.nansum((values - mean) ** 2, axis=0)
            # Of one trial, nothing is known about the scatter.
            several = np.where(n_trials > 1, n_trials, np.nan)
            error = np.sqrt(squares / (several - 1) / several)
            band = axis.fill_between(
                time, mean - error, mean + error, color=style["color"], alpha=0.25, lw=0
            )
            self.bands_[-1].append(band)
        (line,) = axis.plot(time, mean, **style, lw=2, label=label)
        self.means_[-1].append(line)


def one_event_each(event: Any, trials: list[Array]) -> Any:
    """Bin of the event in every trial."""
    events = as_array("event", 0 if event is None else event)
    if events.dtype.kind not in "iu" or events.shape not in ((), (len(trials),)):
        raise ValueError(
            f"event must be a bin (int), or one for each of {len(trials)} trials; got shape "
            f"{events.shape} of {events.dtype}. From seconds: np.floor(seconds / "
            "bin_size).astype(int)."
        )
    events = np.broadcast_to(events, len(trials))
    for i, (bin_, trial) in enumerate(zip(events, trials, strict=True)):
        if not 0 <= bin_ < len(trial):
            raise ValueError(
                f"event must be within each trial, but in trial {i} it is in bin {bin_}, of "
                f"{len(trial)}. Leave such trials out."
            )
    return events


def align(trials: list[Array], events: Any) -> tuple[Any, Array]:
    """Bins from the event, and values (n_trials, n_bins, n) with NaN where a trial has none."""
    first = events.max()
    n_bins = first + max(len(trial) - bin_ for trial, bin_ in zip(trials, events, strict=True))
    aligned = np.full((len(trials), n_bins, trials[0].shape[1]), np.nan)
    for row, trial, bin_ in zip(aligned, trials, events, strict=True):
        row[first - bin_ : first - bin_ + len(trial)] = trial
    return np.arange(n_bins) - first, aligned


def check_chosen(numbers: Any, n_inputs: int) -> list[int]:
    """Numbers of the inferred inputs to draw."""
    chosen = [int(number) for number in np.atleast_1d(numbers)]
    if not chosen or not all(0 <= number < n_inputs for number in chosen):
        raise ValueError(
            f"inferred_inputs must be one or more of 0 to {n_inputs - 1}, got {numbers!r}."
        )
    return chosen
