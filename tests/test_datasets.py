import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.optimize import minimize
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

from sklearn_sae.datasets import (
    Arneodo,
    CustomSystem,
    Lorenz,
    MacArthur,
    Rossler,
    make_chaotic_spikes,
    oracle_rates,
)

ODES = [Lorenz, Rossler, Arneodo, MacArthur]


def spiral(z):
    x, y = z[..., 0], z[..., 1]
    return np.stack([y, (1 - x**2) * y - x], axis=-1)


# --- spikes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return make_chaotic_spikes("Arneodo", n_trials=100, random_state=7)


def test_everything_the_paper_determines(data):
    rng = np.random.default_rng(7)
    readout = rng.uniform(-0.5, 0.5, (3, 10))
    readout = readout[:, np.argsort(readout[0])]
    np.testing.assert_array_equal(data.readout, readout)
    assert data.bin_width == 3.1641 / 35
    rest, test = train_test_split(np.arange(100), test_size=0.2, random_state=7)
    train, validation = train_test_split(rest, test_size=0.2, random_state=7)
    np.testing.assert_array_equal(data.train, train)
    np.testing.assert_array_equal(data.validation, validation)
    np.testing.assert_array_equal(data.test, test)
    activity = data.latents.reshape(-1, 3) @ readout
    activity = (activity - activity.mean(0)) / activity.std(0)
    np.testing.assert_allclose(data.rates.reshape(-1, 10), np.exp(activity), rtol=1e-10)
    np.testing.assert_array_equal(
        rng.poisson(data.rates.reshape(-1, 10)), data.spikes.reshape(-1, 10)
    )
    np.testing.assert_array_equal(data.latents[0, 0], Arneodo().start)


def test_shapes_and_readout(data):
    assert data.spikes.shape == data.rates.shape == (100, 70, 10)
    assert np.issubdtype(data.spikes.dtype, np.integer)
    assert isinstance(data.system, Arneodo)
    log_rates = data.latents @ data.log_rate_weights + data.log_rate_bias
    np.testing.assert_allclose(np.log(data.rates), log_rates)
    np.testing.assert_allclose(log_rates.mean((0, 1)), 0, atol=1e-10)
    np.testing.assert_allclose(log_rates.std((0, 1)), 1)
    assert [len(data[k]) for k in ("train", "validation", "test")] == [64, 16, 20]


def test_counts_are_poisson(data):
    z = (data.spikes - data.rates) / np.sqrt(data.rates)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 0.05


def test_contiguous_trials_follow_each_other(data):
    whole = data.latents.reshape(-1, 3)
    np.testing.assert_array_equal(whole, data.system.trajectory(7000, data.bin_width))


def test_independent_trials(data):
    apart = make_chaotic_spikes("Arneodo", n_trials=100, trials="independent", random_state=7)
    np.testing.assert_array_equal(apart.readout, data.readout)
    np.testing.assert_allclose(
        apart.system.simulate(apart.latents[3, 0], 70, apart.bin_width), apart.latents[3], atol=1e-4
    )
    step = np.abs(np.diff(data.latents, axis=1)).max()
    jump = np.abs(apart.latents[1:, 0] - apart.latents[:-1, -1]).max(axis=1)
    assert np.median(jump) > step
    starts = apart.latents[:, 0]
    distance = np.linalg.norm(starts[:, None] - starts, axis=-1)[np.triu_indices(100, 1)]
    assert distance.min() > 1e-3


def test_random_state_decides_everything_and_touches_nothing_else():
    small = dict(n_trials=4, n_bins=6, n_neurons=3)
    before = np.random.get_state()[1].copy()
    first, again = (make_chaotic_spikes("Rossler", random_state=3, **small) for _ in range(2))
    unseeded = make_chaotic_spikes("Rossler", **small)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    for key in ("spikes", "rates", "latents", "readout", "train"):
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first.readout, unseeded.readout)
    for kind in (np.random.RandomState, np.random.default_rng):
        a, b = (make_chaotic_spikes("Rossler", random_state=kind(5), **small) for _ in range(2))
        np.testing.assert_array_equal(a.spikes, b.spikes)


def test_points_per_period_and_neurons():
    data = make_chaotic_spikes(
        Lorenz(), n_trials=3, n_bins=4, n_neurons=1, points_per_period=50, random_state=0
    )
    assert data.bin_width == 1.5008 / 50
    assert data.spikes.shape == (3, 4, 1)
    assert [len(data[k]) for k in ("train", "validation", "test")] == [1, 1, 1]


def test_macarthur_is_standardised():
    data = make_chaotic_spikes("MacArthur", n_trials=10, n_neurons=5, random_state=0)
    z = data.latents.reshape(-1, 10)
    activity = (z - z.mean(0)) / z.std(0) @ data.readout
    expected = (activity - activity.mean(0)) / activity.std(0)
    np.testing.assert_allclose(np.log(data.rates).reshape(-1, 5), expected, atol=1e-9)


def test_mackey_glass_spikes():
    data = make_chaotic_spikes("MackeyGlass", n_trials=5, n_neurons=20, random_state=0)
    assert data.latents.shape == (5, 70, 10)
    with pytest.raises(NotImplementedError, match="delay"):
        oracle_rates(data)


def test_a_system_at_rest_gives_rates_of_one():
    rest = CustomSystem(spiral, [0.0, 0.0], period=6.66)
    data = make_chaotic_spikes(rest, n_trials=3, n_bins=5, random_state=0)
    np.testing.assert_array_equal(data.rates, 1.0)


@given(st.integers(3, 12), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_any_size(n_trials, n_bins, n_neurons, seed):
    data = make_chaotic_spikes(
        "Arneodo", n_trials=n_trials, n_bins=n_bins, n_neurons=n_neurons, random_state=seed
    )
    assert data.spikes.shape == (n_trials, n_bins, n_neurons)
    split = np.concatenate([data.train, data.validation, data.test])
    np.testing.assert_array_equal(np.sort(split), np.arange(n_trials))
    assert np.all(np.diff(data.readout[0]) >= 0)
    assert np.all(np.abs(data.readout) <= 0.5)
    assert np.all(np.isfinite(data.rates))


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        (dict(system="Lorentz"), ValueError, "system must be one of .*'Lorenz'.*'Lorentz'"),
        (dict(system=Lorenz), TypeError, "give an object"),
        (dict(system=spiral), TypeError, "CustomSystem"),
        (dict(n_trials=2), ValueError, "n_trials must be an integer >= 3"),
        (dict(n_bins=0), ValueError, "n_bins must be an integer >= 1; got 0"),
        (dict(n_neurons=2.5), ValueError, "n_neurons must be an integer"),
        (dict(points_per_period=0), ValueError, "points_per_period must be a positive"),
        (dict(points_per_period=np.inf), ValueError, "points_per_period must be a positive"),
        (dict(trials="split"), ValueError, "trials must be one of"),
        (dict(random_state="x"), ValueError, "cannot be used to seed"),
    ],
)
def test_errors(kwargs, error, match):
    with pytest.raises(error, match=match):
        make_chaotic_spikes(**{"system": "Lorenz", **kwargs})


# --- oracle --------------------------------------------------------------------------------------


def log_likelihood(spikes, rates):
    return (spikes * np.log(rates) - rates).sum(axis=(1, 2))


@pytest.mark.parametrize("system", ["Arneodo", "Lorenz", "Rossler"])
def test_oracle_is_close_to_the_truth(system):
    data = make_chaotic_spikes(system, n_trials=60, random_state=0)
    rates, latents = oracle_rates(data, return_latents=True)
    assert r2_score(data.rates.reshape(-1, 10), rates.reshape(-1, 10)) > 0.98
    assert r2_score(data.latents.reshape(-1, 3), latents.reshape(-1, 3)) > 0.98
    assert np.all(log_likelihood(data.spikes, rates) >= log_likelihood(data.spikes, data.rates))
    # On a trajectory, and at the top of the likelihood along every direction
    i = 5
    np.testing.assert_allclose(
        data.system.simulate(latents[i, 0], 70, data.bin_width), latents[i], atol=0.05
    )
    top = log_likelihood(data.spikes[[i]], rates[[i]])
    for direction in np.vstack([np.eye(3), -np.eye(3)]):
        moved = data.system.simulate(latents[i, 0] + 0.05 * direction, 70, data.bin_width)
        there = np.exp(moved @ data.log_rate_weights + data.log_rate_bias)
        assert log_likelihood(data.spikes[[i]], there[None]) < top


def test_oracle_equals_a_general_optimizer():
    a = np.array([[-0.05, 1.0], [-1.0, -0.05]])
    system = CustomSystem(lambda z: z @ a.T, [1.0, 0.5], period=2 * np.pi, burn_in=0)
    data = make_chaotic_spikes(system, n_trials=6, n_bins=20, n_neurons=8, random_state=0)
    rates, latents = oracle_rates(data, [1, 4], return_latents=True)
    maps = np.stack([expm(a * data.bin_width * t) for t in range(20)])

    def cost(z0, spikes):
        log_rates = maps @ z0 @ data.log_rate_weights + data.log_rate_bias
        return np.sum(np.exp(log_rates) - spikes * log_rates)

    for i, trial in enumerate([1, 4]):
        best = minimize(cost, np.zeros(2), data.spikes[trial], method="BFGS", tol=1e-10)
        np.testing.assert_allclose(latents[i, 0], best.x, atol=1e-3)
    assert rates.shape == (2, 20, 8)


def test_oracle_does_not_believe_other_latents():
    data = make_chaotic_spikes("Arneodo", n_trials=5, n_bins=20, random_state=0)
    data.latents = data.latents[:, ::-1]
    with pytest.raises(RuntimeError, match="do not follow data.system"):
        oracle_rates(data)
