"""Candidates for the start of inference: initial conditions of the trials that fit learned."""

from __future__ import annotations

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .data_term import log_likelihood, natural
from .memory import most_values
from .prior import Prior

__all__ = ["MOST_CANDIDATES", "best_start", "cover"]

MOST_CANDIDATES = 1500
MOST_CANDIDATES_UNDER_INPUTS = 128
#: Candidates are chosen from at most this many times as many initial conditions.
MOST_COVERED = 16


def cover(candidates: Tensor, n_candidates: int) -> Tensor:
    """Choose columns of ``candidates`` ``(n_latents, n)`` so that none is far from a chosen one.

    Each column chosen is the farthest from those before it, beginning with the one closest to the
    mean (Gonzalez 1985); the order of columns does not matter. If there are no more than
    ``n_candidates``, all are kept.
    """
    if candidates.shape[1] <= n_candidates:
        return candidates
    if candidates.shape[1] > MOST_COVERED * n_candidates:
        generator = torch.Generator(device="cpu").manual_seed(0)
        drawn = torch.randperm(candidates.shape[1], generator=generator, device="cpu")
        candidates = candidates[:, drawn[: MOST_COVERED * n_candidates].to(candidates.device)]
    chosen = [(candidates - candidates.mean(dim=1, keepdim=True)).square().sum(0).argmin()]
    distance = torch.full_like(candidates[0], torch.inf)
    for _ in range(n_candidates - 1):
        from_last = (candidates - candidates.index_select(1, chosen[-1][None])).square_().sum(0)
        distance = torch.minimum(distance, from_last)
        chosen.append(distance.argmax())
    return candidates[:, torch.stack(chosen).sort().values]


def best_start(
    model: SequentialAutoencoder, prior: Prior, batch: Batch, candidates: Tensor
) -> Tensor:
    """Find the best of ``candidates`` ``(n_latents, n_candidates)`` for each trial.

    Returns ``(n_latents, n_trials)``. With known inputs every trial needs rollouts of its own, so
    fewer candidates are tried: half of these cover all of them, and half are those that would fit
    the trial best without its inputs.
    """
    if batch.inputs is None:
        return candidates[:, _log_posteriors(model, prior, batch, candidates).argmax(1)]
    n_candidates = MOST_CANDIDATES_UNDER_INPUTS
    if candidates.shape[1] <= n_candidates:
        return _best_under_inputs(model, prior, batch, candidates[:, :, None])
    own = _log_posteriors(model, prior, batch, candidates).topk(n_candidates // 2, dim=1).indices.T
    spread = cover(candidates, n_candidates - n_candidates // 2)[:, :, None].expand(
        -1, -1, len(batch)
    )
    return _best_under_inputs(model, prior, batch, torch.cat([spread, candidates[:, own]], dim=1))


def _log_posteriors(
    model: SequentialAutoencoder, prior: Prior, batch: Batch, candidates: Tensor
) -> Tensor:
    """Log-posteriors ``(n_trials, n_candidates)`` without inputs, up to a constant."""
    n_bins, n_neurons, n_trials = batch.counts.shape
    counts = batch.counts.reshape(-1, n_trials).T
    observed = None if batch.mask is None else batch.mask.reshape(-1, n_trials).T.to(counts.dtype)
    at_once = max(1, most_values(counts.device) // (4 * n_bins * n_neurons))
    values = []
    for some in candidates.split(at_once, dim=1):
        # Finite, because a mask of zero times infinity would be NaN.
        output = model.output(some, n_bins).clamp_(-50, 50).nan_to_num_(nan=50)
        a, b = (terms.flatten(0, 1) for terms in natural(model.likelihood, output))
        expected = b.sum(0) if observed is None else observed @ b
        values.append(counts @ a - expected + prior.log_density(some))
    return torch.cat(values, dim=1).nan_to_num_(nan=-torch.inf)


def _best_under_inputs(
    model: SequentialAutoencoder, prior: Prior, batch: Batch, candidates: Tensor
) -> Tensor:
    """Find the best of candidates ``(n_latents, n_candidates, n_trials)`` for each trial.

    The last axis is 1 if all trials have the same candidates.
    """
    n_bins, n_neurons, n_trials = batch.counts.shape
    assert batch.inputs is not None
    candidates = candidates.expand(-1, -1, n_trials)
    per_candidate = 6 * n_bins * (n_neurons + batch.inputs.shape[1]) * n_trials
    at_once = max(1, most_values(batch.counts.device) // per_candidate)
    values = []
    for some in candidates.split(at_once, dim=1):
        # Columns: each candidate with every trial.
        z0, n_times = some.flatten(1), some.shape[1]
        inputs = batch.inputs.repeat(1, 1, n_times)
        output = model.output(z0, n_bins, inputs).clamp(-50, 50).nan_to_num(nan=50)
        output = output.unflatten(2, (n_times, n_trials)).transpose(1, 2)
        mask = None if batch.mask is None else batch.mask[:, None]
        fit = log_likelihood(model.likelihood, output, batch.counts[:, None], mask)
        values.append(fit + prior.log_density(z0).unflatten(0, (n_times, n_trials)))
    best = torch.cat(values).nan_to_num_(nan=-torch.inf).argmax(0)
    return candidates.gather(1, best[None, None].expand(len(candidates), 1, -1))[:, 0]
