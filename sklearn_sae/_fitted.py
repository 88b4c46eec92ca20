"""What a fitted model is good for: latents, rates, scores, forecasts, simulations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ._batches import Batch
from ._inference import Prior, best_start, refine, trials_at_once
from ._likelihood import SCORE_FRACTION, bits_gained, hidden_entries
from ._model import SequentialAutoencoder
from ._uncertainty import latents_with_std, rates_with_std
from ._validation import check_count, check_device, check_latents, check_trials

__all__ = ["FittedMixin"]


class FittedMixin:
    """Methods of an estimator that is fitted; how it is fitted is not their business."""

    # Parameters, and what fit learns.
    device: str | torch.device
    max_refine_iter: int
    model_: SequentialAutoencoder
    null_rates_: np.ndarray
    training_initial_conditions_: np.ndarray
    model_variance_: float

    def transform(self, X, return_std=False):
        """Infer the latents of trials.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed. The number of bins may differ from that in ``fit``.
        return_std : bool, default=False
            Return standard deviations too; only if ``inference="semi-amortized"``. They hold what
            the trial's spikes leave open (Laplace approximation) and the error of the model
            (``model_variance_``).

        Returns
        -------
        latents : float32 array of shape (n_trials, n_bins, n_latents), or list of (n_bins_i,
        n_latents)
            Latents in every bin, observed or not; a list if ``X`` was one.
        std : as latents
            Their standard deviations, only if ``return_std``.
        """
        if return_std:
            return self._with_std(X, latents_with_std)
        return self._per_bin(
            X, lambda model, z0, batch: model.dynamics.rollout(z0, len(batch.counts))
        )

    def predict(self, X, return_std=False):
        """Infer the firing rates of trials.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.
        return_std : bool, default=False
            Return standard deviations too; only if ``inference="semi-amortized"``. The posterior of
            a rate is lognormal, with the predicted rate m as its median and the standard deviation
            m sqrt((exp(v) - 1) exp(v)), v being the variance of the log-rate: what the trial's
            spikes leave open (Laplace approximation) and ``model_variance_``. With
            ``likelihood="gaussian"`` it is Gaussian. The noise of the data around the rate is not
            part of it.

        Returns
        -------
        rates : float32 array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i,
        n_neurons)
            Expected counts per bin, or values of a Gaussian, also where nothing was observed; a
            list if ``X`` was one.
        std : as rates
            Their standard deviations, only if ``return_std``.
        """
        if return_std:
            return self._with_std(X, rates_with_std)
        return self._per_bin(X, lambda model, z0, batch: model.rates(z0, len(batch.counts)))

    def inverse_transform(self, X):
        """Rates of given latents.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_latents), or list of (n_bins_i, n_latents)
            Latents; any number of leading axes.

        Returns
        -------
        rates : float32 array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i,
        n_neurons)
            Expected counts per bin.
        """
        check_is_fitted(self)
        if isinstance(X, list | tuple) and all(np.ndim(latents) == 2 for latents in X):
            return [self._on_states(latents, self._rates) for latents in X]
        return self._on_states(X, self._rates)

    def score(self, X, y=None):
        """Held-out bits per spike: higher is better, 0 is a constant rate per neuron.

        In every trial a seeded 20 % of the observed entries is hidden, the rest is used to infer
        the trial's latents, and the predicted rates are judged on what was hidden, against each
        neuron's mean rate in ``fit``: (log-likelihood - null log-likelihood) / (number of hidden
        spikes x log 2) [1]_. With ``likelihood="gaussian"`` it is bits per hidden entry.

        Both log-likelihoods are of the model's own family. The null model has dispersions, or
        variances, of its own, learned in the same way around constant rates: what its rates leave
        unexplained is noise to it, so that more bits mean better rates, not noise better described.
        Scores of two likelihoods have two null models, and do not compare.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.
        y : Ignored
            Not used; there for scikit-learn's conventions.

        Returns
        -------
        score : float
            Bits per spike, or per entry of a Gaussian. NaN if no spike was hidden.

        References
        ----------
        .. [1] Pei et al., "Neural Latents Benchmark '21", NeurIPS Datasets and Benchmarks 2021.
        """
        sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        for model, batch in self._batches(X):
            hidden = hidden_entries(batch, SCORE_FRACTION)
            z0 = self._infer(model, batch.hide(hidden))
            output = model.output(z0, len(batch.counts))
            null_rates = self._null_rates(batch.counts.device)
            sums += bits_gained(model.likelihood, output, null_rates, batch, hidden)
        gain, n_units = sums.tolist()
        return gain / n_units if n_units else float("nan")

    def initial_conditions(self, X):
        """Infer the initial condition of each trial: its latents in the first bin.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.

        Returns
        -------
        z0 : float32 array of shape (n_trials, n_latents)
            Initial conditions.
        """
        return np.concatenate(
            [self._infer(model, batch).T.cpu().numpy() for model, batch in self._batches(X)]
        )

    def forecast(self, X, n_bins):
        """Predict the rates in the bins that follow each trial.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins_given, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; a trial ends with its last bin in which anything was observed.
        n_bins : int
            Bins to look ahead.

        Returns
        -------
        rates : float32 array of shape (n_trials, n_bins, n_neurons)
            Expected counts per bin.
        """
        n_bins = check_count(n_bins, "n_bins")
        ahead = []
        for model, batch in self._batches(X):
            z0 = self._infer(model, batch)
            rates = model.rates(z0, int(batch.lengths.max()) + n_bins).cpu().numpy()
            bins = batch.lengths[:, np.newaxis] + np.arange(n_bins)
            ahead.append(rates[bins, :, np.arange(len(batch))[:, np.newaxis]])
        return np.concatenate(ahead)

    def simulate(self, z0, n_bins):
        """Let the dynamics run freely.

        Parameters
        ----------
        z0 : array of shape (n_trials, n_latents) or (n_latents,)
            States to start from.
        n_bins : int
            Bins to run for, the first included.

        Returns
        -------
        latents : float32 array of shape (n_trials, n_bins, n_latents) or (n_bins, n_latents)
            Latents; ``latents[..., 0, :]`` is ``z0``.
        """
        n_bins = check_count(n_bins, "n_bins")
        return self._on_states(
            z0, lambda model, z: model.dynamics.rollout(z, n_bins).permute(2, 0, 1)
        )

    def step(self, z):
        """Advance states by one bin.

        Parameters
        ----------
        z : array of shape (..., n_latents)
            States.

        Returns
        -------
        z_next : float32 array of shape (..., n_latents)
            The states one bin later.
        """
        return self._on_states(z, lambda model, z: model.dynamics.step(z).T)

    def save(self, path):
        """Write the fitted estimator to a file, for ``sklearn_sae.load``.

        The file holds the parameters, all that ``fit`` learned, and the versions of the libraries,
        as numbers and JSON in the safetensors format. It holds no code, unlike a pickle, and no
        spikes.

        Parameters
        ----------
        path : str or path-like
            The file, best named ``*.safetensors``. One that is there is replaced, and only when the
            new one is whole: a save that fails leaves it as it was.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it is of a class of your own, or has a parameter that a file cannot hold.
        ValueError
            If it has attributes that are neither parameters nor learned, or was changed by hand.
        OSError
            If the file cannot be written.

        See Also
        --------
        sklearn_sae.load : Gives the estimator back.
        """
        # Not at the top: it needs the classes that are made from this one.
        from ._persistence import save

        save(self, path)  # type: ignore[arg-type]  # BaseSAE mixes it in

    def get_feature_names_out(self, input_features=None):
        """Names of the latents: ``latent0``, ``latent1``, ...

        Parameters
        ----------
        input_features : Ignored
            Not used; there for scikit-learn's conventions.

        Returns
        -------
        names : array of str, of shape (n_latents,)
            One name per latent.
        """
        check_is_fitted(self)
        return np.array([f"latent{i}" for i in range(self._n_fitted_latents)], dtype=object)

    def __sklearn_is_fitted__(self):
        """Whether there is a model: a fit that failed may have left other attributes."""
        return hasattr(self, "model_")

    # ------------------------------------------------------------------ shared by all of these

    @property
    def _n_fitted_latents(self) -> int:
        return self.model_.readout.weight.shape[1] - 1

    def _null_rates(self, device: torch.device) -> Tensor:
        return torch.from_numpy(self.null_rates_).float().to(device)

    def _batches(self, X: Any) -> Iterator[tuple[SequentialAutoencoder, Batch]]:
        """The fitted model on its device, with one batch of checked trials after the other."""
        check_is_fitted(self)
        trials = check_trials(self, X, reset=False, of_counts=self.model_.likelihood.of_counts)
        device = check_device(self.device)
        model = self.model_ if device.type == "cpu" else copy.deepcopy(self.model_).to(device)
        with torch.no_grad():
            for batch in trials.chunks(trials_at_once(model, trials.n_bins), device):
                yield model, batch

    def _infer(self, model: SequentialAutoencoder, batch: Batch) -> Tensor:
        """Initial conditions ``(n_latents, n_trials)``."""
        if model.encoder is not None:
            return model.encoder(batch)
        table, prior = self._learned_initial_conditions(batch.counts.device)
        start = best_start(model, prior, batch, table.T)
        return refine(model, prior, batch, start, max_iter=self.max_refine_iter)

    def _learned_initial_conditions(self, device: torch.device) -> tuple[Tensor, Prior]:
        """Those of the training trials, one per row, and the prior they make for others."""
        table = torch.from_numpy(self.training_initial_conditions_).to(device)
        return table, Prior.from_samples(table)

    def _per_bin(
        self, X: Any, compute: Callable[[SequentialAutoencoder, Tensor, Batch], Tensor]
    ) -> np.ndarray | list[np.ndarray]:
        pieces = []
        for model, batch in self._batches(X):
            values = compute(model, self._infer(model, batch), batch)
            pieces.append(values.permute(2, 0, 1).cpu().numpy())
        whole = np.concatenate(pieces)
        if not isinstance(X, list | tuple):
            return whole
        return [value[: len(trial)] for value, trial in zip(whole, X, strict=True)]

    def _with_std(self, X: Any, compute: Callable[..., Tensor]) -> tuple[Any, Any]:
        """What ``compute`` gives for every bin, split into values and standard deviations."""
        check_is_fitted(self)
        if self.model_.encoder is not None:
            raise ValueError(
                "return_std=True needs the posterior of the initial conditions, which an encoder "
                'does not give: this model was fitted with inference="amortized". Fit with '
                'inference="semi-amortized".'
            )
        _, prior = self._learned_initial_conditions(check_device(self.device))
        both = self._per_bin(
            X, lambda model, z0, batch: compute(model, prior, self.model_variance_, batch, z0)
        )
        if not isinstance(both, list):
            values, std = np.split(both, 2, axis=-1)
            return values, std
        pairs = [np.split(trial, 2, axis=-1) for trial in both]
        return [values for values, _ in pairs], [std for _, std in pairs]

    def _on_states(
        self, z: Any, compute: Callable[[SequentialAutoencoder, Tensor], Tensor]
    ) -> np.ndarray:
        """Apply ``compute`` to states ``(..., n_latents)``, one per column, on the CPU."""
        check_is_fitted(self)
        states = check_latents(z, self._n_fitted_latents, "latents")
        columns = torch.from_numpy(states.reshape(-1, states.shape[-1]).T.copy())
        with torch.no_grad():
            values = compute(self.model_, columns)
        return values.numpy().reshape(*states.shape[:-1], *values.shape[1:])

    @staticmethod
    def _rates(model: SequentialAutoencoder, z: Tensor) -> Tensor:
        return model.likelihood.rates(model.readout(z)).T
