"""Methods of fitted estimators: latents, rates, scores, forecasts, simulations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ._data.artefacts import warn_of_artefacts
from ._data.trials import Trials
from ._data.validation import (
    check_count,
    check_device,
    check_latents,
    check_simulated_inputs,
    check_trials,
)
from ._inference.fitted_model import FittedModel
from ._inference.posterior import Posterior
from ._model.autoencoder import SequentialAutoencoder
from ._model.inputs import Inputs
from ._saving.estimators import save
from ._torch_state import own_torch_state

__all__ = ["FittedMixin"]


def _infers_inputs(estimator: Any) -> bool:
    fitted = hasattr(estimator, "model_")
    if not (estimator.model_.n_inferred if fitted else estimator.n_inferred_inputs):
        raise AttributeError(
            "there are no inferred inputs: fit with n_inferred_inputs of 1 or more"
        )
    return True


class FittedMixin:
    """Methods of fitted estimators, all of which use the fitted model only."""

    # Pipeline.score always routes sample_weight, as None, and requires a request for it.
    __metadata_request__score: ClassVar = {"sample_weight": None}

    # Parameters, and attributes that fit sets.
    device: str | torch.device
    n_inferred_inputs: int
    n_inputs_in_: int
    _fitted_model: FittedModel
    model_: SequentialAutoencoder
    null_rates_: np.ndarray
    model_variance_: float

    def __getattr__(self, name: str) -> Any:
        """Look up a learned attribute of the fitted model; parameters decide which there are."""
        fitted = self.__dict__.get("_fitted_model")
        learned = {} if fitted is None else fitted.learned()
        if name in learned:
            return learned[name]
        # Raise the usual error or, if it is a property, the error of that.
        return object.__getattribute__(self, name)

    def __dir__(self):
        """List attributes, with the learned ones of the fitted model."""
        fitted = self.__dict__.get("_fitted_model")
        return [*super().__dir__(), *({} if fitted is None else fitted.learned())]

    def transform(self, X, return_std=False, *, inputs=None):
        """Infer the latents of trials.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed. The number of bins may differ from that in ``fit``.
            Counts of neurons that never fired in ``fit`` are taken as not observed, in all methods.
        return_std : bool, default=False
            Return standard deviations too; only if ``inference="semi-amortized"``. They combine the
            posterior given the model (Laplace approximation) and the error of the model
            (``model_variance_``).
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if ``fit`` had them.

        Returns
        -------
        latents : float32 array of shape (n_trials, n_bins, n_latents), or list of (n_bins_i,
        n_latents)
            Latents in every bin, observed or not; a list if ``X`` was one.
        std : as latents
            Their standard deviations, only if ``return_std``.
        """
        check_is_fitted(self)
        if return_std:
            variance = self._fitted_model.model_variance
            return self._per_bin(
                X, inputs, lambda found: (found.latents, found.latent_std(variance))
            )
        (latents,) = self._per_bin(X, inputs, lambda found: (found.latents,))
        return latents

    def predict(self, X, return_std=False, *, inputs=None):
        """Infer the firing rates of trials.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.
        return_std : bool, default=False
            Return standard deviations too; only if ``inference="semi-amortized"``. The posterior of
            a rate is lognormal with the predicted rate m as its median and the standard deviation
            m sqrt((exp(v) - 1) exp(v)). The variance v of the log-rate is the sum of its posterior
            variance w given the model (Laplace approximation) and of ``model_variance_``. With
            ``likelihood="gaussian"`` the posterior is Gaussian. The noise of the data around the
            rate is not included. With inferred inputs the predicted rate is the posterior mean
            m exp(w / 2), with w limited to 0.25, beyond which the approximation is poor.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if ``fit`` had them.

        Returns
        -------
        rates : float32 array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i,
        n_neurons)
            Expected counts per bin, also where nothing was observed; a list if ``X`` was one. With
            ``likelihood="gaussian"`` expected values, in float64, as they may be far from zero.
        std : as rates
            Their standard deviations, only if ``return_std``.
        """
        check_is_fitted(self)
        units = self._fitted_model.units
        if return_std:
            variance = self._fitted_model.model_variance
            rates, std = self._per_bin(
                X, inputs, lambda found: (found.rates, found.rate_std(variance))
            )
            return _map(units.to_data, rates), _map(units.std_to_data, std)
        (rates,) = self._per_bin(X, inputs, lambda found: (found.rates,))
        return _map(units.to_data, rates)

    def inverse_transform(self, X):
        """Compute the rates of given latents.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_latents), or list of (n_bins_i, n_latents)
            Latents; any number of leading axes.

        Returns
        -------
        rates : float32 array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i,
        n_neurons)
            Expected counts per bin; values in float64 with ``likelihood="gaussian"``.
        """
        check_is_fitted(self)
        if isinstance(X, list | tuple) and all(np.ndim(latents) == 2 for latents in X):
            return [self.inverse_transform(latents) for latents in X]
        rates = self._on_states(X, lambda model, z: model.likelihood.rates(model.readout(z)).T)
        return self._fitted_model.units.to_data(rates)

    def score(self, X, y=None, *, inputs=None):
        """Compute held-out bits per spike: higher is better, 0 is a constant rate per neuron.

        This is co-smoothing [1]_: in every trial a seeded 20 % of the observed neurons (at least
        one) is hidden, the others are used to infer the trial's latents, and the predicted rates of
        the hidden neurons are judged against each neuron's mean rate in ``fit``, ``null_rates_``:
        (log-likelihood - null log-likelihood) / (number of hidden spikes x log 2). Whole neurons
        are hidden, so that latents that follow a single neuron do not raise a score; of a trial in
        which one neuron only was observed, 20 % of its entries are. With ``likelihood="gaussian"``
        it is bits per hidden entry. Neurons that never fired in ``fit`` are left out: against a
        rate of zero, one spike in another trial would outweigh all else.

        Both models have the same likelihood. The null model has dispersions, or variances, of its
        own, learned in the same way around constant rates, so that more bits mean better rates and
        not a better description of noise. Scores of different likelihoods have different null
        models, and cannot be compared.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.
        y : Ignored
            Not used; there for scikit-learn's conventions.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if ``fit`` had them.

        Returns
        -------
        score : float
            Bits per spike, or per entry of a Gaussian. NaN if no spike was hidden.

        Warns
        -----
        UserWarning
            If the score is NaN, or there are artefacts: a few entries that dominate the likelihood.

        References
        ----------
        .. [1] Pei et al., "Neural Latents Benchmark '21", NeurIPS Datasets and Benchmarks 2021.
        """
        with own_torch_state():
            trials, device = self._checked(X, inputs, stacklevel=4)
            score = self._fitted_model.score(trials, device)
        if np.isnan(score):
            warnings.warn(
                "score is NaN: there is no spike among the entries of X that it hides from "
                "inference, and so nothing to predict. Give trials with spikes.",
                UserWarning,
                stacklevel=2,
            )
        return score

    def initial_conditions(self, X, *, inputs=None):
        """Infer the initial condition of each trial: its latents in the first bin.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if ``fit`` had them.

        Returns
        -------
        z0 : float32 array of shape (n_trials, n_latents)
            Initial conditions.
        """
        with own_torch_state():
            trials = self._checked(X, inputs, stacklevel=4)
            posteriors = self._fitted_model.posteriors(*trials)
            found = [posterior.initial_conditions for posterior in posteriors]
            return torch.cat(found, dim=1).T.cpu().numpy()

    @available_if(_infers_inputs)
    def infer_inputs(self, X, return_std=False, *, inputs=None):
        """Infer the inputs to the dynamics, if fitted with ``n_inferred_inputs``.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.
        return_std : bool, default=False
            Return standard deviations too (Laplace approximation).
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if ``fit`` had them.

        Returns
        -------
        inferred : float32 array of shape (n_trials, n_bins, n_inferred_inputs), or list of arrays
        (n_bins_i, n_inferred_inputs)
            Posterior mean of the inputs. Inputs of a bin move the latents between it and the next,
            along the columns of ``inferred_input_matrix_``. In the last bin, which no spikes
            follow, it is the prior mean given the bin before. A list if ``X`` was one.
        std : as inferred
            Their standard deviations, only if ``return_std``.
        """
        if return_std:
            return self._per_bin(X, inputs, lambda found: (found.inputs, found.input_std()))
        (inferred,) = self._per_bin(X, inputs, lambda found: (found.inputs,))
        return inferred

    def forecast(self, X, n_bins, *, inputs=None):
        """Predict the rates in the bins that follow each trial.

        Future inferred inputs are the prior mean given the trial's last ones: they decay from bin
        to bin by their correlation.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins_given, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; a trial ends with its last bin in which anything was observed.
        n_bins : int
            Bins to look ahead.
        inputs : array of shape (n_trials, n_bins_given + n_bins, n_inputs), or list of (n_bins_i +
        n_bins, n_inputs)
            Known inputs, if and only if ``fit`` had them: those of the given bins, and of the bins
            to predict.

        Returns
        -------
        rates : float32 array of shape (n_trials, n_bins, n_neurons)
            Expected counts per bin; values in float64 with ``likelihood="gaussian"``.
        """
        n_bins = check_count(n_bins, "n_bins")
        ahead = []
        with own_torch_state():
            trials, device = self._checked(X, inputs, n_bins, stacklevel=4)
            for posterior in self._fitted_model.posteriors(trials, device, n_bins):
                bins = posterior.batch.lengths[:, np.newaxis] + np.arange(n_bins)
                rows = np.arange(len(bins))[:, np.newaxis]
                ahead.append(posterior.rates.cpu().numpy()[bins, :, rows])
        return self._fitted_model.units.to_data(np.concatenate(ahead))

    def simulate(self, z0, n_bins, *, inputs=None):
        """Simulate the dynamics from given states.

        Inferred inputs are zero, their prior mean.

        Parameters
        ----------
        z0 : array of shape (n_trials, n_latents) or (n_latents,)
            States to start from.
        n_bins : int
            Bins to run for, the first included.
        inputs : array of shape (n_trials, n_bins, n_inputs) or (n_bins, n_inputs)
            Known inputs, if and only if ``fit`` had them. Pass zeros to simulate without inputs.

        Returns
        -------
        latents : float32 array of shape (n_trials, n_bins, n_latents) or (n_bins, n_latents)
            Latents; ``latents[..., 0, :]`` is ``z0``.
        """
        n_bins = check_count(n_bins, "n_bins")
        check_is_fitted(self)
        states = check_latents(z0, self._n_fitted_latents, "latents")
        known = check_simulated_inputs(inputs, states.shape[:-1], n_bins, self.n_inputs_in_)
        return self._on_states(
            states, lambda model, z: model.rollout(z, n_bins, known).permute(2, 0, 1)
        )

    def step(self, z):
        """Advance states by one bin, without inputs.

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
            File to write, best named ``*.safetensors``. An existing file is replaced once the new
            one is complete: a save that fails leaves it as it was.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If the estimator is of a class of your own, or has a parameter that a file cannot hold.
        ValueError
            If the estimator has attributes that are neither parameters nor learned, or was changed
            by hand.
        OSError
            If the file cannot be written, or ``path`` names a folder (``"new/"``).

        See Also
        --------
        sklearn_sae.load : Gives the estimator back.
        """
        save(self, path)

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
        """Whether there is a fitted model: a fit that failed may have left other attributes."""
        return "_fitted_model" in self.__dict__

    # ------------------------------------------------------------------ shared by all of these

    @property
    def _n_fitted_latents(self) -> int:
        return self.model_.readout.n_latents

    @property
    def input_matrix_(self) -> np.ndarray:
        """Change ``(n_latents, n_inputs_in_)`` of the latents per unit of each known input."""
        if not getattr(self, "n_inputs_in_", 0):
            raise AttributeError("there is no input_matrix_ before a fit with known inputs")
        return self._inputs.known.numpy().copy()

    @property
    def inferred_input_matrix_(self) -> np.ndarray:
        """Unit vectors along which inferred inputs move latents ``(n_latents, n_inferred)``."""
        _infers_inputs(self)
        return self._inputs.matrix().numpy().copy()

    @property
    def inferred_input_std_(self) -> np.ndarray:
        """Prior standard deviation ``(n_inferred,)`` of inferred inputs, near 0 if not needed."""
        _infers_inputs(self)
        return self._inputs.variance.sqrt().numpy().copy()

    @property
    def inferred_input_correlation_(self) -> np.ndarray:
        """Prior correlation ``(n_inferred,)`` of inferred inputs from bin to bin."""
        _infers_inputs(self)
        return self._inputs.correlation.numpy().copy()

    @property
    def _inputs(self) -> Inputs:
        if not hasattr(self, "model_") or self.model_.inputs is None:
            raise AttributeError("inputs are learned by fit")
        return self.model_.inputs

    def _checked(
        self, X: Any, inputs: Any, n_ahead: int = 0, *, stacklevel: int
    ) -> tuple[Trials, torch.device]:
        """Check trials and the device to infer them on."""
        check_is_fitted(self)
        of_counts = self.model_.likelihood.of_counts
        trials = check_trials(self, X, inputs, reset=False, of_counts=of_counts, n_ahead=n_ahead)
        trials.units = self._fitted_model.units
        warn_of_artefacts(trials, self.null_rates_, of_counts, stacklevel)
        return trials, check_device(self.device)

    def _per_bin(
        self, X: Any, inputs: Any, compute: Callable[[Posterior], tuple[Tensor, ...]]
    ) -> tuple[Any, ...]:
        """Compute values of every bin from posteriors, as arrays or, if ``X`` is one, as lists.

        ``compute`` returns tensors ``(n_bins, n_values, n_trials)``, which become arrays
        ``(n_trials, n_bins, n_values)``, or arrays ``(n_bins_i, n_values)`` in a list.
        """
        with own_torch_state():
            trials = self._checked(X, inputs, stacklevel=5)
            posteriors = self._fitted_model.posteriors(*trials)
            pieces = [
                [values.permute(2, 0, 1).cpu().numpy() for values in compute(posterior)]
                for posterior in posteriors
            ]
        wholes = (np.concatenate(values) for values in zip(*pieces, strict=True))
        if not isinstance(X, list | tuple):
            return (*wholes,)
        return tuple(
            [trial[: len(given)] for trial, given in zip(whole, X, strict=True)] for whole in wholes
        )

    def _on_states(
        self, z: Any, compute: Callable[[SequentialAutoencoder, Tensor], Tensor]
    ) -> np.ndarray:
        """Apply ``compute`` to states ``(..., n_latents)`` as columns ``(n_latents, n_states)``."""
        check_is_fitted(self)
        states = check_latents(z, self._n_fitted_latents, "latents")
        with own_torch_state():
            columns = torch.from_numpy(states.reshape(-1, states.shape[-1]).T.copy())
            values = compute(self.model_, columns)
        return values.numpy().reshape(*states.shape[:-1], *values.shape[1:])


def _map(function: Callable[[np.ndarray], np.ndarray], values: Any) -> Any:
    """Apply ``function`` to an array, or to each of a list of them."""
    return [function(each) for each in values] if isinstance(values, list) else function(values)
