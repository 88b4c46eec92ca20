"""Known and inferred inputs: their arithmetic against dense computations, and what fits find."""

import copy

import numpy as np
import pytest
import torch
from common import DYNAMICS, expand, generator, log_posterior, make_model, make_problem
from conftest import SMALL
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV

import sklearn_sae
from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae._data.batches import Batch
from sklearn_sae._inference.newton import refine
from sklearn_sae._inference.posterior import LaplacePosterior
from sklearn_sae._inference.prior import Prior
from sklearn_sae._inference.smoother import covariances, newton_step
from sklearn_sae._model.dynamics import Flow
from sklearn_sae._model.fused_rollout import FusedSteps, rollout
from sklearn_sae._model.inputs import Inputs
from sklearn_sae._model.runge_kutta import TABLEAUS
from sklearn_sae._model.solvers import AdaptiveRungeKutta, RungeKutta
from sklearn_sae._model.state_maps import MLP
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.metrics import (
    co_smoothing_rates,
    co_smoothing_score,
    cycle_consistency,
    forward_prediction_score,
    rate_r2,
)

N_BINS, N_LATENTS, N_TRIALS, N_INFERRED = 12, 3, 5, 2


def make_inputs(n_known=0, n_inferred=N_INFERRED, variance=(0.3, 0.05), correlation=(0.7, -0.2)):
    inputs = Inputs(N_LATENTS, n_known, n_inferred, generator()).double().requires_grad_(False)
    inputs.variance.copy_(torch.tensor(variance)[:n_inferred])
    inputs.correlation.copy_(torch.tensor(correlation)[:n_inferred])
    return inputs


def make_driven(kind="ode", missing=0.0, likelihood="poisson"):
    """A model with inferred inputs, and variables away from the posterior's mode."""
    model, prior, batch, z0 = make_problem(kind, missing=missing, likelihood=likelihood)
    model.inputs = make_inputs()
    prior = Prior(prior.mean, prior.precision, model.inputs)
    inferred = (
        0.3 * torch.randn((N_BINS - 1) * N_INFERRED, N_TRIALS, generator=generator(1)).double()
    )
    return model, prior, batch, torch.cat([0.5 * z0, inferred.double()])


def dense(model, prior, batch, variables, trial):
    """Gradient and precision of all variables of a trial, by automatic differentiation."""
    leaf = variables.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_posterior(model, prior, batch, leaf).sum(), leaf)
    of_prior = torch.autograd.functional.hessian(
        lambda c: -prior.log_density(c[:, None]).sum(), variables[:, trial]
    )
    jacobian = torch.autograd.functional.jacobian(
        lambda c: model.output(c[:, None], N_BINS)[..., 0], variables[:, trial]
    )
    information = model.output(variables, N_BINS)[..., trial].exp()
    information = information / model.likelihood.private_dispersion[:, 0]
    if batch.mask is not None:
        information = information * batch.mask[..., trial]
    of_spikes = torch.einsum("tni,tn,tnj->ij", jacobian, information, jacobian)
    return gradient[:, trial], of_prior + of_spikes


# --- rollouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DYNAMICS)
def test_latents_jump_between_bins(kind):
    model = make_model(kind)
    z0 = torch.randn(N_LATENTS, 4, generator=generator()).double()
    jumps = torch.randn(6, N_LATENTS, 4, generator=generator(1)).double()
    latents = model.dynamics.rollout(z0, 7, jumps)
    assert torch.equal(latents[0], z0)
    for t in range(6):
        expected = model.dynamics.step(latents[t]) + jumps[t]
        torch.testing.assert_close(latents[t + 1], expected, rtol=0, atol=1e-12)


def test_adaptive_solvers_jump_as_fixed_steps_do():
    mlp = MLP(N_LATENTS, (8,), "tanh", generator()).double().requires_grad_(False)
    mlp.weights[-1].mul_(20)
    z0 = torch.randn(N_LATENTS, 4, generator=generator()).double()
    jumps = torch.randn(6, N_LATENTS, 4, generator=generator(1)).double()
    fixed = Flow(mlp, RungeKutta("rk4", 50), 10.0).rollout(z0, 7, jumps)
    adaptive = Flow(mlp, AdaptiveRungeKutta("dopri5", 1e-9, 1e-9), 10.0).rollout(z0, 7, jumps)
    torch.testing.assert_close(adaptive, fixed, rtol=0, atol=1e-7)


@pytest.mark.parametrize("tableau", ["euler", "rk4"])
def test_gradients_reach_the_jumps(tableau):
    mlp = MLP(2, (4,), "tanh", generator()).double()
    z0 = torch.randn(2, 3, dtype=torch.float64, generator=generator(), requires_grad=True)
    jumps = torch.randn(4, 2, 3, dtype=torch.float64, generator=generator(1), requires_grad=True)
    steps = FusedSteps(mlp.layers(), TABLEAUS[tableau], 2, 0.3)
    assert torch.autograd.gradcheck(lambda z, k: rollout(steps, z, 5, k), (z0, jumps))


# --- the linearisation, against dense algebra ----------------------------------------------------


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_newton_step_is_that_of_dense_algebra(kind, missing):
    model, prior, batch, variables = make_driven(kind, missing)
    step = newton_step(*expand(model, prior, batch, variables))
    for trial in (0, 3):
        gradient, precision = dense(model, prior, batch, variables, trial)
        expected = torch.linalg.solve(precision, gradient)
        torch.testing.assert_close(step[:, trial], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_covariances_are_those_of_dense_algebra(missing):
    model, prior, batch, variables = make_driven(missing=missing)
    linear, backwards, _ = expand(model, prior, batch, variables)
    found = covariances(linear, backwards)[0][1]
    covariance = torch.linalg.inv(dense(model, prior, batch, variables, 1)[1])
    sensitivity = torch.autograd.functional.jacobian(
        lambda c: model.rollout(c[:, None], N_BINS)[..., 0], variables[:, 1]
    )
    of_latents = sensitivity @ covariance @ sensitivity.transpose(1, 2)
    torch.testing.assert_close(found[:, :3, :3], of_latents, rtol=1e-7, atol=1e-9)
    variances = covariance.diagonal()[N_LATENTS:].unflatten(0, (N_BINS - 1, N_INFERRED))
    own = found[:-1, 3:, 3:].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(own, variances, rtol=1e-7, atol=1e-9)
    # The input of the last bin moves nothing: it is as uncertain as the prior lets it be.
    inputs = model.inputs
    expected = inputs.correlation**2 * own[-1] + inputs.innovation_std**2
    torch.testing.assert_close(found[-1, 3:, 3:].diagonal(), expected)


def test_statistics_are_expectations_under_the_posterior():
    model, prior, batch, variables = make_driven()
    found = LaplacePosterior(model, prior, batch, variables).input_statistics()
    inputs, totals = model.inputs, dict.fromkeys(("squares", "products", "news", "open"), 0.0)
    for trial in range(N_TRIALS):
        covariance = torch.linalg.inv(dense(model, prior, batch, variables, trial)[1])
        blocks = covariance[3:, 3:].reshape(N_BINS - 1, N_INFERRED, N_BINS - 1, N_INFERRED)
        second = torch.einsum("tisi->tsi", blocks)
        mean = variables[3:, trial].reshape(N_BINS - 1, N_INFERRED)
        moments = second + mean[:, None] * mean[None]
        totals["squares"] += torch.einsum("tti->i", moments)
        totals["products"] += moments.diagonal(1).sum(-1)
        whiten = torch.zeros(N_INFERRED, N_BINS - 1, N_BINS - 1).double()
        for i in range(N_INFERRED):
            whiten[i] = torch.diag(1 / inputs.innovation_std[i].expand(N_BINS - 1))
            whiten[i, 0, 0] = 1 / inputs.variance[i].sqrt()
            whiten[i] -= torch.diag(
                (inputs.correlation / inputs.innovation_std)[i].expand(N_BINS - 2), -1
            )
        totals["news"] += torch.einsum("its,si->ti", whiten, mean).square().sum(0)
        totals["open"] += torch.einsum("its,sri,itr->ti", whiten, second, whiten).sum(0)
    torch.testing.assert_close(found.squares, totals["squares"])
    torch.testing.assert_close(found.products, totals["products"])
    torch.testing.assert_close(found.squared_innovations, totals["news"])
    torch.testing.assert_close(found.determined, N_TRIALS * (N_BINS - 1) - totals["open"])
    assert (found.n_squares, found.n_products) == (N_TRIALS * 11, N_TRIALS * 10)


@pytest.mark.parametrize("kind", ["ode", "gru"])
def test_refinement_finds_the_mode(kind):
    model, prior, batch, variables = make_driven(kind, missing=0.2)
    before = log_posterior(model, prior, batch, variables)
    refined = refine(model, prior, batch, variables, max_iter=50, tol=1e-10)
    assert (log_posterior(model, prior, batch, refined) > before).all()
    leaf = refined.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_posterior(model, prior, batch, leaf).sum(), leaf)
    assert gradient.abs().max() < 1e-3


def test_damping_shortens_every_step():
    model, prior, batch, variables = make_driven()
    free = newton_step(*expand(model, prior, batch, variables))
    damped = expand(model, prior, batch, variables, torch.full((N_TRIALS,), 1e4).double())
    assert (newton_step(*damped).norm(dim=0) < 1e-2 * free.norm(dim=0)).all()


# --- the prior -----------------------------------------------------------------------------------


def test_innovations_are_standard_normal_under_the_prior():
    inputs = make_inputs()
    noise = torch.randn(4000, 11, N_INFERRED, generator=generator()).double()
    u = [noise[:, 0] * inputs.variance.sqrt()]
    for t in range(1, 11):
        u.append(inputs.correlation * u[-1] + inputs.innovation_std * noise[:, t])
    found = inputs.innovations(torch.stack(u).permute(0, 2, 1))
    torch.testing.assert_close(found.permute(2, 0, 1), noise, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(u[-1].var(0), inputs.variance, rtol=0.1)


@pytest.mark.parametrize("first", [1e-3, 1.0])
def test_evidence_finds_variance_and_correlation(first):
    """Of inputs that made the spikes, whatever the start; and none where there were none."""
    # Latents that add up their inputs: all is known of the posterior of such a model.
    model = make_model("residual mlp", n_neurons=60, n_latents=N_LATENTS)
    model.dynamics.cell.weights[-1].zero_()
    rng, n_trials, n_bins = np.random.default_rng(0), 150, 25
    true_std, true_correlation = 0.4, 0.8
    model.inputs = make_inputs(variance=(first, first), correlation=(0.5, 0.5))
    model.inputs.directions.copy_(torch.eye(N_LATENTS)[:, :2])
    u = np.zeros((n_bins - 1, N_INFERRED, n_trials))
    u[0, 0] = true_std * rng.normal(size=n_trials)
    for t in range(1, n_bins - 1):
        news = true_std * (1 - true_correlation**2) ** 0.5 * rng.normal(size=n_trials)
        u[t, 0] = true_correlation * u[t - 1, 0] + news
    variables = torch.from_numpy(
        np.concatenate([0.5 * rng.normal(size=(3, n_trials)), u.reshape(-1, n_trials)])
    )
    model.readout.weight.mul_(0.3)
    counts = rng.poisson(model.rates(variables, n_bins).permute(2, 0, 1).numpy())
    trials = sklearn_sae._data.trials.Trials(counts, has_missing=False)
    batch = trials.batch(np.arange(n_trials), torch.device("cpu"))
    batch.counts.data = batch.counts.double()
    precision = 4 * torch.eye(3).double()
    found, damping = variables[:3].clone(), torch.full((n_trials,), 1e-2).double()
    for _ in range(60):
        prior = Prior(torch.zeros(3).double(), precision, model.inputs)
        found = refine(model, prior, batch, found, max_iter=3, damping=damping)
        statistics = LaplacePosterior(model, prior, batch, found).input_statistics()
        model.inputs.learn_prior(statistics, shrink=False)
    assert abs(model.inputs.variance[0].sqrt() - true_std) < 0.1 * true_std
    assert abs(model.inputs.correlation[0] - true_correlation) < 0.1
    assert model.inputs.variance[1].sqrt() < 0.1 * true_std


def test_directions_have_unit_norm_whatever_their_weights():
    inputs = make_inputs()
    before = inputs.matrix()
    inputs.directions.mul_(7.0)
    torch.testing.assert_close(inputs.matrix(), before)
    torch.testing.assert_close(before.norm(dim=0), torch.ones(2).double())


# --- estimators with known inputs ----------------------------------------------------------------


def linear_system(n_trials=120, n_bins=25, n_neurons=25, seed=0):
    """Spikes of a damped rotation that two known stimuli push around."""
    rng = np.random.default_rng(seed)
    turn = 0.95 * np.array([[0.969, -0.247], [0.247, 0.969]])
    matrix = np.array([[0.5, 0.1], [-0.1, 0.4]])
    stimuli = np.zeros((n_trials, n_bins, 2))
    for trial in stimuli:
        for i in range(2):
            start = rng.integers(0, n_bins - 6)
            trial[start : start + rng.integers(2, 6), i] = rng.choice([-1.0, 1.0])
    latents = np.zeros((n_trials, n_bins, 2))
    latents[:, 0] = 0.5 * rng.normal(size=(n_trials, 2))
    for t in range(n_bins - 1):
        latents[:, t + 1] = latents[:, t] @ turn.T + stimuli[:, t] @ matrix.T
    kernel = 0.6 * rng.normal(size=(2, n_neurons))
    rates = np.exp(latents @ kernel - 0.7)
    return rng.poisson(rates), stimuli, latents, rates, matrix


@pytest.fixture(scope="module")
def stimulated():
    """A linear system, and a model of it that was told the stimuli."""
    data = linear_system()
    est = NODESAE(n_latents=2, hidden_sizes=(24,), max_epochs=100, random_state=0)
    return est.fit(data[0][:90], inputs=data[1][:90]), data


def test_the_matrix_of_known_inputs_is_recovered(stimulated):
    est, (spikes, stimuli, latents, rates, matrix) = stimulated
    found = est.transform(spikes[90:], inputs=stimuli[90:])
    to_true = LinearRegression().fit(found.reshape(-1, 2), latents[90:].reshape(-1, 2)).coef_
    error = to_true @ est.input_matrix_ - matrix
    assert 1 - (error**2).sum() / ((matrix - matrix.mean()) ** 2).sum() > 0.95
    assert rate_r2(rates[90:], est.predict(spikes[90:], inputs=stimuli[90:])) > 0.9


def test_forecast_follows_the_inputs_to_come(stimulated):
    est, (spikes, stimuli, _, rates, _) = stimulated
    ahead = est.forecast(spikes[90:, :15], 10, inputs=stimuli[90:])
    told_nothing = stimuli[90:].copy()
    told_nothing[:, 14:] = 0
    blind = est.forecast(spikes[90:, :15], 10, inputs=told_nothing)
    assert rate_r2(rates[90:, 15:], ahead) > rate_r2(rates[90:, 15:], blind) + 0.2


def test_simulate_is_transform_from_the_initial_conditions(stimulated):
    est, (spikes, stimuli, *_) = stimulated
    latents = est.transform(spikes[:5], inputs=stimuli[:5])
    # Little process noise is learned where there is none.
    simulated = est.simulate(latents[:, 0], 25, inputs=stimuli[:5])
    assert np.square(simulated - latents).mean() < 0.05 * latents.var()
    one = est.simulate(latents[0, 0], 25, inputs=stimuli[0])
    np.testing.assert_allclose(one, simulated[0], rtol=1e-4, atol=1e-5)


def test_scores_are_told_the_known_inputs(stimulated):
    est, (spikes, stimuli, *_) = stimulated
    X, U = spikes[90:], stimuli[90:]
    rates = co_smoothing_rates(est, X, parts=5, inputs=U)
    shown = X.astype(float)
    shown[..., :5] = np.nan
    by_hand = co_smoothing_rates(est, X, parts=[range(5), range(5, 25)], inputs=U)
    np.testing.assert_allclose(by_hand[..., :5], est.predict(shown, inputs=U)[..., :5], rtol=1e-5)
    assert rates.shape == X.shape
    wrong = U[::-1]
    for score in (co_smoothing_score, forward_prediction_score):
        assert score(est, X, inputs=U) > score(est, X, inputs=wrong) + 0.02
        with pytest.raises(ValueError, match="is given none"):
            score(est, X)
    assert cycle_consistency(est, X, inputs=U) == pytest.approx(1, abs=1e-3)
    search = GridSearchCV(NODESAE(**SMALL | {"max_epochs": 1}), {"n_latents": [2]}, cv=2)
    with config_context(enable_metadata_routing=True):
        search.estimator.set_fit_request(inputs=True).set_score_request(inputs=True)
        search.fit(X, inputs=U)
    found = search.best_estimator_
    for score in (co_smoothing_score, cycle_consistency):
        assert score(search, X, inputs=U) == score(found, X, inputs=U)
    with pytest.raises(ValueError, match="is given none"):
        cycle_consistency(est, X)


def test_inputs_in_the_place_of_y_are_noticed(stimulated):
    _, (spikes, stimuli, *_) = stimulated
    est = NODESAE(**SMALL | {"max_epochs": 1})
    with pytest.warns(UserWarning, match=r"fit\(X, inputs=\.\.\.\)") as caught:
        est.fit(spikes, stimuli)
    assert caught[0].filename == __file__
    assert est.n_inputs_in_ == 0


def test_known_inputs_are_asked_for_and_refused(stimulated):
    est, (spikes, stimuli, *_) = stimulated
    for call in (est.transform, est.predict, est.score, est.initial_conditions):
        with pytest.raises(ValueError, match=r"fitted with 2 known input\(s\), and is given none"):
            call(spikes)
    with pytest.raises(ValueError, match="X has 9 features"):
        est.transform(spikes[:, :, :9].transpose(0, 2, 1)[:, :, :9], inputs=stimuli)
    with pytest.raises(ValueError, match="zeros let the dynamics run"):
        est.simulate(np.zeros(2), 5)
    with pytest.raises(ValueError, match=r"15 bins of X\[0\] and the 10 to predict"):
        est.forecast(spikes[:, :15], 10, inputs=stimuli[:, :15])
    without = NODESAE(**SMALL | {"max_epochs": 1}).fit(spikes)
    with pytest.raises(ValueError, match="fitted without known inputs"):
        without.transform(spikes, inputs=stimuli)
    with pytest.raises(AttributeError, match="before a fit with known inputs"):
        without.input_matrix_  # noqa: B018


@pytest.mark.parametrize("inference", ["semi-amortized", "amortized"])
@pytest.mark.parametrize("cls", [NODESAE, RNNSAE])
def test_ragged_inputs_equal_their_padded_form(cls, inference):
    spikes, stimuli, *_ = linear_system(n_trials=20)
    est = cls(**SMALL | {"max_epochs": 2}, inference=inference).fit(spikes, inputs=stimuli)
    lengths = [25 - i % 5 for i in range(20)]
    padded = spikes.astype(float)
    for trial, length in zip(padded, lengths, strict=True):
        trial[length:] = np.nan
    ragged = [trial[:n] for trial, n in zip(spikes, lengths, strict=True)]
    known = [trial[:n] for trial, n in zip(stimuli, lengths, strict=True)]
    expected = est.predict(padded, inputs=stimuli)
    for i, rates in enumerate(est.predict(ragged, inputs=known)):
        np.testing.assert_allclose(rates, expected[i, : lengths[i]], rtol=1e-4)


# --- estimators with inferred inputs -------------------------------------------------------------


def pulse_driven(n_trials=200, n_bins=40, n_neurons=40, seed=0):
    """Spikes of a damped rotation, pushed for eight bins of each trial, to one of two sides."""
    rng = np.random.default_rng(seed)
    turn = 0.92 * np.array([[0.955, -0.296], [0.296, 0.955]])
    pulses = np.zeros((n_trials, n_bins))
    for pulse in pulses:
        start = rng.integers(2, n_bins - 8)
        pulse[start : start + 8] = rng.choice([-1.0, 1.0])
    latents = np.zeros((n_trials, n_bins, 2))
    latents[:, 0] = 0.7 * rng.normal(size=(n_trials, 2))
    for t in range(n_bins - 1):
        latents[:, t + 1] = latents[:, t] @ turn.T + pulses[:, t, None] * np.array([0.35, 0.15])
    rates = np.exp(latents @ (0.6 * rng.normal(size=(2, n_neurons))))
    return rng.poisson(rates), pulses, rates


@pytest.fixture(scope="module")
def pushed():
    data = pulse_driven(120, 30, 30)
    settings = {"n_latents": 2, "hidden_sizes": (32,), "max_epochs": 120, "random_state": 0}
    return NODESAE(**settings, n_inferred_inputs=1).fit(data[0][:90]), data


def test_pulses_are_found(pushed):
    est, (spikes, pulses, rates) = pushed
    inferred, std = est.infer_inputs(spikes[90:], return_std=True)
    assert inferred.shape == std.shape == (30, 30, 1)
    assert abs(np.corrcoef(inferred.ravel(), pulses[90:].ravel())[0, 1]) > 0.5
    assert (std > 0).all()
    assert (std <= 1.001 * est.inferred_input_std_).all()
    assert rate_r2(rates[90:], est.predict(spikes[90:])) > 0.85


def test_latents_are_moved_by_the_inferred_inputs(pushed):
    est, (spikes, *_) = pushed
    latents, inferred = est.transform(spikes[90:]), est.infer_inputs(spikes[90:])
    moved = est.step(latents[:, :-1]) + inferred[:, :-1] @ est.inferred_input_matrix_.T
    np.testing.assert_allclose(latents[:, 1:], moved, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(est.inferred_input_matrix_, axis=0), 1, rtol=1e-5)


def test_forecast_lets_inferred_inputs_decay(pushed):
    est, (spikes, *_) = pushed
    z = est.transform(spikes[90:])[:, -1]
    u = est.infer_inputs(spikes[90:])[:, -1]
    ahead = []
    for _ in range(4):
        z = est.step(z) + u @ est.inferred_input_matrix_.T
        u = est.inferred_input_correlation_ * u
        ahead.append(est.inverse_transform(z))
    plug_in, found = np.stack(ahead, axis=1), est.forecast(spikes[90:], 4)
    # Posterior means: those of lognormals, above their medians.
    assert ((0.9999 * plug_in < found) & (found < 2 * plug_in)).all()
    assert found.mean() > 1.001 * plug_in.mean()
    padded = np.pad(spikes[90:].astype(float), ((0, 0), (0, 4), (0, 0)), constant_values=np.nan)
    np.testing.assert_allclose(found, est.predict(padded)[:, -4:], rtol=1e-4)


def test_predicted_rates_are_posterior_means(pushed):
    est, (spikes, *_) = pushed
    plug_in = est.inverse_transform(est.transform(spikes[90:]))
    rates, std = est.predict(spikes[90:], return_std=True)
    # A lognormal's mean is above its median, the more the wider it is.
    assert (rates > plug_in).all()
    assert (rates < plug_in * (1 + (std / plug_in) ** 2)).all()
    np.testing.assert_allclose(est.predict(spikes[90:]), rates, rtol=1e-4)


def test_a_driven_model_comes_back_from_its_file(pushed, tmp_path):
    est, (spikes, *_) = pushed
    est.save(tmp_path / "driven.safetensors")
    same = sklearn_sae.load(tmp_path / "driven.safetensors")
    np.testing.assert_array_equal(same.infer_inputs(spikes[:9]), est.infer_inputs(spikes[:9]))


@pytest.mark.parametrize("stopped_after", [1, 4])
def test_a_fit_with_inputs_goes_on_from_its_checkpoint(tmp_path, monkeypatch, stopped_after):
    spikes, stimuli, *_ = linear_system(n_trials=20)
    est = NODESAE(**SMALL | {"max_epochs": 12}, n_inferred_inputs=2)
    plain = clone(est).fit(spikes, inputs=stimuli)
    est.set_params(checkpoint_path=tmp_path / "fit.ckpt", checkpoint_every=2)
    write, n_written = sklearn_sae._training.checkpoint.write, [0]

    def stopping(*arguments):
        write(*arguments)
        n_written[0] += 1
        if n_written[0] == stopped_after + 1:
            raise SystemExit

    monkeypatch.setattr(sklearn_sae._training.checkpoint, "write", stopping)
    with pytest.raises(SystemExit):
        est.fit(spikes, inputs=stimuli)
    with pytest.raises(ValueError, match="other spikes"):
        clone(est).fit(spikes, inputs=stimuli + 1)
    resumed = clone(est).fit(spikes, inputs=stimuli)
    for name, weight in plain.model_.state_dict().items():
        assert torch.equal(weight, resumed.model_.state_dict()[name]), name


def test_warm_start_goes_on_with_the_inferred_inputs(pushed):
    est, (spikes, *_) = pushed
    settings = {"warm_start": True, "learning_rate": 1e-9, "max_epochs": 10, "horizon_growth": 0}
    again = copy.deepcopy(est).set_params(**settings).fit(spikes[:90])
    np.testing.assert_allclose(again.inferred_input_std_, est.inferred_input_std_, rtol=0.2)
    assert again.model_variance_ < 2 * est.model_variance_ + 0.05


def test_bins_after_the_end_of_a_trial_say_nothing_of_inputs():
    model, prior, batch, variables = make_driven()
    short = batch.only(torch.tensor([0, 1]))
    mask = torch.ones_like(short.counts, dtype=torch.bool)
    mask[7:] = False
    cut = Batch(short.counts[:7], None, np.full(2, 7), short.rows)
    padded = Batch(short.counts * mask, mask, np.full(2, 7), short.rows)
    rows = 3 + N_INFERRED * 6
    few = variables[:rows, :2]
    u = few[3:].unflatten(0, (6, N_INFERRED))
    longer = torch.cat([few[:3], model.inputs.continued(u, 5).flatten(0, 1)])
    found = LaplacePosterior(model, prior, padded, longer).input_statistics()
    expected = LaplacePosterior(model, prior, cut, few).input_statistics()
    for name in ("squared_innovations", "determined", "squares", "products"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert (found.n_squares, found.n_products) == (expected.n_squares, expected.n_products)


def test_means_do_not_run_away_where_nothing_is_observed(pushed):
    est, (spikes, *_) = pushed
    ahead = est.forecast(spikes[90:], 100)
    assert ahead.max() < 50 * spikes.max()


def test_a_horizon_of_one_bin_leaves_inputs_alone():
    spikes, *_ = pulse_driven(20, 12, 5)
    est = NODESAE(**SMALL | {"max_epochs": 12}, n_inferred_inputs=1, horizon_start=1)
    assert np.isfinite(est.set_params(horizon_step=20).fit(spikes).score(spikes))


@pytest.mark.parametrize("likelihood", ["negative_binomial", "gaussian"])
def test_inputs_work_with_every_likelihood_and_early_stopping(likelihood):
    spikes, *_ = pulse_driven(30, 15, 8)
    est = RNNSAE(
        **SMALL | {"max_epochs": 14},
        n_inferred_inputs=2,
        likelihood=likelihood,
        early_stopping=True,
        horizon_growth=0.3,
        warm_start=True,
    ).fit(spikes)
    assert np.isfinite(est.score(spikes))
    assert len(est.validation_scores_) > 0
    assert np.isfinite(est.fit(spikes).predict(spikes)).all()


def test_what_inferred_inputs_need():
    spikes, *_ = pulse_driven(10, 12, 5)
    with pytest.raises(ValueError, match="needs the posterior"):
        NODESAE(n_inferred_inputs=1, inference="amortized").fit(spikes)
    without = NODESAE(**SMALL | {"max_epochs": 1}).fit(spikes)
    assert without.model_.inputs is None
    assert not hasattr(without, "infer_inputs")


@pytest.mark.slow
def test_pulses_are_found_well_and_rates_gain():
    spikes, pulses, rates = pulse_driven(400, 50)
    scores = {}
    for n_inferred in (0, 1):
        est = NODESAE(n_latents=2, n_inferred_inputs=n_inferred, random_state=0).fit(spikes[:320])
        scores[n_inferred] = rate_r2(rates[320:], est.predict(spikes[320:]))
    inferred = est.infer_inputs(spikes[320:])
    assert abs(np.corrcoef(inferred.ravel(), pulses[320:].ravel())[0, 1]) >= 0.8
    assert scores[1] >= scores[0] + 0.02
    again = NODESAE(n_latents=2, n_inferred_inputs=1, random_state=1).fit(spikes[:320])
    inferred = again.infer_inputs(spikes[320:])
    assert abs(np.corrcoef(inferred.ravel(), pulses[320:].ravel())[0, 1]) >= 0.8


@pytest.mark.slow
def test_inputs_vanish_where_there_are_none():
    data = make_chaotic_spikes("Arneodo", random_state=0)
    train, test = data.spikes[data.train], data.spikes[data.validation]
    scores = []
    for n_inferred in (0, 2):
        est = NODESAE(n_latents=3, n_inferred_inputs=n_inferred, random_state=0).fit(train)
        scores.append(rate_r2(data.rates[data.validation], est.predict(test)))
    latents, inferred = est.transform(test), est.infer_inputs(test)
    moved = inferred[:, :-1] @ est.inferred_input_matrix_.T
    assert (moved**2).sum() < 0.02 * (np.diff(latents, axis=1) ** 2).sum()
    undriven = est.inverse_transform(est.simulate(latents[:, 0], latents.shape[1]))
    rates = est.predict(test)
    assert ((rates - undriven) ** 2).sum() < 0.02 * ((rates - rates.mean((0, 1))) ** 2).sum()
    assert scores[1] >= scores[0] - 0.005
