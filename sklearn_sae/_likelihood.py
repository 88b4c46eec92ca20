"""Masked Poisson log-likelihood, and held-out bits per spike."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ._batches import Batch

__all__ = ["bits_per_spike", "hidden_entries", "log_likelihood", "mean_loss"]

SCORE_SEED = 0
SCORE_FRACTION = 0.2


def log_likelihood(log_rates: Tensor, counts: Tensor, mask: Tensor | None) -> Tensor:
    """Poisson log-likelihood of every trial over its observed entries, but for ``-log(counts!)``.

    All arguments are ``(n_bins, n_neurons, n_trials)``.
    """
    if mask is not None:
        # Before the exponential: rates may overflow where nothing was observed, and inf * 0 is NaN.
        log_rates = log_rates.masked_fill(~mask, 0.0)
    terms = counts * log_rates - log_rates.exp()
    if mask is not None:
        terms = terms * mask
    return terms.sum(dim=(0, 1))


def mean_loss(log_rates: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood per observed entry: what training minimises."""
    n_observed = batch.counts.numel() if batch.mask is None else batch.mask.sum().clamp(min=1)
    return -log_likelihood(log_rates, batch.counts, batch.mask).sum() / n_observed


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


def bits_per_spike(log_rates: Tensor, null_rates: Tensor, batch: Batch, entries: Tensor) -> Tensor:
    """Sums, over ``entries``, from which bits per spike is made: (log2-likelihood gain, spikes).

    The gain is over the null model, in which every neuron fires at its constant ``null_rates``.
    """
    null = null_rates.clamp(min=1e-9).log()[None, :, None].expand_as(log_rates)
    gain = log_likelihood(log_rates, batch.counts, entries) - log_likelihood(
        null, batch.counts, entries
    )
    return torch.stack([gain.sum() / math.log(2), (batch.counts * entries).sum()]).cpu().double()
