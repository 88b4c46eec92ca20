"""Lyapunov spectrum: how fast nearby states of a free run part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._state_space import Array, as_rows, as_state_space

__all__ = ["LyapunovSpectrum", "lyapunov_spectrum"]


@dataclass(frozen=True)
class LyapunovSpectrum:
    """What `lyapunov_spectrum` returns.

    Attributes
    ----------
    per_bin : ndarray of shape (dim,)
        Exponents per bin, the largest first; the mean over runs.
    per_time : ndarray of shape (dim,)
        The same per unit of the true system's own time.
    standard_error : ndarray of shape (dim,)
        Of ``per_bin``, from the spread over runs; NaN for one run.
    kaplan_yorke_dimension : float
        Dimension of the attractor by the Kaplan-Yorke formula.
    n_runs, n_bins : int
        Runs, and bins of each that were measured.
    """

    per_bin: Array
    per_time: Array
    standard_error: Array
    kaplan_yorke_dimension: float
    n_runs: int
    n_bins: int


def lyapunov_spectrum(
    system: Any,
    state: ArrayLike,
    n_bins: int,
    *,
    n_burn_in: int | None = None,
    discrete: bool | None = None,
    bin_width: float | None = None,
) -> LyapunovSpectrum:
    r"""Lyapunov exponents by QR decomposition along a free run.

    With :math:`J_t` the Jacobian of the one-bin map at the t-th state of the run, and
    :math:`Q_{t+1} R_{t+1} = J_t Q_t`, the exponents are the means of :math:`\log |R_{ii}|` [1]_. An
    estimator is stepped with its own solver; a vector field with Runge-Kutta of order 4 for states
    and Jacobians together.

    Parameters
    ----------
    system : NODESAE, RNNSAE, System or callable
        As in `find_fixed_points`.
    state : array-like of shape (dim,) or (n_runs, dim)
        Where to start. Several runs are advanced together, and their exponents averaged: for the
        same precision, 20 runs of 1000 bins take a small part of the time of one of 20,000.
    n_bins : int
        Bins to measure.
    n_burn_in : int, default=None
        Bins before that, in which the state comes to the attractor and Q turns into its
        directions. None is a quarter of ``n_bins``, at least 100.
    discrete : bool, default=None
        True for a callable that gives the next states rather than dz/dt.
    bin_width : float, default=None
        The true system's own time in a bin, as `make_chaotic_spikes` returns it. None is ``period /
        points_per_period`` of a true system, and 1 otherwise.

    Returns
    -------
    LyapunovSpectrum
        Exponents per bin and per unit of system time, and the Kaplan-Yorke dimension.

    Raises
    ------
    TypeError
        If ``system`` is none of the things it may be.
    ValueError
        If dimensions do not match, or a number is not one of those allowed.
    FloatingPointError
        If a run grows without bound.

    References
    ----------
    .. [1] Benettin, G., Galgani, L., Giorgilli, A. & Strelcyn, J.-M. (1980). Lyapunov
       characteristic exponents for smooth dynamical systems. Meccanica 15, 9-20.
    .. [2] Kaplan, J. L. & Yorke, J. A. (1979). Chaotic behavior of multidimensional difference
       equations. Lecture Notes in Mathematics 730, 204-227.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_sae.analysis import lyapunov_spectrum
    >>> def spiral(z):
    ...     return z @ np.array([[-0.1, 1.0], [-1.0, -0.1]])
    >>> lyapunov_spectrum(spiral, [1.0, 0.0], 100).per_bin.round(3).tolist()
    [-0.1, -0.1]
    """
    if n_bins < 1:
        raise ValueError(f"n_bins must be a number of bins >= 1, got {n_bins!r}.")
    n_burn_in = max(100, n_bins // 4) if n_burn_in is None else n_burn_in
    if n_burn_in < 0:
        raise ValueError(f"n_burn_in must be a number of bins >= 0 or None, got {n_burn_in!r}.")
    z = as_rows("state", state)
    n_runs, dim = z.shape
    space = as_state_space(system, dim, states=z, discrete=discrete, bin_width=bin_width)
    directions = np.broadcast_to(np.eye(dim), (n_runs, dim, dim))
    growth = np.zeros((n_runs, dim))
    for t in range(n_burn_in + n_bins):
        z, jacobian = space.step(z)
        if not (np.isfinite(z).all() and np.isfinite(jacobian).all()):
            run = int(np.flatnonzero(~np.isfinite(z).all(axis=1)).min(initial=n_runs - 1))
            raise FloatingPointError(
                f"Run {run} grew without bound by bin {t + 1}: from its state there is no "
                "attractor to measure. Start on the attractor, for example at latents of "
                "transform, or fit the model for longer."
            )
        directions, stretch = np.linalg.qr(jacobian @ directions)
        if t >= n_burn_in:
            with np.errstate(divide="ignore"):
                growth += np.log(np.abs(np.diagonal(stretch, axis1=1, axis2=2)))
    per_run = growth / n_bins
    per_bin = np.sort(per_run.mean(axis=0))[::-1]
    error = np.full(dim, np.nan)
    if n_runs > 1:
        error = per_run.std(axis=0, ddof=1)[np.argsort(-per_run.mean(axis=0))] / np.sqrt(n_runs)
    width = space.bin_width if bin_width is None else bin_width
    return LyapunovSpectrum(
        per_bin=per_bin,
        per_time=per_bin / width,
        standard_error=error,
        kaplan_yorke_dimension=kaplan_yorke(per_bin),
        n_runs=n_runs,
        n_bins=int(n_bins),
    )


def kaplan_yorke(exponents: Array) -> float:
    """D = j + (sum of the j largest) / |the next|, with j the most whose sum is not negative [2]_.

    Exponents are in falling order. 0 if all are negative, all of them if none is needed.
    """
    sums = np.cumsum(exponents)
    n_growing = int((sums >= 0).cumprod().sum())
    if n_growing == 0:
        return 0.0
    if n_growing == len(exponents):
        return float(len(exponents))
    return float(n_growing + sums[n_growing - 1] / abs(exponents[n_growing]))
