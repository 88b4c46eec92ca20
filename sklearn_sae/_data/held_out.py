"""Trials held out of training, such that what they hold is new.

Trials may overlap, as windows that slide along a recording do. What held-out trials share with
training trials would make every model look good that has learned it by heart.
"""

from __future__ import annotations

import numpy as np

from .pieces import Pieces
from .trials import Trials

__all__ = ["hold_out", "new_bins"]

#: Bins in a row that are equal in two trials only if the trials share them, with so many spikes.
RUN = 8
LEAST_COUNT = 10
#: Trials held out at most: so many judge models as well as more would.
MOST_TRIALS = 128
#: With fewer trials, pieces of one trial may be on both sides.
FEWEST_TRIALS = 5


def hold_out(
    trials: Trials, fraction: float, rng: np.random.Generator
) -> tuple[Trials, Trials, tuple[np.ndarray, np.ndarray]]:
    """Split into training trials, and others without what they share with training trials.

    Their rows are returned, too.

    Trials are drawn at random; the last ones are taken if trials overlap, because most bins of a
    trial between others would be shared. A single trial is on both sides.
    """
    groups = np.arange(len(trials))
    if isinstance(trials, Pieces) and trials.trial[-1] + 1 >= FEWEST_TRIALS:
        groups = trials.trial
    n_groups = groups[-1] + 1
    if n_groups == 1:
        rows = np.arange(len(trials))
        return trials, trials, (rows, rows)
    codes = [_codes_of_runs(trials.view(row)) for row in range(len(trials))]
    n_held_out = min(max(1, round(fraction * n_groups)), MOST_TRIALS, n_groups - 1)
    if _overlap(codes, groups):
        drawn = np.arange(n_groups - n_held_out, n_groups)
    else:
        drawn = rng.permutation(n_groups)[:n_held_out]
    out = np.isin(groups, drawn)
    inside, outside = np.flatnonzero(~out), np.flatnonzero(out)
    held_out = new_bins(trials.subset(outside), codes, outside, inside)
    return trials.subset(inside), held_out, (inside, outside)


def new_bins(
    trials: Trials, codes: list[np.ndarray], rows: np.ndarray, others: np.ndarray
) -> Trials:
    """Hide bins of ``trials`` that are in a run which one of the ``others`` has, too."""
    seen = np.unique(np.concatenate([codes[row] for row in others]))
    shared = [np.flatnonzero(np.isin(codes[row], seen[seen != 0])) for row in rows]
    if not any(map(len, shared)):
        return trials
    views = []
    for i, starts in enumerate(shared):
        view = np.array(trials.view(i), dtype=np.result_type(np.float32, trials.view(i).dtype))
        view[np.unique(starts[:, np.newaxis] + np.arange(RUN))] = np.nan
        views.append(view)
    if all(np.isnan(view).all() for view in views):
        return trials
    found = Trials(views, has_missing=True, inputs=trials.inputs)
    found.units = trials.units
    return found


def _overlap(codes: list[np.ndarray], groups: np.ndarray) -> bool:
    """Whether any run of bins is in two groups of trials."""
    all_codes = np.concatenate(codes)
    of_groups = np.repeat(groups, [len(each) for each in codes])
    pairs = np.unique(np.stack([all_codes, of_groups.astype(np.uint64)]), axis=1)
    values, counts = np.unique(pairs[0], return_counts=True)
    return bool((counts[values != 0] > 1).any())


def _codes_of_runs(trial: np.ndarray) -> np.ndarray:
    """Hash every run of bins ``(n_bins - RUN + 1,)``; 0 where there are too few spikes to tell."""
    n_bins, n_neurons = trial.shape
    if n_bins < RUN:
        return np.zeros(0, dtype=np.uint64)
    values = np.nan_to_num(np.asarray(trial, dtype=np.float64), nan=-1.0) + 0.0
    rng = np.random.default_rng(0)
    odd = 2 * rng.integers(2**62, size=n_neurons + RUN, dtype=np.uint64) + 1
    bits = values.view(np.uint64)
    of_bins = _mixed((_mixed(bits) * odd[:n_neurons]).sum(axis=1, dtype=np.uint64))
    windows = np.lib.stride_tricks.sliding_window_view(of_bins, RUN)
    codes = (windows * odd[n_neurons:]).sum(axis=1, dtype=np.uint64)
    sizes = np.abs(np.maximum(values, 0.0)).sum(axis=1)
    enough = np.lib.stride_tricks.sliding_window_view(sizes, RUN).sum(axis=1) >= LEAST_COUNT
    return np.where(enough, codes, 0)


def _mixed(codes: np.ndarray) -> np.ndarray:
    """Spread the bits of a hash; floats differ in their first bits only."""
    codes = codes ^ (codes >> np.uint64(32))
    codes = codes * np.uint64(0x9E3779B97F4A7C15)
    return codes ^ (codes >> np.uint64(29))
