"""What a fitted model is good for: latents, rates, scores, forecasts, simulations."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ._data.artefacts import warn_of_artefacts
from ._data.batches import Batch
from ._data.trials import Trials
from ._data.validation import (
    check_count,
    check_device,
    check_latents,
    check_simulated_inputs,
    check_trials,
)
from ._inference.memory import trials_at_once
from ._inference.prior import Prior
from ._inference.scoring import SCORE_FRACTION, bits_gained, hidden_entries, without_silent
from ._inference.semi_amortized import best_start, better_start, refine
from ._inference.uncertainty import inputs_with_std, latents_with_std, mean_output, rates_with_std
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
    """Methods of an estimator that is fitted; how it is fitted is not their business."""

    # Pipeline.score always routes it, as None, and asks that it be known.
    __metadata_request__score: ClassVar = {"sample_weight": None}

    # Parameters, and what fit learns.
    device: str | torch.device
    n_inferred_inputs: int
    max_refine_iter: int
    model_: SequentialAutoencoder
    null_rates_: np.ndarray
    signal_mean_: np.ndarray
    signal_scale_: np.ndarray
    n_inputs_in_: int
    training_initial_conditions_: np.ndarray
    model_variance_: float

    def transform(self, X, return_std=False, *, inputs=None):
        """Infer the latents of trials.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed. The number of bins may differ from that in ``fit``.
            Counts of neurons that never fired in ``fit`` are taken as not observed, here and in all
            methods: the model knows nothing of them.
        return_std : bool, default=False
            Return standard deviations too; only if ``inference="semi-amortized"``. They hold what
            the trial's spikes leave open (Laplace approximation) and the error of the model
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
        if return_std:
            return self._with_std(X, inputs, latents_with_std)
        return self._per_bin(
            X,
            inputs,
            lambda model, causes, batch: model.rollout(causes, len(batch.counts), batch.inputs),
        )

    def predict(self, X, return_std=False, *, inputs=None):
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
            part of it. With inferred inputs the rate given is the posterior's mean,
            m exp(w / 2), w being v without ``model_variance_``, and 0.25 at most: beyond, the
            approximation says little.
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
        if return_std:
            rates, std = self._with_std(X, inputs, rates_with_std)
            return self._in_units_of_data(rates), self._in_units_of_data(std, spread=True)
        return self._in_units_of_data(
            self._per_bin(
                X,
                inputs,
                lambda model, causes, batch: model.likelihood.rates(
                    self._output(model, causes, batch)
                ),
            )
        )

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
            Expected counts per bin; values in float64 with ``likelihood="gaussian"``.
        """
        check_is_fitted(self)
        if isinstance(X, list | tuple) and all(np.ndim(latents) == 2 for latents in X):
            return [self.inverse_transform(latents) for latents in X]
        return self._in_units_of_data(self._on_states(X, self._rates))

    def score(self, X, y=None, *, inputs=None):
        """Held-out bits per spike: higher is better, 0 is a constant rate per neuron.

        In every trial a seeded 20 % of the observed entries is hidden, the rest is used to infer
        the trial's latents, and the predicted rates are judged on what was hidden, against each
        neuron's mean rate in ``fit``, ``null_rates_``: (log-likelihood - null log-likelihood) /
        (number of hidden spikes x log 2) [1]_. With ``likelihood="gaussian"`` it is bits per hidden
        entry. Neurons that never fired in ``fit`` are left out: against a rate of zero, one spike
        in another trial would outweigh all else.

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
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs, if and only if ``fit`` had them.

        Returns
        -------
        score : float
            Bits per spike, or per entry of a Gaussian. NaN if no spike was hidden.

        Warns
        -----
        UserWarning
            If the score is NaN, or a few entries carry much of what the likelihood has to explain,
            as artefacts do.

        References
        ----------
        .. [1] Pei et al., "Neural Latents Benchmark '21", NeurIPS Datasets and Benchmarks 2021.
        """
        score = self._held_out(self._batches(X, inputs))
        if np.isnan(score):
            warnings.warn(
                "score is NaN: there is no spike among the entries of X that it hides from "
                "inference, and so nothing to predict. Give trials with spikes.",
                UserWarning,
                stacklevel=2,
            )
        return score

    def _held_out(self, batches: Iterable[tuple[SequentialAutoencoder, Batch]]) -> float:
        """The score of trials, given the model and all batches of them."""
        with own_torch_state():
            sums = torch.zeros(2, dtype=torch.float64, device="cpu")
            for model, batch in batches:
                hidden = hidden_entries(batch, SCORE_FRACTION)
                seen = batch.hide(hidden)
                output = self._output(model, self._infer(model, seen), seen)
                null_rates = self._null_rates(batch.counts.device)
                sums += bits_gained(model.likelihood, output, null_rates, batch, hidden)
        gain, n_units = sums.tolist()
        return gain / n_units if n_units else float("nan")

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
            causes = [self._infer(model, batch) for model, batch in self._batches(X, inputs)]
            return torch.cat(causes, dim=1)[: self._n_fitted_latents].T.cpu().numpy()

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
            Posterior mean of the inputs. Those of a bin move the latents between it and the next,
            along the columns of ``inferred_input_matrix_``. In the last bin, where nothing follows
            that could tell, the mean is the prior's, given the bin before. A list if ``X`` was one.
        std : as inferred
            Their standard deviations, only if ``return_std``.
        """
        check_is_fitted(self)
        if return_std:
            return self._with_std(
                X, inputs, lambda model, prior, _, *trials: inputs_with_std(model, prior, *trials)
            )
        return self._per_bin(
            X,
            inputs,
            lambda model, causes, batch: model.inputs_of_all_bins(causes, len(batch.counts)),
        )

    def forecast(self, X, n_bins, *, inputs=None):
        """Predict the rates in the bins that follow each trial.

        Inferred inputs are taken to go on as their prior's mean does, given the trial: they decay
        from bin to bin by their correlation.

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
            for model, batch in self._batches(X, inputs, n_bins):
                # Bins to come are bins that were not observed, of which the dynamics still tell.
                longer = batch.longer(int(batch.lengths.max()) + n_bins)
                rates = model.likelihood.rates(
                    self._output(model, self._infer(model, longer), longer)
                )
                bins = batch.lengths[:, np.newaxis] + np.arange(n_bins)
                rows = np.arange(len(batch))[:, np.newaxis]
                ahead.append(rates.cpu().numpy()[bins, :, rows])
        return self._in_units_of_data(np.concatenate(ahead))

    def simulate(self, z0, n_bins, *, inputs=None):
        """Let the dynamics run freely.

        Inferred inputs are zero, as their prior's mean is.

        Parameters
        ----------
        z0 : array of shape (n_trials, n_latents) or (n_latents,)
            States to start from.
        n_bins : int
            Bins to run for, the first included.
        inputs : array of shape (n_trials, n_bins, n_inputs) or (n_bins, n_inputs)
            Known inputs, if and only if ``fit`` had them. Pass zeros to run without.

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
            If the file cannot be written, or ``path`` names a folder (``"new/"``).

        See Also
        --------
        sklearn_sae.load : Gives the estimator back.
        """
        # Not at the top: it needs the classes that are made from this one.
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
        """Whether there is a model: a fit that failed may have left other attributes."""
        return hasattr(self, "model_")

    # ------------------------------------------------------------------ shared by all of these

    @property
    def _n_fitted_latents(self) -> int:
        return self.model_.readout.weight.shape[1] - 1

    @property
    def input_matrix_(self) -> np.ndarray:
        """By what the latents jump for each known input, ``(n_latents, n_inputs_in_)``."""
        if not getattr(self, "n_inputs_in_", 0):
            raise AttributeError("there is no input_matrix_ before a fit with known inputs")
        return self._inputs.known.numpy().copy()

    @property
    def inferred_input_matrix_(self) -> np.ndarray:
        """Unit directions of the inferred inputs among latents, one per column."""
        _infers_inputs(self)
        return self._inputs.matrix().numpy().copy()

    @property
    def inferred_input_std_(self) -> np.ndarray:
        """Standard deviation of each inferred input, as learned; near zero it is not needed."""
        _infers_inputs(self)
        return self._inputs.variance.sqrt().numpy().copy()

    @property
    def inferred_input_correlation_(self) -> np.ndarray:
        """Correlation of each inferred input from one bin to the next, as learned."""
        _infers_inputs(self)
        return self._inputs.correlation.numpy().copy()

    @property
    def _inputs(self) -> Inputs:
        if not hasattr(self, "model_") or self.model_.inputs is None:
            raise AttributeError("inputs are learned by fit")
        return self.model_.inputs

    @property
    def _units(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Centre and scale of Gaussian signals; none of counts, and of files of old versions."""
        if not hasattr(self, "signal_mean_"):
            return None
        return self.signal_mean_, self.signal_scale_

    def _in_units_of_model(self, values: np.ndarray) -> np.ndarray:
        """Values ``(n_neurons,)`` of the data, as the network has them."""
        if self._units is None:
            return values
        centre, scale = self._units
        return (values - centre) / scale

    def _in_units_of_data(self, values: Any, spread: bool = False) -> Any:
        """Rates ``(..., n_neurons)`` of the network, or their standard deviations; or a list."""
        if self._units is None:
            return values
        if isinstance(values, list):
            return [self._in_units_of_data(each, spread) for each in values]
        centre, scale = self._units
        return values * scale if spread else values * scale + centre

    def _null_rates(self, device: torch.device) -> Tensor:
        return torch.from_numpy(self._in_units_of_model(self.null_rates_)).float().to(device)

    def _batches(
        self, X: Any, inputs: Any = None, n_ahead: int = 0
    ) -> Iterator[tuple[SequentialAutoencoder, Batch]]:
        """The fitted model on its device, with one batch of checked trials after the other."""
        check_is_fitted(self)
        of_counts = self.model_.likelihood.of_counts
        trials = check_trials(self, X, inputs, reset=False, of_counts=of_counts, n_ahead=n_ahead)
        trials.units = self._units
        warn_of_artefacts(trials, self.null_rates_, of_counts, stacklevel=5)
        device = check_device(self.device)
        model = self.model_ if device.type == "cpu" else copy.deepcopy(self.model_).to(device)
        yield from self._chunks(model, trials, device, n_ahead)

    def _chunks(
        self, model: SequentialAutoencoder, trials: Trials, device: torch.device, n_ahead: int = 0
    ) -> Iterator[tuple[SequentialAutoencoder, Batch]]:
        null_rates = self._null_rates(device)
        for batch in trials.chunks(trials_at_once(model, trials.n_bins + n_ahead), device):
            yield model, without_silent(model.likelihood, null_rates, batch)

    def _infer(
        self, model: SequentialAutoencoder, batch: Batch, of_training: bool = False
    ) -> Tensor:
        """Causes ``(n_causes, n_trials)``.

        ``of_training`` trials may also start from what ``fit`` learned of the trial in their place.
        """
        if model.encoder is not None:
            return model.encoder(batch)
        table, prior = self._learned_initial_conditions(model, batch.counts.device)
        start = best_start(model, prior, batch, table.T)
        if of_training:
            start = better_start(model, prior, batch, start, table[batch.rows].T)
        return refine(model, prior, batch, start, max_iter=self.max_refine_iter)

    def _learned_initial_conditions(
        self, model: SequentialAutoencoder, device: torch.device
    ) -> tuple[Tensor, Prior]:
        """Those of the training trials, one per row, and the prior they make for others."""
        table = torch.from_numpy(self.training_initial_conditions_).to(device)
        return table, Prior.from_samples(table, model.inputs)

    def _output(self, model: SequentialAutoencoder, causes: Tensor, batch: Batch) -> Tensor:
        """The readout's output, of posterior means if there are inferred inputs."""
        if not model.inferring:
            return model.output(causes, len(batch.counts), batch.inputs)
        _, prior = self._learned_initial_conditions(model, batch.counts.device)
        return mean_output(model, prior, batch, causes)

    def _per_bin(
        self,
        X: Any,
        inputs: Any,
        compute: Callable[[SequentialAutoencoder, Tensor, Batch], Tensor],
    ) -> np.ndarray | list[np.ndarray]:
        pieces = []
        with own_torch_state():
            for model, batch in self._batches(X, inputs):
                values = compute(model, self._infer(model, batch), batch)
                pieces.append(values.permute(2, 0, 1).cpu().numpy())
        whole = np.concatenate(pieces)
        if not isinstance(X, list | tuple):
            return whole
        return [value[: len(trial)] for value, trial in zip(whole, X, strict=True)]

    def _with_std(self, X: Any, inputs: Any, compute: Callable[..., Tensor]) -> tuple[Any, Any]:
        """What ``compute`` gives for every bin, split into values and standard deviations."""
        check_is_fitted(self)
        if self.model_.encoder is not None:
            raise ValueError(
                "return_std=True needs the posterior of the initial conditions, which an encoder "
                'does not give: this model was fitted with inference="amortized". Fit with '
                'inference="semi-amortized".'
            )

        def both_of(model: SequentialAutoencoder, causes: Tensor, batch: Batch) -> Tensor:
            _, prior = self._learned_initial_conditions(model, batch.counts.device)
            return compute(model, prior, self.model_variance_, batch, causes)

        both = self._per_bin(X, inputs, both_of)
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
        with own_torch_state():
            columns = torch.from_numpy(states.reshape(-1, states.shape[-1]).T.copy())
            values = compute(self.model_, columns)
        return values.numpy().reshape(*states.shape[:-1], *values.shape[1:])

    @staticmethod
    def _rates(model: SequentialAutoencoder, z: Tensor) -> Tensor:
        return model.likelihood.rates(model.readout(z)).T
