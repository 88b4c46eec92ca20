"""Lyapunov spectra against values from the literature."""

import copy

import numpy as np
import pytest
import torch

from sklearn_sae import NODESAE
from sklearn_sae._model.solvers import RungeKutta
from sklearn_sae.analysis import lyapunov_spectrum
from sklearn_sae.analysis._lyapunov import kaplan_yorke
from sklearn_sae.analysis._state_space import as_state_space, compose
from sklearn_sae.datasets import Lorenz, Rossler


@pytest.mark.parametrize(
    ("system", "bin_width", "expected", "dimension"),
    [
        (Lorenz(beta=8 / 3), 0.02, [0.906, 0.0, -14.57], 2.062),
        (Rossler(), 0.15, [0.071, 0.0, -5.39], 2.013),
    ],
)
def test_true_systems(system, bin_width, expected, dimension):
    # Far apart in time, so that the runs are independent.
    starts = system.trajectory(500, system.period * 2.37)
    spectrum = lyapunov_spectrum(system, starts, 200, n_burn_in=250, bin_width=bin_width)
    np.testing.assert_allclose(spectrum.per_time[[0, 2]], np.array(expected)[[0, 2]], rtol=0.05)
    assert abs(spectrum.per_time[1]) < 0.05 * expected[0]
    np.testing.assert_allclose(spectrum.per_bin, spectrum.per_time * bin_width)
    assert spectrum.kaplan_yorke_dimension == pytest.approx(dimension, abs=0.01)
    assert (spectrum.standard_error[0] < 0.05 * spectrum.per_bin[0]) and spectrum.n_runs == 500


def test_map():
    # The Hénon map: exponents sum to log(0.3).
    def henon(z):
        return np.stack([1 - 1.4 * z[:, 0] ** 2 + z[:, 1], 0.3 * z[:, 0]], axis=1)

    starts = np.random.default_rng(0).uniform(-0.1, 0.1, (50, 2))
    spectrum = lyapunov_spectrum(henon, starts, 400, discrete=True)
    assert spectrum.per_bin[0] == pytest.approx(0.419, rel=0.03)
    assert spectrum.per_bin.sum() == pytest.approx(np.log(0.3), abs=1e-6)


def ring():
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (30, 1, 1)) + 0.3 * np.arange(20)[:, np.newaxis]
    return rng.poisson(np.exp(np.sin(phase + np.arange(8))))


@pytest.fixture(scope="module")
def fitted():
    return NODESAE(n_latents=2, max_epochs=20, random_state=0).fit(ring())


def test_estimator_agrees_with_parting_of_nearby_runs(fitted):
    est = copy.deepcopy(fitted)
    state = est.initial_conditions(ring())[:1]
    spectrum = lyapunov_spectrum(est, state, 40, n_burn_in=0, bin_width=0.5)
    runs = est.model_.dynamics.double().rollout
    basis = np.concatenate([state.T, state.T + 1e-6 * np.eye(2)], axis=1).astype(float)
    end = runs(torch.from_numpy(basis), 41)[-1].numpy()
    grown = np.linalg.det((end[:, 1:] - end[:, :1]) / 1e-6)
    # All directions together: the sum of the exponents is the growth of volume.
    assert spectrum.per_bin.sum() == pytest.approx(np.log(abs(grown)) / 40, abs=2e-3)
    np.testing.assert_allclose(spectrum.per_time, spectrum.per_bin / 0.5)
    assert np.isnan(spectrum.standard_error).all()


def hopf(z):
    """A limit cycle of radius sqrt(0.1): exponents 0 and -0.2, all along it by symmetry."""
    x, y = z[:, 0], z[:, 1]
    drive = 0.1 - x**2 - y**2
    return np.stack([drive * x - y, x + drive * y], axis=1)


@pytest.mark.parametrize(
    ("state", "n_bins", "n_burn_in"),
    [((0.3, 0.0), 500, None), ((0.0, -0.3), 150, 200), ((0.2, 0.25), 150, None)],
)
def test_no_axis_of_symmetry_is_a_trap(state, n_bins, n_burn_in):
    spectrum = lyapunov_spectrum(hopf, state, n_bins, n_burn_in=n_burn_in)
    np.testing.assert_allclose(spectrum.per_bin, [0, -0.2], atol=5e-4)
    assert spectrum.kaplan_yorke_dimension == pytest.approx(1, abs=1e-6)


def test_burn_in_goes_on_until_exponents_stay():
    # It takes hundreds of bins to the limit cycle, and to tell the exponents 0 and -0.01 apart.
    def slow(z):
        radius = np.hypot(z[:, 0], z[:, 1])[:, None]
        return 0.005 * (1 - radius) / radius * z + 0.3 * z[:, ::-1] * [-1, 1]

    spectrum = lyapunov_spectrum(slow, [2.0, 0.0], 200)
    np.testing.assert_allclose(spectrum.per_bin, [0, -0.005], atol=2e-4)


@pytest.mark.parametrize("bin_width", [3.0, 15.0])
def test_long_bins_keep_the_smallest_exponent(bin_width):
    lorenz = Lorenz()
    n_bins = int(30 / bin_width)
    starts = lorenz.trajectory(10, 3.7)
    spectrum = lyapunov_spectrum(lorenz, starts, n_bins, n_burn_in=1, bin_width=bin_width)
    assert spectrum.per_time.sum() == pytest.approx(-(10 + 1 + lorenz.beta), rel=2e-3)
    assert spectrum.kaplan_yorke_dimension == pytest.approx(2.06, abs=0.02)


def test_the_steps_in_a_bin_keep_the_smallest_exponent(fitted):
    # 100 steps a bin, of a field that contracts by exp(-40) one way.
    est = copy.deepcopy(fitted)
    dynamics = est.model_.dynamics
    dynamics.solver = RungeKutta("midpoint", 100)
    with torch.no_grad():
        first, last = dynamics.mlp.weights
        first.zero_(), last.zero_(), dynamics.mlp.linear.zero_()
        first[:2, :2] = 0.01 * torch.eye(2)
        turn = torch.tensor([[np.cos(0.7), np.sin(0.7)], [-np.sin(0.7), np.cos(0.7)]]).float()
        matrix = turn @ torch.diag(torch.tensor([-40, -0.5])) @ turn.T
        last[:, :2] = matrix * dynamics.time_scale / 0.01
    spectrum = lyapunov_spectrum(est, [1e-3, 1e-3], 3, n_burn_in=2)
    exact = 100 * np.log([1 - 0.005 + 0.005**2 / 2, 1 - 0.4 + 0.4**2 / 2])
    np.testing.assert_allclose(spectrum.per_bin, exact, rtol=1e-3)


def test_a_state_does_not_see_its_neighbours():
    states = Lorenz().trajectory(20, 0.7)
    space = as_state_space(Lorenz(), 3, bin_width=0.5)
    together, jacobians = compose(space.parts(states))
    for i in (0, 7):
        alone, jacobian = compose(space.parts(states[i : i + 1]))
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-9)
        np.testing.assert_allclose(jacobian[0], jacobians[i], rtol=1e-7, atol=1e-9)


def test_zero_is_zero_within_the_error():
    def van_der_pol(z):
        x, y = z[:, 0], z[:, 1]
        return np.stack([y, (1 - x**2) * y - x], axis=1)

    for starts in ([2.0, 0.0], [[2.0, 0.0]] * 2):
        for bin_width in (0.3, 3.0):  # of which the second is nearly nine to four cycles
            spectrum = lyapunov_spectrum(van_der_pol, starts, 50, n_burn_in=30, bin_width=bin_width)
            assert spectrum.kaplan_yorke_dimension == pytest.approx(1, abs=0.02)
    damped = lyapunov_spectrum(
        lambda z: z @ [[-0.05, 0.3], [-0.2, -0.05]], [1.0, 0.0], 300, n_burn_in=50
    )
    assert damped.kaplan_yorke_dimension == 0


@pytest.mark.parametrize(
    ("exponents", "dimension"),
    [
        ([-0.1, -1], 0.0),
        ([1.0, 0.5], 2.0),
        ([0.9, 0.0, -14.4], 2.0625),
        ([0.0, -1.0], 1.0),
        ([-1e-11, -0.2], 1.0),
    ],
)
def test_kaplan_yorke(exponents, dimension):
    assert kaplan_yorke(np.array(exponents)) == pytest.approx(dimension)


def test_kaplan_yorke_with_errors_of_the_sums():
    assert kaplan_yorke(np.array([-0.01, -1.0]), np.array([0.02, 0.02])) == 1.0
    assert kaplan_yorke(np.array([-0.03, -1.0]), np.array([0.02, 0.02])) == 0.0
    assert kaplan_yorke(np.array([0.9, -0.01, -14.4]), np.full(3, 0.02)) == pytest.approx(
        2.0618, 1e-4
    )


def test_errors():
    with pytest.raises(FloatingPointError, match="Run 0 grew without bound"):
        lyapunov_spectrum(lambda z: 1e3 * z, [1.0], 500, discrete=True)
    with pytest.raises(ValueError, match="n_bins must be"):
        lyapunov_spectrum(Lorenz(), np.ones(3), 0)
    with pytest.raises(ValueError, match="n_burn_in must be"):
        lyapunov_spectrum(Lorenz(), np.ones(3), 10, n_burn_in=-1)
