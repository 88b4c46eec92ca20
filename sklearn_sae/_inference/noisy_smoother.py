r"""Newton steps, covariances and evidence of paths that may leave the dynamics.

With process noise, z_{t+1} = f(z_t) + w_t and w_t ~ N(0, Q), the latents of all bins are latent
variables. A Newton step for them is linear in the number of bins. With d_t = f(z_t) - z_{t+1} the
defects of a path, A_t the Jacobians of f, and g_t, G_t the score and information of a bin's spikes,
what the spikes of bins t and later say of z_t is -dz' L_t dz / 2 + l_t' dz, with

    P_t = L_{t+1} - L_{t+1} R (I + R L_{t+1} R)^{-1} R L_{t+1},   R = Q^{1/2},
    L_t = G_t + A_t' P_t A_t,   l_t = g_t + A_t' (l_{t+1} - P_t (d_t + Q l_{t+1})).

Forwards, with u_t = d_t + A_t dz_t and b_t = l_{t+1} - L_{t+1} u_t,

    dz_{t+1} = u_t + Q (b_t - P_t Q b_t),

and with S_t the covariance of z_t and K_t = I - Q P_t,

    S_{t+1} = K_t A_t S_t A_t' K_t' + Q - Q P_t Q.

This is the linear-quadratic regulator's recursion again, exact at Q = 0 as well, because it needs
no inverse of Q. Of the D components of w_t the spikes determine tr(P_t Q) - tr(P_t A_t S_t A_t' P_t
Q) [MacKay, Neural Computation 1992].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .safe_linalg import safe_cholesky
from .smoother import Linearisation

__all__ = ["NoisyBackward", "backward_path", "path_covariances", "path_step"]


class NoisyBackward(NamedTuple):
    """Result of the pass backwards along a path.

    ``gradient`` ``(n_trials, D)`` and ``precision`` ``(n_trials, D, D)`` are of the first bin;
    ``later`` holds l_{t+1}, L_{t+1} and P_t of every bin but the last.
    """

    gradient: Tensor
    precision: Tensor
    later: list[tuple[Tensor, Tensor, Tensor]]


def backward_path(linear: Linearisation, defects: Tensor, noise: Tensor) -> NoisyBackward:
    """Collect what all spikes say of the first bin.

    Parameters
    ----------
    linear : Linearisation
        Around the path, without inferred inputs.
    defects : Tensor of shape (n_bins - 1, n_trials, n_latents)
    noise : Tensor of shape (n_latents,)
        Variances of the process noise, the diagonal of Q.
    """
    root = noise.sqrt()
    identity = torch.eye(len(noise), dtype=noise.dtype, device=noise.device)
    gradient, precision = linear.score[-1], linear.information[-1]
    later = []
    for t in range(len(defects) - 1, -1, -1):
        transition, backwards = linear.transitions[t], linear.transitions[t].mT
        factor = safe_cholesky(identity + root[:, None] * precision * root, identity)
        through = torch.linalg.solve_triangular(factor, root[:, None] * precision, upper=False)
        softened = precision - through.mT @ through
        later.append((gradient, precision, softened))
        pulled = gradient - _times(softened, defects[t] + noise * gradient)
        gradient = linear.score[t] + _times(backwards, pulled)
        precision = linear.information[t] + backwards @ softened @ transition
        precision = (precision + precision.mT) / 2
    return NoisyBackward(
        gradient + linear.prior_gradient, precision + linear.prior_precision, later[::-1]
    )


def path_step(
    linear: Linearisation, found: NoisyBackward, defects: Tensor, noise: Tensor
) -> Tensor:
    """Newton step of a path, ``(n_bins, n_trials, n_latents)``."""
    factor = safe_cholesky(found.precision, linear.prior_precision)
    steps = [torch.cholesky_solve(found.gradient[..., None], factor)[..., 0]]
    for t, (gradient, precision, softened) in enumerate(found.later):
        ahead = defects[t] + _times(linear.transitions[t], steps[-1])
        pull = gradient - _times(precision, ahead)
        steps.append(ahead + noise * (pull - _times(softened, noise * pull)))
    return torch.stack(steps)


def path_covariances(
    linear: Linearisation, found: NoisyBackward, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Covariances of all bins, and how much of the noise is determined.

    Of shapes ``(n_trials, n_bins, n_latents, n_latents)`` and ``(n_bins - 1, n_trials)``.
    """
    identity = torch.eye(len(noise), dtype=noise.dtype, device=noise.device)
    covariance = torch.cholesky_inverse(safe_cholesky(found.precision, linear.prior_precision))
    of_bins, determined = [covariance], []
    for transition, (_, _, softened) in zip(linear.transitions, found.later, strict=True):
        ahead = transition @ covariance @ transition.mT
        diagonal = (softened - softened @ ahead @ softened).diagonal(dim1=1, dim2=2)
        determined.append((diagonal * noise).sum(1))
        gain = identity - noise[:, None] * softened
        covariance = gain @ ahead @ gain.mT
        covariance = covariance + torch.diag(noise) - noise[:, None] * softened * noise
        of_bins.append(covariance)
    none = found.gradient.new_zeros(0, len(found.gradient))
    return torch.stack(of_bins, dim=1), torch.stack(determined) if determined else none


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[..., None])[..., 0]
