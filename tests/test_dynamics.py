import copy

import pytest
import torch
from common import generator
from torchdiffeq import odeint
from torchdiffeq._impl.odeint import SOLVERS as SOLVERS_OF_TORCHDIFFEQ

from sklearn_sae._model.activations import Tanh
from sklearn_sae._model.adaptive import EMBEDDED, take_bin
from sklearn_sae._model.dynamics import Dynamics, Flow, Map
from sklearn_sae._model.layers import Layers, affine, uniform_weight
from sklearn_sae._model.runge_kutta import TABLEAUS
from sklearn_sae._model.solvers import SOLVERS
from sklearn_sae._model.state_maps import MLP, GRUCell, StateMap, TanhCell

ADAPTIVE_SOLVERS = tuple(EMBEDDED)


def states(n_latents=3, n_trials=5, seed=1):
    return torch.randn(n_latents, n_trials, generator=generator(seed), dtype=torch.float64)


def make_mlp(n_latents=3, activation="tanh"):
    mlp = MLP(n_latents, (8,), activation, generator()).double()
    with torch.no_grad():
        mlp.weights[-1].mul_(30)
    return mlp


class Linear(StateMap):
    """dz/dt = A z + b, or z -> A z + b: all that a new state map has to bring."""

    def __init__(self, n_latents, generator):
        super().__init__()
        self.weight = uniform_weight(n_latents, n_latents, generator)

    def forward(self, z):
        return affine(self.weight, z)

    def jacobian(self, z):
        return self.weight[:, :-1, None].expand(-1, -1, z.shape[1])


class FusedLinear(Linear):
    """The same, with the fast rollout."""

    def layers(self):
        return Layers([self.weight], Tanh())


def make_ode(solver="midpoint", step_size=1.0, adjoint=False, tolerance=1e-9, field=None):
    method = SOLVERS[solver].from_parameters(solver, step_size, tolerance, tolerance, adjoint)
    return Flow(make_mlp() if field is None else field, method, 10.0)


CELLS = {
    "gru": lambda: GRUCell(3, generator()).double(),
    "rnn": lambda: TanhCell(3, generator()).double(),
    "mlp": make_mlp,
    "linear": lambda: Linear(3, generator()).double(),
}
RECURRENT = {
    f"{cell}, residual={residual}": lambda cell=cell, residual=residual: Map(
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
LOOSE = {
    f"{solver} at {tolerance}": lambda solver=solver, tolerance=tolerance: make_ode(
        solver, tolerance=tolerance
    )
    for solver in ADAPTIVE_SOLVERS
    for tolerance in (1e-2, 1e-5)
}
LINEAR = {
    f"{field.__name__}, {solver}": lambda field=field, solver=solver: make_ode(
        solver, 1 / 2, field=field(3, generator()).double()
    )
    for field in (Linear, FusedLinear)
    for solver in ("rk4", "dopri5")
}
EVERY = {**RECURRENT, **EXPLICIT, **LOOSE, **LINEAR}


@pytest.mark.parametrize("name", EVERY)
def test_rollout_repeats_the_step(name):
    dynamics, z = EVERY[name](), states()
    latents = dynamics.rollout(z, 4)
    assert latents.shape == (4, 3, 5)
    assert torch.equal(latents[0], z)
    assert (latents[1] - z).abs().max() > 0.05
    for t in range(3):
        torch.testing.assert_close(dynamics.step(latents[t]), latents[t + 1], rtol=0, atol=1e-12)
    assert torch.equal(dynamics.rollout(z, 1), z[None])


@pytest.mark.parametrize("name", EVERY)
def test_step_jacobian(name):
    dynamics, z = EVERY[name](), states()
    jacobians = dynamics.step_jacobian(z)
    assert jacobians.shape == (3, 3, 5)
    for i in range(z.shape[1]):
        expected = torch.autograd.functional.jacobian(
            lambda x: dynamics.step(x[:, None])[:, 0], z[:, i]
        )
        torch.testing.assert_close(jacobians[:, :, i], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", EVERY)
def test_the_parts_of_a_step_lead_to_its_end(name):
    dynamics, z = EVERY[name](), states()
    after, chain = z, torch.eye(3, dtype=z.dtype)[..., None].expand(-1, -1, z.shape[1])
    for after, jacobian in dynamics.parts(z):  # noqa: B007
        chain = torch.einsum("omn,min->oin", jacobian, chain)
    torch.testing.assert_close(after, dynamics.step(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(chain, dynamics.step_jacobian(z), rtol=0, atol=1e-12)


def test_steps_divide_a_bin_evenly():
    # 1 / (1 / 49) is a little more than 49.
    assert [make_ode(step_size=1 / n).solver.n_substeps for n in range(1, 200)] == list(
        range(1, 200)
    )
    assert make_ode(step_size=0.4).solver.n_substeps == 3


def test_vector_field_is_what_is_integrated():
    ode, z = make_ode("euler"), states()
    torch.testing.assert_close(ode.vector_field(z), ode.field(z) / 10)
    torch.testing.assert_close(ode.step(z) - z, ode.vector_field(z))
    expected = torch.autograd.functional.jacobian(lambda x: ode.vector_field(x).sum(1), z)
    torch.testing.assert_close(ode.vector_field_jacobian(z), expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_solution(solver):
    step_size = 1 / 2000 if solver == "euler" else 1 / 50
    latents = make_ode(solver, step_size, tolerance=1e-8).rollout(states(), 3)
    exact = make_ode("rk4", 1 / 100).rollout(states(), 3)
    torch.testing.assert_close(latents, exact, rtol=0, atol=2e-4 if solver == "euler" else 5e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_linear_flow_is_the_matrix_exponential(solver):
    field = Linear(3, generator()).double()
    ode = make_ode(solver, 1 / 2000 if solver == "euler" else 1 / 50, tolerance=1e-8, field=field)
    square = torch.zeros(4, 4, dtype=torch.float64)
    square[:3] = field.weight.detach() / 10
    exact = torch.linalg.matrix_exp(square)
    z = states()
    after = exact[:3, :3] @ z + exact[:3, 3:]
    torch.testing.assert_close(ode.step(z), after, rtol=0, atol=1e-5)
    jacobian = exact[:3, :3, None].expand(-1, -1, 5)
    torch.testing.assert_close(ode.step_jacobian(z), jacobian, rtol=0, atol=1e-5)


def test_layers_change_nothing_but_the_time():
    z, grads = states(), []
    for field in (Linear, FusedLinear):
        ode = make_ode("rk4", 1 / 2, field=field(3, generator()).double())
        assert (ode.fused_steps() is None) == (field is Linear)
        latents = ode.rollout(z, 6)
        grads.append((latents, *torch.autograd.grad(latents.square().sum(), ode.field.weight)))
    torch.testing.assert_close(*grads)


def test_many_latents_of_a_map_without_layers():
    ode, z = make_ode("rk4", field=Linear(40, generator()).double()), states(40)
    expected = torch.func.jacrev(lambda x: ode.step(x[:, None])[:, 0])(z[:, 0])
    torch.testing.assert_close(ode.step_jacobian(z)[..., 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("missing", ["step", "step_jacobian"])
def test_incomplete_dynamics_fail_when_they_are_made(missing):
    given = {name: lambda self, z: z for name in {"step", "step_jacobian"} - {missing}}
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (Dynamics,), given)()


@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS)
def test_a_step_and_its_error_are_torchdiffeqs(solver):
    ode, z, method = make_ode(solver), states(n_trials=1), EMBEDDED[solver]
    theirs = SOLVERS_OF_TORCHDIFFEQ[solver]
    assert method.order == theirs.order
    # Tolerances so wide that one step over the bin is taken.
    after, sizes = take_bin(ode.vector_field, z, method, 1e9, 1e9)
    assert [size.tolist() for size in sizes] == [[1.0]]
    expected = odeint(
        lambda t, z: ode.vector_field(z),
        z,
        torch.tensor([0.0, 1.0], dtype=z.dtype),
        method=solver,
        rtol=1e9,
        atol=1e9,
        options={"first_step": 1.0},
    )
    torch.testing.assert_close(after, expected[1], rtol=0, atol=1e-14)
    ours, tableau = [*method.error], theirs.tableau
    ours += [0.0] * (len(tableau.c_error) - len(ours))
    torch.testing.assert_close(
        torch.tensor(ours, dtype=z.dtype), tableau.c_error, rtol=0, atol=1e-15
    )


def test_every_trial_takes_steps_of_its_own():
    # The first latent carries the speed at which the second decays.
    def field(z):
        return torch.stack([torch.zeros_like(z[0]), -z[0] * z[1]])

    speeds = torch.tensor([0.1, 3.0, 40.0, 0.1], dtype=torch.float64)
    z = torch.stack([speeds, torch.ones(4, dtype=torch.float64)])
    end, sizes = take_bin(field, z, EMBEDDED["dopri5"], 1e-6, 1e-6)
    taken = torch.stack(sizes)
    torch.testing.assert_close(taken.sum(0), torch.ones(4, dtype=torch.float64), rtol=0, atol=0)
    n_steps = (taken > 0).sum(0)
    assert n_steps[0] == n_steps[3] == 1 < n_steps[1] < n_steps[2]
    torch.testing.assert_close(end[1], torch.exp(-speeds), rtol=0, atol=1e-5)
    for i in range(4):
        alone, _ = take_bin(field, z[:, i : i + 1], EMBEDDED["dopri5"], 1e-6, 1e-6)
        assert torch.equal(alone[:, 0], end[:, i])


@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS)
def test_a_lost_trial_ends_and_leaves_the_others_alone(solver):
    def field(z):
        return z**2  # from 2 on it reaches infinity within the bin

    z = torch.tensor([[2.0, 0.1, torch.nan]])
    end, sizes = take_bin(field, z, EMBEDDED[solver], 1e-3, 1e-3)
    assert end[0, 1].item() == pytest.approx(0.1 / 0.9, rel=1e-3)
    assert not end[0, [0, 2]].isfinite().any()
    assert len(sizes) < 3000
    fine = z[:, 1:2].clone().requires_grad_()
    together = torch.cat([z[:, :1], fine, z[:, 2:]], dim=1)
    take_bin(field, together, EMBEDDED[solver], 1e-3, 1e-3)[0][0, 1].backward()
    assert fine.grad.item() == pytest.approx(1 / 0.9**2, rel=1e-2)


def test_tolerances_reach_an_adaptive_solver():
    exact = make_ode("rk4", 1 / 100).rollout(states(), 10)
    errors = [
        (make_ode("bosh3", tolerance=tolerance).rollout(states(), 10) - exact).abs().max()
        for tolerance in (1e-2, 1e-7)
    ]
    assert errors[0] > 10 * errors[1]


@pytest.mark.parametrize("solver", ["rk4", "midpoint", *ADAPTIVE_SOLVERS])
def test_adjoint_gradients(solver):
    gradients = []
    for adjoint in (False, True):
        ode = make_ode(solver, 1 / 4, adjoint, 1e-5)
        z0 = states().requires_grad_()
        ode.rollout(z0, 4).square().sum().backward()
        gradients.append([z0.grad, *(weight.grad for weight in ode.field.weights)])
    for plain, adjoint in zip(*gradients, strict=True):
        torch.testing.assert_close(adjoint, plain, rtol=1e-10, atol=1e-10)


def test_adjoint_works_with_frozen_weights():
    ode = make_ode("dopri5", adjoint=True).requires_grad_(False)
    expected = make_ode("dopri5").rollout(states(), 4)
    with torch.no_grad():
        torch.testing.assert_close(ode.rollout(states(), 4), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_residual_is_the_size_of_an_euler_step(cell):
    module, z = CELLS[cell](), states()
    step = Map(module, 0.3).step(z)
    torch.testing.assert_close(step, z + 0.3 * module(z))
    torch.testing.assert_close(Map(module, None).step(z), module(z))


def test_residual_mlp_is_an_euler_ode():
    # The paper's discrete NODE: z + 0.1 MLP(z).
    discrete = Map(make_mlp(), 0.1)
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
    torch.testing.assert_close(
        dynamics.rollout(z, 5)[:, :, 2:4], dynamics.rollout(z[:, 2:4], 5), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", EVERY)
def test_dynamics_copy_and_keep_their_weights_in_parameters(name):
    dynamics = EVERY[name]()
    twin = copy.deepcopy(dynamics)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not torch.equal(twin.rollout(states(), 3), dynamics.rollout(states(), 3))
