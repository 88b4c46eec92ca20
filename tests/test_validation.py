"""What comes through the door, and what is turned away with which words."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import BaseEstimator, clone

from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae._data.trials import Trials
from sklearn_sae._data.validation import check_device, check_seed, check_trials
from sklearn_sae.metrics import co_smoothing_score, forward_prediction_score

QUICK = {"n_latents": 2, "hidden_sizes": (4,), "max_epochs": 2, "device": "cpu", "random_state": 0}


def counts(*shape, value=1.0):
    return np.full(shape, value)


def with_value(value, *where):
    X = counts(4, 5, 3)
    X[where] = value
    return X


# ------------------------------------------------------------------ turned away

BAD_SPIKES = {
    "1-D": (counts(5), r"Expected 3D array .*got 1D array"),
    "2-D": (counts(5, 3), r"Expected 3D array .*got 2D array .*X\[np\.newaxis\]"),
    "4-D": (counts(2, 2, 5, 3), r"Expected 3D array .*got 4D array"),
    "no trial": (counts(0, 5, 3), r"0 sample\(s\) \(shape=\(0, 5, 3\)\)"),
    "no bin": (counts(4, 0, 3), r"0 bin\(s\) .*minimum of 2"),
    "no neuron": (counts(4, 5, 0), r"0 feature\(s\) .*no neurons"),
    "one bin": (counts(4, 1, 3), r"1 bin\(s\) .*minimum of 2.*smaller bins"),
    "negative": (with_value(-2.0, 1, 2, 0), r"Negative values .*-2\.0.*>= 0.*z-scored"),
    "negative integer": (with_value(-2, 1).astype(int), r"Negative values .*-2"),
    "negative beside NaN": (with_value((np.nan, -1, 1), 1, 2), "Negative values"),
    "infinite": (with_value(np.inf, 1, 2, 0), "infinity"),
    "too large": (with_value(3e7, 1), r"X holds 3.*, more than single precision can count"),
    "minus infinity": (with_value(-np.inf, 1, 2, 0), "Negative values .*-inf"),
    "all-NaN trial": (with_value(np.nan, 2), r"Trial 2 of X holds only NaN.*\(1 in all\)"),
    "all-NaN neuron": (with_value(np.nan, ..., 1), r"Neuron 1 of X holds only NaN.*\(1 in all\)"),
    "all NaN": (counts(4, 5, 3, value=np.nan), r"Trial 0 of X holds only NaN.*\(4 in all\)"),
    "strings": (np.full((4, 5, 3), "many"), "strings.*numeric"),
    "objects": (np.full((4, 5, 3), "many", dtype=object), "numeric|could not convert"),
    "complex": (counts(4, 5, 3).astype(complex), "Complex data not supported"),
    "dictionaries": (np.full((4, 5, 3), {}, dtype=object), "dict"),
    "durations": (
        counts(4, 5, 3).astype("m8[s]"),
        r"X cannot be read .* dtype is timedelta64\[s\]",
    ),
    "nothing": (None, "Expected 3D array"),
    "a name": ("recording.npz", "strings|Expected 3D array"),
    "masked array": (np.ma.masked_equal(counts(4, 5, 3), 0), r"masked array.*filled\(np\.nan\)"),
    "array of arrays": (
        np.array([counts(5, 3), counts(6, 3), None], dtype=object)[:2],
        r"Python objects.*list\(X\)",
    ),
    "empty list": ([], r"0 sample\(s\).*the list has no trials"),
    "list: one bin": ([counts(5, 3), counts(1, 3)], r"X\[1\] has 1 bin\(s\)"),
    "list: no bin": ([counts(5, 3), counts(0, 3)], r"X\[1\] has 0 bin\(s\)"),
    "list: no neuron": ([counts(5, 0)], r"X\[0\] has 0 feature\(s\)"),
    "list: 1-D": ([counts(5), counts(5)], r"\(n_bins, n_neurons\); X\[0\] has 1 dimension"),
    "list: 3-D": ([counts(2, 5, 3)], r"X\[0\] has 3 dimension"),
    "list: other neurons": ([counts(5, 3), counts(5, 4)], r"X\[0\] has 3, X\[1\] has 4.*NaN"),
    "list: negative": ([counts(5, 3), -counts(6, 3)], "Negative values"),
    "list: infinite": ([counts(5, 3), counts(6, 3, value=np.inf)], "infinity"),
    "list: all-NaN trial": ([counts(5, 3), counts(6, 3, value=np.nan)], "Trial 1 of X holds only"),
    "list: masked array": ([np.ma.masked_equal(counts(5, 3), 0)], r"X\[0\] is a masked array"),
    "list: ragged rows": ([[[1, 2], [3]]], r"X\[0\] cannot be read as an array of numbers"),
    "list: strings": ([np.full((5, 3), "many")], "strings|numeric"),
    "list: late trial": (
        # What was integer was observed, and still counts when trials are numbered.
        [counts(5, 3).astype(int), counts(5, 3), counts(5, 3, value=np.nan)],
        "Trial 2 of X holds only NaN",
    ),
}


@pytest.mark.parametrize("name", BAD_SPIKES)
def test_bad_spikes_are_refused(name):
    X, message = BAD_SPIKES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
            NODESAE(**QUICK).fit(X)


@pytest.mark.parametrize("name", [name for name in BAD_SPIKES if name != "all-NaN neuron"])
def test_bad_spikes_are_refused_by_a_fitted_model(small_model, name):
    X, message = BAD_SPIKES[name]
    for method in (small_model.transform, small_model.score):
        with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
            method(X)


@pytest.fixture(scope="module")
def small_model():
    return NODESAE(**QUICK).fit(np.random.default_rng(0).poisson(1.0, (8, 5, 3)))


def test_trials_and_neurons_swapped_at_transform(small_model):
    X = counts(4, 5, 3).transpose(2, 1, 0)
    with pytest.raises(ValueError, match="X has 4 features, but NODESAE is expecting 3.*last axis"):
        small_model.transform(X)
    with pytest.raises(ValueError, match="X has 5 features, but NODESAE is expecting 3"):
        small_model.transform(list(counts(4, 3, 5)))


BAD_PARAMETERS = {
    "n_latents": [0, -1, 2.5, "three", None],
    "hidden_sizes": [(0,), (2.5,), 128, "abc"],
    "activation": ["sine", None],
    "encoder_size": [0],
    "likelihood": ["bernoulli", None],
    "n_inferred_inputs": [-1, 1.0, None],
    "inference": ["encoder"],
    "max_refine_iter": [-1],
    "dropout": [-0.1, 1.0],
    "initial_condition_dropout": [1.0],
    "coordinated_dropout": [1.0],
    "optimizer": ["sgd"],
    "learning_rate": [0, -1e-3],
    "learning_rate_schedule": ["cosine"],
    "weight_decay": [-1.0],
    "clip_norm": [0.0],
    "batch_size": [0, "all"],
    "max_epochs": [0, 1.5],
    "n_init": [0, 2.0],
    "horizon_start": [0],
    "horizon_step": [0],
    "horizon_growth": [-0.1, 1.1],
    "early_stopping": ["yes"],
    "validation_fraction": [0.0, 1.0],
    "n_iter_no_change": [0],
    "tol": [-1.0],
    "warm_start": ["yes"],
    "checkpoint_path": [3, False],
    "checkpoint_every": [0, 2.5],
    "device": [0, None, "gpu", "meta"],
    "random_state": ["seed", -1],
    "verbose": ["loud"],
}
BAD_NODE_PARAMETERS = BAD_PARAMETERS | {
    "time_scale": [0.0, -1.0, "bins"],
    "solver": ["rk45", None],
    "step_size": [0.0, 1.5],
    "rtol": [0.0],
    "atol": [0.0],
    "adjoint": ["yes"],
}
BAD_RNN_PARAMETERS = BAD_PARAMETERS | {"cell": ["lstm", None], "residual": [0.0, -0.1]}


@pytest.mark.parametrize(
    "bad", [(NODESAE, BAD_NODE_PARAMETERS), (RNNSAE, BAD_RNN_PARAMETERS)], ids=["NODESAE", "RNNSAE"]
)
def test_bad_parameters_are_named_with_what_came(bad):
    estimator, parameters = bad
    # RNNSAE only reads the sizes of an "mlp".
    quick = QUICK | ({"cell": "mlp"} if estimator is RNNSAE else {})
    assert set(parameters) == set(estimator().get_params())
    for name, values in parameters.items():
        for value in values:
            with pytest.raises(ValueError, match=name) as caught:
                estimator(**{**quick, name: value}).fit(counts(4, 5, 3))
            assert str(value) in str(caught.value)


@pytest.mark.parametrize("solver", ["implicit_adams", "explicit_adams"])
def test_multi_step_solvers_are_refused_with_a_reason(solver):
    with pytest.raises(ValueError, match=f"{solver}.*multi-step.*no map.*midpoint.*dopri5"):
        NODESAE(**QUICK, solver=solver).fit(counts(4, 5, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(small_model):
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        estimator = clone(small_model).set_params(device=device)
        with pytest.raises(ValueError, match="cuda.*no such device.*device='auto'"):
            estimator.fit(counts(4, 5, 3))
    assert check_device("auto") == torch.device("cpu")


def test_a_gpu_beyond_those_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="cuda:2"):
        check_device("cuda:2")


@pytest.mark.parametrize("method", ["step", "inverse_transform", "vector_field"])
def test_bad_states(small_model, method):
    with pytest.raises(ValueError, match=r"n_latents = 2.*\(4, 3\)"):
        getattr(small_model, method)(counts(4, 3))
    with pytest.raises(ValueError, match="NaN"):
        getattr(small_model, method)([[np.nan, 0]])


@pytest.mark.parametrize("n_bins", [0, -1, 2.5, "two"])
def test_bad_numbers_of_bins(small_model, n_bins):
    for call in (
        lambda: small_model.simulate(counts(4, 2), n_bins),
        lambda: small_model.forecast(counts(4, 5, 3), n_bins),
    ):
        with pytest.raises(ValueError, match=f"n_bins must be an int >= 1; got {n_bins!r}"):
            call()


# ------------------------------------------------------------------ let in


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(1).poisson(1.0, (8, 5, 3))


def big_endian(X):
    return X.astype(">f8")


def memmap(X, path):
    mapped = np.memmap(path / "spikes", dtype=np.uint8, mode="w+", shape=X.shape)
    mapped[:] = X
    mapped.flush()
    return np.memmap(path / "spikes", dtype=np.uint8, mode="r", shape=X.shape)


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


SAME_SPIKES = {
    **{
        f"{dtype}": lambda X, dtype=dtype: X.astype(dtype)
        for dtype in (
            *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
            *("float16", "float32", "float64", "longdouble", ">i4", ">f4", ">f8", "object"),
        )
    },
    "Fortran order": np.asfortranarray,
    "strided": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "backwards in memory": lambda X: X[:, ::-1].copy()[:, ::-1],
    "read-only": read_only,
    "nested lists": lambda X: X.tolist(),
    "torch tensor": torch.tensor,
    "torch float tensor with gradient": lambda X: torch.tensor(X * 1.0, requires_grad=True),
    "list": list,
    "tuple": tuple,
    "list of tensors": lambda X: [torch.tensor(trial) for trial in X],
    "list of mixed types": lambda X: [x.astype(t) for x, t in zip(X, "BHifdBHi", strict=True)],
}


@pytest.mark.parametrize("form", SAME_SPIKES)
def test_one_recording_in_many_forms_is_one_recording(small_model, X, form):
    same = SAME_SPIKES[form](X)
    check_same(small_model, X, same)


def test_memory_map(small_model, X, tmp_path):
    check_same(small_model, X, memmap(X, tmp_path))


def check_same(small_model, X, same):
    expected = clone(small_model).fit(X)
    fitted = clone(small_model).fit(same)
    assert fitted.loss_curve_ == expected.loss_curve_
    assert np.array_equal(np.array(fitted.transform(same)), expected.transform(X))
    assert fitted.score(same) == expected.score(X)
    assert isinstance(fitted.predict(same), list if isinstance(same, list | tuple) else np.ndarray)


def test_boolean_spikes(small_model, X):
    check_same(small_model, (X > 0).astype(int), X > 0)


def test_float_counts_need_not_be_whole(X):
    smoothed = NODESAE(**QUICK).fit(0.5 * X)
    np.testing.assert_allclose(smoothed.null_rates_, 0.5 * X.mean((0, 1)))
    assert np.isfinite(smoothed.score(0.5 * X))


def test_the_recording_is_left_alone(X):
    given = X.astype(float)
    given[0, :2] = np.nan
    before = given.copy()
    estimator = NODESAE(**QUICK).fit(given)
    estimator.score(given)
    np.testing.assert_array_equal(given, before)


ODD_SHAPES = {
    "one trial": (1, 5, 3),
    "one neuron": (8, 5, 1),
    "two bins": (8, 2, 3),
    "one trial of one neuron in two bins": (1, 2, 1),
    "more neurons than everything": (2, 3, 40),
}


@pytest.mark.parametrize("shape", ODD_SHAPES.values(), ids=ODD_SHAPES)
@pytest.mark.parametrize("n_latents", [1, 4])
def test_odd_shapes(estimator, shape, n_latents):
    X = np.random.default_rng(0).poisson(1.0, shape)
    estimator.set_params(max_epochs=3, n_latents=n_latents).fit(X)
    n_trials, n_bins, n_neurons = shape
    latents = estimator.transform(X)
    assert latents.shape == (n_trials, n_bins, n_latents)
    assert estimator.predict(X).shape == shape
    assert estimator.forecast(X, 2).shape == (n_trials, 2, n_neurons)
    for values in (latents, estimator.predict(X), estimator.forecast(X, 2)):
        assert np.isfinite(values).all()


def test_silent_neurons(estimator, spikes):
    X = spikes.copy()
    X[:, :, 2] = 0
    estimator.fit(X)
    rates = estimator.predict(X)
    assert np.isfinite(rates).all()
    assert rates[:, :, 2].max() < 0.05
    assert estimator.null_rates_[2] == 0
    assert np.isfinite(estimator.score(X))


@pytest.mark.parametrize(
    "score",
    [
        lambda est, X: est.score(X),
        partial(co_smoothing_score, held_out=0.5, random_state=1),
        partial(forward_prediction_score, n_bins=4),
    ],
    ids=["score", "co-smoothing", "forward prediction"],
)
def test_spikes_of_a_neuron_silent_in_fit_are_no_gain(estimator, spikes, score):
    X = spikes.astype(float)
    X[:, :, 2] = 0
    estimator.set_params(max_epochs=5).fit(X)
    X[:, ::4, 2] = 1
    found = score(estimator, X)
    estimator.null_rates_[2] = 1e-9
    assert found < score(estimator, X) - 0.2


def test_a_silent_trial_has_no_score_but_latents(small_model):
    silent = np.zeros((2, 5, 3))
    assert np.isfinite(small_model.transform(silent)).all()
    assert np.isnan(small_model.score(silent))


def test_one_bin_of_states(small_model):
    assert small_model.simulate([0.1, 0.2], 1).shape == (1, 2)
    assert small_model.step([0.1, 0.2]).shape == (2,)
    assert small_model.step(counts(2, 3, 4, 2)).shape == (2, 3, 4, 2)
    assert small_model.inverse_transform([0.1, 0.2]).shape == (3,)
    assert small_model.step(torch.zeros(5, 2)).shape == (5, 2)


def test_a_neuron_seen_only_in_integer_trials_is_seen():
    lost = counts(6, 3)
    lost[:, 0] = np.nan
    NODESAE(**QUICK).fit([counts(5, 3).astype(int), lost])


# ------------------------------------------------------------------ anything at all

dtypes = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.boolean_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.unicode_string_dtypes(max_len=3),
    hnp.datetime64_dtypes(),
    st.just(np.dtype(object)),
)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
anything = dtypes.flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        shapes,
        elements=st.one_of(st.floats(), st.text(max_size=2)) if dtype.kind == "O" else None,
    )
)
ragged = st.tuples(
    hnp.floating_dtypes() | hnp.unsigned_integer_dtypes(), st.integers(1, 2)
).flatmap(
    lambda kind: st.lists(
        hnp.arrays(kind[0], st.tuples(st.integers(1, 4), st.just(kind[1]))), max_size=3
    )
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(anything, ragged, st.lists(anything, max_size=2)))
def test_whatever_comes_is_trials_or_a_clear_error(X):
    estimator = BaseEstimator()
    try:
        trials = check_trials(estimator, X, reset=True)
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 20
        return
    assert isinstance(trials, Trials)
    assert estimator.n_features_in_ == trials.n_neurons >= 1
    assert trials.n_bins >= 2 and len(trials) == len(X)
    batch = trials.batch(np.arange(len(trials)), torch.device("cpu"))
    assert batch.counts.shape == (trials.n_bins, trials.n_neurons, len(trials))
    assert (batch.counts >= 0).all()
    assert batch.observed().any(dim=0).any(dim=0).all()
    seen = [~np.isnan(np.asarray(trial, dtype=float)) for trial in X]
    assert int(batch.observed().sum()) == sum(int(each.sum()) for each in seen)


# ------------------------------------------------------------------ seeds


def test_seeds():
    assert check_seed(3) == check_seed(3) != check_seed(4)
    assert check_seed(np.random.RandomState(3)) == check_seed(3)
    assert check_seed(None) != check_seed(None)


@pytest.mark.parametrize("estimator", [NODESAE, RNNSAE])
def test_spikes_that_are_all_zero_are_named(estimator):
    nothing = np.zeros((6, 5, 3))
    est = estimator(n_latents=1, max_epochs=1, random_state=0)
    with pytest.warns(UserWarning, match="X has no spikes at all"):
        est.fit(nothing)
    with pytest.warns(UserWarning, match="score is NaN: there is no spike"):
        assert np.isnan(est.score(nothing))


def test_a_signal_that_is_all_zero_is_no_lack_of_spikes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NODESAE(n_latents=1, likelihood="gaussian", max_epochs=1).fit(np.zeros((6, 5, 3)))


def test_counts_that_single_precision_spoils_are_named():
    X = np.random.default_rng(0).poisson(1.0, (6, 5, 3)).astype(float)
    X[4, 2, 1] = 250_000
    with pytest.warns(
        UserWarning, match="X holds 250000 spikes in a bin, of neuron 1.*smaller bins"
    ):
        check_trials(NODESAE(), X, None, reset=True, of_counts=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_trials(NODESAE(), X, None, reset=True, of_counts=False)
