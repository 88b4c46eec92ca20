"""The dynamical systems a trial's latents may follow: neural ODEs and recurrent cells.

Both offer ``step`` (the one-bin map), ``rollout`` and ``step_jacobian``, on states with trials on
the last axis.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .adaptive import EMBEDDED, replay, take_bin
from .mlp import MLP, StateMap, affine, uniform_weight
from .runge_kutta import (
    TABLEAUS,
    Tableau,
    compose,
    explicit_step_with_jacobian,
    rollout_mlp,
    rollout_mlps,
)

__all__ = [
    "SOLVERS",
    "Dynamics",
    "GRUCell",
    "NeuralODE",
    "RecurrentDynamics",
    "TanhCell",
    "rollouts",
]

FIXED_STEP_SOLVERS = tuple(TABLEAUS)
ADAPTIVE_SOLVERS = tuple(EMBEDDED)
SOLVERS = FIXED_STEP_SOLVERS + ADAPTIVE_SOLVERS
#: Known to users of torchdiffeq, and refused with a reason.
MULTI_STEP_SOLVERS = ("explicit_adams", "implicit_adams")

#: Hidden units times latents times states of which Jacobians are found together.
MOST_SLOPES = 1_000_000


class Dynamics(nn.Module):
    """What the trainer and the inference need of a dynamical system."""

    #: Size of the latents at which training should start (saturating cells live within +-1).
    latent_scale = 1.0

    @property
    def explicit(self) -> tuple[MLP, Tableau, int, float] | None:
        """Perceptron, tableau, steps in a bin and their size, if that is all there is to it."""
        return None

    @abstractmethod
    def rollout(self, z0: Tensor, n_bins: int, kicks: Tensor | None = None) -> Tensor:
        """Latents ``(n_bins, n_latents, n_trials)`` from initial conditions ``z0``.

        Between one bin and the next they jump by ``kicks`` ``(n_bins - 1, n_latents, n_trials)``.
        """

    def step(self, z: Tensor) -> Tensor:
        """Advance states by one bin."""
        return self.rollout(z, 2)[1]

    @abstractmethod
    def step_jacobian(self, z: Tensor) -> Tensor:
        """Jacobians ``(n_latents out, n_latents in, n_trials)`` of ``step`` at columns of ``z``."""

    def parts(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What a step is made of, in order: the states after each part, and its Jacobians."""
        yield self.step(z), self.step_jacobian(z)


def rollouts(
    dynamics: Sequence[Dynamics],
    z0: Sequence[Tensor],
    n_bins: int,
    kicks: Sequence[Tensor | None],
) -> Tensor:
    """Of several dynamics that differ in their weights only; at once if they are explicit.

    Returns ``(n_bins, n_models, n_latents, n_trials)``.
    """
    explicit = [each.explicit for each in dynamics]
    if explicit[0] is None:
        latents = [
            each.rollout(start, n_bins, jumps)
            for each, start, jumps in zip(dynamics, z0, kicks, strict=True)
        ]
        return torch.stack(latents, dim=1)
    mlps = [each[0] for each in explicit if each is not None]
    jumps = [each for each in kicks if each is not None]
    return rollout_mlps(mlps, z0, n_bins, *explicit[0][1:], jumps or None)


class NeuralODE(Dynamics):
    """dz/dt = MLP(z) / time_scale, with time in bins."""

    def __init__(
        self,
        mlp: MLP,
        solver: str,
        step_size: float,
        rtol: float,
        atol: float,
        adjoint: bool,
        time_scale: float,
    ) -> None:
        super().__init__()
        self.mlp = mlp
        self.time_scale = time_scale
        self.solver = solver
        self.n_substeps = math.ceil(1 / step_size - 1e-9)
        self.rtol, self.atol = rtol, atol
        self.adjoint = adjoint

    def vector_field(self, z: Tensor) -> Tensor:
        """Rate of change of the latents, per bin."""
        return self.mlp(z) / self.time_scale

    @property
    def explicit(self) -> tuple[MLP, Tableau, int, float] | None:
        if self.solver not in TABLEAUS or self.adjoint:
            return None
        return self.mlp, TABLEAUS[self.solver], self.n_substeps, self._step_size

    @property
    def _step_size(self) -> float:
        """Of a fixed step, in the time of the perceptron."""
        return 1 / (self.time_scale * self.n_substeps)

    def rollout(self, z0: Tensor, n_bins: int, kicks: Tensor | None = None) -> Tensor:
        if self.explicit is not None:
            mlp, tableau, n_substeps, step_size = self.explicit
            return rollout_mlp(mlp, z0, n_bins, tableau, n_substeps, step_size, kicks)
        latents = [z0]
        for t in range(n_bins - 1):
            z = self._next_bin(latents[-1])
            latents.append(z if kicks is None else z + kicks[t])
        return torch.stack(latents)

    def _next_bin(self, z: Tensor) -> Tensor:
        if not self.adjoint:
            return self._take_bin(z)[0]
        advance = self._fixed_steps
        if self.solver in EMBEDDED:
            with torch.no_grad():
                _, sizes = self._take_bin(z)
            advance = partial(replay, self.vector_field, method=EMBEDDED[self.solver], sizes=sizes)
        return checkpoint(advance, z, use_reentrant=False, preserve_rng_state=False)

    def _take_bin(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        return take_bin(self.vector_field, z, EMBEDDED[self.solver], self.rtol, self.atol)

    def _fixed_steps(self, z: Tensor) -> Tensor:
        tableau = TABLEAUS[self.solver]
        return rollout_mlp(self.mlp, z, 2, tableau, self.n_substeps, self._step_size)[1]

    def step_jacobian(self, z: Tensor) -> Tensor:
        if z.is_cuda:
            return self._step_jacobian(z)
        # In pieces whose hidden units stay in the cache.
        widest = max(len(weight) for weight in self.mlp.weights)
        pieces = z.split(max(1, MOST_SLOPES // (widest * len(z))), dim=1)
        return torch.cat([self._step_jacobian(piece) for piece in pieces], dim=2)

    def _step_jacobian(self, z: Tensor) -> Tensor:
        (_, chain), *later = self.parts(z)
        for _, jacobian in later:
            chain = compose(jacobian, chain)
        return chain

    def parts(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The solver's steps in a bin."""
        sizes: Sequence[float | Tensor] = [self._step_size] * self.n_substeps
        tableau = TABLEAUS.get(self.solver)
        if tableau is None:
            tableau = EMBEDDED[self.solver].tableau
            sizes = [size / self.time_scale for size in self._take_bin(z)[1]]
        for size in sizes:
            z, jacobian = explicit_step_with_jacobian(self.mlp, z, tableau, size)
            yield z, jacobian


class RecurrentDynamics(Dynamics):
    """z -> cell(z), or z -> z + residual * cell(z)."""

    def __init__(self, cell: StateMap, residual: float | None) -> None:
        super().__init__()
        self.cell = cell
        self.residual = residual
        saturates = residual is None and not isinstance(cell, MLP)
        self.latent_scale = 0.5 if saturates else 1.0

    @property
    def explicit(self) -> tuple[MLP, Tableau, int, float] | None:
        if self.residual is None or not isinstance(self.cell, MLP):
            return None
        return self.cell, TABLEAUS["euler"], 1, self.residual

    def rollout(self, z0: Tensor, n_bins: int, kicks: Tensor | None = None) -> Tensor:
        if self.explicit is not None:
            mlp, tableau, n_substeps, step_size = self.explicit
            return rollout_mlp(mlp, z0, n_bins, tableau, n_substeps, step_size, kicks)
        latents = [z0]
        for t in range(n_bins - 1):
            z = latents[-1]
            change = self.cell(z)
            z = change if self.residual is None else z + self.residual * change
            latents.append(z if kicks is None else z + kicks[t])
        return torch.stack(latents)

    def step_jacobian(self, z: Tensor) -> Tensor:
        jacobian = self.cell.jacobian(z)
        if self.residual is None:
            return jacobian
        identity = torch.eye(len(z), dtype=z.dtype, device=z.device)[:, :, None]
        return identity + self.residual * jacobian


class TanhCell(StateMap):
    """z -> tanh(W z + b)."""

    def __init__(self, n_latents: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = uniform_weight(n_latents, n_latents, generator)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(affine(self.weight, z))

    def jacobian(self, z: Tensor) -> Tensor:
        slope = 1 - self(z) ** 2
        return slope[:, None] * self.weight[:, :-1, None]


class GRUCell(StateMap):
    """A gated recurrent unit without input, otherwise as ``torch.nn.GRUCell``."""

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
        """Reset and update gates, what the reset gate acts on, and the new state it gives."""
        reset, update, candidate = affine(self.weight, z).chunk(3)
        reset, update = torch.sigmoid(reset), torch.sigmoid(update)
        return reset, update, candidate, torch.tanh(self.new_bias + reset * candidate)

    def jacobian(self, z: Tensor) -> Tensor:
        reset, update, candidate, new = self._gates(z)
        by_reset, by_update, by_candidate = self.weight[:, :-1, None].chunk(3)
        identity = torch.eye(len(z), dtype=z.dtype, device=z.device)[:, :, None]
        # By the product rule: what flows through each gate's slope, and through what it gates.
        of_new = (1 - new**2) * reset
        return (
            update[:, None] * identity
            + ((z - new) * update * (1 - update))[:, None] * by_update
            + ((1 - update) * of_new)[:, None] * by_candidate
            + ((1 - update) * of_new * (1 - reset) * candidate)[:, None] * by_reset
        )
