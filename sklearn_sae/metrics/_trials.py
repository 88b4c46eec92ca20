"""The forms in which trials may come, made one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._data.masked import refuse_masked

Array = NDArray[np.floating]


def as_trials(name: str, value: Any) -> list[Array]:
    refuse_masked(name, value)
    if isinstance(value, list | tuple) and len(value) and np.ndim(value[0]) == 2:
        trials = [np.asarray(trial, dtype=float) for trial in value]
    else:
        array = np.asarray(value, dtype=float)
        trials = [array] if array.ndim == 2 else list(array) if array.ndim == 3 else []
    if not trials or {x.ndim for x in trials} != {2} or len({x.shape[1] for x in trials}) > 1:
        raise ValueError(
            f"{name} must be an array (n_trials, n_bins, n), a list of arrays (n_bins_i, n) with "
            f"one n, or an array (n_bins, n); got shapes {[np.shape(x) for x in value][:4]}."
        )
    return trials


def rows(trials: list[Array], chosen: NDArray[np.bool_] | None = None) -> Array:
    chosen = np.ones(len(trials), dtype=bool) if chosen is None else chosen
    return np.concatenate([x for x, keep in zip(trials, chosen, strict=True) if keep])


def matching(name: str, value: Any, other_name: str, other: Any) -> tuple[Array, Array]:
    x, y = as_trials(name, value), as_trials(other_name, other)
    if [a.shape for a in x] != [b.shape for b in y]:
        raise ValueError(
            f"{name} and {other_name} must have one shape; got {len(x)} trials, the first "
            f"{x[0].shape}, and {len(y)} trials, the first {y[0].shape}."
        )
    return rows(x), rows(y)


def same_width(name: str, x: Array, other_name: str, y: Array) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{name} and {other_name} must have the same dimensions, got {x.shape[1]} and "
            f"{y.shape[1]}. Map one to the other's coordinates first."
        )
