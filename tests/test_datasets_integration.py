import numpy as np
import pytest

from sklearn_sae.datasets import Lorenz
from sklearn_sae.datasets._differences import central_differences
from sklearn_sae.datasets._integration import rk4_with_jacobian


def test_a_linear_step_is_the_exponential_to_fourth_order():
    rng = np.random.default_rng(0)
    matrix, z, s = rng.normal(size=(3, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 3, 2))
    h = rng.uniform(0.1, 1, 5)
    after = rk4_with_jacobian(
        lambda z: z @ matrix.T, lambda z: np.broadcast_to(matrix, (len(z), 3, 3)), z, s, h
    )
    for i in range(5):
        step = h[i] * matrix
        series = sum(
            np.linalg.matrix_power(step, k) / factorial
            for k, factorial in enumerate((1, 1, 2, 6, 24))
        )
        np.testing.assert_allclose(after[0][i], series @ z[i], rtol=0, atol=1e-13)
        np.testing.assert_allclose(after[1][i], series @ s[i], rtol=0, atol=1e-13)


def test_steps_lead_to_the_solution_with_an_error_of_fourth_order():
    lorenz = Lorenz()
    z0 = lorenz.trajectory(4, 0.3)
    exact = lorenz.simulate(z0, 2, 0.1)[:, 1]
    errors = []
    for n_steps in (10, 20):
        z, s = z0, np.broadcast_to(np.eye(3), (4, 3, 3))
        for _ in range(n_steps):
            z, s = rk4_with_jacobian(lorenz.vector_field, lorenz.jacobian, z, s, 0.1 / n_steps)
        errors.append(np.abs(z - exact).max())
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.3)
    expected = central_differences(lambda z: lorenz.simulate(z, 2, 0.1)[:, 1], z0, np.ones(3))
    np.testing.assert_allclose(s, expected, rtol=0, atol=1e-4)


def test_sizes_of_states_are_their_own():
    lorenz = Lorenz()
    z = lorenz.trajectory(3, 0.3)
    s = np.broadcast_to(np.eye(3), (3, 3, 3))
    together = rk4_with_jacobian(
        lorenz.vector_field, lorenz.jacobian, z, s, np.array([0.0, 0.01, 0.02])
    )
    for i, h in enumerate((0.0, 0.01, 0.02)):
        alone = rk4_with_jacobian(lorenz.vector_field, lorenz.jacobian, z, s, h)
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_array_equal(ours[i], theirs[i])
