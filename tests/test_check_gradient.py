"""`refica.testing.check_gradient`: right gradients pass, planted wrong ones do not, by either route."""

import numpy as np
import pytest

import refica as ri
from refica.testing import check_gradient, taylor_slope

A = np.random.default_rng(0).standard_normal((5, 5))
X = np.random.default_rng(1).standard_normal(5)


def smooth(x):
    return np.sum(np.tanh(A @ x) ** 2) + 0.1 * x[0] ** 3


def its_gradient(x):
    t = np.tanh(A @ x)
    gradient = A.T @ (2.0 * t * (1.0 - t * t))
    gradient[0] += 0.3 * x[0] ** 2
    return gradient


def off_in(component, factor):
    def gradient(x):
        found = its_gradient(x)
        found[component] *= factor
        return found

    return gradient


@pytest.mark.parametrize("route", ["auto", "complex step", "differences"])
def test_a_right_gradient_passes(route):
    found = check_gradient(smooth, its_gradient, X, route=route)
    assert found
    assert found.wrong == ()
    assert found.route == ("complex step" if route == "auto" else route)
    assert found.relative_error.max() <= 1e-9
    assert all(2.5 < each.slope < 3.5 for each in found.slopes)
    assert "every component agrees" in found.message


@pytest.mark.parametrize("route", ["complex step", "differences"])
@pytest.mark.parametrize("component", range(5))
def test_a_component_that_is_off_by_a_twentieth_of_a_percent(route, component):
    found = check_gradient(smooth, off_in(component, 1.0005), X, route=route)
    assert not found
    assert found.wrong == (component,)
    assert found.relative_error[component] == pytest.approx(5e-4, rel=1e-4)
    assert f"most component {component}" in found.message
    assert any(not each.passed and abs(each.slope - 1.0) < 0.3 for each in found.slopes)


@pytest.mark.parametrize("off", [1e-3, 1e-5, 1e-7])
def test_the_slope_alone_tells(off):
    """No tolerance: the remainder of a wrong derivative falls like h however small its error is."""
    v = np.ones(5) / np.sqrt(5.0)
    true = float(its_gradient(X) @ v)
    assert taylor_slope(smooth, true, X, v).passed
    wrong = taylor_slope(smooth, true + off, X, v)
    assert not wrong.passed
    assert abs(wrong.slope - 1.0) < 0.3
    assert taylor_slope(smooth, true, X, v).resolution < 1e-7


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x: -its_gradient(x), "sign"),
        (lambda x: 2.0 * its_gradient(x), "factor"),
        (lambda x: its_gradient(x)[::-1], "order"),
        (lambda x: np.zeros(5), "zero"),
        (lambda x: its_gradient(x) / 5.0, "mean for sum"),
    ],
)
def test_usual_slips(wrong, words):
    assert not check_gradient(smooth, wrong, X), words


def test_a_linear_function_has_no_remainder():
    assert check_gradient(lambda x: 3.0 * x.sum(), 3.0 * np.ones(5), X)
    assert not check_gradient(lambda x: 3.0 * x.sum(), 3.0 * np.ones(5) + 1e-6, X)
    assert check_gradient(lambda x: x @ x, 2.0 * X, X)


def test_a_function_that_is_not_analytic_is_taken_by_differences():
    """abs, real and max let the complex step through and make it wrong."""
    found = check_gradient(lambda x: np.sum(np.abs(x) ** 2), 2.0 * X, X)
    assert found
    assert found.route == "differences"
    assert check_gradient(lambda x: float(np.sum(x**2)), 2.0 * X, X).route == "differences"
    with pytest.raises(TypeError, match="complex"):
        check_gradient(lambda x: float(np.sum(x**2)), 2.0 * X, X, route="complex step")


def test_a_kink_at_a_distance_does_no_harm():
    def f(x):
        return np.sum(np.maximum(x, 0.05) ** 2)

    x = np.array([0.11, -0.3, 2.0])
    assert check_gradient(f, np.array([0.22, 0.0, 4.0]), x)
    assert not check_gradient(f, np.array([0.2201, 0.0, 4.0]), x)


def test_a_small_domain():
    x = np.array([0.004, 0.7])
    f = lambda x: float(np.sum(np.log(x)))  # noqa: E731
    assert check_gradient(f, 1.0 / x, x)
    assert not check_gradient(f, 1.0001 / x, x)


def test_noise_is_measured():
    """A function that carries an error of 1e-9 of its own cannot decide the eighth digit, and says so."""

    def noisy(x):
        return smooth(x) + 1e-9 * np.sin(1e9 * np.sum(x))

    found = check_gradient(noisy, its_gradient, X, route="differences", rtol=1e-4)
    assert found
    assert min(each.resolution for each in found.slopes) > 1e-10
    assert not check_gradient(noisy, off_in(2, 1.01), X, route="differences", rtol=1e-4)
    large = lambda x: 1e6 + np.sum(np.sin(x))  # noqa: E731
    assert check_gradient(large, np.cos, X, route="differences")


def test_the_gradient_of_a_model():
    rng = np.random.default_rng(2)
    decoder = ri.MLP((1, 3, 2))
    model = ri.NonlinearICA(decoder, decoder.init(rng), sigma2=0.3)
    x = model.sample(4, rng)[1]
    nodes = ri.FixedNodes(np.linspace(-4.0, 4.0, 41)[:, None], np.zeros(41))

    def f(params):
        moved = model.replace(theta=params[:-1], sigma2=params[-1])
        return ri.log_likelihood(moved, x, nodes, gradient=False).total

    gradient = ri.log_likelihood(model, x, nodes).gradient
    at = np.append(model.theta, model.sigma2)
    assert check_gradient(f, np.append(gradient.theta, gradient.sigma2), at)
    assert check_gradient(f, np.append(gradient.theta, gradient.sigma2), at).route == "differences"
    assert not check_gradient(f, np.append(gradient.theta, model.sigma2 * gradient.sigma2), at)


def test_what_is_refused():
    with pytest.raises(ValueError, match="grad must have shape"):
        check_gradient(smooth, np.zeros(4), X)
    with pytest.raises(ValueError, match="f\\(x\\) must be a finite number"):
        check_gradient(lambda x: np.nan, np.zeros(5), X)
    with pytest.raises(TypeError, match="real number"):
        check_gradient(lambda x: x, np.zeros(5), X)
    with pytest.raises(ValueError, match="route"):
        check_gradient(smooth, its_gradient, X, route="forwards")
    with pytest.raises(ValueError, match="rtol"):
        check_gradient(smooth, its_gradient, X, rtol=0.0)


def test_x_is_not_written_to():
    before = X.copy()

    def greedy(x):
        value = smooth(x)
        x[:] = 0.0
        return value

    check_gradient(greedy, its_gradient, X)
    np.testing.assert_array_equal(X, before)
