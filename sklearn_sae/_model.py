"""The model: dynamics, readout and likelihood, and an encoder where inference is amortized."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ._dynamics import Dynamics
from ._encoder import Encoder
from ._likelihoods import Likelihood
from ._readout import Readout

__all__ = ["SequentialAutoencoder"]


class SequentialAutoencoder(nn.Module):
    """Holds the parts of the model; trials are the last axis of every tensor."""

    def __init__(
        self,
        dynamics: Dynamics,
        readout: Readout,
        likelihood: Likelihood,
        encoder: Encoder | None,
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.readout = readout
        self.likelihood = likelihood
        self.encoder = encoder
        #: The estimator's parameters at that time: ``set_params`` may have changed them since.
        self.built_with: dict[str, Any] = {}

    def generator_parameters(self) -> list[nn.Parameter]:
        """Weights of dynamics and readout: what makes spikes from an initial condition."""
        return [*self.dynamics.parameters(), *self.readout.parameters()]

    def output(self, z0: Tensor, n_bins: int) -> Tensor:
        """The readout's output ``(n_bins, n_neurons, n_trials)`` from initial conditions ``z0``.

        Log-rates, unless the likelihood says otherwise.
        """
        return self.readout(self.dynamics.rollout(z0, n_bins))

    def rates(self, z0: Tensor, n_bins: int) -> Tensor:
        """Rates ``(n_bins, n_neurons, n_trials)`` from initial conditions ``z0``."""
        return self.likelihood.rates(self.output(z0, n_bins))
