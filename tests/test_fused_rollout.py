import math

import pytest
import torch
from torchdiffeq import odeint

from sklearn_sae._model.activations import ACTIVATIONS
from sklearn_sae._model.fused_rollout import FusedSteps, rollout
from sklearn_sae._model.runge_kutta import TABLEAUS
from sklearn_sae._model.state_maps import MLP

METHODS = sorted(TABLEAUS)


def make_mlp(hidden_sizes=(7,), activation="tanh", n_latents=3, seed=0, dtype=torch.float64):
    mlp = MLP(n_latents, hidden_sizes, activation, torch.Generator().manual_seed(seed)).to(dtype)
    with torch.no_grad():
        # A fresh field hardly moves; a test needs one that does.
        mlp.weights[-1].mul_(10)
    return mlp


def states(n_latents=3, n_trials=5, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_latents, n_trials, generator=generator, dtype=dtype)


def plain_step(mlp, z, tableau, step_size):
    """The textbook's step, for autograd to go through."""
    stages = []
    for row in tableau.a:
        x = z
        for a, k in zip(row, stages, strict=True):
            x = x + step_size * a * k
        stages.append(mlp(x))
    for b, k in zip(tableau.b, stages, strict=True):
        z = z + step_size * b * k
    return z


def fused_rollout(mlp, z0, n_bins, tableau, n_substeps, step_size):
    return rollout(FusedSteps(mlp.layers(), tableau, n_substeps, step_size), z0, n_bins)


def plain_rollout(mlp, z0, n_bins, tableau, n_substeps, step_size):
    latents = [z0]
    for _ in range(n_bins - 1):
        z = latents[-1]
        for _ in range(n_substeps):
            z = plain_step(mlp, z, tableau, step_size)
        latents.append(z)
    return torch.stack(latents)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(7,), (6, 4), (5, 1, 4)])
@pytest.mark.parametrize("n_substeps", [1, 3])
def test_rollout_is_torchdiffeqs(method, activation, hidden_sizes, n_substeps):
    mlp = make_mlp(hidden_sizes, activation, dtype=torch.float32)
    z0 = states(dtype=torch.float32)
    bins = torch.arange(6.0)
    with torch.no_grad():
        expected = odeint(
            lambda t, z: 0.3 * mlp(z),
            z0,
            bins,
            method=method,
            options={"step_size": 1 / n_substeps},
        )
        latents = fused_rollout(mlp, z0, 6, TABLEAUS[method], n_substeps, 0.3 / n_substeps)
    assert (latents[5] - z0).abs().max() > 0.1
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(7,), (6, 4), (5, 1, 4), (2, 4)])
@pytest.mark.parametrize("n_substeps", [1, 2])
def test_gradients_are_those_of_the_plain_loop(method, activation, hidden_sizes, n_substeps):
    mlp = make_mlp(hidden_sizes, activation)
    z0 = states().requires_grad_()
    weighing = torch.randn(5, 3, 5, generator=torch.Generator().manual_seed(2)).double()
    settings = 5, TABLEAUS[method], n_substeps, 0.4
    leaves = [z0, *mlp.parameters()]
    ours, expected = (
        torch.autograd.grad((weighing * roll(mlp, z0, *settings).square()).sum(), leaves)
        for roll in (fused_rollout, plain_rollout)
    )
    for gradient, right in zip(ours, expected, strict=True):
        assert right.abs().max() > 1e-3
        torch.testing.assert_close(gradient, right, rtol=1e-8, atol=1e-8)


def test_gradients_through_the_last_bin_only_and_through_expanded_ones():
    mlp, z0 = make_mlp(), states().requires_grad_()
    for loss in (lambda latents: latents[-1].square().sum(), lambda latents: latents.sum()):
        ours, expected = (
            torch.autograd.grad(loss(roll(mlp, z0, 4, TABLEAUS["rk4"], 1, 0.4)), z0)
            for roll in (fused_rollout, plain_rollout)
        )
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


def test_a_second_derivative_is_refused_rather_than_wrong():
    z0 = states().requires_grad_()
    latents = fused_rollout(make_mlp(), z0, 4, TABLEAUS["midpoint"], 1, 0.4)
    (gradient,) = torch.autograd.grad(latents.square().sum(), z0, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("trained", ["nothing", "initial conditions", "weights"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_path_gives_the_same_latents(trained, activation):
    mlp, z0 = make_mlp((6, 4), activation), states()
    with torch.no_grad():
        expected = fused_rollout(mlp, z0, 6, TABLEAUS["midpoint"], 2, 0.4)
    mlp.requires_grad_(trained == "weights")
    z0.requires_grad_(trained == "initial conditions")
    latents = fused_rollout(mlp, z0, 6, TABLEAUS["midpoint"], 2, 0.4)
    assert torch.equal(latents, expected)
    assert latents.requires_grad == (trained != "nothing")
    if trained != "nothing":
        latents.sum().backward()
        assert (z0.grad is not None) == (trained == "initial conditions")
        assert all((weight.grad is not None) == (trained == "weights") for weight in mlp.weights)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_gradients_no_activation_is_kept(activation, monkeypatch):
    sizes = []
    new_empty = torch.Tensor.new_empty

    def spy(tensor, *shape):
        sizes.append(math.prod(shape))
        return new_empty(tensor, *shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", spy)
    with torch.no_grad():
        latents = fused_rollout(make_mlp((8,), activation), states(), 40, TABLEAUS["rk4"], 1, 0.4)
    assert sum(sizes) < latents.numel() + 100


def test_one_bin_is_the_initial_condition():
    mlp, z0 = make_mlp(), states().requires_grad_()
    latents = fused_rollout(mlp, z0, 1, TABLEAUS["rk4"], 2, 0.4)
    assert torch.equal(latents, z0[None])
    (3 * latents).sum().backward()
    assert torch.equal(z0.grad, torch.full_like(z0, 3))
    assert all(torch.equal(weight.grad, torch.zeros_like(weight)) for weight in mlp.weights)


def test_initial_conditions_and_weights_are_left_as_they_were():
    mlp, z0 = make_mlp(), states()
    before = [tensor.detach().clone() for tensor in (z0, *mlp.weights)]
    latents = fused_rollout(mlp, z0, 5, TABLEAUS["rk4"], 2, 0.4)
    latents.sum().backward()
    assert all(torch.equal(now, then) for now, then in zip((z0, *mlp.weights), before, strict=True))
