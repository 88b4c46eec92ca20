r"""Posterior of the latent variables of trials, given their spikes.

Given the model, the posterior is close to a Gaussian around its mode (Laplace approximation; MacKay
1992). Its covariance is the inverse of the sum of Fisher information and prior precision, and
linearised dynamics propagate it through the trial. The model's own error may be as large: it adds a
variance of the readout's output (of log-rates, for counts) that is the same in all bins and is
estimated from the training trials (``model_variance``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .._model.inputs import InputStatistics
from .linearisation import linearise
from .prior import Prior
from .smoother import backward, covariances

__all__ = ["LARGEST_VARIANCE", "GaussianPosterior", "LaplacePosterior", "Posterior"]

#: exp(20) is as good as infinite, and a float32 can still hold it.
LARGEST_VARIANCE = 20.0
LARGEST_SPREAD = 1e6
#: Largest variance in a posterior mean of rates: where nothing is observed, variances of linearised
#: dynamics grow far beyond those of the dynamics.
LARGEST_SHIFT = 0.25


class Posterior:
    """Interface of posteriors: latent variables of a batch's trials, here without uncertainty.

    Attributes
    ----------
    model : SequentialAutoencoder
        The model.
    batch : Batch
        The trials.
    variables : Tensor of shape (n_variables, n_trials)
        Posterior mode of initial conditions and inferred inputs of all bins but the last.
    """

    def __init__(self, model: SequentialAutoencoder, batch: Batch, variables: Tensor) -> None:
        self.model, self.batch, self.variables = model, batch, variables

    @cached_property
    def latents(self) -> Tensor:
        """Latents ``(n_bins, n_latents, n_trials)``."""
        return self.model.rollout(self.variables, len(self.batch.counts), self.batch.inputs)

    @cached_property
    def output(self) -> Tensor:
        """Output ``(n_bins, n_neurons, n_trials)`` of the readout at the latents."""
        return self.model.readout(self.latents)

    @property
    def mean_output(self) -> Tensor:
        """Output ``(n_bins, n_neurons, n_trials)`` whose rates are those to predict."""
        return self.output

    @property
    def rates(self) -> Tensor:
        """Predicted rates ``(n_bins, n_neurons, n_trials)``."""
        return self.model.likelihood.rates(self.mean_output)

    @property
    def initial_conditions(self) -> Tensor:
        """Initial conditions ``(n_latents, n_trials)``."""
        return self.variables[: self.model.readout.n_latents]

    @property
    def inputs(self) -> Tensor:
        """Inferred inputs ``(n_bins, n_inferred, n_trials)``."""
        return self.model.inputs_of_all_bins(self.variables, len(self.batch.counts))

    def latent_std(self, model_variance: float | None) -> Tensor:
        """Standard deviations of ``latents``, of the same shape."""
        raise self._no_std()

    def rate_std(self, model_variance: float | None) -> Tensor:
        """Standard deviations of ``rates``, of the same shape."""
        raise self._no_std()

    def input_std(self) -> Tensor:
        """Standard deviations of ``inputs``, of the same shape."""
        raise self._no_std()

    @staticmethod
    def _no_std() -> ValueError:
        return ValueError(
            "return_std=True needs the posterior of the initial conditions, which an encoder "
            'does not give: this model was fitted with inference="amortized". Fit with '
            'inference="semi-amortized".'
        )


class GaussianPosterior(Posterior, ABC):
    """Gaussian around the mode of the latent variables."""

    @property
    @abstractmethod
    def state_covariances(self) -> Tensor:
        """Covariances ``(n_trials, n_bins, n_states, n_states)``, those of the latents first."""

    @cached_property
    def latent_covariances(self) -> Tensor:
        """Covariances ``(n_trials, n_bins, n_latents, n_latents)`` of the latents."""
        n_latents = self.latents.shape[1]
        covariance = self.state_covariances[:, :, :n_latents, :n_latents]
        # Covariances may overflow after a trial's end, where there are no spikes.
        return covariance.nan_to_num(LARGEST_SPREAD).clamp(-LARGEST_SPREAD, LARGEST_SPREAD)

    @property
    def output_variance(self) -> Tensor:
        """Variance of the output given the model, ``(n_bins, n_neurons, n_trials)``."""
        return self.model.readout.output_variance(self.latents, self.latent_covariances)

    @property
    def mean_output(self) -> Tensor:
        """Output whose rates are posterior means, ``(n_bins, n_neurons, n_trials)``."""
        v = self.output_variance.clamp(0, LARGEST_SHIFT)
        return self.model.likelihood.mean_output(self.output, v)

    def latent_std(self, model_variance: float | None) -> Tensor:
        variance = self._with_model_error(model_variance).diagonal(dim1=2, dim2=3)
        return variance.clamp(min=0).sqrt().permute(1, 2, 0)

    def rate_std(self, model_variance: float | None) -> Tensor:
        """Standard deviations of ``rates``, of the same shape.

        The readout's output is close to linear in the latents, and thus Gaussian. If it is the
        log-rate, rates are lognormal with median m and standard deviation
        m sqrt((exp(v) - 1) exp(v)), where v is the variance of the output.
        """
        covariance = self._with_model_error(model_variance)
        v = self.model.readout.output_variance(self.latents, covariance)
        return self.model.likelihood.std_of_rates(self.output, v.clamp(0, LARGEST_VARIANCE))

    def _with_model_error(self, model_variance: float | None) -> Tensor:
        assert model_variance is not None
        unit = self.model.readout.unit_covariance(self.latents)
        return self.latent_covariances + model_variance * unit


class LaplacePosterior(GaussianPosterior):
    """Laplace approximation: a Gaussian around the mode of the latent variables."""

    def __init__(
        self, model: SequentialAutoencoder, prior: Prior, batch: Batch, variables: Tensor
    ) -> None:
        super().__init__(model, batch, variables)
        self.prior = prior

    @cached_property
    def _covariances(self) -> tuple[Tensor, Tensor | None]:
        """Covariances of states, which are latents and inputs; see ``smoother.covariances``."""
        linear = linearise(
            self.model, self.prior, self.batch, self.variables, self.latents, self.output
        )
        undamped = self.latents.new_zeros(self.latents.shape[2])
        return covariances(linear, backward(linear, undamped))

    @property
    def state_covariances(self) -> Tensor:
        return self._covariances[0]

    @property
    def mean_output(self) -> Tensor:
        """Output whose rates are posterior means or, without inferred inputs, output at the mode.

        The posterior of initial conditions alone is so narrow that the mode is as good.
        """
        return super().mean_output if self.model.inferring else self.output

    def input_std(self) -> Tensor:
        assert self.model.inputs is not None
        variance = self._covariances[0].diagonal(dim1=2, dim2=3)[..., self.latents.shape[1] :]
        # At most the prior variance, even if the linearised dynamics overflow.
        variance = torch.minimum(variance.nan_to_num(nan=torch.inf), self.model.inputs.variance)
        return variance.clamp(min=0).sqrt().permute(1, 2, 0)

    def input_statistics(self) -> InputStatistics:
        """Sums from which the prior of the inferred inputs is learned."""
        inferred = self.model.inferred_inputs(self.variables, len(self.batch.counts))
        assert self.model.inputs is not None and inferred is not None
        n_latents = self.latents.shape[1]
        own, with_next = self._covariances
        assert with_next is not None
        return self.model.inputs.statistics(
            inferred,
            own[:, :-1, n_latents:, n_latents:].diagonal(dim1=2, dim2=3),
            with_next[:, :-1, n_latents:, n_latents:].diagonal(dim1=2, dim2=3),
            torch.as_tensor(self.batch.lengths, device=inferred.device),
        )
