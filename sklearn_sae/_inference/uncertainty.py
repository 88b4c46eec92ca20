r"""How sure latents and rates are: a Laplace approximation, and what the model itself is wrong by.

Given the model, the posterior of a trial's causes is close to a Gaussian around the refined point,
its covariance the inverse of Fisher information plus prior precision (MacKay 1992); linearised
dynamics carry it through the trial. The model is not the truth, though, and on many trials its own
error is as large; that adds one variance of the readout's output (log-rates, for counts), the same
in all bins, estimated from the training trials (`model_variance`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._data.batches import Batch
from .._data.trials import Trials
from .._model.autoencoder import SequentialAutoencoder
from .expansion import Expansion
from .memory import trials_at_once
from .prior import Prior

__all__ = ["inputs_with_std", "latents_with_std", "mean_output", "model_variance", "rates_with_std"]

#: exp(20) is as good as "nothing is known", and a float32 can still hold it.
LARGEST_VARIANCE = 20.0
LARGEST_SPREAD = 1e6
#: Of variances that move posterior means. Where nothing is observed, linearised dynamics let them
#: grow far beyond what the dynamics themselves would.
LARGEST_SHIFT = 0.25
#: So that 90 % intervals of rates cover 84 to 91 % on unseen trials, from rings of 30,000 spikes to
#: chaotic systems of 1.5 million; on systems that it was not set with they cover 90 to 95 %.
SPIKES_PER_WEIGHT = 400
#: So many trials tell as much of the model's variance as all do, in a share of the time.
MOST_TRIALS_FOR_VARIANCE = 2000


def latents_with_std(
    model: SequentialAutoencoder, prior: Prior, variance: float, batch: Batch, causes: Tensor
) -> Tensor:
    """Latents and their standard deviations ``(n_bins, 2 * n_latents, n_trials)``."""
    latents, _, covariance = _laplace(model, prior, batch, causes)
    covariance = covariance + variance * _per_output_variance(model)
    std = covariance.diagonal(dim1=2, dim2=3).clamp(min=0).sqrt()
    return torch.cat([latents, std.permute(1, 2, 0)], dim=1)


def rates_with_std(
    model: SequentialAutoencoder, prior: Prior, variance: float, batch: Batch, causes: Tensor
) -> Tensor:
    """Rates and their standard deviations ``(n_bins, 2 * n_neurons, n_trials)``.

    The readout's output is linear in the latents, so Gaussian. Where it is the log-rate, rates are
    lognormal: the rate given is the median m, the standard deviation m sqrt((exp(v) - 1) exp(v)),
    with v the variance of the output. With inferred inputs the rate given is the posterior mean.
    """
    _, output, covariance = _laplace(model, prior, batch, causes)
    given = _mean_output(model, output, covariance) if model.inferring else output
    covariance = covariance + variance * _per_output_variance(model)
    v = _output_variance(model, covariance).clamp(0, LARGEST_VARIANCE)
    std = model.likelihood.std_of_rates(output, v)
    return torch.cat([model.likelihood.rates(given), std], dim=1)


def inputs_with_std(
    model: SequentialAutoencoder, prior: Prior, batch: Batch, causes: Tensor
) -> Tensor:
    """Inferred inputs and their standard deviations ``(n_bins, 2 * n_inferred, n_trials)``."""
    assert model.inputs is not None
    inferred = model.inputs_of_all_bins(causes, len(batch.counts))
    covariance = Expansion.at(model, prior, batch, causes).covariances()
    variance = covariance.diagonal(dim1=2, dim2=3)[..., model.readout.n_latents :]
    # Never more than the prior's, even if the linearised dynamics overflow.
    variance = torch.minimum(variance.nan_to_num(nan=torch.inf), model.inputs.variance)
    std = variance.clamp(min=0).sqrt().permute(1, 2, 0)
    return torch.cat([inferred, std], dim=1)


def mean_output(model: SequentialAutoencoder, prior: Prior, batch: Batch, causes: Tensor) -> Tensor:
    """The readout's output ``(n_bins, n_neurons, n_trials)`` whose rates are posterior means."""
    _, output, covariance = _laplace(model, prior, batch, causes)
    return _mean_output(model, output, covariance)


@torch.no_grad()
def model_variance(model: SequentialAutoencoder, trials: Trials, table: Tensor) -> float:
    r"""Variance of the readout's output around the truth that is due to the model itself.

    Of Poisson counts, with rates l, counts y, n_spikes observed in all, and the weights
    a = 1 / (1 + 2 l), with which the estimate varies least,

    * d = sum(a ((y - l)^2 - l)) / sum(a l^2) is what residuals show beyond Poisson noise;
    * the fit has hidden some of that: the variance v of log-rates given the model, by
      fitting initial conditions, and w = n_learned / n_spikes, by fitting the weights (sum(l v) is
      the number of parameters fitted, as the trace of a hat matrix is);
    * n_learned is n_weights / (1 + SPIKES_PER_WEIGHT n_weights / n_spikes): few spikes determine
      few of the weights.

    So the model's bias is d + v + w, and its variance around the best model w: together at least w.
    By chance d is off by about sqrt(1 / sum(a l^2)), and what it lacks is cut off at zero: with
    fewer than 100,000 spikes intervals tend to be too wide. Other likelihoods have d + v from their
    own `misfit`, and their Fisher information, which is l for Poisson counts, in the place of
    spikes. ``table`` holds the fitted causes of ``trials``, one per row. Of many trials, some drawn
    at random stand for all; conditions may alternate, so they are not evenly spaced.
    """
    n_latents = model.readout.n_latents
    prior = Prior.from_samples(table[:, :n_latents], model.inputs)
    n_chosen = min(len(trials), MOST_TRIALS_FOR_VARIANCE)
    chosen = np.sort(np.random.default_rng(0).permutation(len(trials))[:n_chosen])
    share = n_chosen / len(trials)
    trials, table = trials.subset(chosen), table[torch.as_tensor(chosen, device=table.device)]
    # An affine change of the latents changes no rate: that many weights are no freedom.
    n_weights = sum(weight.numel() for weight in model.generator_parameters())
    n_weights = max(n_weights - n_latents * (n_latents + 1), 0)
    sums = np.zeros(3)
    for batch in trials.chunks(trials_at_once(model, trials.n_bins), table.device):
        rows = torch.as_tensor(batch.rows, device=table.device)
        causes = table[rows].T.contiguous()
        _, output, covariance = _laplace(model, prior, batch, causes)
        v = _output_variance(model, covariance)
        misfit = model.likelihood.misfit(output, batch, v)
        _, information = model.likelihood.score_and_information(output, batch.counts)
        information = information.masked_fill(~batch.observed(), 0.0)
        sums += [float(x.sum(dtype=torch.float64)) for x in (*misfit, information)]
    excess, squares, of_chosen = sums.tolist()
    n_spikes = of_chosen / share
    from_weights = n_weights / max(n_spikes + SPIKES_PER_WEIGHT * n_weights, 1.0)
    bias = excess / max(squares, 1e-12) + from_weights
    variance = from_weights + max(bias, 0.0)
    return float(np.clip(np.nan_to_num(variance, nan=LARGEST_VARIANCE), 0, LARGEST_VARIANCE))


def _laplace(
    model: SequentialAutoencoder, prior: Prior, batch: Batch, causes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, output, and covariances ``(n_trials, n_bins, D, D)`` of the latents."""
    expansion, n_latents = Expansion.at(model, prior, batch, causes), model.readout.n_latents
    covariance = expansion.covariances()[:, :, :n_latents, :n_latents]
    # Beyond a trial's end they may overflow: nothing is known there.
    covariance = covariance.nan_to_num(LARGEST_SPREAD).clamp(-LARGEST_SPREAD, LARGEST_SPREAD)
    return expansion.latents, expansion.output, covariance


def _mean_output(model: SequentialAutoencoder, output: Tensor, covariance: Tensor) -> Tensor:
    v = _output_variance(model, covariance).clamp(0, LARGEST_SHIFT)
    return model.likelihood.mean_output(output, v)


def _output_variance(model: SequentialAutoencoder, covariance: Tensor) -> Tensor:
    """``(n_bins, n_neurons, n_trials)`` from covariances of latents."""
    kernel = model.readout.weight[:, :-1]
    pairs = (kernel[:, :, None] * kernel[:, None, :]).flatten(1)
    return (covariance.flatten(2) @ pairs.T).permute(1, 2, 0)


def _per_output_variance(model: SequentialAutoencoder) -> Tensor:
    """Covariance of latents that gives outputs a variance of 1, on average over neurons."""
    kernel = model.readout.weight[:, :-1]
    n_neurons, n_latents = kernel.shape
    return torch.linalg.pinv(kernel.T @ kernel) * (n_neurons / min(n_latents, n_neurons))
