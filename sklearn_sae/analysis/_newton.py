"""Newton's method on many states at once, damped into a descent of the squared speed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._state_space import Array, StateSpace

__all__ = ["Descent", "descend", "polish"]

#: A step must promise to lower the squared speed by this share, or its state is at a minimum.
LEAST_GAIN = 1e-9
MOST_DAMPING = 1e10
N_POLISHING_STEPS = 3


class Descent(NamedTuple):
    """Where each start ended, at which speed, and whether that is a minimum of the speed."""

    points: Array
    speeds: Array
    settled: NDArray[np.bool_]


def descend(space: StateSpace, starts: Array, radius: float, tol: float, max_iter: int) -> Descent:
    """Lower q = |f|^2 / 2 from each start until f vanishes or q has a minimum.

    Steps solve ``(J'J + damping * diag(J'J)) step = -J'f`` (Levenberg 1944, Marquardt 1963): a
    Newton step on f where the damping is small, a short gradient step on q where it is large. No
    step is longer than ``radius``, so that a start is not thrown out of the region it was chosen
    to explore.
    """
    z = starts.copy()
    f, jacobian = space.velocity(z), space.velocity_jacobian(z)
    damping = np.full(len(z), 1e-3)
    settled = np.zeros(len(z), dtype=bool)
    active = _finite(f, jacobian)
    for _ in range(max_iter):
        settled |= active & (np.linalg.norm(f, axis=1) <= tol)
        active &= ~settled & (damping < MOST_DAMPING)
        at = np.flatnonzero(active)
        if not len(at):
            break
        gradient = _times(jacobian[at].swapaxes(1, 2), f[at])
        step = _damped_step(jacobian[at], gradient, damping[at])
        promised = -(gradient * step).sum(axis=1)
        flat = promised <= LEAST_GAIN * (f[at] ** 2).sum(axis=1)
        settled[at[flat]] = True
        step *= np.minimum(1, radius / np.maximum(np.linalg.norm(step, axis=1), 1e-300))[:, None]
        proposal = z[at] + step
        new_f = space.velocity(proposal)
        better = np.linalg.norm(new_f, axis=1) < np.linalg.norm(f[at], axis=1)
        moved = at[better]
        z[moved], f[moved] = proposal[better], new_f[better]
        if len(moved):
            jacobian[moved] = space.velocity_jacobian(z[moved])
        active[moved] = _finite(f[moved], jacobian[moved])
        damping[at] = np.where(better, np.maximum(damping[at] / 10, 1e-12), damping[at] * 8)
    return Descent(z, np.linalg.norm(f, axis=1), settled)


def _damped_step(jacobian: Array, gradient: Array, damping: Array) -> Array:
    curvature = jacobian.swapaxes(1, 2) @ jacobian
    diagonal = np.diagonal(curvature, axis1=1, axis2=2)
    # A direction in which nothing changes would leave the matrix singular.
    floor = 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
    ridge = damping[:, None] * diagonal + floor
    curvature = curvature + ridge[:, :, None] * np.eye(curvature.shape[1])
    return -np.linalg.solve(curvature, gradient[..., None])[..., 0]


def polish(space: StateSpace, z: Array) -> Array:
    """Undamped Newton steps, kept only where they help: J'J loses half the digits of J."""
    for _ in range(N_POLISHING_STEPS if len(z) else 0):
        f = space.velocity(z)
        inverse = np.linalg.pinv(space.velocity_jacobian(z), rcond=1e-12)
        proposal = z - _times(inverse, f)
        better = np.linalg.norm(space.velocity(proposal), axis=1) < np.linalg.norm(f, axis=1)
        z = np.where(better[:, None], proposal, z)
    return z


def _finite(f: Array, jacobian: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(f).all(axis=1) & np.isfinite(jacobian).all(axis=(1, 2)))


def _times(matrices: Array, vectors: Array) -> Array:
    return (matrices @ vectors[..., None])[..., 0]
