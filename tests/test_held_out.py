"""Trials held out of training, and what they share with training trials."""

import numpy as np
import pytest

from sklearn_sae._data.held_out import MOST_TRIALS, RUN, hold_out
from sklearn_sae._data.pieces import Pieces
from sklearn_sae._data.trials import Trials


def spikes(n_trials=20, n_bins=30, seed=0):
    return np.random.default_rng(seed).poisson(1.0, (n_trials, n_bins, 5))


def split(data, fraction=0.2, seed=0, **settings):
    trials = Trials(data, has_missing=False, **settings)
    return hold_out(trials, fraction, np.random.default_rng(seed))


def test_every_trial_is_on_one_side():
    data = spikes()
    training, held_out, (inside, outside) = split(data)
    assert sorted([*inside, *outside]) == list(range(20))
    assert len(outside) == 4
    for trials, rows in ((training, inside), (held_out, outside)):
        np.testing.assert_array_equal(trials.read(np.arange(len(trials)))[0], data[rows])


def test_trials_are_drawn_by_the_seed_and_not_in_order():
    assert [*split(spikes())[2][1]] == [*split(spikes())[2][1]]
    draws = {(*split(spikes(), seed=seed)[2][1],) for seed in range(5)}
    assert len(draws) > 1
    assert (16, 17, 18, 19) not in draws


def test_no_more_are_held_out_than_judge_a_model():
    _, held_out, _ = split(spikes(1000, 10))
    assert len(held_out) == MOST_TRIALS


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_of_sliding_windows_the_last_are_held_out_without_what_they_share(dtype):
    recording = spikes(1, 200)[0].astype(dtype)
    starts = np.arange(0, 171, 10)
    windows = [recording[start : start + 30] for start in starts]
    _, held_out, (inside, outside) = split(windows)
    assert [*outside] == [*range(len(starts))][-len(outside) :]
    last_shared = starts[inside[-1]] + 30
    _, observed = held_out.read(np.arange(len(held_out)))
    bins = starts[outside][:, np.newaxis] + np.arange(30)
    shared = bins < last_shared
    # A run of bins is needed to tell that they are the same.
    whole_runs = shared & (bins <= last_shared - RUN)
    assert not observed[whole_runs].any()
    assert observed[~shared].all()


def test_silent_bins_are_not_taken_for_the_same():
    data = spikes(20, 40)
    data[:, :20] = 0
    _, held_out, _ = split(data)
    assert held_out.read(np.arange(4))[1] is None


def test_signals_that_overlap_are_found_too():
    recording = np.random.default_rng(0).normal(5, 1, (100, 3))
    windows = [recording[start : start + 40] for start in range(0, 61, 10)]
    _, held_out, (_, outside) = split(windows)
    assert [*outside] == [6]
    assert not held_out.read(np.array([0]))[1][0, :20].any()


def test_pieces_of_a_trial_stay_together_if_trials_are_many():
    many = Pieces(Trials(spikes(10, 50), has_missing=False), 10)
    _, _, (inside, outside) = hold_out(many, 0.2, np.random.default_rng(0))
    assert not set(many.trial[inside]) & set(many.trial[outside])
    few = Pieces(Trials(spikes(2, 50), has_missing=False), 10)
    _, _, (inside, outside) = hold_out(few, 0.2, np.random.default_rng(0))
    assert (len(inside), len(outside)) == (8, 2)


def test_a_single_trial_is_on_both_sides():
    training, held_out, rows = split(spikes(1))
    assert training is held_out
    assert [*rows[0]] == [*rows[1]] == [0]


def test_inputs_go_with_their_trials():
    inputs = np.random.default_rng(0).normal(size=(18, 30, 2)).astype(np.float32)
    recording = spikes(1, 200)[0]
    windows = [recording[start : start + 30] for start in np.arange(0, 171, 10)]
    _, held_out, (_, outside) = split(windows, inputs=inputs)
    np.testing.assert_array_equal(held_out.inputs, inputs[outside])
