"""Paths of long trials: latents that stay close to the dynamics, but for process noise.

Where dynamics are chaotic, the log-posterior of an initial condition has more maxima the longer a
trial is, and Newton steps end in the next one. With much process noise every bin has a say of its
own, and the log-posterior of the path has one maximum; it is followed while the noise falls to what
was learned.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._data.batches import Batch
from .._data.trials import Trials
from .._model.autoencoder import SequentialAutoencoder
from .data_term import log_likelihood
from .inference import Inference
from .linearisation import linearise
from .memory import trials_at_once
from .noisy_smoother import NoisyBackward, backward_path, path_covariances, path_step
from .posterior import GaussianPosterior
from .prior import Prior
from .smoother import Linearisation

__all__ = ["NoisyInference", "PathPosterior", "learn_process_noise"]

#: Noise at first, in variances of initial conditions: little is left for dynamics to predict.
LARGEST_NOISE = 0.05
SMALLEST_NOISE = 1e-7
#: By how much it falls at a time, and Newton steps before it does.
FACTOR = 0.25
STEPS_AT_A_TIME = 3
MOST_HALVINGS = 5
TOLERANCE = 1e-3
#: Passes in which the noise is learned, of so many trials at most.
N_PASSES = 12
MOST_TRIALS = 100
LARGEST_CHANGE = 4.0


class _Path(NamedTuple):
    """Latents ``(n_bins, n_latents, n_trials)``, where each bin's lead to, and their output."""

    latents: Tensor
    ahead: Tensor
    output: Tensor

    @property
    def defects(self) -> Tensor:
        """By how much the dynamics miss the next bin ``(n_bins - 1, n_trials, n_latents)``."""
        return (self.ahead - self.latents[1:]).permute(0, 2, 1)


class _Paths:
    """Log-posterior of the paths of a batch's trials, under process noise."""

    def __init__(self, model: SequentialAutoencoder, prior: Prior, batch: Batch) -> None:
        self.model, self.prior, self.batch = model, prior, batch
        bins = torch.arange(1, len(batch.counts), device=batch.counts.device)
        lengths = torch.as_tensor(batch.lengths, device=bins.device)
        #: Transitions up to each trial's last observed bin, ``(n_bins - 1, n_trials)``.
        self.within = bins[:, None] < lengths
        # Without inferred inputs, jumps are those of known inputs, whatever the latents are.
        z0 = prior.mean[:, None].expand(-1, len(batch))
        _, _, self.jumps = model.rollout_arguments(z0, len(batch.counts), batch.inputs)

    def at(self, latents: Tensor) -> _Path:
        columns = latents[:-1].permute(1, 0, 2).flatten(1)
        n_bins, _, n_trials = latents.shape
        ahead = self.model.dynamics.step(columns).unflatten(1, (n_bins - 1, n_trials))
        ahead = ahead.permute(1, 0, 2)
        ahead = ahead if self.jumps is None else ahead + self.jumps
        return _Path(latents, ahead, self.model.readout(latents))

    def log_posterior(self, path: _Path, noise: Tensor) -> Tensor:
        """Up to a constant, ``(n_trials,)``."""
        likelihood, counts, mask = self.model.likelihood, self.batch.counts, self.batch.mask
        fit = log_likelihood(likelihood, path.output, counts, mask, torch.float64)
        misses = (path.defects.square() / noise).sum(2).masked_fill(~self.within, 0.0).sum(0)
        value = fit + self.prior.log_density(path.latents[0]) - 0.5 * misses
        return value.nan_to_num(nan=-torch.inf)

    def expand(self, path: _Path, noise: Tensor) -> tuple[Linearisation, NoisyBackward]:
        z = path.latents
        linear = linearise(self.model, self.prior, self.batch, z[0], z, path.output)
        return linear, backward_path(linear, path.defects, noise)

    def climb(self, path: _Path, noise: Tensor, max_iter: int) -> _Path:
        """Take Newton steps, halved for each trial until its log-posterior does not fall."""
        value = self.log_posterior(path, noise)
        for _ in range(max_iter):
            linear, found = self.expand(path, noise)
            step = path_step(linear, found, path.defects, noise).permute(0, 2, 1).nan_to_num()
            before, left = value, torch.ones_like(value, dtype=torch.bool)
            start = path.latents
            for _ in range(MOST_HALVINGS):
                there = self.at(start + step)
                new = self.log_posterior(there, noise)
                better = left & (new >= before)
                path = _Path(*(torch.where(better, b, a) for a, b in zip(path, there, strict=True)))
                value, left = torch.where(better, new, value), left & ~better
                if not left.any():
                    break
                step = step / 2
            if (value - before < TOLERANCE).all():
                break
        return path

    def from_anywhere(self, scale: Tensor, noise: float, max_iter: int) -> _Path:
        """Find the mode at ``noise``, in units of ``scale`` ``(n_latents,)``, from larger noise."""
        n_bins, _, n_trials = self.batch.counts.shape
        start = self.prior.mean[None, :, None].expand(n_bins, -1, n_trials).clone()
        path, now = self.at(start), LARGEST_NOISE
        while now > noise:
            path = self.climb(path, now * scale, STEPS_AT_A_TIME)
            now *= FACTOR
        return self.climb(path, noise * scale, max_iter)

    def continued(self, path: _Path) -> Tensor:
        """Latents that follow the dynamics after each trial's last observed bin."""
        if self.within.all():
            return path.latents
        latents = [path.latents[0]]
        for t, within in enumerate(self.within):
            ahead = self.model.dynamics.step(latents[-1])
            ahead = ahead if self.jumps is None else ahead + self.jumps[t]
            latents.append(torch.where(within, path.latents[t + 1], ahead))
        return torch.stack(latents)


class PathPosterior(GaussianPosterior):
    """Gaussian around the mode of the path, under process noise."""

    def __init__(self, paths: _Paths, path: _Path, noise: Tensor) -> None:
        super().__init__(paths.model, paths.batch, path.latents[0])
        self.paths, self.path, self.noise = paths, path, noise

    @cached_property
    def latents(self) -> Tensor:
        return self.paths.continued(self.path)

    @cached_property
    def _covariances_and_determined(self) -> tuple[Tensor, Tensor]:
        linear, found = self.paths.expand(self.paths.at(self.latents), self.noise)
        return path_covariances(linear, found, self.noise)

    @property
    def state_covariances(self) -> Tensor:
        return self._covariances_and_determined[0]

    def noise_sums(self) -> tuple[float, float]:
        """Squared noise in units of its variance, and how much of it is determined, in all."""
        squares = (self.path.defects.square() / self.noise).sum(2)
        determined = self._covariances_and_determined[1]
        first, second = (
            float(values.masked_fill(~self.paths.within, 0.0).sum(dtype=torch.float64))
            for values in (squares, determined)
        )
        return first, second


class NoisyInference(Inference):
    """Paths under the process noise that was learned.

    Parameters
    ----------
    model : SequentialAutoencoder
    initial_conditions : Tensor of shape (n_training_trials, n_latents)
        Those that fit learned: they make the prior.
    process_noise : Tensor of shape (n_latents,)
        Standard deviations of the noise in a bin.
    max_iter : int
        Newton steps at most, at that noise.
    """

    def __init__(
        self,
        model: SequentialAutoencoder,
        initial_conditions: Tensor,
        process_noise: Tensor,
        max_iter: int,
    ) -> None:
        self.model, self.max_iter = model, max_iter
        self.prior = Prior.from_samples(initial_conditions, model.inputs)
        self.scale = _scale(initial_conditions)
        self.noise = process_noise.square()

    def infer(self, batch: Batch, start: Tensor | None = None) -> PathPosterior:
        paths = _Paths(self.model, self.prior, batch)
        noise = float((self.noise / self.scale).mean())
        path = paths.from_anywhere(self.scale, noise, self.max_iter)
        return PathPosterior(paths, path, noise * self.scale)


@torch.no_grad()
def learn_process_noise(
    model: SequentialAutoencoder, trials: Trials, initial_conditions: Tensor
) -> Tensor:
    """Standard deviations ``(n_latents,)`` of the noise that the evidence asks for.

    One number in variances of the ``initial_conditions`` ``(n_trials, n_latents)``: squared noise
    over the number of its components that spikes determine [MacKay, Neural Computation 1992].
    """
    rows = torch.arange(len(trials))
    if len(trials) > MOST_TRIALS:
        generator = torch.Generator(device="cpu").manual_seed(0)
        rows = torch.randperm(len(trials), generator=generator)[:MOST_TRIALS].sort().values
    some = trials.subset(rows.numpy())
    prior = Prior.from_samples(initial_conditions, model.inputs)
    scale = _scale(initial_conditions)
    batches = list(some.chunks(trials_at_once(model, some.n_bins), initial_conditions.device))
    several = [_Paths(model, prior, batch) for batch in batches]
    noise = 1e-3
    found = [paths.from_anywhere(scale, noise, STEPS_AT_A_TIME) for paths in several]
    for _ in range(N_PASSES):
        found = [
            paths.climb(path, noise * scale, STEPS_AT_A_TIME)
            for paths, path in zip(several, found, strict=True)
        ]
        sums = [
            PathPosterior(paths, path, noise * scale).noise_sums()
            for paths, path in zip(several, found, strict=True)
        ]
        squares, determined = (sum(values) for values in zip(*sums, strict=True))
        factor = squares / max(determined, 1e-6)
        noise *= min(max(factor, 1 / LARGEST_CHANGE), LARGEST_CHANGE)
        noise = min(max(noise, SMALLEST_NOISE), LARGEST_NOISE)
    return (noise * scale).sqrt()


def _scale(initial_conditions: Tensor) -> Tensor:
    """Variances ``(n_latents,)`` in which process noise is one number."""
    return initial_conditions.var(0, correction=0).clamp(min=1e-6)
