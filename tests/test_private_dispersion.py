"""What a neuron varies by on its own is measured, and does not move the latents."""

import numpy as np
import pytest
import torch
from common import CPU, batch_of, make_problem

from sklearn_sae import NODESAE, load
from sklearn_sae._data.trials import Trials
from sklearn_sae._inference import data_term
from sklearn_sae._inference.candidates import best_start
from sklearn_sae._inference.scoring import bits_gained
from sklearn_sae._model.likelihoods import LIKELIHOODS
from sklearn_sae._saving.files import read, write
from sklearn_sae._training.path_training import Model
from sklearn_sae._training.private_dispersion import WINDOW, private_dispersion

# Three neurons have a gain of their own in every trial.
PRIVATE = slice(0, 3)


def rhythm(n_trials, seed, gain_std, n_bins=40, n_neurons=10):
    """A shared rhythm, of random phase in every trial: spikes and the rates without the gains."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (n_trials, 1, 1)) + 0.3 * np.arange(n_bins)[:, np.newaxis]
    tuning = 2 * np.pi * np.arange(n_neurons) / n_neurons
    rates = 1.5 * np.exp(0.8 * np.cos(phase - tuning))
    gains = np.ones((n_trials, 1, n_neurons))
    gains[..., PRIVATE] = np.exp(rng.normal(-(gain_std**2) / 2, gain_std, (n_trials, 1, 3)))
    return rng.poisson(rates * gains), rates


@pytest.fixture(scope="module")
def drifting():
    spikes, rates = rhythm(100, 0, 0.6)
    return NODESAE(n_latents=2, max_epochs=100, random_state=0).fit(spikes), spikes, rates


def test_dispersion_is_that_of_each_neuron(drifting):
    est, spikes, rates = drifting
    sums, means = (
        np.concatenate([part.sum(1) for part in np.array_split(x, 40 // WINDOW, axis=1)])
        for x in (spikes - rates, rates)
    )
    true = np.square(sums).mean(0) / means.mean(0)
    assert (true[PRIVATE] > 8).all()
    np.testing.assert_allclose(est.dispersion_[PRIVATE], true[PRIVATE], rtol=0.25)
    np.testing.assert_allclose(est.dispersion_[3:], 1, atol=0.25)


def test_what_is_private_does_not_move_the_others(drifting, monkeypatch):
    est, spikes, _ = drifting
    new, rates = rhythm(50, 1, 0.6)
    for module in ("linear_start", "path_fit"):
        monkeypatch.setattr(f"sklearn_sae._training.{module}.WHEN_DISPERSION", ())
    without = NODESAE(n_latents=2, max_epochs=100, random_state=0).fit(spikes)
    assert (without.dispersion_ == 1).all()

    def error(model):
        return np.square(np.log(model.predict(new)[..., 3:] / rates[..., 3:])).mean()

    assert error(est) < 0.7 * error(without)


@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
def test_log_likelihoods_of_neurons_are_divided_by_it(likelihood):
    model, prior, batch, z0 = make_problem(missing=0.3, likelihood=likelihood)
    output = model.output(z0, 12).requires_grad_()
    private = model.likelihood.private_dispersion
    terms = model.likelihood.log_density(output, batch.counts) * batch.mask
    value = data_term.log_likelihood(model.likelihood, output, batch.counts, batch.mask)
    torch.testing.assert_close(value, (terms / private).sum((0, 1)))
    score, information = data_term.score_and_information(model.likelihood, output, batch)
    (gradient,) = torch.autograd.grad(value.sum(), output)
    torch.testing.assert_close(score, gradient)
    plain = model.likelihood.score_and_information(output, batch.counts)[1] * batch.mask
    torch.testing.assert_close(information, plain / private)
    a, b = data_term.natural(model.likelihood, output)
    ahead = (batch.counts * a - b) * batch.mask
    # Up to what depends on the counts alone.
    shift = (ahead.sum((0, 1)) - value).detach()
    other = output.detach() + 0.1
    moved = data_term.natural(model.likelihood, other)
    moved = ((batch.counts * moved[0] - moved[1]) * batch.mask).sum((0, 1))
    there = data_term.log_likelihood(model.likelihood, other, batch.counts, batch.mask)
    torch.testing.assert_close(moved - there, shift)


def test_starts_weigh_neurons_by_it():
    model, prior, batch, _ = make_problem()
    candidates = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 30)))
    silenced = batch_of(batch.counts.permute(2, 0, 1).numpy())
    model.likelihood.private_dispersion.fill_(1.0)
    model.likelihood.private_dispersion[:3] = 1e9
    silenced.counts[:, :3] = 100.0
    start = best_start(model, prior, silenced, candidates)
    hidden = torch.zeros_like(batch.counts, dtype=torch.bool)
    hidden[:, :3] = True
    assert torch.equal(start, best_start(model, prior, silenced.hide(hidden), candidates))


def test_scores_are_of_the_data_whatever_is_private():
    model, _, batch, z0 = make_problem()
    hidden = torch.ones_like(batch.counts, dtype=torch.bool)
    null_rates = batch.counts.mean((0, 2))
    gains = []
    for value in (1.0, 7.0):
        model.likelihood.private_dispersion.fill_(value)
        output = model.output(z0, 12)
        gains.append(bits_gained(model.likelihood, output, null_rates, batch, hidden))
    assert torch.equal(*gains)


def test_of_many_trials_some_are_measured(drifting, monkeypatch):
    est, spikes, _ = drifting
    inference = est._fitted_model.inference(CPU)
    trials = Trials(spikes, has_missing=False)
    noise = float(inference.process_noise.mean())
    table = Model(inference.model, inference.prior, noise).states_of(trials, 5)
    whole = private_dispersion(inference, trials, table, 40)
    monkeypatch.setattr("sklearn_sae._training.private_dispersion.MOST_TRIALS", 50)
    some = private_dispersion(inference, trials, table, 40)
    assert not torch.equal(whole, some)
    torch.testing.assert_close(some, whole, rtol=0.5, atol=0.0)


def test_one_neuron_has_nothing_apart():
    est = NODESAE(n_latents=1, max_epochs=20, random_state=0)
    est.fit(np.random.default_rng(0).poisson(2.0, (10, 8, 1)))
    assert est.dispersion_.tolist() == [1.0]


def test_an_encoder_leaves_it_at_one():
    spikes, _ = rhythm(10, 0, 0.6)
    est = NODESAE(n_latents=2, inference="amortized", max_epochs=20, random_state=0).fit(spikes)
    assert (est.dispersion_ == 1).all()


@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
def test_files_from_before_it_load_with_ones(likelihood, tmp_path):
    spikes, _ = rhythm(12, 0, 0.0)
    est = NODESAE(n_latents=2, likelihood=likelihood, max_epochs=3, random_state=0).fit(spikes)
    est.model_.likelihood.private_dispersion.fill_(1.0)
    path = tmp_path / "old.safetensors"
    est.save(path)
    content, arrays = read(path)
    del arrays["dispersion_"], arrays["model_.likelihood.private_dispersion"]
    arrays = {name.replace("overdispersion_", "dispersion_"): a for name, a in arrays.items()}
    write(path, content, arrays)
    loaded = load(path)
    assert (loaded.dispersion_ == 1).all()
    np.testing.assert_array_equal(loaded.predict(spikes), est.predict(spikes))
    if likelihood == "negative_binomial":
        np.testing.assert_array_equal(loaded.overdispersion_, est.overdispersion_)
