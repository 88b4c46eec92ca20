"""Every display draws what it was given, on axes it was given, without a screen."""

import importlib
import re
import sys

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from sklearn_sae import NODESAE  # noqa: E402
from sklearn_sae.analysis import find_fixed_points  # noqa: E402
from sklearn_sae.datasets import Arneodo, Lorenz  # noqa: E402
from sklearn_sae.plotting import (  # noqa: E402
    EigenvalueDisplay,
    FixedPointDisplay,
    LatentDimensionDisplay,
    LatentTrajectoryDisplay,
    LearningCurveDisplay,
    RateDisplay,
    VectorFieldDisplay,
)
from sklearn_sae.plotting._rates import lognormal_band  # noqa: E402


def ring():
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (30, 1, 1)) + 0.3 * np.arange(20)[:, np.newaxis]
    return rng.poisson(np.exp(np.sin(phase + np.arange(8))))


@pytest.fixture(scope="module")
def est():
    return NODESAE(n_latents=2, max_epochs=20, random_state=0).fit(ring())


@pytest.fixture(scope="module")
def lorenz():
    states = Lorenz().trajectory(600)
    return states, find_fixed_points(Lorenz(), states, random_state=0)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(display, tmp_path):
    path = tmp_path / "figure.png"
    display.figure_.savefig(path)
    return len(np.unique(plt.imread(path).reshape(-1, 4), axis=0)) > 2


@pytest.mark.parametrize("n_latents", [1, 2, 3, 5])
def test_latent_trajectories(n_latents, tmp_path):
    latents = np.random.default_rng(0).normal(size=(6, 10, n_latents)).cumsum(axis=1)
    display = LatentTrajectoryDisplay(latents, ["a", "b", "a", "b", "c", "c"]).plot()
    assert drawn(display, tmp_path)
    assert hasattr(display.ax_, "get_zlim") == (n_latents > 2)
    assert [line.get_label() for line in display.lines_] == ["a", "b", "c"]
    expected = latents[[1, 3]]
    if n_latents == 1:  # over time
        assert display.ax_.get_xlabel() == "time (bins)"
        time = np.broadcast_to(np.arange(10)[:, np.newaxis], expected.shape)
        expected = np.concatenate([time, expected], axis=2)
    if n_latents < 3:
        x, y = display.lines_[1].get_data()
        np.testing.assert_allclose(np.stack([x, y], -1).reshape(2, 11, 2)[:, :10], expected)
    if n_latents == 5:
        assert display.ax_.get_xlabel() == "PC 1 (a.u.)"


def test_many_labels_are_told_apart():
    display = LatentTrajectoryDisplay(np.zeros((20, 3, 2)), np.arange(20)).plot()
    looks = {(line.get_color(), line.get_linestyle()) for line in display.lines_}
    assert len(looks) == 20


def test_legends_cover_no_data():
    latents, labels = np.random.default_rng(0).normal(size=(4, 5, 3)), ["a", "b", "a", "b"]
    own = LatentTrajectoryDisplay(latents, labels).plot()
    own.figure_.canvas.draw()
    (legend,) = own.figure_.legends
    assert legend.get_window_extent().x0 >= own.ax_.get_window_extent().x1
    # In the axes of others there need not be room beside them.
    ax = plt.figure().add_subplot(projection="3d")
    assert LatentTrajectoryDisplay(latents, labels).plot(ax=ax).ax_.get_legend() is not None
    assert not ax.figure.legends


def test_latent_trajectories_of_an_estimator_on_given_axes(est):
    ax = plt.figure().add_subplot()
    display = LatentTrajectoryDisplay.from_estimator(est, ring(), n_trials=4, ax=ax)
    assert display.ax_ is ax
    assert np.isnan(display.lines_[0].get_xdata()).sum() == 4


def test_fixed_point_of_every_kind():
    states = np.random.default_rng(0).normal(size=(50, 2))
    for diagonal, kind in (([-1.2, 0.5], "saddle flip"), ([-1.2, 1.5], "unstable flip")):
        found = find_fixed_points(lambda z, d=diagonal: z * np.array(d), states, discrete=True)
        display = FixedPointDisplay(found, states[None]).plot()
        assert [str(point.get_label()) for point in display.points_] == [kind]
        plt.close(display.figure_)


def test_latent_trajectories_of_ragged_trials():
    trials = [np.ones((5, 2)), np.zeros((3, 2))]
    assert len(LatentTrajectoryDisplay(trials).plot().lines_[0].get_xdata()) == 10


def test_fixed_points(lorenz, tmp_path):
    states, found = lorenz
    display = FixedPointDisplay(found, states).plot()
    assert drawn(display, tmp_path)
    assert len(display.points_) == 3
    # One line for the saddle's direction, one ellipse for each spiral.
    assert sorted(len(line.get_data_3d()[0]) for line in display.directions_) == [2, 60, 60]
    legend = {text.get_text() for text in display.figure_.legends[0].get_texts()}
    assert legend == {"saddle", "saddle spiral"}
    in_plane = FixedPointDisplay(found, states).plot(dimensions=(0, 2))
    shown = np.array([np.ravel(point.get_data()) for point in in_plane.points_])
    np.testing.assert_allclose(shown, found.points[:, [0, 2]])


def test_unstable_direction_is_along_the_eigenvector(lorenz):
    _, found = lorenz
    origin = found[found.kinds == "saddle"]
    display = FixedPointDisplay(origin).plot()
    (line,) = display.directions_
    ends = np.array(line.get_data_3d())
    direction = ends[:, 1] - ends[:, 0]
    jacobian = Lorenz().jacobian(np.zeros(3))
    np.testing.assert_allclose(
        jacobian @ direction, origin.eigenvalues[0, 0].real * direction, rtol=1e-6, atol=1e-6
    )


def test_every_growing_mode_is_drawn():
    # One growing direction at the origin, where the other two modes are a decaying spiral.
    found = find_fixed_points(Arneodo(), Arneodo().trajectory(600), random_state=0)
    display = FixedPointDisplay(found).plot(dimensions=(0, 2))
    assert sorted(len(line.get_xdata()) for line in display.directions_) == [2, 60, 60]


def test_fixed_points_of_an_estimator(est, tmp_path):
    display = FixedPointDisplay.from_estimator(est, ring(), n_starts=32, random_state=0)
    assert drawn(display, tmp_path)
    assert len(display.points_) == (~display.fixed_points.outside).sum()


def test_eigenvalues(lorenz, est, tmp_path):
    _, found = lorenz
    display = EigenvalueDisplay(found, found).plot()
    assert drawn(display, tmp_path)
    expected = np.exp(found.eigenvalues * 1.5008 / 100).ravel()
    np.testing.assert_allclose(display.found_.get_xdata(), expected.real)
    np.testing.assert_allclose(display.true_.get_ydata(), expected.imag)
    of_estimator = EigenvalueDisplay.from_estimator(est, ring(), n_starts=16, random_state=0)
    assert of_estimator.true_ is None


def test_vector_field(est, tmp_path):
    display = VectorFieldDisplay.from_estimator(est, ring(), grid=12)
    assert drawn(display, tmp_path)
    assert display.colorbar_.ax.get_ylabel() == "speed (distance per bin)"
    (dots,) = display.ax_.get_legend().get_texts()
    assert dots.get_text() == display.states_.get_label() == "states near the plane"
    # Through the axes of the latents themselves, the colours are the speeds of the estimator.
    latents = est.transform(ring())
    plain = VectorFieldDisplay(est, latents).plot(plane=([0, 0], [1, 0], [0, 1]), grid=12)
    low, high = latents.min(axis=(0, 1)), latents.max(axis=(0, 1))
    corner = low - 0.1 * (high - low)
    speed = np.linalg.norm(est.vector_field(corner))
    assert plain.speed_.get_array().ravel()[0] == pytest.approx(speed, rel=1e-3)


def test_rates(est, tmp_path):
    spikes = ring().astype(float)
    spikes[0, 3] = np.nan
    true = np.ones(spikes.shape)
    with pytest.raises(ValueError, match="like X, of all trials"):
        RateDisplay.from_estimator(est, spikes, true_rates=true[0])
    with pytest.raises(ValueError, match="like X, of all trials"):
        RateDisplay.from_estimator(est, spikes, true_rates=true[5:6])
    with pytest.raises(ValueError, match="trial must be a row of X"):
        RateDisplay.from_estimator(est, spikes, trial=len(spikes))
    display = RateDisplay.from_estimator(est, spikes, true_rates=true, neurons=[1, 4])
    assert drawn(display, tmp_path)
    assert len(display.rates_) == len(display.bands_) == len(display.true_rates_) == 2
    expected = est.predict(spikes[:1])[0, :, 4]
    np.testing.assert_allclose(display.rates_[1].get_ydata(), expected, rtol=1e-5)
    assert np.isnan(display.spikes_[0].get_ydata()[3])
    in_seconds = RateDisplay(expected[:, None]).plot(bin_size=0.01)
    np.testing.assert_allclose(in_seconds.rates_[0].get_ydata(), 100 * expected, rtol=1e-5)
    assert in_seconds.axes_[0].get_xlabel() == "time (s)"
    assert not in_seconds.bands_


def test_every_rate_has_its_axes_named():
    display = RateDisplay(np.ones((4, 8)), spikes=np.zeros((4, 8))).plot(neurons=range(5))
    # The third column has one panel only.
    named = [bool(axis.get_xlabel()) for axis in display.axes_]
    assert named == [False, False, True, True, True]
    assert [bool(axis.get_ylabel()) for axis in display.axes_] == [True, False, False, True, False]
    assert len(display.figure_.legends) == 1
    # Counts of 0 lie on the edge of the axes, and half a dot is easily missed.
    assert not display.spikes_[0].get_clip_on()
    given = plt.figure().subplots(1, 2)
    on_given = RateDisplay(np.ones((4, 8))).plot(neurons=[1, 2], ax=given)
    assert all(axis.get_xlabel() == "time (bins)" for axis in given)
    assert all(axis.get_ylabel() == "spikes per bin" for axis in given)
    assert on_given.axes_[0].get_legend() is not None


def test_rates_of_values():
    values = np.random.default_rng(0).normal(size=(12, 20, 5))
    est = NODESAE(n_latents=2, likelihood="gaussian", max_epochs=1, random_state=0).fit(values)
    display = RateDisplay.from_estimator(est, values, neurons=[2], bin_size=0.01)
    rates, std = (x[0, :, 2] for x in est.predict(values[:1], return_std=True))
    # Seconds divide spikes, not values; and bands are as wide below as above.
    np.testing.assert_allclose(display.rates_[0].get_ydata(), rates, rtol=1e-5)
    band = display.bands_[0].get_paths()[0].get_extents()
    assert band.ymin == pytest.approx((rates - 1.645 * std).min(), rel=1e-3)
    assert band.ymax == pytest.approx((rates + 1.645 * std).max(), rel=1e-3)
    assert display.axes_[0].get_ylim()[0] < 0
    assert display.axes_[0].get_ylabel() == "value"


def test_rates_of_amortized_inference_have_no_bands():
    est = NODESAE(n_latents=2, inference="amortized", max_epochs=1, random_state=0).fit(ring())
    assert not RateDisplay.from_estimator(est, ring(), neurons=0).bands_


def test_band_holds_its_share():
    rng = np.random.default_rng(0)
    sigma = 0.5
    samples = 3.0 * np.exp(sigma * rng.normal(size=100_000))
    std = np.full((1, 1), samples.std())
    low, high = lognormal_band(np.array([3.0]), std, 0, 0.9)
    assert ((samples > low) & (samples < high)).mean() == pytest.approx(0.9, abs=0.01)


def test_learning_curve(est, tmp_path):
    display = LearningCurveDisplay.from_estimator(est)
    assert drawn(display, tmp_path)
    np.testing.assert_array_equal(display.loss_.get_ydata(), est.loss_curve_)
    np.testing.assert_array_equal(display.scores_.get_xdata(), est.validation_epochs_)
    assert LearningCurveDisplay([3.0, 2.0]).plot().scores_ is None
    stopped = LearningCurveDisplay([3.0, 2.0, 1.5], [0.1, 0.2]).plot()
    np.testing.assert_array_equal(stopped.scores_.get_xdata(), [2, 3])


def test_latent_dimension(tmp_path):
    results = {
        "param_sae__n_latents": np.ma.array([8, 2, 3, 3]),
        "mean_test_score": np.array([0.51, 0.2, 0.5, 0.4]),
        "std_test_score": np.array([0.02, 0.02, 0.02, 0.02]),
        **{f"split{i}_test_score": np.zeros(4) for i in range(3)},
    }
    display = LatentDimensionDisplay(results).plot()
    assert drawn(display, tmp_path)
    assert display.n_latents_ == 3
    assert display.chosen_.get_ydata()[0] == 0.5
    # Standard error: 0.02 / sqrt(3 - 1).
    assert display.threshold_.get_ydata()[0] == pytest.approx(0.51 - 0.02 / np.sqrt(2))
    points = display.errorbar_.lines[0]
    np.testing.assert_array_equal(points.get_xdata(), [2, 3, 8])
    np.testing.assert_array_equal(points.get_ydata(), [0.2, 0.5, 0.51])
    assert display.ax_.get_ylabel() == "score (bits per spike)"
    accuracy = LatentDimensionDisplay(results, score_name="accuracy").plot()
    assert accuracy.ax_.get_ylabel() == "accuracy"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: LatentTrajectoryDisplay(np.ones(3)).plot(), "latents must be"),
        (lambda: LatentTrajectoryDisplay(np.eye(3), ["a", "b"]).plot(), "labels must have"),
        (lambda: LatentTrajectoryDisplay(np.eye(3)).plot(dimensions=(0, 7)), "dimensions must"),
        (
            lambda: LatentTrajectoryDisplay(np.eye(3)).plot(ax=plt.figure().add_subplot()),
            "ax must be 3-D",
        ),
        (lambda: VectorFieldDisplay(Lorenz(), np.ones((3, 1))).plot(), "at least 2 dimensions"),
        (lambda: RateDisplay(np.ones((2, 2, 2))).plot(), "one trial"),
        (lambda: RateDisplay(np.ones((2, 2))).plot(coverage=90), "coverage must be"),
        (lambda: LatentDimensionDisplay({"param_alpha": [1]}).plot(), "search over n_latents"),
    ],
)
def test_errors(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_matplotlib_is_only_needed_to_draw(monkeypatch):
    for name in list(sys.modules):
        if name.startswith("sklearn_sae.plotting"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    afresh = importlib.import_module("sklearn_sae.plotting")
    display = afresh.LearningCurveDisplay([1.0])
    with pytest.raises(ImportError, match=re.escape('pip install "sklearn_sae[plot]"')):
        display.plot()
