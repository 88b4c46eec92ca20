"""Variance due to model error, estimated from the residuals of training trials."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .._data.batches import Batch
from .._data.trials import Trials
from .._model.autoencoder import SequentialAutoencoder
from .data_term import score_and_information
from .memory import trials_at_once
from .posterior import LARGEST_VARIANCE, GaussianPosterior

__all__ = ["model_variance"]

#: Chosen so that 90 % intervals of rates cover 84 to 91 % on unseen trials, from rings with 30,000
#: spikes to chaotic systems with 1.5 million; on systems not used to choose it, 90 to 95 %.
SPIKES_PER_WEIGHT = 400
#: This many trials determine the variance as well as all trials do, in less time.
MOST_TRIALS_FOR_VARIANCE = 2000


@torch.no_grad()
def model_variance(
    model: SequentialAutoencoder,
    trials: Trials,
    posterior_of: Callable[[Batch, Tensor], GaussianPosterior],
    device: torch.device,
) -> float:
    r"""Estimate the variance of the readout's output around the truth due to model error.

    For Poisson counts, with rates l, counts y, n_spikes observed in all, and the weights
    a = 1 / (1 + 2 l), which reduce the variance of the estimate,

    * d = sum(a ((y - l)^2 - l)) / sum(a l^2) is the squared error of log-rates that the residuals
      show beyond Poisson noise;
    * fitting hides part of that error: fitting initial conditions hides v, the variance of
      log-rates given the model, and fitting weights hides w = n_learned / n_spikes (sum(l v) is the
      number of fitted parameters, like the trace of a hat matrix);
    * n_learned = n_weights / (1 + SPIKES_PER_WEIGHT n_weights / n_spikes), because few spikes
      determine few of the weights.

    The model's squared bias is thus d + v + w, and its variance around the best model is w: the
    result is their sum, w at least. The standard error of d is about sqrt(1 / sum(a l^2)), and
    negative biases are set to zero: with fewer than 100,000 spikes intervals tend to be too wide.
    Other likelihoods compute d + v by their own `model_error_moments`, and replace n_spikes by
    their Fisher information, which is l for Poisson counts. ``posterior_of`` gives the posterior of
    a batch, whose trials have the given rows in ``trials``. If trials are many, a random subset is
    used; it is not evenly spaced because conditions may alternate.
    """
    chosen = trials.some_rows(MOST_TRIALS_FOR_VARIANCE)
    share = len(chosen) / len(trials)
    trials = trials.subset(chosen)
    n_weights = sum(weight.numel() for weight in model.generative_parameters())
    n_weights = max(n_weights - model.readout.n_redundant, 0)
    sums = np.zeros(3)
    for batch in trials.chunks(trials_at_once(model, trials.n_bins), device):
        posterior = posterior_of(batch, torch.as_tensor(chosen[batch.rows], device=device))
        moments = model.likelihood.model_error_moments(
            posterior.output, batch, posterior.output_variance
        )
        _, information = score_and_information(model.likelihood, posterior.output, batch)
        sums += [float(x.sum(dtype=torch.float64)) for x in (*moments, information)]
    excess, squares, of_chosen = sums.tolist()
    n_spikes = of_chosen / share
    from_weights = n_weights / max(n_spikes + SPIKES_PER_WEIGHT * n_weights, 1.0)
    bias = excess / max(squares, 1e-12) + from_weights
    variance = from_weights + max(bias, 0.0)
    return float(np.clip(np.nan_to_num(variance, nan=LARGEST_VARIANCE), 0, LARGEST_VARIANCE))
