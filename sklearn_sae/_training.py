"""The trainer: a generator of one record per epoch; its caller owns progress and stopping."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._batches import Batch, Trials
from ._encoder import Encoder, drop, hide_at_random
from ._expansion import Expansion
from ._inference import FIRST_DAMPING, refine, trials_at_once
from ._inputs import InputStatistics
from ._likelihood import mean_loss
from ._likelihoods import Likelihood
from ._model import SequentialAutoencoder, outputs
from ._optimizer import RowAdam, Soap
from ._prior import Prior
from ._schedule import Schedule

__all__ = [
    "EncodedInitialConditions",
    "FreeInitialConditions",
    "Member",
    "Record",
    "n_batches",
    "train",
]

#: Initial conditions move in latents of unit size, and see one trial each: larger steps than
#: weights.
INITIAL_CONDITION_SPEED = 5.0
#: Dynamics that learn for long without inputs that are there go astray: while the horizon grows,
#: which makes it cheap, inferred inputs follow them closely.
EPOCHS_BETWEEN_FIRST_INPUTS = 2
EPOCHS_BETWEEN_INPUTS = 5


@dataclass
class Record:
    """What one epoch of training did; ``losses`` has one of each model.

    It is ``complete`` if the loss sees whole trials.
    """

    epoch: int
    losses: tuple[float, ...]
    horizon: int
    learning_rate: float
    complete: bool

    @property
    def loss(self) -> float:
        """The mean over models that have not diverged."""
        losses = np.array(self.losses)
        return float(losses[np.isfinite(losses)].mean())


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
                statistics = Expansion.at(self.model, prior, batch, causes).input_statistics()
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


@dataclass
class Member:
    """A model in training, its trials' initial conditions, and its own random numbers."""

    model: SequentialAutoencoder
    initial_conditions: InitialConditions
    generator: torch.Generator

    def is_finite(self) -> bool:
        """Whether all weights are."""
        return all(weight.isfinite().all() for weight in self.model.parameters())


def train(
    members: Sequence[Member],
    trials: Trials,
    schedule: Schedule,
    optimiser: Soap,
    *,
    clip_norm: float | None,
    batch_size: int,
    max_epochs: int,
    device: torch.device,
    n_done: int = 0,
) -> Iterator[Record]:
    """Fit dynamics, readout, likelihood and initial conditions; yields after every epoch.

    Several members, of models that differ in their numbers only, are each fitted as if alone. But a
    step of all takes little longer than that of one, while trials are few.

    After any epoch training can go on in another call, if all that is given is as it was then and
    ``n_done`` says how many epochs that were.
    """
    conditions = [member.initial_conditions for member in members]
    follow = conditions[0].followers(conditions)

    # A function, so that what a step has made is gone before the next makes as much.
    def step(
        rows: Sequence[np.ndarray], horizon: int, learning_rate: float, epoch: int
    ) -> list[float]:
        batches = [trials.batch(of_one, device, horizon) for of_one in rows]
        results = _outputs_and_losses(members, batches, horizon)
        losses = check_losses([loss for _, loss in results], epoch)
        optimiser.step(learning_rate, clip_norm)
        follow(batches, learning_rate)
        for member, batch, (output, _) in zip(members, batches, results, strict=True):
            member.model.likelihood.note_residuals(output, batch)
        return losses

    for epoch in range(n_done, max_epochs):
        losses = []
        orders = [shuffled(len(trials), batch_size, member.generator) for member in members]
        for i, rows in enumerate(zip(*orders, strict=True)):
            progress = (epoch + i / len(orders[0])) / max_epochs
            horizon = schedule.horizon_at(progress)
            learning_rate = schedule.learning_rate_at(progress)
            losses.append(step(rows, horizon, learning_rate, epoch))
        for member in members:
            member.model.likelihood.end_epoch()
            member.initial_conditions.end_epoch(epoch, horizon)
        yield Record(
            epoch + 1,
            tuple(np.mean(losses, axis=0).tolist()),
            horizon,
            learning_rate,
            complete=horizon == trials.n_bins,
        )


def _outputs_and_losses(
    members: Sequence[Member], batches: Sequence[Batch], horizon: int
) -> list[tuple[Tensor, Tensor]]:
    """Of every member, and leave the gradients of its loss in what that depends on."""
    models = [member.model for member in members]
    causes = [
        member.initial_conditions.take(batch)
        for member, batch in zip(members, batches, strict=True)
    ]
    known = [batch.inputs for batch in batches]
    if len(members) == 1:
        output = models[0].output(causes[0], horizon, known[0])
        loss = mean_loss(models[0].likelihood, output, batches[0])
        loss.backward()
        return [(output.detach(), loss.detach())]
    of_all = outputs(models, causes, horizon, known)
    likelihood = Likelihood.of_several([model.likelihood for model in models])
    losses = mean_loss(likelihood, of_all, Batch.of_several(batches))
    losses.sum().backward()
    return list(zip(of_all.detach().unbind(1), losses.detach(), strict=True))


def shuffled(n_trials: int, batch_size: int, generator: torch.Generator) -> list[np.ndarray]:
    """Rows of all trials in random order, in batches of nearly equal size."""
    order = torch.randperm(n_trials, generator=generator, device="cpu").numpy()
    return np.array_split(order, n_batches(n_trials, batch_size))


def n_batches(n_trials: int, batch_size: int) -> int:
    """How many batches of about that size there are in an epoch."""
    return max(1, round(n_trials / batch_size))


def check_losses(losses: Sequence[Tensor], epoch: int) -> list[float]:
    """As numbers, of which one at least must be finite: a diverging member harms no other."""
    values = [loss.item() for loss in losses]
    if not np.isfinite(values).any():
        raise FloatingPointError(diverged(f"The loss became {values[0]}", epoch + 1))
    return values


def diverged(what: str, epoch: int) -> str:
    """What to tell the user."""
    return (
        f"{what} in epoch {epoch}. Lower learning_rate or clip_norm; if counts are very large, use "
        "smaller bins."
    )
