import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import DYNAMICS, batch_of, expand, log_posterior, make_model, make_problem, readout_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_sae._data.batches import Batch
from sklearn_sae._inference import inference, memory, newton
from sklearn_sae._inference.candidates import best_start, cover
from sklearn_sae._inference.memory import most_values, trials_at_once
from sklearn_sae._inference.newton import Point, refine
from sklearn_sae._inference.prior import Prior
from sklearn_sae._inference.smoother import covariances
from sklearn_sae._model.autoencoder import SequentialAutoencoder
from sklearn_sae._model.dynamics import Dynamics, Map
from sklearn_sae._model.inputs import Inputs
from sklearn_sae._model.likelihoods import LIKELIHOODS, Poisson
from sklearn_sae._model.readout import _contracted
from sklearn_sae._model.state_maps import MLP

seeds = st.integers(0, 2**32 - 1)


def some(batch, chosen):
    mask = None if batch.mask is None else batch.mask[..., chosen]
    rows, lengths = batch.rows[chosen], batch.lengths[chosen]
    return Batch(batch.counts[..., chosen], mask, lengths, rows)


# --- the prior -----------------------------------------------------------------------------------


def test_prior_of_many_trials_is_their_gaussian():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 3))
    z0 = rng.normal(size=(20000, 3)) @ mixing + [1, 2, 3]
    prior = Prior.from_samples(torch.from_numpy(z0))
    np.testing.assert_allclose(prior.mean, z0.mean(0))
    np.testing.assert_allclose(
        torch.linalg.inv(prior.precision), np.cov(z0.T), rtol=2e-2, atol=5e-3
    )


@given(seeds, st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.0, 1e-6, 1.0, 100.0]))
@settings(max_examples=60, deadline=None)
def test_prior_of_few_trials_is_proper(seed, n_trials, n_latents, scale):
    rng = np.random.default_rng(seed)
    z0 = torch.from_numpy(scale * rng.normal(size=(n_trials, n_latents))).float()
    prior = Prior.from_samples(z0)
    assert prior.precision.isfinite().all()
    symmetric = (prior.precision + prior.precision.T) / 2
    torch.testing.assert_close(prior.precision, symmetric, rtol=1e-2, atol=1e-2)
    assert torch.linalg.eigvalsh(symmetric.double()).min() > 0
    # As wide as the trials, and never narrower than a share of the floor of 1e-3.
    widths = torch.linalg.inv(symmetric.double()).diagonal()
    spread = (z0 - z0.mean(0)).double().square().mean(0)
    assert (widths >= 0.95 * spread).all()
    assert (widths <= 1.05 * spread.clamp(min=1e-3)).all()


def test_prior_density_and_gradient():
    _, prior, _, z0 = make_problem()
    expected = torch.distributions.MultivariateNormal(prior.mean, precision_matrix=prior.precision)
    density = prior.log_density(z0)
    offset = expected.log_prob(z0.T) - density
    torch.testing.assert_close(offset, offset[:1].expand(5))
    z0.requires_grad_()
    (gradient,) = torch.autograd.grad(prior.log_density(z0).sum(), z0)
    torch.testing.assert_close(prior.of_first_state(z0)[0].T, gradient)


# --- gradient, information, sensitivities --------------------------------------------------------


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_gradient_is_autograds(kind, missing):
    model, prior, batch, z0 = make_problem(kind, missing=missing)
    gradient = expand(model, prior, batch, z0)[1].gradient
    leaf = z0.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_posterior(model, prior, batch, leaf).sum(), leaf)
    torch.testing.assert_close(gradient, expected.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_fisher_information_is_that_of_poisson_counts(kind, missing):
    model, prior, batch, z0 = make_problem(kind, missing=missing)
    fisher = expand(model, prior, batch, z0)[1].precision
    for i in range(z0.shape[1]):
        jacobian = torch.autograd.functional.jacobian(
            lambda z: model.output(z[:, None], 12)[..., 0], z0[:, i]
        ).flatten(0, 1)
        rates = model.output(z0, 12).exp() / model.likelihood.private_dispersion
        weight = (rates * batch.observed())[..., i].flatten()
        expected = jacobian.T @ (weight[:, None] * jacobian) + prior.precision
        torch.testing.assert_close(fisher[i], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("likelihood", ["negative_binomial", "gaussian"])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_gradient_and_information_of_other_likelihoods(likelihood, missing):
    model, prior, batch, z0 = make_problem(missing=missing, likelihood=likelihood)
    _, (gradient, fisher, _), _ = expand(model, prior, batch, z0)
    leaf = z0.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_posterior(model, prior, batch, leaf).sum(), leaf)
    torch.testing.assert_close(gradient, expected.T, rtol=1e-9, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: model.rates(z[:, None], 12)[..., 0], z0[:, 1]
    ).flatten(0, 1)
    rates, dispersion = model.rates(z0, 12), model.likelihood.dispersion
    variance = dispersion + 0 * rates if likelihood == "gaussian" else rates + dispersion * rates**2
    variance = variance * model.likelihood.private_dispersion
    weight = (batch.observed() / variance)[..., 1].flatten()
    expected = jacobian.T @ (weight[:, None] * jacobian) + prior.precision
    torch.testing.assert_close(fisher[1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", DYNAMICS)
def test_covariances_go_through_the_dynamics(kind):
    model, prior, batch, z0 = make_problem(kind)
    linear, found, _ = expand(model, prior, batch, z0)
    of_bins, _ = covariances(linear, found)
    assert of_bins.shape == (5, 12, 3, 3)
    sensitivity = torch.autograd.functional.jacobian(
        lambda z: model.dynamics.rollout(z[:, None], 12)[..., 0], z0[:, 2]
    )
    expected = sensitivity @ torch.linalg.inv(found.precision[2]) @ sensitivity.transpose(1, 2)
    torch.testing.assert_close(of_bins[2], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_information_is_the_same_for_few_trials_as_for_many(missing):
    # Nine latents and 40 trials are contracted bin by bin, fewer all bins at once.
    model, prior, batch, z0 = make_problem(n_trials=40, missing=missing, n_latents=9)
    whole = expand(model, prior, batch, z0)[1]
    for rows in (torch.tensor([7]), torch.arange(31)):
        part = expand(model, prior, batch.only(rows), z0[:, rows])[1]
        torch.testing.assert_close(part.precision, whole.precision[rows])
        torch.testing.assert_close(part.gradient, whole.gradient[rows])


class Operations(TorchDispatchMode):
    """The names of what torch runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n_trials", [1, 4])
def test_information_of_few_trials_is_one_product(n_trials):
    # One product for each bin would take up to a hundred times as long.
    with Operations() as operations:
        _contracted(torch.ones(5, 9**2), torch.ones(12, 5, n_trials))
    assert operations.names.count("mm") == 1
    assert "bmm" not in operations.names


# --- refinement ----------------------------------------------------------------------------------


@given(
    seeds,
    st.sampled_from(sorted(DYNAMICS)),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.1, 1.0, 10.0]),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_no_trial_ever_gets_worse(seed, kind, missing, distance, n_latents):
    model, prior, batch, z0 = make_problem(
        kind, seed=seed % 1000, missing=missing, n_latents=n_latents, dtype=torch.float32
    )
    values = log_posterior(model, prior, batch, distance * z0)
    for max_iter in (0, 1, 3, 10):
        refined = refine(model, prior, batch, distance * z0, max_iter=max_iter)
        assert refined.isfinite().all()
        new_values = log_posterior(model, prior, batch, refined)
        slack = 1e-5 * values.abs() + 1e-4
        better = new_values >= values - slack
        assert (better | values.isnan() | (values == -math.inf)).all()
        values = new_values


@pytest.mark.parametrize(
    ("kind", "likelihood"),
    [
        ("ode", "poisson"),
        ("gru", "poisson"),
        ("residual mlp", "poisson"),
        ("ode", "negative_binomial"),
        ("ode", "gaussian"),
    ],
)
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_optimum_is_found(kind, likelihood, missing):
    model, prior, batch, z0 = make_problem(kind, missing=missing, seed=3, likelihood=likelihood)
    refined = refine(model, prior, batch, z0, max_iter=300, tol=1e-12)
    for i in range(z0.shape[1]):
        trial = some(batch, [i])

        def objective(z, trial=trial):
            leaf = torch.from_numpy(z)[:, None].requires_grad_()
            value = -log_posterior(model, prior, trial, leaf).sum()
            value.backward()
            return value.item(), leaf.grad[:, 0].numpy()

        # From where the refinement ended: a better optimum elsewhere is not its promise.
        best = minimize(objective, refined[:, i].numpy(), jac=True, tol=1e-10)
        np.testing.assert_allclose(refined[:, i], best.x, atol=1e-3)
        from_start = minimize(objective, z0[:, i].numpy(), jac=True, tol=1e-10)
        assert objective(refined[:, i].numpy())[0] <= from_start.fun + 1e-6


def test_ten_iterations_are_enough_for_float32():
    model, prior, batch, z0 = make_problem(dtype=torch.float32, n_trials=50, n_bins=40, seed=1)
    values = log_posterior(model, prior, batch, refine(model, prior, batch, z0, max_iter=10))
    best = log_posterior(model, prior, batch, refine(model, prior, batch, z0, max_iter=100, tol=0))
    assert (best - values).median() < 0.01


def test_no_iteration_leaves_the_start():
    model, prior, batch, z0 = make_problem()
    assert torch.equal(refine(model, prior, batch, z0, max_iter=0), z0)


@pytest.mark.parametrize("kind", ["ode", "gru"])
def test_a_trials_result_does_not_depend_on_its_batch(kind):
    # The last start is hopeless: it keeps its whole batch busy.
    model, prior, batch, z0 = make_problem(kind, missing=0.2, n_trials=6)
    z0[:, 5] *= 30
    together = refine(model, prior, batch, z0, max_iter=7)
    for chosen in ([0], [1, 2], [5], [3, 4, 5]):
        apart = refine(model, prior, some(batch, chosen), z0[:, chosen], max_iter=7)
        torch.testing.assert_close(apart, together[:, chosen], rtol=1e-8, atol=1e-8)


def test_a_good_trial_stops_early(monkeypatch):
    model, prior, batch, z0 = make_problem()
    calls = []
    original = newton.linearise
    monkeypatch.setattr(newton, "linearise", lambda *args: calls.append(0) or original(*args))
    optimum = refine(model, prior, batch, z0, max_iter=50, tol=1e-9)
    calls.clear()
    refine(model, prior, batch, optimum + 1e-4, max_iter=50)
    assert len(calls) <= 2


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_trials_that_are_done_cost_nothing(monkeypatch, missing):
    model, prior, batch, z0 = make_problem(n_trials=10, missing=missing)
    optimum = refine(model, prior, batch, z0, max_iter=50, tol=1e-9)
    start = torch.cat([optimum[:, :8] + 1e-4, z0[:, 8:]], dim=1)
    sizes, original = [], newton.linearise
    monkeypatch.setattr(
        newton, "linearise", lambda *args: sizes.append(len(args[2])) or original(*args)
    )
    refined = refine(model, prior, batch, start, max_iter=50)
    assert sizes[0] == 10
    assert max(sizes[2:]) <= 2
    torch.testing.assert_close(refined, optimum, rtol=1e-2, atol=1e-2)


class Doubling(Dynamics):
    """Every bin doubles the latents: after 128 bins they have left float32."""

    def step(self, z):
        return 2 * z

    def step_jacobian(self, z):
        return 2 * torch.eye(len(z))[:, :, None].expand(-1, -1, z.shape[1])


@pytest.mark.parametrize("n_bins", [30, 200])
def test_bins_after_a_trials_end_are_not_looked_at(n_bins):
    # Latents that run away after the end overflow the rates at first, then themselves.
    model = SequentialAutoencoder(
        Doubling(), make_model(n_latents=2).readout.float(), Poisson(6), None
    )
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (4, 5, 6)).astype(float)
    padded = np.pad(counts, ((0, 0), (0, n_bins - 5), (0, 0)), constant_values=np.nan)
    prior = Prior.from_samples(torch.from_numpy(rng.normal(size=(30, 2))).float())
    candidates = torch.from_numpy(rng.normal(size=(2, 50))).float()
    results = []
    for data in (counts, padded):
        batch = batch_of(data, torch.float32)
        start = best_start(model, prior, batch, candidates)
        results.append((start, refine(model, prior, batch, start, max_iter=10)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    assert not torch.equal(*results[0])


def test_a_singular_trial_does_not_spoil_its_batch():
    # Four latents that one neuron cannot tell apart, at counts that drown the prior in float32:
    # here and there rounding makes the information exactly singular.
    model = SequentialAutoencoder(
        Map(MLP(4, (3,), "relu", torch.Generator().manual_seed(0)), 1e-6),
        readout_of(torch.tensor([[1.0] * 4 + [0.0]])),
        Poisson(1),
        None,
    ).requires_grad_(False)
    counts = np.full((600, 20, 1), 1e6)
    start = math.log(1e6) / 4 + torch.randn(4, 600, generator=torch.Generator().manual_seed(0))
    prior = Prior(torch.zeros(4), torch.eye(4))
    refined = refine(model, prior, batch_of(counts, torch.float32), start, max_iter=40, tol=0)
    np.testing.assert_allclose(refined.sum(0), math.log(1e6), atol=0.01)


def test_a_start_that_overflows_is_left_finite():
    model, prior, batch, z0 = make_problem("ode", dtype=torch.float32)
    far = z0.clone()
    far[:, 0] = 1e4 * model.readout.weight[0, :-1]
    refined = refine(model, prior, batch, far, max_iter=5)
    assert refined.isfinite().all()
    expected = refine(model, prior, batch, z0, max_iter=5)
    torch.testing.assert_close(refined[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)


# --- the start -----------------------------------------------------------------------------------


@given(
    seeds,
    st.sampled_from(sorted(DYNAMICS)),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from(sorted(LIKELIHOODS)),
)
@settings(max_examples=30, deadline=None)
def test_best_start_is_the_best_of_the_candidates(seed, kind, missing, likelihood):
    model, prior, batch, _ = make_problem(
        kind, missing=missing, seed=seed % 1000, likelihood=likelihood
    )
    candidates = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 30)))
    start = best_start(model, prior, batch, candidates)
    values = torch.stack(
        [log_posterior(model, prior, batch, z[:, None].expand(3, 5)) for z in candidates.T]
    )
    torch.testing.assert_close(start, candidates[:, values.argmax(0)])


@pytest.mark.parametrize("n", [9, 10])
def test_few_candidates_are_kept_as_they_are(n):
    candidates = torch.randn(3, n, generator=torch.Generator().manual_seed(0))
    assert cover(candidates, 10) is candidates


@pytest.mark.parametrize("n_rounds", [20, 300])
def test_many_candidates_are_covered_whatever_their_order(n_rounds):
    # Ten states come round one after the other: every tenth row is the same state, but for a
    # jitter. Some hundred rounds are more rows than distances are taken of.
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 10, generator=generator)
    candidates = states.repeat(1, n_rounds) + 1e-3 * torch.randn(
        3, 10 * n_rounds, generator=generator
    )
    for order in (torch.arange(10 * n_rounds), torch.randperm(10 * n_rounds, generator=generator)):
        chosen = cover(candidates[:, order], 10)
        assert chosen.shape == (3, 10)
        assert torch.equal(cover(candidates[:, order], 10), chosen)
        nearest = torch.cdist(states.T, chosen.T).argmin(1)
        assert len(nearest.unique()) == 10


def with_known_inputs(model, batch, strength):
    """The model and a batch, driven by known inputs that differ between trials."""
    dtype = batch.counts.dtype
    generator = torch.Generator().manual_seed(3)
    inputs = Inputs(model.readout.n_latents, 2, 0, generator).to(dtype).requires_grad_(False)
    inputs.known.copy_(torch.randn(inputs.known.shape, generator=generator))
    model.inputs = inputs
    known = strength * torch.randn(len(batch.counts), 2, len(batch), generator=generator)
    return replace(batch, inputs=known.to(dtype))


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
def test_best_start_under_known_inputs(monkeypatch, likelihood, missing):
    model, prior, batch, _ = make_problem(missing=missing, likelihood=likelihood)
    batch = with_known_inputs(model, batch, 0.3)
    candidates = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 30)))
    # Some candidates at a time, with all trials.
    monkeypatch.setattr(memory, "MOST_VALUES", 6 * 12 * 8 * 5 * 7)
    start = best_start(model, prior, batch, candidates)
    values = torch.stack(
        [Point.at(model, prior, batch, z[:, None].expand(3, 5)).value for z in candidates.T]
    )
    torch.testing.assert_close(start, candidates[:, values.argmax(0)])


@pytest.mark.parametrize("strength", [None, 1e-3])
def test_start_does_not_depend_on_the_order_of_training_trials(monkeypatch, strength):
    # Two conditions that alternate: a stride through the candidates would meet one of them only.
    monkeypatch.setattr(inference, "MOST_CANDIDATES", 12)
    monkeypatch.setattr("sklearn_sae._inference.candidates.MOST_CANDIDATES_UNDER_INPUTS", 6)
    model, prior, _, _ = make_problem()
    rng = np.random.default_rng(0)
    candidates = torch.from_numpy(0.1 * rng.normal(size=(3, 120)))
    candidates[0] += torch.tensor([1.0, -1.0]).repeat(60)
    rates = model.output(candidates[:, :20], 12).exp().permute(2, 0, 1).numpy()
    batch = batch_of(rng.poisson(3 * rates).astype(float))
    model.readout.weight[:, -1] += math.log(3)
    if strength is not None:
        batch = with_known_inputs(model, batch, strength)
    start = best_start(model, prior, batch, candidates)
    assert torch.equal(start[0] > 0, candidates[0, :20] > 0)
    # Nor does a trial's start depend on those beside it.
    alone = best_start(model, prior, batch.only(torch.tensor([1])), candidates)
    assert torch.equal(alone, start[:, 1:2])


def test_under_weak_inputs_the_start_is_nearly_the_best_of_all_candidates(monkeypatch):
    model, prior, batch, _ = make_problem(n_trials=20)
    batch = with_known_inputs(model, batch, 1e-3)
    candidates = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 400)))
    of_all = torch.stack(
        [Point.at(model, prior, batch, z[:, None].expand(3, 20)).value for z in candidates.T]
    )
    monkeypatch.setattr("sklearn_sae._inference.candidates.MOST_CANDIDATES_UNDER_INPUTS", 20)
    value = Point.at(model, prior, batch, best_start(model, prior, batch, candidates)).value
    assert (of_all.max(0).values - value).max() < 1e-6


def test_candidates_are_tried_in_pieces_that_fit_in_memory(monkeypatch):
    model, prior, batch, _ = make_problem(missing=0.3)
    candidates = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 25)))
    expected = best_start(model, prior, batch, candidates)
    monkeypatch.setattr(memory, "MOST_VALUES", 12 * 6 * 4 * 7)
    sizes = []
    original = model.output
    monkeypatch.setattr(
        model, "output", lambda z0, n_bins: sizes.append(z0.shape[1]) or original(z0, n_bins)
    )
    assert torch.equal(best_start(model, prior, batch, candidates), expected)
    assert sum(sizes) == 25
    assert max(sizes) <= 7


def test_candidates_that_diverge_are_not_chosen():
    model, prior, batch, _ = make_problem("residual mlp", activation="relu", dtype=torch.float32)
    candidates = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 20))).float()
    expected = best_start(model, prior, batch, candidates)
    absurd = torch.full((3, 5), 1e30)
    assert torch.equal(
        best_start(model, prior, batch, torch.cat([absurd, candidates], 1)), expected
    )


# --- memory --------------------------------------------------------------------------------------


def test_trials_at_once():
    small, large = make_model(n_latents=2), make_model(n_latents=30, n_neurons=200)
    assert trials_at_once(small, 10) == memory.MOST_TRIALS
    assert 1 <= trials_at_once(large, 1000) < memory.MOST_TRIALS
    assert trials_at_once(large, 10**9) == 1
    assert trials_at_once(large, 2000) <= trials_at_once(large, 1000)


def test_a_gpu_may_hold_more_than_the_cpu(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    free = 80e9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80e9))
    assert most_values(cpu) == memory.MOST_VALUES
    assert most_values(gpu) == 2.5e9
    free = 1e6
    assert most_values(gpu) == memory.MOST_VALUES


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "gaussian"])
def test_log_posteriors_do_not_lose_digits_in_many_entries(likelihood):
    model, prior, batch, z0 = make_problem(
        "gru", n_bins=400, missing=0.2, dtype=torch.float32, likelihood=likelihood
    )
    point = Point.at(model, prior, batch, z0)
    terms = model.likelihood.log_density(point.output, batch.counts) * batch.observed()
    terms = terms / model.likelihood.private_dispersion
    expected = terms.double().sum((0, 1)) + prior.log_density(z0)
    torch.testing.assert_close(point.value, expected, rtol=1e-12, atol=0)
