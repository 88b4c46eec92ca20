"""Gaussian likelihood of values of any sign, such as calcium signals or field potentials."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..._data.trials import Trials
from .dispersed import Dispersed

__all__ = ["Gaussian"]


class Gaussian(Dispersed):
    """Gaussian likelihood of values of any sign; the variance of each neuron is its dispersion.

    Rates are ``centre + scale * output``: mean and standard deviation ``(n_neurons, 1)`` of each
    neuron in training, so that the model does not depend on the unit of the data.
    """

    of_counts = False
    names = ("dispersion_", "noise_variance_", "null_variance_")

    centre: Tensor
    scale: Tensor

    def __init__(self, n_neurons: int, device: str = "cpu") -> None:
        super().__init__(n_neurons, device)
        for name in ("centre", "scale"):
            self.register_buffer(name, torch.zeros(n_neurons, 1, device=device))

    def fit_null(self, trials: Trials, mean_counts: np.ndarray) -> None:
        self.centre.copy_(torch.from_numpy(mean_counts)[:, None])
        super().fit_null(trials, mean_counts)
        std = self.null_dispersion.sqrt()
        # A signal that float32 cannot tell from a constant has a scale of 1.
        self.scale.copy_(torch.where(std > 1e-6 * self.centre.abs(), std, 1.0))
        for dispersion in (self.dispersion, self.null_dispersion):
            dispersion.clamp_(min=self.smallest_dispersion())

    def rates(self, output: Tensor) -> Tensor:
        return self.centre + self.scale * output

    def null_output(self, null_rates: Tensor) -> Tensor:
        # Zero in a first fit. Later ones keep centre and scale, which the weights rest on, and
        # have other means. Nothing has a scale yet when the first null model is learned.
        smallest = torch.finfo(self.scale.dtype).tiny
        return (null_rates[:, None] - self.centre) / self.scale.clamp(min=smallest)

    def std_of_rates(self, output: Tensor, variance: Tensor) -> Tensor:
        return self.scale * variance.sqrt()

    def mean_output(self, output: Tensor, variance: Tensor) -> Tensor:
        return output

    def natural(self, output: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.scale / self.dispersion * output
        return slope, slope * (self.centre + self.scale * output / 2)

    def log_density(self, output: Tensor, counts: Tensor) -> Tensor:
        # The difference of two large numbers, as y a(o) - b(o) is, would lose digits.
        return (counts - self.rates(output)) ** 2 / (-2 * self.dispersion)

    def expected_log_density(self, output: Tensor, variance: Tensor, counts: Tensor) -> Tensor:
        spread = self.scale**2 * variance / (2 * self.dispersion)
        return self.log_density(output, counts) - spread

    def constant(self, counts: Tensor) -> Tensor:
        return -0.5 * (2 * math.pi * self.dispersion).log()

    def score_and_information(self, output: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        precision = self.scale / self.dispersion
        information = (self.scale * precision).expand_as(counts)
        return precision * (counts - self.rates(output)), information

    def n_units(self, counts: Tensor, entries: Tensor) -> Tensor:
        return entries.sum().to(counts.dtype)

    def smoothed_output(self, smoothed: np.ndarray) -> np.ndarray:
        return (smoothed - self.centre[:, 0].numpy()) / self.scale[:, 0].numpy()

    def bias(self, mean_counts: np.ndarray) -> np.ndarray:
        return np.zeros_like(mean_counts)

    def spread(self, mean_counts: Tensor) -> Tensor:
        return self.scale[:, 0].clone()

    def dispersion_parts(self, output: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        errors = (counts - self.rates(output)) ** 2
        return errors, torch.ones_like(errors)

    def smallest_dispersion(self) -> Tensor:
        # A neuron fitted to better than a hundredth of its spread would dominate all others.
        return 1e-4 * self.scale**2
