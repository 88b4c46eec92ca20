"""Fixed and slow points of dynamics, and what motion around them looks like."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ._newton import descend, polish
from ._state_space import Array, StateSpace, as_rows, as_state_space

__all__ = ["FixedPoints", "find_fixed_points"]

#: Real parts below this share of the largest eigenvalue count as zero.
NEUTRAL = 1e-7
#: A velocity that changes by less than this share of the typical one over a radius is no point.
FLAT = 1e-8


@dataclass(frozen=True, repr=False)
class FixedPoints:
    """What `find_fixed_points` found; all arrays have one entry for each point.

    Points are in the order of their distance from the states, slow points after the others. Modes,
    the last axis of ``eigenvalues`` and all that follows from them, begin with the one that grows
    fastest.

    Attributes
    ----------
    points : ndarray of shape (n_points, dim)
        Where they are.
    speeds : ndarray of shape (n_points,)
        |f| there: dz/dt in the system's own time, or what one bin adds to z.
    q : ndarray of shape (n_points,)
        |f|^2 / 2, what is minimised at a slow point.
    slow : ndarray of bool, of shape (n_points,)
        Whether it is a minimum of the speed, but not a fixed point.
    jacobians : ndarray of shape (n_points, dim, dim)
        Of the vector field (per unit of the system's own time; bins for an estimator) or of the
        map.
    eigenvalues : complex ndarray of shape (n_points, dim)
        Of the Jacobians, in the same unit.
    eigenvectors : complex ndarray of shape (n_points, dim, dim)
        Columns belong to ``eigenvalues``; unit length.
    exponents : complex ndarray of shape (n_points, dim)
        Growth rates per bin: eigenvalue x bin width of a flow, log(multiplier) of a map.
    kinds : ndarray of str, of shape (n_points,)
        "stable node", "stable spiral", "saddle", "saddle spiral", "unstable node",
        "unstable spiral"; "neutral" where nothing grows and something neither grows nor decays. Of
        a map also "stable flip", "saddle flip", "unstable flip": a multiplier is real and negative,
        and its mode changes sign in every bin (an oscillation of two bins). A spiral comes first.
    frequencies : ndarray of shape (n_points, dim)
        Cycles per bin, or per second (Hz) if ``bin_size`` was given.
    time_constants : ndarray of shape (n_points, dim)
        Time in which the mode grows or decays by a factor e, in bins, or in seconds.
    counts : ndarray of int, of shape (n_points,)
        How many starts reached it.
    distances : ndarray of shape (n_points,)
        Distance from the nearest of the states given, in units of ``radius``.
    outside : ndarray of bool, of shape (n_points,)
        Whether it is farther than one ``radius`` from all states: the data say little about it.
    radius : float
        Root mean square distance of the states from their mean.
    n_starts : int
        Starts in all.
    n_unsettled : int
        Starts that reached no fixed or slow point, or a region where nothing moves at all.
    time_unit : {"bins", "s"}
        Of frequencies and time constants.
    """

    points: Array
    speeds: Array
    q: Array
    slow: NDArray[np.bool_]
    jacobians: Array
    eigenvalues: NDArray[np.complexfloating]
    eigenvectors: NDArray[np.complexfloating]
    exponents: NDArray[np.complexfloating]
    kinds: NDArray[np.str_]
    frequencies: Array
    time_constants: Array
    counts: NDArray[np.integer]
    distances: Array
    outside: NDArray[np.bool_]
    radius: float
    n_starts: int
    n_unsettled: int
    time_unit: str

    @property
    def multipliers(self) -> NDArray[np.complexfloating]:
        """Eigenvalues of the one-bin map, (n_points, dim): exp(exponents), for flows and maps."""
        return np.exp(self.exponents)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, chosen: Any) -> FixedPoints:
        """Some of the points, by a mask, a slice or a list of positions."""
        chosen = np.atleast_1d(np.arange(len(self))[chosen])
        per_point = {
            field.name: value[chosen]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        others = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in per_point}
        return FixedPoints(**per_point, **others)

    def __repr__(self) -> str:
        """A table, one line for each point."""
        reached = self.n_starts - self.n_unsettled
        header = f"{len(self)} points; {reached} of {self.n_starts} starts settled"
        unit = "cycles/bin" if self.time_unit == "bins" else "Hz"
        lines = [
            f"{header}\n  kind              starts  distance  frequency ({unit})  "
            f"time constant ({self.time_unit})"
        ]
        for i in range(len(self)):
            kind = f"{self.kinds[i]}{' (slow)' if self.slow[i] else ''}"
            away = f"{self.distances[i]:.2f}{'*' if self.outside[i] else ' '}"
            lines.append(
                f"  {kind:<18}{self.counts[i]:>6}{away:>10}  {self.frequencies[i, 0]:>18.4g}"
                f"{self.time_constants[i, 0]:>22.4g}"
            )
        return "\n".join(lines + (["  * outside the data"] if self.outside.any() else []))


def find_fixed_points(
    system: Any,
    states: ArrayLike,
    *,
    n_starts: int = 512,
    noise: float = 0.1,
    tol: float = 1e-9,
    slow_tol: float = 0.1,
    unique_tol: float = 1e-3,
    max_iter: int = 100,
    discrete: bool | None = None,
    bin_size: float | None = None,
    bin_width: float | None = None,
    random_state: Any = None,
) -> FixedPoints:
    r"""Find fixed points and slow points of a fitted estimator, a true system or a function.

    From noisy states all starts descend :math:`q(z) = |f(z)|^2 / 2` together [1]_, by damped Newton
    steps with exact Jacobians in float64; f is the vector field, or F(z) - z of a map. Where f
    vanishes is a fixed point; another minimum of q is a slow point, if it is slow enough.

    Parameters
    ----------
    system : NODESAE, RNNSAE, System or callable
        What to analyse: a fitted estimator, whose parameters stay as they are; a system of
        `sklearn_sae.datasets`; or a function of states (n, dim), in torch (exact Jacobians) or in
        NumPy (central differences, in steps that follow the spread of ``states``), that gives
        dz/dt, or the next states if ``discrete``.
    states : array-like of shape (..., dim), or list of (n_bins_i, dim)
        Latents of the estimator (``est.transform(spikes)``), or states of the true system: where to
        look, and the measure of distance. Rows with NaN are left out.
    n_starts : int, default=512
        Number of starts, drawn from ``states``.
    noise : float, default=0.1
        Standard deviation of Gaussian noise on each coordinate of the starts, in units of the
        radius of the states (root mean square distance from their mean).
    tol : float, default=1e-9
        Greatest speed of a fixed point, relative to the median speed at ``states``.
    slow_tol : float, default=0.1
        The same for slow points; 0 reports none.
    unique_tol : float, default=1e-3
        Points closer than this are one, in units of the radius.
    max_iter : int, default=100
        Most steps of a start.
    discrete : bool, default=None
        Whether to analyse the one-bin map instead of the vector field. None: vector field, if there
        is one; a callable is a vector field unless True.
    bin_size : float, default=None
        Seconds in a bin, for frequencies in Hz and time constants in seconds; None: in bins.
    bin_width : float, default=None
        The true system's own time in a bin, as `make_chaotic_spikes` returns it; None is ``period /
        points_per_period``, and 1 for a callable. An estimator's time is in bins.
    random_state : int, RandomState, Generator or None, default=None
        Decides starts and noise.

    Returns
    -------
    FixedPoints
        Points with eigenvalues, kinds, frequencies, time constants; see there.

    Raises
    ------
    TypeError
        If ``system`` is none of the things it may be.
    ValueError
        If dimensions do not match, or a number is not one of those allowed.

    See Also
    --------
    match_fixed_points : Compare them with those of the true system.

    References
    ----------
    .. [1] Sussillo, D. & Barak, O. (2013). Opening the black box: low-dimensional dynamics in
       high-dimensional recurrent neural networks. Neural Computation 25, 626-649.

    Examples
    --------
    >>> from sklearn_sae.analysis import find_fixed_points
    >>> from sklearn_sae.datasets import Lorenz
    >>> lorenz = Lorenz()
    >>> found = find_fixed_points(lorenz, lorenz.trajectory(1000), random_state=0)
    >>> sorted(found.kinds.tolist())
    ['saddle', 'saddle spiral', 'saddle spiral']
    """
    _check("n_starts", n_starts, n_starts >= 1, "a number of starts >= 1")
    _check("noise", noise, 0 <= noise < np.inf, "a share of the radius >= 0")
    _check("tol", tol, 0 < tol < 1, "a relative speed between 0 and 1")
    _check("slow_tol", slow_tol, 0 <= slow_tol < np.inf, "a relative speed >= 0")
    _check("unique_tol", unique_tol, 0 < unique_tol < np.inf, "a share of the radius > 0")
    _check("max_iter", max_iter, max_iter >= 1, "a number of steps >= 1")
    _check("bin_size", bin_size, bin_size is None or 0 < bin_size < np.inf, "seconds > 0, or None")
    states = as_rows("states", states)
    space = as_state_space(
        system, states.shape[1], states=states, discrete=discrete, bin_width=bin_width
    )
    rng = _generator(random_state)
    radius = _radius(states)
    rows = rng.choice(len(states), n_starts, replace=n_starts > len(states))
    starts = states[rows] + noise * radius * rng.standard_normal((n_starts, states.shape[1]))

    typical = float(np.median(np.linalg.norm(space.velocity(states[rows]), axis=1))) or radius
    end = descend(space, starts, radius, tol * typical, max_iter)
    near = np.linalg.norm(end.points - states.mean(axis=0), axis=1) < 1e6 * radius
    kept = end.settled & near & (end.speeds <= max(tol, slow_tol) * typical)
    kept[kept] = ~_standstill(space, end.points[kept], typical / radius)
    first, counts = _unique(end.points[kept], end.speeds[kept], unique_tol * radius)
    points, speeds = end.points[kept][first], end.speeds[kept][first]
    slow = speeds > tol * typical
    points[~slow] = polish(space, points[~slow])
    speeds[~slow] = np.linalg.norm(space.velocity(points[~slow]), axis=1) if len(points) else 0
    distances = np.empty(0)
    if len(points):
        distances = np.asarray(cKDTree(states).query(points)[0]) / radius
    order = np.lexsort((distances, slow))
    return _describe(
        space,
        points[order],
        speeds[order],
        bin_size,
        slow=slow[order],
        counts=counts[order],
        distances=distances[order],
        radius=radius,
        n_starts=int(n_starts),
        n_unsettled=int(n_starts - kept.sum()),
    )


def _describe(
    space: StateSpace, points: Array, speeds: Array, bin_size: float | None, **known: Any
) -> FixedPoints:
    jacobians = space.jacobian(points) if len(points) else np.empty((0, *points.shape[1:] * 2))
    # Of real matrices: complex ones would get pairs and real eigenvalues only nearly right.
    eigenvalues, eigenvectors = (np.asarray(x, complex) for x in np.linalg.eig(jacobians))
    exponents = space.exponents(eigenvalues)
    # Rounded, so that a conjugate pair is in the order of its imaginary parts.
    growth = np.round(exponents.real, 12)
    order = np.lexsort((-exponents.imag, -growth))
    eigenvalues, exponents = (np.take_along_axis(x, order, 1) for x in (eigenvalues, exponents))
    eigenvectors = np.take_along_axis(eigenvectors, order[:, None], 2)
    seconds = 1.0 if bin_size is None else bin_size
    with np.errstate(divide="ignore"):
        time_constants = seconds / np.abs(exponents.real)
    return FixedPoints(
        points=points,
        speeds=speeds,
        q=speeds**2 / 2,
        jacobians=jacobians,
        eigenvalues=eigenvalues,
        eigenvectors=eigenvectors,
        exponents=exponents,
        kinds=np.array([_kind(x, space.discrete) for x in exponents], dtype="<U15"),
        frequencies=np.abs(exponents.imag) / (2 * np.pi * seconds),
        time_constants=time_constants,
        outside=known["distances"] > 1,
        time_unit="bins" if bin_size is None else "s",
        **known,
    )


def _kind(exponents: NDArray[np.complexfloating], discrete: bool) -> str:
    finite = exponents[np.isfinite(exponents.real)]
    size = NEUTRAL * np.abs(finite).max(initial=0.0)
    grows, decays = (exponents.real > size).any(), (exponents.real < -size).any()
    # Multipliers of nothing have the sign or the angle that rounding gave them.
    turn = np.abs(finite.imag[(finite.real > np.log(NEUTRAL)) | (not discrete)])
    # The logarithm of a negative multiplier is half a turn, but has no plane to turn in.
    flips = (turn > np.pi * (1 - NEUTRAL)) & discrete
    motion = ""
    if ((turn > size) & ~flips).any():
        motion = "spiral"
    elif flips.any():
        motion = "flip"
    if grows and decays:
        return f"saddle {motion}".strip()
    if grows:
        return f"unstable {motion or 'node'}"
    if (exponents.real < -size).all():
        return f"stable {motion or 'node'}"
    return "neutral"


def _standstill(space: StateSpace, points: Array, rate: float) -> NDArray[np.bool_]:
    """Whether motion has stopped all around a point: far out, where a network saturates."""
    if not len(points):
        return np.zeros(0, dtype=bool)
    slopes = np.linalg.norm(space.velocity_jacobian(points), axis=(1, 2))
    return np.asarray(slopes < FLAT * rate)


def _unique(points: Array, speeds: Array, tol: float) -> tuple[NDArray, NDArray]:
    """The slowest point of every cluster, and how many points are within ``tol`` of it."""
    left = np.argsort(speeds, kind="stable")
    first, counts = [], []
    while len(left):
        same = np.linalg.norm(points[left] - points[left[0]], axis=1) <= tol
        first.append(left[0])
        counts.append(same.sum())
        left = left[~same]
    return np.array(first, dtype=int), np.array(counts, dtype=int)


def _radius(states: Array) -> float:
    radius = float(np.sqrt(((states - states.mean(axis=0)) ** 2).sum(axis=1).mean()))
    if radius == 0:
        raise ValueError(
            "states are all one state, so there is no scale to measure distances by. Give latents "
            "of several bins or trials."
        )
    return radius


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)


def _check(name: str, value: Any, allowed: bool, what: str) -> None:
    if not allowed:
        raise ValueError(f"{name} must be {what}, got {value!r}.")
