"""Initial conditions of unseen trials: a start, then Gauss-Newton on the log-posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._batches import Batch
from ._likelihood import log_likelihood
from ._model import SequentialAutoencoder

__all__ = ["Prior", "best_start", "refine", "trials_at_once"]

#: Numbers a refinement may hold at a time (256 MB in float32).
MOST_VALUES = 64_000_000
MOST_CANDIDATES = 1500
MOST_TRIALS = 512


@dataclass(frozen=True)
class Prior:
    """Gaussian over initial conditions, as mean and inverse covariance."""

    mean: Tensor
    precision: Tensor

    @classmethod
    def from_samples(cls, z0: Tensor) -> Prior:
        """Fit to ``z0`` ``(n_trials, n_latents)``; few trials shrink it to independent latents."""
        n_trials, n_latents = z0.shape
        mean = z0.mean(0)
        deviation = z0 - mean
        covariance = deviation.T @ deviation / n_trials
        diagonal = torch.diag(covariance.diagonal().clamp(min=1e-3))
        trust = n_trials / (n_trials + n_latents + 1)
        return cls(mean, torch.linalg.inv(trust * covariance + (1 - trust) * diagonal))

    def log_density(self, z0: Tensor) -> Tensor:
        """Up to a constant, of columns ``(n_latents, n_trials)``."""
        deviation = z0 - self.mean[:, None]
        return -0.5 * (deviation * (self.precision @ deviation)).sum(0)

    def gradient(self, z0: Tensor) -> Tensor:
        return -self.precision @ (z0 - self.mean[:, None])


def best_start(model: SequentialAutoencoder, prior: Prior, batch: Batch, bank: Tensor) -> Tensor:
    """For every trial, the initial condition of the ``bank`` whose rates fit it best.

    ``bank`` is ``(n_latents, n_candidates)``; of a large one, ``MOST_CANDIDATES`` evenly spaced
    ones are tried.
    """
    bank = bank[:, :: -(-bank.shape[1] // MOST_CANDIDATES)]
    n_bins, n_neurons, n_trials = batch.counts.shape
    counts = batch.counts.reshape(-1, n_trials).T
    observed = None if batch.mask is None else batch.mask.reshape(-1, n_trials).T.to(counts.dtype)
    at_once = max(1, MOST_VALUES // (4 * n_bins * n_neurons))
    fits = []
    for candidates in bank.split(at_once, dim=1):
        # Finite, so that nothing of an entry is left once it is multiplied by a mask of zero.
        output = model.output(candidates, n_bins).clamp(-50, 50).nan_to_num(nan=50)
        a, b = (terms.flatten(0, 1) for terms in model.likelihood.natural(output))
        expected = b.sum(0) if observed is None else observed @ b
        fits.append(counts @ a - expected + prior.log_density(candidates))
    return bank[:, torch.cat(fits, dim=1).argmax(1)]


def trials_at_once(model: SequentialAutoencoder, n_bins: int) -> int:
    """How many trials a refinement can take together within ``MOST_VALUES``."""
    n_neurons, n_latents = model.readout.weight.shape[0], model.readout.weight.shape[1] - 1
    widest = max(len(weight) for weight in model.dynamics.parameters())
    per_bin = n_latents * (4 * n_latents + 2 * widest) + 6 * n_neurons
    return max(1, min(MOST_TRIALS, MOST_VALUES // (n_bins * per_bin)))


def refine(
    model: SequentialAutoencoder,
    prior: Prior,
    batch: Batch,
    z0: Tensor,
    *,
    max_iter: int,
    tol: float = 1e-3,
) -> Tensor:
    """Climb every trial's log-posterior from ``z0`` ``(n_latents, n_trials)``.

    Each iteration solves ``(F + damping * diag(F)) step = gradient`` with the Fisher information F
    of all bins under forward sensitivities dz_t/dz_0. A trial's damping falls when its step helped
    and rises when it did not (Levenberg 1944, Marquardt 1963); no trial ever gets worse. A trial
    is done when a step gains less than ``tol`` nats.
    """
    n_bins, n_trials = len(batch.counts), z0.shape[1]
    damping = torch.full((n_trials,), 1e-2, dtype=z0.dtype, device=z0.device)

    def posterior(z0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = model.dynamics.rollout(z0, n_bins)
        output = model.readout(latents)
        fit = log_likelihood(model.likelihood, output, batch.counts, batch.mask)
        value = fit + prior.log_density(z0)
        return value.nan_to_num(nan=-torch.inf), latents, output

    value, latents, output = posterior(z0)
    active = torch.ones_like(damping, dtype=torch.bool)
    for _ in range(max_iter):
        gradient, fisher = gradient_and_fisher(model, prior, batch, z0, latents, output)
        ridge = damping[:, None] * fisher.diagonal(dim1=1, dim2=2)
        # solve_ex, unlike solve, gives NaN for a singular trial instead of an error for all.
        step = torch.linalg.solve_ex(fisher + torch.diag_embed(ridge), gradient)[0]
        proposal = z0 + step.T.nan_to_num()
        new_value, new_latents, new_output = posterior(proposal)
        gain = new_value - value
        better = active & (gain > 0)
        z0 = torch.where(better, proposal, z0)
        value = torch.where(better, new_value, value)
        latents = torch.where(better, new_latents, latents)
        output = torch.where(better, new_output, output)
        # Each trial stops on its own account, so that its result does not depend on its batch.
        active = active & ~(better & (gain < tol)) & (damping < 1e4)
        if not bool(active.any()):
            break
        damping = torch.where(better, damping / 5, damping * 8).clamp(min=1e-7)
    return z0


def gradient_and_fisher(
    model: SequentialAutoencoder,
    prior: Prior,
    batch: Batch,
    z0: Tensor,
    latents: Tensor,
    output: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of the log-posterior by the initial condition: ``(n_trials, D)`` and ``(n_trials, D, D)``."""
    n_bins, n_latents, n_trials = latents.shape
    score, information = model.likelihood.score_and_information(output, batch.counts)
    if batch.mask is not None:
        score = score.masked_fill(~batch.mask, 0.0)
        information = information.masked_fill(~batch.mask, 0.0)
    kernel = model.readout.weight[:, :-1]
    pairs = (kernel[:, :, None] * kernel[:, None, :]).flatten(1)
    score = (kernel.T @ score).permute(2, 0, 1)
    information = (pairs.T @ information).permute(2, 0, 1).unflatten(2, (n_latents, n_latents))
    # They may overflow after a trial's end, where score and information are zero.
    sensitivity = sensitivities(model, latents).nan_to_num(0.0, 0.0, 0.0)
    through = sensitivity.transpose(2, 3)
    gradient = (through @ score[..., None]).sum(1)[..., 0] + prior.gradient(z0).T
    fisher = (through @ information @ sensitivity).sum(1) + prior.precision
    return gradient, fisher


def sensitivities(model: SequentialAutoencoder, latents: Tensor) -> Tensor:
    """dz_t/dz_0 along given latents: ``(n_trials, n_bins, n_latents, n_latents)``."""
    n_bins, n_latents, n_trials = latents.shape
    columns = latents[:-1].permute(1, 0, 2).flatten(1)
    jacobians = model.dynamics.step_jacobian(columns).unflatten(2, (n_bins - 1, n_trials))
    jacobians = jacobians.permute(3, 2, 0, 1).contiguous()
    identity = torch.eye(n_latents, dtype=latents.dtype, device=latents.device)
    chain = [identity.expand(n_trials, -1, -1)]
    for t in range(n_bins - 1):
        chain.append(jacobians[:, t] @ chain[-1])
    return torch.stack(chain, dim=1)
