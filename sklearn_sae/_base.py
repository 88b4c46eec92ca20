"""Base class of NODESAE and RNNSAE: fitting."""

from __future__ import annotations

import copy
import sys
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from tqdm.auto import tqdm

from ._data.artefacts import warn_of_artefacts
from ._data.trials import Trials
from ._data.units import Units
from ._data.validation import check_device, check_seeds, check_trials
from ._fitted import FittedMixin
from ._inference.inference import INFERENCES
from ._model.autoencoder import SequentialAutoencoder
from ._model.dynamics import Dynamics
from ._model.encoder import Encoder
from ._model.inputs import Inputs
from ._model.likelihoods import LIKELIHOODS, Likelihood
from ._model.readout import LinearReadout
from ._path_fits import PathFits
from ._rollout_fits import RolloutFits
from ._torch_state import own_torch_state
from ._training.checkpoint import Checkpoint, Resumable, identify
from ._training.loop import Record

__all__ = ["BaseSAE"]


#: Likelihoods of data that are never negative.
COUNTED = [name for name, likelihood in LIKELIHOODS.items() if likelihood.of_counts]

#: Learned attributes of fits with validation trials.
OF_VALIDATION = (
    "init_scores_",
    "validation_scores_",
    "validation_epochs_",
    "best_validation_score_",
)

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
    PathFits,
    RolloutFits,
    FittedMixin,
    TransformerMixin,
    BaseEstimator,
    auto_wrap_output_keys=None,
    metaclass=ABCMeta,
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
        for name in OF_VALIDATION:
            learner.__dict__.pop(name, None)
        # Of a fit that goes on they stay, because the weights depend on them.
        units = self._fitted_model.units if continued else None
        procedure = learner._fit_on_paths if self._on_paths() else learner._fit_by_rollouts
        finished = procedure(trials, units, seeds, continued, device, checkpoint)
        self.__dict__ = learner.__dict__
        if finished and checkpoint is not None:
            checkpoint.remove()
        return self

    def _on_paths(self) -> bool:
        """Whether latents may leave the dynamics, by process noise."""
        return INFERENCES[self.inference].has_covariance and not self.n_inferred_inputs

    def _find_units(self, training: Trials) -> Units:
        of_counts = LIKELIHOODS[self.likelihood].of_counts
        return Units() if of_counts else training.find_units()

    def _null_rates(self, training: Trials, continued: bool) -> np.ndarray:
        """Mean counts; neurons that a warm start does not observe keep those of the last fit."""
        return training.mean_counts(unobserved=self.null_rates_ if continued else 0.0)

    def _settings(self) -> dict[str, Any]:
        """Parameters of this fit, which ``set_params`` may change later."""
        settings = self.get_params(deep=False)
        # The network does not depend on random_state, and drawing changes a RandomState instance.
        settings.pop("random_state", None)
        # A copy, because a list may be changed in place.
        return copy.deepcopy(settings)

    def _run(
        self,
        epochs: Callable[..., Iterator[Record]],
        state: Resumable,
        checkpoint: Checkpoint | None,
        n_epochs: int,
        depth: int,
    ) -> bool:
        """Run the epochs, from those that a checkpoint has; false if the user interrupted them.

        ``depth`` is the number of calls between ``fit`` and this one, for warnings.
        """
        self.n_iter_ = 0 if checkpoint is None else checkpoint.begin(state)
        with tqdm(
            total=n_epochs, initial=self.n_iter_, disable=not self.verbose, unit="epoch"
        ) as progress:
            try:
                for record in epochs(n_done=self.n_iter_):
                    self.n_iter_ = record.epoch
                    stops = state.note(record)
                    progress.total = max(progress.total, record.epoch)
                    progress.update()
                    progress.set_postfix(loss=f"{record.loss:.4f}", horizon=record.horizon)
                    if stops:
                        break
                    if checkpoint is not None and record.epoch % self.checkpoint_every == 0:
                        checkpoint.write(state, record.epoch, depth + 1)
            except KeyboardInterrupt:
                if _is_one_of_many():
                    # The other fits should end too, and this one not be scored as if it were done.
                    raise
                kept = "the model as it stands is kept"
                if checkpoint is not None:
                    kept += f"; another fit goes on from {checkpoint.path}, unless you delete it"
                warnings.warn(
                    f"Training interrupted in epoch {self.n_iter_ + 1} of {n_epochs}; {kept}.",
                    ConvergenceWarning,
                    stacklevel=depth + 4,
                )
                return False
        return True

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

    def _check_can_hold_out(self, trials: Trials, n_models: int) -> None:
        if len(trials) == 1 and (self.early_stopping or n_models > 1):
            by = "early_stopping=True" if self.early_stopping else f"n_init={self.n_init}"
            raise ValueError(
                f"{by} holds out trials to judge models by, and X has 1 trial. Give more, or set "
                "early_stopping=False and n_init=1."
            )

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
                stacklevel=6,
            )
        warn_of_artefacts(trials, null_rates, of_counts, stacklevel=7)

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
