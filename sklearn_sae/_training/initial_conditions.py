"""Initial conditions and inferred inputs of training trials: free, or given by the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .._data.batches import Batch
from .._data.trials import Trials
from .._inference.inference import Amortized, Inference, SemiAmortized
from .._inference.memory import trials_at_once
from .._inference.newton import FIRST_DAMPING, refine
from .._inference.posterior import LaplacePosterior
from .._inference.prior import Prior
from .._model.autoencoder import SequentialAutoencoder
from .._model.encoder import drop, hide_at_random
from .._model.inputs import InputStatistics
from .ensemble import joint_adam, joint_prior
from .optimizers import RowAdam
from .private_dispersion import private_dispersion

__all__ = ["Draw", "EncodedInitialConditions", "FreeInitialConditions", "InitialConditions"]

#: Learning rate of initial conditions over that of weights: latents are of unit size, and each
#: initial condition sees only one trial.
INITIAL_CONDITION_SPEED = 5.0
#: Epochs from one Gauss-Newton step of inferred inputs to the next: fewer while the horizon grows,
#: when steps are cheap, because dynamics learned with outdated inputs go astray.
EPOCHS_BETWEEN_FIRST_INPUTS = 2
EPOCHS_BETWEEN_INPUTS = 5
#: Epochs after which private dispersions are measured: they change less and less.
EPOCHS_OF_DISPERSIONS = [20 * 2**i for i in range(20)]


class Draw(NamedTuple):
    """Latent variables of a batch, for one step of training.

    The loss is a function of ``variables`` ``(n_variables, n_trials)``. ``leaf`` ``(n_latents,
    n_trials)`` holds initial conditions before dropout, and receives their gradient if they are
    parameters; None if an encoder gives them.
    """

    variables: Tensor
    leaf: Tensor | None


#: A function that moves the initial conditions of several models along the gradients in draws.
Move = Callable[[Sequence[Batch], Sequence[Draw], float], None]


class InitialConditions(ABC):
    """Interface of initial conditions and inferred inputs of training trials in training."""

    @abstractmethod
    def draw(self, batch: Batch) -> Draw:
        """Get latent variables ``(n_variables, n_trials)`` of a batch, ready for gradients."""

    @staticmethod
    @abstractmethod
    def make_step(several: Sequence[Any]) -> Move:
        """Make the function that takes a gradient step for all of ``several`` together.

        Its arguments are a batch and a draw for each of them, and the learning rate.
        """

    @abstractmethod
    def end_epoch(self, epoch: int, horizon: int) -> None:
        """Every few epochs, take one Gauss-Newton step for all trials."""

    @abstractmethod
    def inference(self) -> Inference:
        """Make the inference of validation trials under the current model, of few iterations."""

    def learned(self) -> Tensor | None:
        """Latent variables ``(n_trials, n_variables)`` of the training trials, not copied.

        None if an encoder gives them.
        """
        return None

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Weights to train in addition to those of dynamics, readout and inputs."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied, without weights."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""


class FreeInitialConditions(InitialConditions):
    """Initial conditions as free parameters of training trials (``inference="semi-amortized"``).

    With Adam alone they lag behind the weights, which then learn to compensate. Every few epochs,
    take one Gauss-Newton step for all trials; the more latents, the fewer steps, because a step
    costs as much as ``n_latents`` rollouts.

    Inferred inputs take Gauss-Newton steps only, and more of them; after each, their prior is
    learned anew.
    """

    def __init__(
        self,
        variables: Tensor,
        model: SequentialAutoencoder,
        trials: Trials,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        self.n_latents = model.readout.n_latents
        self.model, self.trials = model, trials
        self.table = self._with_room_for_inputs(variables)
        self.adam = RowAdam([self.z0])
        self.prior = Prior.from_samples(self.z0, model.inputs)
        self.dropout, self.generator = dropout, generator
        self.damping = variables.new_full((len(variables),), FIRST_DAMPING)
        self.epochs_between_steps = max(10, 2 * self.n_latents)

    def _with_room_for_inputs(self, variables: Tensor) -> Tensor:
        n_missing = self._n_variables(self.trials.n_bins) - variables.shape[1]
        if n_missing == 0:
            return variables
        return torch.cat([variables, variables.new_zeros(len(variables), n_missing)], dim=1)

    @property
    def z0(self) -> Tensor:
        """Initial conditions ``(n_trials, n_latents)``, a view of the table of latent variables."""
        return self.table[:, : self.n_latents]

    def _n_variables(self, n_bins: int) -> int:
        """Number of latent variables of a trial up to ``n_bins``."""
        return self.n_latents + (n_bins - 1) * self.model.n_inferred

    def draw(self, batch: Batch) -> Draw:
        variables = self.table[batch.rows, : self._n_variables(len(batch.counts))].T
        leaf = variables[: self.n_latents].contiguous().requires_grad_()
        z0 = drop(leaf, self.dropout, self.generator)
        if not self.model.inferring:
            return Draw(z0, leaf)
        return Draw(torch.cat([z0, variables[self.n_latents :]]), leaf)

    @staticmethod
    def make_step(several: Sequence[FreeInitialConditions]) -> Move:
        adam = joint_adam([one.adam for one in several])

        def move(batches: Sequence[Batch], draws: Sequence[Draw], learning_rate: float) -> None:
            rows = np.stack([batch.rows for batch in batches])
            leaves = [draw.leaf for draw in draws if draw.leaf is not None]
            z0 = torch.stack([leaf.detach() for leaf in leaves])
            pulls = joint_prior([one.prior for one in several]).gradient(z0)
            # The loss is that of the spikes, per entry; the prior is added here.
            gradient = torch.stack(
                [
                    leaf.grad - pull / batch.n_observed()
                    for leaf, pull, batch in zip(leaves, pulls, batches, strict=True)
                ]
            )
            adam.step(
                torch.as_tensor(rows, device=adam.mean.device),
                gradient.mT,
                INITIAL_CONDITION_SPEED * learning_rate,
            )

        return move

    def inference(self) -> SemiAmortized:
        # Inputs that are new, or whose prior has changed, take more steps.
        return SemiAmortized(self.model, self.z0, max_iter=5 if self.model.inferring else 2)

    @torch.no_grad()
    def end_epoch(self, epoch: int, horizon: int) -> None:
        inputs, growing = self.model.inputs, horizon < self.trials.n_bins
        self.prior = Prior.from_samples(self.z0, inputs)
        if epoch + 1 in EPOCHS_OF_DISPERSIONS and horizon > 1:
            inference = SemiAmortized(self.model, self.z0, max_iter=3)
            variables = self.table[:, : self._n_variables(horizon)]
            found = private_dispersion(inference, self.trials, variables, horizon)
            self.model.likelihood.private_dispersion.copy_(found)
        every = self.epochs_between_steps
        if self.model.inferring:
            every = EPOCHS_BETWEEN_FIRST_INPUTS if growing else EPOCHS_BETWEEN_INPUTS
        if (epoch + 1) % every or (self.model.inferring and horizon == 1):
            return
        statistics = self._gauss_newton(horizon)
        if statistics is not None:
            assert inputs is not None
            inputs.learn_prior(statistics, shrink=growing)

    def _gauss_newton(self, horizon: int) -> InputStatistics | None:
        prior = self.prior
        size = trials_at_once(self.model, horizon)
        table = self.table[:, : self._n_variables(horizon)]
        sums = None
        for batch in self.trials.chunks(size, self.table.device, horizon):
            variables = table[batch.rows].T.contiguous()
            damping = self.damping[batch.rows] if self.model.inferring else None
            variables = refine(self.model, prior, batch, variables, max_iter=1, damping=damping)
            table[batch.rows] = variables.T
            if damping is not None:
                self.damping[batch.rows] = damping
                posterior = LaplacePosterior(self.model, prior, batch, variables)
                statistics = posterior.input_statistics()
                sums = statistics if sums is None else sums + statistics
        return sums

    def learned(self) -> Tensor:
        return self.table

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
        # The prior is older than the table: it was fitted before the last Gauss-Newton step.
        mean, precision = (
            state[f"prior.{name}"].to(self.table.device) for name in ("mean", "precision")
        )
        self.prior = Prior(mean, precision, self.model.inputs)


class EncodedInitialConditions(InitialConditions):
    """Initial conditions from an encoder trained end to end (``inference="amortized"``)."""

    def __init__(
        self,
        model: SequentialAutoencoder,
        trials: Trials,
        coordinated_dropout: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        assert model.encoder is not None
        self.model, self.encoder, self.trials = model, model.encoder, trials
        self.coordinated_dropout, self.dropout = coordinated_dropout, dropout
        self.generator = generator

    def draw(self, batch: Batch) -> Draw:
        # The loss may stop at the horizon; the encoder always reads the whole trial.
        whole = self.trials.batch(batch.rows, batch.counts.device)
        seen = hide_at_random(whole, self.coordinated_dropout, self.generator)
        return Draw(drop(self.encoder(seen, self.generator), self.dropout, self.generator), None)

    @staticmethod
    def make_step(several: Sequence[EncodedInitialConditions]) -> Move:
        """Make a function that does nothing: the optimizer trains the encoder's weights."""
        return lambda batches, draws, learning_rate: None

    def inference(self) -> Amortized:
        return Amortized(self.model)

    def end_epoch(self, epoch: int, horizon: int) -> None:
        """Do nothing: the encoder's initial conditions do not lag behind the weights."""

    def parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Do nothing: the encoder's weights are part of the model."""
