"""The estimators keep scikit-learn's rules: its own checks, and what those cannot see."""

import inspect
import io
import pickle
import random

import joblib
import numpy as np
import pytest
import scipy.sparse
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_html_repr, get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks
from sklearn.utils.validation import _check_feature_names, check_is_fitted

from sklearn_sae import NODESAE, RNNSAE

# ------------------------------------------------------------------ scikit-learn's own checks


class Flat:
    """Samples (n, f) as trials of two equal bins, because the checks only speak two dimensions.

    Two, because dynamics need two. What comes out is that of the first bin.
    """

    def fit(self, X, y=None, *, inputs=None):
        _check_feature_names(self, X, reset=True)
        trials = as_trials(X)
        try:
            return super().fit(trials, y)
        except ValueError as error:
            # scikit-learn looks for the shape it gave.
            message = str(error).replace(str(np.shape(trials)), str(np.shape(X)))
            raise type(error)(message) from error

    def transform(self, X, *, inputs=None):
        return self._first_bin(super().transform, X)

    def predict(self, X):
        return self._first_bin(super().predict, X)

    def initial_conditions(self, X):
        return super().initial_conditions(as_trials(X))

    def score(self, X, y=None):
        return super().score(as_trials(X), y)

    def _first_bin(self, method, X):
        check_is_fitted(self)
        _check_feature_names(self, X, reset=False)
        return method(as_trials(X))[:, 0]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = True, False
        return tags


def as_trials(X):
    if scipy.sparse.issparse(X):
        return X
    X = np.asarray(X)
    return X if X.ndim != 2 else np.repeat(X[:, np.newaxis], 2, axis=1)


class FlatNODESAE(Flat, NODESAE):
    pass


class FlatRNNSAE(Flat, RNNSAE):
    pass


TINY = {"n_latents": 1, "max_epochs": 2, "device": "cpu"}

ADAPTERS = [
    FlatNODESAE(**TINY, hidden_sizes=(4,)),
    FlatRNNSAE(**TINY),
    FlatNODESAE(**TINY, hidden_sizes=(4,), likelihood="gaussian"),
]


@parametrize_with_checks(ADAPTERS)
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_scikit_learn_has_many_checks_for_us(adapter):
    # With a tag set wrong, scikit-learn runs a single check, and that one passes.
    assert len(list(estimator_checks_generator(adapter))) >= 45


# ------------------------------------------------------------------ what goes in and out


def test_tags_say_what_goes_in(estimator):
    tags = get_tags(estimator)
    assert tags.input_tags.three_d_array and not tags.input_tags.two_d_array
    assert tags.input_tags.positive_only
    assert tags.input_tags.allow_nan
    assert tags.requires_fit and not tags.target_tags.required
    assert tags.transformer_tags.preserves_dtype == ["float32"]


@pytest.mark.parametrize(
    ("likelihood", "positive_only"),
    [("poisson", True), ("negative_binomial", True), ("gaussian", False), ("unknown", False)],
)
def test_the_likelihood_says_whether_values_may_be_negative(estimator, likelihood, positive_only):
    tags = get_tags(estimator.set_params(likelihood=likelihood))
    assert tags.input_tags.positive_only is positive_only


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_every_output_is_float32(fitted, spikes, dtype):
    X = spikes.astype(dtype)
    latents = fitted.transform(X)
    z0 = latents[:, 0].astype(np.float64)
    outputs = {
        "transform": latents,
        "predict": fitted.predict(X),
        "inverse_transform": fitted.inverse_transform(latents.astype(np.float64)),
        "initial_conditions": fitted.initial_conditions(X),
        "forecast": fitted.forecast(X, 2),
        "simulate": fitted.simulate(z0, 3),
        "step": fitted.step(z0),
    }
    assert {name: value.dtype for name, value in outputs.items()} == dict.fromkeys(
        outputs, np.float32
    )


def test_features_are_neurons(fitted, spikes):
    assert fitted.n_features_in_ == spikes.shape[2]
    for method in (fitted.transform, fitted.predict, fitted.score, fitted.initial_conditions):
        with pytest.raises(ValueError, match="X has 4 features, but .*SAE is expecting 6 features"):
            method(spikes[:, :, :4])
    # As many bins as there are neurons must not pass for them.
    with pytest.raises(ValueError, match="X has 12 features, but"):
        fitted.transform(spikes[:, :6].transpose(0, 2, 1).repeat(2, axis=2))


def test_feature_names_are_those_of_the_latents(fitted):
    assert list(fitted.get_feature_names_out()) == ["latent0", "latent1"]
    unchanged = clone(fitted).set_params(n_latents=5)
    unchanged._fitted_model = fitted._fitted_model
    assert len(unchanged.get_feature_names_out()) == 2


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_a_global_container_for_outputs_is_ignored(node, spikes, container):
    with sklearn.config_context(transform_output=container):
        latents = node.set_params(max_epochs=1).fit_transform(spikes)
    assert type(latents) is np.ndarray


def test_set_output_is_refused_clearly(node):
    with pytest.raises(ValueError, match=r"'pandas'.*NODESAE.*FunctionTransformer"):
        node.set_output(transform="pandas")
    with pytest.raises(ValueError, match="NODESAE"):
        make_pipeline(node).set_output(transform="pandas")
    assert node.set_output(transform="default") is node
    assert node.set_output() is node


def test_html_representation(estimator, fitted):
    for each in (estimator, fitted):
        assert type(each).__name__ in estimator_html_repr(each)


def test_every_public_method_needs_a_fit(estimator, spikes):
    states = np.zeros((3, 2))
    arguments = {
        "transform": (spikes,),
        "predict": (spikes,),
        "inverse_transform": (states,),
        "score": (spikes,),
        "initial_conditions": (spikes,),
        "forecast": (spikes, 2),
        "simulate": (states, 2),
        "step": (states,),
        "get_feature_names_out": (),
        "save": ("never.safetensors",),
    }
    if isinstance(estimator, NODESAE):
        arguments["vector_field"] = (states,)
    need_none = {"fit", "fit_transform", "get_params", "set_params", "set_output"}
    need_none |= {"get_metadata_routing"}
    public = {
        name
        for name, _ in inspect.getmembers(estimator, callable)
        if not name.startswith("_") and not name.endswith("request")
    }
    assert public - need_none == set(arguments)
    for name, values in arguments.items():
        with pytest.raises(NotFittedError, match=f"This {type(estimator).__name__} instance"):
            getattr(estimator, name)(*values)


# ------------------------------------------------------------------ copies


def test_clone_has_the_parameters_and_nothing_learned(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "model_")
    assert copy.set_params(n_latents=7).n_latents == 7
    assert fitted.n_latents == 2


def test_pickle_and_joblib_give_the_same_model(fitted, spikes):
    file = io.BytesIO()
    joblib.dump(fitted, file)
    file.seek(0)
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(file)):
        assert copy.get_params() == fitted.get_params()
        assert np.array_equal(copy.transform(spikes), fitted.transform(spikes))
        assert copy.score(spikes) == fitted.score(spikes)


def test_a_fitted_model_lies_on_the_cpu_and_asks_for_no_gradients(fitted):
    for weight in fitted.model_.parameters():
        assert weight.device.type == "cpu"
        assert not weight.requires_grad


# ------------------------------------------------------------------ randomness

NOISY = {"max_epochs": 3, "dropout": 0.2, "initial_condition_dropout": 0.1, "early_stopping": True}


def test_one_seed_is_one_model_to_the_last_bit(estimator, spikes):
    estimator.set_params(**NOISY)
    first, second = (clone(estimator).fit(spikes) for _ in range(2))
    other = clone(estimator).set_params(random_state=1).fit(spikes)
    assert first.loss_curve_ == second.loss_curve_ != other.loss_curve_
    assert np.array_equal(first.transform(spikes), second.transform(spikes))
    assert not np.array_equal(first.transform(spikes), other.transform(spikes))


def test_random_state_may_be_an_instance_or_none(node, spikes):
    def fit(random_state):
        return clone(node).set_params(max_epochs=2, random_state=random_state).fit(spikes)

    one, same = (fit(np.random.RandomState(3)) for _ in range(2))
    assert one.loss_curve_ == same.loss_curve_
    # An instance is used up, as everywhere in scikit-learn.
    used = np.random.RandomState(3)
    node.set_params(max_epochs=2, random_state=used)
    assert node.fit(spikes).loss_curve_ == one.loss_curve_
    assert node.fit(spikes).loss_curve_ != one.loss_curve_
    assert fit(None).loss_curve_ != fit(None).loss_curve_


@pytest.mark.parametrize("random_state", [0, None])
def test_no_global_random_state_is_touched_nor_read(estimator, spikes, random_state):
    estimator.set_params(**NOISY, random_state=random_state)

    def global_states():
        name, keys, *rest = np.random.get_state()
        return name, keys.tobytes(), *rest, torch.get_rng_state().tolist(), random.getstate()

    before = global_states()
    first = clone(estimator).fit(spikes)
    first.score(spikes), first.forecast(spikes, 2)
    assert global_states() == before
    np.random.seed(7), torch.manual_seed(7)
    if random_state is not None:
        assert clone(estimator).fit(spikes).loss_curve_ == first.loss_curve_


# ------------------------------------------------------------------ device hygiene


@pytest.mark.parametrize(
    "parameters",
    [{}, {"solver": "dopri5"}, {"solver": "rk4", "adjoint": True}, {"inference": "amortized"}],
    ids=str,
)
def test_node_puts_every_tensor_on_the_chosen_device(node, holes, parameters):
    check_device_hygiene(node.set_params(**parameters), holes)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"cell": "rnn", "residual": 0.1},
        {"cell": "mlp"},
        {"inference": "amortized"},
        {"likelihood": "negative_binomial"},
        {"likelihood": "gaussian", "inference": "amortized"},
    ],
    ids=str,
)
def test_rnn_puts_every_tensor_on_the_chosen_device(rnn, holes, parameters):
    check_device_hygiene(rnn.set_params(**parameters), holes)


def check_device_hygiene(estimator, X):
    estimator.set_params(**NOISY | {"max_epochs": 2})
    # A tensor made without a device lands on "meta", and meets those of the CPU with an error.
    with torch.device("meta"):
        estimator.fit(X)
        estimator.set_params(warm_start=True).fit(X)
        latents = estimator.transform(X)
        score = estimator.score(X)
        ahead = estimator.forecast(X, 2)
        free = estimator.step(estimator.simulate(latents[:, 0], 3))
    assert np.isfinite(score)
    for values in (latents, ahead, free):
        assert np.isfinite(values).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_model_trained_on_a_gpu_works_without_one(estimator, spikes):
    trained = estimator.set_params(device="cuda").fit(spikes)
    copy = pickle.loads(pickle.dumps(trained)).set_params(device="cpu")
    np.testing.assert_allclose(copy.predict(spikes), trained.predict(spikes), rtol=1e-2)
