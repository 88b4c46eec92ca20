"""Counts are those of exact decimal arithmetic, and errors say what to do."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_sae import NODESAE
from sklearn_sae.io import trials_from_spike_times

pytestmark = pytest.mark.filterwarnings("ignore:No spike is in any trial")

NANOSECOND = Decimal("1e-9")


def seconds(nanoseconds):
    """Decimal seconds as a file or a person would write them, read as floats."""
    return np.array([float(n * NANOSECOND) for n in nanoseconds])


def test_a_spike_on_an_edge_is_in_the_bin_that_starts_there():
    # 300 * 0.001 is 0.3, but 0.3 / 0.001 is 299.99999999999994.
    neurons = [[float(Decimal(k) / 1000)] for k in range(1500)]
    (trial,) = trials_from_spike_times(neurons, bin_size=0.001, align_to=[[0.0, 1.5]])
    np.testing.assert_array_equal(trial, np.eye(1500))


#: Times in nanoseconds near multiples of whole milliseconds, where binning is hard.
near_edges = st.builds(
    lambda ms, off: ms * 1_000_000 + off,
    st.integers(0, 60),
    st.sampled_from([-1000, -3, -1, 0, 0, 0, 1, 2, 999, 499_999]),
)


@settings(deadline=None)
@given(
    # Up to a day, and to the 23 days beyond which float64 is too coarse for nanoseconds.
    clock=st.sampled_from([0, 7, 10**5, 2_000_000]),
    spikes=st.lists(st.lists(near_edges, max_size=30), min_size=1, max_size=3),
    events=st.lists(near_edges, min_size=1, max_size=4),
    start=st.integers(-20, 20),
    n_bins=st.integers(1, 12),
    bin_ms=st.sampled_from([1, 2, 5]),
)
def test_windows_equal_integer_arithmetic(clock, spikes, events, start, n_bins, bin_ms):
    clock *= 10**9
    trials = trials_from_spike_times(
        [seconds(clock + t for t in neuron) for neuron in spikes],
        bin_size=bin_ms / 1000,
        align_to=seconds(clock + t for t in events),
        window=(start / 1000, (start + n_bins * bin_ms) / 1000),
    )
    expected = np.zeros((len(events), n_bins, len(spikes)), dtype=int)
    for i, event in enumerate(events):
        for j, neuron in enumerate(spikes):
            for time in neuron:
                k = (time - event - start * 10**6) // (bin_ms * 10**6)
                if 0 <= k < n_bins:
                    expected[i, k, j] += 1
    np.testing.assert_array_equal(trials, expected)


@settings(deadline=None)
@given(
    clock=st.sampled_from([0, 10**5, 2_000_000]),
    spikes=st.lists(near_edges, max_size=30),
    epochs=st.lists(st.tuples(near_edges, near_edges).map(sorted), min_size=1, max_size=4),
    bin_ms=st.sampled_from([1, 2, 5]),
)
def test_epochs_equal_integer_arithmetic(clock, spikes, epochs, bin_ms):
    clock, width = clock * 10**9, bin_ms * 10**6
    trials = trials_from_spike_times(
        [seconds(clock + t for t in spikes)],
        bin_size=bin_ms / 1000,
        align_to=[seconds(clock + t for t in epoch) for epoch in epochs],
    )
    assert len(trials) == len(epochs)
    for trial, (start, stop) in zip(trials, epochs, strict=True):
        expected = np.zeros(((stop - start) // width, 1), dtype=int)
        for time in spikes:
            if 0 <= (time - start) // width < len(expected):
                expected[(time - start) // width] += 1
        np.testing.assert_array_equal(trial, expected)


@settings(deadline=None)
@given(
    event=st.integers(0, 10**6),
    spikes=st.lists(st.integers(-300, 3000), min_size=1, max_size=30),
    rate=st.sampled_from([30_000, 24_000, 32_768]),
)
def test_samples_and_bins_without_decimals(event, spikes, rate):
    # Bins of 1/60 s, such as those of video frames, and spikes at samples: neither is a decimal.
    trials = trials_from_spike_times(
        [[(event + sample) / rate for sample in spikes]],
        bin_size=1 / 60,
        align_to=[event / rate],
        window=(0, 3 / 60),
    )
    bins = [Fraction(sample, rate) // Fraction(1, 60) for sample in spikes]
    np.testing.assert_array_equal(trials[0, :, 0], [bins.count(k) for k in range(3)])


@pytest.mark.parametrize("rate", [24_000, 30_000])
def test_epochs_hold_all_their_bins_whatever_the_clock(rate):
    starts = np.arange(0, 5000, 7)
    epochs = np.stack([starts / rate, (starts + 3 * rate // 60) / rate], axis=1)
    trials = trials_from_spike_times([[0.01]], bin_size=1 / 60, align_to=epochs)
    assert {len(trial) for trial in trials} == {3}


def test_seconds_since_1970_are_exact_to_the_microsecond():
    clock = Decimal(1_700_000_000)
    spikes = [clock + Decimal(k) / 1000 for k in range(50)]
    just_before = [time - Decimal("1e-6") for time in spikes]
    for times, shift in ((spikes, 0), (just_before, -1)):
        trials = trials_from_spike_times(
            [[float(time)] for time in times],
            bin_size=0.001,
            align_to=[float(clock)],
            window=(-0.001, 0.05),
        )
        np.testing.assert_array_equal(trials[0].argmax(axis=0), np.arange(50) + 1 + shift)


def test_float32_times_keep_their_bins():
    times = np.arange(1000, dtype=np.float32) / np.float32(1000)
    (trial,) = trials_from_spike_times([times], bin_size=0.001, align_to=[[0, 1]])
    np.testing.assert_array_equal(trial, np.ones((1000, 1)))


def test_windows_may_overlap_and_times_be_unsorted():
    trials = trials_from_spike_times(
        [[0.35, 0.05, 0.15], []], bin_size=0.1, align_to=[0.3, 0.1, 0.1], window=(-0.2, 0.1)
    )
    np.testing.assert_array_equal(trials[..., 0], [[1, 0, 1], [0, 1, 1], [0, 1, 1]])
    assert not trials[..., 1].any()


def test_just_outside_a_trial():
    # Nearer than a nanosecond and still outside, also of the trial stored beside this one.
    epochs = [[0.1, 0.3], [0.5, 0.8]]
    first, second = trials_from_spike_times(
        [[0.1 - 7e-10, 0.3 - 2e-10, 0.5 - 7e-10, 0.8]],
        bin_size=0.1,
        align_to=epochs,
        obs_intervals=[[(0.0, 0.3), (0.3 + 7e-10, 0.3 + 8e-10), (0.5, 0.9)]],
    )
    np.testing.assert_array_equal(first[:, 0], [0, 0])
    np.testing.assert_array_equal(second[:, 0], [0, 0, 0])


def test_smallest_integers_that_hold_the_counts():
    kind = {}
    for n in (1, 255, 256, 65_536):
        trials = trials_from_spike_times(
            [np.zeros(n), [0.5]], bin_size=0.1, align_to=[0.0], window=(0, 1)
        )
        assert trials[0, 0, 0] == n
        kind[n] = trials.dtype
    assert kind == {1: np.uint8, 255: np.uint8, 256: np.uint16, 65_536: np.uint32}


def test_bins_not_wholly_observed_are_nan():
    trials = trials_from_spike_times(
        [[0.05, 0.25, 0.45], [0.05, 0.25, 0.45]],
        bin_size=0.1,
        align_to=[0.0, 0.1],
        window=(0, 0.5),
        obs_intervals=[[(0.3, 0.6), (0.0, 0.199)], [(-1, 1)]],
    )
    nan = np.nan
    np.testing.assert_array_equal(trials[0, :, 0], [1, nan, nan, 0, 1])
    np.testing.assert_array_equal(trials[1, :, 0], [nan, nan, 0, 1, 0])
    np.testing.assert_array_equal(trials[:, :, 1], [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]])
    assert trials.dtype == np.float32


def test_intervals_that_touch_or_overlap_are_one():
    (trial,) = trials_from_spike_times(
        [[0.1], [0.1]],
        bin_size=0.1,
        align_to=[[0.0, 0.6]],
        obs_intervals=[[(0.25, 0.5), (0.0, 0.25)], [(0.0, 0.5), (0.1, 0.2), (0.3, 0.6)]],
    )
    np.testing.assert_array_equal(np.isnan(trial[:, 0]), [0, 0, 0, 0, 0, 1])
    assert not np.isnan(trial[:, 1]).any()


@settings(deadline=None)
@given(
    clock=st.sampled_from([0, 10**5, 2_000_000]),
    intervals=st.lists(st.tuples(near_edges, near_edges).map(sorted), max_size=4),
    events=st.lists(near_edges, min_size=1, max_size=3),
)
def test_observed_bins_equal_integer_arithmetic(clock, intervals, events):
    clock, width = clock * 10**9, 2_000_000
    trials = trials_from_spike_times(
        [seconds([clock])],
        bin_size=0.002,
        align_to=seconds(clock + t for t in events),
        window=(-0.002, 0.006),
        obs_intervals=[
            np.reshape([seconds([clock + a, clock + b]) for a, b in intervals], (-1, 2))
        ],
    )
    # Cut the line at every end of an interval: a bin is observed if all its pieces are.
    for trial, event in zip(trials, events, strict=True):
        for k, count in enumerate(trial[:, 0]):
            start, stop = event + (k - 1) * width, event + k * width
            cuts = sorted({start, stop, *(x for x in np.ravel(intervals) if start < x < stop)})
            pieces = zip(cuts[:-1], cuts[1:], strict=True)
            observed = all(any(a <= x and y <= b for a, b in intervals) for x, y in pieces)
            assert np.isnan(count) != observed


def test_all_observed_stays_integer():
    trials = trials_from_spike_times(
        [[0.1]], bin_size=0.1, align_to=[0.0], window=(0, 0.3), obs_intervals=[[(0.0, 0.3)]]
    )
    assert trials.dtype == np.uint8


def test_intervals_as_exact_as_the_trials_they_are_made_from():
    # Recordings stored trial by trial: the trials themselves are what was observed.
    starts = np.arange(1, 400, 3) / 30
    epochs = np.stack([starts, starts + 2 / 30], axis=1)
    trials = trials_from_spike_times(
        [[1.0]], bin_size=1 / 30, align_to=epochs, obs_intervals=[epochs]
    )
    assert all(len(trial) == 2 and not np.isnan(trial).any() for trial in trials)


def test_an_epoch_shorter_than_a_bin_is_an_empty_trial():
    trials = trials_from_spike_times(
        [[0.1], [0.2]], bin_size=0.1, align_to=[[0.0, 0.25], [0.5, 0.55], [1.0, 1.0]]
    )
    assert [trial.shape for trial in trials] == [(2, 2), (0, 2), (0, 2)]


def test_estimators_take_the_result():
    rng = np.random.default_rng(0)
    spike_times = [rng.uniform(0, 20, 400) for _ in range(5)]
    settings = {"n_latents": 1, "max_epochs": 2, "device": "cpu", "random_state": 0}
    trials = trials_from_spike_times(
        spike_times,
        bin_size=0.05,
        align_to=np.arange(1.0, 19.0),
        window=(-0.2, 0.6),
        obs_intervals=[[(0, 20)]] * 4 + [[(0, 9.9)]],
    )
    assert NODESAE(**settings).fit(trials).predict(trials).shape == (18, 16, 5)
    epochs = [(start, start + 0.5 + start / 20) for start in range(1, 19)]
    trials = trials_from_spike_times(spike_times, bin_size=0.05, align_to=epochs)
    rates = NODESAE(**settings).fit(trials).predict(trials)
    assert [len(trial) for trial in rates] == [10 + start for start in range(1, 19)]


def test_silence_warns():
    # Events in milliseconds.
    with pytest.warns(UserWarning, match="between 0.1 and 0.7 s.*on one clock"):
        trials_from_spike_times([[0.1], [0.7]], bin_size=0.1, align_to=[500.0], window=(0, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spike_times": {3: [0.1]}}, r"got a dict. Pass list\(spike_times.values\(\)\)"),
        ({"spike_times": [0.1, 0.2]}, r"For a single neuron, pass \[spike_times\]"),
        ({"spike_times": 0.1}, "list with one array of times for each neuron, got 0.1"),
        ({"spike_times": []}, "no neurons"),
        ({"spike_times": [[0.1], [np.nan, 1.0]]}, r"spike_times\[1\] holds 1 time"),
        ({"spike_times": [["a"]]}, r"spike_times\[0\] must hold times in seconds"),
        ({"spike_times": [[[0.1]]]}, r"spike_times\[0\] has shape \(1, 1\)"),
        ({"bin_size": 0}, "bin_size must be a positive number of seconds, got 0"),
        ({"bin_size": "10ms"}, "bin_size must be a positive number"),
        ({"bin_size": 1e-10}, "is too small: the largest times are only precise to 5e-10 s"),
        ({"align_to": [1e15]}, "is too small: the largest times are only precise to 0.2 s"),
        ({"align_to": []}, "there are no trials"),
        (
            {"align_to": [0.1, np.nan]},
            r"NaN or infinite in 1 of 2 trials, first in trial 1.*labels",
        ),
        ({"align_to": [[0.1, 0.2]]}, r"pass align_to\[:, 0\]"),
        ({"align_to": ["go"]}, "align_to must hold times in seconds"),
        ({"window": None}, "pass a window too"),
        ({"window": None, "align_to": [[0.2, 0.1]]}, "stops before it starts"),
        ({"window": None, "align_to": [[0.2, np.nan]]}, r"all\(axis=1\)"),
        ({"window": 0.5}, r"window must be \(start, stop\)"),
        ({"window": (0.5, 0.1)}, "start < stop"),
        ({"window": (0, 0.025)}, "holds 2.5 bins.* End it at 0.02, or"),
        ({"window": (-0.1, 0.001)}, "holds 10.1 bins.* End it at 0, or"),
        ({"obs_intervals": [[(0, 1)]]}, r"each of 2 neurons; got 1.*\[intervals\] \* n_neurons"),
        ({"obs_intervals": [(0, 1), (0, 1)]}, r"obs_intervals\[0\] must have shape"),
        ({"obs_intervals": [[(0, 1)], [(2, 1)]]}, r"obs_intervals\[1\]\[0\] = \[2.0, 1.0\]"),
        ({"obs_intervals": [[(0, 1)], [(0, np.nan)]]}, "without NaN"),
        ({"obs_intervals": 3}, "obs_intervals must be a list"),
    ],
)
def test_errors(change, message):
    given = {
        "spike_times": [[0.1], [0.2]],
        "bin_size": 0.01,
        "align_to": [0.1],
        "window": (-0.1, 0.2),
    }
    with pytest.raises(ValueError, match=message):
        trials_from_spike_times(**{**given, **change})
