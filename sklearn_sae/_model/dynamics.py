"""Dynamical systems that latents may follow: flows (neural ODEs) and maps (RNN cells).

States have trials on the last axis; time is in bins.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .fused_rollout import FusedSteps, rollout
from .runge_kutta import TABLEAUS, compose
from .solvers import Solver
from .state_maps import StateMap

__all__ = ["Dynamics", "Flow", "Map"]

#: Hidden units times latents times states whose Jacobians are found together.
MOST_SLOPES = 1_000_000
#: Steps in which the matrix of a linear field is found, and how closely.
MOST_CORRECTIONS = 60
SMALLEST_ERROR = 1e-5


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

    def step_with_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ``step`` and ``step_jacobian`` together."""
        return self.step(z), self.step_jacobian(z)

    def parts(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the parts of a step in order: states after each part, and the part's Jacobians.

        They are ``(n_latents, n_trials)`` and ``(n_latents out, n_latents in, n_trials)``.
        """
        yield self.step(z), self.step_jacobian(z)

    @property
    def state_map(self) -> StateMap:
        """The learned map: the vector field of a flow, or the cell of a map."""
        raise NotImplementedError

    @torch.no_grad()
    def start_at(self, matrix: Tensor, offset: Tensor, whitening: Tensor) -> bool:
        """Become z -> matrix @ z + offset, if the dynamics can be linear; else stay as they are.

        ``matrix`` is ``(n_latents, n_latents)``; ``whitening`` turns the covariance of the latents
        into the identity. Returns whether the dynamics are linear now. A solver may have no step
        that is equal to ``matrix``; it then has one close to it.
        """
        return False

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

    @property
    def state_map(self) -> StateMap:
        return self.field

    @torch.no_grad()
    def start_at(self, matrix: Tensor, offset: Tensor, whitening: Tensor) -> bool:
        n_latents = len(matrix)
        origin, identity = matrix.new_zeros(n_latents, 1), torch.eye(n_latents).to(matrix)
        generator = matrix - identity
        if not self.field.start_at(generator * self.time_scale, whitening):
            return False
        missing, error, share = torch.zeros_like(matrix), torch.inf, 0.5
        for _ in range(MOST_CORRECTIONS):
            there = generator + share * missing
            self.field.start_at(there * self.time_scale)
            left = matrix - self.step_jacobian(origin)[:, :, 0]
            size = math.sqrt(math.fsum(x * x for x in left.flatten().tolist()))
            # Not a gain that rounding may turn into a loss: fits must repeat to the last bit.
            if size < 0.999 * error:
                generator, missing, error = there, left, size
            else:
                share /= 2
            if error < SMALLEST_ERROR:
                break
        self.field.start_at(generator * self.time_scale)
        # A step is affine in the constant of an affine field.
        moved = []
        for column in identity:
            self.field.add_offset(column)
            moved.append(self.step(origin)[:, 0])
            self.field.add_offset(-column)
        # Last bits of least squares may depend on where arrays lie in memory; they are rounded off.
        effect, wanted = (x.cpu().double().numpy() for x in (torch.stack(moved, 1), offset))
        self.field.add_offset(torch.from_numpy(np.linalg.lstsq(effect, wanted)[0]).to(matrix))
        return True

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
        return self.step_with_jacobian(z)[1]

    def step_with_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.is_cuda:
            return self._step_with_jacobian(z)
        # In pieces whose hidden units stay in the cache.
        pieces = z.split(max(1, MOST_SLOPES // (self.field.width * len(z))), dim=1)
        found = [self._step_with_jacobian(piece) for piece in pieces]
        if len(found) == 1:
            return found[0]
        states, jacobians = zip(*found, strict=True)
        return torch.cat(states, dim=1), torch.cat(jacobians, dim=2)

    def _step_with_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        (after, chain), *later = self.parts(z)
        for after, jacobian in later:  # noqa: B007  # the last state is returned
            chain = compose(jacobian, chain)
        return after, chain

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

    @property
    def state_map(self) -> StateMap:
        return self.cell

    @torch.no_grad()
    def start_at(self, matrix: Tensor, offset: Tensor, whitening: Tensor) -> bool:
        scale = 1.0
        if self.residual is not None:
            scale = self.residual
            matrix = matrix - torch.eye(len(matrix)).to(matrix)
        if not self.cell.start_at(matrix / scale, whitening):
            return False
        self.cell.add_offset(offset / scale)
        return True

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
