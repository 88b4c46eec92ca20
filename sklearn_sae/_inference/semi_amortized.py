"""Initial conditions of unseen trials: a start, then Gauss-Newton on the log-posterior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .expansion import Expansion
from .memory import most_values
from .prior import Prior
from .scoring import log_likelihood

__all__ = ["FIRST_DAMPING", "best_start", "better_start", "cover", "refine"]

MOST_CANDIDATES = 1500
MOST_CANDIDATES_UNDER_INPUTS = 128
#: From so many times as many initial conditions as are wanted, those that cover them are chosen.
MOST_COVERED = 16
FIRST_DAMPING = 1e-2
LARGEST_DAMPING = 1e4
#: Once no more than this share of the trials is left, the others are put aside.
FEW = 0.8


def cover(bank: Tensor, n_candidates: int) -> Tensor:
    """Columns of ``bank`` ``(n_latents, n)`` that leave none far away, whatever their order.

    Each one chosen is the farthest from those before it, beginning with the one next to the mean
    (Gonzalez 1985). If there are no more than ``n_candidates``, all are kept as they are.
    """
    if bank.shape[1] <= n_candidates:
        return bank
    if bank.shape[1] > MOST_COVERED * n_candidates:
        generator = torch.Generator(device="cpu").manual_seed(0)
        drawn = torch.randperm(bank.shape[1], generator=generator, device="cpu")
        bank = bank[:, drawn[: MOST_COVERED * n_candidates].to(bank.device)]
    chosen = [(bank - bank.mean(dim=1, keepdim=True)).square().sum(0).argmin()]
    distance = torch.full_like(bank[0], torch.inf)
    for _ in range(n_candidates - 1):
        from_last = (bank - bank.index_select(1, chosen[-1][None])).square_().sum(0)
        distance = torch.minimum(distance, from_last)
        chosen.append(distance.argmax())
    return bank[:, torch.stack(chosen).sort().values]


def best_start(model: SequentialAutoencoder, prior: Prior, batch: Batch, bank: Tensor) -> Tensor:
    """For every trial, the initial condition of the ``bank`` whose rates fit it best.

    ``bank`` is ``(n_latents, n_candidates)``; of a large one, ``MOST_CANDIDATES`` that cover it are
    tried. With known inputs, a rollout is that of one trial, so fewer are: half of them cover the
    bank, and half are those that would fit the trial best without its inputs.
    """
    if batch.inputs is None:
        bank = cover(bank, MOST_CANDIDATES)
        return bank[:, _fits(model, prior, batch, bank).argmax(1)]
    n_candidates = MOST_CANDIDATES_UNDER_INPUTS
    if bank.shape[1] <= n_candidates:
        return _best_under_inputs(model, prior, batch, bank[:, :, None])
    bank = cover(bank, MOST_CANDIDATES)
    own = _fits(model, prior, batch, bank).topk(n_candidates // 2, dim=1).indices.T
    spread = cover(bank, n_candidates - n_candidates // 2)[:, :, None].expand(-1, -1, len(batch))
    return _best_under_inputs(model, prior, batch, torch.cat([spread, bank[:, own]], dim=1))


def _fits(model: SequentialAutoencoder, prior: Prior, batch: Batch, bank: Tensor) -> Tensor:
    """Log-posterior of every trial from every candidate, without inputs, up to a constant.

    ``(n_trials, n_candidates)``.
    """
    n_bins, n_neurons, n_trials = batch.counts.shape
    counts = batch.counts.reshape(-1, n_trials).T
    observed = None if batch.mask is None else batch.mask.reshape(-1, n_trials).T.to(counts.dtype)
    at_once = max(1, most_values(counts.device) // (4 * n_bins * n_neurons))
    fits = []
    for candidates in bank.split(at_once, dim=1):
        # Finite, so that nothing of an entry is left once it is multiplied by a mask of zero.
        output = model.output(candidates, n_bins).clamp_(-50, 50).nan_to_num_(nan=50)
        a, b = (terms.flatten(0, 1) for terms in model.likelihood.natural(output))
        expected = b.sum(0) if observed is None else observed @ b
        fits.append(counts @ a - expected + prior.log_density(candidates))
    return torch.cat(fits, dim=1).nan_to_num_(nan=-torch.inf)


def _best_under_inputs(
    model: SequentialAutoencoder, prior: Prior, batch: Batch, candidates: Tensor
) -> Tensor:
    """The best of ``candidates`` ``(n_latents, n_candidates, n_trials)``, or the same for all."""
    n_bins, n_neurons, n_trials = batch.counts.shape
    assert batch.inputs is not None
    candidates = candidates.expand(-1, -1, n_trials)
    per_candidate = 6 * n_bins * (n_neurons + batch.inputs.shape[1]) * n_trials
    at_once = max(1, most_values(batch.counts.device) // per_candidate)
    values = []
    for some in candidates.split(at_once, dim=1):
        # One column after the other: a candidate with every trial.
        z0, n_times = some.flatten(1), some.shape[1]
        inputs = batch.inputs.repeat(1, 1, n_times)
        output = model.output(z0, n_bins, inputs).clamp(-50, 50).nan_to_num(nan=50)
        output = output.unflatten(2, (n_times, n_trials)).transpose(1, 2)
        mask = None if batch.mask is None else batch.mask[:, None]
        fit = log_likelihood(model.likelihood, output, batch.counts[:, None], mask)
        values.append(fit + prior.log_density(z0).unflatten(0, (n_times, n_trials)))
    best = torch.cat(values).nan_to_num_(nan=-torch.inf).argmax(0)
    return candidates.gather(1, best[None, None].expand(len(candidates), 1, -1))[:, 0]


def better_start(
    model: SequentialAutoencoder, prior: Prior, batch: Batch, start: Tensor, other: Tensor
) -> Tensor:
    """``start``, but ``other`` for the trials whose log-posterior is higher there."""
    here, there = (_Point.at(model, prior, batch, z0).value for z0 in (start, other))
    return torch.where(there > here, other, start)


def refine(
    model: SequentialAutoencoder,
    prior: Prior,
    batch: Batch,
    causes: Tensor,
    *,
    max_iter: int,
    tol: float = 1e-3,
    damping: Tensor | None = None,
) -> Tensor:
    """Climb every trial's log-posterior from ``causes`` ``(n_causes, n_trials)``.

    Where inputs are inferred, initial conditions alone will do for a start: the inputs then start
    at zero. Each iteration is a Newton step with the Fisher information in the place of the
    Hessian, damped. A trial's damping falls when its step helped and rises when it did not
    (Levenberg 1944, Marquardt 1963); no trial ever gets worse, but for rounding errors. A trial is
    done when a step gains less than ``tol`` nats.

    A caller who goes on after a few iterations gives ``damping`` ``(n_trials,)``, which is changed
    in place: a trial that needs small steps would otherwise never take one.
    """
    causes = model.with_inputs(causes, len(batch.counts))
    if damping is None:
        damping = causes.new_full((causes.shape[1],), FIRST_DAMPING)
    there = _Point.at(model, prior, batch, causes)
    return _climb(model, prior, batch, there, damping, max_iter, tol)


class _Point(NamedTuple):
    """Causes, the log-posterior there ``(n_trials,)``, latents and output; trials come last."""

    causes: Tensor
    value: Tensor
    latents: Tensor
    output: Tensor

    @classmethod
    def at(cls, model: SequentialAutoencoder, prior: Prior, batch: Batch, causes: Tensor) -> _Point:
        latents = model.rollout(causes, len(batch.counts), batch.inputs)
        output = model.readout(latents)
        # The order in which single precision adds up thousands of entries changes with a trial's
        # place in the batch, by enough to decide whether it takes one more step.
        fit = log_likelihood(model.likelihood, output, batch.counts, batch.mask, torch.float64)
        value = (fit + prior.log_density(causes)).nan_to_num(nan=-torch.inf)
        return cls(causes, value, latents, output)

    def where(self, better: Tensor, other: _Point) -> _Point:
        """The other's trials if they are ``better``, else its own."""
        return _Point(*(torch.where(better, b, a) for a, b in zip(self, other, strict=True)))

    def only(self, rows: Tensor) -> _Point:
        return _Point(*(tensor[..., rows] for tensor in self))


def _climb(
    model: SequentialAutoencoder,
    prior: Prior,
    batch: Batch,
    here: _Point,
    damping: Tensor,
    max_iter: int,
    tol: float,
) -> Tensor:
    rounding = 2 * torch.finfo(here.output.dtype).eps
    active = torch.ones_like(damping, dtype=torch.bool)
    for n_done in range(max_iter):
        if active.sum() <= FEW * len(active):
            rest = active.nonzero()[:, 0]
            if len(rest):
                of_rest, left = damping[rest], max_iter - n_done
                found = _climb(model, prior, batch.only(rest), here.only(rest), of_rest, left, tol)
                here.causes[:, rest], damping[rest] = found, of_rest
            break
        expansion = Expansion(model, prior, batch, here.causes, here.latents, here.output, damping)
        there = _Point.at(model, prior, batch, here.causes + expansion.newton_step().nan_to_num())
        gain = there.value - here.value
        # At the top rounding errors would decide whether to take the last step.
        better = active & (gain > -rounding * here.value.abs())
        here = here.where(better, there)
        # Each trial stops on its own account, so that its result does not depend on its batch.
        active = active & ~(better & (gain < tol)) & (damping < LARGEST_DAMPING)
        damping.copy_(torch.where(better, damping / 5, damping * 8).clamp(1e-7, LARGEST_DAMPING))
    return here.causes
