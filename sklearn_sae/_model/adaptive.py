"""Embedded Runge-Kutta pairs as one-bin maps, with step sizes of each trial's own.

If a solver controlled the error of a batch as a whole, or stepped over the end of a bin, the next
state would depend on other trials and on the past. Here every bin starts with one step over the
whole bin, which is halved, trial by trial, until that trial's error is tolerated, and doubled where
the error is far below. Step sizes are powers of two: close states take the same steps, and the
derivative of the map is that of its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .runge_kutta import Field, Tableau, add_changes, explicit_step, stage_changes

__all__ = ["EMBEDDED", "Embedded", "replay", "take_bin"]

#: Shortest step in bins, taken whatever its error: dynamics that need shorter ones are too stiff.
SHORTEST = 2.0**-10


class Embedded(NamedTuple):
    """A tableau, and the weights of its stages in the estimate of a step's error.

    If ``error`` has one weight more than there are stages, the last belongs to the velocity at the
    end of the step. The estimate scales as the step's size to the power of ``order``.
    """

    tableau: Tableau
    error: tuple[float, ...]
    order: int


# Prince & Dormand (1981), High order embedded Runge-Kutta formulae, J. Comput. Appl. Math. 7.
# fmt: off
DOPRI8_A = (
    (),
    (1 / 18,),
    (1 / 48, 1 / 16),
    (1 / 32, 0, 3 / 32),
    (5 / 16, 0, -75 / 64, 75 / 64),
    (3 / 80, 0, 0, 3 / 16, 3 / 20),
    (29443841 / 614563906, 0, 0, 77736538 / 692538347, -28693883 / 1125000000,
     23124283 / 1800000000),
    (16016141 / 946692911, 0, 0, 61564180 / 158732637, 22789713 / 633445777,
     545815736 / 2771057229, -180193667 / 1043307555),
    (39632708 / 573591083, 0, 0, -433636366 / 683701615, -421739975 / 2616292301,
     100302831 / 723423059, 790204164 / 839813087, 800635310 / 3783071287),
    (246121993 / 1340847787, 0, 0, -37695042795 / 15268766246, -309121744 / 1061227803,
     -12992083 / 490766935, 6005943493 / 2108947869, 393006217 / 1396673457,
     123872331 / 1001029789),
    (-1028468189 / 846180014, 0, 0, 8478235783 / 508512852, 1311729495 / 1432422823,
     -10304129995 / 1701304382, -48777925059 / 3047939560, 15336726248 / 1032824649,
     -45442868181 / 3398467696, 3065993473 / 597172653),
    (185892177 / 718116043, 0, 0, -3185094517 / 667107341, -477755414 / 1098053517,
     -703635378 / 230739211, 5731566787 / 1027545527, 5232866602 / 850066563,
     -4093664535 / 808688257, 3962137247 / 1805957418, 65686358 / 487910083),
    (403863854 / 491063109, 0, 0, -5068492393 / 434740067, -411421997 / 543043805,
     652783627 / 914296604, 11173962825 / 925320556, -13158990841 / 6184727034,
     3936647629 / 1978049680, -160528059 / 685178525, 248638103 / 1413531060, 0),
)
DOPRI8_B = (
    14005451 / 335480064, 0, 0, 0, 0, -59238493 / 1068277825, 181606767 / 758867731,
    561292985 / 797845732, -1041891430 / 1371343529, 760417239 / 1151165299,
    118820643 / 751138087, -528747749 / 2220607170, 1 / 4,
)
DOPRI8_LOWER = (
    13451932 / 455176623, 0, 0, 0, 0, -808719846 / 976000145, 1757004468 / 5645159321,
    656045339 / 265891186, -3867574721 / 1518517206, 465885868 / 322736535,
    53011238 / 667516719, 2 / 45, 0,
)
# fmt: on
DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DOPRI5_LOWER = (1951 / 21600, 0.0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60)
BOSH3_B = (2 / 9, 1 / 3, 4 / 9)
BOSH3_LOWER = (7 / 24, 1 / 4, 1 / 3, 1 / 8)


def _difference(b: Sequence[float], lower: Sequence[float]) -> tuple[float, ...]:
    """Weights of the error estimate: the step's own minus those of the lower-order formula."""
    padded = (*b, *(0.0,) * (len(lower) - len(b)))
    return tuple(one - other for one, other in zip(padded, lower, strict=True))


# As in torchdiffeq.
EMBEDDED = {
    "dopri5": Embedded(
        Tableau(
            (
                (),
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            ),
            DOPRI5_B,
        ),
        _difference(DOPRI5_B, DOPRI5_LOWER),
        order=5,
    ),
    "dopri8": Embedded(
        Tableau(DOPRI8_A, DOPRI8_B), _difference(DOPRI8_B, DOPRI8_LOWER), order=8
    ),
    "bosh3": Embedded(
        Tableau(((), (1 / 2,), (0.0, 3 / 4)), BOSH3_B), _difference(BOSH3_B, BOSH3_LOWER), order=3
    ),
    "fehlberg2": Embedded(
        Tableau(((), (1 / 2,), (1 / 256, 255 / 256)), (1 / 512, 255 / 256, 1 / 512)),
        (-1 / 512, 0.0, 1 / 512),
        order=2,
    ),
    "adaptive_heun": Embedded(
        Tableau(((), (1.0,)), (1 / 2, 1 / 2)), (1 / 2, -1 / 2), order=2
    ),
}  # fmt: skip


def take_bin(
    field: Field, z: Tensor, method: Embedded, rtol: float, atol: float
) -> tuple[Tensor, list[Tensor]]:
    """Advance states ``(n_latents, n_trials)`` by one unit of time.

    Returns the new states and a list of step sizes ``(n_trials,)``, which are 0 for trials that
    took no step then: they had arrived, or their error was too large. An error is tolerated if its
    root mean square over the latents, each divided by ``atol + rtol * |latent|``, is at most 1.
    """
    # A state is not known to more digits than it has.
    rtol = max(rtol, torch.finfo(z.dtype).eps)
    sizes: list[Tensor] = []
    left = z.new_ones(z.shape[1])
    size = left
    while bool((left > 0).any()):
        changes = stage_changes(field, z, method.tableau, size)
        after = add_changes(z, method.tableau.b, changes)
        with torch.no_grad():
            scale = atol + rtol * torch.maximum(z.abs(), after.abs())
            ratio = (_error(field, after, method, changes, size) / scale).square().mean(dim=0)
            ratio = ratio.sqrt().nan_to_num(nan=torch.inf)
        # From where a state is not finite, no step is short enough.
        taken = (ratio <= 1) | (size <= SHORTEST) | ~_is_finite(z)
        step = size * taken
        if bool(step.any()):
            # A step that is not taken may lead to infinity, and its gradient then is NaN: what is
            # differentiated is without it.
            z = after if bool(taken.all()) else replay(field, z, method, [step])
            sizes.append(step)
            left = left - step
        longer = (ratio <= 0.5 ** (method.order + 1)) & (left.remainder(2 * size) == 0)
        size = torch.where(taken, torch.where(longer, 2 * size, size), size / 2)
        size = torch.where(_is_finite(z), torch.minimum(size, left), left)
    return z, sizes


def replay(field: Field, z: Tensor, method: Embedded, sizes: list[Tensor]) -> Tensor:
    """Advance states ``(n_latents, n_trials)`` by steps of the sizes that ``take_bin`` found."""
    for size in sizes:
        z = explicit_step(field, z, method.tableau, size)
    return z


def _error(
    field: Field, after: Tensor, method: Embedded, changes: list[Tensor], size: Tensor
) -> Tensor:
    if len(method.error) > len(changes):
        changes = [*changes, size * field(after)]
    return add_changes(torch.zeros_like(after), method.error, changes)


def _is_finite(z: Tensor) -> Tensor:
    return z.isfinite().all(dim=0)
