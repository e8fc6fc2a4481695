"""Gradients on fixed nodes three ways, and where log p goes wrong if it is summed carelessly."""

import autograd_model
import checks
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from strategies import KINDS, cases, examples

import refica as ri
from refica import likelihood
from refica.likelihood import Nodes
from refica.proposals import Gaussians, place

EACH = 24
"""Examples for each of the nine kinds of decoder: 216 in all."""


@pytest.mark.parametrize("density", [False, True], ids=["log-likelihood", "density"])
@pytest.mark.parametrize("kind", KINDS)
@examples(EACH)
@given(data=st.data())
def test_gradients_against_autograd(kind, density, data):
    case = data.draw(cases(kind))
    for nodes in (case.shared, case.own):
        checks.check_gradient(case.model, case.x, nodes, density=density)


@pytest.mark.parametrize("density", [False, True], ids=["log-likelihood", "density"])
@pytest.mark.parametrize("kind", KINDS)
@examples(EACH)
@given(data=st.data())
def test_gradients_by_the_complex_step(kind, density, data):
    case = data.draw(cases(kind))
    for nodes in (case.shared, case.own):
        checks.check_complex_step(case.model, case.x, nodes, density=density)


@pytest.mark.parametrize("density", [False, True], ids=["log-likelihood", "density"])
@pytest.mark.parametrize("kind", KINDS)
@examples(EACH)
@given(data=st.data())
def test_gradients_by_differences(kind, density, data):
    case = data.draw(cases(kind))
    for nodes in (case.shared, case.own):
        checks.check_differences(case.model, case.x, nodes, np.random.default_rng(0), density=density)


@pytest.mark.parametrize("kind", KINDS)
@examples(5)
@given(data=st.data())
def test_evaluate_accepts_complex_parameters(kind, data):
    """The Hessian in one direction is the complex step of the gradient: it is symmetric."""
    case = data.draw(cases(kind))
    model, theta = case.model, case.model.theta
    u, v = np.random.default_rng(0).standard_normal((2, len(theta)))
    for nodes in (case.shared, case.own):

        def hessian_times(direction, nodes=nodes):
            moved = theta + 1j * checks.STEP * direction
            found = likelihood.evaluate(
                model.decoder, moved, model.sigma2, case.x, Nodes(nodes.z, nodes.log_weight),
                coefficient=np.ones_like,
            )  # fmt: skip
            return found.gradient.theta.imag / checks.STEP

        left, right = hessian_times(v) * u, hessian_times(u) * v
        size = np.abs(left).sum() + np.abs(right).sum()
        if model.decoder.n_params > 0 and size > 0:
            # The activations' own derivatives are differentiated here: second derivatives have no hand in
            # refica, and relu's is 0.
            assert abs(left.sum() - right.sum()) <= 1e-10 * size


@examples(20)
@given(data=st.data())
def test_responsibilities_and_statistics(data):
    case = data.draw(cases())
    model, nodes = case.model, case.shared
    terms = autograd_model.log_joint(model.decoder, model.theta, model.sigma2, case.x, nodes.z)
    rho = special.softmax(terms + nodes.log_weight, axis=1)
    found = likelihood.evaluate(
        model.decoder, model.theta, model.sigma2, case.x, Nodes(nodes.z, nodes.log_weight), statistic=nodes.z
    )
    assert found.gradient is None
    np.testing.assert_allclose(found.concentration, (rho**2).sum(axis=1), rtol=1e-11)
    np.testing.assert_allclose(found.means, rho @ nodes.z, rtol=1e-11, atol=1e-11)


@examples(20)
@given(data=st.data())
def test_moments(data):
    case = data.draw(cases())
    model = case.model
    for nodes in (case.shared, case.own):
        z = np.broadcast_to(nodes.z, (len(case.x), *nodes.z.shape[-2:]))
        terms = autograd_model.log_joint(model.decoder, model.theta, model.sigma2, case.x, z)
        rho = special.softmax(terms + nodes.log_weight, axis=1)
        post = ri.posterior(model, case.x, nodes)
        for i in range(len(case.x)):
            mean = rho[i] @ z[i]
            np.testing.assert_allclose(post.mean[i], mean, rtol=1e-11, atol=1e-11)
            offset = z[i] - mean
            np.testing.assert_allclose(
                post.covariance[i], (rho[i][:, None] * offset).T @ offset, rtol=1e-9, atol=1e-12
            )
        np.testing.assert_allclose(post.effective_nodes, 1.0 / (rho**2).sum(axis=1), rtol=1e-11)


def test_a_narrow_posterior_far_from_zero_keeps_its_variance():
    """E z² - (E z)² would lose all digits here."""
    model = ri.NonlinearICA(ri.MLP((1, 1)), [1.0, 0.0], sigma2=1e-12)
    post = ri.posterior(model, [[3.0]], ri.ExactLinear())
    assert post.covariance[0, 0, 0] == pytest.approx(1e-12 / (1.0 + 1e-12), rel=1e-9)


# -- section 4 of the mathematics: how the numbers go wrong -----------------------------------------


@pytest.mark.parametrize("scale", [447.0, 1e5])
def test_far_below_the_smallest_float_log_p_and_its_gradient_are_right(scale):
    """exp(-1e5) is 0, and a floor under it would be wrong by 1e5 nats (item 5)."""
    model, x = oracles.worked_example("tanh", 1.0)
    x = x * scale / np.linalg.norm(x)
    z, log_w = oracles.panels_for(model, radius=60.0)
    result = ri.log_likelihood(model, x, ri.FixedNodes(z, log_w))
    want = autograd_model.log_marginal(model.decoder, model.theta, 1.0, x, z, log_w)
    assert result.total < -9e4
    assert checks.relative_error(result.per_observation, want) <= 1e-13
    by_theta, by_sigma2 = autograd_model.objective_gradient(model, x, z, log_w, density=False)
    rounding = abs(result.total) * np.finfo(float).eps  # of an exponent, and so of its responsibility
    assert checks.relative_error(result.gradient.theta, by_theta) <= rounding
    assert checks.relative_error(result.gradient.sigma2, by_sigma2) <= rounding
    literal = ri.density(model, x, ri.FixedNodes(z, log_w))
    assert literal.total == 0.0
    assert (literal.gradient.theta == 0.0).all()


def test_nothing_cancels_where_the_data_are_far_from_zero():
    """‖x‖² - 2 x·g + ‖g‖² is off by 7e-8 nats here (item 7)."""
    rng = np.random.default_rng(0)
    decoder = ri.MLP((1, 8, 2))
    theta = decoder.init(rng)
    theta[-2:] = 10.0
    model = ri.NonlinearICA(decoder, theta, sigma2=1e-6)
    _, x = model.sample(20, rng)
    z, log_w = ri.Quadrature(ri.uniform_grid(40_001, 6.0)).nodes(model, x)
    checks.check_differences_are_exact(model, x, ri.FixedNodes(z, log_w))


def test_an_offset_of_the_data_changes_nothing():
    """Item 7 again: the same problem moved by 16 (an exact float), σ² = 1e-6. What is left is the rounding
    of x - g at the larger size, which its conditioning allows: |x - g| / σ² x u |x|."""
    rng = np.random.default_rng(1)
    decoder = ri.MLP((1, 8, 2))
    theta = decoder.init(rng)
    at_zero = ri.NonlinearICA(decoder, theta, sigma2=1e-6)
    _, x = at_zero.sample(20, rng)
    x = np.round(x * 2.0**30) / 2.0**30  # so that x + 16 is exact
    moved = at_zero.replace(theta=theta + np.where(np.arange(len(theta)) >= len(theta) - 2, 16.0, 0.0))
    nodes = ri.FixedNodes(*ri.Quadrature(ri.uniform_grid(40_001, 6.0)).nodes(at_zero, x))
    here, there = (ri.log_likelihood(model, x + by, nodes) for model, by in ((at_zero, 0.0), (moved, 16.0)))
    allowed = 16.0 * np.finfo(float).eps * 5e-3 / 1e-6  # residuals reach 5σ
    assert np.abs(here.per_observation - there.per_observation).max() <= allowed
    assert checks.relative_error(there.gradient.theta, here.gradient.theta) <= 1e-8


def test_which_derivative_it_is():
    """Section 3: with one node at the mode, the score at fixed nodes, the derivative of the moving-node
    value and the truth are three numbers (with respect to σ², at σ² = 0.1); with 25 nodes they agree."""
    model, x = oracles.worked_example("tanh", 0.1)
    truth = -0.3343574268841401 / 0.1

    def laplace(sigma2, order):
        """Gauss-Hermite nodes on the normal distribution fitted at the mode, by Newton's Hessian."""
        now = model.replace(sigma2=sigma2)

        def negative(z):
            return -float(now.log_joint(x, np.reshape(z, (1, 1)))[0, 0])

        found = optimize.minimize_scalar(negative, bracket=(-1.0, 0.3, 1.0), tol=1e-12).x
        h = 1e-3
        curvature = (negative(found + h) - 2.0 * negative(found) + negative(found - h)) / h**2
        t, log_w = ri.gauss_hermite(order).points(1)
        gaussians = Gaussians(
            np.zeros((1, 1)), np.full((1, 1, 1), found), np.full((1, 1, 1, 1), curvature**-0.5), {}
        )
        return now, ri.FixedNodes(*place(t, log_w, gaussians))

    def fixed(order):
        now, nodes = laplace(0.1, order)
        return ri.log_likelihood(now, x, nodes).gradient.sigma2

    def moving(order, h=1e-4):
        above, below = (ri.log_likelihood(now, x, nodes).total for now, nodes in
                        (laplace(0.1 + h, order), laplace(0.1 - h, order)))  # fmt: skip
        return (above - below) / (2.0 * h)

    assert fixed(1) == pytest.approx(-8.57, abs=0.005)
    assert moving(1) == pytest.approx(-3.66, abs=0.005)
    assert truth == pytest.approx(-3.34, abs=0.005)
    assert fixed(25) == pytest.approx(truth, abs=1e-4)
    assert moving(25) == pytest.approx(truth, abs=1e-4)


def test_absent_nodes_do_not_count():
    rng = np.random.default_rng(0)
    model, x = oracles.worked_example("tanh", 0.1)
    z, log_w = rng.standard_normal((6, 1)), rng.standard_normal(6)
    with_absent = ri.FixedNodes(np.concatenate([z, [[0.3]]]), np.concatenate([log_w, [-np.inf]]))
    without = ri.log_likelihood(model, x, ri.FixedNodes(z, log_w))
    found = ri.log_likelihood(model, x, with_absent)
    assert checks.relative_error(found.total, without.total) <= checks.SAME_SUM
    assert checks.relative_error(found.gradient.theta, without.gradient.theta) <= checks.SAME_SUM


def test_rounding_error_covers_what_rounding_does():
    """Against extended precision, over sizes of data and noise."""
    rng = np.random.default_rng(0)
    for sigma2 in (1e-6, 1e-2, 1.0):
        for offset in (0.0, 10.0, 1000.0):
            decoder = ri.MLP((1, 6, 3))
            theta = decoder.init(rng)
            theta[-3:] += offset
            model = ri.NonlinearICA(decoder, theta, sigma2)
            z, x = model.sample(10, rng)
            log_p = likelihood.log_marginal(decoder, theta, sigma2, x, Nodes(z, np.zeros(10)))
            exact = _in_extended_precision(model, x, z)
            assert (np.abs(log_p - exact) <= likelihood.rounding_error(x, sigma2, log_p)).all()


def _in_extended_precision(model, x, z):
    """log Σ_k p(x_i, z_k) with every step, the decoder's too, in long doubles."""
    theta, h = model.theta.astype(np.longdouble), z.astype(np.longdouble)
    (W1, b1), (W2, b2) = model.decoder.unpack(theta)
    g = np.tanh(h @ W1.T + b1) @ W2.T + b2
    s2, two_pi = np.longdouble(model.sigma2), 2.0 * np.longdouble("3.14159265358979323846")
    squared = ((x.astype(np.longdouble)[:, None] - g) ** 2).sum(axis=-1)
    terms = -squared / (2 * s2) - g.shape[1] / 2 * np.log(two_pi * s2) - (h**2).sum(axis=1) / 2
    terms -= z.shape[1] / 2 * np.log(two_pi)
    top = terms.max(axis=1)
    return (top + np.log(np.exp(terms - top[:, None]).sum(axis=1))).astype(float)
