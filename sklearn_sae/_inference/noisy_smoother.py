r"""Newton steps, covariances and evidence of paths that may leave the dynamics.

With process noise, s_{t+1} = F(s_t) + w_t and w_t ~ N(0, Q), the states of all bins are latent
variables. A Newton step for them is linear in the number of bins. With d_t = F(s_t) - s_{t+1} the
defects of a path, A_t the Jacobians of F, and g_t, G_t the score and information of a bin's spikes,
what the spikes of bins t and later say of s_t is -ds' L_t ds / 2 + l_t' ds, with

    P_t = L_{t+1} - L_{t+1} R (I + R L_{t+1} R)^{-1} R L_{t+1},   R = Q^{1/2},
    L_t = G_t + A_t' P_t A_t,   l_t = g_t + A_t' (l_{t+1} - P_t (d_t + Q l_{t+1})).

Both are one recursion if states get a last element of 1: L_t then is [[L_t, -l_t], [-l_t', .]], G_t
likewise, A_t is [[A_t, d_t], [0, 1]], and the noise of the last element is zero. Forwards,

    c_t = -P_t A_t ds_t,   ds_{t+1} = A_t ds_t + Q c_t.

The costate c_t is the gradient of the log-posterior by what the dynamics add to the state, at the
end of the step: its products with derivatives of F by weights are the gradient of the evidence, as
those of an adjoint equation. With S_t the covariance of s_t and K_t = I - Q P_t,

    S_{t+1} = K_t A_t S_t A_t' K_t' + Q - Q P_t Q,

and P_t A_t S_t is the product of costate and state that the posterior expects beside that of their
means. Nothing is divided by Q, so that deterministic dynamics, Q = 0, are a case like any other. Of
a component i of w_t the spikes determine the share q_i (P_t - P_t A_t S_t A_t' P_t)_ii [MacKay,
Neural Computation 1992].

A loop over bins takes as long as its operations are many, so it does only what has to be done in
turn; the rest is done for all bins together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .safe_linalg import safe_cholesky
from .smoother import Linearisation

__all__ = ["NoisyBackward", "PathMoments", "backward_path", "path_moments", "path_step"]


class NoisyBackward(NamedTuple):
    """Result of the pass backwards along a path.

    Attributes
    ----------
    gradient, precision : Tensor of shape (n_trials, D), (n_trials, D, D)
        Of the first bin, the prior included.
    softened : Tensor of shape (n_bins - 1, n_trials, D, D)
        P_t.
    pulls : Tensor of shape (n_bins - 1, n_trials, D, D + 1)
        P_t A_t, of states with a last element of 1.
    closed : Tensor of shape (n_bins - 1, n_trials, D, D + 1)
        A_t - Q P_t A_t.
    """

    gradient: Tensor
    precision: Tensor
    softened: Tensor
    pulls: Tensor
    closed: Tensor


class PathMoments(NamedTuple):
    """Second moments of the posterior of a path.

    Attributes
    ----------
    covariances : Tensor of shape (n_bins, n_trials, D, D)
        S_t of every bin.
    closed : Tensor of shape (n_bins - 1, n_trials, D, D)
        K_t A_t: what a deviation of s_t is expected to become; K_t A_t S_t is the covariance of
        s_{t+1} with s_t.
    with_costate : Tensor of shape (n_bins - 1, n_trials, D, D)
        P_t A_t S_t.
    determined : Tensor of shape (n_bins - 1, n_trials, D)
        Diagonal of P_t - P_t A_t S_t A_t' P_t, to be multiplied by the variances of the noise.
    """

    covariances: Tensor
    closed: Tensor
    with_costate: Tensor
    determined: Tensor


def backward_path(
    linear: Linearisation, transitions: Tensor, defects: Tensor, noise: Tensor
) -> NoisyBackward:
    """Collect what all spikes say of the first bin.

    Parameters
    ----------
    linear : Linearisation
        Around the path; ``score`` and ``information`` are of all states.
    transitions : Tensor of shape (n_bins - 1, n_trials, D, D)
    defects : Tensor of shape (n_bins - 1, n_trials, D)
    noise : Tensor of shape (D,)
        Variances of the process noise, the diagonal of Q.
    """
    n_bins, n_trials, d = linear.score.shape
    of_bins = linear.score.new_zeros(n_bins, n_trials, d + 1, d + 1)
    of_bins[..., :d, :d] = linear.information
    of_bins[..., :d, d] = of_bins[..., d, :d] = -linear.score
    advance = linear.score.new_zeros(n_bins - 1, n_trials, d + 1, d + 1)
    advance[..., :d, :d], advance[..., :d, d], advance[..., d, d] = transitions, defects, 1.0

    failed: list[Tensor] = []

    def quickly(inner: Tensor) -> Tensor:
        factor, wrong = torch.linalg.cholesky_ex(inner)
        failed.append(wrong)
        return factor

    first, softened, pulls = _backward(of_bins, advance, noise, quickly)
    if (failed and torch.stack(failed).any()) or not first.isfinite().all():
        identity = torch.eye(d, dtype=noise.dtype, device=noise.device)
        first, softened, pulls = _backward(
            of_bins, advance, noise, lambda inner: safe_cholesky(inner, identity)
        )
    pulls = pulls[..., :d, :]
    return NoisyBackward(
        linear.prior_gradient - first[:, :d, d],
        linear.prior_precision + first[:, :d, :d],
        softened[..., :d, :d],
        pulls,
        advance[..., :d, :] - noise[:, None] * pulls,
    )


def _backward(
    of_bins: Tensor, advance: Tensor, noise: Tensor, factorise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    d = len(noise)
    root, identity = noise.sqrt()[:, None], torch.eye(d, dtype=noise.dtype, device=noise.device)
    both = root * root.T
    softened, pulls = torch.empty_like(advance), torch.empty_like(advance)
    later = of_bins[-1]
    backwards = advance.mT
    for t in range(len(advance) - 1, -1, -1):
        factor = factorise(torch.addcmul(identity, both, later[:, :d, :d]))
        through = torch.linalg.solve_triangular(factor, root * later[:, :d], upper=False)
        torch.baddbmm(later, through.mT, through, alpha=-1, out=softened[t])
        torch.bmm(softened[t], advance[t], out=pulls[t])
        later = torch.baddbmm(of_bins[t], backwards[t], pulls[t])
        later = torch.lerp(later, later.mT, 0.5)
    return later, softened, pulls


def path_step(linear: Linearisation, found: NoisyBackward) -> tuple[Tensor, Tensor]:
    """Newton step of a path ``(n_bins, n_trials, D)``, and costates ``(n_bins - 1, n_trials, D)``.

    The noise at the end of the step is the costate times its variance.
    """
    factor = safe_cholesky(found.precision, linear.prior_precision)
    n_bins, (n_trials, d) = len(linear.score), found.gradient.shape
    steps = found.gradient.new_ones(n_bins, n_trials, d + 1, 1)
    steps[0, :, :d] = torch.cholesky_solve(found.gradient[..., None], factor)
    for before, after, closed in zip(steps[:-1], steps[1:, :, :d], found.closed, strict=True):
        after.copy_(closed @ before)
    costates = -(found.pulls @ steps[:-1])[..., 0]
    return steps[:, :, :d, 0], costates


def path_moments(linear: Linearisation, found: NoisyBackward, noise: Tensor) -> PathMoments:
    """Covariances of all bins, and how much of the noise is determined."""
    d, n_bins = len(noise), len(linear.score)
    closed, pulls = found.closed[..., :d], found.pulls[..., :d]
    left_open = torch.diag(noise) - noise[:, None] * found.softened * noise
    covariances = left_open.new_empty(n_bins, *found.precision.shape)
    factor = safe_cholesky(found.precision, linear.prior_precision)
    covariances[0] = torch.cholesky_inverse(factor)
    for t, (through, back) in enumerate(zip(closed, closed.mT, strict=True)):
        torch.baddbmm(left_open[t], through @ covariances[t], back, out=covariances[t + 1])
    covariances = (covariances + covariances.mT) / 2
    with_costate = pulls @ covariances[:-1]
    of_costates = found.softened.diagonal(dim1=2, dim2=3) - (with_costate * pulls).sum(3)
    return PathMoments(covariances, closed, with_costate, of_costates)
