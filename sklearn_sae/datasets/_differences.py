"""Derivatives of functions of states: Jacobians by central differences."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["EPS", "central_differences", "typical_scale"]

Array = NDArray[np.floating]
EPS = float(np.finfo(float).eps)


def typical_scale(states: Array) -> Array:
    """Standard deviation of each of the variables of states ``(n, dim)``.

    Where there is none, as of a single state, all have that of the largest entry.
    """
    spread = np.where(np.ptp(states, axis=0) > 0, states.std(axis=0), 0.0)
    if not spread.any():
        return np.full(states.shape[1], np.abs(states).max() or 1.0)
    # A variable that hardly moves would have steps that rounding in the others' units drowns.
    return np.maximum(spread, 1e-6 * spread.max())


def central_differences(function: Callable[[Array], Array], z: Array, scale: Array) -> Array:
    """Jacobians ``(..., dim, dim)`` of a function of states ``(..., dim)``, which may be a batch.

    The error of a step h of a function that varies over the scale s is about ``(h / s)^2``, that of
    rounding ``eps max(|z|, s) / h``: h is where they are equal, but for constants.
    """
    columns = []
    for j in range(z.shape[-1]):
        h = np.zeros_like(z)
        far = np.maximum(np.abs(z[..., j]) / scale[j], 1.0)
        h[..., j] = scale[j] * np.maximum(np.cbrt(EPS * far), 4 * EPS * far)
        width = (z + h)[..., j] - (z - h)[..., j]
        columns.append((function(z + h) - function(z - h)) / width[..., None])
    return np.stack(columns, axis=-1)
