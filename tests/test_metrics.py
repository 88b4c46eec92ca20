import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.stats import multivariate_normal, poisson
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from sklearn_sae.metrics import (
    bits_per_spike,
    power_spectrum_distance,
    psth_r2,
    rate_r2,
    state_r2,
    state_space_divergence,
)

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ragged(array, lengths):
    return [trial[:n] for trial, n in zip(array, lengths, strict=True)]


# --- rates ---------------------------------------------------------------------------------------


def test_rate_r2_is_the_mean_over_neurons(rng):
    true = rng.gamma(2, size=(6, 9, 4)) * [1, 10, 100, 0.1]
    pred = true + rng.normal(size=true.shape)
    each = [r2_score(true[..., i].ravel(), pred[..., i].ravel()) for i in range(4)]
    assert rate_r2(true, pred) == pytest.approx(np.mean(each))
    assert rate_r2(true, true) == 1
    lengths = [9, 3, 5, 9, 1, 2]
    flat = [np.concatenate(ragged(x, lengths)) for x in (true, pred)]
    assert rate_r2(ragged(true, lengths), ragged(pred, lengths)) == pytest.approx(r2_score(*flat))


@given(seeds, st.floats(1e-3, 1e3), st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_rate_r2_does_not_depend_on_units(seed, scale, shift):
    rng = np.random.default_rng(seed)
    true, pred = rng.normal(size=(2, 3, 7, 2))
    same = rate_r2(scale * true + shift, scale * pred + shift)
    assert same == pytest.approx(rate_r2(true, pred), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("constant", [0.1, 3.0, 0.0, -1e9])
def test_what_is_constant_has_no_r2(rng, constant):
    true, pred = rng.gamma(2, size=(2, 12, 5, 3))
    expected = rate_r2(true[..., [0, 2]], pred[..., [0, 2]])
    true[..., 1] = constant
    with pytest.warns(UserWarning, match="true is constant in 1 column.* first of them 1") as seen:
        assert rate_r2(true, pred) == expected
    assert seen[0].filename == __file__
    # Whether the map hits a constant, to the last bit, is chance.
    with pytest.warns(UserWarning, match="true is constant in 1 column.* first of them 1") as seen:
        found = state_r2(true, pred, direction="inferred->true")
    assert found == pytest.approx(state_r2(true[..., [0, 2]], pred, direction="inferred->true"))
    assert seen[0].filename == __file__
    by_variance = {"direction": "inferred->true", "multioutput": "variance_weighted"}
    some = state_r2(true[..., [0, 2]], pred, **by_variance)
    assert state_r2(true, pred, **by_variance) == pytest.approx(some)
    # Beside it, a neuron that was not observed.
    spikes = np.concatenate([np.full((12, 5, 1), np.nan), true], axis=-1)
    rates = np.concatenate([pred[..., :1], pred], axis=-1)
    with pytest.warns(UserWarning, match="PSTH is constant in 1 column.* first of them 2") as seen:
        found = psth_r2(rates, spikes)
    assert found == pytest.approx(psth_r2(pred[..., [0, 2]], true[..., [0, 2]]))
    assert seen[0].filename == __file__


@pytest.mark.parametrize("metric", [rate_r2, state_r2, lambda x, y: psth_r2(y, x)])
def test_there_is_no_r2_of_nothing_but_constants(metric):
    x = np.ones((3, 4, 2)) * [0.1, 0.7]
    with pytest.raises(ValueError, match="is constant in every column, so that R2 has no value"):
        metric(x, x)


def test_shapes_that_do_not_match(rng):
    x = rng.normal(size=(3, 5, 2))
    with pytest.raises(ValueError, match="true and pred must have one shape"):
        rate_r2(x, x[:, :4])
    with pytest.raises(ValueError, match="true must be an array"):
        rate_r2(x[0, 0], x[0, 0])
    with pytest.raises(ValueError, match="true must be an array"):
        rate_r2([x[0], x[1, :, :1]], [x[0], x[1]])
    with pytest.raises(ValueError, match="true must be an array"):
        rate_r2([], [])


# --- states --------------------------------------------------------------------------------------


def test_state_r2_by_least_squares(rng):
    true = rng.normal(size=(8, 10, 3))
    inferred = np.concatenate([true @ rng.normal(size=(3, 2)), rng.normal(size=(8, 10, 1))], -1) + 5
    z, w = true.reshape(-1, 3), inferred.reshape(-1, 3)
    for direction, x, y in (("true->inferred", z, w), ("inferred->true", w, z)):
        design = np.column_stack([x, np.ones(len(x))])
        fit = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        expected = np.mean(1 - ((y - fit) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0))
        assert state_r2(true, inferred, direction=direction) == pytest.approx(expected)
    assert state_r2(true, inferred) < 0.75 < 0.99
    # All of the truth is in the inferred latents only if none is lost
    assert state_r2(true, np.concatenate([true, inferred], -1), direction="inferred->true") > 0.999


def test_state_r2_on_trials_not_fitted(rng):
    true = rng.normal(size=(10, 6, 2))
    inferred = true @ rng.normal(size=(2, 3)) + rng.normal(size=(10, 6, 3))
    train = np.array([0, 1, 2, 5])
    rest = np.setdiff1d(np.arange(10), train)
    affine = LinearRegression().fit(true[train].reshape(-1, 2), inferred[train].reshape(-1, 3))
    expected = affine.score(true[rest].reshape(-1, 2), inferred[rest].reshape(-1, 3))
    assert state_r2(true, inferred, train=train) == pytest.approx(expected)
    # As in the Computation-through-Dynamics Benchmark
    target = inferred[rest].reshape(-1, 3)
    error = ((target - affine.predict(true[rest].reshape(-1, 2))) ** 2).sum()
    weighted = state_r2(true, inferred, train=train, multioutput="variance_weighted")
    assert weighted == pytest.approx(1 - error / ((target - target.mean(0)) ** 2).sum())
    assert weighted != pytest.approx(expected)
    mask = np.isin(np.arange(10), train)
    assert state_r2(list(true), list(inferred), train=mask) == pytest.approx(expected)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_state_r2_sees_through_affine_maps_of_the_truth(seed):
    rng = np.random.default_rng(seed)
    true, inferred = rng.normal(size=(2, 4, 9, 3))
    score = state_r2(true, inferred)
    assert 0 <= score <= 1
    moved = true @ (rng.normal(size=(3, 3)) + 5 * np.eye(3)) + rng.normal(size=3)
    assert state_r2(moved, inferred) == pytest.approx(score, abs=1e-8)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (dict(direction="both"), "direction must be"),
        (dict(multioutput="raw_values"), "multioutput must be"),
        (dict(train=[]), "train must leave"),
        (dict(train=[0, 1, 2]), "train must leave"),
    ],
)
def test_state_r2_errors(rng, kwargs, match):
    z = rng.normal(size=(3, 5, 2))
    kwargs = {k: np.array(v, dtype=int) if k == "train" else v for k, v in kwargs.items()}
    with pytest.raises(ValueError, match=match):
        state_r2(z, z, **kwargs)
    with pytest.raises(ValueError, match="as many trials"):
        state_r2(z, z[:2])


# --- spikes --------------------------------------------------------------------------------------


@given(seeds, st.floats(0.01, 20), st.booleans())
@settings(max_examples=40, deadline=None)
def test_bits_per_spike_by_scipy(seed, level, missing):
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2, level, size=(4, 6, 3))
    spikes = rng.poisson(rates).astype(float)
    spikes[0, 0] = 1
    if missing:
        spikes[rng.random(spikes.shape) < 0.3] = np.nan
        spikes[0, 0] = 1
    null = np.nanmean(spikes, axis=(0, 1))
    seen = ~np.isnan(spikes)
    gain = poisson.logpmf(spikes, rates) - poisson.logpmf(spikes, null)
    expected = gain[seen].sum() / spikes[seen].sum() / np.log(2)
    assert bits_per_spike(rates, spikes) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert bits_per_spike(rates, spikes, null) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    lengths = [6, 1, 4, 3]
    padded = np.where(np.arange(6)[:, None] < np.reshape(lengths, (-1, 1, 1)), spikes, np.nan)
    lists = bits_per_spike(ragged(rates, lengths), ragged(spikes, lengths), null)
    assert lists == pytest.approx(bits_per_spike(rates, padded, null))


def test_bits_per_spike_exactly():
    assert bits_per_spike([[0.0], [2.0]], [[0], [2]]) == pytest.approx(1)
    assert bits_per_spike([[1.0], [1.0]], [[0], [2]]) == 0
    assert bits_per_spike([[1.0]], [[1]], [0.5]) == pytest.approx(1 - 0.5 / np.log(2))
    # a spike where none can be: a rate of 1e-9, not minus infinity
    assert -50 < bits_per_spike([[0.0], [1.0]], [[1], [1]]) < -10


def test_bits_per_spike_errors():
    with pytest.raises(ValueError, match="rates must be expected counts >= 0"):
        bits_per_spike([[-1.0]], [[1]])
    with pytest.raises(ValueError, match="no spike"):
        bits_per_spike([[1.0]], [[0]])
    with pytest.raises(ValueError, match="no spike"):
        bits_per_spike([[1.0]], [[np.nan]])


def test_psth_r2_condition_by_condition(rng):
    rates = rng.gamma(2, size=(12, 5, 3))
    spikes = rng.poisson(rates).astype(float)
    conditions = np.repeat(["left", "right", "up"], 4)
    true, pred = (
        np.concatenate([x[conditions == c].mean(axis=0) for c in ("left", "right", "up")])
        for x in (spikes, rates)
    )
    assert psth_r2(rates, spikes, conditions) == pytest.approx(r2_score(true, pred))
    assert psth_r2(rates, spikes) == pytest.approx(r2_score(spikes.mean(0), rates.mean(0)))
    # A trial not observed is as good as absent; so is a bin that no trial has
    spikes[0] = np.nan
    without = psth_r2(rates[1:], spikes[1:], conditions[1:])
    assert psth_r2(rates, spikes, conditions) == pytest.approx(without)
    spikes[:4, 2] = np.nan
    kept = np.setdiff1d(np.arange(15), 2)
    true, pred = (
        np.concatenate([x[1:4].mean(0), x[4:8].mean(0), x[8:].mean(0)])[kept]
        for x in (spikes, rates)
    )
    assert psth_r2(rates, spikes, conditions) == pytest.approx(r2_score(true, pred))
    # A neuron that was never observed
    spikes[..., 1] = np.nan
    seen = r2_score(true[:, [0, 2]], pred[:, [0, 2]])
    assert psth_r2(rates, spikes, conditions) == pytest.approx(seen)


def test_psth_r2_errors(rng):
    x = np.ones((3, 4, 2))
    with pytest.raises(ValueError, match="rates and spikes must both"):
        psth_r2(x, x[0])
    with pytest.raises(ValueError, match="conditions must have one label for each of 3"):
        psth_r2(x, x, [0, 1])
    with pytest.raises(ValueError, match="spikes holds only NaN"):
        psth_r2(x, np.full_like(x, np.nan))


# --- attractors ----------------------------------------------------------------------------------


def test_divergence_by_dense_histograms(rng):
    x, y = rng.normal(size=(500, 3)), 1.2 * rng.normal(size=(700, 3)) + 0.1
    edges = [
        np.linspace(c.min() - 0.1 * c.std(), c.max() + 0.1 * c.std(), 9) for c in x.T
    ]  # fmt: skip
    p, q = (np.histogramdd(points, edges)[0].ravel() + 1e-5 for points in (x, y))
    p, q = p / p.sum(), q / q.sum()
    expected = np.sum(p * np.log(p / q))
    assert state_space_divergence(x, y, n_bins=8) == pytest.approx(expected)
    assert state_space_divergence(x.reshape(5, 100, 3), [y[:300], y[300:]], n_bins=8) == (
        pytest.approx(expected)
    )


def test_divergence_by_gaussian_mixtures(rng):
    x = rng.normal(size=(40, 6)) * np.arange(1, 7)
    y = x[:30] + 0.5
    draws = np.random.RandomState(3)
    around = draws.randint(40, size=50)
    scale = x.std(axis=0)
    samples = (x / scale)[around] + draws.normal(size=(50, 6))

    def density(points):
        return np.mean([multivariate_normal.pdf(samples, mean=m) for m in points / scale], axis=0)

    expected = np.mean(np.log(density(x) / density(y)))
    got = state_space_divergence(x, y, n_samples=50, random_state=3)
    assert got == pytest.approx(expected)
    assert state_space_divergence(x, x) == 0
    # Many points, which are taken in parts: the same points once more change nothing
    often = np.tile(y, (10_000, 1))
    assert state_space_divergence(x, often, n_samples=50, random_state=3) == pytest.approx(expected)


@given(seeds, st.integers(1, 4), st.sampled_from(["bins", "gmm"]))
@settings(max_examples=30, deadline=None)
def test_divergence_is_no_less_than_zero(seed, dim, method):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 100, dim))
    assert state_space_divergence(x, x, method=method) == pytest.approx(0, abs=1e-12)
    if method == "bins":  # gmm is an estimate from draws
        assert state_space_divergence(x, y, method=method) >= 0
    scaled = [3.0 * a - 7.0 for a in (x, y)]
    assert state_space_divergence(*scaled, method="gmm", n_samples=50) == pytest.approx(
        state_space_divergence(x, y, method="gmm", n_samples=50), abs=1e-6
    )


def test_divergence_of_what_went_astray(rng):
    x = rng.normal(size=(50, 2))
    assert state_space_divergence(x, x + 1e6) == np.inf
    assert state_space_divergence(x, np.full((50, 2), np.nan)) == np.inf
    still = np.column_stack([x, np.ones(50)])
    assert state_space_divergence(still, still) == 0
    with pytest.raises(ValueError, match="same dimensions, got 2 and 3"):
        state_space_divergence(x, still)
    with pytest.raises(ValueError, match="method must be"):
        state_space_divergence(x, x, method="kde")


def test_power_spectra_by_hand(rng):
    x, y = np.cumsum(rng.normal(size=(2, 4, 64, 2)), axis=2)

    def spectrum(trials, i):
        each = []
        for trial in trials:
            z = (trial[:, i] - trial[:, i].mean()) / trial[:, i].std()
            power = gaussian_filter1d(np.abs(np.fft.rfft(z)) ** 2, 2.0)
            each.append(power / power.sum())
        return np.mean(each, axis=0)

    affinity = [np.sum(np.sqrt(spectrum(x, i) * spectrum(y, i))) for i in range(2)]
    expected = np.mean(np.sqrt(1 - np.array(affinity)))
    assert power_spectrum_distance(x, y, smoothing=2.0) == pytest.approx(expected)


def test_power_spectra_exactly():
    t = np.arange(100)[:, None] * 2 * np.pi / 100
    slow, fast = np.sin(3 * t), np.cos(20 * t)
    assert power_spectrum_distance(slow, fast, smoothing=0) == pytest.approx(1)
    assert power_spectrum_distance(slow, 5 * np.cos(3 * t) + 2, smoothing=0) < 1e-6
    # Half of the power elsewhere: affinity sqrt(1/2)
    both = slow + fast
    assert power_spectrum_distance(slow, both, smoothing=0) == pytest.approx(
        np.sqrt(1 - np.sqrt(0.5))
    )
    constant = np.full((100, 1), 3.3)
    assert power_spectrum_distance(constant, constant) == 0
    assert power_spectrum_distance(slow, constant, smoothing=0) == pytest.approx(1)
    assert power_spectrum_distance(slow, np.full((100, 1), np.inf)) == 1


@given(seeds, st.floats(0, 5))
@settings(max_examples=30, deadline=None)
def test_power_spectrum_distance_is_a_distance(seed, smoothing):
    x, y, z = np.random.default_rng(seed).normal(size=(3, 40, 2))
    d = [power_spectrum_distance(a, b, smoothing=smoothing) for a, b in ((x, y), (y, z), (x, z))]
    assert all(0 <= value <= 1 for value in d)
    assert d[2] <= d[0] + d[1] + 1e-12
    assert power_spectrum_distance(y, x, smoothing=smoothing) == pytest.approx(d[0])
    assert power_spectrum_distance(x, x, smoothing=smoothing) == 0


def test_power_spectra_need_one_length(rng):
    x = rng.normal(size=(2, 30, 1))
    with pytest.raises(ValueError, match=r"as many bins.*\[20, 30\]"):
        power_spectrum_distance(x, x[:, :20])
    with pytest.raises(ValueError, match="smoothing must be"):
        power_spectrum_distance(x, x, smoothing=-1)
