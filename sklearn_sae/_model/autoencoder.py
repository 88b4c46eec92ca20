"""The model: dynamics and their inputs, readout, likelihood; an encoder if amortized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .dynamics import Dynamics
from .encoder import Encoder
from .inputs import Inputs
from .likelihoods import Likelihood
from .readout import Readout

__all__ = ["SequentialAutoencoder"]


class SequentialAutoencoder(nn.Module):
    """Holds the parts of the model; trials are the last axis of every tensor.

    The latent variables of a trial ``(n_variables, n_trials)`` are its initial condition and, if
    inputs are inferred, below it those of all bins but the last, one bin after the other.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        readout: Readout,
        likelihood: Likelihood,
        encoder: Encoder | None,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.readout = readout
        self.likelihood = likelihood
        self.encoder = encoder
        self.inputs = inputs

    @property
    def n_inferred(self) -> int:
        """How many inputs are inferred."""
        return 0 if self.inputs is None else self.inputs.n_inferred

    @property
    def inferring(self) -> bool:
        """Whether any are."""
        return self.n_inferred > 0

    def generative_parameters(self) -> list[nn.Parameter]:
        """Weights of dynamics, readout and inputs: what makes spikes from their variables."""
        of_inputs = [] if self.inputs is None else [*self.inputs.parameters()]
        return [*self.dynamics.parameters(), *self.readout.parameters(), *of_inputs]

    def rollout(self, variables: Tensor, n_bins: int, known: Tensor | None = None) -> Tensor:
        """Latents ``(n_bins, n_latents, n_trials)``.

        ``known`` inputs are ``(n_bins, n_known, n_trials)``.
        """
        return self.dynamics.rollout(*self.rollout_arguments(variables, n_bins, known))

    def rollout_arguments(
        self, variables: Tensor, n_bins: int, known: Tensor | None
    ) -> tuple[Tensor, int, Tensor | None]:
        """What the dynamics are rolled out from: initial conditions, bins, and jumps if any."""
        z0 = variables[: self.readout.n_latents]
        if self.inputs is None:
            return z0, n_bins, None
        known = None if known is None else known[:n_bins]
        return z0, n_bins, self.inputs.jumps(known, self.inferred_inputs(variables, n_bins))

    def output(self, variables: Tensor, n_bins: int, known: Tensor | None = None) -> Tensor:
        """The readout's output ``(n_bins, n_neurons, n_trials)``.

        Log-rates, unless the likelihood says otherwise.
        """
        return self.readout(self.rollout(variables, n_bins, known))

    def rates(self, variables: Tensor, n_bins: int, known: Tensor | None = None) -> Tensor:
        """Rates ``(n_bins, n_neurons, n_trials)``."""
        return self.likelihood.rates(self.output(variables, n_bins, known))

    def inferred_inputs(self, variables: Tensor, n_bins: int) -> Tensor | None:
        """Inferred inputs ``(n_bins - 1, n_inferred, n_trials)``; None if there are none."""
        n_latents = self.readout.n_latents
        if n_bins == 1 or len(variables) == n_latents:
            return None
        return variables[n_latents:].unflatten(0, (-1, self.n_inferred))[: n_bins - 1]

    def inputs_of_all_bins(self, variables: Tensor, n_bins: int) -> Tensor:
        """Inferred inputs ``(n_bins, n_inferred, n_trials)``.

        That of the last bin, of which nothing is known, is the prior's mean given the one before.
        """
        inferred = self.inferred_inputs(variables, n_bins)
        assert inferred is not None
        assert self.inputs is not None
        return self.inputs.continued(inferred, 1)

    def with_inputs(self, variables: Tensor, n_bins: int) -> Tensor:
        """Latent variables with inferred inputs of zero, if there are to be some and none are."""
        if not self.inferring or len(variables) > self.readout.n_latents:
            return variables
        zeros = variables.new_zeros((n_bins - 1) * self.n_inferred, variables.shape[1])
        return torch.cat([variables, zeros])
