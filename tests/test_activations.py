import copy
import pickle

import pytest
import torch
from common import generator

from sklearn_sae._model.activations import ACTIVATIONS, Activation, Sigmoid

TORCHS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softplus": torch.nn.functional.softplus,
    "sigmoid": torch.sigmoid,
}
EVERY = [*ACTIVATIONS.values(), Sigmoid()]


def normal(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def test_every_activation_is_tested():
    assert {each.name for each in EVERY} == set(TORCHS)
    assert all(ACTIVATIONS[name].name == name for name in ACTIVATIONS)


@pytest.mark.parametrize("activation", EVERY, ids=lambda each: each.name)
def test_values_and_slopes_are_torchs(activation):
    x = 3 * normal(4, 5)
    expected = TORCHS[activation.name](x.clone().requires_grad_())
    leaf = x.clone().requires_grad_()
    TORCHS[activation.name](leaf).sum().backward()
    h = activation(x.clone())
    torch.testing.assert_close(h, expected.detach())
    torch.testing.assert_close(activation.slope(h), leaf.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", EVERY, ids=lambda each: each.name)
def test_prepared_operations_do_the_same_in_place(activation):
    x, gradient = 3 * normal(4, 5), normal(4, 5, seed=2)
    h = activation(x.clone())
    expected = gradient * activation.slope(h)
    operations = activation.in_place(x), activation.backward_in_place(gradient, x)
    for operation in operations:
        operation()
    torch.testing.assert_close(x, h)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", EVERY, ids=lambda each: each.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_input_before_one(activation, dtype):
    one = activation(torch.tensor([activation.before_one], dtype=dtype))
    torch.testing.assert_close(one, torch.ones_like(one))


@pytest.mark.parametrize("activation", EVERY, ids=lambda each: each.name)
def test_folded_layers_give_the_same(activation):
    weights = [normal(6, 4), normal(2, 4, 7), normal(2, 3, 5)]
    x = normal(3, 5, seed=2)

    def through(activation, weights):
        h = x
        for i, weight in enumerate(weights):
            h = weight[..., :-1] @ h + weight[..., -1:]
            h = h if i == len(weights) - 1 else activation(h)
        return h

    torch.testing.assert_close(through(*activation.fold(weights)), through(activation, weights))


def test_an_activation_can_be_copied_and_pickled():
    for activation in EVERY:
        for twin in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
            assert twin == activation


def test_activations_of_different_kinds_differ():
    assert len({*EVERY, *copy.deepcopy(EVERY)}) == len(EVERY)


def test_an_incomplete_activation_fails_when_it_is_made():
    class Square(Activation):
        name = "square"

        def __call__(self, x):
            return x.square_()

    with pytest.raises(TypeError, match="before_one.*slope"):
        Square()
