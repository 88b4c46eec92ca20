"""Training loop: a generator of one record per epoch; the caller decides when to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._data.trials import Trials
from .._model.autoencoder import SequentialAutoencoder
from .ensemble import losses
from .initial_conditions import InitialConditions
from .optimizers import Soap
from .schedule import Schedule

__all__ = ["Member", "Record", "n_batches", "train"]


@dataclass
class Record:
    """Record of one epoch of training, with the loss of each model.

    It is ``complete`` if the horizon is full, so that the loss sees whole trials.
    """

    epoch: int
    losses: tuple[float, ...]
    horizon: int
    learning_rate: float
    complete: bool

    @property
    def loss(self) -> float:
        """Mean loss of the models that have not diverged."""
        losses = np.array(self.losses)
        return float(losses[np.isfinite(losses)].mean())


@dataclass
class Member:
    """Member of an ensemble: a model in training, its initial conditions and random generator."""

    model: SequentialAutoencoder
    initial_conditions: InitialConditions
    generator: torch.Generator

    def is_finite(self) -> bool:
        """Whether all weights are finite."""
        return all(weight.isfinite().all() for weight in self.model.parameters())


def train(
    members: Sequence[Member],
    trials: Trials,
    schedule: Schedule,
    optimizer: Soap,
    *,
    clip_norm: float | None,
    batch_size: int,
    max_epochs: int,
    device: torch.device,
    n_done: int = 0,
) -> Iterator[Record]:
    """Fit dynamics, readout, likelihood and initial conditions; yields a record after every epoch.

    Several members, whose models differ only in the values of their weights, are each fitted as if
    alone; with few trials, a step of all takes little longer than a step of one.

    Another call can continue after any epoch, with the same arguments in the state that they had
    then and the number of epochs done, ``n_done``.
    """
    models = [member.model for member in members]
    conditions = [member.initial_conditions for member in members]
    move = conditions[0].make_step(conditions)

    # A function, so that the memory of a step is freed before the next step.
    def step(
        rows: Sequence[np.ndarray], horizon: int, learning_rate: float, epoch: int
    ) -> list[float]:
        batches = [trials.batch(of_one, device, horizon) for of_one in rows]
        draws = [c.draw(batch) for c, batch in zip(conditions, batches, strict=True)]
        outputs, of_models = losses(models, [draw.variables for draw in draws], batches)
        of_models.sum().backward()
        values = check_losses(of_models, epoch)
        optimizer.step(learning_rate, clip_norm)
        move(batches, draws, learning_rate)
        for model, output, batch in zip(models, outputs, batches, strict=True):
            model.likelihood.accumulate_residuals(output.detach(), batch)
        return values

    for epoch in range(n_done, max_epochs):
        found = []
        orders = [shuffled(len(trials), batch_size, member.generator) for member in members]
        for i, rows in enumerate(zip(*orders, strict=True)):
            progress = (epoch + i / len(orders[0])) / max_epochs
            horizon = schedule.horizon_at(progress)
            learning_rate = schedule.learning_rate_at(progress)
            found.append(step(rows, horizon, learning_rate, epoch))
        for member in members:
            member.model.likelihood.end_epoch()
            member.initial_conditions.end_epoch(epoch, horizon)
        yield Record(
            epoch + 1,
            tuple(np.mean(found, axis=0).tolist()),
            horizon,
            learning_rate,
            complete=horizon == trials.n_bins,
        )


def shuffled(n_trials: int, batch_size: int, generator: torch.Generator) -> list[np.ndarray]:
    """Shuffle the indices of all trials, in batches of nearly equal size."""
    order = torch.randperm(n_trials, generator=generator, device="cpu").numpy()
    return np.array_split(order, n_batches(n_trials, batch_size))


def n_batches(n_trials: int, batch_size: int) -> int:
    """Number of batches of about ``batch_size`` trials in an epoch."""
    return max(1, round(n_trials / batch_size))


def check_losses(losses: Tensor, epoch: int) -> list[float]:
    """Convert losses ``(n_models,)`` to numbers; at least one of them must be finite.

    A member that diverges leaves the others alone.
    """
    values = losses.tolist()
    if not np.isfinite(values).any():
        raise FloatingPointError(diverged(f"The loss became {values[0]}", epoch + 1))
    return values


def diverged(what: str, epoch: int) -> str:
    """Text of the error that a fit has diverged."""
    return (
        f"{what} in epoch {epoch}. Lower learning_rate or clip_norm; if counts are very large, use "
        "smaller bins."
    )
