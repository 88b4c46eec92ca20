"""Gauss-Newton method on the log-posteriors of all trials of a batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .data_term import log_likelihood
from .linearisation import linearise
from .prior import Prior
from .smoother import backward, newton_step

__all__ = ["FIRST_DAMPING", "Point", "refine"]

FIRST_DAMPING = 1e-2
LARGEST_DAMPING = 1e4
#: Once at most this share of the trials is active, the others are left out of computations.
LARGEST_ACTIVE_SHARE = 0.8


def refine(
    model: SequentialAutoencoder,
    prior: Prior,
    batch: Batch,
    variables: Tensor,
    *,
    max_iter: int,
    tol: float = 1e-3,
    damping: Tensor | None = None,
) -> Tensor:
    """Maximise every trial's log-posterior from ``variables`` ``(n_variables, n_trials)``.

    If inputs are inferred, ``variables`` may be initial conditions only: the inputs then start at
    zero. Each iteration is a damped Newton step with the Fisher information in place of the
    Hessian. A trial's damping falls after a step that raised its log-posterior and rises after one
    that did not, which is undone (Levenberg 1944, Marquardt 1963). A trial is done when a step
    gains less than ``tol`` nats.

    ``damping`` ``(n_trials,)`` is changed in place, so that a caller can continue after a few
    iterations: otherwise a trial that needs small steps would never take one.
    """
    variables = model.with_inputs(variables, len(batch.counts))
    if damping is None:
        damping = variables.new_full((variables.shape[1],), FIRST_DAMPING)
    there = Point.at(model, prior, batch, variables)
    return _climb(model, prior, batch, there, damping, max_iter, tol)


class Point(NamedTuple):
    """Latent variables of trials, with their latents, output and log-posterior.

    ``variables`` are ``(n_variables, n_trials)``, ``latents`` ``(n_bins, n_latents, n_trials)``,
    ``output`` ``(n_bins, n_neurons, n_trials)``, and the log-posterior ``value`` ``(n_trials,)``.
    """

    variables: Tensor
    latents: Tensor
    output: Tensor
    value: Tensor

    @classmethod
    def at(
        cls, model: SequentialAutoencoder, prior: Prior, batch: Batch, variables: Tensor
    ) -> Point:
        latents = model.rollout(variables, len(batch.counts), batch.inputs)
        output = model.readout(latents)
        # Summed in double precision: the order in which thousands of entries are added depends on a
        # trial's place in the batch, and rounding would decide whether it takes one more step.
        fit = log_likelihood(model.likelihood, output, batch.counts, batch.mask, torch.float64)
        value = (fit + prior.log_density(variables)).nan_to_num(nan=-torch.inf)
        return cls(variables, latents, output, value)

    def where(self, better: Tensor, other: Point) -> Point:
        """Take trials from ``other`` where ``better`` ``(n_trials,)``, else from this point."""
        return Point(*(torch.where(better, b, a) for a, b in zip(self, other, strict=True)))

    def only(self, rows: Tensor) -> Point:
        return Point(*(tensor[..., rows] for tensor in self))


def _climb(
    model: SequentialAutoencoder,
    prior: Prior,
    batch: Batch,
    here: Point,
    damping: Tensor,
    max_iter: int,
    tol: float,
) -> Tensor:
    rounding = 2 * torch.finfo(here.output.dtype).eps
    active = torch.ones_like(damping, dtype=torch.bool)
    for n_done in range(max_iter):
        if active.sum() <= LARGEST_ACTIVE_SHARE * len(active):
            rest = active.nonzero()[:, 0]
            if len(rest):
                of_rest, left = damping[rest], max_iter - n_done
                found = _climb(model, prior, batch.only(rest), here.only(rest), of_rest, left, tol)
                here.variables[:, rest], damping[rest] = found, of_rest
            break
        linear = linearise(model, prior, batch, here.variables, here.latents, here.output)
        step = newton_step(linear, backward(linear, damping), damping)
        there = Point.at(model, prior, batch, here.variables + step.nan_to_num())
        gain = there.value - here.value
        # At the maximum, rounding errors would decide whether to take the last step.
        better = active & (gain > -rounding * here.value.abs())
        here = here.where(better, there)
        # Each trial stops by itself, so that its result does not depend on its batch.
        active = active & ~(better & (gain < tol)) & (damping < LARGEST_DAMPING)
        damping.copy_(torch.where(better, damping / 5, damping * 8).clamp(1e-7, LARGEST_DAMPING))
    return here.variables
