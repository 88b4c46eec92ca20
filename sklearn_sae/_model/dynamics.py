"""Dynamical systems that latents may follow: flows (neural ODEs) and maps (RNN cells).

States have trials on the last axis; time is in bins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .fused_rollout import FusedSteps, rollout
from .runge_kutta import TABLEAUS, compose
from .solvers import Solver
from .state_maps import StateMap

__all__ = ["Dynamics", "Flow", "Map"]

#: Hidden units times latents times states whose Jacobians are found together.
MOST_SLOPES = 1_000_000


class Dynamics(nn.Module, ABC):
    """Interface of dynamical systems, as training and inference use them.

    States are ``(n_latents, n_trials)``.
    """

    #: Size of the latents at which training should start.
    latent_scale = 1.0

    @abstractmethod
    def step(self, z: Tensor) -> Tensor:
        """Advance states ``z`` ``(n_latents, n_trials)`` by one bin."""

    @abstractmethod
    def step_jacobian(self, z: Tensor) -> Tensor:
        """Jacobians ``(n_latents out, n_latents in, n_trials)`` of ``step`` at columns of ``z``."""

    def parts(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the parts of a step in order: states after each part, and the part's Jacobians.

        They are ``(n_latents, n_trials)`` and ``(n_latents out, n_latents in, n_trials)``.
        """
        yield self.step(z), self.step_jacobian(z)

    def fused_steps(self) -> FusedSteps | None:
        """Steps of a rollout as one fused operation, which is much faster; None if impossible."""
        return None

    def rollout(self, z0: Tensor, n_bins: int, jumps: Tensor | None = None) -> Tensor:
        """Latents ``(n_bins, n_latents, n_trials)`` from initial conditions ``z0``.

        Between bins the latents jump by ``jumps`` ``(n_bins - 1, n_latents, n_trials)``.
        """
        steps = self.fused_steps()
        if steps is not None:
            return rollout(steps, z0, n_bins, jumps)
        latents = [z0]
        for t in range(n_bins - 1):
            z = self.step(latents[-1])
            latents.append(z if jumps is None else z + jumps[t])
        return torch.stack(latents)


class Flow(Dynamics):
    """Flow of dz/dt = field(z) / time_scale, integrated from bin to bin by a solver."""

    def __init__(self, field: StateMap, solver: Solver, time_scale: float) -> None:
        super().__init__()
        # Files name the weights by this attribute.
        self.mlp = field
        self.solver = solver
        self.time_scale = time_scale

    @property
    def field(self) -> StateMap:
        """The vector field, not yet divided by the time scale."""
        return self.mlp

    def vector_field(self, z: Tensor) -> Tensor:
        """Rate of change per bin of states ``(n_latents, n_trials)``, of the same shape."""
        return self.field(z) / self.time_scale

    def vector_field_jacobian(self, z: Tensor) -> Tensor:
        """Jacobians ``(n_latents out, n_latents in, n_trials)`` of ``vector_field``."""
        return self.field.jacobian(z) / self.time_scale

    def fused_steps(self) -> FusedSteps | None:
        return self.solver.fused_steps(self)

    def step(self, z: Tensor) -> Tensor:
        return self.solver.step(self, z)

    def step_jacobian(self, z: Tensor) -> Tensor:
        if z.is_cuda:
            return self._step_jacobian(z)
        # In pieces whose hidden units stay in the cache.
        pieces = z.split(max(1, MOST_SLOPES // (self.field.width * len(z))), dim=1)
        return torch.cat([self._step_jacobian(piece) for piece in pieces], dim=2)

    def _step_jacobian(self, z: Tensor) -> Tensor:
        (_, chain), *later = self.parts(z)
        for _, jacobian in later:
            chain = compose(jacobian, chain)
        return chain

    def parts(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the solver's steps in a bin."""
        return self.solver.parts(self, z)


class Map(Dynamics):
    """The map z -> cell(z), or z -> z + residual * cell(z)."""

    def __init__(self, cell: StateMap, residual: float | None) -> None:
        super().__init__()
        self.cell = cell
        self.residual = residual
        self.latent_scale = 0.5 if residual is None and cell.bounded else 1.0

    def fused_steps(self) -> FusedSteps | None:
        layers = self.cell.layers()
        if self.residual is None or layers is None:
            return None
        return FusedSteps(layers, TABLEAUS["euler"], 1, self.residual)

    def step(self, z: Tensor) -> Tensor:
        steps = self.fused_steps()
        if steps is not None:
            return rollout(steps, z, 2)[1]
        after = self.cell(z)
        return after if self.residual is None else z + self.residual * after

    def step_jacobian(self, z: Tensor) -> Tensor:
        jacobian = self.cell.jacobian(z)
        if self.residual is None:
            return jacobian
        identity = torch.eye(len(z), dtype=z.dtype, device=z.device)[:, :, None]
        return identity + self.residual * jacobian
