"""Linear dynamics with process noise, fitted by expectation maximisation: where training starts.

    z_1 ~ N(m, P),   z_{t+1} = A z_t + b + D s_t + w_t,   w_t ~ N(0, q I),

with known inputs s_t, and the likelihood of the model around the readout of z_t. In the E step the
posterior of each trial's path is approximated by a Gaussian around its mode (Smith & Brown, Neural
Computation 2003). In the M step the dynamics are found by regression, the readout by a Newton step
of the expected log-likelihood, and the noise by MacKay's rule [Neural Computation 1992]: squared
noise over the number of its components that the spikes determine, which is fast where EM is slow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._data.batches import Batch
from .._data.trials import Trials
from .._inference.data_term import score_and_information
from .._inference.memory import trials_at_once
from .._inference.paths import NoisyInference, Path, Paths
from .._inference.prior import Prior
from .._model.autoencoder import SequentialAutoencoder
from .._model.dynamics import Map
from .._model.inputs import Inputs
from .._model.likelihoods import Likelihood
from .._model.readout import LinearReadout
from .._model.state_maps import MLP
from .private_dispersion import private_dispersion

__all__ = ["LinearStart", "fit_linear"]

#: More iterations fit noise: on unseen trials of recordings seven to thirteen were best.
N_ITERATIONS = 10
FIRST_STEPS, STEPS = 6, 2
#: Iterations after which private dispersions are measured.
WHEN_DISPERSION = (3,)
FIRST_DECAY, FIRST_NOISE = 0.9, 0.2
SMALLEST_NOISE = 1e-6
#: Iterations with the first noise, and those with the noise of EM, before MacKay's rule.
FIXED, BY_EM = 2, 5
LARGEST_FACTOR = 1.5
#: Precisions of the prior of the readout's weights and biases, and of the transition matrix.
OF_READOUT, OF_BIAS, OF_TRANSITION = 1.0, 1e-3, 1e-3
LARGEST_STEP = 0.5
#: Largest variance of an output in expected rates.
LARGEST_VARIANCE = 4.0


@dataclass
class LinearStart:
    """A linear system of latents of unit size, and the paths of its trials.

    Attributes
    ----------
    network : SequentialAutoencoder
        With a linear map as its dynamics.
    readout : Tensor of shape (n_neurons, n_latents + 1)
        Weight of its readout.
    prior : Prior
        Of the first bin.
    noise : float
        Variance of the process noise.
    table : Tensor of shape (n_trials, n_bins, n_latents)
        Latents of all trials.
    covariance : Tensor of shape (n_latents, n_latents)
        Of the latents in all bins, that of their posterior included.
    """

    network: SequentialAutoencoder
    readout: Tensor
    prior: Prior
    noise: float
    table: Tensor
    covariance: Tensor

    @property
    def transition(self) -> Tensor:
        """Transition matrix and constant, ``(n_latents, n_latents + 1)``."""
        return _transition(self.network)


def _transition(network: SequentialAutoencoder) -> Tensor:
    (weight,) = network.dynamics.state_map.parameters()
    return weight.detach()


class _Sums:
    """Sums over trials and bins, from which dynamics and prior are learned."""

    def __init__(self, n_regressors: int, n_latents: int, like: Tensor) -> None:
        self.gram = like.new_zeros(n_regressors, n_regressors)
        self.target = like.new_zeros(n_regressors, n_latents)
        self.squares = self.open = 0.0
        self.n_steps = 0
        self.first = like.new_zeros(n_latents)
        self.first_squares = like.new_zeros(n_latents, n_latents)
        self.all = like.new_zeros(n_latents)
        self.all_squares = like.new_zeros(n_latents, n_latents)
        self.n_trials = self.n_bins = 0


@torch.no_grad()
def fit_linear(
    trials: Trials, likelihood: Likelihood, readout: Tensor, n_known: int, device: torch.device
) -> LinearStart:
    """Fit a linear system to ``trials``, from decaying latents.

    The system starts at the ``readout`` ``(n_neurons, n_latents + 1)``. The ``likelihood``
    is changed, as it learns dispersions.
    """
    fit = _LinearFit(trials, likelihood, readout, n_known, device)
    for i in range(N_ITERATIONS):
        fit.iterate(i)
    return fit.finished()


class _LinearFit:
    def __init__(
        self,
        trials: Trials,
        likelihood: Likelihood,
        weight: Tensor,
        n_known: int,
        device: torch.device,
    ) -> None:
        n_neurons, n_latents = len(weight), weight.shape[1] - 1
        generator = torch.Generator(device="cpu").manual_seed(0)
        self.readout = readout = LinearReadout(n_neurons, n_latents, generator)
        readout.start_at(weight)
        dynamics = Map(MLP(n_latents, (), "tanh", generator), None)
        eye = torch.eye(n_latents, device="cpu")
        dynamics.start_at(FIRST_DECAY * eye, eye.new_zeros(n_latents), eye)
        inputs = Inputs(n_latents, n_known, 0, generator) if n_known else None
        self.network = SequentialAutoencoder(dynamics, readout, likelihood, None, inputs).to(device)
        self.trials, self.device, self.n_latents = trials, device, n_latents
        self.prior = Prior(eye.new_zeros(n_latents).to(device), eye.to(device))
        self.noise = FIRST_NOISE
        self.table = torch.zeros(len(trials), trials.n_bins, n_latents, device=device)

    def iterate(self, i: int) -> None:
        if i in WHEN_DISPERSION:
            inference = NoisyInference(self.network, self.prior, self.process_noise, FIRST_STEPS)
            found = private_dispersion(inference, self.trials, self.table)
            self.network.likelihood.private_dispersion.copy_(found)
        n_known = 0 if self.network.inputs is None else self.network.inputs.known.shape[1]
        self.sums = sums = _Sums(self.n_latents + 1 + n_known, self.n_latents, self.table)
        weight = self.readout.weight
        gradient = torch.zeros_like(weight)
        curvature = weight.new_zeros(*weight.shape, weight.shape[1])
        size = trials_at_once(self.network, self.trials.n_bins)
        for batch in self.trials.chunks(size, self.device):
            paths = Paths(self.network, self.prior, batch)
            path, covariances = self._infer(paths, STEPS if i else FIRST_STEPS)
            self._add(sums, paths, path, *covariances)
            output = self._mean_output(path, covariances[0])
            self.network.likelihood.accumulate_residuals(output, batch)
            more = self._of_readout(batch, path, covariances[0], output)
            gradient, curvature = gradient + more[0], curvature + more[1]
        self._learn_readout(gradient, curvature)
        self._learn_dynamics(sums, i)
        self.network.likelihood.end_epoch()

    @property
    def process_noise(self) -> Tensor:
        return self.prior.mean.new_full((self.n_latents,), self.noise)

    def _infer(self, paths: Paths, n_steps: int) -> tuple[Path, tuple[Tensor, Tensor]]:
        """Paths, covariances ``(n_bins, n_trials, D, D)`` and those with the bin before."""
        rows = torch.as_tensor(paths.batch.rows, device=self.device)
        noise = self.process_noise
        path = paths.climb(paths.at(self.table[rows].permute(1, 2, 0)), noise, n_steps)
        self.table[rows] = path.states.permute(2, 0, 1)
        moments = paths.step(path, noise).moments
        return path, (moments.covariances, moments.closed @ moments.covariances[:-1])

    def _add(self, sums: _Sums, paths: Paths, path: Path, own: Tensor, cross: Tensor) -> None:
        within = paths.within
        states = path.states.permute(0, 2, 1)
        inside = torch.cat([within.new_ones(1, states.shape[1]), within])
        before, after = states[:-1][within], states[1:][within]
        s0, s1, s01 = own[:-1][within], own[1:][within], cross[within]
        regressors = [before, before.new_ones(len(before), 1)]
        if paths.batch.inputs is not None:
            known = paths.batch.inputs[: len(within)].permute(0, 2, 1)
            regressors.append(known[within])
        x = torch.cat(regressors, dim=1)
        d = self.n_latents
        weight = _transition(self.network)[:, :-1]
        through = weight @ s01.sum(0).mT
        sums.gram += x.T @ x
        sums.gram[:d, :d] += s0.sum(0)
        sums.target += x.T @ after
        sums.target[:d] += s01.sum(0).mT
        misses = path.defects[within]
        of_noise = s1.sum(0) - through - through.mT + weight @ s0.sum(0) @ weight.mT
        sums.squares += float(misses.square().sum())
        sums.open += float(of_noise.diagonal().sum())
        sums.n_steps += len(x) * d
        sums.first += states[0].sum(0)
        sums.first_squares += states[0].T @ states[0] + own[0].sum(0)
        sums.all += states[inside].sum(0)
        sums.all_squares += states[inside].T @ states[inside] + own[inside].sum(0)
        sums.n_trials += states.shape[1]
        sums.n_bins += int(inside.sum())

    def _mean_output(self, path: Path, covariances: Tensor) -> Tensor:
        readout, likelihood = self.network.readout, self.network.likelihood
        variance = readout.output_variance(path.states, covariances.transpose(0, 1))
        return likelihood.mean_output(path.output, variance.clamp(0, LARGEST_VARIANCE))

    def _of_readout(
        self, batch: Batch, path: Path, covariances: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradient ``(n_neurons, D + 1)`` and curvature of the expected log-likelihood."""
        likelihood = self.network.likelihood
        score, information = score_and_information(likelihood, output, batch)
        # The readout is a neuron's own: what it shares does not matter for its weights.
        scale = likelihood.private_dispersion
        score, information = (
            (values * scale).permute(1, 0, 2).flatten(1) for values in (score, information)
        )
        x = torch.nn.functional.pad(path.states.permute(0, 2, 1).flatten(0, 1), (0, 1), value=1.0)
        n, d = len(score), self.n_latents
        pairs = (x[:, :, None] * x[:, None, :]).flatten(1)
        curvature = (information @ pairs).unflatten(1, (d + 1, d + 1))
        of_spread = (information @ covariances.flatten(0, 1).flatten(1)).reshape(n, d, d)
        curvature[:, :d, :d] += of_spread
        gradient = score @ x
        kernel = self.readout.weight[:, :d]
        gradient[:, :d] -= (of_spread @ kernel[..., None])[..., 0]
        return gradient, curvature

    def _learn_readout(self, gradient: Tensor, curvature: Tensor) -> None:
        weight = self.readout.weight
        precision = torch.full_like(weight[0], OF_READOUT)
        precision[-1] = OF_BIAS
        gradient = gradient - precision * weight
        step = torch.linalg.solve(curvature + torch.diag(precision + 1e-6), gradient[..., None])
        weight.data.add_(step[..., 0].nan_to_num().clamp(-LARGEST_STEP, LARGEST_STEP))

    def _learn_dynamics(self, sums: _Sums, i: int) -> None:
        d, n = self.n_latents, max(sums.n_steps, 1)
        squares, left_open = sums.squares / n, sums.open / n
        if i >= BY_EM:
            found = squares / max(1 - left_open / self.noise, 0.02)
            found = min(max(found, self.noise / LARGEST_FACTOR), self.noise * LARGEST_FACTOR)
            self.noise = max(found, SMALLEST_NOISE)
        elif i >= FIXED:
            self.noise = max(squares + left_open, SMALLEST_NOISE)
        ridge = OF_TRANSITION * torch.eye(len(sums.gram), device=sums.gram.device)
        solution = torch.linalg.solve((sums.gram + ridge).double(), sums.target.double()).float()
        _transition(self.network).copy_(solution[: d + 1].T)
        if self.network.inputs is not None:
            self.network.inputs.known.copy_(solution[d + 1 :].T)
        self.prior = Prior.of_moments(sums.first, sums.first_squares, sums.n_trials)

    def finished(self) -> LinearStart:
        """Move the origin to the mean latents, and give them unit size."""
        network, sums = self.network, self.sums
        mean = sums.all / sums.n_bins
        covariance = sums.all_squares / sums.n_bins - torch.outer(mean, mean)
        size = float(covariance.diagonal().mean().clamp(min=1e-8).sqrt())
        weight, readout = _transition(network), self.readout.weight.data
        weight[:, -1].add_(weight[:, :-1] @ mean - mean)
        weight[:, -1].div_(size)
        readout[:, -1].add_(readout[:, :-1] @ mean)
        self.readout.rescale(size)
        if network.inputs is not None:
            network.inputs.known.div_(size)
        prior = Prior((self.prior.mean - mean) / size, self.prior.precision * size**2)
        table = (self.table - mean) / size
        return LinearStart(
            network, readout, prior, self.noise / size**2, table, covariance / size**2
        )
