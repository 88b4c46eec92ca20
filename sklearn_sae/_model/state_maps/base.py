"""Interface of learned maps of states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..layers import Layers

__all__ = ["StateMap"]


class StateMap(nn.Module, ABC):
    """Interface of learned maps of states ``(n_latents, n_trials)``, with their Jacobians."""

    #: Whether values stay within +-1, so that the latents of a map must start there.
    bounded: ClassVar[bool] = False

    @classmethod
    def from_parameters(
        cls,
        n_latents: int,
        hidden_sizes: Any,
        activation: str,
        generator: torch.Generator | None,
        linear: bool = False,
    ) -> Self:
        """Make a map whose weights are drawn from ``generator``, or have only shapes without one.

        ``hidden_sizes`` and ``activation`` are an estimator's; maps without hidden layers ignore
        them. ``linear`` adds a linear part to maps that have none, so that ``start_at`` works.
        """
        return cls(n_latents, generator)

    @property
    def is_affine(self) -> bool:
        """Whether the map is affine, whatever its weights are."""
        return False

    def start_at(self, matrix: Tensor, whitening: Tensor | None = None) -> bool:
        """Become the linear map ``matrix @ z``, if the map can be one; else stay as it is.

        What is nonlinear is then silent, and ready to grow where states have the covariance that
        ``whitening`` turns into the identity. Returns whether the map is linear now.
        """
        return False

    def add_offset(self, offset: Tensor) -> None:
        """Add a constant ``(n_latents,)`` to all values, if ``start_at`` works."""
        raise NotImplementedError

    def rescale(self, factor: float) -> bool:
        """Describe the same map of states that are ``1 / factor`` as large, if that is possible."""
        return False

    def penalty(self) -> Tensor | float:
        """Half the squared weights over the variances of their prior."""
        return 0.0

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
        """Layers of a map that consists of nothing else, for much faster rollouts; else None."""
        return None

    @property
    def width(self) -> int:
        """Number of rows of the largest weight, which determines the memory per state."""
        return max((len(weight) for weight in self.parameters() if weight.ndim), default=1)
