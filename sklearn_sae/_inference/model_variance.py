"""How far a model is from the truth, told from the residuals of its training trials."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._data.trials import Trials
from .._model.autoencoder import SequentialAutoencoder
from .data_term import score_and_information
from .memory import trials_at_once
from .posterior import LARGEST_VARIANCE, LaplacePosterior
from .prior import Prior

__all__ = ["model_variance"]

#: So that 90 % intervals of rates cover 84 to 91 % on unseen trials, from rings of 30,000 spikes to
#: chaotic systems of 1.5 million; on systems that it was not set with they cover 90 to 95 %.
SPIKES_PER_WEIGHT = 400
#: So many trials tell as much of the model's variance as all do, in a share of the time.
MOST_TRIALS_FOR_VARIANCE = 2000


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
    own `model_error_moments`, and their Fisher information, which is l for Poisson counts, in the
    place of spikes. ``table`` holds the fitted latent variables of ``trials``, one row each. Of
    many trials, some drawn at random stand for all; conditions may alternate, so they are not
    evenly spaced.
    """
    n_latents = model.readout.n_latents
    prior = Prior.from_samples(table[:, :n_latents], model.inputs)
    n_chosen = min(len(trials), MOST_TRIALS_FOR_VARIANCE)
    chosen = np.sort(np.random.default_rng(0).permutation(len(trials))[:n_chosen])
    share = n_chosen / len(trials)
    trials, table = trials.subset(chosen), table[torch.as_tensor(chosen, device=table.device)]
    n_weights = sum(weight.numel() for weight in model.generative_parameters())
    n_weights = max(n_weights - model.readout.n_redundant, 0)
    sums = np.zeros(3)
    for batch in trials.chunks(trials_at_once(model, trials.n_bins), table.device):
        rows = torch.as_tensor(batch.rows, device=table.device)
        posterior = LaplacePosterior(model, prior, batch, table[rows].T.contiguous())
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
