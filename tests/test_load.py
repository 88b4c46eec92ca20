"""Saved estimators come back whole, and a file that is not whole is refused."""

import copy
import json
import os
import pickle

import numpy as np
import pytest
import sklearn
import torch
from conftest import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import sklearn_sae
from sklearn_sae import NODESAE, RNNSAE, load
from sklearn_sae._saving.files import read, write

AMORTIZED = {"inference": "amortized"}
STOPPING = {"early_stopping": True, "horizon_growth": 0}

#: Every kind of network and of learned attributes.
KINDS = {
    "node": NODESAE(**SMALL),
    "two layers": NODESAE(**SMALL | {"hidden_sizes": [5, 7]}, solver="heun3", step_size=0.5),
    "torchdiffeq": NODESAE(**SMALL, solver="dopri5", rtol=1e-2, atol=1e-2, adjoint=True),
    "more latents than neurons": NODESAE(**SMALL | {"n_latents": 9}, activation="relu"),
    "early stopping": NODESAE(**SMALL, **STOPPING),
    "amortized": NODESAE(**SMALL, **AMORTIZED, **STOPPING, dropout=0.3),
    "negative binomial": NODESAE(**SMALL, likelihood="negative_binomial"),
    "gaussian, amortized": NODESAE(**SMALL, **AMORTIZED, likelihood="gaussian"),
    "gru": RNNSAE(**SMALL),
    "gru, amortized": RNNSAE(**SMALL, **AMORTIZED),
    "tanh cell": RNNSAE(**SMALL, cell="rnn", residual=0.1),
    "mlp cell": RNNSAE(**SMALL, cell="mlp", activation="softplus"),
    "mlp cell, residual": RNNSAE(**SMALL, cell="mlp", residual=0.1, **STOPPING),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, spikes):
    """One estimator of every kind, fitted a little; shared, so leave it as it is."""
    return clone(KINDS[request.param]).set_params(max_epochs=1).fit(spikes)


@pytest.fixture(scope="module")
def shared(spikes):
    """A fitted NODESAE; shared, so leave it as it is."""
    return NODESAE(**SMALL | {"max_epochs": 2}).fit(spikes)


@pytest.fixture
def est(shared):
    """The same, to be changed."""
    return copy.deepcopy(shared)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.safetensors"


def back(est, path):
    assert est.save(path) is None
    return load(path)


def same(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def settings_of(model):
    """What its modules hold beside weights: solver, activation, dropout ..."""
    return {
        name: {key: value for key, value in vars(module).items() if not key.startswith("_")}
        for name, module in model.named_modules()
    }


def assert_same(one, other):
    assert type(one) is type(other)
    assert vars(one).keys() == vars(other).keys()
    for name, value in (vars(one) | one._fitted_model.learned()).items():
        if name not in ("model_", "_fitted_model"):
            assert same(value, getattr(other, name)), name
    assert settings_of(one.model_) == settings_of(other.model_)
    weights, others = one.model_.state_dict(), other.model_.state_dict()
    assert weights.keys() == others.keys()
    for name in weights:
        assert torch.equal(weights[name], others[name]), name


# ------------------------------------------------------------------ there and back


def test_an_estimator_comes_back_whole(kind, path, spikes, holes):
    loaded = back(kind, path)
    assert_same(kind, loaded)
    for method in ("transform", "predict", "score", "initial_conditions"):
        np.testing.assert_array_equal(getattr(loaded, method)(holes), getattr(kind, method)(holes))
    np.testing.assert_array_equal(loaded.forecast(spikes, 3), kind.forecast(spikes, 3))
    if kind.inference == "semi-amortized":
        for one, other in zip(
            loaded.predict(holes, return_std=True),
            kind.predict(holes, return_std=True),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    for weight in loaded.model_.parameters():
        assert weight.device.type == "cpu" and not weight.requires_grad


def test_a_loaded_estimator_goes_on_as_the_one_saved(kind, path, spikes):
    loaded = back(kind, path).set_params(warm_start=True).fit(spikes)
    assert len(loaded.loss_curve_) == len(kind.loss_curve_) + loaded.n_iter_
    assert_same(copy.deepcopy(kind).set_params(warm_start=True).fit(spikes), loaded)


def test_a_loaded_estimator_can_be_saved_pickled_and_cloned(kind, path):
    loaded = back(kind, path)
    whole = path.read_bytes()
    assert_same(kind, back(loaded, path))
    assert path.read_bytes() == whole
    assert_same(kind, pickle.loads(pickle.dumps(loaded)))
    assert clone(loaded).get_params() == kind.get_params()


@pytest.mark.parametrize(
    "parameters",
    [
        {"hidden_sizes": (3, 4)},
        {"hidden_sizes": [3, 4]},
        {"hidden_sizes": np.array([3, 4], dtype=np.int16)},
        {"n_latents": np.int64(5), "learning_rate": np.float32(0.1), "tol": np.float64(0.1)},
        {"clip_norm": None, "batch_size": "auto", "verbose": 2, "early_stopping": np.True_},
        {"learning_rate": 0.1 + 0.2, "tol": float("inf")},
        {"device": torch.device("cuda", 1)},
        {"random_state": None},
        {"random_state": 2**32 - 1},
    ],
    ids=str,
)
def test_parameters_come_back_with_their_types(est, path, parameters):
    loaded = back(est.set_params(**parameters), path)
    for name, value in est.get_params().items():
        assert same(getattr(loaded, name), value), name


def test_the_network_is_that_of_the_fit_whatever_was_set_since(kind, path, spikes):
    est = copy.deepcopy(kind)
    changed = {"n_latents": 5, "hidden_sizes": (2,), "activation": "softplus", "encoder_size": 3}
    changed |= {"solver": "euler"} if isinstance(est, NODESAE) else {"cell": "rnn", "residual": 0.5}
    loaded = back(est.set_params(**changed), path)
    assert_same(est, loaded)
    np.testing.assert_array_equal(loaded.transform(spikes), kind.transform(spikes))
    loaded.fit(spikes)
    assert loaded.transform(spikes).shape[2] == 5


def test_a_network_that_went_on_with_other_parameters_comes_back(est, path, spikes):
    est.set_params(warm_start=True, solver="rk4").fit(spikes)
    loaded = back(est, path)
    assert loaded.model_.dynamics.solver.method == "rk4"
    assert_same(est, loaded)


def test_a_random_state_goes_on_where_it_was(est, path, spikes):
    est.set_params(random_state=np.random.RandomState(5)).fit(spikes)
    loaded = back(est, path)
    assert loaded.random_state is not est.random_state
    assert "random_state" not in loaded._fitted_model.settings
    first, second = est.fit(spikes).loss_curve_, est.fit(spikes).loss_curve_
    assert loaded.fit(spikes).loss_curve_ == first
    assert loaded.fit(spikes).loss_curve_ == second != first


def test_a_fit_interrupted_at_once_comes_back(node, path, spikes, monkeypatch, rollouts):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.Tensor, "backward", interrupt)
    with pytest.warns(sklearn.exceptions.ConvergenceWarning):
        node.set_params(early_stopping=True).fit(spikes)
    assert node.loss_curve_ == [] and node.best_validation_score_ == -float("inf")
    assert_same(node, back(node, path))


def test_a_path_may_be_a_string_and_have_any_ending(est, tmp_path):
    assert_same(est, back(est, os.path.join(tmp_path, "my.model")))


def test_nothing_random_is_touched_and_no_default_device_needed(kind, path):
    kind.save(path)
    before = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    with torch.device("meta"):
        assert_same(kind, load(path))
    assert (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()) == before


def test_the_file_says_what_wrote_it(est, path):
    est.save(path)
    with safe_open(path, framework="numpy") as file:
        content = json.loads(file.metadata()["sklearn_sae"])["content"]
        names = set(file.keys())
    assert content["class"] == "NODESAE"
    assert content["parameters"]["solver"] == "midpoint"
    assert content["versions"] == {
        "sklearn_sae": sklearn_sae.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": torch.__version__,
    }
    assert names > {"model_.readout.weight", "training_initial_conditions_"}


# ------------------------------------------------------------------ what is not saved


def test_an_estimator_must_be_fitted(node, path):
    with pytest.raises(NotFittedError, match="This NODESAE instance is not fitted"):
        node.save(path)
    assert not path.exists()


def test_a_class_of_ones_own_is_refused(path, spikes):
    class Mine(NODESAE):
        pass

    Same = type("NODESAE", (NODESAE,), {})
    for cls in (Mine, Same):
        est = cls(**SMALL | {"max_epochs": 1}).fit(spikes)
        with pytest.raises(TypeError, match=rf"{cls.__name__}, because a file holds no code.*dump"):
            est.save(path)
    assert not path.exists()


def test_an_attribute_that_would_be_lost_is_named(est, path):
    est.session = "monday"
    with pytest.raises(ValueError, match=r"has session, .* would be lost.*\(del est\.session\)"):
        est.save(path)
    del est.session
    est.save(path)


def test_a_parameter_that_no_file_can_hold_is_named(est, path):
    est.set_params(random_state=np.random.default_rng(0))
    with pytest.raises(TypeError, match="parameter random_state of this NODESAE.*is a Generator"):
        est.save(path)
    assert not path.exists()


def broken(est):
    est.training_initial_conditions_ = est.training_initial_conditions_[:, :1]


def doubled(est):
    est.model_.double()


def replaced(est):
    est.null_rates_ = est.null_rates_.astype(np.float32)


def lost(est):
    del est.loss_curve_


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (broken, "has training_initial_conditions_.*nor as fit left it"),
        (doubled, "not as fit left it.*float64.*ask for .*float32"),
        (replaced, "has null_rates_.*nor as fit left it"),
        (lost, "not as fit left it.*lacks loss_curve_"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(est, path, change, match):
    change(est)
    with pytest.raises(ValueError, match=match):
        est.save(path)
    assert not path.exists()


def test_a_save_that_fails_leaves_the_last_one(shared, est, path, monkeypatch):
    shared.save(path)

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        est.set_params(n_latents=7).save(path)
    assert [*path.parent.iterdir()] == [path]
    assert_same(shared, load(path))


# ------------------------------------------------------------------ what is not loaded


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        load(path)


def test_a_pickle_is_refused(est, path):
    path.write_bytes(pickle.dumps(est))
    with pytest.raises(
        ValueError, match=rf"{path.name} was not written .*\. Load a pickle with the"
    ):
        load(path)


def test_a_truncated_file_is_refused(est, path):
    est.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*\. Copy it again from where"):
        load(path)


def test_damage_is_found_or_changes_nothing(shared, path):
    shared.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in rng.integers(len(whole), size=60)]
    for i in [*range(16), *rng.integers(len(whole), size=150)]:
        flipped = bytearray(whole)
        flipped[i] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for start, stop in np.sort(rng.integers(len(whole), size=(60, 2))):
        damaged.append(whole[:start] + rng.bytes(stop - start) + whole[stop:])
    n_found = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            loaded = load(path)
        except ValueError as error:
            assert type(error) is ValueError and str(path) in str(error)
            n_found += 1
        else:
            assert_same(shared, loaded)
    assert n_found > 0.98 * len(damaged)


def forge(est, path, change):
    """Save, change what the file says, and write it with a right checksum."""
    est.save(path)
    content, arrays = read(path)
    change(content, arrays)
    write(path, content, arrays)


def put(*keys, value):
    """A change of one value in the content of a file; None deletes it."""

    def change(content, arrays):
        for key in keys[:-1]:
            content = content[key]
        if value is None:
            del content[keys[-1]]
        else:
            content[keys[-1]] = value

    return change


def put_array(name, array):
    """A change of one array of a file; None deletes it."""

    def change(content, arrays):
        arrays.pop(name, None)
        if array is not None:
            arrays[name] = np.asarray(array)

    return change


F32, F64, READOUT = np.float32, np.float64, "model_.readout.weight"


def without_neurons(content, arrays):
    content["learned"]["n_features_in_"] = 0
    arrays["null_rates_"] = np.zeros(0)
    arrays[READOUT] = np.zeros((0, 3), F32)


SIZES = "no network can have the sizes it gives"
FORGED = [
    # Sizes that would take more memory than there is, or do not fit the weights.
    (put("fitted_with", "n_latents", value=10**12), r"\(n_trials, n_latents = 10{12}\)"),
    (put("fitted_with", "hidden_sizes", value=[10**30]), SIZES),
    (put("fitted_with", "step_size", value=5e-324), SIZES),
    (put("fitted_with", "hidden_sizes", value=[15]), r"0 are \(\(16, 3.*ask for \(\(15, 3\)"),
    (put("fitted_with", "hidden_sizes", value=[16] * 10_000), "weights dynamics"),
    (put("fitted_with", "hidden_sizes", value=[0]), "hidden_sizes must hold ints >= 1"),
    (put("fitted_with", "n_latents", value=True), r"n_latents = True\)"),
    (put("fitted_with", "n_latents", value=2.0), "'n_latents' parameter of NODESAE must be an int"),
    (put("class", value="RNNSAE"), "'adjoint', which this version does not know"),
    (
        put("fitted_with", "inference", value="amortized"),
        "weights dynamics.mlp.linear are .* ask for none",
    ),
    (
        put_array(READOUT, np.zeros((6, 4), F32)),
        r"weights readout.weight are \(\(6, 4\), 'float32'",
    ),
    (
        put_array(READOUT, np.zeros((6, 3), F64)),
        r"weights readout.weight are \(\(6, 3\), 'float64'",
    ),
    (put_array(READOUT, np.zeros((0, 10**12), F32)), r"weights readout.weight are \(\(0, 10{12}\)"),
    (put_array(READOUT, None), "weights readout.weight are absent, and"),
    (put_array("model_.more", np.zeros(3, F32)), "weights more are .* ask for none"),
    # Learned attributes of the wrong kind or shape, too few, too many.
    (put_array("null_rates_", np.zeros(5)), "null_rates_ are not those of n_features_in_=6"),
    (put_array("null_rates_", np.zeros((6, 1))), "null_rates_ is not a float64 array of 1 axes"),
    (put_array("null_rates_", None), "lacks null_rates_"),
    (put_array("training_initial_conditions_", None), "lacks training_initial_conditions_"),
    (put_array("training_initial_conditions_", np.zeros((0, 2), F32)), r"have shape \(0, 2\)"),
    (put_array("training_initial_conditions_", np.zeros((3, 1), F32)), r"have shape \(3, 1\)"),
    (put_array("loss_curve_", np.zeros(2, F32)), "loss_curve_ is not a float64 array"),
    (put_array("fit", np.zeros(2)), "holds 'fit', which this version does not know"),
    (put("learned", "transform", value=1), "holds 'transform'"),
    (put("learned", "__class__", value=1), "holds '__class__'"),
    (put("learned", "n_iter_", value=2.0), "n_iter_ is 2.0, and not int"),
    (put("learned", "n_iter_", value=True), "n_iter_ is True, and not int"),
    (put("learned", "model_variance_", value="1"), "model_variance_ is '1', and not float"),
    (put("learned", "n_features_in_", value=0), "n_features_in_=0"),
    (put("learned", "n_features_in_", value=None), "lacks n_features_in_"),
    (without_neurons, "n_features_in_=0 neurons"),
    (put("learned", value=[1, 2]), "a part of it is not a JSON object"),
    # What another version may have written.
    (put("class", value="GPSAE"), "'GPSAE', and not one of NODESAE, RNNSAE"),
    (put("class", value=["NODESAE"]), r"\['NODESAE'\], and not one of"),
    (put("class", value=None), "lacks class"),
    (put("training", value={}), "holds 'training', which this version does not know"),
    (put("parameters", "stiffness", value=1), "holds 'stiffness', which this version does not"),
    (put("fitted_with", "stiffness", value=1), "holds 'stiffness', which this version does not"),
    (put("fitted_with", "solver", value="leapfrog"), "'solver' parameter of NODESAE must be"),
    (put("parameters", value=7), "a part of it is not a JSON object"),
    # Values that no estimator holds.
    *(
        (put("parameters", name, value=value), f"its value of {name} cannot be read")
        for name, value in [
            ("solver", {"enum": 1}),
            ("device", {"device": "abacus"}),
            ("device", {}),
            ("device", {"device": "cpu", "tuple": []}),
            ("tol", {"float": {}}),
            ("tol", {"float64": [[1], [1, 2]]}),
            ("tol", {"int8": 10**9}),
            ("random_state", {"RandomState": {}}),
        ]
    ),
]


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("n_latents", 10**6, "its parameters ask for"),
        ("encoder_size", 10**6, "its parameters ask for"),
        ("hidden_sizes", [10**6, 10**6], "its parameters ask for"),
        ("n_latents", 10**30, SIZES),
        ("encoder_size", 10**12, SIZES),
        ("hidden_sizes", [10**12, 10**12], SIZES),
    ],
)
def test_no_size_takes_memory_before_it_proves_right(path, spikes, name, value, match):
    est = RNNSAE(**SMALL | {"max_epochs": 1}, cell="mlp", inference="amortized").fit(spikes)
    forge(est, path, put("fitted_with", name, value=value))
    # Terabytes: memory for these cannot be had, which would be another error.
    with pytest.raises(ValueError, match=match):
        load(path)


@pytest.mark.parametrize(("change", "match"), FORGED)
def test_a_file_that_holds_no_estimator_is_refused(shared, path, change, match):
    forge(shared, path, change)
    with pytest.raises(ValueError, match=rf"(?s){path.name} cannot be loaded: .*{match}") as caught:
        load(path)
    assert type(caught.value) is ValueError
    assert f"this is sklearn_sae {sklearn_sae.__version__}" in str(caught.value)


def test_the_version_that_wrote_a_file_is_named(shared, path):
    def change(content, arrays):
        content["versions"]["sklearn_sae"] = "7.8.9"
        content["parameters"]["stiffness"] = 1

    forge(shared, path, change)
    with pytest.raises(ValueError, match=r"'sklearn_sae': '7\.8\.9'.*use the version that wrote"):
        load(path)


def test_parameters_that_the_file_lacks_have_their_defaults(shared, path):
    # So a parameter may be added, if its default is what was done before.
    forge(shared, path, put("parameters", "tol", value=None))
    assert load(path).tol == 1e-4


def test_shapes_are_compared_before_any_memory_is_taken(kind):
    est = copy.deepcopy(kind)
    state = est.model_.state_dict()
    shapes = est._build_network(est.null_rates_, est.n_inputs_in_, None).state_dict()
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in state.items()}
    from_counts = {"encoder.mean", "encoder.spread"}
    assert all(v.is_meta for k, v in shapes.items() if k not in from_counts)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tuple", "float", "device", "RandomState", "int8", "key"]) | st.text(),
            inner,
            max_size=2,
        )
    ),
) | st.sampled_from(["amortized", "tanh", "cpu", "", "NODESAE", "gru"])


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_whatever_the_header_says_is_refused_or_loaded(shared, tmp_path, monkeypatch, data):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path = tmp_path / "forged"

    def change(content, arrays):
        section = data.draw(st.sampled_from(sorted(content)), "section")
        value = data.draw(json_values, "value")
        if section == "class" or data.draw(st.booleans(), "all of it"):
            content[section] = value
        else:
            content[section][data.draw(st.sampled_from(sorted(content[section])), "key")] = value

    forge(shared, path, change)
    try:
        loaded = load(path)
    except ValueError as error:
        assert type(error) is ValueError and str(path) in str(error)
    else:
        if loaded.model_.dynamics.solver.n_substeps < 100:
            loaded.set_params(device="cpu", max_refine_iter=2)
            assert loaded.transform(np.ones((2, 3, 6))).shape == (2, 3, 2)
