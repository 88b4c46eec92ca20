"""Base class of NODESAE and RNNSAE: fitting."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from abc import ABCMeta, abstractmethod
from types import FrameType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm.auto import tqdm

from ._data.artefacts import warn_of_artefacts
from ._data.pieces import Pieces
from ._data.trials import Trials
from ._data.units import Units
from ._data.validation import check_device, check_seeds, check_trials
from ._fitted import FittedMixin
from ._inference.fitted_model import FittedModel
from ._inference.inference import INFERENCES
from ._model.autoencoder import SequentialAutoencoder
from ._model.dynamics import Dynamics
from ._model.encoder import Encoder
from ._model.inputs import Inputs
from ._model.likelihoods import LIKELIHOODS, Likelihood
from ._model.readout import LinearReadout
from ._torch_state import own_torch_state
from ._training.checkpoint import Checkpoint, FitState, identify
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

__all__ = ["BaseSAE"]


#: Likelihoods of data that are never negative.
COUNTED = [name for name, likelihood in LIKELIHOODS.items() if likelihood.of_counts]

#: Learned attributes of fits with validation trials.
OF_VALIDATION = ("init_scores_", "validation_scores_", "best_validation_score_")

#: Trials of more bins are cut into pieces of at most so many to train on.
LONGEST_TRIAL = 200
LONGEST_PIECE = 100

#: Parameters that decide what weights mean. A fit that goes on with the weights (``warm_start``)
#: may change others, such as the solver of the same differential equation.
STRUCTURAL = (
    "n_latents",
    "hidden_sizes",
    "activation",
    "time_scale",
    "cell",
    "residual",
    "likelihood",
    "n_inferred_inputs",
    "inference",
    "encoder_size",
)
#: Those of them that matter only with a certain value of another parameter, if that exists.
ONLY_WITH = {
    "hidden_sizes": ("cell", "mlp"),
    "activation": ("cell", "mlp"),
    "encoder_size": ("inference", "amortized"),
}


def _is_one_of_many() -> bool:
    """Whether joblib runs this fit, as in every search and cross-validation.

    Then ``joblib.parallel`` is among the frames below, in this process or in one of joblib's. It is
    not in a pipeline, which uses ``joblib.memory``, nor in the refit at the end of a search.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "joblib.parallel":
            return True
        frame = frame.f_back
    return False


class BaseSAE(  # type: ignore[call-arg]  # sklearn has no types
    FittedMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None, metaclass=ABCMeta
):
    """Base class of sequential autoencoders; subclasses build the dynamics."""

    def __init_subclass__(cls, auto_wrap_output_keys=None, **kwargs):
        """Keep scikit-learn from wrapping three-dimensional latents in data frames."""
        # Passed on for every subclass, because the default is to wrap.
        super().__init_subclass__(auto_wrap_output_keys=auto_wrap_output_keys, **kwargs)

    @abstractmethod
    def _build_dynamics(self, generator: torch.Generator | None) -> Dynamics:
        """Build dynamics with weights drawn from ``generator``, or only shapes without one."""

    @_fit_context(prefer_skip_nested_validation=True)
    @own_torch_state(grad=True)
    def fit(self, X, y=None, *, inputs=None):
        """Fit the model to spike counts.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts, >= 0; with ``likelihood="gaussian"`` any finite values. NaN marks entries
            that were not observed.
        y : Ignored
            Not used; there for scikit-learn's conventions.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs to the dynamics, such as stimuli; those of a bin act between it and the
            next. Other methods then need them too. Within a pipeline or a search, route them:
            ``sklearn.set_config(enable_metadata_routing=True)`` and
            ``est.set_fit_request(inputs=True)``, likewise for the other methods.

        Returns
        -------
        self : object
            The fitted estimator.

        Warns
        -----
        ConvergenceWarning
            If training was interrupted (Ctrl-C); the model is kept as it stands. If joblib runs the
            fit, as in a search or a cross-validation, KeyboardInterrupt is raised instead and ends
            all fits.
        UserWarning
            If there are no spikes, counts of more than 100,000, or artefacts: a few entries that
            dominate the likelihood.
        """
        continued = self.warm_start and hasattr(self, "model_")
        self._check_fit(y, continued)
        # All that is learned becomes part of the estimator at once, at the end: a fit that fails
        # leaves the estimator as it was.
        learner = copy.copy(self)
        of_counts = LIKELIHOODS[self.likelihood].of_counts
        trials = check_trials(learner, X, inputs, reset=not continued, of_counts=of_counts)
        device = check_device(self.device)
        seeds = check_seeds(self.random_state, 1 if continued else self.n_init)
        checkpoint = None
        if self.checkpoint_path is not None:
            checkpoint = Checkpoint(self.checkpoint_path, identify(self, trials, continued), seeds)
            seeds = checkpoint.seeds
        training, validation = self._split(trials, seeds)

        for name in OF_VALIDATION:
            learner.__dict__.pop(name, None)
        if continued:
            # Units stay, because the weights depend on them; the null model becomes that of these
            # trials, except for neurons that they do not observe.
            units = self._fitted_model.units
            null_rates = training.mean_counts(unobserved=self.null_rates_)
        else:
            units = Units() if of_counts else training.find_units()
            null_rates = training.mean_counts()
        trials.units = units
        learner._warn_of_data(trials, null_rates, of_counts)
        mean_counts = units.to_network(null_rates)
        training = self._in_pieces(training, units)
        validation = validation and self._in_pieces(validation, units)
        members = [
            learner._member(training, mean_counts, seed, continued, device) for seed in seeds
        ]
        watch = [learner._early_stopping(m, validation, mean_counts, device) for m in members]
        state = FitState(
            members,
            self._optimizer(members),
            [stopper for stopper in watch if stopper is not None],
            [[*self.loss_curve_] if continued else [] for _ in members],
        )
        finished = learner._train(state, training, device, checkpoint)
        fitted = [learner._fitted(member, null_rates, units) for member in members]
        learner._keep_best(fitted, state, training, validation, device)
        self.__dict__ = learner.__dict__
        if finished and checkpoint is not None:
            checkpoint.remove()
        return self

    def fit_transform(self, X, y=None, *, inputs=None):
        """Fit, and infer the latents of the same trials.

        Parameters
        ----------
        X : array of shape (n_trials, n_bins, n_neurons), or list of (n_bins_i, n_neurons)
            Spike counts; NaN = not observed.
        y : Ignored
            Not used; there for scikit-learn's conventions.
        inputs : array of shape (n_trials, n_bins, n_inputs), or list of (n_bins_i, n_inputs)
            Known inputs to the dynamics.

        Returns
        -------
        latents : float32 array of shape (n_trials, n_bins, n_latents), or list of (n_bins_i,
        n_latents)
            Latents, as ``fit(X, inputs=inputs).transform(X, inputs=inputs)`` gives.
        """
        return self.fit(X, y, inputs=inputs).transform(X, inputs=inputs)

    def _check_fit(self, y: Any, continued: bool) -> None:
        """Refuse parameters that do not fit each other, or the last fit (``warm_start``)."""
        if self.n_inferred_inputs and not INFERENCES[self.inference].has_covariance:
            raise ValueError(
                f"n_inferred_inputs={self.n_inferred_inputs} needs the posterior of the inputs, "
                'which an encoder does not give. Set inference="semi-amortized", or '
                "n_inferred_inputs=0."
            )
        if getattr(y, "ndim", 0) == 3:
            warnings.warn(
                "y is ignored, although it looks like known inputs; these go by name: "
                "fit(X, inputs=...).",
                UserWarning,
                stacklevel=5,
            )
        if continued:
            self._check_structure()

    def _check_structure(self) -> None:
        """Refuse a warm start whose parameters change the meaning of the weights."""
        old, new = self._fitted_model.settings, self.get_params(deep=False)
        for name in STRUCTURAL:
            other, value = ONLY_WITH.get(name, (None, None))
            if name not in new or (other in new and new[other] != value):
                continue
            if not np.array_equal(old[name], new[name]):
                raise ValueError(
                    f"warm_start=True goes on with the weights of the last fit, which had "
                    f"{name}={old[name]!r}; now {name}={new[name]!r}, with which they would mean "
                    f"something else. Set {name} back, or set warm_start=False to start afresh."
                )

    def _warn_of_data(self, trials: Trials, null_rates: np.ndarray, of_counts: bool) -> None:
        """Warn of artefacts or a lack of spikes in all trials, which have the indices of X."""
        if of_counts and not null_rates.any():
            warnings.warn(
                "X has no spikes at all: there is nothing to learn, and scores will be NaN. Look "
                "at how it was counted (bin_size, window, units of spike times).",
                UserWarning,
                stacklevel=5,
            )
        warn_of_artefacts(trials, null_rates, of_counts, stacklevel=6)

    def _split(self, trials: Trials, seeds: list[int]) -> tuple[Trials, Trials | None]:
        """Split into training trials, and validation trials if there is a use for them."""
        if not self.early_stopping and len(seeds) == 1:
            return trials, None
        if len(trials) == 1:
            by = "early_stopping=True" if self.early_stopping else f"n_init={self.n_init}"
            raise ValueError(
                f"{by} holds out trials to judge models by, and X has 1 trial. Give more, or set "
                "early_stopping=False and n_init=1."
            )
        rows = np.arange(len(trials))
        fit_rows, validation_rows = train_test_split(
            rows, test_size=self.validation_fraction, random_state=seeds[0]
        )
        return trials.subset(np.sort(fit_rows)), trials.subset(np.sort(validation_rows))

    def _in_pieces(self, trials: Trials, units: Units) -> Trials:
        """Cut long trials: in chaos, one initial condition says little of bins far behind it."""
        can_be_cut = INFERENCES[self.inference].has_covariance and not self.n_inferred_inputs
        if not can_be_cut or trials.n_bins <= LONGEST_TRIAL:
            return trials
        return Pieces(trials, LONGEST_PIECE, units)

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

    def _build_network(
        self,
        mean_counts: np.ndarray,
        n_inputs: int,
        generator: torch.Generator | None,
        likelihood: Likelihood | None = None,
    ) -> SequentialAutoencoder:
        """Build a network whose readout is still to start, or only shapes without ``generator``."""
        device = "meta" if generator is None else "cpu"
        n_neurons = len(mean_counts)
        readout = LinearReadout(n_neurons, self.n_latents, generator)
        if likelihood is None:
            likelihood = LIKELIHOODS[self.likelihood](n_neurons, device)
        dynamics = self._build_dynamics(generator)
        encoder = None
        if self.inference == "amortized":
            encoder = self._build_encoder(mean_counts, likelihood, generator)
        inputs = None
        if n_inputs or self.n_inferred_inputs:
            inputs = Inputs(self.n_latents, n_inputs, self.n_inferred_inputs, generator)
        return SequentialAutoencoder(dynamics, readout, likelihood, encoder, inputs)

    def _build_encoder(
        self,
        mean_counts: np.ndarray,
        likelihood: Likelihood,
        generator: torch.Generator | None,
    ) -> Encoder:
        means = torch.from_numpy(mean_counts).float()
        if generator is None:
            means = means.to("meta")
        return Encoder(
            means,
            likelihood.spread(means),
            self.n_latents,
            self.encoder_size,
            self.dropout,
            generator,
        )

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
        schedule = Schedule(
            learning_rate=self.learning_rate,
            shape=self.learning_rate_schedule,
            n_bins=training.n_bins,
            horizon_start=self.horizon_start,
            horizon_step=self.horizon_step,
            horizon_growth=self.horizon_growth,
        )
        batch_size = self._batch_size(training)
        n_steps = self.max_epochs * n_batches(len(training), batch_size)
        if state.stoppers and schedule.horizon_at(1 - 1 / n_steps) < training.n_bins:
            warnings.warn(
                f"early_stopping=True has no effect with horizon_growth={self.horizon_growth}: it "
                "begins once the loss sees whole trials, and it never does. Lower horizon_growth.",
                UserWarning,
                stacklevel=5,
            )
        self.n_iter_ = 0 if checkpoint is None else checkpoint.begin(state)
        records = train(
            state.members,
            training,
            schedule,
            state.optimizer,
            clip_norm=self.clip_norm,
            batch_size=batch_size,
            max_epochs=self.max_epochs,
            device=device,
            n_done=self.n_iter_,
        )
        finished = True
        with tqdm(
            total=self.max_epochs, initial=self.n_iter_, disable=not self.verbose, unit="epoch"
        ) as progress:
            try:
                for record in records:
                    self.n_iter_ = record.epoch
                    for i, loss in enumerate(record.losses):
                        # A member that has stopped waits for the others.
                        if not (state.stoppers and state.stoppers[i].stopped):
                            state.loss_curves[i].append(loss)
                    progress.update()
                    progress.set_postfix(loss=f"{record.loss:.4f}", horizon=record.horizon)
                    stops = [stopper.should_stop(record) for stopper in state.stoppers]
                    if stops and all(stops):
                        break
                    if checkpoint is not None and record.epoch % self.checkpoint_every == 0:
                        checkpoint.write(state, record.epoch)
            except KeyboardInterrupt:
                if _is_one_of_many():
                    # The other fits should end too, and this one not be scored as if it were done.
                    raise
                finished = False
                kept = "the model as it stands is kept"
                if checkpoint is not None:
                    kept += f"; another fit goes on from {checkpoint.path}, unless you delete it"
                warnings.warn(
                    f"Training interrupted in epoch {self.n_iter_ + 1} of {self.max_epochs}; "
                    f"{kept}.",
                    ConvergenceWarning,
                    stacklevel=5,
                )
        for stopper in state.stoppers:
            stopper.restore_best()
        if not any(member.is_finite() for member in state.members):
            raise FloatingPointError(diverged("All weights became NaN", self.n_iter_))
        return finished

    def _fitted(self, member: Member, null_rates: np.ndarray, units: Units) -> FittedModel:
        """Make the fitted model of a member, without its model variance."""
        settings = self.get_params(deep=False)
        # The network does not depend on random_state, and drawing changes a RandomState instance.
        settings.pop("random_state", None)
        # A copy, because a list may be changed in place.
        settings = copy.deepcopy(settings)
        table = member.initial_conditions.learned()
        return FittedModel.of(member.model, settings, null_rates, units, table)

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
        if isinstance(training, Pieces):
            finished = finished.with_process_noise(training, table)
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

    def set_output(self, *, transform=None):
        """Refuse any container other than NumPy arrays, because latents are three-dimensional.

        Parameters
        ----------
        transform : {"default", None}
            Container of the output of ``transform``; both values mean NumPy arrays.

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
        """Tags that tell scikit-learn which input and output the estimator has."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.positive_only = self.likelihood in COUNTED
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
