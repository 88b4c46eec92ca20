"""Masked arrays are refused, because most of NumPy silently drops the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["as_array", "refuse_masked"]


def refuse_masked(name: str, values: Any) -> None:
    """Raise ValueError if ``values`` is a masked array, or a list that holds one."""
    if _any_masked(values):
        verb = "is" if np.ma.isMaskedArray(values) else "holds"
        raise ValueError(
            f"{name} {verb} a masked array, and its mask would be lost. Mark what is missing with "
            "NaN, values.astype(float).filled(np.nan), or leave it out."
        )


def as_array(name: str, values: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Convert ``values`` to an array; a masked array is refused."""
    refuse_masked(name, values)
    return np.asarray(values, dtype=dtype)


def _any_masked(values: Any) -> bool:
    # An array made of a list has lost the masks of what the list held.
    if isinstance(values, list | tuple):
        return any(map(_any_masked, values))
    return np.ma.isMaskedArray(values)
