"""Cells of recurrent networks, without input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..activations import Tanh
from ..layers import affine, uniform_weight
from .base import StateMap

__all__ = ["GRUCell", "TanhCell"]

TANH = Tanh()


class TanhCell(StateMap):
    """Tanh layer, z -> tanh(W z + b)."""

    bounded = True

    def __init__(self, n_latents: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = uniform_weight(n_latents, n_latents, generator)

    def forward(self, z: Tensor) -> Tensor:
        return TANH(affine(self.weight, z))

    def jacobian(self, z: Tensor) -> Tensor:
        return TANH.slope(self(z))[:, None] * self.weight[:, :-1, None]


class GRUCell(StateMap):
    """Gated recurrent unit without input, otherwise as ``torch.nn.GRUCell``."""

    bounded = True

    def __init__(self, n_latents: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = uniform_weight(3 * n_latents, n_latents, generator)
        self.new_bias = nn.Parameter(
            uniform_weight(n_latents, n_latents, generator)[:, -1:].detach()
        )

    def forward(self, z: Tensor) -> Tensor:
        reset, update, _, new = self._gates(z)
        return torch.lerp(new, z, update)

    def _gates(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reset gate, update gate, candidate and new state, each ``(n_latents, n_trials)``."""
        reset, update, candidate = affine(self.weight, z).chunk(3)
        reset, update = torch.sigmoid(reset), torch.sigmoid(update)
        return reset, update, candidate, TANH(self.new_bias + reset * candidate)

    def jacobian(self, z: Tensor) -> Tensor:
        reset, update, candidate, new = self._gates(z)
        by_reset, by_update, by_candidate = self.weight[:, :-1, None].chunk(3)
        identity = torch.eye(len(z), dtype=z.dtype, device=z.device)[:, :, None]
        # Product rule: each gate's derivative, and that of the term that it multiplies.
        of_new = TANH.slope(new) * reset
        return (
            update[:, None] * identity
            + ((z - new) * update * (1 - update))[:, None] * by_update
            + ((1 - update) * of_new)[:, None] * by_candidate
            + ((1 - update) * of_new * (1 - reset) * candidate)[:, None] * by_reset
        )
