"""Joint training of several models that differ only in the values of their weights.

With few trials, a step of all models takes little longer than a step of one. The axis of models is
the one before that of neurons or latents.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from .._data.batches import Batch
from .._inference.data_term import mean_loss
from .._inference.prior import Prior
from .._model.autoencoder import SequentialAutoencoder
from .._model.dynamics import Dynamics
from .._model.fused_rollout import joint_rollout
from .._model.likelihoods import Likelihood
from .optimizers import RowAdam

__all__ = ["joint_adam", "joint_prior", "losses", "outputs", "rollouts"]


def losses(
    models: Sequence[SequentialAutoencoder],
    variables: Sequence[Tensor],
    batches: Sequence[Batch],
) -> tuple[list[Tensor], Tensor]:
    """Compute the output of each model, and losses ``(n_models,)``, given latent variables.

    ``variables`` of each model are ``(n_variables, n_trials)``, and outputs ``(n_bins, n_neurons,
    n_trials)``.
    """
    n_bins, known = len(batches[0].counts), [batch.inputs for batch in batches]
    if len(models) == 1:
        output = models[0].output(variables[0], n_bins, known[0])
        return [output], mean_loss(models[0].likelihood, output, batches[0])[None]
    of_all = outputs(models, variables, n_bins, known)
    likelihood = joint_likelihood([model.likelihood for model in models])
    return list(of_all.unbind(1)), mean_loss(likelihood, of_all, joint_batch(batches))


def outputs(
    models: Sequence[SequentialAutoencoder],
    variables: Sequence[Tensor],
    n_bins: int,
    known: Sequence[Tensor | None],
) -> Tensor:
    """Compute the outputs ``(n_bins, n_models, n_neurons, n_trials)`` of all models."""
    z0, _, jumps = zip(
        *(
            model.rollout_arguments(theirs, n_bins, inputs)
            for model, theirs, inputs in zip(models, variables, known, strict=True)
        ),
        strict=True,
    )
    latents = rollouts([model.dynamics for model in models], z0, n_bins, jumps)
    readouts = [dict(model.readout.named_parameters()) for model in models]
    weights = {name: torch.stack([own[name] for own in readouts]) for name in readouts[0]}
    return functional_call(models[0].readout, weights, (latents,))


def rollouts(
    dynamics: Sequence[Dynamics],
    z0: Sequence[Tensor],
    n_bins: int,
    jumps: Sequence[Tensor | None],
) -> Tensor:
    """Latents ``(n_bins, n_models, n_latents, n_trials)``, of one operation if steps are fused."""
    several = [steps for each in dynamics if (steps := each.fused_steps()) is not None]
    if several:
        return joint_rollout(several, z0, n_bins, jumps)
    latents = [
        each.rollout(start, n_bins, jumps)
        for each, start, jumps in zip(dynamics, z0, jumps, strict=True)
    ]
    return torch.stack(latents, dim=1)


def joint_likelihood(likelihoods: Sequence[Likelihood]) -> Likelihood:
    """Stack the parameters of several likelihoods to one of output with an axis of models."""
    names = [name for name, _ in likelihoods[0].named_buffers()]
    if not names:
        return likelihoods[0]
    together = copy.deepcopy(likelihoods[0])
    for name in names:
        setattr(together, name, torch.stack([getattr(each, name) for each in likelihoods]))
    return together


def joint_batch(batches: Sequence[Batch]) -> Batch:
    """Stack the batches of several models, without inputs."""
    mask = None
    if any(batch.mask is not None for batch in batches):
        mask = torch.stack([batch.observed() for batch in batches], dim=1)
    return Batch(
        torch.stack([batch.counts for batch in batches], dim=1),
        mask,
        np.stack([batch.lengths for batch in batches]),
        np.stack([batch.rows for batch in batches]),
    )


def joint_prior(priors: Sequence[Prior]) -> Prior:
    """Stack means ``(n_models, n_latents)`` and precisions of priors of initial conditions."""
    return Prior(
        torch.stack([prior.mean for prior in priors]),
        torch.stack([prior.precision for prior in priors]),
    )


def joint_adam(several: Sequence[RowAdam]) -> RowAdam:
    """Make one optimizer of the tables of all, whose own moments become views of the joint ones."""
    joint = RowAdam([table for adam in several for table in adam.tables])
    sizes = [len(adam.tables) for adam in several]
    for name, moments in joint.state_dict().items():
        for adam, own in zip(several, moments.split(sizes), strict=True):
            own.copy_(getattr(adam, name))
            setattr(adam, name, own)
    return joint
