"""Dispersions of neurons, learned from the residuals of every epoch."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..._data.batches import Batch
from ..._data.trials import Trials
from .base import Likelihood

__all__ = ["Dispersed"]

#: Without ``n_prior`` one pass would solve the estimating equation of constant rates.
NULL_PASSES = 3
#: Number of entries in a batch.
CHUNK = 4_000_000


class Dispersed(Likelihood):
    """Likelihoods with a dispersion for each neuron, learned from residuals.

    After each epoch the dispersion becomes the root of an estimating equation: that takes no
    learning rate, and converges within a few epochs.
    """

    #: Names of the private dispersion, of this one, and of that of the null model.
    names: ClassVar[tuple[str, ...]]
    #: Prior observations of zero dispersion, added to the denominator.
    n_prior: ClassVar[float] = 0.0

    dispersion: Tensor
    null_dispersion: Tensor
    sums: Tensor

    def __init__(self, n_neurons: int, device: str = "cpu") -> None:
        super().__init__(n_neurons, device)
        for name in ("dispersion", "null_dispersion"):
            self.register_buffer(name, torch.ones(n_neurons, 1, device=device))
        # Zero between two epochs, so no file needs to hold it.
        self.register_buffer("sums", torch.zeros(2, n_neurons, device="cpu"), persistent=False)

    @abstractmethod
    def dispersion_parts(self, output: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of numerator and denominator of the next dispersion, to be summed over entries."""

    @abstractmethod
    def smallest_dispersion(self) -> Tensor | float:
        """Smallest dispersion, below which only rounding errors change."""

    @abstractmethod
    def constant(self, counts: Tensor) -> Tensor:
        """Normaliser of entries, shaped like ``counts``, or of neurons ``(n_neurons, 1)``."""

    def normaliser(self, counts: Tensor, mask: Tensor | None) -> Tensor:
        terms = self.constant(counts).expand_as(counts)
        if mask is not None:
            terms = terms * mask
        return terms.sum(dim=(0, -2))

    def fit_null(self, trials: Trials, mean_counts: np.ndarray) -> None:
        self._learn_around_means(trials, mean_counts)
        self.null_dispersion.copy_(self.dispersion)

    def refit_null(self, trials: Trials, mean_counts: np.ndarray) -> None:
        null = copy.deepcopy(self)
        null.dispersion.fill_(1.0)  # where a first fit starts from, too
        observed = null._learn_around_means(trials, mean_counts)
        self.null_dispersion.copy_(torch.where(observed, null.dispersion, self.null_dispersion))

    def _learn_around_means(self, trials: Trials, mean_counts: np.ndarray) -> Tensor:
        """Learn ``dispersion`` around constant rates; returns which neurons were observed.

        That is a boolean tensor ``(n_neurons, 1)``.
        """
        rates = torch.from_numpy(mean_counts).float()
        size = max(1, CHUNK // (trials.n_bins * trials.n_neurons))
        observed = torch.zeros_like(self.dispersion, dtype=torch.bool)
        for _ in range(NULL_PASSES):
            output = self.null_output(rates)
            for batch in trials.chunks(size, torch.device("cpu")):
                self.accumulate_residuals(output.expand_as(batch.counts), batch)
                observed |= batch.observed().any(2).any(0)[:, None]
            self.end_epoch()
        return observed

    @torch.no_grad()
    def accumulate_residuals(self, output: Tensor, batch: Batch) -> None:
        unseen = ~batch.observed()
        parts = self.dispersion_parts(output.masked_fill(unseen, 0.0), batch.counts)
        self.sums += torch.stack([part.masked_fill(unseen, 0.0).sum((0, 2)) for part in parts])

    def end_epoch(self) -> None:
        numerator, denominator = self.sums[:, :, None]
        found = (numerator / (denominator + self.n_prior)).clamp(min=self.smallest_dispersion())
        # A neuron may have no entry yet within the horizon.
        self.dispersion.copy_(torch.where(denominator > 0, found, self.dispersion))
        self.sums.zero_()

    def model_error_moments(
        self, output: Tensor, batch: Batch, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Dispersions have grown until noise explains all squared errors. But noise is independent
        # between bins, and model error persists. Errors and slopes are in standard deviations.
        score, information = self.score_and_information(output, batch.counts)
        slope = information.sqrt()
        unseen = ~batch.observed() | (slope == 0)
        error, slope, variance = (
            part.masked_fill(unseen, 0.0) for part in (score / slope, slope, variance)
        )
        squares = slope[1:] * slope[:-1]
        return error[1:] * error[:-1] + squares * variance[1:], squares

    def null(self) -> Likelihood:
        null = copy.deepcopy(self)
        null.dispersion.copy_(self.null_dispersion)
        return null

    def learned(self, unit: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
        values = (self.dispersion, self.null_dispersion)
        arrays = [value[:, 0].cpu().double().numpy() * unit for value in values]
        return super().learned() | dict(zip(self.names[1:], arrays, strict=True))
