"""The ordinary differential equations of the paper: Lorenz, Rossler, Arneodo, MacArthur.

Parameters, periods and starts are those of the dysts collection [1]_, which the paper used. Every
start lies on its attractor.

References
----------
.. [1] Gilpin, W. (2021). Chaos as an interpretable benchmark for forecasting and data-driven
   modelling. NeurIPS Datasets and Benchmarks. https://github.com/williamgilpin/dysts
"""

from collections.abc import Callable
from itertools import combinations, permutations
from operator import mul
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .._data.masked import as_array
from ._systems import Array, System, _sorted_rows


class Lorenz(System):
    """Lorenz's model of convection: x' = sigma (y - x), y' = x (rho - z) - y, z' = x y - beta z.

    Parameters
    ----------
    sigma, rho, beta : float
        Defaults 10, 28 and 2.667. The period is 1.5008.

    References
    ----------
    Lorenz, E. N. (1963). Deterministic nonperiodic flow. J. Atmos. Sci. 20, 130-141.

    Examples
    --------
    >>> from sklearn_sae.datasets import Lorenz
    >>> Lorenz().fixed_points().round(2)
    array([[-8.49, -8.49, 27.  ],
           [ 0.  ,  0.  ,  0.  ],
           [ 8.49,  8.49, 27.  ]])
    """

    start = np.array([-9.7869288, -15.03852, 20.533978])
    period = 1.5008
    points_per_period = 100

    def __init__(self, sigma: float = 10.0, rho: float = 28.0, beta: float = 2.667) -> None:
        self.sigma = sigma
        self.rho = rho
        self.beta = beta

    def vector_field(self, z: ArrayLike) -> Array:
        """Vector field dz/dt for states of shape (..., 3)."""
        x, y, w = np.moveaxis(as_array("z", z, float), -1, 0)
        velocity = [self.sigma * (y - x), x * (self.rho - w) - y, x * y - self.beta * w]
        return np.stack(velocity, axis=-1)

    def jacobian(self, z: ArrayLike) -> Array:
        """Jacobian (..., 3, 3) of the vector field."""
        x, y, w = np.moveaxis(as_array("z", z, float), -1, 0)
        return _matrix(
            [[-self.sigma, self.sigma, 0], [self.rho - w, -1, -x], [y, x, -self.beta]], x.shape
        )

    def fixed_points(self) -> Array:
        """The origin and, for ``beta * (rho - 1) > 0``, the centres of the two wings."""
        squared = self.beta * (self.rho - 1)
        points = [[0.0, 0.0, 0.0]]
        if squared > 0:
            c = np.sqrt(squared)
            points += [[-c, -c, self.rho - 1], [c, c, self.rho - 1]]
        return _sorted_rows(np.array(points))

    def _rhs(self) -> Callable[[float, Array], Any]:
        sigma, rho, beta = self.sigma, self.rho, self.beta

        def rhs(_: float, state: Array) -> list[float]:
            x, y, z = state.tolist()
            return [sigma * (y - x), x * (rho - z) - y, x * y - beta * z]

        return rhs


class Rossler(System):
    """Rossler's spiral chaos: x' = -y - z, y' = x + a y, z' = b + z (x - c).

    Parameters
    ----------
    a, b, c : float
        Defaults 0.2, 0.2 and 5.7. The period is 5.9086.

    References
    ----------
    Rossler, O. E. (1976). An equation for continuous chaos. Phys. Lett. A 57, 397-398.

    Examples
    --------
    >>> from sklearn_sae.datasets import Rossler
    >>> Rossler().fixed_points().round(1)
    array([[  0. ,  -0. ,   0. ],
           [  5.7, -28.5,  28.5]])
    """

    start = np.array([6.5134412, 0.4772013, 0.34164294])
    period = 5.9086

    def __init__(self, a: float = 0.2, b: float = 0.2, c: float = 5.7) -> None:
        self.a = a
        self.b = b
        self.c = c

    def vector_field(self, z: ArrayLike) -> Array:
        """Vector field dz/dt for states of shape (..., 3)."""
        x, y, w = np.moveaxis(as_array("z", z, float), -1, 0)
        return np.stack([-y - w, x + self.a * y, self.b + w * (x - self.c)], axis=-1)

    def jacobian(self, z: ArrayLike) -> Array:
        """Jacobian (..., 3, 3) of the vector field."""
        x, _, w = np.moveaxis(as_array("z", z, float), -1, 0)
        return _matrix([[0, -1, -1], [1, self.a, 0], [w, 0, x - self.c]], x.shape)

    def fixed_points(self) -> Array:
        """The two roots of ``a z**2 - c z + b = 0``; none where they are complex."""
        squared = self.c**2 - 4 * self.a * self.b
        if squared < 0 or self.a == 0:
            z = np.array([self.b / self.c]) if squared > 0 else np.empty(0)
        else:
            # The textbook formula loses half the digits of the small root.
            q = (self.c + np.copysign(np.sqrt(squared), self.c)) / 2
            z = np.unique([q / self.a, self.b / q])
        return _sorted_rows(np.stack([self.a * z, -z, z], axis=-1))

    def _rhs(self) -> Callable[[float, Array], Any]:
        a, b, c = self.a, self.b, self.c

        def rhs(_: float, state: Array) -> list[float]:
            x, y, z = state.tolist()
            return [-y - z, x + a * y, b + z * (x - c)]

        return rhs


class Arneodo(System):
    """Arneodo's system: x' = y, y' = z, z' = -a x - b y - c z + d x**3.

    Parameters
    ----------
    a, b, c, d : float
        Defaults -5.5, 4.5, 1 and -1, so that z' = 5.5 x - 4.5 y - z - x**3. The period is 3.1641.

    References
    ----------
    Arneodo, A., Coullet, P. & Tresser, C. (1980). Occurrence of strange attractors in
    three-dimensional Volterra equations. Phys. Lett. A 79, 259-263.

    Examples
    --------
    >>> from sklearn_sae.datasets import Arneodo
    >>> Arneodo().fixed_points().round(3)
    array([[-2.345,  0.   ,  0.   ],
           [ 0.   ,  0.   ,  0.   ],
           [ 2.345,  0.   ,  0.   ]])
    """

    start = np.array([-2.7515698, 0.19079818, 3.4703629])
    period = 3.1641

    def __init__(self, a: float = -5.5, b: float = 4.5, c: float = 1.0, d: float = -1.0) -> None:
        self.a = a
        self.b = b
        self.c = c
        self.d = d

    def vector_field(self, z: ArrayLike) -> Array:
        """Vector field dz/dt for states of shape (..., 3)."""
        x, y, w = np.moveaxis(as_array("z", z, float), -1, 0)
        jerk = -self.a * x - self.b * y - self.c * w + self.d * x * x * x
        return np.stack([y, w, jerk], axis=-1)

    def jacobian(self, z: ArrayLike) -> Array:
        """Jacobian (..., 3, 3) of the vector field."""
        x = as_array("z", z, float)[..., 0]
        last = [-self.a + 3 * self.d * x * x, -self.b, -self.c]
        return _matrix([[0, 1, 0], [0, 0, 1], last], x.shape)

    def fixed_points(self) -> Array:
        """The origin and, for ``a / d > 0``, x = -+sqrt(a / d)."""
        x = [0.0]
        if self.a * self.d > 0:
            x = [-np.sqrt(self.a / self.d), 0.0, np.sqrt(self.a / self.d)]
        return np.stack([x, np.zeros(len(x)), np.zeros(len(x))], axis=-1)

    def _rhs(self) -> Callable[[float, Array], Any]:
        a, b, c, d = self.a, self.b, self.c, self.d

        def rhs(_: float, state: Array) -> list[float]:
            x, y, z = state.tolist()
            return [y, z, -a * x - b * y - c * z + d * x * x * x]

        return rhs


# Rows are resources, columns species; Huisman & Weissing (1999), as dysts has them.
_CONTENT = np.array(
    [
        [0.04, 0.04, 0.07, 0.04, 0.04],
        [0.08, 0.08, 0.08, 0.10, 0.08],
        [0.10, 0.10, 0.10, 0.10, 0.14],
        [0.05, 0.03, 0.03, 0.03, 0.03],
        [0.07, 0.09, 0.07, 0.07, 0.07],
    ]
)
_HALF_SATURATION = np.array(
    [
        [0.39, 0.34, 0.30, 0.24, 0.23],
        [0.22, 0.39, 0.34, 0.30, 0.27],
        [0.27, 0.22, 0.39, 0.34, 0.30],
        [0.30, 0.24, 0.22, 0.39, 0.34],
        [0.34, 0.30, 0.22, 0.20, 0.39],
    ]
)
for _table in (_CONTENT, _HALF_SATURATION):
    _table.setflags(write=False)


class MacArthur(System):
    """Five species N competing for five resources R, each held back by its scarcest resource.

    N_i' = N_i (mu_i - m), R_j' = d (s_j - R_j) - sum_i c_ji mu_i N_i, with growth rates
    mu_i = min_j r R_j / (k_ji + R_j). The state is (N_1..N_5, R_1..R_5), in abundances and
    concentrations. The minimum makes kinks in the vector field, where the Jacobian is that of the
    first of the tied resources.

    Parameters
    ----------
    c : array-like of shape (5, 5)
        Content of resource j (row) in species i (column); default as in the reference.
    k : array-like of shape (5, 5)
        Half-saturation of species i (column) for resource j (row); default as in the reference.
    s : array-like of shape (5,), default=(6, 10, 14, 4, 9)
        Supply concentrations.
    r, m, d : float
        Greatest growth rate, mortality and turnover; defaults 1, 0.25 and 0.25. The period is
        43.406.

    Notes
    -----
    Integrated with LSODA at tolerance 1e-9: a one-step method has to creep up to each of the
    kinks, and DOP853 takes twice as long here for a tenth of the accuracy. The paper's 140,000
    points take about a minute, those of the other systems a few seconds.

    References
    ----------
    MacArthur, R. (1969). Species packing, and what competition minimizes. PNAS 64, 1369-1371.
    Huisman, J. & Weissing, F. J. (1999). Biodiversity of plankton by species oscillations and
    chaos. Nature 402, 407-410.

    Examples
    --------
    >>> from sklearn_sae.datasets import MacArthur
    >>> MacArthur().fixed_points().shape[1]
    10
    """

    start = np.array(
        [9.4323333, 18.838654, 34.37572, 15.08545, 42.228427]
        + [0.17030505, 0.10144427, 0.3148045, 0.21253581, 0.22598604]
    )
    period = 43.406
    points_per_period = 70
    standardize = True
    solver: Literal["dop853", "lsoda"] = "lsoda"
    tol = 1e-9

    def __init__(
        self,
        c: ArrayLike = _CONTENT,
        k: ArrayLike = _HALF_SATURATION,
        s: ArrayLike = (6.0, 10.0, 14.0, 4.0, 9.0),
        r: float = 1.0,
        m: float = 0.25,
        d: float = 0.25,
    ) -> None:
        self.c = c
        self.k = k
        self.s = s
        self.r = r
        self.m = m
        self.d = d

    def _tables(self) -> tuple[Array, Array, Array]:
        content, half, supply = (as_array(x, getattr(self, x), float) for x in "cks")
        return content, half, supply

    def vector_field(self, z: ArrayLike) -> Array:
        """Vector field dz/dt for states of shape (..., 10)."""
        content, half, supply = self._tables()
        z = as_array("z", z, float)
        species, resources = z[..., :5], z[..., 5:]
        by_resource = self.r * resources[..., :, None] / (half + resources[..., :, None])
        growth = by_resource.min(axis=-2)
        uptake = (growth * species) @ content.T
        velocity = [species * (growth - self.m), self.d * (supply - resources) - uptake]
        return np.concatenate(velocity, axis=-1)

    def jacobian(self, z: ArrayLike) -> Array:
        """Jacobian (..., 10, 10) of the vector field, one-sided at a kink."""
        content, half, _ = self._tables()
        z = as_array("z", z, float)
        species, resources = z[..., :5], z[..., 5:]
        by_resource = self.r * resources[..., :, None] / (half + resources[..., :, None])
        limiting = by_resource.argmin(axis=-2)[..., None, :] == np.arange(5)[:, None]
        slope = self.r * half / (half + resources[..., :, None]) ** 2 * limiting
        growth = by_resource.min(axis=-2)
        # gain[i, j]: what one more unit of resource j adds to the growth of all of species i
        gain = species[..., :, None] * np.swapaxes(slope, -1, -2)
        eye = np.eye(5)
        top = [eye * (growth - self.m)[..., None, :], gain]
        bottom = [-content * growth[..., None, :], -self.d * eye - content @ gain]
        rows = [np.concatenate(top, axis=-1), np.concatenate(bottom, axis=-1)]
        return np.concatenate(rows, axis=-2)

    def fixed_points(self) -> Array:
        """All equilibria without negative abundances, one for each community that can persist.

        At an equilibrium each surviving species is held at ``mu_i = m`` by one resource, no two by
        the same; that fixes those resources, and the abundances solve a linear system. All
        communities and assignments are tried.
        """
        content, half, supply = self._tables()
        found: list[Array] = [np.concatenate([np.zeros(5), supply])]
        if self.r <= self.m:  # no resource is enough for any species
            return np.array(found)
        needs = self.m * half / (self.r - self.m)
        for n_alive in range(1, 6):
            for alive in map(list, combinations(range(5), n_alive)):
                for held in map(list, permutations(range(5), n_alive)):
                    drawn = self.m * content[:, alive]
                    missing = self.d * (supply[held] - needs[held, alive])
                    if np.linalg.matrix_rank(drawn[held]) < n_alive:
                        continue
                    abundance = np.linalg.solve(drawn[held], missing)
                    resources = supply - drawn @ abundance / self.d
                    resources[held] = needs[held, alive]
                    enough = resources[:, None] >= needs[:, alive] * (1 - 1e-12)
                    if np.all(abundance > 0) and np.all(enough):
                        point = np.concatenate([np.zeros(5), resources])
                        point[alive] = abundance
                        found.append(point)
        return _sorted_rows(np.array(found))

    def _rhs(self) -> Callable[[float, Array], Any]:
        content, half, supply = (table.tolist() for table in self._tables())
        by_species = list(zip(*half, strict=True))
        r, m, d = self.r, self.m, self.d

        def rhs(_: float, state: Array) -> list[float]:
            values = state.tolist()
            species, resources = values[:5], values[5:]
            scarcity = [1 / x for x in resources]
            # R / (k + R) is least where k / R is greatest
            grown = [
                r * n / (1 + max(map(mul, row, scarcity)))
                for n, row in zip(species, by_species, strict=True)
            ]
            return [g - m * n for g, n in zip(grown, species, strict=True)] + [
                d * (full - x) - sum(map(mul, row, grown))
                for full, x, row in zip(supply, resources, content, strict=True)
            ]

        return rhs


def _matrix(entries: list[list], shape: tuple[int, ...]) -> Array:
    rows = [[np.broadcast_to(entry, shape) for entry in row] for row in entries]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2).astype(float)
