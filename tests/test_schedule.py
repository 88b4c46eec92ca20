import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_sae._training.schedule import LEARNING_RATES, Schedule

progress = st.floats(0, 1, exclude_max=True)


def make(n_bins=70, start=10, step=1, growth=0.5, shape="onecycle", learning_rate=0.01):
    return Schedule(learning_rate, shape, n_bins, start, step, growth)


@pytest.mark.parametrize("n_batches", [1, 2, 3, 7])
def test_the_papers_horizon(n_batches):
    # 5 bins at first, 5 more every 150 of 3000 epochs, all 70 from epoch 1950 on.
    schedule = make(start=5, step=5, growth=0.65)
    for epoch in range(3000):
        for i in range(n_batches):
            horizon = schedule.horizon_at((epoch + i / n_batches) / 3000)
            assert horizon == min(70, 5 + 5 * (epoch // 150))


horizons = {
    "n_bins": st.integers(2, 200),
    "start": st.integers(1, 250),
    "step": st.integers(1, 60),
    "growth": st.floats(0, 1),
}


@given(progresses=st.lists(progress, min_size=2, max_size=20), **horizons)
@settings(max_examples=200, deadline=None)
def test_the_horizon_only_grows(progresses, **settings):
    schedule = make(**settings)
    seen = [schedule.horizon_at(p) for p in sorted(progresses)]
    assert seen == sorted(seen)
    assert all(isinstance(horizon, int) for horizon in seen)
    assert min(seen) >= min(settings["start"], settings["n_bins"])
    assert max(seen) <= settings["n_bins"]


@given(**horizons)
@settings(max_examples=200, deadline=None)
def test_the_horizons_ends(**settings):
    schedule = make(**settings)
    n_bins, growth = settings["n_bins"], settings["growth"]
    if growth > 1e-6:
        assert schedule.horizon_at(0.0) == min(settings["start"], n_bins)
    assert schedule.horizon_at(growth) == n_bins
    assert schedule.horizon_at(1.0) == n_bins


def test_a_horizon_that_need_not_grow():
    assert make(growth=0.0).horizon_at(0.0) == 70
    assert make(start=70).horizon_at(0.0) == 70
    assert make(start=500).horizon_at(0.0) == 70


def test_rises_are_evenly_spread():
    schedule = make(n_bins=20, start=5, step=5, growth=0.6)
    assert [schedule.horizon_at(p / 10) for p in range(8)] == [5, 5, 10, 10, 15, 15, 20, 20]
    # A last rise smaller than the others comes no earlier than they do.
    schedule = make(n_bins=17, start=5, step=5, growth=0.6)
    assert [schedule.horizon_at(p / 10) for p in range(8)] == [5, 5, 10, 10, 15, 15, 17, 17]


def test_a_rise_is_not_late_where_binary_fractions_are_not_exact():
    # 6 / 20 / 0.8 * 8 is a little less than 3.
    schedule = make(n_bins=13, start=5, step=1, growth=0.8)
    assert [schedule.horizon_at(epoch / 20) for epoch in range(0, 18, 2)] == list(range(5, 14))


def test_a_rise_just_before_the_end_does_not_overshoot():
    schedule = make(n_bins=17, start=5, step=5, growth=0.6)
    assert schedule.horizon_at(0.6 * (1 - 1e-12)) == 17


def test_one_cycle_is_torchs():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    # Its last step is progress 1.
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=1001)
    schedule = make()
    for step in range(1001):
        # Torch puts the peak at step 0.3 * total_steps - 1.
        stretched = (step / 299.3) * 0.3 if step <= 299.3 else 0.3 + (step - 299.3) / 700.7 * 0.7
        rate = schedule.learning_rate_at(min(stretched, 1.0))
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        if step < 1000:
            torchs.step()


def test_learning_rates_ends():
    schedule = make()
    assert schedule.learning_rate_at(0.0) == pytest.approx(0.01 / 25)
    assert schedule.learning_rate_at(0.3) == pytest.approx(0.01)
    assert schedule.learning_rate_at(1.0) == pytest.approx(0.01 / 25 * 1e-4)
    assert {make(shape="constant").learning_rate_at(p) for p in (0.0, 0.3, 0.9)} == {0.01}


@given(progress, st.sampled_from(sorted(LEARNING_RATES)))
@settings(max_examples=100, deadline=None)
def test_the_learning_rate_never_exceeds_its_peak(p, shape):
    rate = make(shape=shape).learning_rate_at(p)
    assert 0 < rate <= 0.01
    assert math.isfinite(rate)
