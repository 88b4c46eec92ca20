import warnings

import numpy as np
import pytest
import torch
from common import readout_of
from scipy.linalg import subspace_angles

from sklearn_sae._data.trials import Trials
from sklearn_sae._model.likelihoods import Gaussian, Likelihood, Poisson
from sklearn_sae._model.readout import Readout
from sklearn_sae._training import initialization
from sklearn_sae._training.initialization import _principal_components, pca_start


def low_rank(n_trials=30, n_bins=40, n_neurons=12, n_latents=2, seed=0, rate=40.0):
    """Smooth rates whose logs lie in a plane, high enough that smoothing hardly bends it."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (n_trials, 1, n_latents))
    latents = np.sin(phase + 0.08 * np.arange(n_bins)[:, np.newaxis] + np.arange(n_latents))
    weight = np.linalg.qr(rng.normal(size=(n_neurons, n_latents)))[0]
    return rate * np.exp(latents @ weight.T), weight, latents


def start(array, n_latents, latent_scale=1.0, seed=0):
    trials = Trials(
        array, has_missing=any(np.isnan(trial).any() for trial in array) if len(array) else False
    )
    likelihood = Poisson(trials.n_neurons)
    return pca_start(trials, likelihood, n_latents, latent_scale, np.random.default_rng(seed))


def test_readout_is_affine_at_every_bin():
    weight, latents = torch.randn(4, 3), torch.randn(5, 2, 6)
    expected = torch.einsum("nd,tdi->tni", weight[:, :2], latents) + weight[:, 2, None]
    torch.testing.assert_close(readout_of(weight)(latents), expected)
    torch.testing.assert_close(readout_of(weight)(latents[0]), expected[0])


def test_the_subspace_of_noiseless_log_rates_is_found():
    rates, weight, _ = low_rank()
    found, _ = start(rates, 2)
    assert found.shape == (12, 3)
    assert np.rad2deg(subspace_angles(found[:, :2].numpy(), weight)).max() < 1
    np.testing.assert_allclose(found[:, 2], np.log(rates.mean((0, 1))), rtol=1e-5)


def test_a_gaussian_starts_from_the_values_themselves():
    rates, weight, _ = low_rank()
    values = np.log(rates) * np.arange(1, 13) - 100
    trials, mean = Trials(values, has_missing=False), values.mean((0, 1))
    likelihood = Gaussian(12)
    likelihood.fit_null(trials, mean)
    found, z0 = pca_start(trials, likelihood, 2, 1.0, np.random.default_rng(0))
    scaled = weight * (np.arange(1, 13) / values.std((0, 1)))[:, np.newaxis]
    assert np.rad2deg(subspace_angles(found[:, :2].numpy(), scaled)).max() < 1
    assert not found[:, 2].any()
    first = likelihood.rates(readout_of(found)(z0.T)).detach().numpy().T
    assert np.corrcoef((first - mean).ravel(), (values[:, 0] - mean).ravel())[0, 1] > 0.95


def test_principal_components_are_kept_whole():
    rates, _, _ = low_rank(n_latents=3)
    one, three = start(rates, 1)[0][:, 0], start(rates, 3)[0][:, :3]
    spans = np.rad2deg(subspace_angles(three.numpy(), one[:, np.newaxis].numpy()))
    assert spans.max() < 0.1


@pytest.mark.parametrize("latent_scale", [1.0, 0.5])
def test_latents_have_the_scale_asked_for_on_average(latent_scale):
    # Of many trials that start anywhere on their orbits, the first bin is as spread as any other.
    rates, _, _ = low_rank(n_trials=400)
    weight, z0 = start(rates, 2, latent_scale)
    assert z0.shape == (400, 2)
    np.testing.assert_allclose(z0.pow(2).mean().sqrt(), latent_scale, rtol=0.15)
    np.testing.assert_allclose(z0.mean(0), 0, atol=0.15 * latent_scale)
    assert weight.dtype == z0.dtype == torch.float32


def test_latents_beyond_the_signal_do_not_start_as_noise():
    rates, _, _ = low_rank(n_trials=200, rate=4.0)
    _, z0 = start(np.random.default_rng(1).poisson(rates), 8)
    # Two directions of signal, and little in the six others; yet no latent is without signal.
    spread = np.linalg.eigvalsh(np.cov(z0.numpy().T))[::-1]
    assert spread[2] < 0.3 * spread[1]
    assert z0.std(0).min() > 0.2


def test_initial_conditions_give_the_first_bins_rates():
    rates, _, _ = low_rank()
    weight, z0 = start(rates, 2)
    log_rates = readout_of(weight)(z0.T).detach().numpy().T
    true = np.log(rates[:, 0])
    assert np.corrcoef(log_rates.ravel(), true.ravel())[0, 1] > 0.95


def test_padding_changes_nothing():
    rates, _, _ = low_rank()
    weight, z0 = start(rates, 2)
    padded = np.pad(rates, ((0, 0), (0, 30), (0, 0)), constant_values=np.nan)
    for same in (padded, list(rates)):
        for ours, expected in zip(start(same, 2), (weight, z0), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_ragged_list_is_its_padded_form():
    rates, _, _ = low_rank()
    lengths = np.random.default_rng(1).integers(5, 41, len(rates))
    ragged = [trial[:n] for trial, n in zip(rates, lengths, strict=True)]
    padded = rates.copy()
    for trial, n in zip(padded, lengths, strict=True):
        trial[n:] = np.nan
    n_bins = lengths.max()
    for ours, expected in zip(start(ragged, 2), start(padded[:, :n_bins], 2), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_missing_entries_hardly_matter():
    rates, weight, _ = low_rank(n_trials=60)
    rng = np.random.default_rng(2)
    rates[rng.random(rates.shape) < 0.1] = np.nan
    found, z0 = start(rates, 2)
    assert found.isfinite().all()
    assert z0.isfinite().all()
    assert np.rad2deg(subspace_angles(found[:, :2].numpy(), weight)).max() < 3
    # A neuron missing from a trial altogether counts as average there.
    rates[:20, :, 3] = np.nan
    found, z0 = start(rates, 2)
    assert z0.isfinite().all()
    assert np.rad2deg(subspace_angles(found[:, :2].numpy(), weight)).max() < 10


@pytest.mark.parametrize("n_neurons", [1, 3])
def test_more_latents_than_neurons(n_neurons):
    rates, _, _ = low_rank(n_neurons=3)
    weight, z0 = start(rates[:, :, :n_neurons], 5)
    assert weight.shape == (n_neurons, 6)
    assert z0.shape == (30, 5)
    assert weight.isfinite().all()
    assert np.linalg.matrix_rank(z0.numpy(), tol=1e-4) == n_neurons
    # Every latent is read out, or it would never receive a gradient.
    assert weight[:, :5].norm(dim=0).min() > 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 10, 3)),
        np.full((4, 10, 3), 2.0),
        np.zeros((1, 2, 1)),
        np.random.default_rng(0).poisson(1.0, (1, 2, 5)),
        np.random.default_rng(0).poisson(1.0, (6, 20, 5)).astype(np.uint8),
    ],
    ids=["silent", "constant", "tiny", "one trial of two bins", "uint8"],
)
def test_poor_recordings_start_finite_and_quietly(array):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight, z0 = start(array, 3)
    assert weight.isfinite().all()
    assert z0.isfinite().all()
    assert z0.abs().max() < 10


def test_a_large_recording_is_sampled(monkeypatch):
    rates, weight, _ = low_rank(n_trials=200)
    expected, z0_expected = start(rates, 2)
    monkeypatch.setattr(initialization, "MOST_VALUES_FOR_PCA", 70 * 40 * 12)
    read = []
    whole = Trials(rates, has_missing=False)
    original = whole.read
    whole.read = lambda rows, n_bins=None: read.append(len(rows)) or original(rows, n_bins)
    found, z0 = pca_start(whole, Poisson(12), 2, 1.0, np.random.default_rng(0))
    assert read[0] == 70
    assert np.rad2deg(subspace_angles(found[:, :2].numpy(), weight)).max() < 1
    # A principal component's sign is arbitrary, so compare what is read out.
    ours, all_trials = readout_of(found)(z0.T), readout_of(expected)(z0_expected.T)
    torch.testing.assert_close(ours, all_trials, rtol=0, atol=0.3)


def test_a_neuron_missing_from_the_whole_sample_is_no_cause_for_a_warning(monkeypatch):
    rates, _, _ = low_rank(n_trials=40)
    rates[:-1, :, 2] = np.nan
    monkeypatch.setattr(initialization, "MOST_VALUES_FOR_PCA", 40 * 12)
    for seed in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            weight, z0 = start(rates, 2, seed=seed)
        assert weight.isfinite().all()
        assert z0.isfinite().all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_few_rows_have_the_components_of_their_covariance(dtype):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(8, 5)) @ rng.normal(size=(5, 30))).astype(dtype)
    rows -= rows.mean(axis=0)
    every, directions = np.linalg.eigh(rows.T @ rows / 8)
    found, ours, noise = _principal_components(rows, 3)
    np.testing.assert_allclose(found, every[:-4:-1], rtol=1e-4)
    np.testing.assert_allclose(np.abs(ours.T @ directions[:, :-4:-1]), np.eye(3), atol=1e-4)
    assert noise == pytest.approx(every[:-3].mean(), rel=1e-4)
    # Five directions of signal, and no more of any variance.
    found, ours, noise = _principal_components(rows, 7)
    assert found.shape == (5,) and ours.shape == (30, 5) and noise < 1e-6 * found.min()


def test_many_neurons_cost_no_decomposition_of_that_size(monkeypatch):
    sizes = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: sizes.append(len(a)) or eigh(a))
    rates, weight, _ = low_rank(n_trials=4, n_bins=30, n_neurons=400)
    found, z0 = start(rates, 2)
    assert np.rad2deg(subspace_angles(found[:, :2].numpy(), weight)).max() < 1
    log_rates = readout_of(found)(z0.T).detach().numpy().T
    assert np.corrcoef(log_rates.ravel(), np.log(rates[:, 0]).ravel())[0, 1] > 0.9
    # Of a single trial that is too long, bins are drawn.
    monkeypatch.setattr(initialization, "MOST_VALUES_FOR_PCA", 50 * 60)
    rates, weight, _ = low_rank(n_trials=1, n_bins=300, n_neurons=60)
    found, _ = start(rates, 2)
    assert np.rad2deg(subspace_angles(found[:, :2].numpy(), weight)).max() < 1
    assert sizes == [4 * 30, 50]


def test_the_seed_decides():
    rates, _, _ = low_rank(n_neurons=3)
    for ours, again in zip(start(rates, 5), start(rates, 5), strict=True):
        assert torch.equal(ours, again)
    assert not torch.equal(start(rates, 5)[0], start(rates, 5, seed=1)[0])


# ------------------------------------------------------------------ what any readout gives


class Bent(Readout):
    """Not linear, and only as much of a readout as the class asks for."""

    def __init__(self, weight):
        super().__init__(len(weight), weight.shape[1])
        self.weight = torch.nn.Parameter(weight)

    def forward(self, latents):
        return (self.weight @ latents).tanh()

    def jacobian(self, latents):
        slope = 1 - self(latents) ** 2
        return slope[:, :, None] * self.weight[:, :, None]

    def start_at(self, weight):
        raise NotImplementedError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def of_latents(rng):
    latents = torch.from_numpy(rng.normal(size=(4, 3, 5)))
    score, information = torch.from_numpy(rng.random((2, 4, 6, 5)))
    root = torch.from_numpy(rng.normal(size=(5, 4, 3, 3)))
    return latents, score, information, root @ root.mT


def test_a_linear_readout_has_the_formulas_of_any(rng, of_latents):
    latents, score, information, covariance = of_latents
    readout = readout_of(torch.from_numpy(rng.normal(size=(6, 4)))).requires_grad_(False)
    for ours, general in zip(
        readout.pullback(latents, score, information),
        Readout.pullback(readout, latents, score, information),
        strict=True,
    ):
        torch.testing.assert_close(ours, general)
    torch.testing.assert_close(
        readout.output_variance(latents, covariance),
        Readout.output_variance(readout, latents, covariance),
    )
    general = Readout.unit_covariance(readout, latents)
    torch.testing.assert_close(readout.unit_covariance(latents).expand_as(general), general)


def test_any_readout_pulls_back_and_carries_variance(rng, of_latents):
    latents, score, information, covariance = of_latents
    readout = Bent(torch.from_numpy(rng.normal(size=(6, 3)))).requires_grad_(False)
    leaf = latents.clone().requires_grad_()
    (expected,) = torch.autograd.grad((score * readout(leaf)).sum(), leaf)
    gradient, fisher = readout.pullback(latents, score, information)
    torch.testing.assert_close(gradient, expected.permute(0, 2, 1))
    variance = readout.output_variance(latents, covariance)
    for t, k in ((0, 0), (3, 4)):
        jacobian = torch.autograd.functional.jacobian(
            lambda z: readout(z[None, :, None])[0, :, 0], latents[t, :, k]
        )
        weighted = jacobian.T @ torch.diag(information[t, :, k]) @ jacobian
        torch.testing.assert_close(fisher[t, k], weighted)
        carried = (jacobian @ covariance[k, t] @ jacobian.T).diagonal()
        torch.testing.assert_close(variance[t, :, k], carried)
    unit = readout.output_variance(latents, readout.unit_covariance(latents))
    torch.testing.assert_close(unit.mean(1), torch.ones_like(unit[:, 0]))


def test_an_incomplete_readout_or_likelihood_fails_when_it_is_made():
    class Half(Readout):
        def forward(self, latents):
            return latents

    class Nothing(Likelihood):
        pass

    for make in (lambda: Half(3, 2), lambda: Nothing(3)):
        with pytest.raises(TypeError, match="abstract"):
            make()
