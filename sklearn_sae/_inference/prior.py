"""Prior of a trial's latent variables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._model.inputs import Inputs

__all__ = ["Prior"]

#: Of initial conditions that are all alike.
SMALLEST_VARIANCE = 1e-4


@dataclass(frozen=True)
class Prior:
    """Gaussian prior of initial conditions, and the prior of ``inputs``.

    ``mean`` is ``(n_latents,)``, and ``precision``, the inverse covariance, ``(n_latents,
    n_latents)``.
    """

    mean: Tensor
    precision: Tensor
    inputs: Inputs | None = None

    @classmethod
    def from_samples(cls, z0: Tensor, inputs: Inputs | None = None) -> Prior:
        """Fit a Gaussian to ``z0`` ``(n_trials, n_latents)``.

        The fewer the trials, the more the covariance is shrunk towards its diagonal.
        """
        n_trials, n_latents = z0.shape
        mean = z0.mean(0)
        deviation = z0 - mean
        covariance = deviation.T @ deviation / n_trials
        diagonal = torch.diag(covariance.diagonal().clamp(min=1e-3))
        trust = n_trials / (n_trials + n_latents + 1)
        # inv_ex, unlike inv, gives NaN or inf if the samples of a diverging model overflow.
        precision = torch.linalg.inv_ex(trust * covariance + (1 - trust) * diagonal).inverse
        return cls(mean, precision, inputs)

    @classmethod
    def of_moments(
        cls, total: Tensor, squares: Tensor, n_trials: int, inputs: Inputs | None = None
    ) -> Prior:
        """Fit a Gaussian to sums over trials of initial conditions, and of their squares.

        ``total`` is ``(n_latents,)`` and ``squares`` ``(n_latents, n_latents)``; squares may hold
        the covariances of initial conditions that are not known exactly.
        """
        mean = total / n_trials
        covariance = squares / n_trials - torch.outer(mean, mean)
        ridge = SMALLEST_VARIANCE * torch.eye(len(mean), device=mean.device)
        precision = torch.linalg.inv_ex(covariance + ridge).inverse
        return cls(mean, (precision + precision.mT) / 2, inputs)

    def log_density(self, variables: Tensor) -> Tensor:
        """Log-density ``(n_trials,)`` of columns ``(n_variables, n_trials)``, up to a constant."""
        n_latents = len(self.mean)
        deviation = variables[:n_latents] - self.mean[:, None]
        value = -0.5 * (deviation * (self.precision @ deviation)).sum(0)
        if self.inputs is None or len(variables) == n_latents:
            return value
        inferred = variables[n_latents:].unflatten(0, (-1, self.inputs.n_inferred))
        return value - 0.5 * self.inputs.innovations(inferred).square().sum((0, 1))

    def gradient(self, z0: Tensor) -> Tensor:
        """Gradient of the log-density by initial conditions ``(n_latents, n_trials)``.

        Means and precisions of several priors may be stacked; ``z0`` then has their axis too.
        """
        return -(self.precision @ (z0 - self.mean[..., None]))

    def of_first_state(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and precision of the prior of the first bin's state: latents and inputs.

        ``states`` are columns ``(n_states, n_trials)``; returned are ``(n_trials, n_states)`` and
        ``(n_states, n_states)``.
        """
        n_latents = len(self.mean)
        gradient = self.gradient(states[:n_latents]).T
        if self.inputs is None or len(states) == n_latents:
            return gradient, self.precision
        of_inputs = 1 / self.inputs.variance
        gradient = torch.cat([gradient, -(of_inputs[:, None] * states[n_latents:]).T], dim=1)
        return gradient, torch.block_diag(self.precision, torch.diag(of_inputs))
