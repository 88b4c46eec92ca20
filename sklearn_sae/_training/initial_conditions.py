"""Initial conditions and inferred inputs of training trials: free, or given by the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._data.batches import Batch
from .._data.trials import Trials
from .._inference.memory import trials_at_once
from .._inference.newton import FIRST_DAMPING, refine
from .._inference.posterior import LaplacePosterior
from .._inference.prior import Prior
from .._model.autoencoder import SequentialAutoencoder
from .._model.encoder import Encoder, drop, hide_at_random
from .._model.inputs import InputStatistics
from .optimizers import RowAdam

__all__ = ["EncodedInitialConditions", "FreeInitialConditions", "InitialConditions"]

#: Initial conditions move in latents of unit size, and see one trial each: larger steps than
#: weights.
INITIAL_CONDITION_SPEED = 5.0
#: Dynamics that learn for long without inputs that are there go astray: while the horizon grows,
#: which makes it cheap, inferred inputs follow them closely.
EPOCHS_BETWEEN_FIRST_INPUTS = 2
EPOCHS_BETWEEN_INPUTS = 5


class InitialConditions(ABC):
    """Where a batch's initial conditions come from, and what becomes of their gradient."""

    @abstractmethod
    def take(self, batch: Batch) -> Tensor:
        """Causes ``(n_causes, n_trials)`` that the loss can be differentiated by."""

    @staticmethod
    @abstractmethod
    def followers(several: Sequence[Any]) -> Callable[[Sequence[Batch], float], None]:
        """What makes them all follow the gradients that losses left in those taken last.

        It is given the batches they were taken of, one of each, and the learning rate.
        """

    @abstractmethod
    def end_epoch(self, epoch: int, horizon: int) -> None:
        """Do what is done once in a while, for all trials together."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Weights to train beside those of dynamics and readout."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What the next epoch depends on beside all weights; not a copy."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on as those whose ``state_dict`` this was."""


class FreeInitialConditions(InitialConditions):
    """Each training trial's is a free parameter (``inference="semi-amortized"``).

    Adam alone lets them lag behind the weights, which then learn to make up for it. So every few
    epochs all of them take one Gauss-Newton step; rarely if latents are many, because a step costs
    as much as that many rollouts.

    Inferred inputs have no gradient steps, only those of Gauss-Newton, more often, and after each
    their prior is learned anew.
    """

    def __init__(
        self,
        causes: Tensor,
        model: SequentialAutoencoder,
        trials: Trials,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        self.n_latents = model.readout.n_latents
        self.model, self.trials = model, trials
        self.table = self._with_room_for_inputs(causes)
        self.adam = RowAdam([self.z0])
        self.prior = Prior.from_samples(self.z0, model.inputs)
        self.dropout, self.generator = dropout, generator
        self.damping = causes.new_full((len(causes),), FIRST_DAMPING)
        self.epochs_between_steps = max(10, 2 * self.n_latents)
        self._leaf = self.table

    def _with_room_for_inputs(self, causes: Tensor) -> Tensor:
        n_missing = self._n_causes(self.trials.n_bins) - causes.shape[1]
        if n_missing == 0:
            return causes
        return torch.cat([causes, causes.new_zeros(len(causes), n_missing)], dim=1)

    @property
    def z0(self) -> Tensor:
        """The initial conditions, one per row: a view of the table of all causes."""
        return self.table[:, : self.n_latents]

    def _n_causes(self, n_bins: int) -> int:
        """Of trials up to ``n_bins``."""
        return self.n_latents + (n_bins - 1) * self.model.n_inferred

    def take(self, batch: Batch) -> Tensor:
        causes = self.table[batch.rows, : self._n_causes(len(batch.counts))].T
        self._leaf = causes[: self.n_latents].contiguous().requires_grad_()
        z0 = drop(self._leaf, self.dropout, self.generator)
        return torch.cat([z0, causes[self.n_latents :]]) if self.model.inferring else z0

    @staticmethod
    def followers(
        several: Sequence[FreeInitialConditions],
    ) -> Callable[[Sequence[Batch], float], None]:
        adam = RowAdam.of_several([one.adam for one in several])

        def follow(batches: Sequence[Batch], learning_rate: float) -> None:
            rows = np.stack([batch.rows for batch in batches])
            z0 = torch.stack([one._leaf.detach() for one in several])
            pulls = Prior.gradients([one.prior for one in several], z0)
            # The loss is that of the spikes, per entry.
            gradient = torch.stack(
                [
                    one._leaf.grad - pull / batch.n_observed()
                    for one, pull, batch in zip(several, pulls, batches, strict=True)
                ]
            )
            adam.step(
                torch.as_tensor(rows, device=adam.mean.device),
                gradient.mT,
                INITIAL_CONDITION_SPEED * learning_rate,
            )

        return follow

    @torch.no_grad()
    def end_epoch(self, epoch: int, horizon: int) -> None:
        inputs, growing = self.model.inputs, horizon < self.trials.n_bins
        self.prior = Prior.from_samples(self.z0, inputs)
        every = self.epochs_between_steps
        if self.model.inferring:
            every = EPOCHS_BETWEEN_FIRST_INPUTS if growing else EPOCHS_BETWEEN_INPUTS
        if (epoch + 1) % every or (self.model.inferring and horizon == 1):
            return
        statistics = self._gauss_newton(horizon)
        if statistics is not None:
            assert inputs is not None
            inputs.learn_prior(statistics, sparing=growing)

    def _gauss_newton(self, horizon: int) -> InputStatistics | None:
        prior = self.prior
        size = trials_at_once(self.model, horizon)
        table = self.table[:, : self._n_causes(horizon)]
        sums = None
        for batch in self.trials.chunks(size, self.table.device, horizon):
            causes = table[batch.rows].T.contiguous()
            damping = self.damping[batch.rows] if self.model.inferring else None
            causes = refine(self.model, prior, batch, causes, max_iter=1, damping=damping)
            table[batch.rows] = causes.T
            if damping is not None:
                self.damping[batch.rows] = damping
                posterior = LaplacePosterior(self.model, prior, batch, causes)
                statistics = posterior.input_statistics()
                sums = statistics if sums is None else sums + statistics
        return sums

    def parameters(self) -> list[nn.Parameter]:
        return []

    def state_dict(self) -> dict[str, Tensor]:
        state = {
            "table": self.table,
            "prior.mean": self.prior.mean,
            "prior.precision": self.prior.precision,
            **self.adam.state_dict(),
        }
        return state | {"damping": self.damping} if self.model.inferring else state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.table.copy_(state["table"])
        if "damping" in state:
            self.damping.copy_(state["damping"])
        self.adam.load_state_dict(state)
        # As it was before the last Gauss-Newton step.
        mean, precision = (
            state[f"prior.{name}"].to(self.table.device) for name in ("mean", "precision")
        )
        self.prior = Prior(mean, precision, self.model.inputs)


class EncodedInitialConditions(InitialConditions):
    """The encoder gives them, and is trained end to end (``inference="amortized"``)."""

    def __init__(
        self,
        encoder: Encoder,
        trials: Trials,
        coordinated_dropout: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        self.encoder, self.trials = encoder, trials
        self.coordinated_dropout, self.dropout = coordinated_dropout, dropout
        self.generator = generator

    def take(self, batch: Batch) -> Tensor:
        # The loss may stop at the horizon; the encoder always reads the whole trial.
        whole = self.trials.batch(batch.rows, batch.counts.device)
        seen = hide_at_random(whole, self.coordinated_dropout, self.generator)
        return drop(self.encoder(seen, self.generator), self.dropout, self.generator)

    @staticmethod
    def followers(
        several: Sequence[EncodedInitialConditions],
    ) -> Callable[[Sequence[Batch], float], None]:
        """Nothing to follow: encoders' weights take their step with all others."""
        return lambda batches, learning_rate: None

    def end_epoch(self, epoch: int, horizon: int) -> None:
        """Nothing to catch up with."""

    def parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to load: the encoder is one of the weights."""
