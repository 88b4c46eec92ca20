"""Fixed points: of true systems to all digits, of simple functions by hand, of fitted models."""

import copy

import numpy as np
import pytest
import scipy
import torch

from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae.analysis import find_fixed_points, match_fixed_points
from sklearn_sae.analysis._matching import fit_alignment
from sklearn_sae.analysis._state_space import as_state_space, compose, integrate
from sklearn_sae.datasets import Arneodo, Lorenz, MackeyGlass, Rossler


def ring(n_trials=30, n_bins=20, n_neurons=8):
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6, (n_trials, 1, 1)) + 0.3 * np.arange(n_bins)[:, np.newaxis]
    return rng.poisson(np.exp(np.sin(phase + np.arange(n_neurons))))


@pytest.fixture(scope="module")
def node():
    return NODESAE(n_latents=2, max_epochs=40, random_state=0).fit(ring())


@pytest.mark.parametrize("system", [Lorenz(), Rossler(), Arneodo(), Lorenz(rho=20.0)])
def test_true_systems(system):
    true = system.fixed_points()
    states = np.concatenate([system.trajectory(500), true + 0.1])
    found = find_fixed_points(system, states, noise=0.3, slow_tol=0, random_state=0)
    width = system.period / system.points_per_period
    assert len(found) == len(true)
    for point in true:
        i = np.linalg.norm(found.points - point, axis=1).argmin()
        assert np.linalg.norm(found.points[i] - point) < 1e-8
        eigenvalues = np.linalg.eigvals(system.jacobian(point))
        gaps = np.abs(found.eigenvalues[i][:, None] - eigenvalues)
        assert gaps.min(axis=0).max() < 1e-6
        np.testing.assert_allclose(found.exponents[i], width * found.eigenvalues[i])
        residual = system.jacobian(point) @ found.eigenvectors[i] - (
            found.eigenvectors[i] * found.eigenvalues[i]
        )
        assert np.abs(residual).max() < 1e-6
        # Of a real matrix: real eigenvalues are real, the others conjugate pairs, to the last bit.
        mirrored = np.sort_complex(found.eigenvalues[i].conj())
        np.testing.assert_array_equal(np.sort_complex(found.eigenvalues[i]), mirrored)
    assert found.counts.sum() == found.n_starts - found.n_unsettled


def test_multipliers_are_those_of_the_integrated_map():
    system = Rossler()
    states = np.concatenate([system.trajectory(500), system.fixed_points()])
    flow, as_map = (
        find_fixed_points(system, states, noise=0.3, discrete=discrete, random_state=0)
        for discrete in (False, True)
    )
    assert len(flow) == len(as_map) == 2
    np.testing.assert_allclose(flow.points, as_map.points, atol=1e-6)
    np.testing.assert_allclose(np.abs(flow.multipliers), np.abs(as_map.eigenvalues), rtol=1e-3)
    # A fast turn that neither grows nor decays; 1 + eigenvalue x bin would make it grow.
    outer = flow[flow.points[:, 0] > 1]
    assert np.abs(outer.multipliers[0, 1]) == pytest.approx(1.000, abs=2e-3)
    bin_width = system.period / system.points_per_period
    assert np.abs(1 + bin_width * outer.eigenvalues[0, 1]) == pytest.approx(1.356, abs=2e-3)


@pytest.mark.parametrize(
    ("matrix", "kind"),
    [
        ([[-1.0, 0.0], [0.0, -2.0]], "stable node"),
        ([[-1.0, 3.0], [-3.0, -1.0]], "stable spiral"),
        ([[1.0, 0.0], [0.0, 2.0]], "unstable node"),
        ([[1.0, 3.0], [-3.0, 1.0]], "unstable spiral"),
        ([[1.0, 0.0], [0.0, -2.0]], "saddle"),
        ([[0.0, 3.0], [-3.0, 0.0]], "neutral"),
    ],
)
def test_kinds_of_flows_and_maps(matrix, kind):
    matrix = np.array(matrix) / 10
    states = np.random.default_rng(0).normal(size=(50, 2))
    flow = find_fixed_points(lambda z: z @ matrix.T, states, random_state=0)
    values, vectors = np.linalg.eig(matrix)
    bin_map = (vectors * np.exp(values)) @ np.linalg.inv(vectors)
    as_map = find_fixed_points(lambda z: z @ bin_map.real.T, states, discrete=True, random_state=0)
    for found in (flow, as_map):
        assert found.kinds.tolist() == [kind]
        np.testing.assert_allclose(found.points, 0, atol=1e-8)
        np.testing.assert_allclose(found.exponents, flow.exponents, atol=1e-7)


TURN = 0.8 * np.array([[np.cos(1), np.sin(1)], [-np.sin(1), np.cos(1)]])


@pytest.mark.parametrize(
    ("multipliers", "kind"),
    [
        (np.diag([0.9, -0.5]), "stable flip"),
        (np.diag([-0.9, -0.9]), "stable flip"),
        (np.diag([1.2, -0.5]), "saddle flip"),
        (np.diag([-1.2, 0.5]), "saddle flip"),
        (np.diag([-1.2, 1.5]), "unstable flip"),
        (np.diag([0.9, 0.0]), "stable node"),
        (np.diag([0.9, -0.0]), "stable node"),
        (np.diag([-1.0, 0.5]), "neutral"),
        (TURN, "stable spiral"),
        (-TURN, "stable spiral"),
        (scipy.linalg.block_diag(TURN, -1.5), "saddle spiral"),
    ],
)
def test_negative_multipliers_of_maps_are_flips(multipliers, kind):
    dim = len(multipliers)
    states = np.random.default_rng(0).normal(size=(50, dim))
    basis = np.random.default_rng(1).normal(size=(dim, dim))
    matrix = basis @ multipliers @ np.linalg.inv(basis)
    found = find_fixed_points(lambda z: z @ matrix.T, states, discrete=True, random_state=0)
    assert found.kinds.tolist() == [kind]
    if kind.endswith("flip"):
        assert found.frequencies.max() == pytest.approx(0.5)
    # A fast turn of a flow is one, whatever it looks like from bin to bin.
    rotation = np.array([[-0.1, np.pi], [-np.pi, -0.1]])
    flow = find_fixed_points(lambda z: z @ rotation.T, states[:, :2], random_state=0)
    assert flow.kinds.tolist() == ["stable spiral"]


def test_frequency_and_time_constant():
    matrix = np.array([[-0.02, 0.3], [-0.3, -0.02]])
    states = np.random.default_rng(0).normal(size=(50, 2))
    in_bins = find_fixed_points(lambda z: z @ matrix.T, states, random_state=0)
    in_seconds = find_fixed_points(lambda z: z @ matrix.T, states, bin_size=0.01, random_state=0)
    np.testing.assert_allclose(in_bins.frequencies, 0.3 / (2 * np.pi), rtol=1e-6)
    np.testing.assert_allclose(in_bins.time_constants, 50, rtol=1e-6)
    np.testing.assert_allclose(in_seconds.frequencies, 30 / (2 * np.pi), rtol=1e-6)
    np.testing.assert_allclose(in_seconds.time_constants, 0.5, rtol=1e-6)
    assert (in_bins.time_unit, in_seconds.time_unit) == ("bins", "s")


def test_slow_point_is_found_and_labelled():
    # A saddle-node ghost: x' = x^2 + 0.01 has no zero, but is slowest at x = 0.
    states = np.random.default_rng(0).normal(size=(200, 2))

    def ghost(z):
        return torch.stack([z[:, 0] ** 2 + 0.01, -z[:, 1]], dim=1)

    found = find_fixed_points(ghost, states, random_state=0)
    assert found.slow.tolist() == [True]
    np.testing.assert_allclose(found.points, 0, atol=1e-3)
    np.testing.assert_allclose(found.q, 0.01**2 / 2, rtol=1e-3)
    assert len(find_fixed_points(ghost, states, slow_tol=0, random_state=0)) == 0


def test_far_points_are_flagged_not_dropped():
    def flow(z):  # zeros at x = 0 and x = 6
        return torch.stack([z[:, 0] * (z[:, 0] - 6), -z[:, 1]], dim=1)

    states = np.random.default_rng(0).normal(size=(300, 2))
    found = find_fixed_points(flow, states, noise=3.0, random_state=0)
    np.testing.assert_allclose(found.points[:, 0], [0, 6], atol=1e-8)
    assert found.outside.tolist() == [False, True]
    assert found.distances[1] > 1 > found.distances[0]


def test_a_region_without_motion_is_no_fixed_point():
    # As in a saturated gate: nothing moves where x > 2.
    def flow(z):
        return torch.stack([-z[:, 0] * (z[:, 0] < 2), -z[:, 1] * (z[:, 0] < 2)], dim=1)

    states = np.random.default_rng(0).normal(size=(300, 2))
    found = find_fixed_points(flow, states, noise=1.0, random_state=0)
    assert len(found) == 1
    assert found.n_unsettled > 0


def test_degenerate_jacobian():
    # A line of fixed points: Newton's matrix is singular on all of it.
    states = np.random.default_rng(0).normal(size=(100, 2))
    found = find_fixed_points(
        lambda z: torch.stack([-z[:, 0], 0 * z[:, 1]], dim=1), states, random_state=0
    )
    assert len(found) > 100
    np.testing.assert_allclose(found.points[:, 0], 0, atol=1e-6)


def test_fitted_node(node):
    before = {name: value.clone() for name, value in node.model_.state_dict().items()}
    latents = node.transform(ring())
    found = find_fixed_points(node, latents, random_state=0)
    again = find_fixed_points(node, latents, random_state=0)
    np.testing.assert_array_equal(found.points, again.points)
    exact = found[~found.slow]
    assert len(exact) > 0
    assert np.abs(node.vector_field(exact.points)).max() < 1e-5
    as_map = find_fixed_points(node, latents, discrete=True, random_state=0)
    assert len(as_map[~as_map.slow]) == len(exact)
    np.testing.assert_allclose(as_map.multipliers[0], exact.multipliers[0], atol=0.02)
    for name, value in node.model_.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_jacobian_of_the_vector_field(node):
    dynamics = copy.deepcopy(node.model_.dynamics).double()
    by_torch = as_state_space(lambda z: dynamics.vector_field(z.T).T, 2)
    z = np.random.default_rng(0).normal(size=(5, 2))
    space = as_state_space(node, 2)
    np.testing.assert_allclose(space.jacobian(z), by_torch.jacobian(z), atol=1e-12)
    np.testing.assert_allclose(space.function(z), by_torch.function(z), atol=1e-12)


def test_bound_method_is_analysed_in_float64(node):
    latents = node.transform(ring())
    whole = find_fixed_points(node, latents, random_state=0)
    method = find_fixed_points(node.vector_field, latents, random_state=0)
    np.testing.assert_array_equal(whole.points, method.points)


@pytest.mark.parametrize(
    "options", [{}, {"cell": "rnn"}, {"cell": "mlp", "residual": 0.1}, {"cell": "gru"}]
)
def test_fitted_rnn(options):
    est = RNNSAE(n_latents=3, max_epochs=5, random_state=0, **options).fit(ring())
    latents = est.transform(ring())
    found = find_fixed_points(est, latents, n_starts=64, random_state=0)
    exact = found.points[~found.slow]
    np.testing.assert_allclose(est.step(exact), exact, atol=1e-4)
    numeric = as_state_space(lambda z: est_step(est, z), 3, discrete=True)
    rows = latents[:2, 0].astype(float)
    space = as_state_space(est, 3)
    assert space.discrete
    np.testing.assert_allclose(space.jacobian(rows), numeric.jacobian(rows), atol=1e-6)


def est_step(est, z):
    """The estimator's map in float64, as NumPy arrays."""
    dynamics = type(est.model_.dynamics)(est.model_.dynamics.cell, est.model_.dynamics.residual)
    return dynamics.double().step(torch.as_tensor(z).T).T.detach().numpy()


@pytest.mark.parametrize("make", [torch.tanh, np.tanh])
def test_jacobian_of_torch_and_numpy_functions(make):
    weight = np.random.default_rng(0).normal(size=(3, 3))
    tensor = torch.from_numpy(weight)
    matrix = tensor if make is torch.tanh else weight
    space = as_state_space(lambda z: make(z @ matrix), 3)
    z = np.random.default_rng(1).normal(size=(5, 3))
    expected = (1 - np.tanh(z @ weight)[:, :, None] ** 2) * weight.T
    np.testing.assert_allclose(space.jacobian(z), expected, atol=1e-8)


SCALES = [(1e-6, 0.0), (1e-5, 0.0), (1e6, 0.0), (1.0, 1e6), (1e-6, 1.0)]


def pendulum(unit, offset):
    """Damped, of frequency 1 and damping 0.2, in other units and around another place."""

    def flow(z):
        angle, speed = np.moveaxis((z - offset) / unit, -1, 0)
        return unit * np.stack([speed, -np.sin(angle) - 0.2 * speed], axis=-1)

    return flow


@pytest.mark.parametrize(("unit", "offset"), SCALES)
def test_units_and_place_of_the_states_change_nothing(unit, offset):
    states = offset + unit * np.random.default_rng(0).normal(size=(300, 2))
    found = find_fixed_points(pendulum(unit, offset), states, noise=0.0, random_state=0)
    assert found.n_unsettled < 20
    assert found.kinds[0] == "stable spiral"
    np.testing.assert_allclose((found.points[0] - offset) / unit, 0, atol=1e-6)
    assert found.frequencies[0, 0] == pytest.approx(np.sqrt(1 - 0.1**2) / (2 * np.pi), rel=1e-6)
    assert found.time_constants[0, 0] == pytest.approx(10, rel=1e-5)
    as_map = find_fixed_points(
        lambda z: z + 0.1 * pendulum(unit, offset)(z), states, discrete=True, random_state=0
    )
    assert np.abs(as_map.multipliers[0]) == pytest.approx(np.sqrt(0.98 + 0.01), rel=1e-6)


def test_integrated_jacobian_is_the_derivative_of_the_map():
    system, width = Lorenz(), 0.02
    z = system.trajectory(5)
    after, jacobian = compose(integrate(system.vector_field, system.jacobian, z, width))
    np.testing.assert_allclose(after, system.simulate(z, 2, width)[:, 1], atol=1e-3)
    for j in range(3):
        h = 1e-6 * np.eye(3)[j]
        ends = [
            compose(integrate(system.vector_field, system.jacobian, z + s * h, width))[0]
            for s in (1, -1)
        ]
        np.testing.assert_allclose(jacobian[:, :, j], (ends[0] - ends[1]) / 2e-6, atol=1e-5)


def test_matching_is_one_to_one_after_alignment():
    system = Lorenz()
    states = system.trajectory(1500)
    true = find_fixed_points(system, states, random_state=0)
    affine = np.array([[0.1, 0.3, 0.0], [-0.2, 0.1, 0.1], [0.0, 0.4, 0.2]])
    latents = states @ affine + 1.0

    def flow(z):
        return system.vector_field((z - 1.0) @ np.linalg.inv(affine)) @ affine

    found = find_fixed_points(flow, latents, random_state=1, bin_width=1.5008 / 100)
    for reference in (true, system):
        match = match_fixed_points(found, reference, (latents, states))
        assert sorted(match.partner.tolist()) == [0, 1, 2]
        assert match.distances.max() < 1e-5
        assert np.nanmax(match.eigenvalue_errors) < 1e-4
        assert match.leading_errors.max() < 1e-4
        assert len(match.extra) == 0
    fewer = match_fixed_points(found[:1], true, (latents, states))
    assert sorted(fewer.partner.tolist()) == [-1, -1, 0]
    assert np.isnan(fewer.distances).sum() == 2
    more = match_fixed_points(found, true[:1], (latents, states))
    assert len(more.extra) == 2
    moved = match_fixed_points(found, true, (latents + 100.0, states))
    assert (moved.partner == -1).all()


def test_alignment_keeps_bins_together():
    system = Lorenz()
    states = system.trajectory(300).reshape(3, 100, 3)
    affine = np.array([[0.1, 0.3, 0.0], [-0.2, 0.1, 0.1], [0.0, 0.4, 0.2]])
    latents = states @ affine + 1.0
    expected = fit_alignment(latents, states)
    holes, other_holes = latents.copy(), states.copy()
    holes[0, :5], holes[1, 40, 1] = np.nan, np.inf
    other_holes[2, -6:], other_holes[2, 10, 0] = np.nan, np.nan

    def cut(trials):
        return [trial[:n] for trial, n in zip(trials, (100, 80, 60), strict=True)]

    for one, other in (
        (holes, states),
        (holes, other_holes),
        (list(holes), [*other_holes]),
        (cut(holes), cut(other_holes)),
        (holes.reshape(300, 3), other_holes.reshape(300, 3)),
    ):
        found = fit_alignment(one, other)
        np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-8)
        np.testing.assert_allclose(found.intercept_, expected.intercept_, atol=1e-8)
    with pytest.raises(
        ValueError, match="same trials and bins, got 3 trials of 100 bins and 3 tri"
    ):
        fit_alignment(holes, cut(states))
    with pytest.raises(ValueError, match="together hold no finite state"):
        early = np.arange(100)[:, None] < 50
        fit_alignment(np.where(early, np.nan, latents), np.where(early, states, np.nan))


def test_repr_names_what_was_found():
    system = Rossler()
    states = np.concatenate([system.trajectory(500), system.fixed_points()])
    found = find_fixed_points(system, states, noise=0.3, random_state=0)
    assert "2 points" in repr(found)
    assert "saddle spiral" in repr(found)
    assert "2 of 2 true points matched" in repr(match_fixed_points(found, system))


@pytest.mark.parametrize(
    ("system", "states", "options", "message"),
    [
        (Lorenz(), np.ones((4, 2)), {}, "3 dimensions, got states of 2"),
        (Lorenz, np.ones((4, 3)), {}, "object, got the class Lorenz"),
        ("Lorenz", np.eye(3), {}, "system must be"),
        (Lorenz(), np.full((4, 3), np.nan), {}, "no finite state"),
        (Lorenz(), np.ones((4, 3)), {}, "all one state"),
        (Lorenz(), np.eye(3), {"n_starts": 0}, "n_starts must be"),
        (Lorenz(), np.eye(3), {"tol": 0}, "tol must be"),
        (Lorenz(), np.eye(3), {"bin_size": -1.0}, "bin_size must be"),
        (Lorenz(), np.eye(3), {"bin_width": 0.0}, "bin_width must be"),
        (lambda z: z[:, :1], np.eye(3), {}, "same shape"),
        (MackeyGlass(), np.eye(10), {}, "MackeyGlass"),
    ],
)
def test_errors(system, states, options, message):
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=message):
        find_fixed_points(system, states, **options)


def test_rnn_has_no_vector_field():
    est = RNNSAE(n_latents=2, max_epochs=1, random_state=0).fit(ring())
    with pytest.raises(ValueError, match="discrete=None"):
        find_fixed_points(est, np.eye(2), discrete=False)
