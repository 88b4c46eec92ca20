import numpy as np
import pytest

from sklearn_sae.datasets import Arneodo, Lorenz, System
from sklearn_sae.datasets._differences import central_differences, typical_scale


@pytest.mark.parametrize("system", [Lorenz(), Arneodo()], ids=repr)
@pytest.mark.parametrize("units", [1.0, 1e-6, 1e6])
def test_central_differences_follow_the_units(system, units):
    z = system.trajectory(50).reshape(5, 10, 3)
    scale = typical_scale(z.reshape(-1, 3))
    jacobians = central_differences(
        lambda z: units * system.vector_field(z / units), units * z, units * scale
    )
    expected = system.jacobian(z)
    np.testing.assert_allclose(jacobians, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def test_typical_scale():
    states = np.array([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(typical_scale(states), [1.0, 1e-6])
    np.testing.assert_allclose(typical_scale(states[:1]), [5.0, 5.0])
    np.testing.assert_allclose(typical_scale(np.zeros((1, 2))), [1.0, 1.0])


def test_a_system_without_a_vector_field_fails_when_it_is_made():
    with pytest.raises(TypeError, match="vector_field"):
        type("Nothing", (System,), {})()
