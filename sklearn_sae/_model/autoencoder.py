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
    """A sequential autoencoder of given parts; trials are the last axis of every tensor.

    The latent variables ``(n_variables, n_trials)`` of trials hold their initial conditions and, if
    inputs are inferred, below them the inputs of all bins but the last, bin after bin.
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
        """Number of inferred inputs."""
        return 0 if self.inputs is None else self.inputs.n_inferred

    @property
    def inferring(self) -> bool:
        """Whether any inputs are inferred."""
        return self.n_inferred > 0

    def generative_parameters(self) -> list[nn.Parameter]:
        """Weights of the generative model: dynamics, readout and inputs."""
        of_inputs = [] if self.inputs is None else [*self.inputs.parameters()]
        return [*self.dynamics.parameters(), *self.readout.parameters(), *of_inputs]

    def rollout(self, variables: Tensor, n_bins: int, known: Tensor | None = None) -> Tensor:
        """Latents ``(n_bins, n_latents, n_trials)`` of latent ``variables``.

        ``known`` inputs are ``(n_bins, n_known, n_trials)``.
        """
        return self.dynamics.rollout(*self.rollout_arguments(variables, n_bins, known))

    def rollout_arguments(
        self, variables: Tensor, n_bins: int, known: Tensor | None
    ) -> tuple[Tensor, int, Tensor | None]:
        """Arguments of ``Dynamics.rollout``: initial conditions, number of bins, jumps if any."""
        z0 = variables[: self.readout.n_latents]
        if self.inputs is None:
            return z0, n_bins, None
        known = None if known is None else known[:n_bins]
        return z0, n_bins, self.inputs.jumps(known, self.inferred_inputs(variables, n_bins))

    def output(self, variables: Tensor, n_bins: int, known: Tensor | None = None) -> Tensor:
        """Output ``(n_bins, n_neurons, n_trials)`` of the readout: log-rates, or rates."""
        return self.readout(self.rollout(variables, n_bins, known))

    def rates(self, variables: Tensor, n_bins: int, known: Tensor | None = None) -> Tensor:
        """Rates ``(n_bins, n_neurons, n_trials)`` of latent ``variables``."""
        return self.likelihood.rates(self.output(variables, n_bins, known))

    def inferred_inputs(self, variables: Tensor, n_bins: int) -> Tensor | None:
        """Inferred inputs ``(n_bins - 1, n_inferred, n_trials)``; None if there are none."""
        n_latents = self.readout.n_latents
        if n_bins == 1 or len(variables) == n_latents:
            return None
        return variables[n_latents:].unflatten(0, (-1, self.n_inferred))[: n_bins - 1]

    def inputs_of_all_bins(self, variables: Tensor, n_bins: int) -> Tensor:
        """Inferred inputs ``(n_bins, n_inferred, n_trials)``.

        Spikes do not determine the input of the last bin, which is the prior mean given the one
        before.
        """
        inferred = self.inferred_inputs(variables, n_bins)
        assert inferred is not None
        assert self.inputs is not None
        return self.inputs.continued(inferred, 1)

    def with_inputs(self, variables: Tensor, n_bins: int) -> Tensor:
        """Append inferred inputs of zero to ``variables``, if the model has any and they do not."""
        if not self.inferring or len(variables) > self.readout.n_latents:
            return variables
        zeros = variables.new_zeros((n_bins - 1) * self.n_inferred, variables.shape[1])
        return torch.cat([variables, zeros])
