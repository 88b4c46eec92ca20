"""Held-out bits: which entries are hidden from inference, and what they are worth."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.likelihoods import Likelihood
from .data_term import whole_log_likelihood

__all__ = ["bits_gained", "hidden_entries", "without_silent"]

SCORE_SEED = 0
SCORE_FRACTION = 0.2


def hidden_entries(batch: Batch, fraction: float) -> Tensor:
    """The entries ``score`` hides: a seeded ``fraction`` of each trial's observed ones.

    A trial's draw depends on its place in the recording and on which of its entries were observed,
    not on padding, so ragged and padded forms of a recording are scored alike.
    """
    observed = batch.observed().permute(2, 0, 1).cpu().numpy()
    hidden = np.zeros(observed.shape, dtype=bool)
    for row, seen, hide in zip(batch.rows, observed, hidden, strict=True):
        entries = np.flatnonzero(seen)
        n_hidden = min(max(1, round(fraction * len(entries))), len(entries) - 1)
        rng = np.random.default_rng([SCORE_SEED, int(row)])
        hide.flat[rng.permutation(entries)[:n_hidden]] = True
    return torch.from_numpy(hidden.transpose(1, 2, 0)).to(batch.counts.device)


def without_silent(likelihood: Likelihood, null_rates: Tensor, batch: Batch) -> Batch:
    """The batch without counts of neurons that were silent in ``fit``: they count as unobserved.

    What the model knows of such a neuron is that it never fires, so that a single spike of it would
    pull the latents anywhere. Of other data a mean of zero says nothing.
    """
    silent = null_rates == 0
    if not likelihood.of_counts or not silent.any():
        return batch
    return batch.hide(silent[:, None].expand_as(batch.counts))


def bits_gained(
    likelihood: Likelihood, output: Tensor, null_rates: Tensor, batch: Batch, entries: Tensor
) -> Tensor:
    """Sums, over ``entries``, from which a score is made: (log2-likelihood gain, units).

    The gain is over the null model, in which every neuron has its constant ``null_rates``; units
    are spikes, or entries if data are not counts. Of counts, a null rate of zero is none: any spike
    would be an infinite gain.
    """
    if likelihood.of_counts:
        entries = entries & (null_rates > 0)[:, None]
    null = likelihood.null_output(null_rates).expand_as(output)
    gain = whole_log_likelihood(likelihood, output, batch, entries) - whole_log_likelihood(
        likelihood.null(), null, batch, entries
    )
    units = likelihood.n_units(batch.counts, entries)
    return torch.stack([gain.sum() / math.log(2), units]).cpu().double()
