"""Bad input: each a one-line error that names what, expected and got. And the checks themselves."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import examples

import refica as ri
from refica.validation import (
    check_array,
    check_choice,
    check_count,
    check_generator,
    check_number,
    check_seed,
    shown,
)

DECODER = ri.MLP((1, 3, 2))
THETA = np.linspace(-1.0, 1.0, DECODER.n_params)
MODEL = ri.NonlinearICA(DECODER, THETA, sigma2=0.1)
GH = ri.Quadrature(ri.gauss_hermite(5))
X = [[0.1, 0.2], [0.3, 0.4]]

BAD_DATA = {
    "nan": ([[0.1, math.nan]], ValueError, "x must be finite, got nan at index [0, 1]"),
    "several nan": (
        [[math.nan, math.nan]],
        ValueError,
        "x must be finite, got nan at index [0, 0] and 1 more",
    ),
    "inf": ([[math.inf, 0.1]], ValueError, "x must be finite, got inf at index [0, 0]"),
    "empty": (np.empty((0, 2)), ValueError, "x must have shape (N, 2), got (0, 2); it is empty"),
    "no list": ([], ValueError, "x must have shape (N, 2), got (0,); it is empty"),
    "columns": (np.zeros((4, 3)), ValueError, "x must have shape (N, 2), got (4, 3)"),
    "one row": ([0.1, 0.2], ValueError, "x must have shape (N, 2), got (2,); use x.reshape(-1, 2)"),
    "three axes": (np.zeros((1, 4, 2)), ValueError, "x must have shape (N, 2), got (1, 4, 2)"),
    "a number": (0.5, ValueError, "x must have shape (N, 2), got ()"),
    "ragged": ([[0.1, 0.2], [0.3]], ValueError, "x must be a rectangular array of numbers, got nested rows"),
    "complex": ([[0.1, 1j]], TypeError, "x must be an array of real numbers, got complex numbers"),
    "objects": ([[0.1, None]], TypeError, "x must be an array of real numbers, got objects"),
    "text": ([["0.1", "0.2"]], TypeError, "x must be an array of real numbers, got text"),
    "bytes": ([[b"0.1", b"0.2"]], TypeError, "x must be an array of real numbers, got bytes"),
    "dates": (np.zeros((1, 2), "M8[s]"), TypeError, "x must be an array of real numbers, got datetime64[s]"),
    "None": (None, TypeError, "x must be an array of real numbers, got objects"),
    "masked": (
        np.ma.array([[0.1, 0.2]], mask=[[False, True]]),
        TypeError,
        "x must not be masked, got 1 masked values",
    ),
    "too large": (np.array([["1e4000", "0"]], dtype=np.longdouble), ValueError, "x must be finite, got inf"),
}

BAD_CALLS = {
    # the model
    "decoder": (lambda: ri.NonlinearICA("mlp", THETA, 0.1), TypeError, "decoder must be one such as MLP"),
    "theta length": (
        lambda: ri.NonlinearICA(DECODER, THETA[1:], 0.1),
        ValueError,
        "theta must have shape (14,), got (13,)",
    ),
    "theta nan": (
        lambda: ri.NonlinearICA(DECODER, THETA * np.nan, 0.1),
        ValueError,
        "theta must be finite, got nan at",
    ),
    "theta complex": (
        lambda: ri.NonlinearICA(DECODER, THETA * 1j, 0.1),
        TypeError,
        "theta must be an array of real",
    ),
    "sigma2 zero": (
        lambda: MODEL.replace(sigma2=0.0),
        ValueError,
        "sigma2 must be a finite number > 0, got 0.0",
    ),
    "sigma2 negative": (
        lambda: MODEL.replace(sigma2=-1.0),
        ValueError,
        "sigma2 must be a finite number > 0, got -1.0",
    ),
    "sigma2 nan": (
        lambda: MODEL.replace(sigma2=math.nan),
        ValueError,
        "sigma2 must be a finite number > 0, got nan",
    ),
    "sigma2 inf": (
        lambda: MODEL.replace(sigma2=math.inf),
        ValueError,
        "sigma2 must be a finite number > 0, got inf",
    ),
    "sigma2 huge": (
        lambda: MODEL.replace(sigma2=10**400),
        ValueError,
        "sigma2 must be a finite number > 0, got 1000",
    ),
    "sigma2 bool": (lambda: MODEL.replace(sigma2=True), TypeError, "sigma2 must be a real number, got True"),
    "sigma2 text": (
        lambda: MODEL.replace(sigma2="0.1"),
        TypeError,
        "sigma2 must be a real number, got '0.1'",
    ),
    "sigma2 complex": (lambda: MODEL.replace(sigma2=1j), TypeError, "sigma2 must be a real number, got 1j"),
    "sigma2 matrix": (
        lambda: MODEL.replace(sigma2=np.eye(2)),
        TypeError,
        "sigma2 must be a real number, got array([[1., 0.]",
    ),
    "sigma2 nested": (
        lambda: MODEL.replace(sigma2=[1, [2, 3]]),
        TypeError,
        "sigma2 must be a real number, got [1,",
    ),
    "sigma2 object": (
        lambda: ri.NonlinearICA(DECODER, THETA, None),
        TypeError,
        "sigma2 must be a real number, got None",
    ),
    "size": (lambda: MODEL.sample(0, rng=0), ValueError, "size must be an integer >= 1, got 0"),
    "size bool": (lambda: MODEL.sample(True, rng=0), TypeError, "size must be an integer >= 1, got True"),
    "size float": (lambda: MODEL.sample(3.0, rng=0), TypeError, "size must be an integer >= 1, got 3.0"),
    "rng None": (
        lambda: MODEL.sample(3, rng=None),
        TypeError,
        "rng must be an int seed or a numpy.random.Generator",
    ),
    "rng bool": (lambda: MODEL.sample(3, rng=True), TypeError, "numpy.random.Generator, got True"),
    "rng negative": (lambda: MODEL.sample(3, rng=-1), ValueError, "rng must be an integer >= 0, got -1"),
    "rng old": (
        lambda: MODEL.sample(3, rng=np.random.RandomState(0)),
        TypeError,
        "numpy.random.Generator, got Random",
    ),
    "rng text": (lambda: MODEL.sample(3, rng="0"), TypeError, "rng must be an integer >= 0, got '0'"),
    "z": (lambda: MODEL.log_joint(X, np.zeros((3, 2))), ValueError, "z must have shape (K, 1), got (3, 2)"),
    "z rows": (
        lambda: MODEL.log_joint(X, np.zeros((3, 4, 1))),
        ValueError,
        "z must have shape (2, K, 1), got (3, 4, 1)",
    ),
    "z nan": (
        lambda: MODEL.log_joint(X, [[math.nan]]),
        ValueError,
        "z must be finite, got nan at index [0, 0]",
    ),
    "description": (lambda: ri.NonlinearICA.from_dict({"theta": []}), ValueError, "lacks decoder, sigma2"),
    "description kind": (lambda: ri.NonlinearICA.from_dict([1]), ValueError, "must be a dict, got [1]"),
    "description decoder": (
        lambda: ri.NonlinearICA.from_dict({"decoder": {"type": "MPL"}, "theta": [], "sigma2": 1}),
        ValueError,
        "decoder type must be one of MLP, Polynomial, got 'MPL'; did you mean 'MLP'?",
    ),
    "description entry": (
        lambda: ri.NonlinearICA.from_dict({"decoder": {"type": "MLP", "width": 3}, "theta": [], "sigma2": 1}),
        ValueError,
        "the description of the MLP does not fit",
    ),
    # decoders
    "one width": (
        lambda: ri.MLP((3,)),
        ValueError,
        "sizes must be at least two widths (m, ..., n), got (3,)",
    ),
    "no widths": (lambda: ri.MLP(3), ValueError, "sizes must be at least two widths (m, ..., n), got 3"),
    "widths text": (
        lambda: ri.MLP("1,2"),
        ValueError,
        "sizes must be at least two widths (m, ..., n), got '1,2'",
    ),
    "width zero": (lambda: ri.MLP((1, 0, 2)), ValueError, "sizes[1] must be an integer >= 1, got 0"),
    "width negative": (lambda: ri.MLP((1, -8, 2)), ValueError, "sizes[1] must be an integer >= 1, got -8"),
    "width float": (lambda: ri.MLP((1, 8.5, 2)), TypeError, "sizes[1] must be an integer >= 1, got 8.5"),
    "width bool": (lambda: ri.MLP((True, 2)), TypeError, "sizes[0] must be an integer >= 1, got True"),
    "activation": (
        lambda: ri.MLP((1, 2), activation="tahn"),
        ValueError,
        "activation must be one of gelu, identity, leaky_relu,",
    ),
    "activation near": (
        lambda: ri.MLP((1, 2), activation="tahn"),
        ValueError,
        "got 'tahn'; did you mean 'tanh'?",
    ),
    "activation other": (
        lambda: ri.MLP((1, 2), output_activation=3),
        TypeError,
        "output_activation must be an activation or the name",
    ),
    "slope": (lambda: ri.leaky_relu(math.nan), ValueError, "slope must be a finite number, got nan"),
    "slope text": (
        lambda: ri.MLP((1, 2), "leaky_relu(x)"),
        ValueError,
        "activation has a slope that is not a finite",
    ),
    "slope inf": (
        lambda: ri.MLP((1, 2), "leaky_relu(inf)"),
        ValueError,
        "activation has a slope that is not a finite",
    ),
    "degree": (lambda: ri.Polynomial(1, 1, -1), ValueError, "degree must be an integer >= 0, got -1"),
    "latent_dim": (lambda: ri.Polynomial(0, 1, 1), ValueError, "latent_dim must be an integer >= 1, got 0"),
    "data_dim": (lambda: ri.Polynomial(1, 2.5, 1), TypeError, "data_dim must be an integer >= 1, got 2.5"),
    "init": (lambda: DECODER.init("0"), TypeError, "rng must be an integer >= 0, got '0'"),
    # rules
    "order": (lambda: ri.gauss_hermite(0), ValueError, "order must be an integer >= 1, got 0"),
    "order float": (lambda: ri.gauss_hermite(20.0), TypeError, "order must be an integer >= 1, got 20.0"),
    "points": (lambda: ri.uniform_grid(2, 5.0), ValueError, "points must be an integer >= 3, got 2"),
    "radius": (lambda: ri.uniform_grid(5, -1.0), ValueError, "radius must be a finite number > 0, got -1.0"),
    "radius text": (lambda: ri.uniform_grid(5, "5"), TypeError, "radius must be a real number, got '5'"),
    "size mc": (lambda: ri.monte_carlo(1, seed=0), ValueError, "size must be an integer >= 2, got 1"),
    "seed bool": (lambda: ri.monte_carlo(9, seed=True), TypeError, "seed must be an integer >= 0, got True"),
    "seed None": (lambda: ri.monte_carlo(9, seed=None), TypeError, "seed must be an integer >= 0, got None"),
    "seed negative": (lambda: ri.monte_carlo(9, seed=-2), ValueError, "seed must be an integer >= 0, got -2"),
    # integrators
    "rule": (lambda: ri.Quadrature(20), TypeError, "rule must be one such as gauss_hermite(20), got 20"),
    "proposal": (
        lambda: ri.Quadrature(ri.gauss_hermite(5), proposal="piror"),
        ValueError,
        "got 'piror'; did you mean 'prior'?",
    ),
    "proposal other": (
        lambda: ri.Quadrature(ri.gauss_hermite(5), proposal=3),
        TypeError,
        "proposal must be a name or offer gaussians",
    ),
    "fixed shape": (
        lambda: ri.FixedNodes([0.1, 0.2], [0, 0]),
        ValueError,
        "z must have shape (K, m) or (N, K, m), got (2,)",
    ),
    "fixed weights": (
        lambda: ri.FixedNodes([[0.1], [0.2]], [0, 0, 0]),
        ValueError,
        "log_weight must have shape (2,), got (3,)",
    ),
    "fixed nan": (
        lambda: ri.FixedNodes([[math.nan]], [0]),
        ValueError,
        "z must be finite, got nan at index [0, 0]",
    ),
    "fixed weight nan": (
        lambda: ri.FixedNodes([[0.1]], [math.nan]),
        ValueError,
        "log_weight must be finite, got nan",
    ),
    "fixed weight inf": (
        lambda: ri.FixedNodes([[0.1]], [math.inf]),
        ValueError,
        "log_weight must be finite, got inf",
    ),
    "integrator": (
        lambda: ri.log_likelihood(MODEL, X, "laplace"),
        TypeError,
        "integrator must offer nodes(model, x), got 'laplace'",
    ),
    "integrator array": (
        lambda: ri.log_likelihood(MODEL, X, np.eye(3)),
        TypeError,
        "integrator must offer nodes(model, x), got array([[1.",
    ),
    "executor": (
        lambda: ri.log_likelihood(MODEL, X, GH, executor=2),
        TypeError,
        "executor must be a concurrent.futures.Executor",
    ),
    "too many nodes": (
        lambda: ri.log_likelihood(MODEL, X, ri.Quadrature(ri.uniform_grid(10**7, 5.0))),
        ValueError,
        "10000000 nodes",
    ),
    "posterior size": (
        lambda: ri.posterior(MODEL, X, GH).sample(0, rng=0),
        ValueError,
        "size must be an integer >= 1",
    ),
    "posterior rng": (
        lambda: ri.posterior(MODEL, X, GH).sample(1, rng=1.5),
        TypeError,
        "rng must be an integer >= 0",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
@pytest.mark.parametrize(
    "call",
    [ri.log_likelihood, ri.density, ri.scores, ri.posterior, lambda model, x, _: model.log_joint(x, [[0.0]])],
    ids=["log_likelihood", "density", "scores", "posterior", "log_joint"],
)
def test_bad_data(call, name):
    x, error, words = BAD_DATA[name]
    with pytest.raises(error) as raised:
        call(MODEL, x, GH)
    assert words in str(raised.value)
    check_one_line(raised.value)


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments(name):
    call, error, words = BAD_CALLS[name]
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value)
    check_one_line(raised.value)


def check_one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < 300
    assert error.__cause__ is None  # no second traceback above it
    assert error.__suppress_context__ or error.__context__ is None


def test_constant_and_duplicate_rows_and_a_single_one_are_data():
    for x in ([[0.1, 0.2]], [[0.1, 0.2]] * 3, np.zeros((4, 2))):
        assert np.isfinite(ri.log_likelihood(MODEL, x, GH).total)


# -- the checks themselves --------------------------------------------------------------------------


@examples(100)
@given(hnp.arrays(st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint64, np.bool_]),
                  hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 1)))  # fmt: skip
def test_an_array_comes_back_as_float64_in_c_order(value):
    copy = value.copy()
    found = check_array("a", value, ("N", "n"))
    assert found.dtype == np.float64
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, value.astype(float))
    np.testing.assert_array_equal(value, copy)


def test_shapes():
    assert check_array("a", 3.0, ()).shape == ()
    assert check_array("a", [[1.0], [2.0]], ("N", 1)).shape == (2, 1)
    assert check_array("a", np.empty((0,)), (0,)).shape == (0,)
    with pytest.raises(ValueError, match=re.escape("a must have shape (3,), got (2,)")):
        check_array("a", [1.0, 2.0], (3,))


@pytest.mark.parametrize(
    "value", [1, 0.5, np.float32(0.5), np.int64(2), np.array(0.5), Fraction(1, 2), Decimal("0.5")], ids=repr
)
def test_numbers_of_any_kind(value):
    found = check_number("a", value, above=0.0)
    assert type(found) is float
    assert found == float(value)


@pytest.mark.parametrize(
    ("limits", "good", "bad", "words"),
    [
        ({"above": 0.0}, 1e-300, 0.0, "a finite number > 0"),
        ({"minimum": 0.0}, 0.0, -1e-300, "a finite number >= 0"),
        ({"below": 1.0}, 0.999, 1.0, "a finite number < 1"),
        ({"maximum": 1.0}, 1.0, 1.001, "a finite number <= 1"),
        ({"above": 0.0, "maximum": 1.0}, 1.0, 0.0, "a finite number > 0 and <= 1"),
    ],
)
def test_limits(limits, good, bad, words):
    assert check_number("a", good, **limits) == good
    with pytest.raises(ValueError, match=re.escape(f"a must be {words}, got {bad}")):
        check_number("a", bad, **limits)


def test_counts():
    assert check_count("a", np.int32(3)) == 3
    assert type(check_count("a", np.uint8(3))) is int
    assert check_count("a", 0, minimum=0) == 0
    assert check_seed("a", 2**100) == 2**100


def test_choices():
    known = ("tanh", "sigmoid", "sin")
    assert check_choice("a", "sin", known) == "sin"
    with pytest.raises(
        ValueError, match=r"a must be one of sigmoid, sin, tanh, got 'sigmoit'; did you mean 'sigmoid'"
    ):
        check_choice("a", "sigmoit", known)
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        check_choice("a", "zzz", known)
    with pytest.raises(ValueError, match=r"got None$"):
        check_choice("a", None, known)


def test_generators():
    rng = np.random.default_rng(0)
    assert check_generator(rng) is rng
    assert check_generator(5).random() == np.random.default_rng(5).random()
    assert check_generator(np.int64(5)).random() == np.random.default_rng(5).random()


def test_what_is_shown_is_short_and_on_one_line():
    assert shown(0.5) == "0.5"
    assert shown(np.eye(2)) == "array([[1., 0.], [0., 1.]])"
    assert len(shown("x" * 1000)) == 80
    assert shown("x" * 1000).endswith("...")
