"""Bounds that are not only valid but sharp, and what is no activation: untested until mutants showed it."""

import numpy as np
import pytest

import refica as ri
from refica.activations import ACTIVATIONS

SMOOTH = ("tanh", "sigmoid", "gelu", "softplus", "sin")


def test_the_remainder_of_gelu_is_sharp_on_small_discs():
    """It tends to r²/2 |f''(a)| as the disc shrinks: a looser bound is valid, but makes enclosures wide."""
    act = ACTIVATIONS["gelu"]
    a = np.array([-3.0, -1.0, -0.3, 0.0, 0.4, 1.0, 2.5])
    h = 1e-5
    second = (act.derivative(a + h) - act.derivative(a - h)) / (2.0 * h)
    for radius in (1e-4, 1e-3):
        want = 0.5 * radius**2 * np.abs(second)
        got = act.remainder(a, np.full_like(a, radius))
        np.testing.assert_array_less(want * (1.0 - 1e-5), got)
        np.testing.assert_allclose(got, want, rtol=60.0 * radius)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_remainder_is_within_a_factor_of_the_second_derivative(name):
    """At a = 1, where no f'' here is 0, with r = .01."""
    act = ACTIVATIONS[name]
    h = 1e-5
    second = (act.derivative(np.array(1.0 + h)) - act.derivative(np.array(1.0 - h))) / (2.0 * h)
    got = act.remainder(np.array(1.0), np.array(0.01))
    assert 0.99 <= got / (0.5 * 0.01**2 * abs(second)) <= 2.5


@pytest.mark.parametrize(
    "value", [np.tanh, abs, 3, None, type("Half", (), {"derivative": staticmethod(abs)})()]
)
def test_what_has_no_value_or_no_derivative_is_no_activation(value):
    with pytest.raises(TypeError, match="activation must be an activation or the name of one"):
        ri.MLP((1, 2, 1), activation=value)
