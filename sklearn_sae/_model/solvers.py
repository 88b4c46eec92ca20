"""Solvers that integrate flows over a bin: Runge-Kutta methods with fixed or adaptive steps.

Every solver starts anew in every bin, so that a flow is a map from one bin to the next.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .adaptive import EMBEDDED, replay, take_bin
from .fused_rollout import FusedSteps, rollout
from .runge_kutta import TABLEAUS, explicit_step, variational_step

if TYPE_CHECKING:
    from .dynamics import Flow

__all__ = ["MULTI_STEP_SOLVERS", "SOLVERS", "AdaptiveRungeKutta", "RungeKutta", "Solver"]

#: Solvers of torchdiffeq that are refused, with the reason.
MULTI_STEP_SOLVERS = ("explicit_adams", "implicit_adams")


class Solver(ABC):
    """Interface of numerical methods for dz/dt = f(z), on states ``(n_latents, n_trials)``."""

    @classmethod
    @abstractmethod
    def from_parameters(
        cls, method: str, step_size: float, rtol: float, atol: float, adjoint: bool
    ) -> Self:
        """Make the solver that an estimator's parameters describe."""

    @abstractmethod
    def step(self, flow: Flow, z: Tensor) -> Tensor:
        """Advance states ``z`` ``(n_latents, n_trials)`` by one bin."""

    @abstractmethod
    def parts(self, flow: Flow, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the steps in a bin in order: states after each step, and the step's Jacobians.

        They are ``(n_latents, n_trials)`` and ``(n_latents out, n_latents in, n_trials)``.
        """

    def fused_steps(self, flow: Flow) -> FusedSteps | None:
        """Steps of a rollout as one fused operation; None if that is impossible."""
        return None


@dataclass(frozen=True)
class RungeKutta(Solver):
    """Runge-Kutta method with ``n_substeps`` steps of the same size in a bin.

    With ``adjoint`` the backward pass of a rollout recomputes each bin's steps, so that only the
    states of the bins are kept.
    """

    method: str
    n_substeps: int = 1
    adjoint: bool = False

    @classmethod
    def from_parameters(
        cls, method: str, step_size: float, rtol: float, atol: float, adjoint: bool
    ) -> Self:
        return cls(method, math.ceil(1 / step_size - 1e-9), adjoint)

    def step(self, flow: Flow, z: Tensor) -> Tensor:
        advance = partial(self._take_bin, flow)
        return _recomputed(advance, z) if self.adjoint else advance(z)

    def _take_bin(self, flow: Flow, z: Tensor) -> Tensor:
        steps = self._fused(flow)
        if steps is not None:
            return rollout(steps, z, 2)[1]
        for _ in range(self.n_substeps):
            z = explicit_step(flow.vector_field, z, TABLEAUS[self.method], 1 / self.n_substeps)
        return z

    def parts(self, flow: Flow, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.n_substeps):
            z, jacobian = variational_step(
                flow.field, z, TABLEAUS[self.method], self._step_size(flow)
            )
            yield z, jacobian

    def fused_steps(self, flow: Flow) -> FusedSteps | None:
        return None if self.adjoint else self._fused(flow)

    def _fused(self, flow: Flow) -> FusedSteps | None:
        layers = flow.field.layers()
        if layers is None:
            return None
        return FusedSteps(layers, TABLEAUS[self.method], self.n_substeps, self._step_size(flow))

    def _step_size(self, flow: Flow) -> float:
        """Size of a step in the time of ``flow.field``."""
        return 1 / (flow.time_scale * self.n_substeps)


@dataclass(frozen=True)
class AdaptiveRungeKutta(Solver):
    """Runge-Kutta method whose step sizes follow from each trial's own error (see ``adaptive``).

    ``adjoint`` is as in ``RungeKutta``; the backward pass reuses the step sizes.
    """

    method: str
    rtol: float = 1e-3
    atol: float = 1e-3
    adjoint: bool = False

    @classmethod
    def from_parameters(
        cls, method: str, step_size: float, rtol: float, atol: float, adjoint: bool
    ) -> Self:
        return cls(method, rtol, atol, adjoint)

    def step(self, flow: Flow, z: Tensor) -> Tensor:
        if not self.adjoint:
            return self._take_bin(flow, z)[0]
        with torch.no_grad():
            _, sizes = self._take_bin(flow, z)
        method = EMBEDDED[self.method]
        return _recomputed(partial(replay, flow.vector_field, method=method, sizes=sizes), z)

    def _take_bin(self, flow: Flow, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        return take_bin(flow.vector_field, z, EMBEDDED[self.method], self.rtol, self.atol)

    def parts(self, flow: Flow, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        tableau = EMBEDDED[self.method].tableau
        for size in self._take_bin(flow, z)[1]:
            z, jacobian = variational_step(flow.field, z, tableau, size / flow.time_scale)
            yield z, jacobian


def _recomputed(advance: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Compute ``advance(z)``, keeping only ``z`` for the backward pass."""
    return checkpoint(advance, z, use_reentrant=False, preserve_rng_state=False)


SOLVERS: dict[str, type[Solver]] = {
    **dict.fromkeys(TABLEAUS, RungeKutta),
    **dict.fromkeys(EMBEDDED, AdaptiveRungeKutta),
}
