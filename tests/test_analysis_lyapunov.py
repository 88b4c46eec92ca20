"""Lyapunov spectra against values from the literature."""

import numpy as np
import pytest

from sklearn_sae import NODESAE
from sklearn_sae.analysis import lyapunov_spectrum
from sklearn_sae.analysis._lyapunov import kaplan_yorke
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


def test_estimator_agrees_with_parting_of_nearby_runs():
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (30, 1, 1)) + 0.3 * np.arange(20)[:, np.newaxis]
    spikes = rng.poisson(np.exp(np.sin(phase + np.arange(8))))
    est = NODESAE(n_latents=2, max_epochs=20, random_state=0).fit(spikes)
    state = est.initial_conditions(spikes)[:1]
    spectrum = lyapunov_spectrum(est, state, 40, n_burn_in=0, bin_width=0.5)
    runs = est.model_.dynamics.double().rollout
    import torch

    basis = np.concatenate([state.T, state.T + 1e-6 * np.eye(2)], axis=1).astype(float)
    end = runs(torch.from_numpy(basis), 41)[-1].numpy()
    grown = np.linalg.det((end[:, 1:] - end[:, :1]) / 1e-6)
    # All directions together: the sum of the exponents is the growth of volume.
    assert spectrum.per_bin.sum() == pytest.approx(np.log(abs(grown)) / 40, abs=2e-3)
    np.testing.assert_allclose(spectrum.per_time, spectrum.per_bin / 0.5)
    assert np.isnan(spectrum.standard_error).all()


@pytest.mark.parametrize(
    ("exponents", "dimension"),
    [([-0.1, -1], 0.0), ([1.0, 0.5], 2.0), ([0.9, 0.0, -14.4], 2.0625), ([0.0, -1.0], 1.0)],
)
def test_kaplan_yorke(exponents, dimension):
    assert kaplan_yorke(np.array(exponents)) == pytest.approx(dimension)


def test_errors():
    with pytest.raises(FloatingPointError, match="Run 0 grew without bound"):
        lyapunov_spectrum(lambda z: 1e3 * z, [1.0], 500, discrete=True)
    with pytest.raises(ValueError, match="n_bins must be"):
        lyapunov_spectrum(Lorenz(), np.ones(3), 0)
    with pytest.raises(ValueError, match="n_burn_in must be"):
        lyapunov_spectrum(Lorenz(), np.ones(3), 10, n_burn_in=-1)
