r"""Newton steps and covariances of a trial's latent variables, linear in the number of bins.

Linearised around given latent variables, a model is ds_{t+1} = A_t ds_t + E e_{t+1}. Here s = (z,
u) are the latents and inferred inputs of a bin, E picks out the inputs, and the innovations e are
standard normal in units of ``innovation_std``. The log-likelihood of the spikes of bins t and later
as a function of s_t is quadratic, -ds' L_t ds / 2 + l_t' ds. It is computed backwards in time by
maximising over each innovation given the state:

    M = I + E' L_{t+1} E,   e_{t+1} = K ds_t + k,   K = -M^-1 E' L_{t+1} A_t,
    L_t = G_t + A_t' (L_{t+1} - L_{t+1} E M^-1 E' L_{t+1}) A_t,

with G_t the Fisher information of the bin's spikes, and likewise l_t. Together with the prior, L_0
is the precision of s_0. One pass forwards then gives the Newton step, or, from M^-1 as the
covariance of e_{t+1} given s_t, the covariance of every bin. This is the recursion of the
linear-quadratic regulator, and its result is that of a Kalman smoother; without inputs, L_0 is the
Fisher information of the initial condition plus the prior's precision.

The functions work on arrays only: a ``Linearisation`` describes the model near a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .safe_linalg import safe_cholesky

__all__ = ["Backward", "Linearisation", "backward", "covariances", "newton_step"]


@dataclass(frozen=True)
class Linearisation:
    """Linearised model: first order in the dynamics, second order in the likelihood.

    Attributes
    ----------
    transitions : list of Tensor of shape (n_trials, n_states, n_states)
        Transition matrices A_t of all bins but the last.
    score, information : Tensor of shape (n_bins, n_trials, n_latents[, n_latents])
        Gradient of each bin's log-likelihood by the latents, and its Fisher information.
    prior_gradient, prior_precision : Tensor of shape (n_trials, n_states), (n_states, n_states)
        Gradient and precision of the prior of the first bin's state.
    innovations : Tensor of shape (n_bins - 1, n_trials, n_inputs) or None
        Innovations to expand around, in units of ``innovation_std``; None without inferred inputs.
    innovation_std : Tensor of shape (n_inputs,) or None
        Prior standard deviations of the innovations.
    """

    transitions: list[Tensor]
    score: Tensor
    information: Tensor
    prior_gradient: Tensor
    prior_precision: Tensor
    innovations: Tensor | None = None
    innovation_std: Tensor | None = None

    @property
    def n_latents(self) -> int:
        return self.score.shape[-1]


class Gain(NamedTuple):
    """Best innovation after a bin given its state, ``feedback @ ds + offset``, in units of inputs.

    ``feedback`` is ``(n_trials, n_inputs, n_states)``, ``offset`` ``(n_trials, n_inputs)``, and the
    ``covariance`` given the state ``(n_trials, n_inputs, n_inputs)``.
    """

    feedback: Tensor
    offset: Tensor
    covariance: Tensor


class Backward(NamedTuple):
    """Result of the backward pass.

    ``gradient`` ``(n_trials, n_states)`` and ``precision`` ``(n_trials, n_states, n_states)`` are
    those of the first bin's state, maximised over all later innovations; ``gains`` has one element
    for each innovation that the spikes inform.
    """

    gradient: Tensor
    precision: Tensor
    gains: list[Gain]


def backward(linear: Linearisation, damping: Tensor) -> Backward:
    """Compute gradient and precision of the first bin's state, from all spikes and the prior.

    The prior precision of every innovation is multiplied by 1 + ``damping`` ``(n_trials,)``
    (Levenberg, Marquardt).
    """
    n_latents = linear.n_latents
    n_trials, n_states = linear.prior_gradient.shape
    gradient = linear.score.new_zeros(n_trials, n_states)
    precision = linear.score.new_zeros(n_trials, n_states, n_states)
    n_bins = len(linear.score)
    gains = []
    for t in range(n_bins - 1, -1, -1):
        if t < n_bins - 1:
            backwards = linear.transitions[t].transpose(1, 2)
            # The input of the last bin moves nothing, so spikes do not inform it.
            if linear.innovations is not None and t < n_bins - 2:
                gain, gradient, precision = _best_innovation(
                    linear, t, gradient, precision, damping
                )
                gains.append(gain)
            gradient = _times(backwards, gradient)
            precision = torch.bmm(torch.bmm(backwards, precision), linear.transitions[t])
            precision = precision.add(precision.transpose(1, 2)).mul_(0.5)
        gradient[:, :n_latents].add_(linear.score[t])
        precision[:, :n_latents, :n_latents].add_(linear.information[t])
    return Backward(
        gradient + linear.prior_gradient, precision + linear.prior_precision, gains[::-1]
    )


def _best_innovation(
    linear: Linearisation, t: int, gradient: Tensor, precision: Tensor, damping: Tensor
) -> tuple[Gain, Tensor, Tensor]:
    """Maximise over the innovation after bin ``t``, given the state of that bin."""
    std, n_latents = linear.innovation_std, linear.n_latents
    assert std is not None and linear.innovations is not None
    rows = std[:, None] * precision[:, n_latents:]
    identity = torch.eye(len(std), dtype=std.dtype, device=std.device)
    inner = rows[:, :, n_latents:] * std + (1 + damping)[:, None, None] * identity
    factor = safe_cholesky(inner, identity)
    pull = std * gradient[:, n_latents:] - linear.innovations[t + 1]
    solved = torch.cholesky_solve(torch.cat([rows, pull[..., None]], dim=2), factor)
    feedback, offset = -solved[:, :, :-1], solved[:, :, -1]
    through = rows.transpose(1, 2)
    gain = Gain(
        std[:, None] * (feedback @ linear.transitions[t]),
        std * offset,
        std[:, None] * torch.cholesky_inverse(factor) * std,
    )
    return gain, gradient - _times(through, offset), precision + through @ feedback


def newton_step(linear: Linearisation, found: Backward, damping: Tensor) -> Tensor:
    """Compute the Newton step ``(n_variables, n_trials)`` of all latent variables.

    It is NaN for a trial whose precision is singular. The diagonal of the precision of the first
    state is multiplied by 1 + ``damping`` ``(n_trials,)``.
    """
    n_latents = linear.n_latents
    ridge = torch.diag_embed(damping[:, None] * found.precision.diagonal(dim1=1, dim2=2))
    # solve_ex, unlike solve, gives NaN for a singular trial instead of an error for all.
    state = torch.linalg.solve_ex(found.precision + ridge, found.gradient)[0]
    if linear.innovations is None:
        return state.T
    steps = [state.T]
    for transition, gain in zip(linear.transitions, found.gains, strict=False):
        innovation = _times(gain.feedback, state) + gain.offset
        state = _times(transition, state)
        state[:, n_latents:] += innovation
        steps.append(state[:, n_latents:].T)
    return torch.cat(steps)


def covariances(linear: Linearisation, found: Backward) -> tuple[Tensor, Tensor | None]:
    """Compute covariances of the states of all bins, and those with the state of the bin before.

    Shapes are ``(n_trials, n_bins, n_states, n_states)`` and ``(n_trials, n_bins - 1, n_states,
    n_states)``; the second is None if there is only one bin.
    """
    n_latents = linear.n_latents
    # The precision is at least that of the prior, whatever rounding or overflow made of it.
    factor = safe_cholesky(found.precision, linear.prior_precision)
    covariance = torch.cholesky_inverse(factor)
    of_bins, with_next = [covariance], []
    for t, transition in enumerate(linear.transitions):
        closed = transition
        if t < len(found.gains):
            closed = transition.clone()
            closed[:, n_latents:] += found.gains[t].feedback
        with_next.append(closed @ covariance)
        covariance = with_next[-1] @ closed.transpose(1, 2)
        if t < len(found.gains):
            covariance[:, n_latents:, n_latents:] += found.gains[t].covariance
        elif linear.innovation_std is not None:
            covariance[:, n_latents:, n_latents:] += torch.diag(linear.innovation_std**2)
        of_bins.append(covariance)
    return torch.stack(of_bins, dim=1), torch.stack(with_next, dim=1) if with_next else None


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.bmm(matrices, vectors[:, :, None])[:, :, 0]
