"""Look inside dynamics: fixed points, their stability, Lyapunov exponents.

Every function takes a fitted `NODESAE` or `RNNSAE`, a true system of `sklearn_sae.datasets`, or any
function of states, so that what was learned and what is true are looked at in the same way.
"""

from ._fixed_points import FixedPoints, find_fixed_points
from ._lyapunov import LyapunovSpectrum, lyapunov_spectrum
from ._matching import FixedPointMatch, match_fixed_points

__all__ = [
    "FixedPointMatch",
    "FixedPoints",
    "LyapunovSpectrum",
    "find_fixed_points",
    "lyapunov_spectrum",
    "match_fixed_points",
]
