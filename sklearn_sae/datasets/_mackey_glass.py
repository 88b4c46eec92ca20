"""The Mackey-Glass delay equation, solved by the method of steps."""

from typing import NoReturn

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray

from .._data.masked import as_array
from ._systems import Array, System

# Chebyshev nodes on one delay: the solution is analytic between multiples of the delay.
_N_NODES = 80


class MackeyGlass(System):
    """Feedback with a delay: x' = beta x(t - tau) / (1 + x(t - tau)**n) - gamma x.

    The state of a delay equation is a whole function, the last ``tau`` of x. What is sampled here
    is the paper's stand-in for it, ``n_delays`` values of x: (x(t - (n_delays - 1) delay), ...,
    x(t - delay), x(t)).

    Parameters
    ----------
    beta, gamma, n, tau : float
        Defaults 2, 1, 9.65 and 2. The period is 7.43264. (dysts has had others since the paper.)
    n_delays : int, default=10
        Number of delayed coordinates.
    delay : float, default=9 * 7.43264 / 35
        System time between two of them. The default is the paper's: the most whole bins that fit
        into tau.

    Notes
    -----
    Within one delay the delayed term is known, so that the equation is linear with a known
    forcing; it is solved by Chebyshev collocation, delay by delay, to about 1e-12 a step. x is
    ``start`` before the burn-in of 50 periods.

    There is no ``vector_field``, ``jacobian``, ``simulate`` or ``fixed_points``: delayed
    coordinates do not follow an ordinary differential equation in closed form. Each raises
    NotImplementedError.

    References
    ----------
    Glass, L. & Mackey, M. C. (1979). Pathological conditions resulting from instabilities in
    physiological control systems. Ann. N. Y. Acad. Sci. 316, 214-235.

    Examples
    --------
    >>> from sklearn_sae.datasets import MackeyGlass
    >>> MackeyGlass().trajectory(50).shape
    (50, 10)
    """

    start = np.array([0.76980123])
    period = 7.43264

    def __init__(
        self,
        beta: float = 2.0,
        gamma: float = 1.0,
        n: float = 9.65,
        tau: float = 2.0,
        n_delays: int = 10,
        delay: float = 9 * 7.43264 / 35,
    ) -> None:
        self.beta = beta
        self.gamma = gamma
        self.n = n
        self.tau = tau
        self.n_delays = n_delays
        self.delay = delay

    @property
    def dim(self) -> int:
        """Number of delayed coordinates."""
        return self.n_delays

    @property
    def burn_in(self) -> float:
        """System time discarded before the first point: 50 periods and the embedding's reach."""
        return 50 * self.period + self.n_delays * self.delay

    def sample(self, times: ArrayLike) -> Array:
        """Delayed coordinates of the trajectory at given times.

        Parameters
        ----------
        times : array-like of shape (n_points,)
            Times >= 0, in system time since the end of the burn-in.

        Returns
        -------
        ndarray of shape (n_points, n_delays)
            x at each time, the longest delay first.
        """
        lags = self.delay * np.arange(self.n_delays - 1, -1, -1)
        wanted = self.burn_in + as_array("times", times, float)[:, None] - lags
        if not wanted.size:
            return wanted
        pieces = self._solve(int(wanted.max() / self.tau) + 1)
        piece, within = np.divmod(wanted, self.tau)
        return _evaluate(pieces, piece.astype(np.intp), 2 * within / self.tau - 1)

    def vector_field(self, z: ArrayLike) -> NoReturn:
        """Not defined for a delay equation; raises NotImplementedError."""
        self._has_none("vector field")

    def jacobian(self, z: ArrayLike) -> NoReturn:
        """Not defined for a delay equation; raises NotImplementedError."""
        self._has_none("Jacobian")

    def fixed_points(self) -> NoReturn:
        """Not given for a delay equation; raises NotImplementedError."""
        self._has_none("fixed points")

    def simulate(self, z0: ArrayLike, n_bins: int, bin_width: float | None = None) -> NoReturn:
        """Not defined for a delay equation; raises NotImplementedError."""
        self._has_none("simulation from an initial condition")

    def _has_none(self, what: str) -> NoReturn:
        raise NotImplementedError(
            f"MackeyGlass is a delay system and has no {what} to give: its state is the last tau "
            "of x, which the delayed coordinates do not determine. Use trajectory() or sample(), "
            "or a system without a delay."
        )

    def _solve(self, n_pieces: int) -> Array:
        """Chebyshev coefficients of x on each of the first delays, (n_pieces, n_nodes)."""
        nodes = -np.cos(np.pi * np.arange(_N_NODES) / (_N_NODES - 1))
        values = chebyshev.chebvander(nodes, _N_NODES - 1)
        slopes = np.stack(
            [chebyshev.chebval(nodes, chebyshev.chebder(row)) for row in np.eye(_N_NODES)], axis=1
        )
        # x' + gamma x = forcing at all nodes but the first, where x continues the last piece.
        operator = slopes * (2 / self.tau) + self.gamma * values
        operator[0] = values[0]
        solve = values @ np.linalg.inv(operator)
        x = np.full(_N_NODES, self.start[0])
        pieces = np.empty((n_pieces, _N_NODES))
        for i in range(n_pieces):
            forcing = self.beta * x / (1 + x**self.n)
            forcing[0] = x[-1]
            x = solve @ forcing
            pieces[i] = x
        return np.linalg.solve(values, pieces.T).T


def _evaluate(coefficients: Array, piece: NDArray[np.intp], at: Array) -> Array:
    # Clenshaw's recurrence with one set of coefficients for each point; a matrix of all
    # polynomials at all points would take gigabytes.
    by_degree = np.ascontiguousarray(coefficients.T)
    ahead, two_ahead = np.zeros_like(at), np.zeros_like(at)
    for row in by_degree[:0:-1]:
        ahead, two_ahead = row[piece] + 2 * at * ahead - two_ahead, ahead
    return by_degree[0][piece] + at * ahead - two_ahead
