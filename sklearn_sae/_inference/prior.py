"""What is expected of a trial's variables before its spikes are seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._model.inputs import Inputs

__all__ = ["Prior"]


@dataclass(frozen=True)
class Prior:
    """Gaussian over initial conditions, as mean and inverse covariance; and that of ``inputs``."""

    mean: Tensor
    precision: Tensor
    inputs: Inputs | None = None

    @classmethod
    def from_samples(cls, z0: Tensor, inputs: Inputs | None = None) -> Prior:
        """Fit to ``z0`` ``(n_trials, n_latents)``; few trials shrink it to independent latents."""
        n_trials, n_latents = z0.shape
        mean = z0.mean(0)
        deviation = z0 - mean
        covariance = deviation.T @ deviation / n_trials
        diagonal = torch.diag(covariance.diagonal().clamp(min=1e-3))
        trust = n_trials / (n_trials + n_latents + 1)
        # inv_ex, unlike inv, leaves it at NaN or inf if samples of one diverging model overflow.
        precision = torch.linalg.inv_ex(trust * covariance + (1 - trust) * diagonal).inverse
        return cls(mean, precision, inputs)

    def log_density(self, variables: Tensor) -> Tensor:
        """Up to a constant, of columns ``(n_variables, n_trials)``."""
        n_latents = len(self.mean)
        deviation = variables[:n_latents] - self.mean[:, None]
        value = -0.5 * (deviation * (self.precision @ deviation)).sum(0)
        if self.inputs is None or len(variables) == n_latents:
            return value
        inferred = variables[n_latents:].unflatten(0, (-1, self.inputs.n_inferred))
        return value - 0.5 * self.inputs.innovations(inferred).square().sum((0, 1))

    def gradient(self, z0: Tensor) -> Tensor:
        """Gradient of the log-density by initial conditions ``(n_latents, n_trials)``.

        Means and precisions of several priors may be stacked, ``z0`` then has their axis, too.
        """
        return -(self.precision @ (z0 - self.mean[..., None]))

    def of_first_state(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(n_trials, n_states)`` and precision of latents and inputs of the first bin.

        ``states`` are columns ``(n_states, n_trials)``.
        """
        n_latents = len(self.mean)
        gradient = self.gradient(states[:n_latents]).T
        if self.inputs is None or len(states) == n_latents:
            return gradient, self.precision
        of_inputs = 1 / self.inputs.variance
        gradient = torch.cat([gradient, -(of_inputs[:, None] * states[n_latents:]).T], dim=1)
        return gradient, torch.block_diag(self.precision, torch.diag(of_inputs))
