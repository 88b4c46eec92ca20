"""Fits of initial conditions, from which dynamics roll out."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from torch import Tensor

from ._data.trials import Trials
from ._data.units import Units
from ._inference.fitted_model import FittedModel
from ._model.autoencoder import SequentialAutoencoder
from ._model.likelihoods import LIKELIHOODS
from ._training.checkpoint import Checkpoint, FitState
from ._training.early_stopping import EarlyStopping, ValidationScore
from ._training.initial_conditions import (
    EncodedInitialConditions,
    FreeInitialConditions,
    InitialConditions,
)
from ._training.initialization import pca_start
from ._training.loop import Member, diverged, n_batches, train
from ._training.optimizers import OPTIMIZERS, Soap
from ._training.schedule import Schedule

__all__ = ["RolloutFits"]

#: Values of "auto".
LEARNING_RATE = 5e-2
MAX_EPOCHS = 225


class RolloutFits:
    """Part of the estimators that fits by rollouts."""

    if TYPE_CHECKING:
        # Parameters and methods of the estimators.
        def __getattr__(self, name: str) -> Any: ...

        loss_curve_: list[float]

    def _fit_by_rollouts(
        self,
        trials: Trials,
        units: Units | None,
        seeds: list[int],
        continued: bool,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> bool:
        training, validation = self._split(trials, seeds)
        units = units or self._find_units(training)
        null_rates = self._null_rates(training, continued)
        trials.units = units
        self._warn_of_data(trials, null_rates, LIKELIHOODS[self.likelihood].of_counts)
        mean_counts = units.to_network(null_rates)
        members = [self._member(training, mean_counts, seed, continued, device) for seed in seeds]
        watch = [self._early_stopping(m, validation, mean_counts, device) for m in members]
        state = FitState(
            members,
            self._optimizer(members),
            [stopper for stopper in watch if stopper is not None],
            [[*self.loss_curve_] if continued else [] for _ in members],
        )
        finished = self._train(state, training, device, checkpoint)
        fitted = [self._fitted(member, null_rates, units) for member in members]
        self._keep_best(fitted, state, training, validation, device)
        return finished

    def _split(self, trials: Trials, seeds: list[int]) -> tuple[Trials, Trials | None]:
        """Split into training trials, and validation trials if there is a use for them."""
        if not self.early_stopping and len(seeds) == 1:
            return trials, None
        self._check_can_hold_out(trials, len(seeds))
        rows = np.arange(len(trials))
        fit_rows, validation_rows = train_test_split(
            rows, test_size=self.validation_fraction, random_state=seeds[0]
        )
        return trials.subset(np.sort(fit_rows)), trials.subset(np.sort(validation_rows))

    def _member(
        self,
        training: Trials,
        mean_counts: np.ndarray,
        seed: int,
        continued: bool,
        device: torch.device,
    ) -> Member:
        """Make a member to train; ``mean_counts`` ``(n_neurons,)`` are in units of the network."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        start = self._continue if continued else self._start
        network, variables = start(training, mean_counts, seed, generator)
        network.to(device)
        conditions = self._initial_conditions(network, training, variables.to(device), generator)
        return Member(network, conditions, generator)

    def _start(
        self, training: Trials, mean_counts: np.ndarray, seed: int, generator: torch.Generator
    ) -> tuple[SequentialAutoencoder, Tensor]:
        likelihood = LIKELIHOODS[self.likelihood](training.n_neurons)
        likelihood.fit_null(training, mean_counts)
        network = self._build_network(mean_counts, self.n_inputs_in_, generator, likelihood)
        weight, z0 = pca_start(
            training,
            likelihood,
            self.n_latents,
            network.dynamics.latent_scale,
            np.random.default_rng(seed),
        )
        network.readout.start_at(weight)
        return network, z0

    def _continue(
        self, training: Trials, mean_counts: np.ndarray, seed: int, generator: torch.Generator
    ) -> tuple[SequentialAutoencoder, Tensor]:
        """Start from the network and the latent variables of the last fit (``warm_start``)."""
        variables = self._fitted_model.infer_again(training)
        # A copy with the present parameters: a fit that fails leaves the old model as it was.
        network = self._build_network(mean_counts, self.n_inputs_in_, generator)
        network.load_state_dict(self.model_.state_dict())
        network.likelihood.refit_null(training, mean_counts)
        return network, variables

    def _initial_conditions(
        self,
        network: SequentialAutoencoder,
        training: Trials,
        variables: Tensor,
        generator: torch.Generator,
    ) -> InitialConditions:
        dropout = self.initial_condition_dropout
        if self.inference == "amortized":
            return EncodedInitialConditions(
                network, training, self.coordinated_dropout, dropout, generator
            )
        return FreeInitialConditions(variables, network, training, dropout, generator)

    def _optimizer(self, members: list[Member]) -> Soap:
        weights = [
            weight
            for member in members
            for weight in (
                *member.model.generative_parameters(),
                *member.initial_conditions.parameters(),
            )
        ]
        settings = OPTIMIZERS[self.optimizer]
        return Soap(weights, n_models=len(members), weight_decay=self.weight_decay, **settings)

    def _train(
        self,
        state: FitState,
        training: Trials,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> bool:
        """Run the epochs; false if the user interrupted them."""
        max_epochs = MAX_EPOCHS if self.max_epochs == "auto" else self.max_epochs
        schedule = Schedule(
            learning_rate=LEARNING_RATE if self.learning_rate == "auto" else self.learning_rate,
            shape=self.learning_rate_schedule,
            n_bins=training.n_bins,
            horizon_start=self.horizon_start,
            horizon_step=self.horizon_step,
            horizon_growth=self.horizon_growth,
        )
        batch_size = self._batch_size(training)
        n_steps = max_epochs * n_batches(len(training), batch_size)
        if state.stoppers and schedule.horizon_at(1 - 1 / n_steps) < training.n_bins:
            warnings.warn(
                f"early_stopping=True has no effect with horizon_growth={self.horizon_growth}: it "
                "begins once the loss sees whole trials, and it never does. Lower horizon_growth.",
                UserWarning,
                stacklevel=6,
            )
        epochs = partial(
            train,
            state.members,
            training,
            schedule,
            state.optimizer,
            clip_norm=self.clip_norm,
            batch_size=batch_size,
            max_epochs=max_epochs,
            device=device,
        )
        finished = self._run(epochs, state, checkpoint, max_epochs, depth=3)
        for stopper in state.stoppers:
            stopper.restore_best()
        if not any(member.is_finite() for member in state.members):
            raise FloatingPointError(diverged("All weights became NaN", self.n_iter_))
        return finished

    def _fitted(self, member: Member, null_rates: np.ndarray, units: Units) -> FittedModel:
        """Make the fitted model of a member, without its model variance."""
        table = member.initial_conditions.learned()
        return FittedModel.of(member.model, self._settings(), null_rates, units, table)

    def _keep_best(
        self,
        fitted: list[FittedModel],
        state: FitState,
        training: Trials,
        validation: Trials | None,
        device: torch.device,
    ) -> None:
        """Keep the member with the best score of ``validation`` trials, if there are several."""
        best = 0
        if len(fitted) > 1:
            assert validation is not None
            self.init_scores_ = np.array([model.score(validation, device) for model in fitted])
            best = self._best_of(state)
        member = state.members[best]
        table = member.initial_conditions.learned()
        finished = fitted[best]
        finished = finished.with_model_variance(training, table)
        member.model.cpu().requires_grad_(False)
        self._fitted_model = finished
        self.loss_curve_ = state.loss_curves[best]
        if state.stoppers:
            self.validation_scores_ = state.stoppers[best].scores
            self.best_validation_score_ = state.stoppers[best].best_score

    def _best_of(self, state: FitState) -> int:
        lost = np.array([not member.is_finite() for member in state.members])
        if lost.any():
            warnings.warn(
                f"{lost.sum()} of {len(lost)} models diverged, and their init_scores_ are NaN. "
                "Lower learning_rate or clip_norm.",
                ConvergenceWarning,
                stacklevel=6,
            )
        if np.isfinite(self.init_scores_).any():
            return int(np.nanargmax(self.init_scores_))
        warnings.warn(
            "init_scores_ are NaN, because the trials held out have no spikes to predict; the "
            "model with the smallest loss is kept. Raise validation_fraction, or set n_init=1.",
            UserWarning,
            stacklevel=6,
        )
        # No losses yet, if the user interrupted the first epoch.
        losses = [curve[-1] if curve else np.inf for curve in state.loss_curves]
        return int(np.argmin(np.where(lost, np.inf, losses)))

    def _early_stopping(
        self,
        member: Member,
        validation: Trials | None,
        mean_counts: np.ndarray,
        device: torch.device,
    ) -> EarlyStopping | None:
        if validation is None or not self.early_stopping:
            return None
        conditions = member.initial_conditions
        null_rates = torch.from_numpy(mean_counts).float().to(device)
        score = ValidationScore(conditions.inference, validation, null_rates)
        state = {**member.model.state_dict(), "initial conditions": conditions.learned()}
        return EarlyStopping(score, state, self.n_iter_no_change, self.tol)

    def _batch_size(self, trials: Trials) -> int:
        if self.batch_size == "auto":
            return min(320, math.ceil(len(trials) / 4))
        return self.batch_size
