"""How latent variables of trials are inferred, given a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .candidates import MOST_CANDIDATES, best_start, cover
from .newton import Point, refine
from .posterior import LaplacePosterior, Posterior
from .prior import Prior

__all__ = ["INFERENCES", "Amortized", "Inference", "SemiAmortized"]


class Inference(ABC):
    """Infers the latent variables of trials under one model."""

    #: Names of what an estimator shows of it, beside the network.
    learned: ClassVar[tuple[str, ...]] = ()

    model: SequentialAutoencoder

    @classmethod
    @abstractmethod
    def make(
        cls, model: SequentialAutoencoder, initial_conditions: Tensor | None, max_iter: int
    ) -> Inference:
        """Make one from what every kind may be given; see ``SemiAmortized``."""

    @abstractmethod
    def infer(self, batch: Batch, start: Tensor | None = None) -> Posterior:
        """Posterior of the batch's trials.

        It may begin at latent variables ``start`` ``(n_variables, n_trials)``, those of a model a
        little different from this one.
        """

    def infer_again(self, batch: Batch) -> Posterior:
        """Posterior of trials that are most likely the training trials, in the same order."""
        return self.infer(batch)


class SemiAmortized(Inference):
    """Newton's method from the best of the training trials' initial conditions.

    Parameters
    ----------
    model : SequentialAutoencoder
    initial_conditions : Tensor of shape (n_training_trials, n_latents)
        Those that fit learned: they make the prior, and are the candidates for a start.
    max_iter : int
        Newton steps at most.
    """

    learned = ("training_initial_conditions_", "model_variance_")

    def __init__(
        self, model: SequentialAutoencoder, initial_conditions: Tensor, max_iter: int
    ) -> None:
        self.model, self.max_iter = model, max_iter
        self.initial_conditions = initial_conditions
        self.prior = Prior.from_samples(initial_conditions, model.inputs)

    @classmethod
    def make(
        cls, model: SequentialAutoencoder, initial_conditions: Tensor | None, max_iter: int
    ) -> SemiAmortized:
        assert initial_conditions is not None
        return cls(model, initial_conditions, max_iter)

    @cached_property
    def candidates(self) -> Tensor:
        """Initial conditions to start from, ``(n_latents, n_candidates)``."""
        return cover(self.initial_conditions.T, MOST_CANDIDATES)

    def infer(self, batch: Batch, start: Tensor | None = None) -> LaplacePosterior:
        if start is None:
            start = best_start(self.model, self.prior, batch, self.candidates)
        variables = refine(self.model, self.prior, batch, start, max_iter=self.max_iter)
        return LaplacePosterior(self.model, self.prior, batch, variables)

    def infer_again(self, batch: Batch) -> LaplacePosterior:
        """Posterior of training trials, each starting where it stood if that is better."""
        start = best_start(self.model, self.prior, batch, self.candidates)
        stood = self.initial_conditions[batch.rows].T
        here, there = (Point.at(self.model, self.prior, batch, z0).value for z0 in (start, stood))
        return self.infer(batch, torch.where(there > here, stood, start))


class Amortized(Inference):
    """The encoder gives initial conditions in one pass."""

    def __init__(self, model: SequentialAutoencoder) -> None:
        self.model = model

    @classmethod
    def make(
        cls, model: SequentialAutoencoder, initial_conditions: Tensor | None, max_iter: int
    ) -> Amortized:
        return cls(model)

    def infer(self, batch: Batch, start: Tensor | None = None) -> Posterior:
        assert self.model.encoder is not None
        return Posterior(self.model, batch, self.model.encoder(batch))


#: The parameter ``inference`` and its kinds.
INFERENCES: dict[str, type[Inference]] = {
    "semi-amortized": SemiAmortized,
    "amortized": Amortized,
}
