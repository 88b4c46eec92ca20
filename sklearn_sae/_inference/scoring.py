"""Held-out scores: choice of the entries to hide from inference, and bits gained on them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.likelihoods import Likelihood
from .data_term import whole_log_likelihood

__all__ = ["bits_gained", "gain_over_null", "hidden_entries", "without_silent"]

SCORE_SEED = 0
SCORE_FRACTION = 0.2


def hidden_entries(batch: Batch, fraction: float) -> Tensor:
    """The entries ``score`` hides: all of a seeded ``fraction`` of each trial's observed neurons.

    Whole neurons, so that latents that follow one neuron alone do not raise a score. Of a trial in
    which a single neuron was observed it is that fraction of its entries. A trial's draw depends on
    its place in the recording and on which of its neurons (or entries) were observed, not on
    padding, so ragged and padded forms of a recording are scored alike.
    """
    observed = batch.observed().permute(2, 0, 1).cpu().numpy()
    hidden = np.zeros(observed.shape, dtype=bool)
    for row, seen, hide in zip(batch.rows, observed, hidden, strict=True):
        rng = np.random.default_rng([SCORE_SEED, int(row)])
        neurons = np.flatnonzero(seen.any(axis=0))
        if len(neurons) > 1:
            hide[:, _drawn(neurons, fraction, rng)] = True
        else:
            hide.flat[_drawn(np.flatnonzero(seen), fraction, rng)] = True
    hidden &= observed
    return torch.from_numpy(hidden.transpose(1, 2, 0)).to(batch.counts.device)


def _drawn(items: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw that ``fraction`` of items: one at least, and never all of them."""
    n_drawn = min(max(1, round(fraction * len(items))), len(items) - 1)
    return rng.permutation(items)[:n_drawn]


def without_silent(likelihood: Likelihood, null_rates: Tensor, batch: Batch) -> Batch:
    """Mark counts of neurons that were silent in ``fit`` as not observed.

    The model has learned that such a neuron never fires, so that a single spike would dominate
    inference. Signals may have a mean of zero, and are left as they are.
    """
    silent = null_rates == 0
    if not likelihood.of_counts or not silent.any():
        return batch
    return batch.hide(silent[:, None].expand_as(batch.counts))


def gain_over_null(
    likelihood: Likelihood, output: Tensor, null_rates: Tensor, batch: Batch, entries: Tensor
) -> Tensor:
    """Log-likelihood of ``entries`` that each trial gains over the null model ``(n_trials,)``."""
    null = likelihood.null()
    null_output = null.null_output(null_rates).expand_as(output)
    of_model = whole_log_likelihood(likelihood, output, batch, entries)
    return of_model - whole_log_likelihood(null, null_output, batch, entries)


def bits_gained(
    likelihood: Likelihood, output: Tensor, null_rates: Tensor, batch: Batch, entries: Tensor
) -> Tensor:
    """Sum the gain in log2-likelihood over ``entries``, and their units; a score is the ratio.

    Returns ``(2,)``. The gain is over the null model of constant ``null_rates`` ``(n_neurons,)``;
    units are spikes, or entries if data are not counts. Neurons whose null rate of counts is zero
    are left out: any spike of theirs would be an infinite gain.
    """
    if likelihood.of_counts:
        entries = entries & (null_rates > 0)[:, None]
    gain = gain_over_null(likelihood, output, null_rates, batch, entries)
    units = likelihood.n_units(batch.counts, entries)
    return torch.stack([gain.sum() / math.log(2), units]).cpu().double()
