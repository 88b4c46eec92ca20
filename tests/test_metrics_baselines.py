import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from sklearn.linear_model import PoissonRegressor

from sklearn_sae.metrics import _baselines as module
from sklearn_sae.metrics import baselines, bits_per_spike, co_smoothing_rates


def simulate(rng, n_trials, n_bins, n_neurons, n_shared=2):
    """Counts whose log-rates are linear in slow Gaussian signals that all neurons share."""
    white = rng.normal(size=(n_trials, n_bins, n_shared))
    shared = gaussian_filter1d(white, 2, axis=1, mode="wrap") * np.sqrt(2 * np.sqrt(np.pi) * 2)
    weights = 0.5 * np.random.default_rng(0).normal(size=(n_shared, n_neurons))
    rates = np.exp(shared @ weights)
    return rates, rng.poisson(rates).astype(float)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture(autouse=True)
def few_settings(monkeypatch):
    """For time; the docstring's example tries all."""
    monkeypatch.setattr(module, "WIDTHS", (1.0, 4.0))
    monkeypatch.setattr(module, "ALPHAS", (1.0, 0.1))


@pytest.fixture
def split(rng):
    _, spikes = simulate(rng, 16, 15, 8)
    return spikes[:12], spikes[12:]


def without_psth(found):
    return {name: value for name, value in found.items() if name != "psth"}


def test_names_and_types(split):
    found = baselines(*split)
    assert isinstance(found, dict)
    assert list(found) == ["mean", "psth", "regression", "factor_analysis"]
    assert all(type(value) is float for value in found.values())
    assert found.mean == 0.0
    assert found.regression == found["regression"]


def test_psth_is_the_mean_of_training_trials_and_one_more_of_constant_rates():
    # Two neurons, one bin with 2 and 4 spikes, one with none: the constant rates are 1.5.
    train = np.array([[[2, 0], [0, 4]], [[4, 0], [0, 2]]])
    test = np.array([[[3, 1], [0, 3]]])
    rates = np.array([[[7.5 / 3, 0.5], [0.5, 7.5 / 3]]])
    expected = bits_per_spike(rates, test, [1.5, 1.5])
    assert baselines(train, test, parts=2).psth == pytest.approx(expected)


def test_psth_of_conditions_and_of_bins_not_observed(split):
    train, test = (x.copy() for x in split)
    train[2, 3:5] = np.nan
    train[:, 7, 1] = np.nan
    labels = np.repeat(["a", "b", "c"], 4), np.array(["c", "a", "b", "unseen"])
    null_rates = np.nanmean(train, axis=(0, 1))
    expected = np.empty(test.shape)
    for i, label in enumerate(labels[1]):
        for b in range(test.shape[1]):
            for n in range(test.shape[2]):
                y = train[labels[0] == label, b, n]
                y = np.append(y[~np.isnan(y)], null_rates[n])
                expected[i, b, n] = y.mean()
    np.testing.assert_allclose(expected[3], np.broadcast_to(null_rates, expected[3].shape))
    found = baselines(train, test, conditions=labels).psth
    assert found == pytest.approx(bits_per_spike(expected, test, null_rates))
    assert found != baselines(train, test).psth


def test_regression_is_scikit_learns_on_smoothed_roots(split, monkeypatch):
    monkeypatch.setattr(module, "WIDTHS", (1.5,))
    monkeypatch.setattr(module, "ALPHAS", (0.3,))
    train, test = split
    groups = [[0, 3], [1, 2, 6], [4, 5, 7]]

    # Smoothed by hand: weights of what is there, scaled to a sum of 1
    bins = np.arange(train.shape[1])
    window = np.exp(-((bins - bins[:, None]) ** 2) / (2 * 1.5**2))
    window[np.abs(bins - bins[:, None]) > 6] = 0  # four standard deviations
    window /= window.sum(axis=1, keepdims=True)
    x, new = ((window @ np.sqrt(counts)).reshape(-1, 8) for counts in split)
    mean, std = x.mean(axis=0), x.std(axis=0)
    x, new = (x - mean) / std, (new - mean) / std
    rates = np.empty(new.shape)
    for group in groups:
        shown = np.setdiff1d(np.arange(8), group)
        for n in group:
            model = PoissonRegressor(alpha=0.3, tol=1e-8).fit(
                x[:, shown], train[..., n].reshape(-1)
            )
            rates[:, n] = model.predict(new[:, shown])

    expected = bits_per_spike(rates, test.reshape(-1, 8), train.mean(axis=(0, 1)))
    found = baselines(train, test, parts=groups).regression
    assert found == pytest.approx(expected, abs=1e-4)


def test_parts_are_those_of_co_smoothing_rates(split, monkeypatch):
    drawn = []
    original = module.neuron_parts

    def remember(*args):
        drawn.append(original(*args))
        return drawn[-1]

    monkeypatch.setattr(module, "neuron_parts", remember)
    baselines(*split, parts=3, random_state=5)

    class Others:
        def predict(self, X):
            hidden.append(np.flatnonzero(np.isnan(X).all(axis=(0, 1))))
            return np.zeros(X.shape)

    hidden = []
    co_smoothing_rates(Others(), split[1], parts=3, random_state=5)
    assert [sorted(part) for part in drawn[0]] == [part.tolist() for part in hidden]


def test_shared_signals_are_found(rng):
    _, train = simulate(rng, 60, 30, 20)
    rates, test = simulate(rng, 30, 30, 20)
    found = baselines(train, test)
    oracle = bits_per_spike(rates, test, train.mean(axis=(0, 1)))
    # Signals differ from trial to trial, so that the bin tells nothing.
    assert found.psth < 0.01
    assert 0.6 * oracle < found.regression < oracle
    assert 0.6 * oracle < found.factor_analysis < oracle


def test_what_is_locked_to_the_bin_is_in_the_psth(rng):
    rates = np.exp(rng.normal(size=(20, 8)))
    train, test = (rng.poisson(rates, (n, 20, 8)) for n in (60, 30))
    oracle = bits_per_spike(np.broadcast_to(rates, test.shape), test, train.mean(axis=(0, 1)))
    assert baselines(train, test).psth == pytest.approx(oracle, rel=0.05)


def test_noise_predicts_nothing(rng):
    train, test = (rng.poisson(0.7, (n, 25, 12)) for n in (60, 30))
    for value in baselines(train, test).values():
        assert value == pytest.approx(0, abs=0.02)


def test_rates_are_bounded_where_activity_was_never_seen(split):
    train, test = split
    test = test.copy()
    test[0, 5] = 300 * (test[0, 5] + 1)
    found = baselines(train, test)
    assert found.regression > -1
    assert found.factor_analysis > -1


def test_deterministic(split):
    state = np.random.get_state()[1].copy()
    first = baselines(*split)
    assert first == baselines(*split)
    assert first == baselines(*split, random_state=np.random.RandomState(0))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert first.regression != baselines(*split, random_state=1).regression
    integers = [x.astype(np.uint8) for x in split]
    assert first == baselines(*integers)


@pytest.mark.parametrize("ends", [15, 9])
def test_padding_with_nan_is_trials_of_unequal_length(split, ends):
    lengths = [15, 7, ends, 12, 15, 8, 15, 10, 11, 15, 15, 14], [15, 6, ends, 15]
    pieces = [
        [x[:n] for x, n in zip(trials, ns, strict=True)]
        for trials, ns in zip(split, lengths, strict=True)
    ]
    padded = []
    for trials, ns in zip(split, lengths, strict=True):
        padded.append(
            np.where(np.arange(15)[:, None] < np.array(ns)[:, None, None], trials, np.nan)
        )
    unequal, filled = baselines(*pieces), baselines(*padded)
    assert "psth" not in unequal
    assert "psth" in filled
    assert without_psth(unequal) == pytest.approx(without_psth(filled), rel=1e-9)


def test_trials_not_observed_are_left_out(split):
    train, test = split
    gone = np.full((1, 15, 8), np.nan)
    wider = np.concatenate([train[:5], gone, train[5:]]), np.concatenate([gone, test])
    labels = np.arange(12) % 2, np.arange(4) % 2
    expected = baselines(train, test, conditions=labels)
    labels = np.insert(labels[0], 5, 7), np.insert(labels[1], 0, 7)
    assert baselines(*wider, conditions=labels) == pytest.approx(expected, rel=1e-9)


def test_a_shown_neuron_not_observed_counts_as_its_mean(split):
    train, test = (x.copy() for x in split)
    parts = [[0, 1, 2, 3], [4, 5, 6, 7]]

    # A neuron that is never observed is as one that is not there.
    for x in (train, test):
        x[..., 7] = np.nan
    expected = baselines(train[..., :7], test[..., :7], parts=[[0, 1, 2, 3], [4, 5, 6]])
    assert baselines(train, test, parts=parts) == pytest.approx(expected, rel=1e-6)

    # Nothing was observed of the shown half of a test: the hidden half is near its constant rates.
    train, test = (x.copy() for x in split)
    test[..., :4] = np.nan
    assert abs(baselines(train, test, parts=parts).regression) < 0.05


def test_entries_not_observed_are_neither_fitted_nor_scored(split):
    train, test = (x.copy() for x in split)
    hole = np.random.default_rng(2).random(train.shape) < 0.2
    train[hole] = np.nan
    test[hole[:4]] = np.nan
    whole, holes = baselines(*split), baselines(train, test)
    assert all(np.isfinite(list(holes.values())))
    assert holes.regression == pytest.approx(whole.regression, abs=0.1)


def test_neurons_silent_in_training_are_not_scored(split):
    train, test = (x.copy() for x in split)
    parts = [[0, 1, 2, 3], [4, 5, 6, 7]]
    train[..., 2] = 0
    found = baselines(train, test, parts=parts)
    test[..., 2] = np.nan
    assert found == baselines(train, test, parts=parts)
    # Silent in most, so that some folds have none of its spikes
    train[-1, -1, 2] = 1
    test[..., 2] = 0
    assert np.isfinite(list(baselines(train, test, parts=parts).values())).all()


@pytest.mark.parametrize("n_bins", [1, 2, 15])
@pytest.mark.parametrize("n_neurons", [2, 8])
def test_few_trials(split, n_bins, n_neurons):
    train, test = (x[:, :n_bins, :n_neurons] for x in split)
    test = test.copy()
    test[0, 0] = 1
    train[:2, 0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = baselines(train[:2], test[:1], parts=2)
    assert list(found) == ["mean", "psth", "regression", "factor_analysis"]
    assert np.isfinite(list(found.values())).all()


def test_few_trials_of_many_neurons(monkeypatch):
    monkeypatch.setattr(module, "ALPHAS", (1.0, 0.01))  # the weak one overflows
    rng = np.random.default_rng(0)
    train, test = (rng.poisson(0.1, (n, 10, 60)) for n in (2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = baselines(train, test)
    assert np.isfinite(list(found.values())).all()


def test_without_a_shown_neuron_that_varies_rates_are_constant():
    train = np.zeros((6, 8, 5))
    train[::2, ::3, 0] = 1
    found = baselines(train, train[:2], parts=5)
    assert found.regression == pytest.approx(0, abs=1e-12)
    assert found.factor_analysis == pytest.approx(0, abs=1e-12)


def test_no_more_neurons_choose_than_needed(split, monkeypatch):
    asked = []
    original = module._regress

    def count(x, y, new, alphas):
        asked.append(len(alphas))
        return original(x, y, new, alphas)

    monkeypatch.setattr(module, "_regress", count)
    monkeypatch.setattr(module, "N_CHOOSING", 3)
    baselines(*split)
    # Of both methods: every neuron once at last, three for each width and fold before
    assert asked.count(1) == 2 * 8
    assert asked.count(len(module.ALPHAS)) == 2 * 3 * 3 * len(module.WIDTHS)


def test_errors(split):
    train, test = split
    for changed in (-train, np.where(train > 0, np.inf, train)):
        with pytest.raises(ValueError, match="X_train must hold counts, finite and >= 0"):
            baselines(changed, test)
        with pytest.raises(ValueError, match="X_test must hold counts"):
            baselines(train, changed)
    with pytest.raises(ValueError, match="same dimensions, got 8 and 7"):
        baselines(train, test[..., :7])
    for few in (train[:1], train[0], np.concatenate([train[:1], np.nan * train[:3]])):
        with pytest.raises(ValueError, match="2 trials or more .* it has 1"):
            baselines(few, test)
    for parts in (1, 9, [[0], [1]], [range(8), []]):
        with pytest.raises(ValueError, match="parts must"):
            baselines(train, test, parts=parts)
    for conditions in (np.zeros(12), "ab c", (np.zeros(12),)):
        with pytest.raises(ValueError, match="conditions must be a pair"):
            baselines(train, test, conditions=conditions)
    with pytest.raises(ValueError, match="one label for each of 12 .* and 4"):
        baselines(train, test, conditions=(np.zeros(12), np.zeros(5)))
    for empty in (0 * test, np.nan * test):
        with pytest.raises(ValueError, match="no spike of a neuron that fired"):
            baselines(train, empty)
    with pytest.raises(ValueError, match="no spike of a neuron that fired"):
        baselines(0 * train, test)
