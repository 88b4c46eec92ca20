r"""Training on paths: weights follow the gradient of the evidence, latents take Newton steps.

By Fisher's identity the gradient of the log-evidence by the weights is the posterior mean of the
gradient of the log-joint of spikes and paths. With the posterior of a path Gaussian around the
latents z_t, with covariances S_t, costates c_t and P_t, A_t of ``noisy_smoother``, it is that of

    sum_t E[log p(y_t | z_t)] + c_t' F(z_t) - <P_t A_t S_t, F'(z_t)>,

in which all but the weights is held fixed. Where noise vanishes this is the adjoint gradient of
deterministic rollouts; where it is large, the M step of expectation maximisation. The latents need
not follow the dynamics while weights are wrong, so nothing has to be rolled out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._data.batches import Batch
from .._data.trials import Trials
from .._inference.data_term import expected_log_likelihood
from .._inference.memory import trials_at_once
from .._inference.paths import NoisyInference, Path, Paths, Step
from .._inference.prior import Prior
from .._inference.scoring import gain_over_null
from .._model.autoencoder import SequentialAutoencoder
from .linear_start import LARGEST_VARIANCE, SMALLEST_NOISE, LinearStart
from .optimizers import Soap
from .private_dispersion import private_dispersion
from .states import as_part, part_of

__all__ = ["HeldOut", "Model", "PathTraining", "evidence", "start_from"]

#: Largest change of an output by a Newton step that does not raise the log-posterior.
LARGEST_CHANGE = 1.0
#: Range of the factor by which latents are rescaled to unit size after an epoch.
LARGEST_RESCALING = 1.1
#: Largest factor by which the noise rises or falls in an epoch.
LARGEST_RISE, LARGEST_FALL = 1.3, 0.7
#: Parts of the neurons that are hidden in turn, and Newton steps towards what the others say.
N_PARTS = 4
STEPS = 10
DISPERSION_STEPS = 10


class Model:
    """A network in training, with the prior of its initial conditions and its process noise."""

    def __init__(self, network: SequentialAutoencoder, prior: Prior, noise: float) -> None:
        self.network, self.prior, self.noise = network, prior, noise

    @property
    def process_noise(self) -> Tensor:
        return self.prior.mean.new_full(self.prior.mean.shape, self.noise)

    def is_finite(self) -> bool:
        """Whether all weights are finite."""
        return all(weight.isfinite().all() for weight in self.network.parameters())

    @torch.no_grad()
    def states_of(self, trials: Trials, max_iter: int) -> Tensor:
        """Infer the states ``(n_trials, n_bins, n_states)`` of trials."""
        inference, device = self.inference(max_iter), self.prior.mean.device
        chunks = trials.chunks(trials_at_once(self.network, trials.n_bins), device)
        found = [inference.infer(batch).start for batch in chunks]
        return torch.cat(found, dim=2).permute(2, 0, 1).contiguous()

    def inference(self, max_iter: int) -> NoisyInference:
        return NoisyInference(self.network, self.prior, self.process_noise, max_iter)

    def rescale(self, factor: float) -> bool:
        """Describe the same model with latents ``1 / factor`` as large, if its map allows that.

        The noise stays: it is that of the new frame.
        """
        network = self.network
        if not network.dynamics.state_map.rescale(factor):
            return False
        network.readout.rescale(factor)
        if network.inputs is not None:
            network.inputs.known.data /= factor
            network.inputs.variance /= factor**2
        mean, precision = self.prior.mean / factor, self.prior.precision * factor**2
        self.prior = Prior(mean, precision, network.inputs)
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Copy of the state as named tensors."""
        weights = {name: weight.clone() for name, weight in self.network.state_dict().items()}
        return as_part("network", weights) | {
            "mean": self.prior.mean,
            "precision": self.prior.precision,
            "noise": torch.tensor([self.noise], dtype=torch.float64, device="cpu"),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""
        self.network.load_state_dict(part_of("network", state))
        device = self.prior.mean.device
        mean, precision = (state[name].to(device) for name in ("mean", "precision"))
        self.prior = Prior(mean, precision, self.network.inputs)
        self.noise = float(state["noise"])


class PathTraining:
    """A model in training, and the paths of its trials.

    Parameters
    ----------
    model : Model
    table : Tensor of shape (n_trials, n_bins, n_states)
        States of all trials, changed in place.
    trials : Trials
    optimizer : Soap
    generator : torch.Generator
        For the order of the trials.
    """

    def __init__(
        self,
        model: Model,
        table: Tensor,
        trials: Trials,
        optimizer: Soap,
        generator: torch.Generator,
    ) -> None:
        self.model, self.table, self.trials = model, table, trials
        self.optimizer, self.generator = optimizer, generator
        self.lengths = trials.lengths()
        bins = torch.arange(trials.n_bins, device=table.device)
        self.inside = bins < torch.as_tensor(self.lengths, device=table.device)[:, None]

    def epoch(self, learning_rate: float, n_batches: int, clip_norm: float | None) -> float:
        """Train on all trials once; returns the mean loss per observed entry."""
        total = n_observed = 0.0
        n_latents = self.model.network.readout.n_latents
        moments = self.table.new_zeros(n_latents, n_latents + 1)
        for rows in self._batches(n_batches):
            batch = self._batch(rows)
            loss, n, first = self._step(batch, learning_rate, clip_norm)
            total, n_observed, moments = total + loss, n_observed + n, moments + first
        self.model.network.likelihood.end_epoch()
        inputs = self.model.network.inputs
        self.model.prior = Prior.of_moments(
            moments[:, -1], moments[:, :-1], len(self.trials), inputs
        )
        return total / max(n_observed, 1)

    def _batch(self, rows: np.ndarray) -> Batch:
        return self.trials.batch(rows, self.table.device, int(self.lengths[rows].max()))

    def _batches(self, n_batches: int) -> list[np.ndarray]:
        """Rows of batches; trials of similar length go together."""
        n_trials = len(self.trials)
        order = torch.randperm(n_trials, generator=self.generator, device="cpu").numpy()
        if self.lengths.min() < self.lengths.max():
            draw = torch.rand(n_trials, generator=self.generator, device="cpu").numpy()
            order = np.argsort(self.lengths * (0.8 + 0.45 * draw), kind="stable")
        parts = np.array_split(order, min(n_batches, n_trials))
        turn = torch.randperm(len(parts), generator=self.generator, device="cpu").numpy()
        return [parts[i] for i in turn]

    def _step(
        self, batch: Batch, learning_rate: float, clip_norm: float | None
    ) -> tuple[float, int, Tensor]:
        paths, path, found = self._newton(batch)
        n_observed = int(batch.n_observed())
        gain, dynamics, output = evidence(paths, path, found)
        share = len(batch) / len(self.trials)
        network = self.model.network
        penalty = network.readout.penalty() + network.dynamics.state_map.penalty()
        loss = -gain - dynamics + share * penalty
        (loss / n_observed).backward()
        self.optimizer.step(learning_rate, clip_norm)
        network.likelihood.accumulate_residuals(output, batch)
        n_latents = network.readout.n_latents
        z0 = path.states[0, :n_latents]
        spread = found.moments.covariances[0, :, :n_latents, :n_latents].sum(0)
        moments = torch.cat([z0 @ z0.T + spread, z0.sum(1, keepdim=True)], dim=1)
        normaliser = network.likelihood.normaliser(batch.counts, batch.mask)
        value = -float(gain.detach()) - float(torch.as_tensor(normaliser).sum())
        return value, n_observed, moments

    @torch.no_grad()
    def _newton(self, batch: Batch) -> tuple[Paths, Path, Step]:
        """One Newton step of the batch's paths."""
        paths = Paths(self.model.network, self.model.prior, batch)
        rows = torch.as_tensor(batch.rows, device=self.table.device)
        noise = paths.noise(self.model.process_noise)
        n_bins = len(batch.counts)
        states = self.table[rows, :n_bins].permute(1, 2, 0).contiguous()
        before, transitions = paths.expand_at(states)
        found = paths.step(before, noise, transitions)
        step = found.step.nan_to_num()
        path, _, left = paths.search(before, step, noise)
        if left.any():
            # The weights have changed: latents must move on, even if nothing is gained yet.
            change = (paths.output(before.states + step) - before.output).abs().amax((0, 1))
            size = (LARGEST_CHANGE / change.clamp(min=1e-9)).clamp(max=1.0)
            moved = before.states + torch.where(left, size, 0.0) * step
            path = paths.at(torch.where(left, moved, path.states))
        self.table[rows, :n_bins] = path.states.permute(2, 0, 1)
        within = paths.within[..., None]
        moments = found.moments._replace(
            with_costate=found.moments.with_costate.masked_fill(~within[..., None], 0.0)
        )
        return paths, path, Step(step, found.costates.masked_fill(~within, 0.0), moments)

    @torch.no_grad()
    def rescale(self, *held_out: HeldOut) -> None:
        """Give latents unit size, in one factor for all."""
        n_latents = self.model.network.readout.n_latents
        values = self.table[..., :n_latents][self.inside]
        size = float(values.var(0, correction=0).mean().sqrt())
        size = min(max(size, 1 / LARGEST_RESCALING), LARGEST_RESCALING)
        if self.model.rescale(size):
            holders: list[PathTraining | HeldOut] = [self, *held_out]
            for each in holders:
                each.table /= size

    @torch.no_grad()
    def measure_dispersion(self) -> None:
        """Measure how much each neuron varies on its own."""
        found = private_dispersion(self.model.inference(DISPERSION_STEPS), self.trials, self.table)
        self.model.network.likelihood.private_dispersion.copy_(found)

    def state_dict(self) -> dict[str, Tensor]:
        """State as named tensors, not copied."""
        state = {"table": self.table, "generator": self.generator.get_state()}
        for part, holder in self._parts().items():
            state |= as_part(part, holder.state_dict())
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a ``state_dict``."""
        self.table.copy_(state["table"])
        self.generator.set_state(state["generator"])
        for part, holder in self._parts().items():
            holder.load_state_dict(part_of(part, state))

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}


def evidence(paths: Paths, path: Path, found: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Terms whose gradients by the weights add up to that of the evidence, and mean output."""
    network, batch = paths.model, paths.batch
    latents = path.states[:, : paths.n_latents]
    output = network.readout(latents)
    covariances = found.moments.covariances[..., : paths.n_latents, : paths.n_latents]
    variance = network.readout.output_variance(latents, covariances.transpose(0, 1))
    variance = variance.clamp(0, LARGEST_VARIANCE)
    gain = expected_log_likelihood(network.likelihood, output, variance, batch).sum()
    mean = network.likelihood.mean_output(output.detach(), variance.detach())
    ahead, transitions = paths.advance_with_jacobian(path.states[:-1])
    along = (found.costates.permute(0, 2, 1) * ahead).sum()
    spread = (found.moments.with_costate * transitions).sum()
    return gain, along - spread, mean


class HeldOut:
    """Trials that the weights do not learn: they tell the noise, and how good a model is."""

    def __init__(self, trials: Trials, model: Model, device: torch.device) -> None:
        self.trials, self.model, self.device = trials, model, device
        rng = np.random.default_rng(0)
        n_neurons = trials.n_neurons
        self.parts = np.array_split(rng.permutation(n_neurons), min(N_PARTS, n_neurons))
        #: States of all trials ``(n_trials, n_bins, n_states)``, given all neurons.
        self.table = model.states_of(trials, STEPS)
        self.null_rates = trials.units.to_network(trials.mean_counts())

    def _chunks(self) -> Any:
        size = max(1, trials_at_once(self.model.network, self.trials.n_bins) // len(self.parts))
        return self.trials.chunks(size, self.device)

    @torch.no_grad()
    def noise_ratio(self) -> float:
        """Squared noise of held-out trials over what the present noise explains."""
        squares = determined = 0.0
        for batch in self._chunks():
            paths = Paths(self.model.network, self.model.prior, batch)
            noise = paths.noise(self.model.process_noise)
            rows = torch.as_tensor(batch.rows, device=self.device)
            path, transitions = paths.expand_at(self.table[rows].permute(1, 2, 0))
            found = paths.step(path, noise, transitions)
            path, _, _ = paths.search(path, found.step.nan_to_num(), noise)
            self.table[rows] = path.states.permute(2, 0, 1)
            n, within = paths.n_latents, paths.within
            squares += float(found.costates[within][:, :n].square().sum(dtype=torch.float64))
            determined += float(found.moments.determined[within][:, :n].sum(dtype=torch.float64))
        return squares / max(determined, 1e-12)

    def learn_noise(self) -> None:
        """Take a step towards the noise that the evidence of these trials asks for."""
        ratio = self.noise_ratio()
        factor = min(max(ratio, LARGEST_FALL), LARGEST_RISE) if np.isfinite(ratio) else 1.0
        self.model.noise = max(self.model.noise * factor, SMALLEST_NOISE)

    @torch.no_grad()
    def scores(self) -> np.ndarray:
        """Log-likelihood that hidden neurons gain over their means ``(n_parts, n_trials)``.

        A part of the neurons is hidden at a time. All paths are inferred anew: those that were
        followed while the weights changed may have ended in lesser maxima.
        """
        self.table = self.model.states_of(self.trials, STEPS)
        inference = self.model.inference(STEPS)
        likelihood = self.model.network.likelihood
        null_rates = torch.from_numpy(self.null_rates).float().to(self.device)
        gains = []
        for batch in self._chunks():
            seen = batch.hide_in_turn(self.parts)
            posterior = inference.infer(seen)
            whole = replace(
                seen,
                counts=batch.counts.repeat(1, 1, len(self.parts)),
                mask=batch.observed().repeat(1, 1, len(self.parts)),
            )
            hidden = whole.observed() & ~seen.observed()
            gain = gain_over_null(likelihood, posterior.mean_output, null_rates, whole, hidden)
            gains.append(gain.unflatten(0, (len(self.parts), -1)))
        return torch.cat(gains, dim=1).cpu().double().numpy()


def start_from(linear: LinearStart, network: SequentialAutoencoder) -> tuple[Model, Tensor, bool]:
    """Let a network start at a linear system; returns whether its dynamics are linear now.

    The second value is the table of states. Dynamics that cannot be linear start as they were
    drawn, with the latents, readout and noise of the linear system in their own scale.
    """
    device = linear.table.device
    network = network.to(device)
    matrix, offset = linear.transition[:, :-1], linear.transition[:, -1]
    values, axes = torch.linalg.eigh(linear.covariance)
    whitening = (axes / values.clamp(min=1e-6).sqrt()).T
    is_linear = network.dynamics.start_at(matrix, offset, whitening)
    scale = 1.0 if is_linear else network.dynamics.latent_scale
    network.readout.start_at(linear.readout)
    network.readout.rescale(1 / scale)
    network.likelihood.load_state_dict(linear.network.likelihood.state_dict())
    if network.inputs is not None and linear.network.inputs is not None:
        network.inputs.known.data.copy_(linear.network.inputs.known * scale)
    prior = Prior(linear.prior.mean * scale, linear.prior.precision / scale**2, network.inputs)
    model = Model(network, prior, linear.noise * scale**2)
    table = linear.table * scale
    if network.n_inferred:
        table = torch.nn.functional.pad(table, (0, network.n_inferred))
    return model, table, is_linear
