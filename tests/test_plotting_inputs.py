"""Inferred inputs are drawn as means of the trials of each label, around their event."""

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from sklearn_sae import NODESAE  # noqa: E402
from sklearn_sae.plotting import (  # noqa: E402
    EigenvalueDisplay,
    FixedPointDisplay,
    InferredInputsDisplay,
    LatentTrajectoryDisplay,
    RateDisplay,
    VectorFieldDisplay,
)

LABELS = np.array(["left", "right", "left", "right", "left"])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def inferred():
    return np.random.default_rng(0).normal(size=(5, 12, 3))


def test_mean_and_standard_error_of_each_label(inferred, tmp_path):
    display = InferredInputsDisplay(inferred, LABELS, event=4).plot()
    path = tmp_path / "figure.png"
    display.figure_.savefig(path)
    assert len(np.unique(plt.imread(path).reshape(-1, 4), axis=0)) > 2
    assert len(display.axes_) == len(display.means_) == len(display.events_) == 3
    assert [line.get_label() for line in display.means_[0]] == ["left", "right"]
    assert [text.get_text() for text in display.figure_.legends[0].get_texts()] == ["left", "right"]
    for i in range(3):
        for label, line, band in zip(
            ["left", "right"], display.means_[i], display.bands_[i], strict=True
        ):
            of_label = inferred[label == LABELS, :, i]
            np.testing.assert_array_equal(line.get_xdata(), np.arange(12) - 4)
            np.testing.assert_allclose(line.get_ydata(), of_label.mean(axis=0))
            error = of_label.std(axis=0, ddof=1) / np.sqrt(len(of_label))
            extent = band.get_paths()[0].get_extents()
            assert extent.ymax == pytest.approx((of_label.mean(axis=0) + error).max())
            assert extent.ymin == pytest.approx((of_label.mean(axis=0) - error).min())
    assert not any(display.trials_)
    # Inputs that vanish must look small beside the others.
    assert len({axis.get_ylim() for axis in display.axes_}) == 1


def test_trials_are_brought_into_line_at_their_events():
    events = np.array([3, 5, 8, 3])
    inferred = np.zeros((4, 10, 1))
    inferred[np.arange(4), events, 0] = [1, 2, 3, 4]
    display = InferredInputsDisplay(inferred, event=events).plot(bin_size=0.02)
    time, mean = display.means_[0][0].get_data()
    np.testing.assert_allclose(time, 0.02 * np.arange(-8, 7))
    np.testing.assert_allclose(mean, np.where(np.arange(-8, 7) == 0, 2.5, 0))
    (event,) = display.events_
    assert event.get_xdata() == [0, 0]
    assert display.axes_[0].get_xlabel() == "time from event (s)"
    # Without an event, pulses are where they were.
    plain = InferredInputsDisplay(inferred).plot()
    np.testing.assert_allclose(plain.means_[0][0].get_xydata()[[3, 5, 8], 1], [1.25, 0.5, 0.75])
    assert not plain.events_
    assert plain.axes_[0].get_xlabel() == "time (bins)"
    assert not plain.figure_.legends


def test_means_are_over_the_trials_that_have_the_bin():
    trials = [np.full((6, 1), 1.0), np.full((4, 1), 3.0), np.full((5, 1), 5.0)]
    display = InferredInputsDisplay(trials, event=[0, 2, 0]).plot()
    expected = [[-2, 3], [-1, 3], [0, 3], [1, 3], [2, 3], [3, 3], [4, 3], [5, 1]]
    np.testing.assert_allclose(display.means_[0][0].get_xydata(), expected)
    # Bins of one trial have no standard error: the band is where there are several.
    extent = display.bands_[0][0].get_paths()[0].get_extents()
    assert (extent.xmin, extent.xmax) == (0, 4)


def test_single_trials(inferred):
    display = InferredInputsDisplay(inferred, LABELS).plot(inferred_inputs=1, single_trials=True)
    ((left, right),) = display.trials_
    drawn = left.get_ydata().reshape(3, 13)  # between two trials, the pen is lifted
    np.testing.assert_allclose(drawn[:, :12], inferred[LABELS == "left", :, 1])
    assert np.isnan(drawn[:, 12]).all()
    assert right.get_linewidth() < display.means_[0][1].get_linewidth()
    assert not any(display.bands_)


def test_inputs_to_draw():
    inferred = np.random.default_rng(0).normal(size=(4, 20, 8)) * [1, 1, 0, 1, 1, 0, 1, 1]
    display = InferredInputsDisplay(inferred).plot()
    titles = [axis.get_title() for axis in display.axes_]
    assert titles == [f"inferred input {i}" for i in (0, 1, 3, 4, 6, 7)]
    axes = plt.figure().subplots(1, 2)
    chosen = InferredInputsDisplay(inferred, [0, 1, 0, 1]).plot(inferred_inputs=[5, 1], ax=axes)
    assert list(chosen.axes_) == list(axes)
    np.testing.assert_array_equal(chosen.means_[0][0].get_ydata(), np.zeros(20))
    assert axes[0].get_legend() is not None


def test_many_labels_are_told_apart():
    display = InferredInputsDisplay(np.zeros((20, 3, 1)), np.arange(20)).plot()
    looks = {(line.get_color(), line.get_linestyle()) for line in display.means_[0]}
    assert len(looks) == 20


def test_from_an_estimator_with_known_inputs(spikes):
    known = np.random.default_rng(1).normal(size=(24, 12, 1))
    settings = {"hidden_sizes": (8,), "max_epochs": 8, "device": "cpu", "random_state": 0}
    est = NODESAE(n_latents=2, n_inferred_inputs=2, **settings).fit(spikes, inputs=known)
    axes = plt.figure().subplots(2)
    display = InferredInputsDisplay.from_estimator(
        est,
        spikes,
        inputs=known,
        labels=np.arange(24) % 2,
        event=np.full(24, 6),
        inferred_inputs=[0, 1],
        single_trials=True,
        bin_size=0.5,
        ax=axes,
    )
    expected = est.infer_inputs(spikes, inputs=known)
    assert np.abs(expected).max() > 0
    time, mean = display.means_[1][1].get_data()
    np.testing.assert_allclose(time, 0.5 * (np.arange(12) - 6))
    np.testing.assert_allclose(mean, expected[1::2, :, 1].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert list(display.axes_) == list(axes)
    assert len(display.trials_[0]) == 2


def test_other_displays_take_known_inputs(spikes):
    known = 3 * np.random.default_rng(1).normal(size=(24, 12, 1))
    settings = {"hidden_sizes": (8,), "max_epochs": 8, "device": "cpu", "random_state": 0}
    est = NODESAE(n_latents=2, **settings).fit(spikes, inputs=known)
    latents = est.transform(spikes, inputs=known)
    drawn = LatentTrajectoryDisplay.from_estimator(est, spikes, inputs=known)
    np.testing.assert_array_equal(drawn.latents, latents)
    for cls in (FixedPointDisplay, EigenvalueDisplay):
        cls.from_estimator(est, spikes, inputs=known, n_starts=8, random_state=0)
    drawn = VectorFieldDisplay.from_estimator(est, spikes, inputs=known, grid=5)
    np.testing.assert_array_equal(drawn.states, latents)
    for inference in ("semi-amortized", "amortized"):
        est = NODESAE(n_latents=2, inference=inference, **settings).fit(spikes, inputs=known)
        drawn = RateDisplay.from_estimator(est, spikes, inputs=known, trial=5, neurons=3)
        expected = est.predict(spikes[5:6], inputs=known[5:6])[0, :, 3]
        np.testing.assert_allclose(drawn.rates_[0].get_ydata(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda x: InferredInputsDisplay(x[0, 0]).plot(), "inferred must be"),
        (lambda x: InferredInputsDisplay(x, ["a"]).plot(), "labels must have"),
        (lambda x: InferredInputsDisplay(x, event=12).plot(), "trial 0 it is in bin 12, of 12"),
        (lambda x: InferredInputsDisplay(x, event=[0, 0, -1, 0, 0]).plot(), "trial 2 .* bin -1"),
        (lambda x: InferredInputsDisplay(x, event=0.3).plot(), "From seconds"),
        (lambda x: InferredInputsDisplay(x, event=[1, 2]).plot(), "one for each of 5 trials"),
        (lambda x: InferredInputsDisplay(x).plot(inferred_inputs=3), "one or more of 0 to 2"),
        (lambda x: InferredInputsDisplay(x).plot(inferred_inputs=[]), "one or more of 0 to 2"),
        (
            lambda x: InferredInputsDisplay(x).plot(ax=plt.figure().add_subplot()),
            r"3 inferred inputs, got 1. Choose as many inferred_inputs=",
        ),
    ],
)
def test_errors(inferred, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(inferred)
