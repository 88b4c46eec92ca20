import copy

import numpy as np
import pytest
import torch
from common import generator
from torch import nn

from sklearn_sae._training import optimizers
from sklearn_sae._training.ensemble import joint_adam
from sklearn_sae._training.optimizers import OPTIMIZERS, RowAdam, Soap


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def weights_and_gradients(n_steps, shapes=((4, 3), (5,), (2, 1)), seed=0):
    weights = [nn.Parameter(normal(*shape, seed=seed)) for shape in shapes]
    gradients = [
        [normal(*shape, seed=100 * step + i) for i, shape in enumerate(shapes)]
        for step in range(1, n_steps + 1)
    ]
    return weights, gradients


def follow(optimise, weights, gradients, learning_rate=0.1, clip_norm=None):
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimise.step(learning_rate, clip_norm)


@pytest.fixture
def by_sides(monkeypatch):
    """Treat small weights as large ones."""
    monkeypatch.setattr(optimizers, "LARGEST_WHOLE", 0)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.95, 0.95)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("torchs", [torch.optim.AdamW, torch.optim.Adam])
def test_without_rotation_it_is_torchs(torchs, betas, weight_decay, clip_norm):
    ours, gradients = weights_and_gradients(8)
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    optimise = Soap(
        ours,
        rotate=False,
        betas=betas,
        weight_decay=weight_decay,
        decoupled=torchs is torch.optim.AdamW,
    )
    reference = torchs(theirs, lr=0.1, betas=betas, weight_decay=weight_decay)
    for step in gradients:
        follow(optimise, ours, [step], clip_norm=clip_norm)
        for weight, gradient in zip(theirs, step, strict=True):
            weight.grad = gradient.clone()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(theirs, clip_norm)
        reference.step()
        for weight, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(weight, expected, rtol=1e-10, atol=1e-12)


def test_the_two_optimizers_on_offer():
    assert not Soap([], **OPTIMIZERS["adam"]).moments
    assert OPTIMIZERS["adam"]["betas"] == (0.9, 0.999)
    assert not OPTIMIZERS["adam"]["decoupled"]
    weight = nn.Parameter(normal(3, 200))
    assert Soap([weight], **OPTIMIZERS["soap"]).moments[0].rotated == [1, 2]
    assert Soap([weight], **OPTIMIZERS["adam"]).moments[0].rotated == []


def test_one_dimensional_weights_are_not_rotated(by_sides):
    ours, gradients = weights_and_gradients(25, shapes=((6,),))
    plain = [nn.Parameter(weight.detach().clone()) for weight in ours]
    follow(Soap(ours), ours, gradients)
    follow(Soap(plain, rotate=False), plain, gradients)
    assert torch.equal(ours[0], plain[0])


@pytest.mark.parametrize(
    ("shape", "rotated"), [((4, 3), [1, 2]), ((6, 3), [2]), ((3, 6), [1]), ((6, 6), [])]
)
def test_long_sides_keep_their_own_basis(shape, rotated, by_sides, monkeypatch):
    monkeypatch.setattr(optimizers, "LARGEST_ROTATED_SIDE", 5)
    ours, gradients = weights_and_gradients(25, shapes=(shape,))
    plain = [nn.Parameter(weight.detach().clone()) for weight in ours]
    optimise = Soap(ours)
    assert optimise.moments[0].rotated == rotated
    follow(optimise, ours, gradients)
    follow(Soap(plain, rotate=False), plain, gradients)
    assert ours[0].isfinite().all()
    assert torch.equal(ours[0], plain[0]) == (not rotated)


def test_bases_stay_orthonormal_and_follow_the_gradients(by_sides):
    # Gradients far larger along one mixed direction of each side.
    left, right = (torch.linalg.qr(normal(n, n, seed=n))[0] for n in (4, 3))
    gradients = []
    for step in range(60):
        core = normal(4, 3, seed=step)
        # At first another direction looks like the largest.
        core[(0, 0) if step > 3 else (1, 1)] *= 100
        gradients.append([left @ core @ right.T])
    weight = nn.Parameter(normal(4, 3))
    optimise = Soap([weight])
    follow(optimise, [weight], gradients, learning_rate=1e-3)
    bases = optimise.moments[0].basis
    for side, directions in ((1, left), (2, right)):
        basis = bases[side][0]
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis)).double())
        assert (basis[:, 0] @ directions[:, 0]).abs() > 0.99
    x, moments = normal(1, 4, 3, seed=9), optimise.moments[0]
    turned = moments.into_basis(x)
    assert not torch.allclose(turned, x)
    torch.testing.assert_close(moments.out_of_basis(turned), x)


def test_moments_move_with_the_directions_they_belong_to(by_sides):
    moments = optimizers._Moments(torch.zeros(2, 3, 2), rotate=True)
    of_rows = [[1.0, 3.0, 2.0], [3.0, 2.0, 1.0]]
    for side, variances in ((1, of_rows), (2, [[5.0, 4.0], [5.0, 4.0]])):
        moments.spread[side] = torch.diag_embed(torch.tensor(variances))
        moments.basis[side] = torch.eye(len(variances[0])).repeat(2, 1, 1)
    moments.square = torch.arange(6.0).reshape(3, 2).repeat(2, 1, 1)
    moments.mean = -moments.square
    moments.refresh_bases()
    torch.testing.assert_close(moments.basis[1][0].abs(), torch.eye(3)[:, [1, 2, 0]])
    torch.testing.assert_close(moments.basis[1][1].abs(), torch.eye(3))
    torch.testing.assert_close(moments.basis[2].abs(), torch.eye(2).repeat(2, 1, 1))
    assert torch.equal(moments.square[0], torch.tensor([[2.0, 3.0], [4.0, 5.0], [0.0, 1.0]]))
    assert torch.equal(moments.square[1], torch.arange(6.0).reshape(3, 2))
    torch.testing.assert_close(moments.mean.abs(), moments.square)
    torch.testing.assert_close(moments.out_of_basis(moments.mean)[1], -moments.square[1])


def test_directions_without_gradients_do_not_turn_with_rounding_errors():
    weight = [nn.Parameter(torch.zeros(6, 5)) for _ in range(2)]
    optimizers = [Soap([w]) for w in weight]
    axis = normal(6, 5).float()
    for step in range(45):
        for i, optimise in enumerate(optimizers):
            weight[i].grad = axis * (1 + step % 3) * (1 + 1e-6 * i)
            optimise.step(0.01, None)
    first, second = (optimise.moments[0].basis[2] for optimise in optimizers)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


def test_the_first_step_does_not_depend_on_the_coordinates():
    # In its eigenbasis a gradient is diagonal: the step is its orthogonal factor, however it lies.
    gradient = normal(4, 3)
    left, right = (torch.linalg.qr(normal(n, n, seed=n))[0] for n in (4, 3))
    steps = []
    for turned in (gradient, left @ gradient @ right.T):
        weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
        follow(Soap([weight], eps=1e-3), [weight], [[turned]])
        steps.append(weight.detach())
    torch.testing.assert_close(left @ steps[0] @ right.T, steps[1])


def rotated_quadratic(n=12, condition=1e4):
    """A quadratic of a matrix whose steep and flat directions mix all coordinates."""
    left, right = (torch.linalg.qr(normal(n, n, seed=seed))[0] for seed in (1, 2))
    curvature = torch.logspace(0, -np.log10(condition), n).double()
    curvature = curvature[:, None] * curvature[None]

    def loss(weight):
        return 0.5 * (curvature * (left.T @ weight @ right).square()).sum()

    return loss, left @ right.T


def mixed_quadratic(n=4, condition=1e4):
    """The same, but its directions are no products of those of rows and of columns."""
    turn = torch.linalg.qr(normal(n * n, n * n, seed=1))[0]
    curvature = torch.logspace(0, -np.log10(condition), n * n).double()

    def loss(weight):
        return 0.5 * (curvature * (turn.T @ weight.reshape(-1)).square()).sum()

    return loss, (turn.sum(1)).reshape(n, n)


def steps_to(optimizer, target, quadratic=rotated_quadratic, most=3000):
    loss, start = quadratic()
    weight = nn.Parameter(start.clone())
    optimise = Soap([weight], **OPTIMIZERS[optimizer])
    first = loss(weight).item()
    for step in range(most):
        value = loss(weight)
        if value < target * first:
            return step
        value.backward()
        # Both would jitter at a constant learning rate.
        optimise.step(0.03 * (1 - step / most), None)
    return most


def test_soap_is_far_quicker_on_an_ill_conditioned_rotated_quadratic(by_sides):
    soap, adam = steps_to("soap", 1e-6), steps_to("adam", 1e-6)
    assert soap < 300
    assert soap < adam / 3


def test_a_small_weight_is_rotated_as_the_vector_of_its_numbers(monkeypatch):
    ours, gradients = weights_and_gradients(25, shapes=((4, 3), (5,)))
    optimise = Soap(ours)
    assert [m.rotated for m in optimise.moments] == [[2], [2]]
    assert [m.basis for m in optimise.moments] == [{}, {}]
    follow(optimise, ours, gradients, clip_norm=0.5)
    monkeypatch.setattr(optimizers, "LARGEST_WHOLE", 0)
    start = weights_and_gradients(0, shapes=((4, 3), (5,)))[0]
    vectors = [nn.Parameter(weight.detach().reshape(-1, 1)) for weight in start]
    as_vectors = [[g.reshape(-1, 1) for g in step] for step in gradients]
    follow(Soap(vectors), vectors, as_vectors, clip_norm=0.5)
    for weight, vector in zip(ours, vectors, strict=True):
        torch.testing.assert_close(weight.reshape(-1, 1), vector)


def test_that_is_quicker_where_rows_and_columns_go_together(monkeypatch):
    whole = steps_to("soap", 1e-6, mixed_quadratic)
    monkeypatch.setattr(optimizers, "LARGEST_WHOLE", 0)
    assert whole < steps_to("soap", 1e-6, mixed_quadratic) / 1.2


def test_a_weight_without_gradient_is_left_alone():
    used, unused = (nn.Parameter(normal(3, 2, seed=seed)) for seed in (0, 1))
    before = unused.detach().clone()
    optimise = Soap([used, unused], weight_decay=0.5)
    for step in range(12):
        used.grad = normal(3, 2, seed=step + 2)
        optimise.step(0.1, 1.0)
    assert torch.equal(unused, before)
    # And it starts as well as any once it has one.
    unused.grad = normal(3, 2)
    optimise.step(0.1, 1.0)
    assert unused.isfinite().all()
    assert not torch.equal(unused, before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("n_before", [0, 1, 9, 10, 25])
def test_another_goes_on_from_its_state_to_the_last_bit(optimizer, n_before, monkeypatch):
    # One weight is rotated whole, of one a side is too long to be rotated, and one has no gradient
    # before the twelfth step.
    monkeypatch.setattr(optimizers, "LARGEST_WHOLE", 5)
    monkeypatch.setattr(optimizers, "LARGEST_ROTATED_SIDE", 6)
    first, gradients = weights_and_gradients(40, shapes=((4, 3), (5,), (7, 2), (3, 3)))
    for step in gradients[:12]:
        step[3] = None

    def follow(optimise, weights, gradients):
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = None if gradient is None else gradient.clone()
            optimise.step(0.1, 1.0)

    optimise = Soap(first, **OPTIMIZERS[optimizer])
    follow(optimise, first, gradients[:n_before])
    state = copy.deepcopy(optimise.state_dict())
    second = [nn.Parameter(weight.detach().clone()) for weight in first]
    follow(optimise, first, gradients[n_before:])
    other = Soap(second, **OPTIMIZERS[optimizer])
    other.load_state_dict(state)
    follow(other, second, gradients[n_before:])
    assert all(map(torch.equal, first, second))


def test_gradients_are_cleared_and_zero_ones_do_nothing():
    weight = nn.Parameter(normal(3, 2))
    before = weight.detach().clone()
    optimise = Soap([weight])
    follow(optimise, [weight], [[torch.zeros(3, 2).double()]] * 12, clip_norm=1.0)
    assert weight.grad is None
    torch.testing.assert_close(weight.detach(), before)
    assert weight.requires_grad


def test_clipping_is_by_the_norm_of_all(by_sides):
    ours, gradients = weights_and_gradients(5)
    scaled = [nn.Parameter(weight.detach().clone()) for weight in ours]
    norms = [torch.stack([g.norm() for g in step]).norm() for step in gradients]
    follow(Soap(ours), ours, gradients, clip_norm=0.5)
    by_hand = [[g * 0.5 / norm for g in step] for step, norm in zip(gradients, norms, strict=True)]
    follow(Soap(scaled), scaled, by_hand)
    for weight, expected in zip(ours, scaled, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-4)


# --- rows ----------------------------------------------------------------------------------------


def test_row_adam_is_torchs_adam_on_every_row_at_its_own_steps():
    table = normal(5, 3)
    rows = [nn.Parameter(row.clone()) for row in table]
    optimizers = [torch.optim.Adam([row], lr=0.1, eps=1e-15) for row in rows]
    adam = RowAdam([table])
    rng = np.random.default_rng(0)
    counted = np.zeros(5)
    for step in range(30):
        chosen = rng.permutation(5)[: rng.integers(1, 4)]
        gradient = normal(len(chosen), 3, seed=step + 1)
        adam.step(torch.from_numpy(chosen)[None], gradient[None], 0.1)
        for i, g in zip(chosen, gradient, strict=True):
            rows[i].grad = g
            optimizers[i].step()
            counted[i] += 1
        torch.testing.assert_close(table, torch.stack(rows).detach(), rtol=1e-5, atol=1e-5)
    assert len(set(counted)) > 1


def test_row_adam_does_not_care_how_small_gradients_are():
    # A trial's share of the mean loss shrinks with the batch, and its steps must not.
    moved = []
    for scale in (1.0, 1e-9):
        table = torch.zeros(2, 3)
        adam = RowAdam([table])
        for step in range(5):
            gradient = scale * normal(2, 3, seed=step).float()
            adam.step(torch.arange(2)[None], gradient[None], 0.1)
        moved.append(table)
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-4)
    adam.step(torch.arange(2)[None], torch.zeros(1, 2, 3), 0.1)
    assert table.isfinite().all()


def test_row_adam_leaves_a_row_without_gradient_in_place():
    table = torch.ones(2, 3)
    RowAdam([table]).step(torch.tensor([[1]]), torch.zeros(1, 1, 3), 0.1)
    assert torch.equal(table, torch.ones(2, 3))


def test_another_row_adam_goes_on_from_its_state_to_the_last_bit():
    first = normal(5, 3)
    adam = RowAdam([first])
    adam.step(torch.tensor([[3, 1]]), normal(1, 2, 3, seed=1), 0.1)
    state, second = copy.deepcopy(adam.state_dict()), first.clone()
    other = RowAdam([second])
    other.load_state_dict(state)
    for one in (adam, other):
        one.step(torch.tensor([[0, 1]]), normal(1, 2, 3, seed=2), 0.1)
    assert torch.equal(first, second)


def test_tables_together_move_as_they_would_alone():
    together, alone = (
        [wide[:, :3] for wide in (normal(4, 5, seed=1), normal(4, 5, seed=2))] for _ in range(2)
    )
    each = [RowAdam([table]) for table in together]
    others = [RowAdam([table]) for table in alone]
    rows = torch.tensor([[2, 0], [3, 2]])
    for step in range(3):
        if step == 1:  # from where they are by then
            joint = joint_adam(each)
        gradient = normal(2, 2, 3, seed=step)
        if step == 0:
            for i, one in enumerate(each):
                one.step(rows[i : i + 1], gradient[i : i + 1], 0.1)
        else:
            joint.step(rows, gradient, 0.1)
        for i, other in enumerate(others):
            other.step(rows[i : i + 1], gradient[i : i + 1], 0.1)
    for one, other in zip(each, others, strict=True):
        assert torch.equal(one.tables[0], other.tables[0])
        for name, moments in other.state_dict().items():
            assert torch.equal(one.state_dict()[name], moments)


def test_moments_of_another_shape_are_refused():
    state = Soap([nn.Parameter(normal(4, 3))]).state_dict()
    with pytest.raises(ValueError, match=r"shape \(1, 1, 12\)"):
        Soap([nn.Parameter(normal(5, 3))]).load_state_dict(state)
