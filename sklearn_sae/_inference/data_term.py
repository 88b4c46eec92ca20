"""Likelihoods of the observed entries: the only place that applies masks.

Unobserved entries contribute nothing, whatever their output is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.likelihoods import Likelihood

__all__ = [
    "expected_log_likelihood",
    "log_likelihood",
    "mean_loss",
    "natural",
    "score_and_information",
    "whole_log_likelihood",
]


def log_likelihood(
    likelihood: Likelihood,
    output: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Log-likelihood ``([n_models,] n_trials)`` of observed entries, without the normaliser.

    That of each neuron is divided by its private dispersion (a quasi-likelihood; Wedderburn 1974):
    spikes of a neuron that varies on its own say less of the latents. ``output`` of the readout,
    ``counts`` and ``mask`` are ``(n_bins, [n_models,] n_neurons, n_trials)``. Entries are added up
    in ``dtype``, by default their own.
    """
    terms = _terms(likelihood, output, counts, mask) / likelihood.private_dispersion
    return terms.sum(dim=(0, -2), dtype=dtype)


def expected_log_likelihood(
    likelihood: Likelihood, output: Tensor, variance: Tensor, batch: Batch
) -> Tensor:
    """Mean of ``log_likelihood`` ``(n_trials,)`` if the output has this ``variance``."""
    if batch.mask is not None:
        output, variance = (x.masked_fill(~batch.mask, 0.0) for x in (output, variance))
    terms = likelihood.expected_log_density(output, variance, batch.counts)
    if batch.mask is not None:
        terms = terms * batch.mask
    return (terms / likelihood.private_dispersion).sum(dim=(0, -2))


def _terms(likelihood: Likelihood, output: Tensor, counts: Tensor, mask: Tensor | None) -> Tensor:
    """Log-density of each entry, zero where nothing was observed."""
    if mask is not None:
        # Before the exponential: rates may overflow where nothing was observed, and inf * 0 is NaN.
        output = output.masked_fill(~mask, 0.0)
    terms = likelihood.log_density(output, counts)
    return terms if mask is None else terms * mask


def mean_loss(likelihood: Likelihood, output: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood per observed entry: what training minimises; one of each model."""
    whole = log_likelihood(likelihood, output, batch.counts, batch.mask)
    whole = whole + likelihood.normaliser(batch.counts, batch.mask)
    return -whole.sum(-1) / batch.n_observed()


def whole_log_likelihood(
    likelihood: Likelihood, output: Tensor, batch: Batch, mask: Tensor | None
) -> Tensor:
    """Log-likelihood of every trial over the entries in ``mask``, with its normaliser.

    It is that of the data, whatever neurons vary by on their own: scores are made of it.
    """
    terms = _terms(likelihood, output, batch.counts, mask).sum(dim=(0, -2))
    return terms + likelihood.normaliser(batch.counts, mask)


def natural(likelihood: Likelihood, output: Tensor) -> tuple[Tensor, Tensor]:
    """a(o) and b(o), in whose terms ``log_likelihood`` is the sum of y a(o) - b(o)."""
    a, b = likelihood.natural(output)
    return a / likelihood.private_dispersion, b / likelihood.private_dispersion


def score_and_information(
    likelihood: Likelihood, output: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Gradient of ``log_likelihood`` by the output, and its Fisher information.

    Both are ``(n_bins, n_neurons, n_trials)``, and zero where nothing was observed.
    """
    score, information = (
        values / likelihood.private_dispersion
        for values in likelihood.score_and_information(output, batch.counts)
    )
    if batch.mask is None:
        return score, information
    return score.masked_fill(~batch.mask, 0.0), information.masked_fill(~batch.mask, 0.0)
