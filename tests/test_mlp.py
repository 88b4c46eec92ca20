import pytest
import torch
from common import generator
from torch.func import jacrev

from sklearn_sae._model.activations import ACTIVATIONS
from sklearn_sae._model.layers import affine, uniform_weight
from sklearn_sae._model.state_maps import MLP


def normal(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(1,), (7,), (6, 4), (5, 1, 4)])
@pytest.mark.parametrize("n_latents", [1, 3])
@pytest.mark.parametrize("n_trials", [1, 5])
def test_jacobian(activation, hidden_sizes, n_latents, n_trials):
    mlp = MLP(n_latents, hidden_sizes, activation, generator()).double()
    z = 3 * normal(n_latents, n_trials)
    jacobians = mlp.jacobian(z)
    assert jacobians.shape == (n_latents, n_latents, n_trials)
    for i in range(n_trials):
        expected = jacrev(lambda x: mlp(x[:, None])[:, 0])(z[:, i])
        torch.testing.assert_close(jacobians[:, :, i], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_is_the_textbooks(activation):
    mlp = MLP(3, (6, 4), activation, generator()).double()
    activate = {"tanh": torch.nn.Tanh(), "relu": torch.nn.ReLU(), "softplus": torch.nn.Softplus()}
    layers = []
    for weight in mlp.weights:
        layer = torch.nn.Linear(weight.shape[1] - 1, len(weight), dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight[:, :-1])
            layer.bias.copy_(weight[:, -1])
        layers += [layer, activate[activation]]
    z = normal(3, 5)
    torch.testing.assert_close(mlp(z), torch.nn.Sequential(*layers[:-1])(z.T).T)


@pytest.mark.parametrize("leading", [(), (4,)])
def test_affine(leading):
    weight, x = normal(2, 4), normal(*leading, 3, 5, seed=2)
    expected = torch.einsum("oi,...it->...ot", weight[:, :3], x) + weight[:, 3, None]
    torch.testing.assert_close(affine(weight, x), expected)


def test_fresh_weights():
    weight = uniform_weight(400, 25, generator())
    assert weight.shape == (400, 26)
    assert weight.requires_grad
    assert 0.19 < weight.max() <= 0.2
    assert -0.2 <= weight.min() < -0.19
    assert weight.mean().abs() < 0.01
    mlp = MLP(3, (100,), "tanh", generator())
    # Hidden units switch where weight . z + bias = 0: all over latents of unit size.
    weight, bias = mlp.weights[0][:, :-1], mlp.weights[0][:, -1]
    assert 0.9 * 2 < weight.abs().max() * 3**0.5 <= 2
    assert 0.9 * 4 < bias.abs().max() * 3**0.5 <= 4
    assert 0.5 < (bias.abs() / weight.norm(dim=1)).median() < 1.5
    assert mlp.weights[1].abs().max() <= 0.005


def test_weights_are_drawn_from_the_generator_alone():
    before = torch.get_rng_state()
    first, second, third = (MLP(3, (4,), "tanh", generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weights[0], second.weights[0])
    assert not torch.equal(first.weights[0], third.weights[0])
