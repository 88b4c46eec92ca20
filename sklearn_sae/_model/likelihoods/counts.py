"""Likelihoods of counts, with the log-rate as the readout's output."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..._data.batches import Batch
from .base import Likelihood
from .dispersed import Dispersed

__all__ = ["NegativeBinomial", "Poisson"]

#: Added to smoothed counts before their logarithm is taken.
SMALLEST_RATE = 0.1


class LogLink(Likelihood):
    """Likelihoods of counts whose output is the log-rate."""

    def rates(self, output: Tensor) -> Tensor:
        return output.exp()

    def null_output(self, null_rates: Tensor) -> Tensor:
        return null_rates.clamp(min=1e-9).log()[:, None]

    def std_of_rates(self, output: Tensor, variance: Tensor) -> Tensor:
        # Standard deviation of a lognormal with the median exp(output).
        return output.exp() * (torch.expm1(variance) * variance.exp()).sqrt()

    def mean_output(self, output: Tensor, variance: Tensor) -> Tensor:
        return output + variance / 2

    def expected_log_density(self, output: Tensor, variance: Tensor, counts: Tensor) -> Tensor:
        # Exact for Poisson counts; for others below the mean, by Jensen's inequality.
        return self.log_density(self.mean_output(output, variance), counts) - counts * variance / 2

    def n_units(self, counts: Tensor, entries: Tensor) -> Tensor:
        return (counts * entries).sum()

    def smoothed_output(self, smoothed: np.ndarray) -> np.ndarray:
        return np.log(smoothed + SMALLEST_RATE)

    def bias(self, mean_counts: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(mean_counts, 1e-3))

    def spread(self, mean_counts: Tensor) -> Tensor:
        return mean_counts.clamp(min=0.01).sqrt()


class Poisson(LogLink):
    """Poisson likelihood, of variance m at a rate of m."""

    def natural(self, output: Tensor) -> tuple[Tensor, Tensor]:
        return output, output.exp()

    def score_and_information(self, output: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        rates = output.exp()
        return counts - rates, rates

    def model_error_moments(
        self, output: Tensor, batch: Batch, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        unseen = ~batch.observed()
        # Both may overflow after a trial's end, and zero times infinity is not zero.
        rates = output.exp().masked_fill(unseen, 0.0)
        variance = variance.masked_fill(unseen, 0.0)
        # The variance of (y - l)^2 - l is l + 2 l^2: more precise entries have larger weights.
        weight = 1 / (1 + 2 * rates)
        excess = (batch.counts - rates) ** 2 - rates + rates**2 * variance
        return weight * excess, weight * rates**2


class NegativeBinomial(LogLink, Dispersed):
    r"""Negative binomial likelihood, of variance m + alpha m^2 at a rate of m; alpha: dispersion.

    The dispersion solves the optimal quadratic estimating equation [Godambe & Thompson, Journal of
    Statistical Planning and Inference, 1989], which for this variance function is
    sum((e^2 - y - 2 alpha m e - alpha m^2) / (1 + alpha m)^2) = 0, with e = y - m. It is nearly as
    precise as the maximum likelihood, and needs no gamma function.
    """

    names = ("dispersion_", "overdispersion_", "null_overdispersion_")
    # Of a neuron that hardly fires nothing is learned; it stays close to Poisson.
    n_prior = 1.0

    def natural(self, output: Tensor) -> tuple[Tensor, Tensor]:
        # log(1 + alpha m), also for rates that float32 cannot hold.
        log_excess = nn.functional.softplus(output + self.dispersion.log())
        return output - log_excess, log_excess / self.dispersion

    def constant(self, counts: Tensor) -> Tensor:
        return log_rising(counts, 1 / self.dispersion)

    def score_and_information(self, output: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(output + self.dispersion.log())  # alpha m / (1 + alpha m)
        information = share / self.dispersion
        return counts * (1 - share) - information, information

    def spread(self, mean_counts: Tensor) -> Tensor:
        poisson = super().spread(mean_counts)
        return poisson * (1 + self.null_dispersion[:, 0] * poisson**2).sqrt()

    def dispersion_parts(self, output: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        score, information = self.score_and_information(output, counts)  # e and m, over 1 + alpha m
        share = self.dispersion * information
        return score**2 - 2 * share * score - counts * (1 - share) ** 2, information**2

    def smallest_dispersion(self) -> float:
        return 1e-6


def log_rising(counts: Tensor, r: Tensor) -> Tensor:
    """Compute ``log(gamma(counts + r) / gamma(r) / r^counts)``, also in float32 for any r > 0."""
    exact = torch.lgamma(counts + r) - torch.lgamma(r) - counts * r.log()
    # For large r these are differences of large numbers, which Stirling's series avoids.
    series = (counts + r - 0.5) * torch.log1p(counts / r) - counts
    series = series - counts / (12 * r * (counts + r))
    return torch.where(r > 30, series, exact)
