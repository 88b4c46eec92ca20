"""Standard deviations: calibrated on simulated spikes, exact where theory is."""

import numpy as np
import pytest
import torch
from common import variance_of_rollouts

from sklearn_sae import NODESAE
from sklearn_sae._data.validation import check_trials
from sklearn_sae._inference import model_variance as model_variance_module
from sklearn_sae.datasets import CustomSystem, make_chaotic_spikes


def ring(n_trials, n_bins=25, n_neurons=10, seed=0):
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, (n_trials, 1, 1)) + 0.3 * np.arange(n_bins)[:, np.newaxis]
    rates = np.exp(np.sin(phase + np.arange(n_neurons)))
    return rng.poisson(rates), rates


@pytest.fixture(scope="module")
def est():
    return NODESAE(n_latents=2, max_epochs=80, random_state=0, device="cpu").fit(ring(120)[0])


def test_intervals_cover_true_rates(est):
    spikes, true = ring(100, seed=1)
    rates, std = est.predict(spikes, return_std=True)
    np.testing.assert_array_equal(rates, est.predict(spikes))
    assert 0.80 < (np.abs(true - rates) < 1.645 * std).mean() < 0.97


def test_latents_have_std_in_the_same_metric(est):
    spikes, _ = ring(5, seed=1)
    latents, std = est.transform(spikes, return_std=True)
    np.testing.assert_array_equal(latents, est.transform(spikes))
    assert latents.shape == std.shape == (5, 25, 2)
    assert std.dtype == np.float32 and (std > 0).all()


def test_fewer_spikes_leave_more_open(est):
    spikes, _ = ring(20, seed=1)
    hidden = spikes.astype(float)
    hidden[:, 5:] = np.nan
    _, std = est.transform(spikes, return_std=True)
    _, std_hidden = est.transform(hidden, return_std=True)
    # All directions together: the dynamics may contract one of them, whatever was seen.
    open_, closed = (np.linalg.norm(s[:, -1], axis=1) for s in (std_hidden, std))
    assert (open_ > 1.2 * closed).all()
    assert np.isfinite(est.predict(hidden, return_std=True)[1]).all()


def test_ragged_trials(est):
    spikes, _ = ring(3, seed=1)
    ragged = [spikes[0], spikes[1, :12], spikes[2, :20]]
    rates, std = est.predict(ragged, return_std=True)
    assert [s.shape for s in std] == [r.shape for r in rates] == [(25, 10), (12, 10), (20, 10)]
    alone = est.predict(ragged[1][np.newaxis], return_std=True)[1]
    np.testing.assert_allclose(std[1], alone[0], rtol=1e-3)


def test_model_variance_sees_a_wrong_readout(est, rollouts):
    spikes, _ = ring(120)
    trials = check_trials(est, spikes, reset=False)
    table = torch.from_numpy(est.training_initial_conditions_)
    assert est.model_variance_ == pytest.approx(
        variance_of_rollouts(est.model_, trials, table), rel=0.2
    )
    assert 0 < est.model_variance_ < 0.02
    noise = np.random.default_rng(0).normal(0, 0.4, spikes.shape)
    rates = est.predict(spikes) * np.exp(noise)
    noisy = check_trials(est, np.random.default_rng(0).poisson(rates), reset=False)
    assert variance_of_rollouts(est.model_, noisy, table) > est.model_variance_ + 0.1


def test_some_of_many_trials_tell_the_models_variance(est, monkeypatch, rollouts):
    spikes, _ = ring(120)
    noise = np.random.default_rng(0).normal(0, 0.4, spikes.shape)
    rates = est.predict(spikes) * np.exp(noise)
    trials = check_trials(est, np.random.default_rng(0).poisson(rates), reset=False)
    table = torch.from_numpy(est.training_initial_conditions_)
    of_all = variance_of_rollouts(est.model_, trials, table)
    monkeypatch.setattr(model_variance_module, "MOST_TRIALS_FOR_VARIANCE", 50)
    chosen = np.sort(np.random.default_rng(0).permutation(120)[:50])
    of_some = variance_of_rollouts(est.model_, trials, table)
    assert of_some != of_all
    assert of_some == pytest.approx(of_all, rel=0.2)
    # What the weights add depends on all spikes there are.
    alone = variance_of_rollouts(est.model_, trials.subset(chosen), table[chosen])
    assert of_some < alone


def test_amortized_has_no_posterior():
    spikes, _ = ring(12)
    est = NODESAE(n_latents=2, inference="amortized", max_epochs=1, random_state=0).fit(spikes)
    with pytest.raises(ValueError, match='inference="semi-amortized"'):
        est.predict(spikes, return_std=True)


def van_der_pol(z):
    x, y = z[..., 0], z[..., 1]
    return np.stack([y, 1.5 * (1 - x**2) * y - x], axis=-1)


def test_calibrated_on_a_system_of_another_kind():
    # A relaxation oscillator: nothing in the model was set with it.
    data = make_chaotic_spikes(
        CustomSystem(van_der_pol, [1.0, 0.0], period=7.1),
        n_trials=150,
        n_bins=40,
        n_neurons=20,
        points_per_period=35,
        trials="independent",
        random_state=3,
    )
    est = NODESAE(n_latents=2, random_state=0).fit(data.spikes[data.train])
    unseen = np.concatenate([data.test, data.validation])
    rates, std = est.predict(data.spikes[unseen], return_std=True)
    inside = np.abs(data.rates[unseen] - rates) < 1.645 * std
    assert 0.80 < inside.mean() < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("system", ["Arneodo", "Lorenz", "Rossler"])
def test_calibrated_on_chaotic_systems(system):
    data = make_chaotic_spikes(system, random_state=0)
    est = NODESAE(random_state=0).fit(data.spikes[data.train])
    rates, std = est.predict(data.spikes[data.test], return_std=True)
    inside = np.abs(data.rates[data.test] - rates) < 1.645 * std
    assert 0.80 < inside.mean() < 0.97
