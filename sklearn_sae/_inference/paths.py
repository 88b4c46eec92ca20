"""Paths of trials: latents that stay close to the dynamics, but for process noise.

Where dynamics are chaotic, the log-posterior of an initial condition has more maxima the longer a
trial is, and Newton steps end in the next one. With much process noise every bin has a say of its
own, and the log-posterior of the path has one maximum; it is followed while the noise falls to what
was learned.

A state holds the latents of a bin and, below them, its inferred inputs. Arrays have trials on the
last axis, ``(n_bins, n_states, n_trials)``, except for results of the smoother, whose matrices are
last.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._data.batches import Batch
from .._model.autoencoder import SequentialAutoencoder
from .data_term import log_likelihood, score_and_information
from .inference import Inference
from .noisy_smoother import (
    NoisyBackward,
    PathMoments,
    backward_path,
    path_moments,
    path_step,
)
from .posterior import GaussianPosterior
from .prior import Prior
from .smoother import Linearisation

__all__ = ["NoisyInference", "Path", "PathPosterior", "Paths", "Step"]

#: Variance of the noise at first, for latents of unit size: little is left for dynamics to predict.
LARGEST_NOISE = 0.05
#: It is at least so many times the learned one.
LEAST_LADDER = 10.0
#: By how much it falls at a time, and Newton steps before it does.
FACTOR = 0.25
STEPS_AT_A_TIME = 3
MOST_HALVINGS = 8
#: Once so few trials still rise, only these go on.
SHARE_LEFT = 0.6
TOLERANCE = 1e-3


class Path(NamedTuple):
    """States ``(n_bins, n_states, n_trials)``, where each bin's lead to, and their output."""

    states: Tensor
    ahead: Tensor
    output: Tensor

    @property
    def defects(self) -> Tensor:
        """By how much the dynamics miss the next bin ``(n_bins - 1, n_trials, n_states)``."""
        return (self.ahead - self.states[1:]).permute(0, 2, 1)


class Step(NamedTuple):
    """A Newton step ``(n_bins, n_states, n_trials)``, and the posterior at its end.

    ``costates`` are ``(n_bins - 1, n_trials, n_states)``.
    """

    step: Tensor
    costates: Tensor
    moments: PathMoments


class Paths:
    """Log-posterior of the paths of a batch's trials, under process noise."""

    def __init__(self, model: SequentialAutoencoder, prior: Prior, batch: Batch) -> None:
        self.model, self.prior, self.batch = model, prior, batch
        self.n_latents = model.readout.n_latents
        bins = torch.arange(1, len(batch.counts), device=batch.counts.device)
        lengths = torch.as_tensor(batch.lengths, device=bins.device)
        #: Transitions up to each trial's last observed bin, ``(n_bins - 1, n_trials)``.
        self.within = bins[:, None] < lengths

    def noise(self, process_noise: Tensor) -> Tensor:
        """Variances ``(n_states,)``, given those of the latents ``(n_latents,)``."""
        if not self.model.inferring:
            return process_noise
        assert self.model.inputs is not None
        return torch.cat([process_noise, self.model.inputs.innovation_std**2])

    def at_rest(self) -> Path:
        """Path that stays at the prior mean."""
        n_bins, _, n_trials = self.batch.counts.shape
        mean = torch.cat([self.prior.mean, self.prior.mean.new_zeros(self.model.n_inferred)])
        return self.at(mean[None, :, None].expand(n_bins, -1, n_trials).clone())

    def at(self, states: Tensor) -> Path:
        return Path(states, self.advance(states[:-1]), self.output(states))

    def expand_at(self, states: Tensor) -> tuple[Path, Tensor]:
        """Path, and Jacobians ``(n_bins - 1, n_trials, n_states, n_states)`` of ``advance``."""
        ahead, transitions = self.advance_with_jacobian(states[:-1])
        return Path(states, ahead, self.output(states)), transitions

    def output(self, states: Tensor) -> Tensor:
        return self.model.readout(states[:, : self.n_latents])

    def advance(self, states: Tensor) -> Tensor:
        """States ``(n, n_states, n_trials)`` one bin after those of the first n bins."""
        columns = states[:, : self.n_latents].permute(1, 0, 2).flatten(1)
        shape = len(states), states.shape[2]
        ahead = self.model.dynamics.step(columns).unflatten(1, shape).permute(1, 0, 2)
        return self.pushed(states, ahead, 0)

    def advance_with_jacobian(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """``advance``, and its Jacobians ``(n, n_trials, n_states, n_states)``."""
        n, n_latents, inputs = len(states), self.n_latents, self.model.inputs
        columns = states[:, :n_latents].permute(1, 0, 2).flatten(1)
        ahead, jacobians = self.model.dynamics.step_with_jacobian(columns)
        shape = n, states.shape[2]
        ahead = self.pushed(states, ahead.unflatten(1, shape).permute(1, 0, 2), 0)
        # Jacobians may overflow after a trial's end, where there are no spikes.
        jacobians = jacobians.unflatten(2, shape).permute(2, 3, 0, 1)
        jacobians = jacobians.contiguous().nan_to_num(0.0, 0.0, 0.0)
        if not self.model.inferring:
            return ahead, jacobians
        assert inputs is not None
        n_trials = jacobians.shape[1]
        right = torch.cat([inputs.matrix(), inputs.correlation.diag()])
        below = jacobians.new_zeros(n, n_trials, inputs.n_inferred, n_latents)
        left = torch.cat([jacobians, below], dim=2)
        return ahead, torch.cat([left, right.expand(n, n_trials, -1, -1)], dim=3)

    def pushed(self, states: Tensor, ahead: Tensor, first: int) -> Tensor:
        """Add what inputs do after bins ``first``, ... to latents ``ahead`` of them."""
        inputs, n = self.model.inputs, len(states)
        if inputs is None:
            return ahead
        if self.batch.inputs is not None:
            ahead = ahead + inputs.known @ self.batch.inputs[first : first + n]
        inferred = states[:, self.n_latents :]
        if not inferred.shape[1]:
            return ahead
        ahead = ahead + inputs.matrix() @ inferred
        return torch.cat([ahead, inputs.correlation[:, None] * inferred], dim=1)

    def log_posterior(self, path: Path, noise: Tensor) -> Tensor:
        """Up to a constant, ``(n_trials,)``."""
        likelihood, counts, mask = self.model.likelihood, self.batch.counts, self.batch.mask
        fit = log_likelihood(likelihood, path.output, counts, mask, torch.float64)
        misses = (path.defects.square() / noise).sum(2).masked_fill(~self.within, 0.0).sum(0)
        first = path.states[0]
        value = fit + self.prior.log_density(first[: self.n_latents]) - 0.5 * misses
        if self.model.inferring:
            assert self.model.inputs is not None
            squares = first[self.n_latents :].square() / self.model.inputs.variance[:, None]
            value = value - 0.5 * squares.sum(0)
        return value.nan_to_num(nan=-torch.inf)

    def expand(
        self, path: Path, noise: Tensor, transitions: Tensor | None = None
    ) -> tuple[Linearisation, NoisyBackward]:
        states, n_latents = path.states, self.n_latents
        latents = states[:, :n_latents]
        score, information = self.model.readout.pullback(
            latents, *score_and_information(self.model.likelihood, path.output, self.batch)
        )
        n_more = states.shape[1] - n_latents
        if n_more:
            score = torch.nn.functional.pad(score, (0, n_more))
            information = torch.nn.functional.pad(information, (0, n_more, 0, n_more))
        gradient, precision = self.prior.of_first_state(states[0])
        if transitions is None:
            transitions = self.advance_with_jacobian(states[:-1])[1]
        linear = Linearisation([], score, information, gradient, precision)
        return linear, backward_path(linear, transitions, path.defects, noise)

    def newton(self, path: Path, noise: Tensor) -> Tensor:
        """Newton step ``(n_bins, n_states, n_trials)``."""
        linear, found = self.expand(path, noise)
        return path_step(linear, found)[0].permute(0, 2, 1).nan_to_num()

    def step(self, path: Path, noise: Tensor, transitions: Tensor | None = None) -> Step:
        """Newton step with costates and moments."""
        linear, found = self.expand(path, noise, transitions)
        step, costates = path_step(linear, found)
        return Step(step.permute(0, 2, 1), costates, path_moments(linear, found, noise))

    def search(
        self, path: Path, step: Tensor, noise: Tensor, value: Tensor | None = None
    ) -> tuple[Path, Tensor, Tensor]:
        """Halve each trial's step until its log-posterior does not fall.

        Returns the path there, its log-posteriors, and which trials have found no such step.
        """
        before = self.log_posterior(path, noise) if value is None else value
        value, left = before, torch.ones_like(before, dtype=torch.bool)
        start = path.states
        for _ in range(MOST_HALVINGS):
            there = self.at(start + step)
            new = self.log_posterior(there, noise)
            better = left & (new >= before)
            path = Path(*(torch.where(better, b, a) for a, b in zip(path, there, strict=True)))
            value, left = torch.where(better, new, value), left & ~better
            if not left.any():
                break
            step = step / 2
        return path, value, left

    def climb(self, path: Path, noise: Tensor, max_iter: int) -> Path:
        """Take Newton steps until the log-posteriors hardly rise."""
        value = None
        for i in range(max_iter):
            before = self.log_posterior(path, noise) if value is None else value
            path, value, _ = self.search(path, self.newton(path, noise), noise, before)
            rising = (value - before >= TOLERANCE).nonzero()[:, 0]
            if len(rising) < SHARE_LEFT * len(value):
                return self._climb_with_few(path, noise, max_iter - i - 1, rising)
        return path

    def _climb_with_few(self, path: Path, noise: Tensor, max_iter: int, few: Tensor) -> Path:
        """Go on with some of the trials."""
        if max_iter == 0 or len(few) == 0:
            return path
        some = Paths(self.model, self.prior, self.batch.only(few))
        found = some.climb(Path(*(each[..., few] for each in path)), noise, max_iter)
        path = Path(*(each.clone() for each in path))
        for whole, part in zip(path, found, strict=True):
            whole[..., few] = part
        return path

    def from_anywhere(self, process_noise: Tensor, max_iter: int) -> Path:
        """Find the mode from larger noise, whose variances fall to ``process_noise``."""
        least = float(process_noise.mean())
        ladder = [1.0]
        while ladder[-1] * least < max(LARGEST_NOISE, LEAST_LADDER * least):
            ladder.append(ladder[-1] / FACTOR)
        path = self.at_rest()
        for times in reversed(ladder):
            steps = max_iter if times == 1 else STEPS_AT_A_TIME
            path = self.climb(path, self.noise(times * process_noise), steps)
        return path

    def continued(self, path: Path) -> Tensor:
        """States that follow the dynamics after each trial's last observed bin."""
        if self.within.all():
            return path.states
        states = [path.states[0]]
        for t, within in enumerate(self.within):
            ahead = self.model.dynamics.step(states[-1][: self.n_latents])
            ahead = self.pushed(states[-1][None], ahead[None], t)[0]
            states.append(torch.where(within, path.states[t + 1], ahead))
        return torch.stack(states)


class PathPosterior(GaussianPosterior):
    """Gaussian around the mode of the path, under process noise ``(n_states,)``."""

    def __init__(self, paths: Paths, path: Path, noise: Tensor) -> None:
        super().__init__(paths.model, paths.batch, path.states[0])
        self.paths, self.path, self.noise = paths, path, noise

    @cached_property
    def states(self) -> Tensor:
        return self.paths.continued(self.path)

    @cached_property
    def latents(self) -> Tensor:
        return self.states[:, : self.paths.n_latents]

    @property
    def start(self) -> Tensor:
        return self.path.states

    @property
    def inputs(self) -> Tensor:
        return self.states[:, self.paths.n_latents :]

    @cached_property
    def moments(self) -> PathMoments:
        linear, found = self.paths.expand(self.paths.at(self.states), self.noise)
        return path_moments(linear, found, self.noise)

    @property
    def state_covariances(self) -> Tensor:
        return self.moments.covariances.transpose(0, 1)

    def input_std(self) -> Tensor:
        assert self.model.inputs is not None
        variance = self.state_covariances.diagonal(dim1=2, dim2=3)[..., self.paths.n_latents :]
        # At most the prior variance, even if the linearised dynamics overflow.
        variance = torch.minimum(variance.nan_to_num(nan=torch.inf), self.model.inputs.variance)
        return variance.clamp(min=0).sqrt().permute(1, 2, 0)


class NoisyInference(Inference):
    """Paths under the process noise that was learned.

    Parameters
    ----------
    model : SequentialAutoencoder
    prior : Prior
        Of the initial conditions.
    process_noise : Tensor of shape (n_latents,)
        Variances of the noise in a bin.
    max_iter : int
        Newton steps at most, at that noise.
    """

    def __init__(
        self,
        model: SequentialAutoencoder,
        prior: Prior,
        process_noise: Tensor,
        max_iter: int,
    ) -> None:
        self.model, self.prior, self.max_iter = model, prior, max_iter
        self.process_noise = process_noise

    def infer(self, batch: Batch, start: Tensor | None = None) -> PathPosterior:
        """Infer paths, from ``start`` ``(n_bins, n_states, n_trials)`` if that is given."""
        paths = Paths(self.model, self.prior, batch)
        noise = paths.noise(self.process_noise)
        if start is None:
            path = paths.from_anywhere(self.process_noise, self.max_iter)
        else:
            path = paths.climb(paths.at(start), noise, self.max_iter)
        return PathPosterior(paths, path, noise)
