"""Runge-Kutta integration of states and of their derivatives by the initial condition."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["rk4_with_jacobian"]

Array = NDArray[np.floating]
Function = Callable[[Array], Array]


def rk4_with_jacobian(
    vector_field: Function, jacobian: Function, z: Array, s: Array, h: ArrayLike
) -> tuple[Array, Array]:
    """One step of dz/dt = f(z) and its variational equation ds/dt = Df(z) s, of order 4.

    Parameters
    ----------
    vector_field, jacobian : callable
        f ``(n, dim)`` and Df ``(n, dim, dim)`` of states ``(n, dim)``.
    z : ndarray of shape (n, dim)
        States.
    s : ndarray of shape (n, dim, k)
        Their derivatives by whatever they depend on, such as the initial condition.
    h : float or array-like of shape (n,)
        Size of the step, of all states or of each.

    Returns
    -------
    z, s : ndarray of shape (n, dim) and (n, dim, k)
        States and derivatives after the step.
    """
    h = np.asarray(h)[..., None]
    hs = h[..., None]

    def velocity(z: Array, s: Array) -> tuple[Array, Array]:
        return vector_field(z), jacobian(z) @ s

    k1, l1 = velocity(z, s)
    k2, l2 = velocity(z + h / 2 * k1, s + hs / 2 * l1)
    k3, l3 = velocity(z + h / 2 * k2, s + hs / 2 * l2)
    k4, l4 = velocity(z + h * k3, s + hs * l3)
    z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z, s + hs / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
