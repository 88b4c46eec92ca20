import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from sklearn_sae.datasets import (
    Arneodo,
    CustomSystem,
    Lorenz,
    MacArthur,
    MackeyGlass,
    Rossler,
    System,
    make_chaotic_spikes,
)

ODES = [Lorenz, Rossler, Arneodo, MacArthur]
names = dict(ids=lambda cls: cls.__name__)


def spiral(z):
    x, y = z[..., 0], z[..., 1]
    return np.stack([y, (1 - x**2) * y - x], axis=-1)


# --- equations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ODES, **names)
def test_vector_field_takes_any_leading_shape(cls):
    system = cls()
    z = system.trajectory(24).reshape(2, 3, 4, system.dim)
    velocity, jacobian = system.vector_field(z), system.jacobian(z)
    assert velocity.shape == z.shape
    assert jacobian.shape == (*z.shape, system.dim)
    np.testing.assert_allclose(velocity[1, 2, 3], system.vector_field(z[1, 2, 3]), rtol=1e-12)
    np.testing.assert_allclose(jacobian[1, 2, 3], system.jacobian(z[1, 2, 3]), rtol=1e-12)
    np.testing.assert_allclose(system.vector_field(z[0, 0, 0].tolist()), velocity[0, 0, 0])


@pytest.mark.parametrize("cls", ODES, **names)
def test_compiled_right_hand_side_is_the_vector_field(cls):
    system = cls()
    rhs = system._rhs()
    for z in system.trajectory(20):
        np.testing.assert_allclose(rhs(0.0, z), system.vector_field(z), rtol=1e-12, atol=1e-12)


def test_equations_of_the_paper():
    x, y, z = point = np.array([1.5, -2.0, 3.0])
    np.testing.assert_allclose(Arneodo().vector_field(point), [y, z, 5.5 * x - 4.5 * y - z - x**3])
    np.testing.assert_allclose(
        Lorenz().vector_field(point), [10 * (y - x), x * (28 - z) - y, x * y - 2.667 * z]
    )
    np.testing.assert_allclose(
        Rossler().vector_field(point), [-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)]
    )


def test_macarthur_species_by_species():
    system = MacArthur()
    n, r = system.start[:5], system.start[5:]
    growth = [min(r[j] / (system.k[j, i] + r[j]) for j in range(5)) for i in range(5)]
    expected = [n[i] * (growth[i] - 0.25) for i in range(5)] + [
        0.25 * (system.s[j] - r[j]) - sum(system.c[j, i] * growth[i] * n[i] for i in range(5))
        for j in range(5)
    ]
    np.testing.assert_allclose(system.vector_field(system.start), expected)


@pytest.mark.parametrize("cls", ODES, **names)
def test_jacobian_is_the_derivative_of_the_vector_field(cls):
    system = cls()
    z = system.trajectory(50)
    if cls is MacArthur:  # which has no derivative where two resources are equally scarce
        saturation = z[:, 5:, None] / (system.k + z[:, 5:, None])
        least, second = np.sort(saturation, axis=1)[:, :2].swapaxes(0, 1)
        z = z[np.all(second - least > 1e-3, axis=1)]
        assert len(z) > 25
    exact, differences = system.jacobian(z), System.jacobian(system, z)
    np.testing.assert_allclose(differences, exact, rtol=1e-6, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize(("unit", "offset"), [(1e-12, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 1e6)])
def test_differences_follow_the_units_of_a_system(unit, offset):
    def pendulum(z):
        angle, speed = np.moveaxis((z - offset) / unit, -1, 0)
        return unit * np.stack([speed, -np.sin(angle) - 0.2 * speed], axis=-1)

    system = CustomSystem(pendulum, offset + unit * np.array([1.0, 0.0]), period=6.3)
    z = offset + unit * np.array([[0.3, 0.1], [1.0, -0.5]])
    expected = [[[0, 1], [-np.cos(angle), -0.2]] for angle in (0.3, 1.0)]
    np.testing.assert_allclose(system.jacobian(z), expected, atol=1e-7)
    np.testing.assert_allclose((system.fixed_points() - offset) / unit, [[0, 0]], atol=1e-6)
    # The integrator too has to know what is small.
    from_rest = (system.simulate(system.start, 50, 0.2) - offset) / unit
    unit_sized = CustomSystem(lambda z: pendulum(offset + unit * z) / unit, [1.0, 0.0], period=6.3)
    np.testing.assert_allclose(from_rest, unit_sized.simulate([1.0, 0.0], 50, 0.2), atol=1e-6)


@pytest.mark.parametrize("cls", ODES, **names)
def test_fixed_points_are_fixed(cls):
    system = cls()
    points = system.fixed_points()
    assert points.shape[1] == system.dim
    assert np.abs(system.vector_field(points)).max() < 1e-10
    np.testing.assert_array_equal(points, points[np.lexsort(points.T[::-1])])


def test_fixed_points_exactly():
    np.testing.assert_allclose(Arneodo().fixed_points()[:, 0], [-np.sqrt(5.5), 0, np.sqrt(5.5)])
    wing = np.sqrt(2.667 * 27)
    np.testing.assert_allclose(
        Lorenz().fixed_points(), [[-wing, -wing, 27], [0, 0, 0], [wing, wing, 27]]
    )
    np.testing.assert_array_equal(Lorenz(rho=0.5).fixed_points(), [[0, 0, 0]])
    roots = np.sort(np.roots([0.2, -5.7, 0.2]))
    np.testing.assert_allclose(Rossler().fixed_points()[:, 2], roots)
    assert Rossler(a=2.0, b=2.0, c=1.0).fixed_points().shape == (0, 3)
    np.testing.assert_allclose(Rossler(a=0.0).fixed_points(), [[0, -0.2 / 5.7, 0.2 / 5.7]])
    assert len(Arneodo(a=5.5).fixed_points()) == 1


def test_macarthur_communities():
    system = MacArthur()
    points = system.fixed_points()
    alone = np.concatenate([np.zeros(5), system.s])
    assert np.any(np.all(points == alone, axis=1))
    assert np.any(np.all(points[:, :5] > 0, axis=1))
    assert np.all(points >= 0)
    np.testing.assert_array_equal(MacArthur(m=2.0).fixed_points(), [alone])


@given(
    st.floats(0.5, 50),
    st.floats(-5, 200),
    st.floats(0.01, 10),
    st.lists(st.floats(-50, 50), min_size=3, max_size=3),
)
@settings(max_examples=50, deadline=None)
def test_lorenz_for_any_parameters(sigma, rho, beta, z):
    system = Lorenz(sigma, rho, beta)
    points = system.fixed_points()
    assert np.abs(system.vector_field(points)).max() < 1e-10 * max(1, abs(rho)) ** 2
    np.testing.assert_allclose(System.jacobian(system, z), system.jacobian(z), rtol=1e-5, atol=1e-5)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-20, 20))
@settings(max_examples=50, deadline=None)
def test_rossler_fixed_points_for_any_parameters(a, b, c):
    if min(abs(a), abs(c)) < 1e-3:
        return
    system = Rossler(a, b, c)
    points = system.fixed_points()
    scale = 1 + np.abs(points).max(initial=0) ** 2
    assert np.abs(system.vector_field(points)).max(initial=0) < 1e-12 * scale
    assert (len(points) > 0) == (c**2 >= 4 * a * b)


def test_fixed_points_by_search():
    found = System.fixed_points(Lorenz())
    known = Lorenz().fixed_points()
    for point in found:
        assert np.abs(known - point).sum(axis=1).min() < 1e-8
    assert len(found) >= 2


def test_parameters_and_repr():
    system = Lorenz(rho=30.0)
    assert system.parameters == {"sigma": 10.0, "rho": 30.0, "beta": 2.667}
    assert repr(system) == "Lorenz(sigma=10.0, rho=30.0, beta=2.667)"
    assert eval(repr(system)).parameters == system.parameters


@pytest.mark.parametrize(
    ("cls", "period", "points"),
    [
        (Lorenz, 1.5008, 100),
        (Rossler, 5.9086, 35),
        (Arneodo, 3.1641, 35),
        (MacArthur, 43.406, 70),
        (MackeyGlass, 7.43264, 35),
    ],
)
def test_periods_of_the_paper(cls, period, points):
    assert cls().period == period
    assert cls().points_per_period == points


# --- trajectories --------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ODES, **names)
def test_trajectory_solves_the_equations(cls):
    system = cls()
    states = system.trajectory(30)
    times = np.arange(30) * system.period / system.points_per_period
    np.testing.assert_array_equal(states[0], system.start)
    solution = solve_ivp(
        lambda _, z: system.vector_field(z),
        (0, times[-1]),
        system.start,
        t_eval=times,
        method="LSODA",
        rtol=1e-10,
        atol=1e-12,
    )
    np.testing.assert_allclose(states, solution.y.T, rtol=1e-5, atol=1e-5)


def test_tolerance_is_kept():
    # x'' = -x has its exact solution
    system = CustomSystem(
        lambda z: np.stack([z[..., 1], -z[..., 0]], -1), [1.0, 0.0], period=2 * np.pi, burn_in=0
    )
    times = np.linspace(0, 20, 101)
    np.testing.assert_allclose(
        system.sample(times), np.stack([np.cos(times), -np.sin(times)], 1), atol=1e-8
    )


def test_simulate_goes_through_given_states():
    system = Arneodo()
    states = system.trajectory(60)
    again = system.simulate(states[[0, 20]], 40)
    assert again.shape == (2, 40, 3)
    np.testing.assert_array_equal(again[:, 0], states[[0, 20]])
    np.testing.assert_allclose(again[1], states[20:], atol=1e-5)
    np.testing.assert_array_equal(system.simulate(states[0], 5), again[0, :5])
    assert system.simulate(states[0], 1).shape == (1, 3)


def test_burn_in_only_where_the_start_is_not_on_the_attractor():
    assert Lorenz().burn_in == 0
    assert Lorenz(rho=30).burn_in == 50 * Lorenz.period
    system = Rossler(c=5.0)
    burnt_in = system.simulate(system.start, 2, system.burn_in)[1]
    np.testing.assert_allclose(system.trajectory(1)[0], burnt_in)
    assert not np.allclose(burnt_in, system.start)


@pytest.mark.filterwarnings("ignore:dop853")
def test_runaway_is_reported():
    system = CustomSystem(lambda z: z**2, [1.0], period=1.0, burn_in=0)
    with pytest.raises(RuntimeError, match="could not be integrated beyond time"):
        system.trajectory(100)


# --- Mackey-Glass --------------------------------------------------------------------------------


def test_mackey_glass_follows_its_delay_equation():
    system = MackeyGlass(n_delays=2, delay=2.0)
    t, h = np.linspace(1, 100, 300), 1e-4
    slope = (system.sample(t + h)[:, 1] - system.sample(t - h)[:, 1]) / (2 * h)
    delayed, now = system.sample(t).T
    np.testing.assert_allclose(slope, 2 * delayed / (1 + delayed**9.65) - now, atol=1e-6)


def test_mackey_glass_first_delay_exactly():
    system = MackeyGlass()
    x0 = system.start[0]
    ends = system._solve(1).sum(axis=1)  # every Chebyshev polynomial is 1 at the right end
    level = 2 * x0 / (1 + x0**9.65)
    np.testing.assert_allclose(ends, level + (x0 - level) * np.exp(-2.0), rtol=1e-12)


def test_mackey_glass_embedding():
    system = MackeyGlass()
    bin_width = system.period / 35
    assert system.dim == 10
    assert np.isclose(system.delay, 9 * bin_width)
    states = system.trajectory(100)
    np.testing.assert_allclose(states[9:, :-1], states[:-9, 1:], atol=1e-8)
    assert 0 < states.min() < states.max() < 2


@pytest.mark.parametrize("ask", [
    lambda s: s.vector_field(np.ones(10)),
    lambda s: s.jacobian(np.ones(10)),
    lambda s: s.fixed_points(),
    lambda s: s.simulate(np.ones(10), 5),
])  # fmt: skip
def test_mackey_glass_says_what_it_has_not(ask):
    with pytest.raises(NotImplementedError, match="delay system and has no"):
        ask(MackeyGlass())


# --- custom and dysts systems --------------------------------------------------------------------


def test_custom_system_batched_or_not():
    batched = CustomSystem(spiral, [2.0, 0.0], period=6.66, burn_in=0)
    single = CustomSystem(
        lambda z: [z[1], (1 - z[0] ** 2) * z[1] - z[0]], [2.0, 0.0], period=6.66, burn_in=0
    )
    z = batched.trajectory(30)
    np.testing.assert_allclose(single.trajectory(30), z)
    np.testing.assert_allclose(single.vector_field(z), batched.vector_field(z))
    np.testing.assert_allclose(single.jacobian(z), batched.jacobian(z), atol=1e-8)
    np.testing.assert_allclose(batched.fixed_points(), [[0.0, 0.0]], atol=1e-10)
    # Taking a batch is not enough: (2, 2) and z[0] would give velocities of the wrong rows.
    assert single.vector_field(z[:2]).shape == (2, 2)
    np.testing.assert_allclose(single.vector_field(z[:2]), batched.vector_field(z[:2]))


def test_custom_jacobian():
    a = np.array([[0.0, 1.0], [-2.0, -0.3]])
    system = CustomSystem(lambda z: a @ z, [1.0, 0.0], period=1.0, jacobian=lambda z: a)
    np.testing.assert_array_equal(system.jacobian(np.zeros((3, 2))), np.stack([a, a, a]))
    np.testing.assert_allclose(
        System.jacobian(system, np.ones((4, 2))), np.broadcast_to(a, (4, 2, 2)), atol=1e-8
    )
    assert system.burn_in == 50.0


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        (dict(vector_field=3), TypeError, "vector_field must be a function"),
        (dict(start=[[1.0, 0.0]]), ValueError, "start must be a vector"),
        (dict(start=[np.nan, 0.0]), ValueError, "start must be a vector"),
        (dict(start=[]), ValueError, "start must be a vector"),
        (dict(period=0), ValueError, "period must be a positive"),
        (dict(burn_in=-1), ValueError, "burn_in must be a time"),
        (
            dict(vector_field=lambda z: z[:1]),
            ValueError,
            r"vector_field\(start\) must have the shape",
        ),
    ],
)
def test_custom_system_errors(kwargs, error, match):
    with pytest.raises(error, match=match):
        CustomSystem(**{"vector_field": spiral, "start": [1.0, 0.0], "period": 1.0, **kwargs})


class LikeDysts:
    ic = [2.0, 0.0]
    period = 6.66

    def rhs(self, z, t):
        return spiral(np.asarray(z))

    def make_trajectory(self):
        raise AssertionError("not needed")


def test_systems_that_look_like_dysts():
    data = make_chaotic_spikes(LikeDysts(), n_trials=4, n_bins=5, random_state=0)
    own = CustomSystem(spiral, [2.0, 0.0], period=6.66, burn_in=0)
    same = make_chaotic_spikes(own, n_trials=4, n_bins=5, random_state=0)
    np.testing.assert_array_equal(data.spikes, same.spikes)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"delay": True}, "has a delay"),
        ({"_postprocessing": 1}, "without bound"),
        ({"rhs": lambda self, z, t: [z[1], np.cos(t) - z[0]]}, "depend on time"),
    ],
)
def test_dysts_systems_that_do_not_work(extra, match):
    system = type("Odd", (LikeDysts,), extra)()
    with pytest.raises(ValueError, match=match):
        make_chaotic_spikes(system)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", [*ODES, "Thomas"], ids=str)
def test_dysts(cls):
    flows = pytest.importorskip("dysts.flows")
    theirs = getattr(flows, cls if isinstance(cls, str) else cls.__name__)()
    data = make_chaotic_spikes(theirs, n_trials=5, n_bins=10, random_state=0)
    assert data.spikes.shape == (5, 10, 10)
    if not isinstance(cls, str):
        ours = cls()
        assert ours.period == theirs.period
        np.testing.assert_array_equal(ours.start, theirs.ic)
        np.testing.assert_allclose(ours.vector_field(ours.start), theirs.rhs(ours.start, 0.0))
        np.testing.assert_allclose(
            data.latents.reshape(50, -1), ours.trajectory(50, data.bin_width), atol=1e-4
        )
