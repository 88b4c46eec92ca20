r"""What is known of the latent variables of trials once their spikes are seen.

Given the model, the posterior of a trial's latent variables is close to a Gaussian around its mode
(Laplace approximation; MacKay 1992): its covariance is the inverse of Fisher information plus prior
precision, and linearised dynamics carry it through the trial. The model is not the truth, though,
and on many trials its own error is as large: that adds one variance of the readout's output
(log-rates, for counts), the same in all bins, estimated from the training trials
(``model_variance``).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .._model.inputs import InputStatistics
from .linearisation import linearise
from .prior import Prior
from .smoother import backward, covariances

__all__ = ["LARGEST_VARIANCE", "LaplacePosterior", "Posterior"]

#: exp(20) is as good as "nothing is known", and a float32 can still hold it.
LARGEST_VARIANCE = 20.0
LARGEST_SPREAD = 1e6
#: Of variances that move posterior means. Where nothing is observed, linearised dynamics let them
#: grow far beyond what the dynamics themselves would.
LARGEST_SHIFT = 0.25


class Posterior:
    """Latent variables of a batch's trials, without a measure of how certain they are.

    Attributes
    ----------
    model : SequentialAutoencoder
    batch : Batch
    variables : Tensor of shape (n_variables, n_trials)
        Initial conditions and, if inputs are inferred, those of all bins but the last.
    """

    def __init__(self, model: SequentialAutoencoder, batch: Batch, variables: Tensor) -> None:
        self.model, self.batch, self.variables = model, batch, variables

    @cached_property
    def latents(self) -> Tensor:
        """Latents ``(n_bins, n_latents, n_trials)``."""
        return self.model.rollout(self.variables, len(self.batch.counts), self.batch.inputs)

    @cached_property
    def output(self) -> Tensor:
        """The readout's output at the latents, ``(n_bins, n_neurons, n_trials)``."""
        return self.model.readout(self.latents)

    @property
    def mean_output(self) -> Tensor:
        """Output whose rates are those to predict."""
        return self.output

    @property
    def rates(self) -> Tensor:
        """Rates to predict, ``(n_bins, n_neurons, n_trials)``."""
        return self.model.likelihood.rates(self.mean_output)

    @property
    def initial_conditions(self) -> Tensor:
        """Latents of the first bin ``(n_latents, n_trials)``."""
        return self.variables[: self.model.readout.n_latents]

    @property
    def inputs(self) -> Tensor:
        """Inferred inputs of all bins, ``(n_bins, n_inferred, n_trials)``."""
        return self.model.inputs_of_all_bins(self.variables, len(self.batch.counts))

    def latent_std(self, model_variance: float | None) -> Tensor:
        """Standard deviations of ``latents``."""
        raise self._no_std()

    def rate_std(self, model_variance: float | None) -> Tensor:
        """Standard deviations of ``rates``."""
        raise self._no_std()

    def input_std(self) -> Tensor:
        """Standard deviations of ``inputs``."""
        raise self._no_std()

    @staticmethod
    def _no_std() -> ValueError:
        return ValueError(
            "return_std=True needs the posterior of the initial conditions, which an encoder "
            'does not give: this model was fitted with inference="amortized". Fit with '
            'inference="semi-amortized".'
        )


class LaplacePosterior(Posterior):
    """Gaussian around the mode of the latent variables, under ``prior``."""

    def __init__(
        self, model: SequentialAutoencoder, prior: Prior, batch: Batch, variables: Tensor
    ) -> None:
        super().__init__(model, batch, variables)
        self.prior = prior

    @cached_property
    def _covariances(self) -> tuple[Tensor, Tensor | None]:
        """Of the states (latents and inputs) of all bins, and with those of the next bin."""
        linear = linearise(
            self.model, self.prior, self.batch, self.variables, self.latents, self.output
        )
        undamped = self.latents.new_zeros(self.latents.shape[2])
        return covariances(linear, backward(linear, undamped))

    @cached_property
    def latent_covariances(self) -> Tensor:
        """Of the latents of all bins, ``(n_trials, n_bins, n_latents, n_latents)``."""
        n_latents = self.latents.shape[1]
        covariance = self._covariances[0][:, :, :n_latents, :n_latents]
        # Beyond a trial's end they may overflow: nothing is known there.
        return covariance.nan_to_num(LARGEST_SPREAD).clamp(-LARGEST_SPREAD, LARGEST_SPREAD)

    @property
    def output_variance(self) -> Tensor:
        """Variance of the output given the model, ``(n_bins, n_neurons, n_trials)``."""
        return self.model.readout.output_variance(self.latents, self.latent_covariances)

    @property
    def mean_output(self) -> Tensor:
        """Output at the mode or, if inputs are inferred, that whose rates are posterior means.

        The posterior of initial conditions alone is narrow, and not worth the covariances.
        """
        if not self.model.inferring:
            return self.output
        v = self.output_variance.clamp(0, LARGEST_SHIFT)
        return self.model.likelihood.mean_output(self.output, v)

    def latent_std(self, model_variance: float | None) -> Tensor:
        variance = self._with_model_error(model_variance).diagonal(dim1=2, dim2=3)
        return variance.clamp(min=0).sqrt().permute(1, 2, 0)

    def rate_std(self, model_variance: float | None) -> Tensor:
        """Standard deviations of ``rates``.

        The readout's output is close to linear in the latents, so Gaussian. Where it is the
        log-rate, rates are lognormal: their median is m, their standard deviation
        m sqrt((exp(v) - 1) exp(v)), with v the variance of the output.
        """
        covariance = self._with_model_error(model_variance)
        v = self.model.readout.output_variance(self.latents, covariance)
        return self.model.likelihood.std_of_rates(self.output, v.clamp(0, LARGEST_VARIANCE))

    def input_std(self) -> Tensor:
        assert self.model.inputs is not None
        variance = self._covariances[0].diagonal(dim1=2, dim2=3)[..., self.latents.shape[1] :]
        # Never more than the prior's, even if the linearised dynamics overflow.
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

    def _with_model_error(self, model_variance: float | None) -> Tensor:
        assert model_variance is not None
        unit = self.model.readout.unit_covariance(self.latents)
        return self.latent_covariances + model_variance * unit
