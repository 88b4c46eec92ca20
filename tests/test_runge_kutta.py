import pytest
import torch
from common import generator
from torch.func import jacrev
from torchdiffeq import odeint

from sklearn_sae._model import runge_kutta
from sklearn_sae._model.activations import ACTIVATIONS
from sklearn_sae._model.runge_kutta import TABLEAUS, compose, explicit_step, variational_step
from sklearn_sae._model.state_maps import MLP

METHODS = sorted(TABLEAUS)


def make_mlp(hidden_sizes=(7,), activation="tanh"):
    mlp = MLP(3, hidden_sizes, activation, generator()).double()
    with torch.no_grad():
        # A fresh field hardly moves; a test needs one that does.
        mlp.weights[-1].mul_(10)
    return mlp


def states(n_latents=3, n_trials=5, dtype=torch.float64):
    return torch.randn(n_latents, n_trials, generator=generator(1), dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
def test_explicit_step_is_torchdiffeqs(method):
    mlp, z = make_mlp(), states()
    sizes = torch.tensor([0.7, 0.1, 0.0, 1.0, 0.7], dtype=z.dtype)
    steps = explicit_step(mlp, z, TABLEAUS[method], sizes)
    for i, size in enumerate(sizes):
        bin_edges = torch.tensor([0.0, 1.0], dtype=z.dtype)
        expected = odeint(lambda t, z, size=size: size * mlp(z), z, bin_edges, method=method)[1]
        torch.testing.assert_close(steps[:, i], expected[:, i], rtol=0, atol=1e-12)
        one_for_all = explicit_step(mlp, z, TABLEAUS[method], size.item())
        torch.testing.assert_close(one_for_all, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(7,), (5, 4)])
@pytest.mark.parametrize("many_latents", [1, 100])
def test_step_and_its_jacobian(method, activation, hidden_sizes, many_latents, monkeypatch):
    monkeypatch.setattr(runge_kutta, "MANY_LATENTS", many_latents)
    mlp, z = make_mlp(hidden_sizes, activation), states()
    tableau = TABLEAUS[method]
    with torch.no_grad():
        advanced, jacobians = variational_step(mlp, z, tableau, 0.7)
    for i in range(z.shape[1]):
        expected = jacrev(lambda x: explicit_step(mlp, x[:, None], tableau, 0.7)[:, 0])(z[:, i])
        torch.testing.assert_close(jacobians[:, :, i], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(advanced, explicit_step(mlp, z, tableau, 0.7), rtol=0, atol=1e-12)
    with torch.no_grad():
        _, alone = variational_step(mlp, z[:, :1], tableau, 0.7)
    torch.testing.assert_close(alone, jacobians[:, :, :1], rtol=1e-10, atol=1e-10)


def test_jacobians_of_many_latents_are_matrix_products(monkeypatch):
    # Products state by state took three times as long as all the rest.
    calls = []
    monkeypatch.setattr(runge_kutta, "compose", lambda *args: calls.append(0) or compose(*args))
    for n_latents in (8, 64):
        mlp = MLP(n_latents, (8,), "tanh", generator())
        with torch.no_grad():
            variational_step(mlp, states(n_latents, dtype=torch.float32), TABLEAUS["rk4"], 0.7)
        assert len(calls) == 3


def test_compose_is_the_product_of_matrices():
    outer, inner = (torch.randn(shape, generator=generator()) for shape in ((2, 3, 4), (3, 5, 4)))
    product = compose(outer, inner)
    assert product.shape == (2, 5, 4)
    for i in range(4):
        torch.testing.assert_close(product[..., i], outer[..., i] @ inner[..., i])
