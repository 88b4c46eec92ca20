"""Known inputs: scikit-learn hands them on where it hands on trials, and mistakes are named."""

import numpy as np
import pytest
import sklearn
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_sae import NODESAE, RNNSAE

N_TRIALS, N_BINS = 24, 12
#: Every call that takes inputs and gives one array or number.
CALLS = {
    "transform": lambda est, X, U: est.transform(X, inputs=U),
    "predict": lambda est, X, U: est.predict(X, inputs=U),
    "score": lambda est, X, U: est.score(X, inputs=U),
    "initial_conditions": lambda est, X, U: est.initial_conditions(X, inputs=U),
    "fit": lambda est, X, U: small().fit(X, inputs=U).input_matrix_,
    "fit_transform": lambda est, X, U: small().fit_transform(X, inputs=U),
}
#: scikit-learn's Pipeline.score routes sample_weight=None, and fails where no step has heard of it.


def small(cls=NODESAE, **parameters):
    parameters = {"n_latents": 2, "max_epochs": 10, **parameters}
    return cls(hidden_sizes=(8,), device="cpu", random_state=0, **parameters)


def routed(**parameters):
    """An estimator that asks for inputs in every method that can be routed to."""
    est = small(**parameters).set_fit_request(inputs=True).set_score_request(inputs=True)
    return est.set_transform_request(inputs=True).set_predict_request(inputs=True)


@pytest.fixture(autouse=True)
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.fixture(scope="module")
def driven():
    """Spikes of a rotation that two inputs push about, and these inputs."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(N_TRIALS, N_BINS, 2)) * [1.0, 0.5]
    latents = np.zeros((N_TRIALS, N_BINS, 2))
    latents[:, 0] = rng.normal(size=(N_TRIALS, 2))
    for t in range(N_BINS - 1):
        latents[:, t + 1] = 0.9 * latents[:, t] @ [[0.9, 0.4], [-0.4, 0.9]] + inputs[:, t]
    return rng.poisson(np.exp(latents @ rng.normal(size=(2, 8)) * 0.5)), inputs


@pytest.fixture(scope="module")
def fitted(driven):
    spikes, inputs = driven
    return small().fit(spikes, inputs=inputs)


# ------------------------------------------------------------------ pipelines


def test_a_pipeline_passes_inputs_to_every_method(driven, fitted):
    spikes, inputs = driven
    pipeline = make_pipeline(FunctionTransformer(), routed()).fit(spikes, inputs=inputs)
    np.testing.assert_array_equal(pipeline[-1].input_matrix_, fitted.input_matrix_)
    # Other trials than those of the fit, and in an order that tells them apart.
    new = spikes[::-2], inputs[::-2]
    for method in ("transform", "predict"):
        through = getattr(pipeline, method)(new[0], inputs=new[1])
        direct = getattr(fitted, method)(new[0], inputs=new[1])
        np.testing.assert_array_equal(through, direct)
        wrong = getattr(fitted, method)(new[0], inputs=0 * new[1])
        assert np.abs(through - wrong).max() > 0.1


def test_score_of_a_pipeline(driven, fitted):
    spikes, inputs = driven
    pipeline = make_pipeline(FunctionTransformer(), routed()).fit(spikes, inputs=inputs)
    new = spikes[::-2], inputs[::-2]
    assert pipeline.score(new[0], inputs=new[1]) == fitted.score(new[0], inputs=new[1])


def test_fit_transform_of_a_pipeline(driven, fitted):
    spikes, inputs = driven
    latents = make_pipeline(FunctionTransformer(), routed()).fit_transform(spikes, inputs=inputs)
    np.testing.assert_array_equal(latents, fitted.transform(spikes, inputs=inputs))


def test_inputs_stop_at_the_step_that_asks_for_them(driven, fitted):
    spikes, inputs = driven
    labels = np.arange(N_TRIALS) % 2

    def flatten(latents):
        return latents.reshape(len(latents), -1)

    decoder = make_pipeline(routed(), FunctionTransformer(flatten), LogisticRegression())
    decoder.fit(spikes, labels, inputs=inputs)
    latents = flatten(fitted.transform(spikes, inputs=inputs))
    expected = LogisticRegression().fit(latents, labels)
    np.testing.assert_array_equal(decoder[-1].coef_, expected.coef_)
    np.testing.assert_array_equal(decoder.predict(spikes, inputs=inputs), expected.predict(latents))


def test_a_pipeline_whose_step_does_not_ask_says_so(driven):
    spikes, inputs = driven
    with pytest.raises(UnsetMetadataPassedError, match=r"\[inputs\].*NODESAE\.fit"):
        make_pipeline(small()).fit(spikes, inputs=inputs)


# ------------------------------------------------------------------ searches


@pytest.mark.parametrize("container", [np.asarray, list])
def test_a_search_splits_inputs_as_it_splits_trials(driven, container):
    spikes, inputs = driven
    folds = KFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(
        routed(max_epochs=4), {"n_latents": [1, 2]}, cv=folds, error_score="raise"
    ).fit(container(spikes), inputs=container(inputs))
    for row, n_latents in enumerate([1, 2]):
        for i, (train, test) in enumerate(folds.split(spikes)):
            est = small(n_latents=n_latents, max_epochs=4)
            est.fit(spikes[train], inputs=inputs[train])
            score = est.score(spikes[test], inputs=inputs[test])
            assert search.cv_results_[f"split{i}_test_score"][row] == pytest.approx(score, abs=1e-6)
    best = small(max_epochs=4, **search.best_params_).fit(spikes, inputs=inputs)
    np.testing.assert_array_equal(search.best_estimator_.input_matrix_, best.input_matrix_)
    assert search.score(spikes, inputs=inputs) == best.score(spikes, inputs=inputs)


def test_cross_validation_of_a_pipeline(driven):
    spikes, inputs = driven
    pipeline = make_pipeline(FunctionTransformer(), routed(max_epochs=4))
    scores = cross_val_score(
        pipeline, spikes, cv=KFold(2), params={"inputs": inputs}, error_score="raise"
    )
    half = N_TRIALS // 2
    est = small(max_epochs=4).fit(spikes[half:], inputs=inputs[half:])
    assert scores[0] == est.score(spikes[:half], inputs=inputs[:half])


# ------------------------------------------------------------------ containers


@pytest.mark.parametrize("cls", [NODESAE, RNNSAE])
def test_lists_equal_the_padded_form(driven, cls):
    spikes, inputs = driven
    lengths = np.random.default_rng(1).integers(5, N_BINS + 1, N_TRIALS)
    lengths[3] = N_BINS
    trials = [trial[:n] for trial, n in zip(spikes, lengths, strict=True)]
    known = [trial[:n] for trial, n in zip(inputs, lengths, strict=True)]
    beyond = np.arange(N_BINS)[:, np.newaxis] >= lengths[:, np.newaxis, np.newaxis]
    padded, padded_inputs = np.where(beyond, np.nan, spikes), np.where(beyond, 0, inputs)

    of_lists = small(cls).fit(trials, inputs=known)
    of_arrays = small(cls).fit(padded, inputs=padded_inputs)
    np.testing.assert_array_equal(of_lists.input_matrix_, of_arrays.input_matrix_)
    for method in ("transform", "predict"):
        ragged = getattr(of_lists, method)(trials, inputs=known)
        whole = getattr(of_lists, method)(padded, inputs=padded_inputs)
        assert [len(trial) for trial in ragged] == list(lengths)
        for trial, row in zip(ragged, whole, strict=True):
            np.testing.assert_allclose(trial, row[: len(trial)], rtol=1e-4, atol=1e-5)
    scores = of_lists.score(trials, inputs=known), of_lists.score(padded, inputs=padded_inputs)
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)

    ahead = np.random.default_rng(2).normal(size=(N_TRIALS, 3, 2))
    going_on = [np.concatenate(pair) for pair in zip(known, ahead, strict=True)]
    padded_on = np.zeros((N_TRIALS, N_BINS + 3, 2))
    for row, trial in zip(padded_on, going_on, strict=True):
        row[: len(trial)] = trial
    forecasts = [
        of_lists.forecast(trials, 3, inputs=going_on),
        of_lists.forecast(padded, 3, inputs=padded_on),
    ]
    np.testing.assert_allclose(*forecasts, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("call", ["transform", "predict", "score", "initial_conditions"])
def test_inputs_that_are_lacking_or_too_many(driven, fitted, call):
    spikes, inputs = driven
    with pytest.raises(ValueError, match=r"fitted with 2 known input.* given none. Pass inputs"):
        CALLS[call](fitted, spikes, None)
    with pytest.raises(ValueError, match=r"fitted with 2 known input.* given 1\."):
        CALLS[call](fitted, spikes, inputs[..., :1])
    with pytest.raises(ValueError, match="fitted without known inputs, and is given 2"):
        CALLS[call](small(max_epochs=1).fit(spikes), spikes, inputs)


def test_forecast_and_simulate_need_inputs_too(driven, fitted):
    spikes, inputs = driven
    with pytest.raises(ValueError, match=r"fitted with 2 known input.* given none"):
        fitted.forecast(spikes, 3)
    with pytest.raises(ValueError, match=r"12 bins of X\[0\] and the 3 to predict"):
        fitted.forecast(spikes, 3, inputs=inputs)
    with pytest.raises(ValueError, match=r"inputs must be of shape \(24, 5, 2\)"):
        fitted.simulate(np.zeros((N_TRIALS, 2)), 5)
    with pytest.raises(ValueError, match=r"shape \(24, 5, 2\); got shape \(24, 12, 2\)"):
        fitted.simulate(np.zeros((N_TRIALS, 2)), 5, inputs=inputs)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda U: U[:, :-1], r"inputs\[0\] has shape \(11, 2\).*12 bins of X\[0\]"),
        (lambda U: [*U[:-1], U[-1][1:]], r"inputs\[23\] has shape \(11, 2\)"),
        (lambda U: [*U[:-1], U[-1][:, :1]], r"inputs\[23\].* as many inputs as inputs\[0\]"),
        (lambda U: U[:-1], "X has 24 trials, but inputs are those of 23"),
        (lambda U: U[0], r"must be a 3D array.* got an array of shape \(12, 2\)"),
        (lambda U: U[..., 0], r"For a single input, pass inputs\[..., np.newaxis\]"),
        (lambda U: U[..., :0], r"inputs\[0\] has shape \(12, 0\)"),
        (lambda U: np.where(np.arange(2) == 1, np.nan, U), r"inputs\[0\] holds NaN"),
        (lambda U: np.where(np.arange(2) == 1, np.inf, U), r"inputs\[0\] holds NaN, or values"),
        (lambda U: np.full(U.shape, "left"), "inputs cannot be read as .* numbers"),
    ],
)
def test_inputs_that_do_not_fit_the_trials(driven, fitted, call, spoil, message):
    spikes, inputs = driven
    with pytest.raises((ValueError, TypeError), match=message):
        CALLS[call](fitted, spikes, spoil(inputs))
