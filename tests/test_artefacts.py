"""A few counts that drown all others are named; counts that only scatter are not."""

import warnings

import numpy as np
import pytest

from sklearn_sae import NODESAE
from sklearn_sae._data.artefacts import warn_of_artefacts
from sklearn_sae._data.trials import Trials


def quiet(seed=0):
    return np.random.default_rng(seed).poisson(0.05, (100, 50, 30)).astype(np.uint8)


def with_artefacts(X, neuron=7):
    X = X.copy()
    X[13, 4:24, neuron] = 200
    X[13, 11, neuron] = 210
    return X


def look_at(X, rates=None, **known):
    known.setdefault("has_missing", False)
    rates = X.mean((0, 1)) if rates is None else rates
    warn_of_artefacts(Trials(X, **known), rates, of_counts=True, stacklevel=2)


def test_fit_and_answers_name_the_entries():
    message = "20 entries.*carry .*%.*bin 11 of trial 13, neuron 7, .*set them to NaN"
    est = NODESAE(n_latents=1, max_epochs=1, random_state=0)
    with pytest.warns(UserWarning, match=message) as caught:
        est.fit(with_artefacts(quiet()))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est.fit(quiet())
        est.score(quiet(1))
    for method in (est.predict, est.transform, est.score):
        with pytest.warns(UserWarning, match=message) as caught:
            method(with_artefacts(quiet(1)))
        assert caught[0].filename == __file__


def test_entries_that_are_not_observed_are_no_artefacts():
    X = with_artefacts(quiet()).astype(float)
    X[13, 4:24, 7] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look_at(X, np.full(30, 0.05), has_missing=True)


def test_a_neuron_without_a_rate_is_left_out():
    X, rates = with_artefacts(quiet()), np.full(30, 0.05)
    rates[7] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look_at(X, rates)


@pytest.mark.parametrize("dispersion", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("mean", [0.02, 0.3, 3.0, 60.0])
def test_bursts_are_no_artefacts(mean, dispersion):
    rng = np.random.default_rng(0)
    rates = rng.gamma(1 / dispersion, mean * dispersion, (40, 50, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look_at(rng.poisson(rates))


def test_fit_names_trials_by_their_place_in_x():
    # Trials are held out, so that training has them in other places.
    est = NODESAE(n_latents=1, max_epochs=1, early_stopping=True, horizon_growth=0, random_state=0)
    with pytest.warns(UserWarning, match="bin 11 of trial 13, neuron 7"):
        est.fit(with_artefacts(quiet()))


def test_signals_far_from_all_others_are_named():
    X = np.random.default_rng(0).normal(5.0, 2.0, (30, 20, 4))
    est = NODESAE(n_latents=1, likelihood="gaussian", max_epochs=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est.fit(X)
        est.score(X)
    X[7, 3, 2] = -1e4
    for method in (est.predict, est.score):
        with pytest.warns(UserWarning, match="bin 3 of trial 7, neuron 2, .* deviations.*NaN"):
            method(X)


def test_signals_with_heavy_tails_are_no_artefacts():
    X = np.random.default_rng(0).standard_t(3, (100, 50, 20))
    trials = Trials(X, has_missing=False)
    trials.units = trials.find_units()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_artefacts(trials, X.mean((0, 1)), of_counts=False, stacklevel=2)
