"""Fits of paths, which leave the dynamics by process noise."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ._data.pieces import Pieces
from ._data.trials import Trials
from ._data.units import Units
from ._inference.fitted_model import FittedModel
from ._inference.paths import NoisyInference
from ._inference.prior import Prior
from ._model.autoencoder import SequentialAutoencoder
from ._model.likelihoods import LIKELIHOODS
from ._training.checkpoint import Checkpoint
from ._training.initialization import pca_start
from ._training.linear_start import LinearStart, fit_linear
from ._training.loop import diverged
from ._training.optimizers import OPTIMIZERS, Soap
from ._training.path_fit import PathContinuation, PathFit, PathSettings
from ._training.path_training import Model

__all__ = ["PathFits"]

#: Values of "auto".
LEARNING_RATE = 3e-2
MAX_EPOCHS = 60

#: Trials of more bins are cut into pieces of at most so many to train on.
LONGEST_TRIAL = 200
LONGEST_PIECE = 100


class PathFits:
    """Part of the estimators that fits paths."""

    if TYPE_CHECKING:
        # Parameters and methods of the estimators.
        def __getattr__(self, name: str) -> Any: ...

        loss_curve_: list[float]

    def _fit_on_paths(
        self,
        trials: Trials,
        units: Units | None,
        seeds: list[int],
        continued: bool,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> bool:
        self._check_can_hold_out(trials, len(seeds))
        units = units or self._find_units(trials)
        null_rates = self._null_rates(trials, continued)
        trials.units = units
        self._warn_of_data(trials, null_rates, LIKELIHOODS[self.likelihood].of_counts)
        mean_counts = units.to_network(null_rates)
        training = self._in_pieces(trials, units)
        settings = self._path_settings()
        fit: PathFit | PathContinuation
        if continued:
            started = self._continue_on_paths(training, mean_counts, device)
            fit = PathContinuation(*started, training, settings, seeds[0])
        else:
            fit = PathFit(
                training,
                self.validation_fraction,
                partial(self._fit_linear, mean_counts=mean_counts, seed=seeds[0], device=device),
                partial(self._network_of_seed, mean_counts=mean_counts),
                settings,
                seeds,
            )
        before = [*self.loss_curve_] if continued else []
        finished = self._run(fit.epochs, fit, checkpoint, settings.max_epochs, depth=2)
        model, table = fit.outcome()
        if not model.is_finite():
            raise FloatingPointError(diverged("All weights became NaN", self.n_iter_))
        model.network.requires_grad_(False)
        self._fitted_model = FittedModel.of_paths(
            model.inference(self.max_refine_iter),
            self._settings(),
            null_rates,
            units,
            training,
            table,
        )
        model.network.cpu()
        self.loss_curve_ = before + fit.loss_curve
        if isinstance(fit, PathFit):
            self.validation_scores_ = fit.scores
            self.validation_epochs_ = fit.score_epochs
            self.best_validation_score_ = fit.score
            if len(seeds) > 1:
                self.init_scores_ = fit.init_scores
                _warn_of_lost(fit)
        return finished

    def _fit_linear(
        self, trials: Trials, mean_counts: np.ndarray, seed: int, device: torch.device
    ) -> LinearStart:
        """Fit the linear system at which dynamics start."""
        likelihood = LIKELIHOODS[self.likelihood](trials.n_neurons)
        likelihood.fit_null(trials, mean_counts)
        weight, _ = pca_start(trials, likelihood, self.n_latents, 1.0, np.random.default_rng(seed))
        return fit_linear(trials, likelihood, weight, self.n_inputs_in_, device)

    def _network_of_seed(self, seed: int, mean_counts: np.ndarray) -> SequentialAutoencoder:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        return self._build_network(mean_counts, self.n_inputs_in_, generator)

    def _path_settings(self) -> PathSettings:
        return PathSettings(
            learning_rate=LEARNING_RATE if self.learning_rate == "auto" else self.learning_rate,
            learning_rate_schedule=self.learning_rate_schedule,
            max_epochs=MAX_EPOCHS if self.max_epochs == "auto" else self.max_epochs,
            batch_size=None if self.batch_size == "auto" else self.batch_size,
            clip_norm=self.clip_norm,
            make_optimizer=partial(
                Soap, weight_decay=self.weight_decay, **OPTIMIZERS[self.optimizer]
            ),
            patience=self.n_iter_no_change if self.early_stopping else None,
        )

    def _continue_on_paths(
        self, training: Trials, mean_counts: np.ndarray, device: torch.device
    ) -> tuple[Model, Tensor]:
        """Model of the last fit, with its noise, and states of these trials (``warm_start``)."""
        generator = torch.Generator(device="cpu").manual_seed(0)
        network = self._build_network(mean_counts, self.n_inputs_in_, generator)
        network.load_state_dict(self.model_.state_dict())
        network.likelihood.refit_null(training, mean_counts)
        inference = self._fitted_model.inference(torch.device("cpu"))
        assert isinstance(inference, NoisyInference)
        noise = float(inference.process_noise.mean())
        prior = inference.prior
        moved = Prior(prior.mean.to(device), prior.precision.to(device), network.inputs)
        model = Model(network.to(device), moved, noise)
        return model, model.states_of(training, self.max_refine_iter)

    def _in_pieces(self, trials: Trials, units: Units) -> Trials:
        """Cut long trials: in chaos, one initial condition says little of bins far behind it."""
        if trials.n_bins <= LONGEST_TRIAL:
            return trials
        return Pieces(trials, LONGEST_PIECE, units)


def _warn_of_lost(fit: PathFit) -> None:
    lost = [not member.model.is_finite() for member in fit.members]
    if any(lost):
        warnings.warn(
            f"{sum(lost)} of {len(lost)} models diverged, and their init_scores_ are NaN. Lower "
            "learning_rate or clip_norm.",
            ConvergenceWarning,
            stacklevel=7,
        )
    if np.isnan(fit.init_scores).all():
        warnings.warn(
            "init_scores_ are NaN, because the trials held out have no spikes to predict; the "
            "model with the smallest loss is kept. Raise validation_fraction, or set n_init=1.",
            UserWarning,
            stacklevel=7,
        )
