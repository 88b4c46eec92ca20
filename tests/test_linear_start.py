"""The linear system that training starts at, and dynamics that start there."""

import numpy as np
import pytest
import torch
from common import CPU, generator

from sklearn_sae._data.trials import Trials
from sklearn_sae._model.dynamics import Flow, Map
from sklearn_sae._model.likelihoods import LIKELIHOODS
from sklearn_sae._model.solvers import SOLVERS
from sklearn_sae._model.state_maps import MLP, GRUCell
from sklearn_sae._training.initialization import pca_start
from sklearn_sae._training.linear_start import fit_linear

MATRIX = 0.97 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
PUSH = np.array([[0.6], [-0.3]])


def driven(noise, likelihood="poisson", n_trials=80, n_bins=40, n_neurons=20):
    """Data of a turning linear system with process noise, its inputs, and its latents."""
    rng = np.random.default_rng(0)
    inputs = (rng.random((n_trials, n_bins, 1)) < 0.1).astype(np.float32)
    z = np.zeros((n_trials, n_bins, 2))
    z[:, 0] = rng.normal(size=(n_trials, 2))
    for t in range(n_bins - 1):
        kick = noise * rng.normal(size=(n_trials, 2))
        z[:, t + 1] = z[:, t] @ MATRIX.T + inputs[:, t] @ PUSH.T + kick
    output = z @ rng.normal(size=(2, n_neurons)) * 0.7
    if likelihood == "gaussian":
        return output + 0.5 * rng.normal(size=output.shape), inputs, z
    return rng.poisson(np.exp(output)), inputs, z


def fitted(counts, inputs=None, likelihood="poisson"):
    trials = Trials(counts, has_missing=bool(np.isnan(counts).any()), inputs=inputs)
    scatter = LIKELIHOODS[likelihood](trials.n_neurons)
    mean_counts = trials.mean_counts()
    scatter.fit_null(trials, mean_counts)
    weight, _ = pca_start(trials, scatter, 2, 1.0, np.random.default_rng(0))
    n_known = 0 if inputs is None else inputs.shape[2]
    return fit_linear(trials, scatter, weight, n_known, CPU)


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS])
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_a_linear_system_is_found(likelihood, noise):
    counts, inputs, z = driven(noise, likelihood)
    start = fitted(counts, inputs, likelihood)
    eigenvalues = np.linalg.eigvals(start.transition[:, :-1].numpy())
    np.testing.assert_allclose(np.abs(eigenvalues), 0.97, atol=0.03)
    np.testing.assert_allclose(np.abs(np.angle(eigenvalues)), 0.3, atol=0.03)
    # Latents are the true ones, up to an affine map, of unit size with their uncertainty.
    x = np.concatenate([start.table.reshape(-1, 2).numpy(), np.ones((80 * 40, 1))], axis=1)
    to_true, *_ = np.linalg.lstsq(x, z.reshape(-1, 2), rcond=None)
    residual = z.reshape(-1, 2) - x @ to_true
    assert residual.var() < 0.1 * z.var()
    assert float(start.covariance.diagonal().mean()) == pytest.approx(1, abs=1e-4)
    to_true = to_true[:2].T
    np.testing.assert_allclose(
        to_true @ start.network.inputs.known.detach().numpy(), PUSH, atol=0.1
    )
    # Noise is one number in the frame of unit latents, which may be a skew one.
    size = start.noise**0.5 * np.linalg.norm(to_true) / 2**0.5
    assert size == pytest.approx(noise, rel=0.25)


def test_missing_entries_change_little():
    counts, _, _ = driven(0.1)
    holes = counts.astype(float)
    holes[np.random.default_rng(1).random(holes.shape) < 0.3] = np.nan
    holes[0, 20:] = np.nan
    found = [np.linalg.eigvals(fitted(x).transition[:, :-1].numpy()) for x in (counts, holes)]
    np.testing.assert_allclose(*(np.sort(np.abs(np.angle(x))) for x in found), atol=0.05)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5"])
def test_flows_start_at_a_linear_step(method):
    mlp = MLP(3, (16,), "tanh", generator(), linear=True)
    solver = SOLVERS[method].from_parameters(method, 0.5, 1e-6, 1e-6, False)
    flow = Flow(mlp, solver, 7.0)
    matrix = 0.3 * torch.randn(3, 3, generator=generator(1)) + 0.8 * torch.eye(3)
    offset = torch.tensor([0.1, -0.2, 0.3])
    assert flow.start_at(matrix, offset, torch.eye(3))
    z = torch.randn(3, 10, generator=generator(2))
    expected = matrix @ z + offset[:, None]
    torch.testing.assert_close(flow.step(z), expected, rtol=1e-3, atol=1e-3)
    linear = Flow(MLP(3, (), "tanh", generator()), solver, 7.0)
    assert linear.start_at(matrix, offset, torch.eye(3))
    torch.testing.assert_close(linear.step(z), expected, rtol=1e-3, atol=1e-3)


def test_a_step_that_a_solver_cannot_take_is_taken_as_closely_as_it_can():
    # A midpoint step of a decaying state never leaves less than half of it.
    solver = SOLVERS["midpoint"].from_parameters("midpoint", 1.0, 0, 0, False)
    flow = Flow(MLP(2, (8,), "tanh", generator(), linear=True), solver, 10.0)
    assert flow.start_at(torch.diag(torch.tensor([0.2, 0.9])), torch.zeros(2), torch.eye(2))
    found = flow.step_jacobian(torch.zeros(2, 1))[:, :, 0].detach()
    assert float(found[1, 1]) == pytest.approx(0.9, abs=5e-3)
    assert 0.5 <= float(found[0, 0]) < 0.51


@pytest.mark.parametrize("residual", [None, 0.2])
def test_maps_start_at_a_linear_step_if_they_have_a_linear_part(residual):
    matrix, offset = torch.randn(3, 3, generator=generator()), torch.tensor([0.1, -0.2, 0.3])
    z = torch.randn(3, 10, generator=generator(2))
    for mlp in (MLP(3, (8,), "relu", generator(), linear=True), MLP(3, (), "tanh", generator())):
        cell = Map(mlp, residual)
        assert cell.start_at(matrix, offset, torch.eye(3))
        torch.testing.assert_close(cell.step(z), matrix @ z + offset[:, None])
    for other in (MLP(3, (8,), "tanh", generator()), GRUCell(3, generator())):
        before = other(z)
        assert not Map(other, residual).start_at(matrix, offset, torch.eye(3))
        assert torch.equal(other(z), before)


@pytest.mark.parametrize("sizes", [(), (8,), (8, 6)])
def test_rescaled_maps_are_the_same_maps_of_smaller_states(sizes):
    mlp = MLP(3, sizes, "tanh", generator(), linear=True).requires_grad_(False)
    mlp.weights[-1].mul_(20)
    mlp.start_at(torch.randn(3, 3, generator=generator(3))) if not sizes else None
    z = torch.randn(3, 10, generator=generator(2))
    expected = mlp(z.clone()) / 1.7
    assert mlp.rescale(1.7)
    torch.testing.assert_close(mlp(z / 1.7), expected)


def test_the_linear_part_is_in_values_and_jacobians():
    mlp = MLP(3, (8,), "tanh", generator(), linear=True).double().requires_grad_(False)
    mlp.weights[-1].mul_(20)
    mlp.linear.normal_(generator=generator(1))
    z = torch.randn(3, 5, generator=generator(2)).double()
    inner = torch.randn(3, 2, 5, generator=generator(3)).double()
    values, jacobians = mlp.with_jacobian(z)
    torch.testing.assert_close(values, mlp(z))
    for i in range(5):
        exact = torch.autograd.functional.jacobian(lambda x: mlp(x[:, None])[:, 0], z[:, i])
        torch.testing.assert_close(jacobians[:, :, i], exact)
        through = mlp.with_jacobian(z, inner)[1][:, :, i]
        torch.testing.assert_close(through, exact @ inner[:, :, i])
