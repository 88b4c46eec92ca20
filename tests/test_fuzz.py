"""Three hundred inputs that nobody should give: each ends in a clear error or in a right answer.

An error is clear if this package or scikit-learn's own checks raised it on purpose, as a ValueError
or a TypeError, and it says what was given. An answer is right if it is that of the same spikes,
given as a plain array or list of floats.
"""

import pickle
import traceback
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from conftest import SMALL

import sklearn_sae
from sklearn_sae import NODESAE

N_NEURONS = 6
DTYPES = (
    ["uint8", "uint16", ">u2", "int8", "int16", ">i4", "int64", "uint64", "bool"]
    + ["float16", "float32", ">f4", "float64", "longdouble"]
    + ["complex64", "object", "str", "bytes", "datetime64[s]", "timedelta64[s]"]
)


@pytest.fixture(scope="module")
def node(spikes):
    return NODESAE(**SMALL | {"max_epochs": 3}).fit(spikes)


@pytest.fixture(scope="module")
def file(node, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "node.safetensors"
    node.save(path)
    return path.read_bytes()


#: Warnings of values that can hardly be right.
ABOUT_X = ("X holds 1e+06 spikes in a bin", "X has no spikes at all", "score is NaN: there is no")


def try_(call, *args, names):
    """What the call gives; None if it raised an error, which must be a clear one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = call(*args)
        except (TypeError, ValueError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1].filename.replace("\\", "/")
            assert "/sklearn_sae/" in frame or "/sklearn/utils/" in frame, f"by accident: {error!r}"
            assert any(name in str(error) for name in names), f"unclear: {error!r}"
            answer = None
    messages = [str(warning.message) for warning in caught]
    assert all(message.startswith(ABOUT_X) for message in messages), messages
    return answer


# ---------------------------------------------------------------------------------- spikes


def with_entries(values):
    def change(X, rng):
        X = X.copy()
        X[rng.random(X.shape) < rng.choice([0.02, 0.3])] = rng.choice(values)
        return X

    return change


def with_nan_in(axis):
    def change(X, rng):
        X = X.copy()
        X.swapaxes(0, axis)[rng.integers(X.shape[axis])] = np.nan
        return X

    return change


def as_dtype(X, rng):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NaN as an integer, and so on
        return np.nan_to_num(X).astype(rng.choice(DTYPES))


def ragged(X, rng):
    return [trial[: rng.integers(0, len(trial) + 1)] for trial in X]


def list_with(stranger):
    def change(X, rng):
        trials = list(X)
        trials.insert(rng.integers(len(trials) + 1), stranger)
        return trials

    return change


ENTRIES = [
    with_entries([np.nan]),
    with_entries([np.inf, -np.inf]),
    with_entries([-1.0, -1e-3]),
    with_entries([0.5, 2.25]),
    with_entries([1e6, 1e30, 1e300]),
    with_nan_in(0),
    with_nan_in(1),
    with_nan_in(2),
    lambda X, rng: np.full_like(X, np.nan),
]
SHAPES = [
    lambda X, rng: X.transpose(rng.permutation(3)),
    lambda X, rng: X[0],
    lambda X, rng: X[..., 0, 0],
    lambda X, rng: X[np.newaxis],
    lambda X, rng: X.take([], axis=rng.integers(3)),
    lambda X, rng: X[:, :1],
    lambda X, rng: X[..., : rng.integers(1, N_NEURONS)],
    lambda X, rng: np.concatenate([X, X[..., :1]], axis=2),
    lambda X, rng: np.array(X[0, 0, 0]),
]
FORMS = [
    as_dtype,
    as_dtype,
    lambda X, rng: X.tolist(),
    lambda X, rng: tuple(X),
    lambda X, rng: X[::-1, ::-1].copy()[::-1, ::-1],
    lambda X, rng: np.asfortranarray(X),
    lambda X, rng: torch.from_numpy(X.copy()),
    lambda X, rng: np.ma.masked_invalid(X),
    lambda X, rng: pd.DataFrame(X.reshape(len(X), -1)),
    lambda X, rng: scipy.sparse.csr_array(np.nan_to_num(X).reshape(len(X), -1)),
    ragged,
    ragged,
    lambda X, rng: [*map(pd.DataFrame, X)],
    lambda X, rng: [trial.tolist() for trial in X],
    lambda X, rng: [trial if rng.random() < 0.5 else trial[:, 1:] for trial in X],
    list_with(None),
    list_with("trial"),
    list_with(np.ones(N_NEURONS)),
    list_with(np.ones((3, N_NEURONS), dtype="uint8")),
    list_with(np.full((3, N_NEURONS), np.nan)),
    list_with([[1, 2], [3]]),
    list_with({}),
    lambda X, rng: np.array([*X, None], dtype=object)[:-1],
    lambda X, rng: {"spikes": X},
    lambda X, rng: (trial for trial in X),
    lambda X, rng: rng.choice(np.array([None, "spikes", 3, 2.5, b"", len], dtype=object)),
]


def malformed_spikes(rng):
    """Spikes of six neurons, after a change to entries, to the shape, to the form, or several."""
    X = rng.poisson(1.5, (rng.integers(1, 5), rng.integers(2, 9), N_NEURONS)).astype(float)
    for changes, share in ((ENTRIES, 0.5), (SHAPES, 0.25), (FORMS, 0.6)):
        if rng.random() < share and X.ndim == 3 and X.size:
            X = changes[rng.integers(len(changes))](X, rng)
    return X


def plain(X, n_neurons=None):
    """The trials of X as arrays of floats; None if they are not spikes of so many neurons."""
    if isinstance(X, torch.Tensor):
        X = X.numpy()
    # Not isinstance: a masked array is one, too.
    if not isinstance(X, list | tuple) and (type(X) is not np.ndarray or X.ndim != 3):
        return None
    try:
        trials = [np.asarray(trial) for trial in X]
    except (TypeError, ValueError):
        return None
    good = (
        len(trials) > 0
        and all(x.dtype.kind in "uifb" and x.ndim == 2 and len(x) > 1 for x in trials)
        and {x.shape[1] for x in trials} == {n_neurons or trials[0].shape[1]} - {0}
        and all(np.all(np.isnan(x) | (x >= 0) & (x < 1e7)) for x in trials)
        and all(not np.isnan(x).all() for x in trials)
    )
    return [x.astype(float) for x in trials] if good else None


def same(answer, expected, X):
    assert isinstance(answer, list) == isinstance(X, list | tuple)
    for one, other in zip(answer, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


WORDS = ("X", "trial", "neuron", "Negative")


@pytest.mark.parametrize("seed", range(150))
def test_spikes_for_a_fitted_model(node, seed):
    rng = np.random.default_rng([0, seed])
    X = malformed_spikes(rng)
    method = rng.choice(["predict", "transform", "score", "initial_conditions", "forecast"])
    call = {"forecast": lambda X: node.forecast(X, 3)}.get(method, getattr(node, method))
    answer, trials = try_(call, X, names=WORDS), plain(X, N_NEURONS)
    if trials is None:
        assert answer is None
    elif method in ("predict", "transform"):
        assert all(np.isfinite(x).all() for x in answer)
        same(answer, call(trials), X)
    else:
        assert np.isfinite(answer).all()
        np.testing.assert_allclose(answer, call(trials), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(50))
def test_spikes_to_fit(seed):
    X = malformed_spikes(np.random.default_rng([1, seed]))
    est = NODESAE(**SMALL | {"hidden_sizes": (4,), "max_epochs": 2})
    fitted, trials = try_(est.fit, X, names=WORDS), plain(X)
    if trials is None or np.isnan(np.concatenate(trials)).all(axis=0).any():
        assert fitted is None
    else:
        assert all(np.isfinite(x).all() for x in fitted.predict(X))


# ---------------------------------------------------------------------------------- latents


@pytest.mark.parametrize("seed", range(30))
def test_latents(node, seed):
    rng = np.random.default_rng([2, seed])
    z = rng.normal(size=tuple(rng.integers(1, 4, rng.integers(0, 3))) + (SMALL["n_latents"],))
    for change in rng.permutation(
        [
            lambda z: np.where(rng.random(z.shape) < 0.3, rng.choice([np.nan, np.inf, -1e3]), z),
            lambda z: z.astype(rng.choice(DTYPES)),
            lambda z: z[..., :1],
            lambda z: z[..., 0],
            lambda z: np.concatenate([z, z], axis=-1),
            lambda z: z[:0],
            lambda z: z.T,
            lambda z: z,
        ]
    )[: rng.integers(1, 3)]:
        z = change(z) if z.ndim else z
    z = z.tolist() if rng.random() < 0.3 else z
    method = rng.choice(["inverse_transform", "step", "vector_field", "simulate"])
    call = {"simulate": lambda z: node.simulate(z, 3)}.get(method, getattr(node, method))
    answer, array = try_(call, z, names=("latents",)), np.asarray(z)
    if array.dtype.kind not in "uifbO" or not np.isfinite(array.astype(float)).all():
        assert answer is None
    elif array.ndim == 0 or array.shape[-1] != SMALL["n_latents"]:
        assert answer is None
    else:
        np.testing.assert_allclose(answer, call(array.astype(float)), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------- saved files


def corrupt(data, rng):
    """A saved file as disks, networks and people leave it."""
    i, j = sorted(rng.integers(0, len(data) + 1, 2))
    header = 8 + int.from_bytes(data[:8], "little")
    k = rng.integers(0, header)
    noise = rng.bytes(rng.integers(1, 200))
    changed = [
        data[:i],
        data[i:],
        data[:k],
        data[:i] + data[j:],
        data[:i] + noise + data[i:],
        data[:k] + noise + data[k:],
        data[:i] + bytes(j - i) + data[j:],
        data[:i] + bytes([data[i - 1] ^ (1 << rng.integers(8))]) + data[i + 1 :],
        data[:k] + bytes([data[k] ^ (1 << rng.integers(8))]) + data[k + 1 :],
        rng.bytes(8) + data[8:],
        int(rng.integers(0, 2 * header)).to_bytes(8, "little") + data[8:],
        data[:8] + b"{" * (header - 8) + data[header:],
        data[:8] + data[8:header].replace(b"F32", b"F64") + data[header:],
        data[:8] + data[8:header].replace(b"0", rng.choice([b"1", b"9", b"-"])) + data[header:],
        data + noise,
        data + data,
        noise,
        b"",
        b"spikes,neuron\n1,2\n",
        pickle.dumps({"spikes": np.arange(3)}),
    ]
    return changed[rng.integers(len(changed))]


@pytest.mark.parametrize("seed", range(70))
def test_saved_files(node, file, spikes, tmp_path, seed):
    rng = np.random.default_rng([3, seed])
    path = tmp_path / "broken.safetensors"
    data = corrupt(file, rng)
    path.write_bytes(data)
    loaded = try_(sklearn_sae.load, path, names=("broken.safetensors",))
    assert (loaded is None) == (data != file)
    if loaded is not None:
        np.testing.assert_array_equal(loaded.predict(spikes), node.predict(spikes))
