"""The tester tested: each known way to be wrong is planted into refica, and the check that guards against it
must fail. Before each, the same check passes without the fault."""

import dataclasses
import math
from contextlib import contextmanager

import checks
import numpy as np
import oracles
import pytest
from scipy import stats

import refica as ri
from refica import exact, likelihood, quadrature, rules
from refica.activations import Tanh
from refica.likelihood import Nodes

ONE_IN_2000 = 1.0005


def sound(check):
    """The check passes on refica as it is."""
    check()


@contextmanager
def caught():
    with pytest.raises(AssertionError):
        yield


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A decoder that behaves like another one."""

    inner: object

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "inner"), name)

    def __call__(self, theta, z):
        return self.inner(theta, z)


@pytest.fixture
def nets():
    rng = np.random.default_rng(0)
    decoder = ri.MLP((2, 4, 3))
    return decoder, decoder.init(rng), rng.standard_normal((5, 2))


@pytest.fixture
def case():
    """A model with shared nodes, several of which share each observation's mass."""
    rng = np.random.default_rng(1)
    decoder = ri.MLP((1, 4, 2))
    model = ri.NonlinearICA(decoder, decoder.init(rng), sigma2=0.3)
    _, x = model.sample(5, rng)
    return model, x, ri.FixedNodes(rng.standard_normal((9, 1)), rng.standard_normal(9))


def affine(m=1, n=3, sigma2=0.5):
    rng = np.random.default_rng(2)
    model = ri.NonlinearICA(ri.MLP((m, n)), 0.7 * rng.standard_normal(n * (m + 1)), sigma2)
    return model, model.sample(6, rng)[1]


# -- derivatives of the decoder ----------------------------------------------------------------------


@pytest.mark.parametrize("component", [0, 7, 12, 19, 26])
def test_a_vjp_that_is_off_by_a_twentieth_of_a_percent_in_one_parameter(nets, component):
    decoder, theta, z = nets

    class Off(Wrapped):
        def vjp(self, theta, z, cotangent):
            theta_bar, z_bar = self.inner.vjp(theta, z, cotangent)
            theta_bar[component] *= ONE_IN_2000
            return theta_bar, z_bar

    def check(tested):
        checks.check_vjp(tested, theta, z, np.random.default_rng(3))

    sound(lambda: check(decoder))
    with caught():
        check(Off(decoder))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_vjp_that_is_off_in_one_latent(nets, axis):
    decoder, theta, z = nets

    class Off(Wrapped):
        def vjp(self, theta, z, cotangent):
            theta_bar, z_bar = self.inner.vjp(theta, z, cotangent)
            z_bar[:, axis] *= ONE_IN_2000
            return theta_bar, z_bar

    with caught():
        checks.check_vjp(Off(decoder), theta, z, np.random.default_rng(3))


def test_a_wrong_derivative_in_both_directions(nets, monkeypatch):
    """The adjoint identity is blind to it: it holds for any slope that vjp and jvp share."""
    decoder, theta, z = nets
    true = Tanh.derivative
    monkeypatch.setattr(Tanh, "derivative", lambda self, a: ONE_IN_2000 * true(self, a))
    rng = np.random.default_rng(3)
    cotangent, dz = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    left = decoder.vjp(theta, z, cotangent)[1] * dz
    right = cotangent * decoder.jvp(theta, z, np.zeros(len(theta)), dz)
    assert abs(left.sum() - right.sum()) <= checks.ADJOINT * (np.abs(left).sum() + np.abs(right).sum())
    with caught():
        checks.check_vjp(decoder, theta, z, rng)


@pytest.mark.parametrize("check", [checks.check_gradient, checks.check_complex_step])
def test_a_wrong_vjp_is_seen_in_the_gradient_of_the_likelihood(case, check):
    model, x, nodes = case

    class Off(Wrapped):
        def vjp(self, theta, z, cotangent):
            theta_bar, z_bar = self.inner.vjp(theta, z, cotangent)
            theta_bar[3] *= ONE_IN_2000
            return theta_bar, z_bar

    sound(lambda: check(model, x, nodes))
    with caught():
        check(ri.NonlinearICA(Off(model.decoder), model.theta, model.sigma2), x, nodes)


def test_differences_see_a_wrong_gradient(case, monkeypatch):
    model, x, nodes = case
    sound(lambda: checks.check_differences(model, x, nodes, np.random.default_rng(0)))
    true = type(model.decoder).vjp
    monkeypatch.setattr(ri.MLP, "vjp", lambda *a: tuple(part * ONE_IN_2000 for part in true(*a)))
    with caught():
        checks.check_differences(model, x, nodes, np.random.default_rng(0))


# -- the log joint and the sum -----------------------------------------------------------------------


def check_everything(case):
    """What guards the formulas of `likelihood`: autograd on fixed nodes, and the normal density."""
    model, x, nodes = case
    checks.check_gradient(model, x, nodes)
    checks.check_gradient(model, x, nodes, density=True)
    linear, y = affine()
    checks.check_linear(linear, y, ri.Quadrature(ri.uniform_grid(201, 9.0)), 1e-11)
    checks.check_linear(linear, y, ri.ExactLinear(), 1e-11)


def test_without_a_fault_everything_holds(case):
    check_everything(case)


def with_sigma(true):
    return lambda squared, sigma2, n: true(squared, sigma2**0.5, n)


def without_half(true):
    return lambda squared, sigma2, n: true(2.0 * squared, sigma2, n)


def without_constant(true):
    return lambda squared, sigma2, n: true(squared, sigma2, n) + 0.5 * n * math.log(2.0 * math.pi)


def mean_for_sum(true):
    return lambda squared, sigma2, n: true(squared / n, sigma2, n)


@pytest.mark.parametrize("fault", [with_sigma, without_half, without_constant, mean_for_sum])
def test_a_wrong_log_joint(case, fault, monkeypatch):
    """sigma in place of sigma2; a lost 1/2; a lost n/2 log 2π; a mean for a sum."""
    monkeypatch.setattr(likelihood, "log_likelihood_given", fault(likelihood.log_likelihood_given))
    with caught():
        check_everything(case)


def test_a_forgotten_prior(case, monkeypatch):
    monkeypatch.setattr(likelihood, "log_prior", lambda z: np.zeros(z.shape[:-1]))
    with caught():
        check_everything(case)


def test_a_forgotten_log_weight(case, monkeypatch):
    true = likelihood.tiles

    def without_weights(decoder, theta, sigma2, x, nodes):
        return true(decoder, theta, sigma2, x, Nodes(nodes.z, np.zeros_like(nodes.log_weight)))

    monkeypatch.setattr(likelihood, "tiles", without_weights)
    with caught():
        check_everything(case)


def test_a_shift_that_is_not_restored(case, monkeypatch):
    true = likelihood._log_sum_exp

    def without_shift(exponent):
        shift = np.real(exponent).max(axis=1)
        log_p, rho = true(exponent)
        return log_p - shift, rho

    monkeypatch.setattr(likelihood, "_log_sum_exp", without_shift)
    with caught():
        check_everything(case)


def test_a_floor_under_the_exponential(monkeypatch):
    """log(tiny) in place of log p = -1e5."""

    def floored(exponent):
        p = np.exp(exponent)
        mass = np.maximum(p.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        return np.log(mass)[:, 0], p / mass

    model, x = oracles.worked_example("tanh", 1.0)
    nodes = ri.FixedNodes(np.linspace(-5.0, 5.0, 50)[:, None], np.zeros(50))
    sound(lambda: checks.check_gradient(model, x, nodes))
    sound(lambda: checks.check_linear(*outlier(), ri.ExactLinear(), 1e-10))
    monkeypatch.setattr(likelihood, "_log_sum_exp", floored)
    sound(lambda: checks.check_gradient(model, x, nodes))  # where nothing underflows it makes no difference
    with caught():
        checks.check_linear(*outlier(), ri.ExactLinear(), 1e-10)


def outlier():
    model, x = affine()
    return model, x + 300.0


def test_a_sum_of_squares_that_cancels(monkeypatch):
    """‖x‖² - 2 x·g + ‖g‖² with the data far from 0 and a small σ²."""
    decoder = ri.MLP((1, 3, 2))
    theta = decoder.init(0)
    theta[-2:] = 10.0
    model = ri.NonlinearICA(decoder, theta, sigma2=1e-6)
    _, x = model.sample(5, rng=0)
    nodes = ri.FixedNodes(*ri.Quadrature(ri.uniform_grid(20_001, 6.0)).nodes(model, x))
    sound(lambda: checks.check_differences_are_exact(model, x, nodes))

    def product_form(x, g):
        return (x * x).sum(axis=1)[:, None] - 2.0 * x @ g.T + (g * g).sum(axis=1)

    monkeypatch.setattr(likelihood, "squared_distances", product_form)
    with caught():
        checks.check_differences_are_exact(model, x, nodes)


@pytest.mark.parametrize("name", ["_shared_nodes_gradient", "_own_nodes_gradient"])
def test_a_gradient_that_is_slightly_off(case, name, monkeypatch):
    model, x, nodes = case
    own = ri.FixedNodes(
        np.repeat(nodes.z[None], len(x), axis=0), np.repeat(nodes.log_weight[None], len(x), axis=0)
    )
    tested = nodes if name == "_shared_nodes_gradient" else own
    sound(lambda: checks.check_gradient(model, x, tested))
    true = getattr(likelihood, name)
    monkeypatch.setattr(likelihood, name, lambda *a: ONE_IN_2000 * true(*a))
    with caught():
        checks.check_gradient(model, x, tested)


def test_a_derivative_in_sigma_in_place_of_sigma2(case, monkeypatch):
    """∂/∂σ = 2σ ∂/∂σ²."""
    model, x, nodes = case
    true = likelihood._sigma2_derivative
    monkeypatch.setattr(
        likelihood, "_sigma2_derivative", lambda tile, c, s2: 2.0 * math.sqrt(s2) * true(tile, c, s2)
    )
    for check in (checks.check_gradient, checks.check_complex_step):
        with caught():
            check(model, x, nodes)


# -- rules and nodes ---------------------------------------------------------------------------------


def check_rules():
    for rule in (ri.gauss_hermite(5), ri.uniform_grid(41, 9.0)):
        checks.check_rule(rule, 2, 4, 1e-11)
        checks.check_product_order(rule, 2)


@pytest.mark.parametrize(
    "fault",
    [
        lambda axis, m, K: np.stack(np.meshgrid(*[axis] * m, indexing="ij")).reshape(K, m),  # axes mixed up
        lambda axis, m, K: np.stack(np.meshgrid(*[axis] * m, indexing="xy"), axis=-1).reshape(K, m),
        lambda axis, m, K: np.repeat(np.resize(axis, K)[:, None], m, axis=1),  # the diagonal
    ],
    ids=["transposed", "other axis fastest", "diagonal"],
)
def test_a_transposed_product_grid(fault, monkeypatch):
    sound(check_rules)
    monkeypatch.setattr(rules, "_product", fault)
    with caught():
        check_rules()


def test_a_forgotten_one_over_K(monkeypatch):
    """Values too high by exactly log K: the best-known earlier implementation's fault."""
    rule = ri.monte_carlo(1000, seed=0)
    sound(lambda: checks.check_rule(rule, 1, 2, 0.1))
    model, x = affine()
    before = ri.log_likelihood(model, x, ri.Quadrature(rule)).per_observation
    true = type(rule).points
    monkeypatch.setattr(type(rule), "points", lambda self, m: (true(self, m)[0], np.zeros(self.size)))
    after = ri.log_likelihood(model, x, ri.Quadrature(rule)).per_observation
    np.testing.assert_allclose(after - before, math.log(1000.0), rtol=1e-12)
    with caught():
        checks.check_rule(rule, 1, 2, 0.1)


def test_a_step_from_the_number_of_points(monkeypatch):
    """2 radius / points in place of 2 radius / (points - 1)."""
    monkeypatch.setattr(
        rules.UniformGrid, "step", property(lambda self: 2.0 * self.radius / self.points_per_axis)
    )
    model, x = affine()
    with caught():
        rule = ri.uniform_grid(11, 4.0)
        np.testing.assert_allclose(rule.points(1)[0][:, 0], np.linspace(-4.0, 4.0, 11))
    # as a rule it is still a good one, only not on the box that was asked for
    sound(lambda: checks.check_linear(model, x, ri.Quadrature(ri.uniform_grid(201, 9.0)), 1e-11))


def test_weights_that_miss_the_prior(monkeypatch):
    """log w - log φ(t) without the second part: weights for N(0, I) handed out as Lebesgue's."""
    model, x = affine()
    integrator = ri.Quadrature(ri.gauss_hermite(60))
    sound(lambda: checks.check_linear(model, x, integrator, 1e-6))
    monkeypatch.setattr(quadrature, "log_prior", lambda t: np.zeros(len(t)))
    with caught():
        checks.check_linear(model, x, integrator, 1e-6)


@pytest.mark.parametrize("fault", ["transposed scale", "no determinant", "other mean"])
def test_nodes_that_are_placed_wrongly(fault, monkeypatch):
    """The points of an affine decoder's posterior, in two correlated latents."""
    model, x = affine(m=2, n=3)
    sound(lambda: check_posterior(model, x))
    true = exact.place

    def wrong(t, log_w, gaussians):
        if fault == "transposed scale":
            z, log_weight = true(t, log_w, gaussians)
            turned = gaussians.mean[:, :1] + np.einsum("nji,kj->nki", gaussians.scale[:, 0], t)
            return Nodes(turned, log_weight)
        if fault == "no determinant":
            z, log_weight = true(t, log_w, gaussians)
            return Nodes(z, log_weight - np.log(np.abs(np.linalg.det(gaussians.scale[:, 0])))[:, None])
        return true(t, log_w, gaussians._replace(mean=gaussians.mean * ONE_IN_2000))

    monkeypatch.setattr(exact, "place", wrong)
    with caught():
        check_posterior(model, x)


def check_posterior(model, x):
    checks.check_linear(model, x, ri.ExactLinear(), 1e-11)
    W, b = exact.affine_map(model)
    M = W.T @ W + model.sigma2 * np.eye(model.latent_dim)
    post = ri.posterior(model, x, ri.ExactLinear())
    mean = np.linalg.solve(M, W.T @ (x - b).T).T
    assert checks.relative_error(post.mean, mean, 1.0) <= 1e-12
    covariance = np.repeat((model.sigma2 * np.linalg.inv(M))[None], len(x), axis=0)
    assert checks.relative_error(post.covariance, covariance, 1.0) <= 1e-12


# -- errors that are claimed -------------------------------------------------------------------------


def test_an_error_divided_by_a_hundred():
    """And one that is right only in 95 of 100 cases, and one from too few cases to say."""
    rng = np.random.default_rng(0)
    true = np.exp(rng.standard_normal(1000))
    every = np.ones(1000, dtype=bool)
    reported = 2.0 * true
    sound(lambda: checks.check_honesty(true, reported, every, 0.0))
    with caught():
        checks.check_honesty(true, reported / 100.0, every, 0.0)
    with caught():
        checks.check_honesty(true, np.where(np.arange(1000) % 20 == 0, 0.9, 2.0) * true, every, 0.0)
    with caught():
        checks.check_honesty(true, reported, np.arange(1000) < 50, 0.0)


def test_a_rule_s_error_divided_by_a_hundred(monkeypatch):
    """The same through the public function, with a rule that is too coarse for the model."""
    model, _ = oracles.worked_example("tanh", 0.3)
    _, x = model.sample(150, rng=0)
    truth = oracles.log_p_by_panels(model, x)

    def check():
        result = ri.log_likelihood(model, x, ri.Quadrature(ri.gauss_hermite(40)), gradient=False)
        off = np.abs(result.per_observation - truth)
        checks.check_honesty(off, result.error, np.ones(150, dtype=bool), 1e-12)

    sound(check)
    true = ri.Quadrature.evaluate

    def boastful(*arguments):
        found = true(*arguments)
        return found._replace(error=found.error / 100.0)

    monkeypatch.setattr(ri.Quadrature, "evaluate", boastful)
    with caught():
        check()


# -- the closed form ---------------------------------------------------------------------------------


def test_a_pca_with_the_divisor_of_an_unbiased_variance():
    """N - 1 in place of N: not the maximum of the likelihood."""
    x = np.random.default_rng(0).standard_normal((20, 3)) * [3.0, 1.0, 0.5]
    fitted = ri.probabilistic_pca(x, 1)

    def check(model):
        result = ri.log_likelihood(model, x)
        size = np.abs(ri.scores(model, x)).sum(axis=0)
        assert abs(result.gradient.sigma2) <= 1e-11 * size[-1]

    sound(lambda: check(fitted))
    with caught():
        check(fitted.replace(sigma2=fitted.sigma2 * 20.0 / 19.0))


def test_a_covariance_without_the_noise():
    model, x = affine()
    W, b = exact.affine_map(model)
    singular = W @ W.T + 1e-9 * np.eye(3)
    wrong = stats.multivariate_normal(b, singular).logpdf(x)
    right = ri.log_likelihood(model, x, ri.ExactLinear()).per_observation
    assert checks.relative_error(wrong, right, 1.0) > 1.0
