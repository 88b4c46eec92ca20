import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_sae.metrics import (
    bits_per_spike,
    co_smoothing_rates,
    co_smoothing_score,
    cycle_consistency,
    forward_prediction_score,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ragged(array, lengths):
    return [trial[:n] for trial, n in zip(array, lengths, strict=True)]


class Known(BaseEstimator):
    """Knows the true rates, and remembers what it was shown."""

    def __init__(self, rates=None, readout=None):
        self.rates = rates
        self.readout = readout

    def fit(self, X, y=None):
        self.null_rates_ = np.nanmean(np.concatenate(list(X)), axis=0)
        self.n_features_in_ = len(self.null_rates_)
        return self

    def predict(self, X):
        self.shown_ = X
        if self.rates is not None:
            return self.rates
        return [np.broadcast_to(self.null_rates_, np.shape(x)) for x in X]

    def transform(self, X):
        return self.latents

    def inverse_transform(self, latents):
        return np.exp(latents @ self.readout)


@pytest.fixture
def spiking(rng):
    rates = rng.gamma(2, size=(10, 20, 8))
    return rates, rng.poisson(rates)


def test_co_smoothing_hides_neurons(spiking):
    rates, spikes = spiking
    estimator = Known(rates).fit(spikes)
    score = co_smoothing_score(estimator, spikes)
    hidden = np.isnan(estimator.shown_).all(axis=(0, 1))
    assert hidden.sum() == 2
    np.testing.assert_array_equal(estimator.shown_[..., ~hidden], spikes[..., ~hidden])
    expected = bits_per_spike(
        rates[..., hidden], spikes[..., hidden], estimator.null_rates_[hidden]
    )
    assert score == pytest.approx(expected)
    assert score == co_smoothing_score(estimator, spikes)
    other = {co_smoothing_score(estimator, spikes, random_state=seed) for seed in range(5)}
    assert len(other) > 1
    co_smoothing_score(estimator, spikes, held_out=0.99)
    assert np.isnan(estimator.shown_).all(axis=(0, 1)).sum() == 7
    co_smoothing_score(estimator, spikes, held_out=0.01)
    assert np.isnan(estimator.shown_).all(axis=(0, 1)).sum() == 1


def test_co_smoothing_does_not_score_what_was_not_observed(spiking):
    rates, spikes = spiking
    estimator = Known(rates).fit(spikes)
    partly = spikes.astype(float)
    partly[:5] = np.nan
    score = co_smoothing_score(estimator, partly)
    estimator.rates = rates[5:]
    assert score == pytest.approx(co_smoothing_score(estimator, spikes[5:]))


class OthersMean(Known):
    """Predicts for all neurons the mean of those it is shown."""

    def predict(self, X):
        self.shown_ = [*getattr(self, "shown_", []), X]
        return [np.broadcast_to(np.nanmean(x, axis=1, keepdims=True), np.shape(x)) for x in X]


def test_co_smoothing_rates_come_from_the_other_parts(spiking):
    _, spikes = spiking
    estimator = OthersMean().fit(spikes)
    parts = [[5, 0], [1, 2, 3], [4, 6, 7]]
    rates = co_smoothing_rates(estimator, spikes, parts=parts)
    for part in parts:
        others = np.delete(spikes, part, axis=2).mean(axis=2, keepdims=True)
        np.testing.assert_allclose(
            rates[..., part], np.broadcast_to(others, rates.shape)[..., part]
        )
    as_list = co_smoothing_rates(estimator, list(spikes), parts=parts)
    assert isinstance(as_list, list)
    np.testing.assert_array_equal(as_list, rates)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_co_smoothing_hides_each_neuron_once_in_random_parts(spiking, parts):
    _, spikes = spiking
    estimator = OthersMean().fit(spikes)
    rates = co_smoothing_rates(estimator, spikes, parts=parts)
    hidden = np.array([np.isnan(shown).all(axis=(0, 1)) for shown in estimator.shown_])
    assert len(hidden) == parts
    np.testing.assert_array_equal(hidden.sum(axis=0), 1)
    assert np.ptp(hidden.sum(axis=1)) <= 1
    np.testing.assert_array_equal(rates, co_smoothing_rates(estimator, spikes, parts=parts))
    others = [
        co_smoothing_rates(estimator, spikes, parts=parts, random_state=seed)
        for seed in range(1, 5)
    ]
    # With every neuron by itself there is nothing to draw.
    assert any((rates != other).any() for other in others) == (parts < 8)


def test_forward_prediction_hides_the_last_bins(spiking):
    rates, spikes = spiking
    estimator = Known(rates).fit(spikes)
    score = forward_prediction_score(estimator, spikes, n_bins=4)
    assert np.isnan(estimator.shown_[:, 16:]).all()
    np.testing.assert_array_equal(estimator.shown_[:, :16], spikes[:, :16])
    expected = bits_per_spike(rates[:, 16:], spikes[:, 16:], estimator.null_rates_)
    assert score == pytest.approx(expected)


def test_forward_prediction_of_trials_of_unequal_length(spiking):
    rates, spikes = spiking
    lengths = [20, 6, 9, 20, 11, 12, 8, 7, 20, 15]
    estimator = Known(ragged(rates, lengths)).fit(spikes)
    score = forward_prediction_score(estimator, ragged(spikes, lengths), n_bins=5)
    assert isinstance(estimator.shown_, list)
    assert [int(np.isnan(x).all(axis=1).sum()) for x in estimator.shown_] == [5] * 10
    # The same trials, padded to one array with bins not observed
    padded = np.full(spikes.shape, np.nan)
    for i, n in enumerate(lengths):
        padded[i, :n] = spikes[i, :n]
    estimator.rates = rates
    assert forward_prediction_score(estimator, padded, n_bins=5) == pytest.approx(score)


def test_null_model_scores_zero(spiking):
    _, spikes = spiking
    estimator = Known().fit(spikes)
    assert co_smoothing_score(estimator, spikes) == pytest.approx(0, abs=1e-12)
    assert forward_prediction_score(estimator, spikes) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("scorer", [co_smoothing_score, forward_prediction_score])
def test_usable_as_scoring(spiking, scorer):
    _, spikes = spiking
    scores = cross_val_score(Known(), spikes, scoring=scorer, cv=2)
    assert np.all(np.isfinite(scores))
    pipeline = make_pipeline(FunctionTransformer(), Known()).fit(spikes)
    assert scorer(pipeline, spikes) == pytest.approx(0, abs=1e-12)
    search = GridSearchCV(pipeline, {"known__rates": [None]}, scoring=scorer, cv=2).fit(spikes)
    assert scorer(search, spikes) == pytest.approx(0, abs=1e-12)


def test_scorer_errors(spiking):
    _, spikes = spiking
    estimator = Known().fit(spikes)
    for share in (0, 1, -0.5, np.nan):
        with pytest.raises(ValueError, match="held_out must be a share"):
            co_smoothing_score(estimator, spikes, held_out=share)
    with pytest.raises(ValueError, match="2 neurons or more"):
        co_smoothing_score(estimator, spikes[..., :1])
    for parts in (1, 9, 2.0, None, "area", [np.arange(8)], [[0, 1], [2, 3]], [range(8), [0]]):
        with pytest.raises(ValueError, match="parts must"):
            co_smoothing_rates(estimator, spikes, parts=parts)
    for n_bins in (0, 2.5):
        with pytest.raises(ValueError, match="n_bins must be an integer >= 1"):
            forward_prediction_score(estimator, spikes, n_bins=n_bins)
    with pytest.raises(ValueError, match="n_bins must leave every trial an observed bin; trial 0"):
        forward_prediction_score(estimator, spikes, n_bins=20)
    with pytest.raises(ValueError, match="trial 1 ends after 0 bins"):
        forward_prediction_score(estimator, [spikes[0], np.full((9, 8), np.nan)], n_bins=2)


def test_cycle_consistency(rng):
    estimator = Known(readout=rng.normal(size=(3, 8)))
    estimator.latents = rng.normal(size=(5, 10, 3))
    assert cycle_consistency(estimator, None) == pytest.approx(1)
    estimator.latents = list(estimator.latents)
    assert cycle_consistency(estimator, None) == pytest.approx(1)
    # A latent that no neuron reads cannot be told from the rates
    estimator.readout[2] = 0
    z = np.concatenate(estimator.latents)
    fit = LinearRegression().fit(z[:, :2], z[:, 2]).predict(z[:, :2])
    lost = np.sum((z[:, 2] - fit) ** 2) / np.sum((z - z.mean(0)) ** 2)
    assert cycle_consistency(estimator, None) == pytest.approx(1 - lost)
    # One that is read faintly can, until there is noise
    estimator.readout[2] = 1e-3 * rng.normal(size=8)
    assert cycle_consistency(estimator, None) == pytest.approx(1)
    noisy = cycle_consistency(estimator, None, noise=0.1)
    assert noisy < 0.5
    assert noisy == cycle_consistency(estimator, None, noise=0.1)


def test_cycle_consistency_noise_is_in_units_of_each_log_rate(rng):
    # One neuron for each latent: every log-rate has its own scale, and noise of a tenth of it
    # leaves a hundredth of every latent's variance unexplained.
    estimator = Known(readout=np.diag([1e-2, 1.0, 4.0]))
    estimator.latents = rng.normal(size=(20, 500, 3))
    assert cycle_consistency(estimator, None, noise=0.1) == pytest.approx(0.99, abs=1e-3)


class Values(Known):
    """Rates are linear in the latents, and may be negative."""

    likelihood = "gaussian"

    def inverse_transform(self, latents):
        return latents @ self.readout


def test_cycle_consistency_of_values_needs_no_logarithm(rng):
    estimator = Values(readout=rng.normal(size=(3, 8)))
    estimator.latents = rng.normal(size=(5, 10, 3))
    assert cycle_consistency(estimator, None) == pytest.approx(1)


@pytest.mark.parametrize("scorer", [co_smoothing_score, forward_prediction_score])
def test_values_have_no_bits_per_spike(spiking, scorer):
    estimator = make_pipeline(Values()).fit(spiking[1])
    with pytest.raises(ValueError, match='likelihood="gaussian"'):
        scorer(estimator, spiking[1])


def test_cycle_consistency_errors():
    estimator = Known(readout=np.eye(3))
    with pytest.raises(ValueError, match="noise must be"):
        cycle_consistency(estimator, None, noise=-1)
