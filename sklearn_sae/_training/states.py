"""States of fits as named tensors, those of a part under the part's name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["as_part", "part_of"]


def as_part(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put ``part`` before all names of its state."""
    return {f"{part}.{name}": value for name, value in state.items()}


def part_of(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a state whose names start with ``part``, without that."""
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
