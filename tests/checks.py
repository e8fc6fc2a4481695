"""What must hold, as functions that raise AssertionError: the tests run them on refica, and
test_planted_faults.py on refica with a fault in it, where each must fail.

Every derivative is checked three ways (autograd, complex step, differences) and by the adjoint identity.
"""

# notation: N observations, n data, m latent, K nodes; rho (N, K) responsibilities; J Jacobian in theta

import itertools
import math

import autograd_model
import numpy as np
from scipy import special, stats

import refica as ri
from refica import likelihood
from refica.likelihood import Nodes

AUTOGRAD = 1e-12
"""Two float64 evaluations of one formula: some 1000 roundings of sums that do not cancel."""

COMPLEX_STEP = 1e-11
"""The same, but exponentials and logarithms of complex numbers are right to a few more roundings."""

DIFFERENCES = 1e-6
"""Central differences of order four at steps of 1e-3 σ: truncation and rounding are both below."""

ADJOINT = 1e-13
"""One sum of some 100 products in two orders."""

SAME_SUM = 1e-13
"""One formula, summed in another order."""

TRUE_VJP = {kind: kind.vjp for kind in (ri.MLP, ri.Polynomial)}
"""As they are before a test plants a fault: what is held against a size must not spoil the size too."""

STEP = 1e-30
"""The complex step: so small that its square is lost in any rounding."""


def relative_error(got, want, scale=0.0):
    """‖got - want‖_∞ / max(‖want‖_∞, scale); 0 where all of them are 0 (mathematics, section 2)."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    size = max(np.max(np.abs(want), initial=0.0), np.max(scale, initial=0.0))
    off = np.max(np.abs(got - want), initial=0.0)
    return float(off / size) if size > 0 else float(off)


def contributions(model, x, nodes, *, density):
    """The size of what a gradient sums: Σ_ik |c_i ρ_ik J_kᵀ (x_i - g_k)/σ²| (p,), and the same for σ².

    Formed here in the N x K x n arrays that refica avoids, and unsummed.
    """
    N, n = x.shape
    z = np.broadcast_to(nodes.z, (N, *nodes.z.shape[-2:]))
    log_terms = autograd_model.log_joint(model.decoder, model.theta, model.sigma2, x, z) + nodes.log_weight
    log_p = special.logsumexp(log_terms, axis=1, keepdims=True)
    mass = np.exp(log_terms - log_p) * (np.exp(log_p) if density else 1.0)
    r = x[:, None, :] - autograd_model.decode(model.decoder, model.theta, z)
    V = (mass[..., None] * r / model.sigma2).reshape(-1, n)
    decoder = getattr(model.decoder, "inner", model.decoder)  # some tests wrap it
    pulled, _ = TRUE_VJP[type(decoder)](decoder, model.theta, z.reshape(len(V), -1), V, each=True)
    by_theta = np.abs(pulled).sum(axis=0)
    by_sigma2 = (mass * (np.sum(r**2, axis=-1) / model.sigma2 + n)).sum() / (2.0 * model.sigma2)
    return by_theta, by_sigma2


def check_gradient(model, x, nodes, *, density=False):
    """The gradient of the public function on fixed nodes equals autograd's of the model's rewriting."""
    result = (ri.density if density else ri.log_likelihood)(model, x, nodes)
    want = autograd_model.objective_gradient(model, x, nodes.z, nodes.log_weight, density=density)
    scales = contributions(model, x, nodes, density=density)
    log_p = autograd_model.log_marginal(
        model.decoder, model.theta, model.sigma2, x, nodes.z, nodes.log_weight
    )
    value = np.exp(log_p) if density else log_p
    assert relative_error(result.per_observation, value, 0.0 if density else 1.0) <= AUTOGRAD
    assert relative_error(result.total, value.sum(), np.abs(value).sum()) <= AUTOGRAD
    assert relative_error(result.gradient.theta, want[0], scales[0]) <= AUTOGRAD
    assert relative_error(result.gradient.sigma2, want[1], scales[1]) <= AUTOGRAD


def check_complex_step(model, x, nodes, *, density=False):
    """The same gradient by the complex step through the internal formulas, parameter by parameter."""
    result = (ri.density if density else ri.log_likelihood)(model, x, nodes).gradient
    scales = contributions(model, x, nodes, density=density)
    pair = Nodes(nodes.z, nodes.log_weight)

    def derivative(theta, sigma2):
        log_p = likelihood.log_marginal(model.decoder, theta, sigma2, x, pair)
        return float((np.exp(log_p) if density else log_p).sum().imag / STEP)

    by_theta = [derivative(model.theta + 1j * STEP * e, model.sigma2) for e in np.eye(len(model.theta))]
    assert relative_error(result.theta, by_theta, scales[0]) <= COMPLEX_STEP
    by_sigma2 = derivative(model.theta, model.sigma2 + 1j * STEP)
    assert relative_error(result.sigma2, by_sigma2, scales[1]) <= COMPLEX_STEP


def check_differences(model, x, nodes, rng, *, density=False):
    """The same gradient by central differences of the public value, along σ² and along random directions.

    What rounding of the value leaves of a quotient, 10 u |value| / h, is allowed on top.
    """
    evaluate = ri.density if density else ri.log_likelihood
    result = evaluate(model, x, nodes)
    scales = contributions(model, x, nodes, density=density)
    rounding = 10.0 * np.finfo(float).eps * np.abs(result.per_observation).sum()

    def check(derivative, direction, by_sigma2, h, scale):
        def value(t):
            moved = model.replace(theta=model.theta + t * direction, sigma2=model.sigma2 + t * by_sigma2)
            return evaluate(moved, x, nodes, gradient=False).total

        # order four
        found = (8.0 * (value(h) - value(-h)) - (value(2.0 * h) - value(-2.0 * h))) / (12.0 * h)
        assert abs(derivative - found) <= DIFFERENCES * max(abs(found), scale) + rounding / h

    step = 1e-3 * min(1.0, math.sqrt(model.sigma2))
    for direction in rng.standard_normal((3, model.decoder.n_params)):
        direction /= np.linalg.norm(direction)
        check(result.gradient.theta @ direction, direction, 0.0, step, scales[0] @ np.abs(direction))
    still = np.zeros(model.decoder.n_params)
    check(result.gradient.sigma2, still, 1.0, 1e-3 * model.sigma2, scales[1])


def check_vjp(decoder, theta, z, rng):
    """vjp is the transpose of jvp, in theta and z, and both are the derivative that autograd takes."""
    cotangent = rng.standard_normal((len(z), decoder.data_dim))
    dtheta, dz = rng.standard_normal(len(theta)), rng.standard_normal(z.shape)
    theta_bar, z_bar = decoder.vjp(theta, z, cotangent)
    for direction, move, bar in (
        ((dtheta, 0.0 * dz), dtheta, theta_bar),
        ((0.0 * dtheta, dz), dz, z_bar),
    ):
        left, right = bar * move, cotangent * decoder.jvp(theta, z, *direction)
        size = np.abs(left).sum() + np.abs(right).sum()
        assert abs(left.sum() - right.sum()) <= ADJOINT * size
    value = autograd_model.decode(decoder, theta, z)
    assert relative_error(decoder(theta, z), value, 1.0) <= AUTOGRAD
    want = autograd_model.decoder_gradient(decoder, theta, z, cotangent)
    assert relative_error(theta_bar, want[0], 1.0) <= AUTOGRAD
    assert relative_error(z_bar, want[1], 1.0) <= AUTOGRAD


def check_rule(rule, m, degree, tolerance):
    """Its weights sum to one, and it has every moment of N(0, I_m) up to a total degree: which a product
    grid whose nodes are put together wrongly has not."""
    t, log_w = rule.points(m)
    assert t.shape == (rule.count(m), m)
    assert log_w.shape == (rule.count(m),)
    w = np.exp(log_w)
    assert abs(w.sum() - 1.0) <= tolerance
    for power in itertools.product(range(degree + 1), repeat=m):
        if sum(power) <= degree:
            # E T^e = (e - 1)!! for even e, 0 for odd
            want = math.prod(0 if e % 2 else int(special.factorial2(max(e - 1, 0))) for e in power)
            size = w @ np.prod(np.abs(t) ** np.array(power), axis=1)
            assert abs(w @ np.prod(t ** np.array(power), axis=1) - want) <= tolerance * max(size, 1.0)


def check_product_order(rule, m):
    """Nodes run through the axis like the digits of a number: the last entry fastest, as documented."""
    axis = rule.points(1)[0][:, 0]
    want = np.array(list(itertools.product(axis, repeat=m)))
    np.testing.assert_array_equal(rule.points(m)[0], want)


def check_linear(model, x, integrator, tolerance):
    """log p and gradient of an affine decoder: the normal density that it has in closed form."""
    m, n = model.latent_dim, model.data_dim
    W, b = model.theta[: m * n].reshape(n, m), model.theta[m * n :]
    covariance = W @ W.T + model.sigma2 * np.eye(n)
    want = np.atleast_1d(stats.multivariate_normal(b, covariance).logpdf(x))
    result = ri.log_likelihood(model, x, integrator)
    assert relative_error(result.per_observation, want, 1.0) <= tolerance
    scores = autograd_model.linear_scores(m, n, model.theta, model.sigma2, x).sum(axis=0)
    size = contributions(model, x, ri.FixedNodes(*integrator.nodes(model, x)), density=False)
    assert relative_error(result.gradient.theta, scores[:-1], size[0]) <= tolerance
    assert relative_error(result.gradient.sigma2, scores[-1], size[1]) <= tolerance
    return result


def check_differences_are_exact(model, x, nodes):
    """log p from the decoder's float64 values, but in extended precision, is the float64 one: nothing
    cancels on the way from x - g(z) to log p."""
    g = model.decoder(model.theta, nodes.z).astype(np.longdouble)
    sigma2 = np.longdouble(model.sigma2)
    squared = ((x.astype(np.longdouble)[:, None, :] - g) ** 2).sum(axis=-1)
    z = nodes.z.astype(np.longdouble)
    m, n = z.shape[1], x.shape[1]
    two_pi = 2.0 * np.longdouble(np.pi)
    terms = -squared / (2.0 * sigma2) - n / 2.0 * np.log(two_pi * sigma2)
    terms += -(z**2).sum(axis=1) / 2.0 - m / 2.0 * np.log(two_pi) + nodes.log_weight
    top = terms.max(axis=1)
    want = top + np.log(np.exp(terms - top[:, None]).sum(axis=1))
    got = ri.log_likelihood(model, x, nodes, gradient=False).per_observation
    assert float(np.max(np.abs(got - want))) <= 1e-13 * float(np.max(np.abs(want)) + 1.0)


def check_honesty(true_error, reported, converged, beyond):
    """Among converged cases the reported error is never a tenth of the true one, and covers it in 99 %.

    ``beyond`` is what the truth itself may be off by.
    """
    true_error, reported = np.maximum(true_error - beyond, 0.0)[converged], reported[converged]
    assert len(true_error) >= 100  # otherwise 99 % says nothing
    assert (reported >= 0.1 * true_error).all()
    assert (reported >= true_error).mean() >= 0.99
