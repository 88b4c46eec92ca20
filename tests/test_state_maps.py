import pytest
import torch
from common import generator

from sklearn_sae._model.state_maps import STATE_MAPS, GRUCell, StateMap, TanhCell


def states(n_latents=4, n_trials=5):
    return torch.randn(n_latents, n_trials, generator=generator(1), dtype=torch.float64)


def make(name, n_latents=4):
    return STATE_MAPS[name].from_parameters(n_latents, [8], "tanh", generator()).double()


def test_gru_is_torchs_without_input():
    ours = GRUCell(4, generator()).double()
    torchs = torch.nn.GRUCell(2, 4, dtype=torch.float64)
    with torch.no_grad():
        torchs.weight_hh.copy_(ours.weight[:, :-1])
        torchs.bias_hh.copy_(ours.weight[:, -1])
        torchs.bias_ih.zero_()
        torchs.bias_ih[8:] = ours.new_bias[:, 0]
    z = states(4)
    torch.testing.assert_close(ours(z), torchs(torch.zeros(5, 2).double(), z.T).T)
    assert ours.new_bias.abs().min() > 0


def test_tanh_cell_is_torchs_rnn_without_input():
    ours = TanhCell(4, generator()).double()
    torchs = torch.nn.RNNCell(2, 4, dtype=torch.float64)
    with torch.no_grad():
        torchs.weight_hh.copy_(ours.weight[:, :-1])
        torchs.bias_hh.copy_(ours.weight[:, -1])
        torchs.bias_ih.zero_()
    z = states(4)
    torch.testing.assert_close(ours(z), torchs(torch.zeros(5, 2).double(), z.T).T)


@pytest.mark.parametrize("name", STATE_MAPS)
def test_jacobians_are_autograds(name):
    state_map, z = make(name), states()
    inner = torch.randn(4, 2, 5, generator=generator(2), dtype=torch.float64)
    value, product = state_map.with_jacobian(z, inner)
    torch.testing.assert_close(value, state_map(z), rtol=0, atol=1e-14)
    for i in range(z.shape[1]):
        expected = torch.func.jacrev(lambda x: state_map(x[:, None])[:, 0])(z[:, i])
        torch.testing.assert_close(state_map.jacobian(z)[..., i], expected)
        torch.testing.assert_close(state_map.with_jacobian(z)[1][..., i], expected)
        torch.testing.assert_close(product[..., i], expected @ inner[..., i])


@pytest.mark.parametrize("name", STATE_MAPS)
def test_bounded_maps_stay_within_one(name):
    state_map, z = make(name), states().clamp(-1, 1)
    with torch.no_grad():
        for weight in state_map.parameters():
            weight.mul_(100)
    assert (state_map(z).abs().max() <= 1) == state_map.bounded


@pytest.mark.parametrize("name", STATE_MAPS)
def test_shapes_without_a_generator_take_no_memory(name):
    fresh = STATE_MAPS[name].from_parameters(4, [8], "tanh", None)
    shapes = {key: value.shape for key, value in make(name).state_dict().items()}
    assert {key: value.shape for key, value in fresh.state_dict().items()} == shapes
    assert all(value.is_meta for value in fresh.state_dict().values())


def test_width_is_that_of_the_largest_weight():
    widths = {name: make(name).width for name in ("gru", "rnn", "mlp")}
    assert widths == {"gru": 12, "rnn": 4, "mlp": 8}


@pytest.mark.parametrize("missing", ["forward", "jacobian"])
def test_an_incomplete_map_fails_when_it_is_made(missing):
    given = {name: lambda self, z: z for name in {"forward", "jacobian"} - {missing}}
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (StateMap,), given).from_parameters(3, [8], "tanh", None)
