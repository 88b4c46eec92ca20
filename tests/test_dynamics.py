import copy

import pytest
import torch
from common import generator
from torchdiffeq import odeint

from sklearn_sae._dynamics import (
    ADAPTIVE_SOLVERS,
    SOLVERS,
    GRUCell,
    NeuralODE,
    RecurrentDynamics,
    TanhCell,
)
from sklearn_sae._explicit import TABLEAUS
from sklearn_sae._mlp import MLP


def states(n_latents=3, n_trials=5, seed=1):
    return torch.randn(n_latents, n_trials, generator=generator(seed), dtype=torch.float64)


def make_mlp(n_latents=3, activation="tanh"):
    mlp = MLP(n_latents, (8,), activation, generator()).double()
    with torch.no_grad():
        mlp.weights[-1].mul_(30)
    return mlp


def make_ode(solver="midpoint", step_size=1.0, adjoint=False, tolerance=1e-9):
    return NeuralODE(make_mlp(), solver, step_size, tolerance, tolerance, adjoint, 10.0)


CELLS = {
    "gru": lambda: GRUCell(3, generator()).double(),
    "rnn": lambda: TanhCell(3, generator()).double(),
    "mlp": make_mlp,
}
RECURRENT = {
    f"{cell}, residual={residual}": lambda cell=cell, residual=residual: RecurrentDynamics(
        CELLS[cell](), residual
    )
    for cell in CELLS
    for residual in (None, 0.1, 1.0)
}
EXPLICIT = {
    f"{solver} / {n_substeps}": lambda solver=solver, n=n_substeps: make_ode(solver, 1 / n)
    for solver in TABLEAUS
    for n_substeps in (1, 3)
}
EVERY = {**RECURRENT, **EXPLICIT, "dopri5": lambda: make_ode("dopri5")}


@pytest.mark.parametrize("name", EVERY)
def test_rollout_repeats_the_step(name):
    dynamics, z = EVERY[name](), states()
    latents = dynamics.rollout(z, 4)
    assert latents.shape == (4, 3, 5)
    assert torch.equal(latents[0], z)
    assert (latents[1] - z).abs().max() > 0.05
    tolerance = 1e-7 if name == "dopri5" else 1e-12
    for t in range(3):
        torch.testing.assert_close(
            dynamics.step(latents[t]), latents[t + 1], rtol=0, atol=tolerance
        )
    assert torch.equal(dynamics.rollout(z, 1), z[None])


@pytest.mark.parametrize("name", EVERY)
def test_step_jacobian(name):
    # An adaptive solver's Jacobian is rk4's, whose own error over a bin is small.
    tolerance = 1e-4 if name == "dopri5" else 1e-10
    dynamics, z = EVERY[name](), states()
    jacobians = dynamics.step_jacobian(z)
    assert jacobians.shape == (3, 3, 5)
    for i in range(z.shape[1]):
        expected = torch.autograd.functional.jacobian(
            lambda x: dynamics.step(x[:, None])[:, 0], z[:, i]
        )
        torch.testing.assert_close(jacobians[:, :, i], expected, rtol=0, atol=tolerance)


def test_steps_divide_a_bin_evenly():
    # 1 / (1 / 49) is a little more than 49.
    assert [make_ode(step_size=1 / n).n_substeps for n in range(1, 200)] == list(range(1, 200))
    assert make_ode(step_size=0.4).n_substeps == 3


def test_vector_field_is_what_is_integrated():
    ode, z = make_ode("euler"), states()
    torch.testing.assert_close(ode.vector_field(z), ode.mlp(z) / 10)
    torch.testing.assert_close(ode.step(z) - z, ode.vector_field(z))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_solution(solver):
    step_size = 1 / 2000 if solver == "euler" else 1 / 50
    latents = make_ode(solver, step_size, tolerance=1e-8).rollout(states(), 3)
    exact = make_ode("rk4", 1 / 100).rollout(states(), 3)
    torch.testing.assert_close(latents, exact, rtol=0, atol=2e-4 if solver == "euler" else 5e-5)


def test_a_fixed_step_beyond_the_tableaus_keeps_its_size():
    coarse = make_ode("implicit_adams", 1 / 2)
    expected = odeint(
        lambda t, z: coarse.vector_field(z),
        states(),
        torch.arange(4.0, dtype=torch.float64),
        method="implicit_adams",
        rtol=1e-9,
        atol=1e-9,
        options={"step_size": 1 / 2},
    )
    torch.testing.assert_close(coarse.rollout(states(), 4), expected, rtol=0, atol=1e-12)


def test_tolerances_reach_an_adaptive_solver():
    exact = make_ode("rk4", 1 / 100).rollout(states(), 10)
    errors = [
        (make_ode("bosh3", tolerance=tolerance).rollout(states(), 10) - exact).abs().max()
        for tolerance in (1e-2, 1e-7)
    ]
    assert errors[0] > 10 * errors[1]


@pytest.mark.parametrize("solver", ["rk4", "midpoint", *ADAPTIVE_SOLVERS])
def test_adjoint_gradients(solver):
    # Methods of low order would take very many steps.
    tolerance = {"adaptive_heun": 1e-6, "fehlberg2": 1e-7}.get(solver, 1e-9)
    gradients = []
    for adjoint in (False, True):
        ode = make_ode(solver, 1 / 40, adjoint, tolerance)
        z0 = states().requires_grad_()
        ode.rollout(z0, 4).square().sum().backward()
        gradients.append([z0.grad, *(weight.grad for weight in ode.mlp.weights)])
    for plain, adjoint in zip(*gradients, strict=True):
        torch.testing.assert_close(adjoint, plain, rtol=1e-3, atol=1e-3)


def test_adjoint_works_with_frozen_weights():
    ode = make_ode("dopri5", adjoint=True).requires_grad_(False)
    expected = make_ode("dopri5").rollout(states(), 4)
    with torch.no_grad():
        torch.testing.assert_close(ode.rollout(states(), 4), expected, rtol=0, atol=1e-9)


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


@pytest.mark.parametrize("cell", CELLS)
def test_residual_is_the_size_of_an_euler_step(cell):
    module, z = CELLS[cell](), states()
    step = RecurrentDynamics(module, 0.3).step(z)
    torch.testing.assert_close(step, z + 0.3 * module(z))
    torch.testing.assert_close(RecurrentDynamics(module, None).step(z), module(z))


def test_residual_mlp_is_an_euler_ode():
    # The paper's discrete NODE: z + 0.1 MLP(z).
    discrete = RecurrentDynamics(make_mlp(), 0.1)
    torch.testing.assert_close(
        discrete.rollout(states(), 6), make_ode("euler").rollout(states(), 6), rtol=0, atol=1e-12
    )


def test_saturating_cells_start_at_smaller_latents():
    scales = {
        name: make().latent_scale for name, make in {**RECURRENT, "ode": lambda: make_ode()}.items()
    }
    small = {name for name, scale in scales.items() if scale == 0.5}
    assert small == {"gru, residual=None", "rnn, residual=None"}
    assert set(scales.values()) == {0.5, 1.0}


@pytest.mark.parametrize("name", EVERY)
def test_a_trial_does_not_see_its_neighbours(name):
    dynamics, z = EVERY[name](), states(n_trials=6)
    tolerance = 1e-7 if name == "dopri5" else 1e-12
    torch.testing.assert_close(
        dynamics.rollout(z, 5)[:, :, 2:4], dynamics.rollout(z[:, 2:4], 5), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("name", EVERY)
def test_dynamics_copy_and_keep_their_weights_in_parameters(name):
    dynamics = EVERY[name]()
    twin = copy.deepcopy(dynamics)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not torch.equal(twin.rollout(states(), 3), dynamics.rollout(states(), 3))
