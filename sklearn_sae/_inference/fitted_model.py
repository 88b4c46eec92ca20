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
from .paths import NoisyInference, learn_process_noise
from .posterior import Posterior
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
    """

    network: SequentialAutoencoder
    settings: dict[str, Any]
    null_rates: np.ndarray
    units: Units = field(default_factory=Units)
    initial_conditions: np.ndarray | None = None
    model_variance: float | None = None
    process_noise: np.ndarray | None = None

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
        return replace(self, model_variance=model_variance(self.network, trials, table))

    def with_process_noise(self, trials: Trials, table: Tensor | None) -> FittedModel:
        """Add the process noise, given the training trials' ``table`` of latent variables."""
        assert table is not None
        noise = learn_process_noise(self.network, trials, table)
        return replace(self, process_noise=noise.cpu().double().numpy())

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
        return NoisyInference(network, z0, torch.from_numpy(self.process_noise).to(z0), max_iter)

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
