"""Whatever has dynamics, made one: a vector field or a map on rows of float64, with Jacobians."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .._base import BaseSAE
from .._data.masked import refuse_masked
from .._model.dynamics import Flow
from ..datasets import System
from ..datasets._differences import central_differences, typical_scale
from ..datasets._integration import rk4_with_jacobian

__all__ = ["Array", "StateSpace", "as_paired_rows", "as_rows", "as_state_space"]

Array = NDArray[np.floating]
Function = Callable[[Array], Array]
Parts = Callable[[Array], Iterator[tuple[Array, Array]]]

#: A Runge-Kutta substep times the largest Jacobian norm: local errors stay below 0.5^5 / 120.
LONGEST_SUBSTEP = 0.5
#: Of these substeps a part of a bin has so many at most: directions in it then grow or decay by
#: less than exp(8), and their product has digits to spare.
MOST_SUBSTEPS = 16


@dataclass(frozen=True)
class StateSpace:
    """Dynamics on states ``(n, dim)``.

    ``function`` is the vector field, or the one-bin map if ``discrete``; ``jacobian`` its
    derivative ``(n, dim, dim)``. ``parts`` advance by one bin, in as many parts as it takes for
    the Jacobian of each to keep its digits: the states after it, and that. ``bin_width`` is the
    time in a bin, in that of ``function``.
    """

    function: Function
    jacobian: Function
    parts: Parts
    discrete: bool
    bin_width: float

    def velocity(self, z: Array) -> Array:
        """What vanishes at a fixed point: dz/dt, or what one bin adds to z."""
        return self.function(z) - z if self.discrete else self.function(z)

    def velocity_jacobian(self, z: Array) -> Array:
        """Derivative of ``velocity``."""
        return self.jacobian(z) - np.eye(z.shape[1]) if self.discrete else self.jacobian(z)

    def exponents(self, eigenvalues: NDArray) -> NDArray:
        """Complex growth rates per bin, of eigenvalues of ``jacobian``."""
        if not self.discrete:
            return eigenvalues.astype(complex) * self.bin_width
        with np.errstate(divide="ignore"):
            return np.log(eigenvalues.astype(complex))


def as_state_space(
    system: Any,
    dim: int,
    *,
    states: Array | None = None,
    discrete: bool | None = None,
    bin_width: float | None = None,
) -> StateSpace:
    """Wrap a fitted estimator, a true system, or a callable; parameters are copied, not shared.

    ``states`` ``(n, dim)`` say where it will be looked at, and on what scale it may vary; without
    them it is unit scale, around zero.
    """
    if bin_width is not None and not 0 < bin_width < np.inf:
        raise ValueError(
            f"bin_width must be a positive time or None, got {bin_width!r}. Give the system's own "
            "time in a bin; make_chaotic_spikes returns it as bin_width."
        )
    if isinstance(system, type):
        raise TypeError(
            f"system must be an object, got the class {system.__name__}. Write "
            f"{system.__name__}(...)."
        )
    if isinstance(owner := getattr(system, "__self__", None), BaseSAE):
        # A method of an estimator computes in float32; its module can do better.
        discrete = system.__name__ == "step" if discrete is None else discrete
        system = owner
    if isinstance(system, BaseSAE):
        return _of_estimator(system, dim, discrete)
    if isinstance(system, System):
        width = system.period / system.points_per_period if bin_width is None else bin_width
        _check_dim(type(system).__name__, system.dim, dim)
        return _of_vector_field(system.vector_field, system.jacobian, bool(discrete), width)
    if not callable(system):
        raise TypeError(
            "system must be a fitted NODESAE or RNNSAE, a system of sklearn_sae.datasets, or a "
            f"function of states (n, dim); got {system!r}."
        )
    width = 1.0 if bin_width is None else bin_width
    function, jacobian = _of_callable(system, dim, states, None if discrete else width)
    if not discrete:
        return _of_vector_field(function, jacobian, False, width)

    def parts(z: Array) -> Iterator[tuple[Array, Array]]:
        yield function(z), jacobian(z)

    return StateSpace(function, jacobian, parts, True, width)


def as_rows(name: str, states: ArrayLike) -> Array:
    """States ``(..., dim)``, or a list of trials, as finite rows ``(n, dim)`` of float64."""
    rows = _all_rows(name, states)
    return _chosen(name, rows, _finite(rows))


def as_paired_rows(names: tuple[str, str], one: ArrayLike, other: ArrayLike) -> tuple[Array, Array]:
    """Two sets of states of the same trials and bins, as the rows that are finite in both."""
    layouts = _layout(one), _layout(other)
    if layouts[0] != layouts[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must be of the same trials and bins, got {layouts[0]} and "
            f"{layouts[1]}."
        )
    rows = _all_rows(names[0], one), _all_rows(names[1], other)
    finite = _finite(rows[0]) & _finite(rows[1])
    together = f"{names[0]} and {names[1]} together"
    return _chosen(together, rows[0], finite), _chosen(together, rows[1], finite)


def _finite(rows: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(rows).all(axis=1))


def _all_rows(name: str, states: Any) -> Array:
    refuse_masked(name, states)
    if _is_list_of_trials(states):
        array = np.concatenate([np.asarray(trial, dtype=float) for trial in states])
    else:
        array = np.asarray(states, dtype=float)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(
            f"{name} must be states with dimensions on the last axis, (..., dim); got shape "
            f"{array.shape}."
        )
    return array.reshape(-1, array.shape[-1])


def _is_list_of_trials(states: Any) -> bool:
    return isinstance(states, list | tuple) and len(states) > 0 and np.ndim(states[0]) == 2


def _layout(states: Any) -> str:
    """Numbers of trials and bins, in words that are equal if they are."""
    if _is_list_of_trials(states):
        lengths = [len(trial) for trial in states]
    elif np.ndim(states) == 3:
        lengths = [np.shape(states)[1]] * len(states)
    else:
        return f"shape {np.shape(states)[:-1]} of states"
    if len(set(lengths)) == 1:
        return f"{len(lengths)} trials of {lengths[0]} bins"
    return f"{len(lengths)} trials of {lengths} bins"


def _chosen(name: str, rows: Array, finite: NDArray[np.bool_]) -> Array:
    if not finite.any():
        raise ValueError(f"{name} hold no finite state, in {len(rows)} of them.")
    return rows[finite]


def _check_dim(name: str, expected: int, dim: int) -> None:
    if dim != expected:
        raise ValueError(
            f"{name} has states of {expected} dimensions, got states of {dim}. Give latents of "
            "this estimator or states of this system, dimensions on the last axis."
        )


def _of_estimator(estimator: BaseSAE, dim: int, discrete: bool | None) -> StateSpace:
    check_is_fitted(estimator)
    _check_dim(type(estimator).__name__, estimator._n_fitted_latents, dim)
    dynamics = copy.deepcopy(estimator.model_.dynamics).double().requires_grad_(False)

    def parts(z: Array) -> Iterator[tuple[Array, Array]]:
        for after, jacobian in dynamics.parts(_columns(z)):
            yield after.numpy().T, jacobian.permute(2, 0, 1).numpy()

    if isinstance(dynamics, Flow) and not discrete:
        return StateSpace(*_of_flow(dynamics), parts, False, 1.0)
    if discrete is False:
        raise ValueError(
            f"discrete=False asks for a vector field, but {type(estimator).__name__} has none: its "
            "dynamics are a one-bin map. Leave discrete=None."
        )
    return _map_of(parts, 1.0)


def _of_flow(dynamics: Flow) -> tuple[Function, Function]:
    """The vector field and its Jacobian."""

    def field(z: Array) -> Array:
        return dynamics.vector_field(torch.from_numpy(z).T).T.numpy()

    def jacobian(z: Array) -> Array:
        return dynamics.vector_field_jacobian(_columns(z)).permute(2, 0, 1).numpy()

    return field, jacobian


def _columns(z: Array) -> Tensor:
    """States as dynamics take them, one in each column."""
    return torch.from_numpy(np.ascontiguousarray(z.T))


def _of_torch(function: Callable[[Tensor], Tensor]) -> tuple[Function, Function]:
    """NumPy function and exact Jacobian of a torch function of rows."""

    def value(z: Array) -> Array:
        with torch.no_grad():
            return function(torch.from_numpy(z)).numpy()

    def jacobian(z: Array) -> Array:
        points = torch.from_numpy(z)
        # One direction at a time: functions that take a batch of states need not bear vmap.
        columns = [
            torch.func.jvp(function, (points,), (direction.expand_as(points).contiguous(),))[1]
            for direction in torch.eye(z.shape[1], dtype=torch.float64)
        ]
        return torch.stack(columns, dim=-1).detach().numpy()

    return value, jacobian


def _of_callable(
    function: Callable[[Any], Any], dim: int, states: Array | None, bin_width: float | None
) -> tuple[Function, Function]:
    if isinstance(function, torch.nn.Module):
        function = copy.deepcopy(function).double()
    # dim + 1 rows: a square batch would hide a transposed answer.
    probe = np.linspace(-1.0, 1.0, (dim + 1) * dim).reshape(dim + 1, dim)
    if states is not None:
        probe = np.resize(states, probe.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of what it makes of tensors
        try:
            candidate = _of_torch(function)
            if candidate[0](probe).shape == probe.shape and np.isfinite(candidate[1](probe)).all():
                return candidate
        except Exception:  # not written in torch
            pass

    def value(z: Array) -> Array:
        return np.asarray(function(z), dtype=float)

    if value(probe).shape != probe.shape:
        raise ValueError(
            f"system gave shape {value(probe).shape} for states of shape {probe.shape}. It must "
            "take states (n, dim) and return as many velocities (or next states) of the same shape."
        )

    scale: Array = np.ones(dim)
    if states is not None:
        if not np.ptp(states, axis=0).any():
            # Of one state, how far it moves in a bin is all that is known.
            there = value(states[:1])
            there = there if bin_width is None else states[:1] + bin_width * there
            states = np.concatenate([states[:1], there])
        scale = typical_scale(states)

    def jacobian(z: Array) -> Array:
        return central_differences(value, z, scale)

    return value, jacobian


def _of_vector_field(
    field: Function, jacobian: Function, discrete: bool, bin_width: float
) -> StateSpace:
    """A flow, or the one-bin map that it makes if ``discrete``."""

    def parts(z: Array) -> Iterator[tuple[Array, Array]]:
        return integrate(field, jacobian, z, bin_width)

    if discrete:
        return _map_of(parts, bin_width)
    return StateSpace(field, jacobian, parts, False, bin_width)


def _map_of(parts: Parts, bin_width: float) -> StateSpace:
    """The one-bin map that is made of these parts."""
    return StateSpace(
        lambda z: compose(parts(z))[0], lambda z: compose(parts(z))[1], parts, True, bin_width
    )


def compose(parts: Iterator[tuple[Array, Array]]) -> tuple[Array, Array]:
    """States after all parts, and the Jacobian of all."""
    z, chain = next(parts)
    for z, jacobian in parts:  # noqa: B007
        chain = jacobian @ chain
    return z, chain


def integrate(
    field: Function, jacobian: Function, z: Array, duration: float
) -> Iterator[tuple[Array, Array]]:
    """Advance states and their variational equation J' = Df(z) J by Runge-Kutta of order 4.

    Every state takes steps of its own, so that it does not matter which others there are.
    """
    left = np.full(len(z), float(duration))
    while (left > 0).any():
        stiffness = np.linalg.norm(jacobian(z), axis=(1, 2))
        # Where a state is lost, at infinity or beyond, any step will do.
        rate = np.clip(np.nan_to_num(stiffness / LONGEST_SUBSTEP), 1e-300, 1e5)
        span = np.minimum(left, MOST_SUBSTEPS / rate)
        n_substeps = np.ceil(span * rate).clip(1)
        chain: Array = np.broadcast_to(np.eye(z.shape[1]), (*z.shape, z.shape[1]))
        for i in range(int(n_substeps.max())):
            h = np.where(i < n_substeps, span / n_substeps, 0.0)
            z, chain = rk4_with_jacobian(field, jacobian, z, chain, h)
        left = left - span
        yield z, chain
