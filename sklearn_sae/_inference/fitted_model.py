"""The fitted model, and its inference and scores of other trials."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.batches import Batch
from .._data.trials import Trials
from .._data.units import Units
from .._model.autoencoder import SequentialAutoencoder
from .inference import Amortized, Inference, SemiAmortized
from .memory import trials_at_once
from .model_variance import model_variance
from .paths import NoisyInference, PathPosterior
from .posterior import LaplacePosterior, Posterior
from .prior import Prior
from .scoring import SCORE_FRACTION, bits_gained, hidden_entries, without_silent

__all__ = ["FittedModel"]


@dataclass(frozen=True)
class FittedModel:
    """A network and all that inference needs beside it; an estimator's results come from it.

    Attributes
    ----------
    network : SequentialAutoencoder
        The fitted network.
    settings : dict
        Parameters of the estimator at the time of the fit: ``set_params`` may change them later.
    null_rates : float64 array of shape (n_neurons,)
        Mean counts in training, in units of the data.
    units : Units
        Units of Gaussian signals.
    initial_conditions : float32 array of shape (n_training_trials, n_latents) or None
        Initial conditions of the training trials; None with an encoder, which needs none.
    model_variance : float or None
        Variance due to model error, see ``model_variance``; None with an encoder.
    process_noise : float64 array of shape (n_latents,) or None
        Standard deviations of the process noise in a bin; None if dynamics are deterministic.
    initial_covariance : float64 array of shape (n_latents, n_latents) or None
        Covariance of the prior of initial conditions; None if it is that of the training trials'.
    """

    network: SequentialAutoencoder
    settings: dict[str, Any]
    null_rates: np.ndarray
    units: Units = field(default_factory=Units)
    initial_conditions: np.ndarray | None = None
    model_variance: float | None = None
    process_noise: np.ndarray | None = None
    initial_covariance: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        network: SequentialAutoencoder,
        settings: dict[str, Any],
        null_rates: np.ndarray,
        units: Units,
        table: Tensor | None,
    ) -> FittedModel:
        """Make a fitted model without a model variance yet.

        Initial conditions are taken from the ``table`` ``(n_trials, n_variables)`` of latent
        variables, if there is one.
        """
        z0 = None if table is None else table[:, : network.readout.n_latents].cpu().numpy().copy()
        return cls(network, settings, null_rates, units, z0)

    def with_model_variance(self, trials: Trials, table: Tensor | None) -> FittedModel:
        """Add the model variance, given the training trials' ``table`` of latent variables."""
        if table is None:
            return self
        prior = Prior.from_samples(table[:, : self.network.readout.n_latents], self.network.inputs)

        def posterior_of(batch: Batch, rows: Tensor) -> LaplacePosterior:
            return LaplacePosterior(self.network, prior, batch, table[rows].T.contiguous())

        found = model_variance(self.network, trials, posterior_of, table.device)
        return replace(self, model_variance=found)

    @classmethod
    def of_paths(
        cls,
        inference: NoisyInference,
        settings: dict[str, Any],
        null_rates: np.ndarray,
        units: Units,
        trials: Trials,
        table: Tensor,
    ) -> FittedModel:
        """Make a fitted model with process noise, given the inference under it.

        The ``table`` ``(n_trials, n_bins, n_states)`` holds the training trials' states.
        """
        network, prior = inference.model, inference.prior
        n_latents, device = network.readout.n_latents, prior.mean.device

        def posterior_of(batch: Batch, rows: Tensor) -> PathPosterior:
            return inference.infer(batch, table[rows, : len(batch.counts)].permute(1, 2, 0))

        return cls(
            network,
            settings,
            null_rates,
            units,
            table[:, 0, :n_latents].cpu().numpy().copy(),
            model_variance(network, trials, posterior_of, device),
            inference.process_noise.sqrt().cpu().double().numpy(),
            torch.linalg.inv_ex(prior.precision.double()).inverse.cpu().numpy(),
        )

    def learned(self) -> dict[str, Any]:
        """What an estimator shows of it: names of attributes and their values."""
        unit = 1.0 if self.units.scale is None else self.units.scale**2
        attributes = {
            "model_": self.network,
            "null_rates_": self.null_rates,
            "signal_mean_": self.units.centre,
            "signal_scale_": self.units.scale,
            "training_initial_conditions_": self.initial_conditions,
            "model_variance_": self.model_variance,
            "process_noise_": self.process_noise,
            "initial_covariance_": self.initial_covariance,
            **self.network.likelihood.learned(unit),
        }
        return {name: value for name, value in attributes.items() if value is not None}

    def inference(self, device: torch.device) -> Inference:
        """Make the inference under this model on ``device``."""
        network = self.network
        if next(network.parameters()).device != device:
            network = copy.deepcopy(network).to(device)
        if self.initial_conditions is None:
            return Amortized(network)
        z0, max_iter = torch.from_numpy(self.initial_conditions), self.settings["max_refine_iter"]
        z0 = z0.to(device)
        if self.process_noise is None:
            return SemiAmortized(network, z0, max_iter)
        prior = Prior.from_samples(z0, network.inputs)
        if self.initial_covariance is not None:
            covariance = torch.from_numpy(self.initial_covariance).to(z0)
            prior = Prior(prior.mean, torch.linalg.inv(covariance), network.inputs)
        noise = torch.from_numpy(self.process_noise).to(z0).square()
        return NoisyInference(network, prior, noise, max_iter)

    def posteriors(
        self, trials: Trials, device: torch.device, n_ahead: int = 0
    ) -> Iterator[Posterior]:
        """Yield the posterior of one batch of trials after the other.

        ``n_ahead`` bins that are not observed are appended, which the dynamics predict.
        """
        inference = self.inference(device)
        for batch in self._batches(inference.model, trials, device, n_ahead):
            if n_ahead:
                batch = batch.longer(int(batch.lengths.max()) + n_ahead)
            yield inference.infer(batch)

    @torch.no_grad()
    def infer_again(self, trials: Trials) -> Tensor:
        """Infer latent variables ``(n_trials, n_variables)`` of the trials of another fit.

        As many trials as in this fit are taken for the same ones, and try their old initial
        conditions too; if they are others, that does no harm.
        """
        device = torch.device("cpu")
        inference = self.inference(device)
        table = self.initial_conditions
        same = table is not None and len(table) == len(trials)
        infer = inference.infer_again if same else inference.infer
        batches = self._batches(inference.model, trials, device)
        found = [infer(batch).variables for batch in batches]
        return torch.cat(found, dim=1).T.contiguous()

    @torch.no_grad()
    def score(self, trials: Trials, device: torch.device) -> float:
        """Compute held-out bits per spike, NaN if no spike was hidden."""
        inference, null_rates = self.inference(device), self._null_rates(device)
        likelihood = inference.model.likelihood
        sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        for batch in self._batches(inference.model, trials, device):
            hidden = hidden_entries(batch, SCORE_FRACTION)
            output = inference.infer(batch.hide(hidden)).mean_output
            sums += bits_gained(likelihood, output, null_rates, batch, hidden)
        gain, n_units = sums.tolist()
        return gain / n_units if n_units else float("nan")

    def _batches(
        self,
        network: SequentialAutoencoder,
        trials: Trials,
        device: torch.device,
        n_ahead: int = 0,
    ) -> Iterator[Batch]:
        null_rates = self._null_rates(device)
        for batch in trials.chunks(trials_at_once(network, trials.n_bins + n_ahead), device):
            yield without_silent(network.likelihood, null_rates, batch)

    def _null_rates(self, device: torch.device) -> Tensor:
        return torch.from_numpy(self.units.to_network(self.null_rates)).float().to(device)
