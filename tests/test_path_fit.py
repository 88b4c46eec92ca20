"""Fits on paths: what is chosen, what noise is found, and how they go on."""

import warnings

import numpy as np
import pytest
import torch
from conftest import SMALL
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae._training.path_training import PathTraining
from sklearn_sae.datasets import make_chaotic_spikes
from sklearn_sae.metrics import rate_r2


def ring(n_trials, noise, seed=0, n_bins=30, n_neurons=12):
    """A phase that turns at its own speed, with noise: its spikes, and their rates."""
    rng = np.random.default_rng(seed)
    steps = 0.3 + noise * rng.normal(size=(n_trials, n_bins))
    phase = rng.uniform(0, 2 * np.pi, (n_trials, 1)) + np.cumsum(steps, axis=1)
    tuning = 2 * np.pi * np.arange(n_neurons) / n_neurons
    rates = 2 * np.exp(np.cos(phase[..., np.newaxis] - tuning))
    return rng.poisson(rates), rates


def test_more_noise_is_found_where_there_is_more():
    quiet, noisy = (
        NODESAE(n_latents=2, hidden_sizes=(16,), random_state=0).fit(ring(60, noise)[0])
        for noise in (0.0, 0.3)
    )
    assert noisy.process_noise_.shape == (2,)
    assert noisy.process_noise_.mean() > 1.5 * quiet.process_noise_.mean()
    assert noisy.initial_covariance_.shape == (2, 2)


def test_a_nonlinear_field_is_kept_where_it_predicts_better():
    data = make_chaotic_spikes("Lorenz", n_trials=60, random_state=0)
    est = NODESAE(n_latents=3, max_epochs=24, random_state=0).fit(data.spikes[:50])
    assert np.abs(est.model_.dynamics.mlp.weights[-1][:, :-1].numpy()).max() > 0
    assert est.best_validation_score_ > 1.05 * est.validation_scores_[0]
    # The first round, and as many epochs again as were best.
    assert est.n_iter_ == len(est.loss_curve_) > 24
    assert est.validation_epochs_ == [0, 4, 8, 12, 16, 20, 24]
    assert rate_r2(data.rates[50:], est.predict(data.spikes[50:])) > 0.93


def test_a_linear_system_is_kept_where_nothing_predicts_better():
    est = NODESAE(n_latents=2, hidden_sizes=(16,), random_state=0).fit(ring(40, 0.2)[0])
    assert (est.model_.dynamics.mlp.weights[-1][:, :-1] == 0).all()
    assert est.best_validation_score_ == est.validation_scores_[0]
    z = np.random.default_rng(0).normal(size=(3, 2))
    middle = est.step((z[:1] + z[1:2]) / 2)
    np.testing.assert_allclose(middle, (est.step(z[:1]) + est.step(z[1:2])) / 2, atol=1e-4)


@pytest.mark.parametrize("est", [NODESAE(hidden_sizes=()), RNNSAE(cell="mlp", hidden_sizes=())])
def test_without_hidden_layers_dynamics_are_linear(est):
    spikes, rates = ring(60, 0.2)
    est = clone(est).set_params(n_latents=2, random_state=0).fit(spikes[:40])
    assert est.n_iter_ == 0 and est.loss_curve_ == []
    assert est.validation_epochs_ == [0]
    assert est.score(spikes[40:]) > 0.25
    z = np.random.default_rng(0).normal(size=(2, 2))
    middle = est.step(z.mean(0, keepdims=True))
    np.testing.assert_allclose(middle[0], est.step(z).mean(0), atol=1e-4)


def test_cells_that_cannot_be_linear_learn_from_its_latents():
    spikes, _ = ring(60, 0.05)
    est = RNNSAE(n_latents=4, random_state=0, max_epochs=30).fit(spikes[:50])
    assert est.score(spikes[50:]) > 0.25


def test_early_stopping_stops_when_the_score_no_longer_rises():
    spikes, _ = ring(40, 0.2)
    settings = SMALL | {"max_epochs": 60}
    est = NODESAE(**settings, early_stopping=True, n_iter_no_change=10).fit(spikes)
    whole = NODESAE(**settings).fit(spikes)
    assert est.n_iter_ < whole.n_iter_
    n = len(est.validation_scores_)
    assert est.validation_scores_ == whole.validation_scores_[:n]


def test_of_several_models_the_one_that_predicts_best_is_kept(spikes):
    est = NODESAE(**SMALL | {"max_epochs": 12}, n_init=3).fit(spikes)
    assert est.init_scores_.shape == (3,)
    assert est.best_validation_score_ == est.init_scores_.max()
    again = clone(est).fit(spikes)
    np.testing.assert_array_equal(again.predict(spikes), est.predict(spikes))


def test_one_that_diverges_leaves_the_others_alone(spikes, monkeypatch):
    epoch, seeds = PathTraining.epoch, []

    def broken(self, *args):
        loss = epoch(self, *args)
        seeds.append(self.generator.initial_seed())
        if seeds[-1] != seeds[0]:
            for weight in self.model.network.generative_parameters():
                weight.data.fill_(torch.nan)
            return float("nan")
        return loss

    monkeypatch.setattr(PathTraining, "epoch", broken)
    est = NODESAE(**SMALL | {"max_epochs": 6}, n_init=2)
    with pytest.warns(ConvergenceWarning, match="1 of 2 models diverged"):
        est.fit(spikes)
    assert np.isfinite(est.init_scores_[0]) and np.isnan(est.init_scores_[1])
    assert np.isfinite(est.predict(spikes)).all()
    monkeypatch.setattr(PathTraining, "epoch", lambda self, *args: float("nan"))
    with pytest.raises(FloatingPointError, match="loss became nan in epoch 1"):
        clone(est).fit(spikes)


def test_a_warm_start_goes_on_with_weights_and_noise(spikes):
    est = NODESAE(**SMALL | {"max_epochs": 12}, warm_start=True).fit(spikes)
    noise, rates = est.process_noise_, est.predict(spikes)
    est.set_params(max_epochs=1, learning_rate=1e-9).fit(spikes)
    np.testing.assert_array_equal(est.process_noise_, noise)
    np.testing.assert_allclose(est.predict(spikes), rates, rtol=0.05, atol=0.02)
    loss = est.loss_curve_[-1]
    # It stands where the last fit ended, and is trained on.
    est.set_params(max_epochs=30, learning_rate=0.01).fit(spikes)
    assert est.loss_curve_[-30] == pytest.approx(loss, rel=0.02)
    assert est.loss_curve_[-1] != est.loss_curve_[-30]


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "gaussian"])
def test_any_data_that_can_be_fitted_are(likelihood):
    rng = np.random.default_rng(0)
    settings = {"n_latents": 2, "max_epochs": 3, "random_state": 0, "likelihood": likelihood}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for shape in ((1, 30, 4), (2, 2, 3), (5, 2, 1), (1, 2, 1), (3, 250, 2)):
            data = rng.poisson(2.0, shape).astype(float)
            est = NODESAE(**settings).fit(data)
            assert np.isfinite(est.predict(data)).all()
            assert np.isfinite(est.transform(data)).all()


@pytest.mark.slow
@pytest.mark.parametrize("system", ["Lorenz", "Arneodo", "Rossler"])
def test_deterministic_chaos_is_found_from_a_linear_start(system):
    data = make_chaotic_spikes(system, n_trials=520, random_state=0)
    est = NODESAE(random_state=0).fit(data.spikes[:320])
    assert rate_r2(data.rates[320:], est.predict(data.spikes[320:])) > 0.985
    assert (est.process_noise_ < 0.02).all()
