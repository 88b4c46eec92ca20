"""Which learned fixed point is which true one, and how well it was learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.linear_model import LinearRegression

from ..datasets import System
from ._fixed_points import FixedPoints, find_fixed_points
from ._state_space import Array, as_paired_rows

__all__ = ["FixedPointMatch", "fit_alignment", "match_fixed_points"]


@dataclass(frozen=True, repr=False)
class FixedPointMatch:
    """What `match_fixed_points` returns; arrays have one entry for each true point.

    Attributes
    ----------
    found, true : FixedPoints
        The points compared.
    partner : ndarray of int, of shape (n_true,)
        Position in ``found`` of the point matched to each true one, -1 where there is none.
    points : ndarray of shape (n_true, dim)
        The partners in the true state space; NaN where there is none.
    distances : ndarray of shape (n_true,)
        Distance between partners, in units of the radius of the true attractor; NaN without one.
    eigenvalue_errors : ndarray of shape (n_true, dim)
        Of each true mode, fastest growing first: |learned - true| / |true| of the growth
        rates per bin (``exponents``), each true mode with a learned one of its own.
    leading_errors : ndarray of shape (n_true,)
        The same for the mode that grows fastest, compared with the learned one that does.
    extra : ndarray of int
        Positions in ``found`` of points without a partner.
    """

    found: FixedPoints
    true: FixedPoints
    partner: NDArray[np.integer]
    points: Array
    distances: Array
    eigenvalue_errors: Array
    leading_errors: Array
    extra: NDArray[np.integer]

    def __repr__(self) -> str:
        """A table, one line for each true point."""
        n_matched = int((self.partner >= 0).sum())
        lines = [
            f"{n_matched} of {len(self.true)} true points matched; {len(self.extra)} found besides",
            "  true kind         found kind        distance (radii)  leading eigenvalue's error",
        ]
        for i, j in enumerate(self.partner):
            kind = self.found.kinds[j] if j >= 0 else "-"
            lines.append(
                f"  {self.true.kinds[i]:<18}{kind:<18}{self.distances[i]:>16.3f}"
                f"{self.leading_errors[i]:>28.3f}"
            )
        return "\n".join(lines)


def match_fixed_points(
    found: FixedPoints,
    true: FixedPoints | System,
    alignment: Any = None,
    *,
    max_distance: float = 1.0,
    bin_width: float | None = None,
) -> FixedPointMatch:
    """Pair learned fixed points with true ones, each with at most one.

    Learned points are mapped to the true state space; the pairs are those with the least sum of
    distances (Hungarian method [1]_). Eigenvalues need no map: an affine change of coordinates
    leaves them as they are.

    Parameters
    ----------
    found : FixedPoints
        Of the fitted estimator, from `find_fixed_points`. Slow points take part too.
    true : FixedPoints or System
        Of the true system, from `find_fixed_points`; or the system, whose ``fixed_points()`` are
        taken.
    alignment : tuple (latents, states), regressor or None, default=None
        Tuple: latents and true states of the same trials and bins, arrays or lists of trials,
        between which an affine map is fitted by least squares; bins with NaN in either are left
        out of both. Regressor: fitted already, with ``predict``. None: both are in one space.
    max_distance : float, default=1.0
        Points farther apart are not matched, in radii of the true attractor.
    bin_width : float, default=None
        System time in a bin if ``true`` is a System, as `make_chaotic_spikes` returns it; None is
        ``period / points_per_period``.

    Returns
    -------
    FixedPointMatch
        Partners, distances in radii, errors of eigenvalues.

    Raises
    ------
    TypeError
        If ``found`` or ``true`` is not what it must be.
    ValueError
        If latents and states do not match, or the mapped points have not the true dimension.

    References
    ----------
    .. [1] Kuhn, H. W. (1955). The Hungarian method for the assignment problem. Naval Research
       Logistics Quarterly 2, 83-97.

    Examples
    --------
    >>> from sklearn_sae.analysis import find_fixed_points, match_fixed_points
    >>> from sklearn_sae.datasets import Arneodo
    >>> system = Arneodo()
    >>> found = find_fixed_points(system, system.trajectory(700), random_state=0)
    >>> match = match_fixed_points(found, system)
    >>> bool(match.distances.max() < 1e-8)
    True
    """
    if not isinstance(found, FixedPoints):
        raise TypeError(f"found must be what find_fixed_points returned, got {found!r}.")
    if isinstance(true, System):
        true = _of_system(true, bin_width)
    elif not isinstance(true, FixedPoints):
        raise TypeError(
            "true must be a system of sklearn_sae.datasets or what find_fixed_points returned for "
            f"it, got {true!r}."
        )
    points = found.points
    if alignment is not None and len(points):
        if isinstance(alignment, tuple):
            alignment = fit_alignment(*alignment)
        points = np.asarray(alignment.predict(points), dtype=float)
    if len(points) and points.shape[1] != true.points.shape[1]:
        raise ValueError(
            f"The learned points have {points.shape[1]} dimensions, the true ones "
            f"{true.points.shape[1]}. Pass alignment=(latents, true_states)."
        )
    partner = _assign(points, true.points, max_distance * true.radius)
    dim = true.points.shape[1]
    matched = np.full((len(true), dim), np.nan)
    errors, leading = np.full((len(true), dim), np.nan), np.full(len(true), np.nan)
    for i, j in enumerate(partner):
        if j >= 0:
            matched[i] = points[j]
            errors[i] = _mode_errors(found.exponents[j], true.exponents[i])
            leading[i] = _relative(found.exponents[j, :1], true.exponents[i, :1])[0, 0]
    return FixedPointMatch(
        found=found,
        true=true,
        partner=partner,
        points=matched,
        distances=np.linalg.norm(matched - true.points, axis=1) / true.radius,
        eigenvalue_errors=errors,
        leading_errors=leading,
        extra=np.setdiff1d(np.arange(len(found)), partner),
    )


def fit_alignment(latents: Any, states: Any) -> LinearRegression:
    """Affine map from latents to true states, by least squares."""
    names = ("latents of alignment", "its true states")
    return LinearRegression().fit(*as_paired_rows(names, latents, states))


def _of_system(system: System, bin_width: float | None) -> FixedPoints:
    # Started from the known points themselves, so that none is missed.
    states = system.trajectory(2000)
    known = system.fixed_points()
    found = find_fixed_points(
        system,
        np.concatenate([states, known]),
        n_starts=len(states) + len(known),
        noise=0.0,
        slow_tol=0.0,
        bin_width=bin_width,
        random_state=0,
    )
    near = cdist(found.points, known).min(axis=1) < 1e-6 * found.radius
    return found[near]


def _assign(points: Array, true: Array, max_distance: float) -> NDArray[np.integer]:
    partner = np.full(len(true), -1)
    if not len(points) or not len(true):
        return partner
    distances = cdist(true, points)
    # What is too far costs the same, wherever it is: it must not pull a near pair apart.
    far = distances > max_distance
    rows, columns = linear_sum_assignment(np.where(far, 1e6 * max_distance, distances))
    partner[rows] = np.where(far[rows, columns], -1, columns)
    return partner


def _mode_errors(found: NDArray, true: NDArray) -> Array:
    errors = _relative(found, true)
    rows, columns = linear_sum_assignment(errors)
    matched = np.full(len(true), np.nan)
    matched[rows] = errors[rows, columns]
    return matched


def _relative(found: NDArray, true: NDArray) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.abs(found[None, :] - true[:, None]) / np.abs(true[:, None])
    return np.nan_to_num(errors, nan=1e9, posinf=1e9)
