"""What NODESAE and RNNSAE share: fit, transform, predict and score."""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from tqdm.auto import tqdm

from ._batches import Batch, Trials
from ._dynamics import Dynamics
from ._early_stopping import EarlyStopping, ValidationScore
from ._encoder import Encoder
from ._inference import Prior, best_start, refine, trials_at_once
from ._likelihood import SCORE_FRACTION, bits_per_spike, hidden_entries
from ._model import SequentialAutoencoder
from ._readout import Readout, pca_start
from ._schedule import Schedule
from ._training import (
    EncodedInitialConditions,
    FreeInitialConditions,
    InitialConditions,
    train,
)
from ._uncertainty import latents_with_std, model_variance, rates_with_std
from ._validation import check_count, check_device, check_latents, check_seed, check_trials

__all__ = ["BaseSAE"]


LEARNED = (
    "model_",
    "training_initial_conditions_",
    "model_variance_",
    "validation_scores_",
    "best_validation_score_",
)


class BaseSAE(  # type: ignore[call-arg]  # sklearn has no types
    TransformerMixin, BaseEstimator, auto_wrap_output_keys=None, metaclass=ABCMeta
):
    """Sequential autoencoder; subclasses say which dynamics to build."""

    def __init_subclass__(cls, auto_wrap_output_keys=None, **kwargs):
        """Keep scikit-learn from wrapping three-dimensional latents in data frames."""
        # Every subclass would ask for it anew: its default is to wrap.
        super().__init_subclass__(auto_wrap_output_keys=auto_wrap_output_keys, **kwargs)

    @abstractmethod
    def _build_dynamics(self, generator: torch.Generator | None) -> Dynamics:
        """Fresh dynamics, drawn from ``generator``; without one, their shapes only."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Fit the model to spike counts.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts, >= 0. NaN marks entries that were not observed.
        y : Ignored
            Not used; there for scikit-learn's conventions.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        continued = self.warm_start and hasattr(self, "model_")
        trials = check_trials(self, X, reset=not continued)
        device = check_device(self.device)
        seed = check_seed(self.random_state)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        training, validation = self._split(trials, seed)

        if continued:
            model, z0 = self._continue(training, generator)
        else:
            self._forget()
            model, z0 = self._start(training, seed, generator)
        model.to(device)
        initial_conditions = self._initial_conditions(model, training, z0.to(device), generator)
        stopper = self._early_stopping(model, validation, initial_conditions, device)
        self._train(model, training, initial_conditions, stopper, generator, device)
        if isinstance(initial_conditions, FreeInitialConditions):
            self.training_initial_conditions_ = initial_conditions.table.cpu().numpy()
            self.model_variance_ = model_variance(model, training, initial_conditions.table)
        self.model_ = model.cpu().requires_grad_(False)
        return self

    def _split(self, trials: Trials, seed: int) -> tuple[Trials, Trials | None]:
        if not self.early_stopping:
            return trials, None
        rows = np.arange(len(trials))
        fit_rows, validation_rows = train_test_split(
            rows, test_size=self.validation_fraction, random_state=seed
        )
        return trials.subset(np.sort(fit_rows)), trials.subset(np.sort(validation_rows))

    def _start(
        self, training: Trials, seed: int, generator: torch.Generator
    ) -> tuple[SequentialAutoencoder, Tensor]:
        self.null_rates_ = training.mean_counts()
        self.loss_curve_: list[float] = []
        model = self._build_model(generator)
        weight, z0 = pca_start(
            training, self.n_latents, model.dynamics.latent_scale, np.random.default_rng(seed)
        )
        with torch.no_grad():
            model.readout.weight.copy_(weight)
        return model, z0

    def _continue(
        self, training: Trials, generator: torch.Generator
    ) -> tuple[SequentialAutoencoder, Tensor]:
        """Go on from the last fit (``warm_start``); its inference says where the trials start."""
        with torch.no_grad():
            batches = training.chunks(
                trials_at_once(self.model_, training.n_bins), torch.device("cpu")
            )
            z0 = torch.cat([self._infer(self.model_, batch) for batch in batches], dim=1).T
        # A copy, built from the parameters of today: a fit that fails leaves the old model whole.
        model = self._build_model(generator)
        try:
            model.load_state_dict(self.model_.state_dict())
        except RuntimeError as error:
            raise ValueError(
                "warm_start=True goes on with the weights of the last fit, but a parameter that "
                "decides their shape was changed since (n_latents, hidden_sizes, encoder_size, "
                "inference or cell). Set it back, or set warm_start=False to start afresh."
            ) from error
        return model, z0.contiguous()

    def _build_model(self, generator: torch.Generator | None) -> SequentialAutoencoder:
        """A fresh network with a readout of zeros; without a ``generator``, its shapes only."""
        device = "meta" if generator is None else "cpu"
        readout = Readout(torch.zeros(len(self.null_rates_), self.n_latents + 1, device=device))
        dynamics, encoder = self._build_dynamics(generator), self._build_encoder(generator)
        model = SequentialAutoencoder(dynamics, readout, encoder)
        model.built_with = self.get_params(deep=False)
        # The network does not depend on it, and an instance moves on.
        model.built_with.pop("random_state", None)
        return model

    def _build_encoder(self, generator: torch.Generator | None) -> Encoder | None:
        if self.inference != "amortized":
            return None
        return Encoder(self.null_rates_, self.n_latents, self.encoder_size, self.dropout, generator)

    def _forget(self) -> None:
        """Drop what an earlier fit learned, so that one that fails leaves no mixture behind."""
        for name in LEARNED:
            self.__dict__.pop(name, None)

    def _initial_conditions(
        self,
        model: SequentialAutoencoder,
        training: Trials,
        z0: Tensor,
        generator: torch.Generator,
    ) -> InitialConditions:
        dropout = self.initial_condition_dropout
        if model.encoder is None:
            return FreeInitialConditions(z0, model, training, dropout, generator)
        return EncodedInitialConditions(
            model.encoder, training, self.coordinated_dropout, dropout, generator
        )

    def _train(
        self,
        model: SequentialAutoencoder,
        training: Trials,
        initial_conditions: InitialConditions,
        stopper: EarlyStopping | None,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        records = train(
            model,
            training,
            initial_conditions,
            Schedule(
                learning_rate=self.learning_rate,
                shape=self.learning_rate_schedule,
                n_bins=training.n_bins,
                horizon_start=self.horizon_start,
                horizon_step=self.horizon_step,
                horizon_growth=self.horizon_growth,
            ),
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            batch_size=self._batch_size(training),
            max_epochs=self.max_epochs,
            generator=generator,
            device=device,
        )
        self.n_iter_ = 0
        with tqdm(total=self.max_epochs, disable=not self.verbose, unit="epoch") as progress:
            try:
                for record in records:
                    self.n_iter_ = record.epoch
                    self.loss_curve_.append(record.loss)
                    progress.update()
                    progress.set_postfix(loss=f"{record.loss:.4f}", horizon=record.horizon)
                    if stopper is not None and stopper.should_stop(record):
                        break
            except KeyboardInterrupt:
                warnings.warn(
                    f"Training interrupted in epoch {self.n_iter_ + 1} of {self.max_epochs}; the "
                    "model as it stands is kept.",
                    ConvergenceWarning,
                    stacklevel=4,
                )
        if stopper is not None:
            stopper.restore_best()
            self.validation_scores_ = stopper.scores
            self.best_validation_score_ = stopper.best_score

    def _early_stopping(
        self,
        model: SequentialAutoencoder,
        validation: Trials | None,
        initial_conditions: InitialConditions,
        device: torch.device,
    ) -> EarlyStopping | None:
        if validation is None:
            return None
        table = getattr(initial_conditions, "table", None)
        score = ValidationScore(
            model,
            validation.batch(np.arange(len(validation)), device),
            self._null_rates(device),
            table,
        )
        state = model.state_dict()
        if table is not None:
            state["initial conditions"] = table
        return EarlyStopping(score, state, self.n_iter_no_change, self.tol)

    def _batch_size(self, trials: Trials) -> int:
        if self.batch_size == "auto":
            return min(320, math.ceil(len(trials) / 4))
        return self.batch_size

    def _null_rates(self, device: torch.device) -> Tensor:
        return torch.from_numpy(self.null_rates_).float().to(device)

    # ------------------------------------------------------------------ using the fitted model

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
            spikes leave open (Laplace approximation) and ``model_variance_``.

        Returns
        -------
        rates : float32 array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i,
        n_neurons)
            Expected counts per bin, also where nothing was observed; a list if ``X`` was one.
        std : as rates
            Their standard deviations, only if ``return_std``.
        """
        if return_std:
            return self._with_std(X, rates_with_std)
        return self._per_bin(
            X, lambda model, z0, batch: model.log_rates(z0, len(batch.counts)).exp()
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
        spikes x log 2) [1]_.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.
        y : Ignored
            Not used; there for scikit-learn's conventions.

        Returns
        -------
        score : float
            Bits per spike. NaN if no spike was hidden.

        References
        ----------
        .. [1] Pei et al., "Neural Latents Benchmark '21", NeurIPS Datasets and Benchmarks 2021.
        """
        sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        for model, batch in self._batches(X):
            hidden = hidden_entries(batch, SCORE_FRACTION)
            z0 = self._infer(model, batch.hide(hidden))
            log_rates = model.log_rates(z0, len(batch.counts))
            null_rates = self._null_rates(batch.counts.device)
            sums += bits_per_spike(log_rates, null_rates, batch, hidden).cpu()
        gain, n_spikes = sums.tolist()
        return gain / n_spikes if n_spikes else float("nan")

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
            rates = model.log_rates(z0, int(batch.lengths.max()) + n_bins).exp().cpu().numpy()
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

    def set_output(self, *, transform=None):
        """Refuse any container but NumPy arrays: latents are three-dimensional.

        Parameters
        ----------
        transform : {"default", None}
            Only these are possible.

        Returns
        -------
        self : object
            The estimator.
        """
        if transform not in ("default", None):
            raise ValueError(
                f"set_output(transform={transform!r}) is not possible for {type(self).__name__}: "
                "latents have shape (n_trials, n_bins, n_latents), and a data frame has two axes. "
                "Flatten them in a FunctionTransformer after this step, and call set_output on "
                "that."
            )
        return self

    def __sklearn_tags__(self):
        """Tell scikit-learn what goes in and out."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.positive_only = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __sklearn_is_fitted__(self):
        """Whether there is a model: a fit that failed may have left other attributes."""
        return hasattr(self, "model_")

    # ------------------------------------------------------------------ shared by all of these

    @property
    def _n_fitted_latents(self) -> int:
        return self.model_.readout.weight.shape[1] - 1

    def _batches(self, X: Any) -> Iterator[tuple[SequentialAutoencoder, Batch]]:
        """The fitted model on its device, with one batch of checked trials after the other."""
        check_is_fitted(self)
        trials = check_trials(self, X, reset=False)
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
        return model.readout(z).exp().T
