"""What fitting, inference and scores ask of a likelihood."""

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
    """What fitting, inference and scores ask of a likelihood."""

    #: Whether data are counts: none below zero, and scored per spike.
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
        """Expected counts."""

    @abstractmethod
    def null_output(self, null_rates: Tensor) -> Tensor:
        """Output ``(n_neurons, 1)`` of the null model, which knows but the mean counts."""

    @abstractmethod
    def std_of_rates(self, output: Tensor, variance: Tensor) -> Tensor:
        """Standard deviation of the rates if the output has this ``variance``."""

    @abstractmethod
    def mean_output(self, output: Tensor, variance: Tensor) -> Tensor:
        """Output whose rates are the mean rates if the output has this ``variance``."""

    @abstractmethod
    def natural(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """a(o) and b(o)."""

    def log_density(self, output: Tensor, counts: Tensor) -> Tensor:
        """Log-likelihood of each entry, but for what does not depend on the output."""
        a, b = self.natural(output)
        return counts * a - b

    def normaliser(self, counts: Tensor, mask: Tensor | None) -> Tensor | float:
        """What ``log_density`` leaves out and learning changes, summed over each trial's entries.

        What is left out still, ``log(counts!)``, depends on nothing but the counts.
        """
        return 0.0

    @abstractmethod
    def score_and_information(self, output: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative of the log-likelihood by the output, and the variance of that derivative."""

    @abstractmethod
    def model_error_moments(
        self, output: Tensor, batch: Batch, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How far off the model is: squared errors beyond noise, and what they are to be over.

        The sum of one over that of the other estimates the variance of the output around the truth.
        ``variance`` is that which inference leaves, and hides from the errors.
        """

    @abstractmethod
    def n_units(self, counts: Tensor, entries: Tensor) -> Tensor:
        """What a score is counted per: spikes among the ``entries``, or the entries themselves."""

    # ------------------------------------------------------------------ the start of a fit

    @abstractmethod
    def smoothed_output(self, smoothed: np.ndarray) -> np.ndarray:
        """Output of smoothed counts ``(..., n_neurons)``; that of a count of zero is finite."""

    @abstractmethod
    def bias(self, mean_counts: np.ndarray) -> np.ndarray:
        """Output of mean counts ``(n_neurons,)``, where the readout's bias starts."""

    @abstractmethod
    def spread(self, mean_counts: Tensor) -> Tensor:
        """Standard deviation of each neuron's counts ``(n_neurons,)``, away from zero."""

    # ------------------------------------------------------------------ what is learned beside

    def fit_null(self, trials: Trials, mean_counts: np.ndarray) -> None:
        """Learn from all trials what the null model, constant rates, needs beside the rates."""

    def refit_null(self, trials: Trials, mean_counts: np.ndarray) -> None:
        """The same of other trials, without a change to what the weights rest on."""

    def accumulate_residuals(self, output: Tensor, batch: Batch) -> None:
        """Remember how counts of a batch in training differ from their rates."""

    def end_epoch(self) -> None:
        """Learn from what was noted since the last epoch."""

    def null(self) -> Likelihood:
        """The likelihood of the null model."""
        return self

    def learned(self, unit: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
        """What an estimator shows of it: names of attributes, and arrays ``(n_neurons,)``.

        ``unit`` is the variance, in units of the data, that variances of signals are given in.
        """
        return {"dispersion_": self.private_dispersion[:, 0].cpu().double().numpy()}
