"""Trials from pynapple's own objects."""

import numpy as np
import pytest

from sklearn_sae.io import trials_from_pynapple, trials_from_spike_times

nap = pytest.importorskip("pynapple")

RNG = np.random.default_rng(0)
TIMES = {5: np.sort(RNG.uniform(0, 10, 200)), 2: np.sort(RNG.uniform(0, 10, 100))}


def group(**kwargs):
    return nap.TsGroup({i: nap.Ts(times) for i, times in TIMES.items()}, **kwargs)


@pytest.fixture
def units():
    return group(time_support=nap.IntervalSet(0, 10))


def test_events(units):
    events = np.array([1.0, 4.5, 8.25])
    expected = trials_from_spike_times(
        # In the order of the group's index.
        [TIMES[2], TIMES[5]],
        bin_size=0.02,
        align_to=events,
        window=(-0.1, 0.3),
    )
    for align_to in (nap.Ts(events), nap.Tsd(events, np.arange(3)), events):
        trials = trials_from_pynapple(units, bin_size=0.02, align_to=align_to, window=(-0.1, 0.3))
        np.testing.assert_array_equal(trials, expected)
        assert trials.dtype == np.uint8


def test_epochs(units):
    epochs = nap.IntervalSet([1.0, 4.0], [1.5, 5.11])
    trials = trials_from_pynapple(units, bin_size=0.1, align_to=epochs)
    expected = trials_from_spike_times(
        [TIMES[2], TIMES[5]], bin_size=0.1, align_to=[[1.0, 1.5], [4.0, 5.11]]
    )
    assert [trial.shape for trial in trials] == [(5, 2), (11, 2)]
    for trial, other in zip(trials, expected, strict=True):
        np.testing.assert_array_equal(trial, other)


def test_starts_of_epochs_as_events(units):
    epochs = nap.IntervalSet([1.0, 4.0], [1.5, 5.11])
    trials = trials_from_pynapple(units, bin_size=0.1, align_to=epochs.start, window=(0, 0.4))
    expected = trials_from_pynapple(units, bin_size=0.1, align_to=epochs)
    np.testing.assert_array_equal(trials, [trial[:4] for trial in expected])


@pytest.mark.filterwarnings("ignore:Some starts and ends are equal")
def test_epochs_that_touch_keep_their_last_bin(units):
    # pynapple ends the first two at 2.999999 and 3.999999.
    epochs = nap.IntervalSet([2.0, 3.0, 4.0], [3.0, 4.0, 5.0])
    trials = trials_from_pynapple(units, bin_size=0.1, align_to=epochs)
    assert [len(trial) for trial in trials] == [10, 10, 10]


def test_outside_the_time_support_is_nan():
    support = nap.IntervalSet([0.0, 3.0], [2.25, 10.0])
    trials = trials_from_pynapple(
        group(time_support=support),
        bin_size=0.1,
        align_to=nap.Ts(np.array([2.0, 3.0, 9.8])),
        window=(-0.1, 0.4),
    )
    expected = [[0, 0, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    for neuron in (0, 1):
        np.testing.assert_array_equal(np.isnan(trials[:, :, neuron]), expected)


@pytest.mark.filterwarnings("ignore:Some starts and ends are equal")
def test_a_support_that_touches_itself_has_no_hole():
    support = nap.IntervalSet([0.0, 2.05], [2.05, 10.0])
    trials = trials_from_pynapple(
        group(time_support=support), bin_size=0.1, align_to=np.array([2.0]), window=(-0.5, 0.5)
    )
    assert not np.isnan(trials).any()


def test_errors(units):
    with pytest.raises(TypeError, match=r"must be a pynapple.TsGroup, got Ts.*TsGroup\(\{0: ts\}"):
        trials_from_pynapple(units[2], bin_size=0.1, align_to=np.array([1.0]), window=(0, 1))
    with pytest.raises(TypeError, match="align_to must be a Ts .* got TsGroup"):
        trials_from_pynapple(units, bin_size=0.1, align_to=units, window=(0, 1))
    with pytest.raises(ValueError, match="pass a window too"):
        trials_from_pynapple(units, bin_size=0.1, align_to=nap.Ts(np.array([1.0, 2.0])))
    with pytest.raises(ValueError, match=r"pass align_to\[:, 0\]"):
        trials_from_pynapple(units, bin_size=0.1, align_to=nap.IntervalSet(0, 5), window=(0.0, 1.0))
