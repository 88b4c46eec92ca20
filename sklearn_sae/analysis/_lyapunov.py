"""Lyapunov spectrum: how fast nearby states of a free run part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._state_space import Array, StateSpace, as_rows, as_state_space

__all__ = ["LyapunovSpectrum", "lyapunov_spectrum"]

#: A run is measured in so many stretches, so that their spread tells how well it is known.
N_STRETCHES = 10
#: Rounds of burn-in, of which two are the least.
MOST_ROUNDS = 20
#: By this share of the largest exponent, exponents may differ that count as the same.
SAME = 1e-3
#: A share of the largest exponent that counts as nothing.
NOTHING = 1e-9


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
        Dimension of the attractor by the Kaplan-Yorke formula. A negative sum of exponents counts
        as zero within two standard errors (from the spread over runs, or over stretches of a single
        one), or if a difference in growth between two bins explains it: so a limit cycle has 1.
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
    :math:`Q_{t+1} R_{t+1} = J_t Q_t`, the exponents are the means of :math:`\log |R_{ii}|` [1]_; a
    long bin is taken in parts. :math:`Q_0` is random (always the same), as special directions may
    be blind to others for long. An estimator is stepped with its own solver; a vector field with
    Runge-Kutta of order 4 for states and Jacobians together.

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
        directions. None is a quarter of ``n_bins``, at least 100, and goes on, up to ten times
        that, until two random Q measure the same exponents, which are those of the bins before.
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
    if n_burn_in is not None and n_burn_in < 0:
        raise ValueError(f"n_burn_in must be a number of bins >= 0 or None, got {n_burn_in!r}.")
    z = as_rows("state", state)
    space = as_state_space(system, z.shape[1], states=z, discrete=discrete, bin_width=bin_width)
    runs = _Runs(space, z)
    if n_burn_in is None:
        _burn_in(runs, max(50, n_bins // 8))
    else:
        runs.grow(n_burn_in, n_sets=1)
    growth = runs.grow(n_bins, n_sets=1)[:, 0] / n_bins
    per_run = growth.sum(axis=0)
    order = np.argsort(-per_run.mean(axis=0))
    per_run, growth = per_run[:, order], growth[:, :, order]
    per_bin = per_run.mean(axis=0)
    # Of one run, as many stretches of it take the place of runs.
    samples = per_run if len(per_run) > 1 else growth[:, 0] * len(growth)
    errors = 2 * np.nan_to_num(_standard_error(samples.cumsum(axis=1)))
    # Where growth only comes and goes, it may not be back where it was when the run ends.
    errors = np.maximum(errors, runs.spread[order].cumsum() / n_bins)
    width = space.bin_width if bin_width is None else bin_width
    return LyapunovSpectrum(
        per_bin=per_bin,
        per_time=per_bin / width,
        standard_error=_standard_error(per_run),
        kaplan_yorke_dimension=kaplan_yorke(per_bin, errors),
        n_runs=len(per_run),
        n_bins=int(n_bins),
    )


class _Runs:
    """Free runs, and two sets of directions that are carried along each."""

    def __init__(self, space: StateSpace, z: Array) -> None:
        self.space, self.z = space, z
        rng = np.random.default_rng(0)
        self.directions = np.linalg.qr(rng.standard_normal((2, *z.shape, z.shape[1])))[0]
        self.n_bins = 0
        #: How much more a direction grew in one bin than in another, at most.
        self.spread = np.zeros(z.shape[1])

    def grow(self, n_bins: int, n_sets: int = 2) -> Array:
        """Advance; logarithms of growth, (n_stretches, n_sets, n_runs, dim)."""
        n_stretches = max(1, min(N_STRETCHES, n_bins))
        growth = np.zeros((n_stretches, n_sets, *self.z.shape))
        directions = self.directions[:n_sets]
        low, high = np.full(self.z.shape, np.inf), np.full(self.z.shape, -np.inf)
        for t in range(n_bins):
            self.n_bins += 1
            logs = np.zeros(growth.shape[1:])
            for z, jacobian in self.space.parts(self.z):
                self.z = z
                self._check(jacobian)
                directions, stretch = np.linalg.qr(jacobian @ directions)
                with np.errstate(divide="ignore"):
                    logs += np.log(np.abs(np.diagonal(stretch, axis1=-2, axis2=-1)))
            growth[t * n_stretches // n_bins] += logs
            low, high = np.minimum(low, logs[0]), np.maximum(high, logs[0])
        with np.errstate(invalid="ignore"):  # of directions that are lost, and grow by -inf
            self.spread = np.nan_to_num(high - low).max(axis=0)
        self.directions = directions
        return growth

    def _check(self, jacobian: Array) -> None:
        if np.isfinite(self.z).all() and np.isfinite(jacobian).all():
            return
        n_runs = len(self.z)
        run = int(np.flatnonzero(~np.isfinite(self.z).all(axis=1)).min(initial=n_runs - 1))
        raise FloatingPointError(
            f"Run {run} grew without bound by bin {self.n_bins}: from its state there is no "
            "attractor to measure. Start on the attractor, for example at latents of "
            "transform, or fit the model for longer."
        )


def _burn_in(runs: _Runs, n_bins: int) -> None:
    """Rounds of ``n_bins``, until they measure what the round before and the other set do."""
    before = runs.grow(n_bins)
    for _ in range(MOST_ROUNDS - 1):
        now = runs.grow(n_bins)
        if _agree(before, now, n_bins):
            break
        before = now


def _agree(before: Array, now: Array, n_bins: int) -> bool:
    with np.errstate(invalid="ignore"):
        one, other = now.sum(axis=0) / n_bins
        apart = np.abs(one - other).mean(axis=0)
        samples = [x[:, 0].reshape(-1, x.shape[-1]) * len(x) / n_bins for x in (before, now)]
        drift = np.abs(samples[1].mean(axis=0) - samples[0].mean(axis=0))
        chance = np.hypot(*(_standard_error(x) for x in samples))
        same = SAME * np.abs(one[np.isfinite(one)]).max(initial=0.0)
        return bool(not (apart > same).any() and not (drift > 3 * chance + same).any())


def _standard_error(samples: Array) -> Array:
    """Of the mean of samples ``(n, dim)``; NaN of one."""
    if len(samples) < 2:
        return np.full(samples.shape[1], np.nan)
    with np.errstate(invalid="ignore"):
        return samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def kaplan_yorke(exponents: Array, errors: Array | float = 0.0) -> float:
    """D = j + (sum of the j largest) / |the next|, with j the most whose sum is not negative [2]_.

    Exponents are in falling order. 0 if all are negative, all of them if none is needed. A sum
    that is below zero by no more than its error is zero.
    """
    sums = np.cumsum(exponents)
    nothing = NOTHING * np.abs(exponents[np.isfinite(exponents)]).max(initial=0.0)
    n_growing = int((sums >= -np.maximum(errors, nothing)).cumprod().sum())
    if n_growing == 0:
        return 0.0
    if n_growing == len(exponents):
        return float(len(exponents))
    return float(n_growing + max(sums[n_growing - 1], 0.0) / abs(exponents[n_growing]))
