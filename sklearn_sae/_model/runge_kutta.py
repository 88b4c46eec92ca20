"""Explicit Runge-Kutta steps of vector fields, and their Jacobians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .state_maps import StateMap

__all__ = [
    "TABLEAUS",
    "Field",
    "Tableau",
    "add_changes",
    "compose",
    "explicit_step",
    "stage_changes",
    "variational_step",
]

Field = Callable[[Tensor], Tensor]

#: From this number of latents on, two matrix products are as fast as ``compose``; with 64 faster.
MANY_LATENTS = 32


class Tableau(NamedTuple):
    """Butcher tableau: ``a[s]`` weights the stages before stage ``s``, ``b`` those of the step."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


# As in torchdiffeq, where "rk4" is the 3/8 rule.
TABLEAUS = {
    "euler": Tableau(((),), (1.0,)),
    "midpoint": Tableau(((), (1 / 2,)), (0.0, 1.0)),
    "heun2": Tableau(((), (1.0,)), (1 / 2, 1 / 2)),
    "heun3": Tableau(((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "rk4": Tableau(((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}


def explicit_step(field: Field, z: Tensor, tableau: Tableau, size: float | Tensor) -> Tensor:
    """Take one step of dz/dt = ``field(z)`` from ``z`` ``(n_latents, n_trials)``.

    ``size`` is one number for all trials, or ``(n_trials,)``.
    """
    return add_changes(z, tableau.b, stage_changes(field, z, tableau, size))


def stage_changes(field: Field, z: Tensor, tableau: Tableau, size: float | Tensor) -> list[Tensor]:
    """Velocities ``(n_latents, n_trials)`` at the stages of a step, times its ``size``."""
    changes: list[Tensor] = []
    for row in tableau.a:
        changes.append(size * field(add_changes(z, row, changes)))
    return changes


def add_changes(z: Tensor, weights: Sequence[float], changes: list[Tensor]) -> Tensor:
    """Add the weighted sum of ``changes``, each of the shape of ``z``, to ``z``."""
    for weight, change in zip(weights, changes, strict=True):
        if weight:
            z = torch.add(z, change, alpha=weight)
    return z


def variational_step(
    field: StateMap, z: Tensor, tableau: Tableau, size: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Take a step as ``explicit_step``, with Jacobians ``(n_latents, n_latents, n_trials)``."""
    identity = torch.eye(len(z), dtype=z.dtype, device=z.device)[:, :, None]
    stages: list[Tensor] = []
    jacobians: list[Tensor] = []
    for row in tableau.a:
        x = z + sum(size * a * k for a, k in zip(row, stages, strict=True))
        along = identity
        if jacobians:
            # A weight of zero costs as much as another; the first stage is at z itself.
            terms = [size * a * j for a, j in zip(row, jacobians, strict=True) if a]
            along = identity + sum(terms[1:], start=terms[0])
        if jacobians and len(z) >= MANY_LATENTS:
            stage, jacobian = field.with_jacobian(x, along)
        else:
            stage, jacobian = field.with_jacobian(x)
            jacobian = compose(jacobian, along) if jacobians else jacobian
        stages.append(stage)
        jacobians.append(jacobian)
    for b, k, j in zip(tableau.b, stages, jacobians, strict=True):
        z = z + size * b * k
        if b:
            identity = identity + size * b * j
    return z, identity


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Multiply Jacobians ``(out, mid, n_trials)`` by Jacobians ``(mid, in, n_trials)``."""
    product = outer[:, 0, None] * inner[0]
    for column, row in zip(outer.unbind(1)[1:], inner[1:], strict=True):
        product.addcmul_(column[:, None], row)
    return product
