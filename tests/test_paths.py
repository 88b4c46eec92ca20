"""Paths under process noise, against dense algebra, and long trials as users meet them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from common import CPU, DYNAMICS, generator, make_model, make_problem

from sklearn_sae import NODESAE, load
from sklearn_sae._data.pieces import Pieces
from sklearn_sae._data.trials import Trials
from sklearn_sae._inference.data_term import log_likelihood
from sklearn_sae._inference.noisy_smoother import path_moments, path_step
from sklearn_sae._inference.paths import PathPosterior, Paths
from sklearn_sae._inference.prior import Prior
from sklearn_sae._model.dynamics import Map
from sklearn_sae._model.inputs import Inputs
from sklearn_sae._model.state_maps import MLP
from sklearn_sae._training.path_training import HeldOut, Model, evidence
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.metrics import rate_r2

NOISE = torch.tensor([0.02, 0.05, 0.01], dtype=torch.float64)


def paths_of(kind="ode", missing=0.0):
    """Paths of a small problem, and latents some way off the dynamics."""
    model, prior, batch, z0 = make_problem(kind, missing=missing)
    paths = Paths(model, prior, batch)
    latents = model.rollout(z0, 12)
    latents = latents + 0.1 * torch.randn(latents.shape, generator=generator(), dtype=latents.dtype)
    return paths, paths.at(latents)


def dense(paths, path, trial, noise):
    """Gradient and Gauss-Newton precision of one trial's path, by automatic differentiation."""
    model, prior, batch = paths.model, paths.prior, paths.batch.only(torch.tensor([trial]))
    z = path.states[..., trial]

    def innovations(z):
        return z[1:] - model.dynamics.step(z[:-1].T).T

    def value(z):
        output = model.readout(z[..., None])
        fit = log_likelihood(model.likelihood, output, batch.counts, batch.mask).sum()
        return (
            fit + prior.log_density(z[0][:, None]).sum() - (innovations(z) ** 2 / noise).sum() / 2
        )

    gradient = torch.autograd.functional.jacobian(value, z).flatten()
    of_noise = torch.autograd.functional.jacobian(innovations, z).flatten(2).flatten(0, 1)
    precision = of_noise.T @ (of_noise / noise.repeat(len(z) - 1)[:, None])
    precision[:3, :3] += prior.precision
    of_output = torch.autograd.functional.jacobian(
        lambda z: model.readout(z[..., None])[..., 0], z
    ).flatten(2)
    information = model.readout(z[..., None]).exp()[..., 0]
    information = information / model.likelihood.private_dispersion[:, 0] * batch.observed()[..., 0]
    precision += torch.einsum("tni,tn,tnj->ij", of_output, information, of_output)
    return gradient, precision, of_noise


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_a_step_is_that_of_dense_algebra(kind, missing):
    paths, path = paths_of(kind, missing)
    linear, found = paths.expand(path, NOISE)
    step, costates = path_step(linear, found)
    for trial in (0, 3):
        gradient, precision, _ = dense(paths, path, trial, NOISE)
        expected = torch.linalg.solve(precision, gradient).unflatten(0, (-1, 3))
        torch.testing.assert_close(step[:, trial], expected, rtol=1e-7, atol=1e-9)
    # The costate is the noise at the end of the step over its variance.
    moved = torch.stack(
        [a @ z for a, z in zip(paths.expand_at(path.states)[1], step[:-1, ..., None], strict=True)]
    )[..., 0]
    noise = step[1:] - moved - path.defects
    torch.testing.assert_close(NOISE * costates, noise, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_covariances_and_what_is_determined_are_those_of_dense_algebra(missing):
    paths, path = paths_of(missing=missing)
    linear, found = paths.expand(path, NOISE)
    moments = path_moments(linear, found, NOISE)
    for trial in (0, 3):
        _, precision, of_noise = dense(paths, path, trial, NOISE)
        inverse = torch.linalg.inv(precision)
        for t in range(12):
            own = slice(3 * t, 3 * t + 3)
            torch.testing.assert_close(moments.covariances[t, trial], inverse[own, own])
            if t == 11:
                continue
            after, transition = (
                slice(3 * t + 3, 3 * t + 6),
                paths.expand_at(path.states)[1][t][trial],
            )
            with_next = moments.closed[t, trial] @ inverse[own, own]
            torch.testing.assert_close(with_next, inverse[after, own])
            missing_part = transition @ inverse[own, own] - inverse[after, own]
            pulled = NOISE[:, None] * moments.with_costate[t, trial]
            torch.testing.assert_close(pulled, missing_part)
        of_innovations = (of_noise @ inverse @ of_noise.T).diagonal().unflatten(0, (-1, 3))
        share = NOISE * moments.determined[:, trial]
        torch.testing.assert_close(share, 1 - of_innovations / NOISE)


def test_without_noise_a_step_stays_on_the_dynamics():
    model, prior, batch, z0 = make_problem()
    paths, none = Paths(model, prior, batch), torch.zeros(3, dtype=torch.float64)
    path = paths.at(model.rollout(z0, 12))
    linear, found = paths.expand(path, none)
    step, _ = path_step(linear, found)
    for t, transition in enumerate(paths.expand_at(path.states)[1]):
        expected = (transition @ step[t][..., None])[..., 0]
        torch.testing.assert_close(step[t + 1], expected)


def test_climbing_never_lowers_a_log_posterior_and_ends_at_the_mode():
    paths, path = paths_of(missing=0.2)
    before = paths.log_posterior(path, NOISE)
    found = paths.climb(path, NOISE, 30)
    assert (paths.log_posterior(found, NOISE) >= before).all()
    for trial in range(5):
        gradient, precision, _ = dense(paths, found, trial, NOISE)
        assert gradient @ torch.linalg.solve(precision, gradient) < 1e-2


def test_after_its_end_a_trial_follows_the_dynamics():
    paths, path = paths_of()
    paths.within[6:, 2] = False
    latents = paths.continued(path)
    assert torch.equal(latents[:7], path.states[:7])
    assert torch.equal(latents[..., 0], path.states[..., 0])
    for t in range(6, 11):
        torch.testing.assert_close(
            latents[t + 1, :, 2:3], paths.model.dynamics.step(latents[t, :, 2:3])
        )


@pytest.mark.parametrize("size", [0.03, 0.1])
def test_noise_of_known_size_is_learned(size):
    model, _, _, _ = make_problem(dtype=torch.float32)
    model.likelihood.private_dispersion.fill_(1.0)
    model.readout.weight[:, -1] = 2.0
    z = [torch.randn(3, 60, generator=generator(1))]
    for _ in range(29):
        noise = size * torch.randn(3, 60, generator=generator(len(z)))
        z.append(model.dynamics.step(z[-1]) + noise)
    rates = model.likelihood.rates(model.readout(torch.stack(z)))
    counts = np.random.default_rng(0).poisson(rates.permute(2, 0, 1).numpy())
    prior = Prior(torch.zeros(3), torch.eye(3))
    held_out = HeldOut(Trials(counts, has_missing=False), Model(model, prior, 1e-3), CPU)
    for _ in range(40):
        held_out.learn_noise()
    assert held_out.model.noise**0.5 == pytest.approx(size, rel=0.1)


def driven_gaussian(noise):
    """A linear model with known inputs of Gaussian data, in which nothing is approximated."""
    model = make_model("residual mlp", n_neurons=5, likelihood="gaussian").requires_grad_(True)
    dynamics = MLP(3, (), "tanh", generator())
    matrix = torch.randn(3, 3, generator=generator(1)) / 3
    dynamics.start_at(matrix)
    dynamics.add_offset(torch.tensor([0.1, -0.2, 0.3]))
    model.dynamics = Map(dynamics, None)
    model.inputs = Inputs(3, 2, 0, generator())
    model.inputs.known.data.normal_(generator=generator(2))
    model = model.double()
    rng = np.random.default_rng(0)
    counts = rng.normal(size=(4, 7, 5))
    counts[rng.random(counts.shape) < 0.2] = np.nan
    inputs = rng.normal(size=(4, 7, 2)).astype(np.float32)
    batch = Trials(counts, has_missing=True, inputs=inputs).batch(np.arange(4), CPU)
    batch = replace(batch, counts=batch.counts.double(), inputs=batch.inputs.double())
    mean = torch.tensor([0.2, 0.0, -0.1], dtype=torch.float64)
    return Paths(model, Prior(mean, 2 * torch.eye(3, dtype=torch.float64)), batch)


def marginal(paths, noise):
    """Log-density of the observed entries of all trials, from their joint Gaussian."""
    model, batch = paths.model, paths.batch
    (weight,) = model.dynamics.parameters()
    a, b = weight[:, :3], weight[:, 3]
    kernel, bias = model.readout.weight[:, :3], model.readout.weight[:, 3]
    likelihood, total = model.likelihood, 0.0
    spread = (likelihood.dispersion * likelihood.private_dispersion)[:, 0]
    for k in range(len(batch)):
        mean, cov = [paths.prior.mean], [torch.linalg.inv(paths.prior.precision)]
        for t in range(6):
            mean.append(a @ mean[-1] + b + model.inputs.known @ batch.inputs[t, :, k])
            cov.append(a @ cov[-1] @ a.T + torch.diag(noise))
        blocks = []
        for t in range(7):
            row = [
                torch.linalg.matrix_power(a, t - s) @ cov[s]
                if s <= t
                else (torch.linalg.matrix_power(a, s - t) @ cov[t]).T
                for s in range(7)
            ]
            blocks.append(torch.cat(row, dim=1))
        whole = torch.kron(torch.eye(7, dtype=a.dtype), likelihood.scale * kernel)
        expected = torch.stack(mean) @ kernel.T + bias
        expected = (likelihood.centre[:, 0] + likelihood.scale[:, 0] * expected).flatten()
        covariance = whole @ torch.cat(blocks) @ whole.T + torch.diag(spread.repeat(7))
        seen = batch.mask[..., k].flatten()
        data = torch.distributions.MultivariateNormal(expected[seen], covariance[seen][:, seen])
        total = total + data.log_prob(batch.counts[..., k].flatten()[seen])
    return total


@pytest.mark.parametrize("size", [0.3, 1e-3])
def test_training_follows_the_gradient_of_the_evidence(size):
    noise = torch.full((3,), size, dtype=torch.float64)
    paths = driven_gaussian(noise)
    with torch.no_grad():
        path = paths.climb(paths.at_rest(), noise, 3)
        found = paths.step(path, noise)
    gain, dynamics, _ = evidence(paths, path, found)
    weights = [p for p in paths.model.parameters() if p.numel()]
    ours = torch.autograd.grad(gain + dynamics, weights, allow_unused=True)
    exact = torch.autograd.grad(marginal(paths, noise), weights, allow_unused=True)
    n_compared = 0
    for one, other in zip(ours, exact, strict=True):
        if other is not None and other.abs().max() > 0:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
            n_compared += 1
    assert n_compared == 3


# ------------------------------------------------------------------ pieces


@pytest.mark.parametrize(("n_bins", "longest"), [(30, 10), (31, 10), (29, 10), (30, 30), (7, 3)])
def test_pieces_cover_every_bin(n_bins, longest):
    counts = np.arange(2 * n_bins * 3).reshape(2, n_bins, 3)
    pieces = Pieces(Trials(counts, has_missing=False), longest)
    assert pieces.n_bins <= longest
    assert len(pieces) == 2 * -(-n_bins // longest)
    seen, _ = pieces.read(np.arange(len(pieces)))
    for trial, start, piece in zip(pieces.trial, pieces.start, seen, strict=True):
        np.testing.assert_array_equal(piece, counts[trial, start : start + pieces.n_bins])
    assert np.unique(seen).tolist() == list(range(counts.size))


def test_pieces_of_ragged_trials_with_inputs():
    rng = np.random.default_rng(0)
    trials = [rng.poisson(1.0, (n, 2)).astype(float) for n in (4, 25, 12)]
    trials[1][20:] = np.nan
    inputs = rng.normal(size=(3, 25, 1)).astype(np.float32)
    whole = Trials(trials, has_missing=True, inputs=inputs).subset(np.array([0, 1, 2]))
    pieces = Pieces(whole, 10)
    # The second trial ends with its last bin that was observed.
    assert pieces.trial.tolist() == [0, 1, 1, 1, 2, 2]
    assert pieces.start.tolist() == [0, 0, 6, 11, 0, 3]
    batch = pieces.batch(np.array([0, 3]), torch.device("cpu"))
    assert batch.lengths.tolist() == [4, 9]
    np.testing.assert_array_equal(batch.counts[:, :, 1].numpy(), trials[1][11:20])
    np.testing.assert_array_equal(batch.inputs[:, :, 1].numpy(), inputs[1, 11:20])


# ------------------------------------------------------------------ as users meet them


def rotations(n_trials, seed, n_bins=230):
    """Spikes of a ring that turns, now faster, now slower, and the rates."""
    rng = np.random.default_rng(seed)
    speed = 0.25 + rng.normal(0, 0.05, (n_trials, n_bins))
    phase = rng.uniform(0, 2 * np.pi, (n_trials, 1)) + np.cumsum(speed, axis=1)
    rates = 2 * np.exp(np.cos(phase[..., np.newaxis] - 2 * np.pi * np.arange(12) / 12))
    return rng.poisson(rates), rates


@pytest.fixture(scope="module")
def wandering():
    spikes, _ = rotations(20, 0)
    return NODESAE(n_latents=2, max_epochs=60, random_state=0).fit(spikes)


def test_long_trials_are_followed(wandering):
    spikes, rates = rotations(10, 1)
    assert wandering.process_noise_.shape == (2,)
    assert rate_r2(rates, wandering.predict(spikes)) > 0.93
    predicted, std = wandering.predict(spikes, return_std=True)
    inside = (np.abs(predicted - rates) < 1.645 * std).mean()
    assert inside > 0.8


def test_everything_works_with_process_noise(wandering, tmp_path):
    spikes, rates = rotations(6, 2)
    holes = spikes.astype(float)
    holes[0, 50:90] = np.nan
    holes[1, :, 3] = np.nan
    holes[2, 200:] = np.nan
    latents = wandering.transform(holes)
    assert np.isfinite(latents).all()
    np.testing.assert_allclose(wandering.initial_conditions(holes), latents[:, 0], rtol=1e-5)
    ragged = [spikes[0, :40], spikes[1], spikes[2, :2]]
    assert [x.shape for x in wandering.transform(ragged)] == [(40, 2), (230, 2), (2, 2)]
    ahead = wandering.forecast(spikes[:, :220], 5)
    assert rate_r2(rates[:, 220:225], ahead) > 0.7
    wandering.save(tmp_path / "long.safetensors")
    loaded = load(tmp_path / "long.safetensors")
    np.testing.assert_array_equal(loaded.process_noise_, wandering.process_noise_)
    np.testing.assert_array_equal(loaded.predict(holes), wandering.predict(holes))
    assert isinstance(next(iter(posteriors(wandering, spikes))), PathPosterior)


def posteriors(est, spikes):
    trials = Trials(spikes, has_missing=False)
    return est._fitted_model.posteriors(trials, torch.device("cpu"))


def test_other_inference_has_no_process_noise():
    spikes, _ = rotations(8, 0, n_bins=40)
    settings = {"n_latents": 2, "max_epochs": 1, "random_state": 0}
    for changed in ({"inference": "amortized"}, {"n_inferred_inputs": 1}):
        assert not hasattr(NODESAE(**settings, **changed).fit(spikes), "process_noise_")


def test_models_are_chosen_and_stopped_in_pieces_too():
    spikes, _ = rotations(10, 0)
    est = NODESAE(n_latents=2, n_init=2, early_stopping=True, max_epochs=6, random_state=0)
    est.fit(spikes)
    assert np.isfinite(est.init_scores_).all()
    est.set_params(warm_start=True).fit(spikes)
    assert est.process_noise_.shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["Lorenz", "Arneodo", "Rossler"])
def test_hundreds_of_bins_of_chaos(system):
    data = make_chaotic_spikes(system, n_trials=230, n_bins=500, random_state=0)
    est = NODESAE(n_latents=3, random_state=0).fit(data.spikes[:180])
    assert rate_r2(data.rates[180:], est.predict(data.spikes[180:])) > 0.985
