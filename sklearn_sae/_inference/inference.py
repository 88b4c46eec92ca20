"""Semi-amortized and amortized inference of the latent variables of trials, given a model."""

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
    """Interface of inference: the posterior of the latent variables of trials under one model."""

    #: Names of the learned attributes of an estimator that this inference needs.
    learned: ClassVar[tuple[str, ...]] = ()
    #: Whether it gives a covariance, which inferred inputs and process noise are learned from.
    has_covariance: ClassVar[bool] = False

    model: SequentialAutoencoder

    @abstractmethod
    def infer(self, batch: Batch, start: Tensor | None = None) -> Posterior:
        """Infer the posterior of the batch's trials.

        ``start`` ``(n_variables, n_trials)`` holds latent variables to start from, such as those of
        a similar model.
        """

    def infer_again(self, batch: Batch) -> Posterior:
        """Infer the posterior of what are most likely the training trials, in the same order."""
        return self.infer(batch)


class SemiAmortized(Inference):
    """Gauss-Newton iterations from the training initial condition that fits a trial best.

    Parameters
    ----------
    model : SequentialAutoencoder
        The model.
    initial_conditions : Tensor of shape (n_training_trials, n_latents)
        Learned initial conditions, from which the prior and the candidates for a start are made.
    max_iter : int
        Largest number of iterations.
    """

    learned = ("training_initial_conditions_", "model_variance_")
    has_covariance = True

    def __init__(
        self, model: SequentialAutoencoder, initial_conditions: Tensor, max_iter: int
    ) -> None:
        self.model, self.max_iter = model, max_iter
        self.initial_conditions = initial_conditions
        self.prior = Prior.from_samples(initial_conditions, model.inputs)

    @cached_property
    def candidates(self) -> Tensor:
        """Candidates ``(n_latents, n_candidates)`` for the initial condition to start from."""
        return cover(self.initial_conditions.T, MOST_CANDIDATES)

    def infer(self, batch: Batch, start: Tensor | None = None) -> LaplacePosterior:
        if start is None:
            start = best_start(self.model, self.prior, batch, self.candidates)
        variables = refine(self.model, self.prior, batch, start, max_iter=self.max_iter)
        return LaplacePosterior(self.model, self.prior, batch, variables)

    def infer_again(self, batch: Batch) -> LaplacePosterior:
        """Infer training trials again, each from its own initial condition if that is better."""
        start = best_start(self.model, self.prior, batch, self.candidates)
        stood = self.initial_conditions[batch.rows].T
        here, there = (Point.at(self.model, self.prior, batch, z0).value for z0 in (start, stood))
        return self.infer(batch, torch.where(there > here, stood, start))


class Amortized(Inference):
    """Initial conditions from the encoder, in one pass."""

    def __init__(self, model: SequentialAutoencoder) -> None:
        self.model = model

    def infer(self, batch: Batch, start: Tensor | None = None) -> Posterior:
        assert self.model.encoder is not None
        return Posterior(self.model, batch, self.model.encoder(batch))


#: Values of the parameter ``inference``, and their classes.
INFERENCES: dict[str, type[Inference]] = {
    "semi-amortized": SemiAmortized,
    "amortized": Amortized,
}
