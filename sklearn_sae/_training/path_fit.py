"""Fits on paths: a linear start, training with trials held out, a choice, and a fit to all trials.

1. Some trials are held out. On the others a linear system is fitted, at which dynamics start.
2. Weights are trained, while the held-out trials tell the process noise after every epoch: on
   trials that the weights have learned it would vanish. Every few epochs each part of the neurons
   of held-out trials is predicted from the others.
3. The best of these epochs is kept if it beats the linear system clearly.
4. The model is fitted to all trials: the linear system anew, or from a linear start as many epochs
   as were best, with the noise that they had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.held_out import hold_out
from .._data.trials import Trials
from .._inference.memory import trials_at_once
from .._model.autoencoder import SequentialAutoencoder
from .linear_start import LinearStart
from .loop import Record, diverged
from .optimizers import Soap
from .path_training import HeldOut, Model, PathTraining, start_from
from .schedule import LEARNING_RATES
from .states import as_part, part_of

__all__ = ["PathContinuation", "PathFit", "PathSettings"]

#: Epochs, as a share of all, from one judgement by held-out trials to the next.
SHARE_BETWEEN_SCORES = 1 / 6
#: Shares of the epochs after which private dispersions are measured anew.
WHEN_DISPERSION = (1 / 3, 2 / 3)
#: A nonlinear system is kept if it gains so many standard errors over the linear one on held-out
#: neurons, and such a share of what that one gains over constant rates.
LEAST_STANDARD_ERRORS = 2.0
LEAST_GAIN = 0.01
#: Below this number of trials the standard error is that of parts of neurons, too.
FEW_TRIALS = 5
#: Of more bins the trials held out would hardly teach more.
MOST_BINS_TO_REFIT = 40_000
#: Bins in a batch, and batches in an epoch.
BATCH_BINS = 2500
FEWEST_BATCHES, MOST_BATCHES = 4, 8


@dataclass(frozen=True)
class PathSettings:
    """Parameters of an estimator that decide how paths are trained."""

    learning_rate: float
    learning_rate_schedule: str
    max_epochs: int
    batch_size: int | None
    clip_norm: float | None
    make_optimizer: Callable[[Any], Soap]
    patience: int | None

    def learning_rate_at(self, epoch: int) -> float:
        shape = LEARNING_RATES[self.learning_rate_schedule]
        return self.learning_rate * shape(epoch / self.max_epochs)

    def n_batches(self, network: SequentialAutoencoder, trials: Trials) -> int:
        if self.batch_size is not None:
            return max(1, round(len(trials) / self.batch_size))
        n_bins = int(trials.lengths().sum())
        wanted = min(max(round(n_bins / BATCH_BINS), FEWEST_BATCHES), MOST_BATCHES)
        # What a step keeps for its gradients takes several times the memory of inference.
        least = -(-4 * len(trials) // trials_at_once(network, trials.n_bins))
        return max(wanted, least)


@dataclass(frozen=True)
class _Judged:
    """A model before an epoch: log-likelihood gained by held-out trials, and its state.

    ``gains`` are ``(n_parts, n_trials)``.
    """

    epoch: int
    gains: np.ndarray
    state: dict[str, Tensor]


def _standard_errors(one: _Judged, other: _Judged) -> float:
    """How many standard errors one model is better than another on the same trials."""
    gains = one.gains - other.gains
    of_trials = gains.sum(axis=0) if gains.shape[1] >= FEW_TRIALS else gains.ravel()
    error = np.sqrt(len(of_trials)) * of_trials.std()
    return float(gains.sum() / max(error, 1e-12))


class _Member:
    """One model in training with trials held out, from its own seed."""

    def __init__(
        self,
        network: SequentialAutoencoder,
        linear: LinearStart,
        training: Trials,
        held_out: Trials,
        settings: PathSettings,
        seed: int,
    ) -> None:
        self.settings, self.seed = settings, seed
        self.training, self.is_linear = _start(network, linear, training, settings, seed)
        self.held_out = HeldOut(held_out, self.training.model, linear.table.device)
        self.n_batches = settings.n_batches(network, training)
        self.losses: list[float] = []
        self.noises: list[float] = []
        self.dispersions: dict[str, Tensor] = {}
        self.judged: list[_Judged] = []
        self.n_units = _n_units(held_out, network.likelihood.of_counts)

    @property
    def model(self) -> Model:
        return self.training.model

    def judge(self, epoch: int) -> None:
        """Score held-out trials before an epoch, and keep the state."""
        self.judged.append(_Judged(epoch, self.held_out.scores(), self.model.state_dict()))

    @property
    def scores(self) -> list[float]:
        """Bits per spike of held-out trials: of the linear start, and of every judged epoch."""
        return [self._score(judged) for judged in self.judged]

    def _score(self, judged: _Judged) -> float:
        if not self.n_units:
            return np.nan
        return float(judged.gains.sum() / (self.n_units * np.log(2)))

    @property
    def best(self) -> _Judged | None:
        """The last epoch that is not clearly worse than the one with the best score.

        That has taken the most steps, and the smallest. None if there is only the start.
        """
        trained = [judged for judged in self.judged[1:] if np.isfinite(judged.gains).all()]
        if not trained:
            return None
        best = max(trained, key=lambda judged: judged.gains.sum())
        near = [judged for judged in trained if _standard_errors(best, judged) < 1]
        return near[-1] if near and near[-1].epoch > best.epoch else best

    def epoch(self, epoch: int) -> float:
        if epoch in _when_dispersion(self.settings):
            self.training.measure_dispersion()
            found = self.model.network.likelihood.private_dispersion
            self.dispersions[f"{epoch}"] = found.clone()
        self.noises.append(self.model.noise)
        loss = self.training.epoch(
            self.settings.learning_rate_at(epoch), self.n_batches, self.settings.clip_norm
        )
        self.training.rescale(self.held_out)
        self.held_out.learn_noise()
        self.losses.append(loss)
        return loss

    @property
    def score(self) -> float:
        """Held-out score of what is to be kept: the linear start, or the best epoch."""
        if not self.judged:
            return np.nan
        kept = self.best if self.beats_linear() else self.judged[0]
        assert kept is not None
        return self._score(kept)

    def beats_linear(self) -> bool:
        """Whether the best epoch predicts held-out neurons clearly better than the linear start."""
        best = self.best
        if best is None or not self.is_linear:
            return best is not None
        first = self.judged[0]
        gain, linear = (best.gains - first.gains).sum(), abs(first.gains.sum())
        clear = _standard_errors(best, first) >= LEAST_STANDARD_ERRORS
        return bool(clear and gain >= LEAST_GAIN * linear)

    def stalled(self, epoch: int) -> bool:
        """Whether the held-out score has not risen for so many epochs that training may stop."""
        patience, scores = self.settings.patience, self.scores[1:]
        if patience is None or not scores:
            return False
        return epoch - self.judged[1 + int(np.argmax(scores))].epoch >= patience

    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied."""
        numbers = {
            "losses": self.losses,
            "noises": self.noises,
            "epochs": [judged.epoch for judged in self.judged],
        }
        state = {name: torch.tensor(v, dtype=torch.float64) for name, v in numbers.items()}
        for judged in self.judged:
            state[f"gains.{judged.epoch}"] = torch.from_numpy(judged.gains)
            state |= as_part(f"judged.{judged.epoch}", judged.state)
        state |= as_part("training", self.training.state_dict())
        state["held_out"] = self.held_out.table
        return state | as_part("dispersions", self.dispersions)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""
        self.losses, self.noises = (state[name].tolist() for name in ("losses", "noises"))
        self.judged = [
            _Judged(
                int(epoch),
                state[f"gains.{int(epoch)}"].numpy(),
                part_of(f"judged.{int(epoch)}", state),
            )
            for epoch in state["epochs"].tolist()
        ]
        self.training.load_state_dict(part_of("training", state))
        self.held_out.table.copy_(state["held_out"])
        self.dispersions = part_of("dispersions", state)


class PathFit:
    """A fit of one or several models on paths; see the module.

    Parameters
    ----------
    trials : Trials
    fraction : float
        Share of the trials that are held out.
    fit_linear : callable
        Fits a linear system to trials.
    build : callable
        Makes a network from the seed of its weights.
    settings : PathSettings
    seeds : list of int
        Of the models.
    """

    def __init__(
        self,
        trials: Trials,
        fraction: float,
        fit_linear: Callable[[Trials], LinearStart],
        build: Callable[[int], SequentialAutoencoder],
        settings: PathSettings,
        seeds: list[int],
    ) -> None:
        self.trials, self.settings = trials, settings
        self.fit_linear, self.build = fit_linear, build
        training, held_out, self.rows = hold_out(trials, fraction, np.random.default_rng(seeds[0]))
        linear = fit_linear(training)
        self.members = [
            _Member(build(seed), linear, training, held_out, settings, seed) for seed in seeds
        ]
        #: The model as it stands, and the latents of all trials; None while members compete.
        self.result: tuple[Model, Tensor] | None = None
        self.refit: PathTraining | None = None
        self.refit_losses: list[float] = []

    @property
    def is_affine(self) -> bool:
        """Whether dynamics are linear whatever their weights are, so that nothing is to train."""
        member = self.members[0]
        return member.is_linear and member.model.network.dynamics.state_map.is_affine

    def epochs(self, n_done: int = 0) -> Iterator[Record]:
        """Run the fit, with a record for each epoch; ``n_done`` epochs have been done before."""
        if not self.is_affine:
            yield from self._compete(n_done)
        elif not self.members[0].judged:
            for member in self.members:
                member.judge(0)
        best = self.best
        if not self.members[best].beats_linear():
            linear = self.fit_linear(self.trials)
            network = self.build(self.members[best].seed)
            model, table, _ = start_from(linear, network)
            self.result = model, table
        elif int(self.trials.lengths().sum()) > MOST_BINS_TO_REFIT:
            self.keep_best()
        else:
            yield from self._fit_again(n_done - len(self.members[best].losses))

    def _compete(self, n_done: int) -> Iterator[Record]:
        settings, members = self.settings, self.members
        every = max(1, round(SHARE_BETWEEN_SCORES * settings.max_epochs))
        for epoch in range(len(members[0].losses), settings.max_epochs):
            if epoch % every == 0 and len(members[0].judged) <= epoch // every:
                for member in members:
                    member.judge(epoch)
            if all(member.stalled(epoch) for member in members):
                return
            losses = [member.epoch(epoch) for member in members]
            if not np.isfinite(losses).any():
                raise FloatingPointError(diverged(f"The loss became {losses[0]}", epoch + 1))
            if epoch + 1 == settings.max_epochs:
                for member in members:
                    member.judge(epoch + 1)
            yield self._record(epoch + 1, losses)

    def _fit_again(self, n_done: int) -> Iterator[Record]:
        member = self.members[self.best]
        first, best = len(member.losses), member.best
        assert best is not None
        training = self.start_again()
        for epoch in range(max(n_done, 0), best.epoch):
            loss = self._epoch_again(training, member, epoch)
            yield self._record(first + epoch + 1, [loss])
        training.model.noise = float(best.state["noise"])
        self.result = training.model, training.table

    def start_again(self) -> PathTraining:
        """Training of the best member on all trials, from a linear start; made once."""
        if self.refit is None:
            seed = self.members[self.best].seed
            linear = self.fit_linear(self.trials)
            self.refit, _ = _start(self.build(seed), linear, self.trials, self.settings, seed)
        return self.refit

    def _epoch_again(self, training: PathTraining, member: _Member, epoch: int) -> float:
        model = training.model
        model.noise = member.noises[epoch]
        if f"{epoch}" in member.dispersions:
            found = member.dispersions[f"{epoch}"]
            model.network.likelihood.private_dispersion.copy_(found)
        loss = training.epoch(
            self.settings.learning_rate_at(epoch), member.n_batches, self.settings.clip_norm
        )
        training.rescale()
        self.refit_losses.append(loss)
        if not np.isfinite(loss):
            raise FloatingPointError(diverged(f"The loss became {loss}", epoch + 1))
        return loss

    def _record(self, epoch: int, losses: list[float]) -> Record:
        n_bins = self.trials.n_bins
        return Record(epoch, tuple(losses), n_bins, 0.0, complete=True)

    def note(self, record: Record) -> bool:
        return False

    def outcome(self) -> tuple[Model, Tensor]:
        """Model and states of all trials.

        If the fit was interrupted, it is the model as it stands.
        """
        if self.result is None and self.refit is not None:
            return self.refit.model, self.refit.table
        if self.result is None:
            member = self.members[self.best]
            return member.model, self._table_of_all(member)
        return self.result

    @property
    def loss_curve(self) -> list[float]:
        """Losses of the best member, and of the fit to all trials."""
        return self.members[self.best].losses + self.refit_losses

    @property
    def scores(self) -> list[float]:
        """Held-out scores of the best member: of the linear start, and then every few epochs."""
        return self.members[self.best].scores

    @property
    def score_epochs(self) -> list[int]:
        """Number of epochs before each of the scores."""
        return [judged.epoch for judged in self.members[self.best].judged]

    @property
    def score(self) -> float:
        """Held-out score of what was chosen."""
        return self.members[self.best].score

    @property
    def init_scores(self) -> np.ndarray:
        """Held-out score of every member, NaN if it has diverged."""
        return np.array([m.score if m.model.is_finite() else np.nan for m in self.members])

    @property
    def best(self) -> int:
        """Index of the member with the best score."""
        scores = self.init_scores
        if np.isfinite(scores).any():
            return int(np.nanargmax(scores))
        # No losses yet, if the user interrupted the first epoch.
        losses = [member.losses[-1] if member.losses else np.inf for member in self.members]
        return int(np.argmin(np.nan_to_num(losses, nan=np.inf)))

    def keep_best(self) -> None:
        """Take the best state of the best member as it is."""
        member = self.members[self.best]
        if member.best is not None:
            member.model.load_state_dict(member.best.state)
        self.result = member.model, self._table_of_all(member)

    def _table_of_all(self, member: _Member) -> Tensor:
        """States of all trials, as a member has them."""
        tables = member.training.table, member.held_out.table
        whole = tables[0].new_zeros(len(self.trials), *tables[0].shape[1:])
        for rows, table in zip(self.rows, tables, strict=True):
            whole[torch.as_tensor(rows, device=whole.device), : table.shape[1]] = table
        return whole

    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied."""
        state: dict[str, Tensor] = {
            "refit_losses": torch.tensor(self.refit_losses, dtype=torch.float64)
        }
        for i, member in enumerate(self.members):
            state |= as_part(f"{i}", member.state_dict())
        if self.refit is not None:
            state |= as_part("refit", self.refit.state_dict())
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""
        self.refit_losses = state["refit_losses"].tolist()
        for i, member in enumerate(self.members):
            member.load_state_dict(part_of(f"{i}", state))
        again = part_of("refit", state)
        if again:
            self.start_again().load_state_dict(again)


class PathContinuation:
    """A fit that goes on with the model of another one, its noise included (``warm_start``)."""

    def __init__(
        self, model: Model, table: Tensor, trials: Trials, settings: PathSettings, seed: int
    ) -> None:
        self.settings, self.losses = settings, list[float]()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        optimizer = settings.make_optimizer(model.network.generative_parameters())
        self.training = PathTraining(model, table, trials, optimizer, generator)
        self.n_batches = settings.n_batches(model.network, trials)

    def epochs(self, n_done: int = 0) -> Iterator[Record]:
        """Train on all trials; ``n_done`` epochs have been done before."""
        for epoch in range(n_done, self.settings.max_epochs):
            if epoch in _when_dispersion(self.settings):
                self.training.measure_dispersion()
            rate = self.settings.learning_rate_at(epoch)
            loss = self.training.epoch(rate, self.n_batches, self.settings.clip_norm)
            if not np.isfinite(loss):
                raise FloatingPointError(diverged(f"The loss became {loss}", epoch + 1))
            self.losses.append(loss)
            yield Record(epoch + 1, (loss,), self.training.trials.n_bins, rate, complete=True)

    def note(self, record: Record) -> bool:
        return False

    def outcome(self) -> tuple[Model, Tensor]:
        return self.training.model, self.training.table

    @property
    def loss_curve(self) -> list[float]:
        return self.losses

    def state_dict(self) -> dict[str, Tensor]:
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return self.training.state_dict() | {"losses": losses}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.losses = state["losses"].tolist()
        self.training.load_state_dict(state)


def _start(
    network: SequentialAutoencoder,
    linear: LinearStart,
    trials: Trials,
    settings: PathSettings,
    seed: int,
) -> tuple[PathTraining, bool]:
    model, table, is_linear = start_from(linear, network)
    optimizer = settings.make_optimizer(network.generative_parameters())
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return PathTraining(model, table, trials, optimizer, generator), is_linear


def _when_dispersion(settings: PathSettings) -> list[int]:
    return [round(share * settings.max_epochs) for share in WHEN_DISPERSION]


def _n_units(trials: Trials, of_counts: bool) -> float:
    """Spikes of all trials, or their observed entries."""
    total = 0.0
    for row in range(len(trials)):
        values = trials.view(row)
        total += float(np.nansum(values)) if of_counts else float(np.isfinite(values).sum())
    return total
