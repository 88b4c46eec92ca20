"""NaN and ragged lists: what was not observed does not count, and is predicted."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import poisson
from sklearn.base import clone

from sklearn_sae import NODESAE
from sklearn_sae._data.trials import Trials
from sklearn_sae._data.validation import check_seeds
from sklearn_sae._inference.scoring import hidden_entries
from sklearn_sae._model.solvers import SOLVERS


@pytest.fixture(scope="module")
def lengths(spikes):
    lengths = np.random.default_rng(2).integers(4, 13, len(spikes))
    lengths[[3, -1]] = 12, 2
    return lengths


@pytest.fixture(scope="module")
def ragged(spikes, lengths):
    return [trial[:n_bins] for trial, n_bins in zip(spikes, lengths, strict=True)]


@pytest.fixture(scope="module")
def padded(spikes, lengths):
    padded = spikes.astype(float)
    padded[np.arange(12) >= lengths[:, np.newaxis]] = np.nan
    return padded


@pytest.fixture(scope="module", params=["semi-amortized", "amortized"])
def trained(request, spikes):
    """Trained well enough to know the rotation, on the first 18 trials."""
    estimator = NODESAE(
        n_latents=2,
        hidden_sizes=(32,),
        encoder_size=16,
        inference=request.param,
        max_epochs=150,
        device="cpu",
        random_state=0,
    )
    return estimator.fit(spikes[:18])


def assert_same_trials(ragged, padded):
    assert isinstance(ragged, list)
    for trial, whole in zip(ragged, padded, strict=True):
        np.testing.assert_allclose(trial, whole[: len(trial)], atol=1e-4)


# ------------------------------------------------------------------ ragged = padded


def test_a_ragged_list_equals_its_padded_form(estimator, ragged, padded):
    from_list, from_padded = (clone(estimator).fit(X) for X in (ragged, padded))
    np.testing.assert_allclose(from_list.loss_curve_, from_padded.loss_curve_, atol=1e-4)
    np.testing.assert_allclose(from_list.null_rates_, from_padded.null_rates_)
    for method in ("transform", "predict"):
        assert_same_trials(getattr(from_list, method)(ragged), getattr(from_padded, method)(padded))
    for method in ("score", "initial_conditions"):
        np.testing.assert_allclose(
            getattr(from_list, method)(ragged), getattr(from_padded, method)(padded), atol=1e-4
        )
    np.testing.assert_allclose(
        from_list.forecast(ragged, 3), from_padded.forecast(padded, 3), atol=1e-4
    )


def test_ragged_outputs_have_the_lengths_of_their_trials(fitted, ragged):
    latents = fitted.transform(ragged)
    assert [trial.shape for trial in latents] == [(len(trial), 2) for trial in ragged]
    rates = fitted.inverse_transform(latents)
    assert [trial.shape for trial in rates] == [trial.shape for trial in ragged]
    assert [trial.shape for trial in fitted.predict(ragged)] == [trial.shape for trial in ragged]


def test_padding_more_changes_nothing(fitted, padded):
    wider = np.pad(padded, [(0, 0), (0, 5), (0, 0)], constant_values=np.nan)
    np.testing.assert_allclose(fitted.transform(wider)[:, :12], fitted.transform(padded), atol=1e-4)
    assert fitted.score(wider) == pytest.approx(fitted.score(padded), abs=1e-4)
    np.testing.assert_allclose(fitted.forecast(wider, 2), fitted.forecast(padded, 2), atol=1e-4)


def test_trials_do_not_depend_on_their_company(fitted, holes):
    alone = np.concatenate([fitted.transform(holes[i : i + 1]) for i in range(len(holes))])
    # Sums in another order end the refinement elsewhere within its own tolerance.
    np.testing.assert_allclose(alone, fitted.transform(holes), atol=2e-3)


# ------------------------------------------------------------------ holes


def test_holes_leave_no_holes(estimator, holes):
    estimator.fit(holes)
    np.testing.assert_allclose(estimator.null_rates_, np.nanmean(holes, (0, 1)))
    for values in (
        estimator.transform(holes),
        estimator.predict(holes),
        estimator.forecast(holes, 3),
        estimator.initial_conditions(holes),
        estimator.score(holes),
        estimator.loss_curve_,
    ):
        assert np.isfinite(values).all()
    assert estimator.predict(holes).shape == holes.shape


def test_not_observed_is_not_zero(fitted, spikes):
    unseen = spikes.astype(float)
    unseen[:, ::2] = np.nan
    zeros = np.nan_to_num(unseen)
    assert np.abs(fitted.predict(unseen) - fitted.predict(zeros)).max() > 0.1


def test_fitting_skips_what_was_not_observed(estimator, spikes):
    # Trials in which a neuron was lost say nothing of it; zeros would halve its rate.
    lost = spikes.astype(float)
    lost[::2, :, 1] = np.nan
    rates = estimator.fit(lost).predict(lost)[1::2, :, 1]
    assert rates.mean() == pytest.approx(np.nanmean(lost[:, :, 1]), rel=0.2)


def test_an_unobserved_beginning_is_filled_in(estimator, spikes):
    late = spikes.astype(float)
    late[:6, :4] = np.nan
    estimator.set_params(horizon_start=3).fit(late)
    assert np.isfinite(estimator.predict(late)).all()


def test_a_lost_neuron_is_predicted_from_the_others(trained, spikes):
    test = spikes[18:].astype(float)
    blind = test.copy()
    blind[:, :, 4] = np.nan
    predicted = trained.predict(blind)[:, :, 4]
    assert np.corrcoef(predicted.ravel(), test[:, :, 4].ravel())[0, 1] > 0.5


def test_lost_bins_are_predicted_from_the_others(trained, spikes):
    test = spikes[18:].astype(float)
    blind = test.copy()
    blind[:, 5:8] = np.nan
    predicted = trained.predict(blind)[:, 5:8]
    assert np.corrcoef(predicted.ravel(), test[:, 5:8].ravel())[0, 1] > 0.4


def test_the_end_is_predicted_from_the_beginning(trained, spikes):
    test = spikes[18:]
    ahead = trained.forecast(test[:, :9], 3)
    assert np.corrcoef(ahead.ravel(), test[:, 9:].ravel())[0, 1] > 0.4


# ------------------------------------------------------------------ score


def hide(X):
    """The entries that ``score`` hides, as a boolean array, and X without them."""
    trials = Trials(X, has_missing=bool(np.isnan(X).any()))
    batch = trials.batch(np.arange(len(X)), torch.device("cpu"))
    hidden = hidden_entries(batch, 0.2).permute(2, 0, 1).numpy()
    return hidden, np.where(hidden, np.nan, X)


@pytest.mark.parametrize("with_holes", [False, True])
def test_score_is_bits_per_spike_on_entries_hidden_from_inference(
    fitted, spikes, holes, with_holes
):
    X = (holes if with_holes else spikes).astype(float)
    hidden, seen = hide(X)
    counts, rates = X[hidden], fitted.predict(seen)[hidden]
    null_rates = np.broadcast_to(fitted.null_rates_, X.shape)[hidden]
    gain = poisson.logpmf(counts, rates).sum() - poisson.logpmf(counts, null_rates).sum()
    expected = gain / np.log(2) / counts.sum()
    assert fitted.score(X) == pytest.approx(expected, abs=1e-4)


def test_score_hides_a_fifth_of_each_trials_neurons(holes):
    hidden, _ = hide(holes)
    observed = ~np.isnan(holes)
    neurons = hidden.any(axis=1)
    assert np.array_equal(hidden, observed & neurons[:, np.newaxis])
    assert (neurons.sum(axis=1) == np.maximum(1, np.round(0.2 * observed.any(1).sum(1)))).all()
    # Neither the same neurons in every trial, nor others at the next call.
    assert not np.array_equal(hidden[0], hidden[1])
    assert np.array_equal(hidden, hide(holes)[0])


def test_score_of_the_null_model_is_zero(fitted, spikes):
    null = copy.deepcopy(fitted)
    with torch.no_grad():
        null.model_.readout.weight.zero_()
        null.model_.readout.weight[:, -1] = torch.from_numpy(np.log(fitted.null_rates_))
    assert null.score(spikes) == pytest.approx(0, abs=1e-6)


def test_score_is_a_pure_function_of_X(fitted, spikes):
    assert fitted.score(spikes) == fitted.score(spikes.copy(), np.arange(24))
    assert isinstance(fitted.score(spikes), float)


def test_score_is_above_null_on_new_trials(trained, spikes):
    assert trained.score(spikes[18:]) > 0.2


# ------------------------------------------------------------------ one model behind all methods


def test_latents_start_at_the_initial_condition_and_follow_the_step(fitted, holes):
    if hasattr(fitted, "process_noise_"):
        pytest.skip("latents leave the dynamics by process noise")
    latents = fitted.transform(holes)
    z0 = fitted.initial_conditions(holes)
    np.testing.assert_allclose(latents[:, 0], z0, atol=1e-6)
    np.testing.assert_allclose(fitted.step(latents[:, :-1]), latents[:, 1:], atol=1e-4)
    np.testing.assert_allclose(fitted.simulate(z0, 12), latents, atol=1e-4)
    np.testing.assert_allclose(fitted.simulate(z0[0], 12), latents[0], atol=1e-4)


def test_predict_is_the_inverse_transform_of_transform(fitted, holes):
    if hasattr(fitted, "process_noise_"):
        pytest.skip("latents leave the dynamics by process noise")
    latents = fitted.transform(holes)
    np.testing.assert_allclose(
        fitted.inverse_transform(latents), fitted.predict(holes), rtol=1e-4, atol=1e-5
    )
    weight = fitted.model_.readout.weight.numpy()
    rates = np.exp(latents @ weight[:, :-1].T + weight[:, -1])
    np.testing.assert_allclose(fitted.predict(holes), rates, rtol=1e-4)


def test_forecast_continues_each_trials_rollout(fitted, ragged):
    if hasattr(fitted, "process_noise_"):
        pytest.skip("latents leave the dynamics by process noise")
    ahead = fitted.forecast(ragged, 4)
    z0 = fitted.initial_conditions(ragged)
    for trial, start, rates in zip(ragged, z0, ahead, strict=True):
        latents = fitted.simulate(start, len(trial) + 4)
        np.testing.assert_allclose(
            rates, fitted.inverse_transform(latents[-4:]), rtol=1e-3, atol=1e-4
        )


def test_forecast_is_predict_on_unobserved_bins_to_come(fitted, spikes):
    longer = np.pad(spikes.astype(float), [(0, 0), (0, 3), (0, 0)], constant_values=np.nan)
    np.testing.assert_allclose(
        fitted.forecast(spikes, 3), fitted.predict(longer)[:, 12:], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [*((solver, False) for solver in SOLVERS), ("midpoint", True), ("dopri5", True)],
)
def test_a_state_has_one_successor_whichever_way_it_is_asked_for(spikes, solver, adjoint, rollouts):
    spikes = spikes[:10]
    model = NODESAE(n_latents=2, hidden_sizes=(8,), max_epochs=1, random_state=0, device="cpu")
    model.set_params(solver=solver, adjoint=adjoint, max_refine_iter=2).fit(spikes)
    with torch.no_grad():  # fast enough for trials to differ in the steps that they need
        model.model_.dynamics.mlp.weights[-1].mul_(60)
    latents = model.transform(spikes)
    assert np.abs(np.diff(latents, axis=1)).max() > 0.5
    np.testing.assert_allclose(model.step(latents[:, :-1]), latents[:, 1:], atol=1e-4)
    np.testing.assert_allclose(model.step(latents[5, 3]), latents[5, 4], atol=1e-4)
    onwards = model.simulate(latents[:, 0], 15)
    np.testing.assert_allclose(onwards[:, :12], latents, atol=1e-4)
    np.testing.assert_allclose(model.simulate(latents[5, 0], 15), onwards[5], atol=1e-4)
    ahead = model.inverse_transform(onwards[:, 12:])
    np.testing.assert_allclose(model.forecast(spikes, 3), ahead, rtol=1e-3)
    np.testing.assert_allclose(model.forecast(spikes[5:6], 3)[0], ahead[5], rtol=1e-3)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4", "dopri5"])
def test_the_step_integrates_the_vector_field_over_one_bin(node, spikes, solver, rollouts):
    node.set_params(solver=solver, max_epochs=5, rtol=1e-6, atol=1e-6).fit(spikes)
    z = node.transform(spikes)[:, 3]
    field = node.vector_field
    if solver == "euler":
        expected = z + field(z)
    elif solver == "midpoint":
        expected = z + field(z + field(z) / 2)
    else:
        expected = z.copy()
        for _ in range(100):
            expected += 0.01 * field(expected + 0.005 * field(expected))
    np.testing.assert_allclose(node.step(z), expected, atol=1e-4)


# --- neurons that never fired in fit -------------------------------------------------------------

SILENT = [1, 4]


def with_silent(spikes, value):
    """The trials with other counts of the neurons that the fits below never saw fire."""
    changed = spikes.astype(float)
    changed[:, :, SILENT] = value
    return changed


ANSWERS = {
    "initial_conditions": lambda est, X: est.initial_conditions(X),
    "transform": lambda est, X: est.transform(X),
    "transform, list": lambda est, X: np.concatenate(est.transform([*X])),
    "predict": lambda est, X: est.predict(X),
    "score": lambda est, X: est.score(X),
    "forecast": lambda est, X: est.forecast(X, 3),
}
WITH_STD = {
    "transform, std": lambda est, X: np.stack(est.transform(X, return_std=True)),
    "predict, std": lambda est, X: np.stack(est.predict(X, return_std=True)),
}


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_neurons_silent_in_fit_count_as_unobserved(estimator, spikes, likelihood):
    estimator.set_params(max_epochs=3, likelihood=likelihood).fit(with_silent(spikes, 0)[:18])
    methods = ANSWERS | (WITH_STD if estimator.inference == "semi-amortized" else {})
    unobserved, loud = with_silent(spikes, np.nan)[18:], with_silent(spikes, 5)[18:]
    for name, answer in methods.items():
        expected = answer(estimator, unobserved)
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(answer(estimator, loud), expected, err_msg=name)


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_a_warm_start_is_not_led_astray_by_neurons_silent_before(
    node, spikes, likelihood, rollouts
):
    node.set_params(max_epochs=20, likelihood=likelihood).fit(with_silent(spikes, 0)[:18])
    # Steps of no length leave the trials where the fit begins.
    node.set_params(warm_start=True, max_epochs=1, learning_rate=1e-9)
    starts = []
    for value in (np.nan, 5):
        again = copy.deepcopy(node).fit(with_silent(spikes, value)[18:])
        starts.append(again.training_initial_conditions_)
    np.testing.assert_allclose(*starts, atol=1e-5)


def test_a_signal_whose_mean_is_zero_is_observed(node, spikes, rollouts):
    signals = with_silent(spikes - spikes.mean(), 0)
    node.set_params(max_epochs=3, likelihood="gaussian").fit(signals[:18])
    z0 = node.initial_conditions(signals[18:])
    assert np.abs(z0 - node.initial_conditions(with_silent(signals, 5)[18:])).max() > 1e-3


@pytest.mark.parametrize("settings", [{"early_stopping": True}, {"n_init": 2}])
def test_models_are_not_judged_by_neurons_silent_in_fit(estimator, spikes, settings, rollouts):
    estimator.set_params(max_epochs=12, **settings)
    trials = Trials(np.zeros((len(spikes), 1, 1)), has_missing=False)
    held_out = estimator._split(trials, check_seeds(0, 2))[1].rows
    scores = []
    for value in (np.nan, 5):
        data = with_silent(spikes, 0)
        data[held_out] = with_silent(spikes, value)[held_out]
        estimator.fit(data)
        scores.append(getattr(estimator, "init_scores_", None))
        if estimator.early_stopping:
            scores[-1] = estimator.validation_scores_
    assert len(scores[0]) > 1 and np.isfinite(scores[0]).all()
    np.testing.assert_array_equal(*scores)
