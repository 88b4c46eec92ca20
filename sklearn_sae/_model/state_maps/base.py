"""What dynamics need of a learned map of states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..layers import Layers

__all__ = ["StateMap"]


class StateMap(nn.Module, ABC):
    """A learned map of states ``(n_latents, n_trials)``, that also knows its derivative."""

    #: Whether values stay within +-1: the latents of a map must then start within that.
    bounded: ClassVar[bool] = False

    @classmethod
    def from_parameters(
        cls,
        n_latents: int,
        hidden_sizes: Any,
        activation: str,
        generator: torch.Generator | None,
    ) -> Self:
        """Fresh weights, drawn from ``generator``; without one, their shapes only.

        ``hidden_sizes`` and ``activation`` are an estimator's; here for maps without hidden layers.
        """
        return cls(n_latents, generator)

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Values ``(n_latents, n_trials)`` at the columns of ``z``."""

    @abstractmethod
    def jacobian(self, z: Tensor) -> Tensor:
        """Jacobians ``(n_latents out, n_latents in, n_trials)`` at the columns of ``z``."""

    def with_jacobian(self, z: Tensor, inner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values and Jacobians at the columns of ``z``.

        ``inner`` ``(n_latents, n_in, n_trials)``, if given, multiplies the Jacobians from the
        right.
        """
        jacobian = self.jacobian(z)
        if inner is not None:
            jacobian = torch.einsum("omt,mit->oit", jacobian, inner)
        return self(z), jacobian

    def layers(self) -> Layers | None:
        """Layers that it is nothing more than, if so: rollouts of a flow are much faster then."""
        return None

    @property
    def width(self) -> int:
        """Rows of its largest weight: how much memory it takes for each state."""
        return max((len(weight) for weight in self.parameters() if weight.ndim), default=1)
