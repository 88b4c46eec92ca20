"""What a dynamical system is to this package: a vector field, a start, a period."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import ode
from scipy.optimize import root

from .._data.masked import as_array
from ._differences import EPS, central_differences, typical_scale

Array = NDArray[np.floating]


class System(ABC):
    """A dynamical system dz/dt = f(z) with everything the data and the tests need to know of it.

    Subclass it with the attributes below and ``vector_field``; or wrap a function in
    `CustomSystem`.

    Attributes
    ----------
    start : ndarray of shape (dim,)
        Where `trajectory` starts.
    period : float
        Time of one typical cycle; bins are counted in it.
    burn_in : float
        System time that `trajectory` integrates and discards before its first point.
    points_per_period : int, default=35
        Bins per period that `make_chaotic_spikes` uses unless told otherwise.
    standardize : bool, default=False
        Whether each latent is z-scored before the readout is applied to it.
    solver : {"dop853", "lsoda"}, default="dop853"
        Integrator of `scipy.integrate.ode`.
    tol : float, default=1e-10
        Its relative and absolute tolerance.
    """

    start: Array
    period: float
    points_per_period: int = 35
    standardize: bool = False
    solver: Literal["dop853", "lsoda"] = "dop853"
    tol: float = 1e-10

    @property
    def dim(self) -> int:
        """Number of state variables."""
        return len(self.start)

    @property
    def parameters(self) -> dict[str, Any]:
        """Constructor arguments by name, as they were stored."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def burn_in(self) -> float:
        """System time discarded before the first point: none where `start` is on the attractor.

        The stored starts lie on the attractor of the stored parameters only; with other
        parameters the first 50 periods are discarded.
        """
        defaults = inspect.signature(type(self)).parameters.items()
        stored = all(np.array_equal(getattr(self, name), p.default) for name, p in defaults)
        return 0.0 if stored else 50 * self.period

    def __repr__(self) -> str:
        """Name and parameters, as one would type them."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{type(self).__name__}({values})"

    @abstractmethod
    def vector_field(self, z: ArrayLike) -> Array:
        """Vector field dz/dt.

        Parameters
        ----------
        z : array-like of shape (..., dim)
            States.

        Returns
        -------
        ndarray of shape (..., dim)
            Their velocities, per unit of system time.
        """

    def jacobian(self, z: ArrayLike) -> Array:
        """Jacobian of the vector field, entry ``[..., i, j]`` being ``d f_i / d z_j``.

        Here by central differences (relative error about 1e-9), in steps that follow the range of
        each variable in the two periods after `start`; the named systems give it exactly.

        Parameters
        ----------
        z : array-like of shape (..., dim)
            States.

        Returns
        -------
        ndarray of shape (..., dim, dim)
            Jacobians.
        """
        return central_differences(self.vector_field, as_array("z", z, float), self._scale)

    @cached_property
    def _scale(self) -> Array:
        """How far each variable ranges."""
        try:
            states = self.simulate(self.start, 71, self.period / 35)
        except RuntimeError:  # it runs off to infinity
            states = self.start[None]
        return typical_scale(states)

    def fixed_points(self) -> Array:
        """States where the vector field vanishes, to 1e-10 of its size or what rounding leaves.

        Here found by solving ``vector_field(z) = 0`` from 200 points of the trajectory, which finds
        those that the trajectory comes near; the named systems give all of theirs.

        Returns
        -------
        ndarray of shape (n_fixed_points, dim)
            In rising order of the first coordinate that differs; empty where there is none.
        """
        found: list[Array] = []
        starts = self.trajectory(200, self.period / 10)
        size = min(1.0, np.abs([self.vector_field(z) for z in (self.start, *starts[::20])]).max())
        for z0 in starts:
            z = root(self.vector_field, z0, jac=self.jacobian, tol=1e-14).x
            if not np.all(np.isfinite(z)):
                continue
            rounding = 4 * EPS * (np.abs(self.jacobian(z)) @ np.abs(z)).max()
            away = 1e-6 * (1 + np.linalg.norm((z - self.start) / self._scale))
            new = all(np.linalg.norm((z - other) / self._scale) > away for other in found)
            if new and np.abs(self.vector_field(z)).max() < 1e-10 * size + rounding:
                found.append(z)
        return _sorted_rows(np.array(found).reshape(-1, self.dim))

    def simulate(self, z0: ArrayLike, n_bins: int, bin_width: float | None = None) -> Array:
        """Free-running states from given ones, no burn-in.

        Parameters
        ----------
        z0 : array-like of shape (..., dim)
            Initial conditions.
        n_bins : int
            Number of states to return for each, the initial condition being the first.
        bin_width : float, default=None
            System time between them; None is ``period / points_per_period``.

        Returns
        -------
        ndarray of shape (..., n_bins, dim)
            States.

        Raises
        ------
        RuntimeError
            If a solution cannot be continued, as when it runs off to infinity.

        Examples
        --------
        >>> from sklearn_sae.datasets import Lorenz
        >>> Lorenz().simulate([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], n_bins=20).shape
        (2, 20, 3)
        """
        z0 = as_array("z0", z0, float)
        times = np.arange(n_bins) * self._bin_width(bin_width)
        states = [self._integrate(z, times) for z in z0.reshape(-1, self.dim)]
        return np.array(states).reshape(*z0.shape[:-1], n_bins, self.dim)

    def trajectory(self, n_points: int, bin_width: float | None = None) -> Array:
        """One long stretch of the attractor, from `start` after `burn_in`.

        Parameters
        ----------
        n_points : int
            Number of states.
        bin_width : float, default=None
            System time between them; None is ``period / points_per_period``.

        Returns
        -------
        ndarray of shape (n_points, dim)
            States.

        Raises
        ------
        RuntimeError
            If the solution cannot be continued, as when it runs off to infinity.

        Examples
        --------
        >>> from sklearn_sae.datasets import Arneodo
        >>> Arneodo().trajectory(100).shape
        (100, 3)
        """
        return self.sample(np.arange(n_points) * self._bin_width(bin_width))

    def sample(self, times: ArrayLike) -> Array:
        """States of the trajectory at given times.

        Parameters
        ----------
        times : array-like of shape (n_points,)
            Rising times >= 0, in system time since the end of the burn-in.

        Returns
        -------
        ndarray of shape (n_points, dim)
            States.
        """
        times = as_array("times", times, float)
        return self._integrate(self.start, np.r_[0.0, self.burn_in + times])[1:]

    def _bin_width(self, bin_width: float | None) -> float:
        return self.period / self.points_per_period if bin_width is None else bin_width

    @property
    def _atol(self) -> float:
        # A hook: what is small depends on the units of the states.
        return self.tol

    def _rhs(self) -> Callable[[float, Array], Any]:
        # A hook: on one state of few dimensions, plain Python floats are several times faster.
        return lambda _, z: self.vector_field(z)

    def _integrate(self, z0: Array, times: Array) -> Array:
        # scipy.integrate.ode runs its whole step in compiled code: ten times faster than
        # solve_ivp, whose every stage is a handful of NumPy calls on three numbers.
        states = np.empty((len(times), self.dim))
        solver = ode(self._rhs())
        solver.set_integrator(self.solver, rtol=self.tol, atol=self._atol, nsteps=1_000_000)
        solver.set_initial_value(z0, times[0] if len(times) else 0.0)
        for i, t in enumerate(times):
            states[i] = solver.integrate(t) if t > solver.t else solver.y
            if not solver.successful() or not np.all(np.isfinite(states[i])):
                raise RuntimeError(
                    f"{type(self).__name__} could not be integrated beyond time {solver.t:.6g} "
                    f"from {np.asarray(z0).tolist()}: the solution grows without bound or the "
                    "equations are too stiff. Choose another start or other parameters."
                )
        return states


class CustomSystem(System):
    """A system of your own: any function of the state, with a start and a period.

    Parameters
    ----------
    vector_field : callable
        ``vector_field(z)`` gives dz/dt; z has shape (dim,) or, if the function can, (..., dim).
    start : array-like of shape (dim,)
        Initial state; its length is the dimension.
    period : float
        Time of one typical cycle, in the time of ``vector_field``; bins are counted in it.
    jacobian : callable, default=None
        ``jacobian(z)`` of shape (..., dim, dim); None takes central differences.
    burn_in : float, default=None
        System time to discard so that the state is on the attractor. None is 50 periods.

    Raises
    ------
    TypeError
        If ``vector_field`` is not callable.
    ValueError
        If ``start`` is not a vector of finite numbers, ``period`` is not positive, or
        ``vector_field`` gives another shape than its argument's.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.datasets import CustomSystem
    >>> def van_der_pol(z):
    ...     x, y = z[..., 0], z[..., 1]
    ...     return np.stack([y, (1 - x**2) * y - x], axis=-1)
    >>> system = CustomSystem(van_der_pol, [2.0, 0.0], period=6.663)
    >>> system.trajectory(35).shape
    (35, 2)
    """

    def __init__(
        self,
        vector_field: Callable[[Array], Any],
        start: ArrayLike,
        *,
        period: float,
        jacobian: Callable[[Array], Any] | None = None,
        burn_in: float | None = None,
    ) -> None:
        if not callable(vector_field):
            raise TypeError(
                f"vector_field must be a function vector_field(z) -> dz/dt, got {vector_field!r}."
            )
        self.start = as_array("start", start, float).copy()
        if self.start.ndim != 1 or not self.start.size or not np.all(np.isfinite(self.start)):
            raise ValueError(
                f"start must be a vector of finite numbers, one for each variable; got {start!r}."
            )
        if not period > 0:
            raise ValueError(f"period must be a positive time, got {period!r}.")
        if burn_in is not None and not burn_in >= 0:
            raise ValueError(f"burn_in must be a time >= 0 or None, got {burn_in!r}.")
        self.period = float(period)
        self._vector_field, self._jacobian = vector_field, jacobian
        self._burn_in = 50 * self.period if burn_in is None else float(burn_in)
        shape = np.shape(vector_field(self.start))
        if shape != self.start.shape:
            raise ValueError(
                f"vector_field(start) must have the shape of start, {self.start.shape}, "
                f"got {shape}. Return one velocity for each state variable."
            )
        self._takes_batches = self._agrees_on_batches()

    @property
    def parameters(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        names = {"vector_field": self._vector_field, "start": self.start, "period": self.period}
        return {**names, "jacobian": self._jacobian, "burn_in": self._burn_in}

    @property
    def burn_in(self) -> float:
        """System time discarded before the first point."""
        return self._burn_in

    def vector_field(self, z: ArrayLike) -> Array:
        """Vector field dz/dt for states of shape (..., dim)."""
        z = as_array("z", z, float)
        if z.ndim == 1 or self._takes_batches:
            return np.asarray(self._vector_field(z), dtype=float)
        return np.apply_along_axis(self._vector_field, -1, z)

    def jacobian(self, z: ArrayLike) -> Array:
        """Jacobian (..., dim, dim): the function given, or central differences."""
        if self._jacobian is None:
            return super().jacobian(z)
        z = as_array("z", z, float)
        flat = [np.asarray(self._jacobian(state)) for state in z.reshape(-1, self.dim)]
        return np.array(flat).reshape(*z.shape, self.dim)

    @property
    def _atol(self) -> float:
        return self.tol * (min(1.0, np.abs(self.start).max()) or 1.0)

    def _rhs(self) -> Callable[[float, Array], Any]:
        return lambda _, z: self._vector_field(z)

    def _agrees_on_batches(self) -> bool:
        # A function written for one state may accept a batch and mean something else by it, so
        # its answers are compared. dim + 1 rows: a square batch would hide a transposed answer.
        n = self.dim + 1
        batch = self.start + 1e-3 * np.arange(n * self.dim).reshape(n, self.dim)
        try:
            together = np.asarray(self._vector_field(batch), dtype=float)
        except Exception:
            return False
        return np.array_equal(together, [self._vector_field(z) for z in batch], equal_nan=True)


def _sorted_rows(points: Array) -> Array:
    return points[np.lexsort(points.T[::-1])]
