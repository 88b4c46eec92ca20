"""Interface of likelihoods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..._data.batches import Batch
from ..._data.trials import Trials

__all__ = ["Likelihood"]


class Likelihood(nn.Module, ABC):
    """Interface of likelihoods, as fitting, inference and scores use them.

    Unless said otherwise, ``output``, ``counts``, ``variance`` and the results are ``(n_bins,
    n_neurons, n_trials)``.
    """

    #: Whether data are counts: never negative, and scored per spike.
    of_counts: ClassVar[bool] = True
    #: Names that an estimator gives to what is learned.
    names: ClassVar[tuple[str, ...]] = ("dispersion_",)

    #: Variance of each neuron's residuals, summed over many bins, over that of the likelihood: what
    #: the neuron varies by on its own, apart from the latents. At least 1, ``(n_neurons, 1)``.
    private_dispersion: Tensor

    def __init__(self, n_neurons: int, device: str = "cpu") -> None:
        super().__init__()
        self.register_buffer("private_dispersion", torch.ones(n_neurons, 1, device=device))

    @abstractmethod
    def rates(self, output: Tensor) -> Tensor:
        """Rates, the expected counts given the ``output``."""

    @abstractmethod
    def null_output(self, null_rates: Tensor) -> Tensor:
        """Output ``(n_neurons, 1)`` of the null model, whose rates are the mean counts."""

    @abstractmethod
    def std_of_rates(self, output: Tensor, variance: Tensor) -> Tensor:
        """Standard deviation of the rates if the output has this ``variance``."""

    @abstractmethod
    def mean_output(self, output: Tensor, variance: Tensor) -> Tensor:
        """Output whose rates are the mean rates if the output has this ``variance``."""

    @abstractmethod
    def natural(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Terms a(o) and b(o), of which ``y a(o) - b(o)`` ranks candidates for a start.

        It is the log-density of an exponential family; other likelihoods give an approximation
        here, and override ``log_density``.
        """

    def log_density(self, output: Tensor, counts: Tensor) -> Tensor:
        """Log-likelihood of each entry, up to terms that do not depend on the output."""
        a, b = self.natural(output)
        return counts * a - b

    @abstractmethod
    def expected_log_density(self, output: Tensor, variance: Tensor, counts: Tensor) -> Tensor:
        """Mean of ``log_density`` if the output has this ``variance``, or a bound below it."""

    def normaliser(self, counts: Tensor, mask: Tensor | None) -> Tensor | float:
        """Learned terms that ``log_density`` omits, ``(n_trials,)``: sums over a trial's entries.

        ``log(counts!)``, which depends on nothing but the counts, is left out here too.
        """
        return 0.0

    @abstractmethod
    def score_and_information(self, output: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Score, the derivative of the log-likelihood by the output, and its Fisher information."""

    @abstractmethod
    def model_error_moments(
        self, output: Tensor, batch: Batch, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Numerators and denominators of the variance of the output around the truth.

        The ratio of their sums is the estimate. The numerators are squared errors beyond noise; the
        posterior ``variance`` of the output, which inference has hidden from the errors, is added.
        """

    @abstractmethod
    def n_units(self, counts: Tensor, entries: Tensor) -> Tensor:
        """Number of units of a score: spikes among the boolean ``entries``, or the entries."""

    # ------------------------------------------------------------------ the start of a fit

    @abstractmethod
    def smoothed_output(self, smoothed: np.ndarray) -> np.ndarray:
        """Output whose rates are ``smoothed`` counts ``(..., n_neurons)``; finite at zero."""

    @abstractmethod
    def bias(self, mean_counts: np.ndarray) -> np.ndarray:
        """Initial bias ``(n_neurons,)`` of the readout: the output whose rates are mean counts."""

    @abstractmethod
    def spread(self, mean_counts: Tensor) -> Tensor:
        """Standard deviation of each neuron's counts ``(n_neurons,)``, bounded away from zero."""

    # ------------------------------------------------------------------ learned dispersions

    def fit_null(self, trials: Trials, mean_counts: np.ndarray) -> None:
        """Learn from all trials what the null model of constant rates needs beside its rates."""

    def refit_null(self, trials: Trials, mean_counts: np.ndarray) -> None:
        """Learn the null model of other trials; what the weights depend on stays as it is."""

    def accumulate_residuals(self, output: Tensor, batch: Batch) -> None:
        """Add up statistics of the residuals of a training batch."""

    def end_epoch(self) -> None:
        """Learn dispersions from the residuals of the epoch."""

    def null(self) -> Likelihood:
        """Likelihood of the null model."""
        return self

    def learned(self, unit: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
        """What an estimator shows of it: names of attributes, and arrays ``(n_neurons,)``.

        ``unit`` is the variance, in units of the data, that variances of signals are given in.
        """
        return {"dispersion_": self.private_dispersion[:, 0].cpu().double().numpy()}
