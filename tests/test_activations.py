"""Values against mpmath at hard arguments, derivatives by the complex step, names and slopes."""

import math

import numpy as np
import pytest
from digits import mpmath, needs_mpmath
from hypothesis import given
from hypothesis import strategies as st
from strategies import KINKED, SMOOTH, examples

import refica as ri
from refica.activations import ACTIVATIONS, as_activation

TRUTH = (
    {}
    if mpmath is None
    else {
        "identity": lambda a: a,
        "tanh": mpmath.tanh,
        "sigmoid": lambda a: 1 / (1 + mpmath.exp(-a)),
        "relu": lambda a: max(a, mpmath.mpf(0)),
        "leaky_relu": lambda a: a if a > 0 else mpmath.mpf(0.01) * a,
        "gelu": lambda a: a * mpmath.ncdf(a),
        "softplus": lambda a: mpmath.log1p(mpmath.exp(a)),
        "sin": mpmath.sin,
    }
)
DERIVATIVE = (
    {}
    if mpmath is None
    else {
        "identity": lambda _: mpmath.mpf(1),
        "tanh": lambda a: 1 - mpmath.tanh(a) ** 2,
        "sigmoid": lambda a: mpmath.exp(-abs(a)) / (1 + mpmath.exp(-abs(a))) ** 2,
        "relu": lambda a: mpmath.mpf(1 if a > 0 else 0),
        "leaky_relu": lambda a: mpmath.mpf(1 if a > 0 else 0.01),
        "gelu": lambda a: mpmath.ncdf(a) + a * mpmath.npdf(a),
        "softplus": lambda a: 1 / (1 + mpmath.exp(-a)),
        "sin": mpmath.cos,
    }
)
HARD = (-37.0, -20.0, -8.0, -5.5, -1.0, -0.5, -1e-3, -1e-12, 0.0, 1e-12, 1e-3, 0.5, 1.0, 5.5, 8.0, 20.0, 37.0)


@needs_mpmath
@pytest.mark.parametrize("name", TRUTH)
def test_values_to_thirteen_digits(name):
    mpmath.mp.dps = 60
    """gelu at -37 a little less: its exponent a²/2 = 684 is itself rounded to 1e-13."""
    found = ACTIVATIONS[name](np.array(HARD))
    for a, value in zip(HARD, found, strict=True):
        want = TRUTH[name](mpmath.mpf(a))
        assert abs(value - want) <= max(1e-13, np.finfo(float).eps * a * a) * abs(want), a


@needs_mpmath
@pytest.mark.parametrize("name", DERIVATIVE)
def test_derivatives_to_thirteen_digits(name):
    mpmath.mp.dps = 60
    """An absolute part is allowed: 1 - tanh² is as exact as tanh near ±1, and no more."""
    found = ACTIVATIONS[name].derivative(np.array(HARD))
    for a, value in zip(HARD, found, strict=True):
        want = DERIVATIVE[name](mpmath.mpf(a))
        assert abs(value - want) <= 1e-13 * abs(want) + np.finfo(float).eps, a


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED])
@examples(100)
@given(a=st.floats(-40.0, 40.0))
def test_derivatives_by_the_complex_step(name, a):
    act = ACTIVATIONS[name]
    found = act(np.array([a + 1e-30j])).imag / 1e-30
    assert abs(act.derivative(np.array([a])) - found)[0] <= 1e-14 * max(1.0, abs(a))


@pytest.mark.parametrize("name", TRUTH)
def test_the_complex_step_leaves_the_value(name):
    """NumPy's complex log1p is right to absolute rounding only."""
    a = np.array(HARD)
    found = ACTIVATIONS[name](a + 1e-30j)
    np.testing.assert_allclose(found.real, ACTIVATIONS[name](a), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "a", "value", "derivative"),
    [
        ("softplus", 800.0, 800.0, 1.0),
        ("softplus", -800.0, 0.0, 0.0),
        ("sigmoid", 800.0, 1.0, 0.0),
        ("sigmoid", -800.0, 0.0, 0.0),
        ("tanh", 800.0, 1.0, 0.0),
        ("tanh", -800.0, -1.0, 0.0),
        ("gelu", 800.0, 800.0, 1.0),
        ("gelu", -800.0, 0.0, 0.0),
        ("relu", 1e300, 1e300, 1.0),
        ("leaky_relu", -1e300, -1e298, 0.01),
        ("relu", 0.0, 0.0, 0.0),  # the kinks: the slope on the left
        ("leaky_relu", 0.0, 0.0, 0.01),
    ],
)
def test_far_arguments_and_kinks(name, a, value, derivative):
    """No warning either: in this suite it would be an error."""
    act = ACTIVATIONS[name]
    assert act(np.array([a]))[0] == pytest.approx(value, abs=0.0, rel=1e-15)
    assert act.derivative(np.array([a]))[0] == derivative


@pytest.mark.parametrize("name", TRUTH)
def test_shapes_are_kept_and_arguments_untouched(name):
    a = np.linspace(-2.0, 2.0, 12).reshape(3, 4)
    a.setflags(write=False)
    assert ACTIVATIONS[name](a).shape == ACTIVATIONS[name].derivative(a).shape == (3, 4)
    assert ACTIVATIONS[name](a[:0]).shape == (0, 4)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.01, 0.1, 1.0, 2.0])
def test_any_slope(slope):
    act = ri.leaky_relu(slope)
    np.testing.assert_array_equal(act(np.array([-2.0, 3.0])), [-2.0 * slope, 3.0])
    np.testing.assert_array_equal(act.derivative(np.array([-2.0, 0.0, 3.0])), [slope, slope, 1.0])


def test_names():
    assert {act.name for act in ACTIVATIONS.values()} == set(ACTIVATIONS)
    assert as_activation("a", "leaky_relu") == ri.leaky_relu() == ri.leaky_relu(0.01)
    assert as_activation("a", "leaky_relu(0.25)") == ri.leaky_relu(0.25)
    assert ri.leaky_relu(0.0) == ACTIVATIONS["relu"]
    for slope in (0.0, 0.01, 0.1, 1 / 3, -2.5, 1e-300):
        assert as_activation("a", ri.leaky_relu(slope).name) == ri.leaky_relu(slope)
    own = ri.leaky_relu(0.3)
    assert as_activation("a", own) is own


def test_gains_keep_the_size_of_signals():
    """He et al. 2015: with weights of variance gain²/fan_in the mean square of pre-activations stays."""
    a = np.random.default_rng(0).standard_normal(200_000)
    for slope in (0.0, 0.1, 0.5):
        act = ri.leaky_relu(slope)
        assert act.gain**2 * np.mean(act(a) ** 2) == pytest.approx(1.0, abs=0.02)
    assert all(math.isfinite(act.gain) and act.gain > 0.0 for act in ACTIVATIONS.values())
