"""The ELBO and its gradients: against autograd, the complex step, finite differences and quadrature."""

import json
import tracemalloc
from dataclasses import dataclass, replace
from typing import NamedTuple

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from autograd.scipy.special import erfc
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import kinks_of, panels
from scipy import integrate, stats

from refica.activations import leaky_relu
from refica.decoders import MLP, Polynomial
from refica.encoder import encode
from refica.exact import affine_map
from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.rules import gauss_hermite
from refica.vae import (
    VAE,
    draws,
    elbo,
    elbo_and_gradient,
    elbo_quadrature,
    elbo_values,
    evidence,
    kl_to_prior,
)

AUTOGRAD = 1e-12  # same real arithmetic in another order
COMPLEX_STEP = 1e-11  # no cancellation in the step, but complex functions round differently
DIFFERENCES = 1e-6  # truncation of a five-point stencil; what rounding does to it is added
QUADRATURE = 1e-10  # scipy's quad at epsabs 1e-12
ROUNDING = 1e-13  # sums in another order
PANELS = 1e-12  # 2000 and more Gauss-Legendre nodes, and what lies beyond 12 standard deviations

KINK = 1e-6  # no pre-activation of the relu family closer to 0, where derivatives are a convention
KINK_STEP = 2e-2  # for finite differences, which must not step over one either

ACTIVATIONS = (
    "identity", "tanh", "sigmoid", "relu", "leaky_relu", "leaky_relu(0.3)", "leaky_relu(-0.7)", "gelu",
    "softplus", "sin",
)  # fmt: skip
KINKED = ("relu", "leaky_relu", "leaky_relu(0.3)", "leaky_relu(-0.7)")
PER_ACTIVATION = max(20, settings().max_examples // 5)  # ten activations: 200 models and more


# -----------------------------------------------------------------------------------------------------
# The same bound, written a second time: for autograd, term by term, sharing no code with refica
# -----------------------------------------------------------------------------------------------------

RECIPES = {
    "identity": lambda a: a,
    "tanh": anp.tanh,
    "sigmoid": lambda a: anp.exp(-anp.logaddexp(0.0, -a)),
    "relu": lambda a: anp.where(a > 0, a, 0 * a),
    "leaky_relu": lambda a: anp.where(a > 0, a, 0.01 * a),
    "leaky_relu(0.3)": lambda a: anp.where(a > 0, a, 0.3 * a),
    "leaky_relu(-0.7)": lambda a: anp.where(a > 0, a, -0.7 * a),
    "gelu": lambda a: 0.5 * a * erfc(-a / anp.sqrt(2.0)),  # 1 + erf, 1 + tanh would lose the left tail
    "softplus": lambda a: anp.logaddexp(0.0, a),
    "sin": anp.sin,
}


def network(spec, parameters, inputs, kinks=None):
    """A perceptron applied to one input vector; distances of kinked pre-activations go to ``kinks``."""
    h, at = inputs, 0
    names = [spec.activation] * (len(spec.sizes) - 2) + [spec.output]
    for fan_in, fan_out, name in zip(spec.sizes[:-1], spec.sizes[1:], names, strict=True):
        W = anp.reshape(parameters[at : at + fan_in * fan_out], (fan_out, fan_in))
        b = parameters[at + fan_in * fan_out : at + (fan_in + 1) * fan_out]
        at += (fan_in + 1) * fan_out
        a = anp.dot(W, h) + b
        if kinks is not None and name in KINKED:
            kinks.extend(abs(a))
        h = RECIPES[name](a)
    return h


def one_term(case, theta, sigma2, phi, i, draw, kinks=None):
    """log p(x_i | z_il) - KL_i of one observation and draw: the ELBO is the mean of these over draws."""
    m, n = case.decoder.sizes[0], case.decoder.sizes[-1]
    out = network(case.encoder, phi, case.x[i], kinks)
    mean, sd = out[:m], anp.exp(out[m:] / 2)
    g = network(case.decoder, theta, mean + sd * case.noise[draw, i], kinks)
    log_density = sum(
        -0.5 * anp.log(2 * anp.pi * sigma2) - (case.x[i, d] - g[d]) ** 2 / sigma2 / 2 for d in range(n)
    )
    kl = sum(-anp.log(sd[j]) + (sd[j] ** 2 + mean[j] ** 2) / 2 - 0.5 for j in range(m))
    return log_density - kl


GRADIENTS = grad(one_term, (1, 2, 3))


# -----------------------------------------------------------------------------------------------------
# Random cases
# -----------------------------------------------------------------------------------------------------


class Net(NamedTuple):
    sizes: tuple
    activation: str
    output: str = "identity"

    def build(self):
        return MLP(self.sizes, self.activation, self.output)


@dataclass
class Case:
    decoder: Net
    encoder: Net
    theta: np.ndarray
    sigma2: float
    phi: np.ndarray
    x: np.ndarray
    noise: np.ndarray

    @property
    def arguments(self):
        """What the plain formulas take."""
        return (
            self.decoder.build(), self.encoder.build(), self.theta, self.sigma2, self.phi, self.x, self.noise,
        )  # fmt: skip

    @property
    def vae(self):
        model = NonlinearICA(self.decoder.build(), self.theta, self.sigma2)
        return VAE(model, self.encoder.build(), self.phi)


@st.composite
def cases(draw, activation):
    m, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    widths = st.lists(st.integers(1, 4), max_size=3)
    decoder = Net((m, *draw(widths), n), activation, draw(st.sampled_from(("identity", *ACTIVATIONS))))
    encoder = Net((n, *draw(widths), 2 * m), draw(st.sampled_from(ACTIVATIONS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    N, L = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Case(
        decoder,
        encoder,
        decoder.build().init(rng),
        10.0 ** draw(st.floats(-3, 1)),
        0.5 * encoder.build().init(rng),
        rng.standard_normal((N, n)),
        rng.standard_normal((L, N, m)),
    )


def distance_to_kinks(case):
    kinks = [np.inf]
    for i in range(case.noise.shape[1]):
        for draw in range(len(case.noise)):
            one_term(case, case.theta, case.sigma2, case.phi, i, draw, kinks)
    return min(kinks)


def autograd_terms(case):
    """Value and gradients of every term / L: dicts of arrays with the terms along the first axis."""
    L, N, _ = case.noise.shape
    terms = {"value": [], "theta": [], "sigma2": [], "phi": []}
    for i in range(N):
        for draw in range(L):
            arguments = case, case.theta, case.sigma2, case.phi, i, draw
            for name, term in zip(terms, (one_term(*arguments), *GRADIENTS(*arguments)), strict=True):
                terms[name].append(np.atleast_1d(term) / L)
    return {name: np.array(arrays) for name, arrays in terms.items()}


def relative_errors(case, value_and_gradient):
    """‖a - b‖ / max(‖b‖, scale), scale the size of the summed terms (mathematics, section 2)."""
    values, by = value_and_gradient(*case.arguments)
    found = {"value": values.sum(), "theta": by.theta, "sigma2": by.sigma2, "phi": by.phi}
    terms = autograd_terms(case)
    errors = {}
    for name, each in terms.items():
        difference = np.abs(found[name] - each.sum(axis=0)).max()
        scale = np.abs(each).sum(axis=0).max()
        errors[name] = difference / scale if difference else 0.0
    return errors


def scales(case, weight=None):
    """The size of the summed terms, from refica itself (the comparison with autograd covers it)."""
    L, N, _ = case.noise.shape
    weight = np.full(L, 1.0 / L) if weight is None else weight
    *model, x, noise = case.arguments
    sizes = {"value": 0.0, "theta": 0.0, "sigma2": 0.0, "phi": 0.0}
    for i in range(N):
        for draw in range(L):
            values, by = elbo_and_gradient(*model, x[i : i + 1], noise[draw : draw + 1, i : i + 1])
            for name, term in {"value": values[0], **by._asdict()}.items():
                sizes[name] = sizes[name] + np.abs(term) * weight[draw]
    return {name: np.max(size) for name, size in sizes.items()}


# -----------------------------------------------------------------------------------------------------
# Gradients, three ways
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_value_and_gradient_against_autograd(activation):
    @settings(max_examples=PER_ACTIVATION)
    @given(cases(activation))
    def check(case):
        assume(distance_to_kinks(case) > KINK)
        errors = relative_errors(case, elbo_and_gradient)
        assert max(errors.values()) <= AUTOGRAD, errors

    check()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_against_the_complex_step(activation):
    step = 1e-30

    @settings(max_examples=PER_ACTIVATION)
    @given(cases(activation))
    def check(case):
        assume(distance_to_kinks(case) > KINK)
        decoder, encoder, theta, sigma2, phi, x, noise = case.arguments
        _, by = elbo_and_gradient(*case.arguments)
        scale = scales(case)

        def slope(dtheta, dsigma2, dphi):
            values = elbo_values(decoder, encoder, theta + dtheta, sigma2 + dsigma2, phi + dphi, x, noise)
            return values.sum().imag / step

        found = np.array([slope(e, 0.0, 0.0) for e in 1j * step * np.eye(len(theta))])
        assert np.abs(found - by.theta).max() <= COMPLEX_STEP * scale["theta"]
        found = np.array([slope(0.0, 0.0, e) for e in 1j * step * np.eye(len(phi))])
        assert np.abs(found - by.phi).max() <= COMPLEX_STEP * scale["phi"]
        assert abs(slope(0.0, 1j * step, 0.0) - by.sigma2) <= COMPLEX_STEP * scale["sigma2"]

    check()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_against_finite_differences(activation):
    h = 1e-4

    @settings(max_examples=PER_ACTIVATION // 2)
    @given(cases(activation), st.integers(0, 2**32))
    def check(case, seed):
        assume(distance_to_kinks(case) > KINK_STEP)
        decoder, encoder, theta, sigma2, phi, x, noise = case.arguments
        _, by = elbo_and_gradient(*case.arguments)
        scale = scales(case)
        rng = np.random.default_rng(seed)

        def slope(dtheta, dsigma2, dphi):
            f = [
                elbo_values(
                    decoder, encoder, theta + t * dtheta, sigma2 + t * dsigma2, phi + t * dphi, x, noise
                ).sum()
                for t in (-2 * h, -h, h, 2 * h)
            ]
            return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)

        rounding = 10 * np.finfo(float).eps * scale["value"] / h

        d = rng.standard_normal(len(theta))
        d /= np.abs(d).sum()
        assert abs(slope(d, 0.0, 0.0) - by.theta @ d) <= DIFFERENCES * scale["theta"] + rounding
        d = rng.standard_normal(len(phi))
        d /= np.abs(d).sum()
        assert abs(slope(0.0, 0.0, d) - by.phi @ d) <= DIFFERENCES * scale["phi"] + rounding
        # a step relative to sigma2, so that it stays positive
        difference = abs(slope(0.0, sigma2, 0.0) - by.sigma2 * sigma2)
        assert difference <= DIFFERENCES * scale["sigma2"] * sigma2 + rounding

    check()


# a fault planted in the gradient or the value, by name: what it replaces in refica.vae, and with what
def wrong_vjp(self, theta, z, cotangent, right=MLP.vjp):
    theta_bar, z_bar = right(self, theta, z, cotangent)
    return 1.0005 * theta_bar, z_bar


def wrong_tile_gradient(change):
    right = evidence._tile_gradient

    def wrong(decoder, encoder, theta, sigma2, phi, x, tile, kl_weight):
        return change(right(decoder, encoder, theta, sigma2, phi, x, tile, kl_weight), sigma2, tile)

    return wrong


def same_noise_for_all(decoder, theta, mu, log_s2, x, noise, right=draws.draw):
    return right(decoder, theta, mu, log_s2, x, np.broadcast_to(noise[:, :1], noise.shape))


FAULTS = {
    "a vjp off by 0.05 %": (MLP, "vjp", wrong_vjp),
    "a lost half in the KL": (evidence, "kl_to_prior", lambda mu, a: 2 * kl_to_prior(mu, a)),
    "the KL with its sign changed": (evidence, "kl_to_prior", lambda mu, a: -kl_to_prior(mu, a)),
    "sigma in place of sigma2": (
        evidence,
        "log_likelihood_given",
        lambda squared, sigma2, n: -0.5 * squared / sigma2 - 0.5 * n * np.log(2 * np.pi * np.sqrt(sigma2)),
    ),
    "the derivative in sigma in place of sigma2": (
        evidence,
        "_tile_gradient",
        wrong_tile_gradient(lambda by, sigma2, tile: by._replace(sigma2=by.sigma2 * 2 * np.sqrt(sigma2))),
    ),
    "a mean over observations for their sum": (
        evidence,
        "_tile_gradient",
        wrong_tile_gradient(lambda by, sigma2, tile: by._replace(theta=by.theta / len(tile.draws.z))),
    ),
    "the log variance taken for the log standard deviation": (
        draws,
        "soft_clamp",
        lambda a: (2 * a, 2 * np.ones_like(a)),
    ),
    "noise reused for all observations": (evidence, "draw", same_noise_for_all),
}


@pytest.fixture
def case():
    rng = np.random.default_rng(5)
    decoder, encoder = Net((2, 4, 3), "tanh"), Net((3, 4, 4), "tanh")
    return Case(
        decoder, encoder, decoder.build().init(rng), 0.1, encoder.build().init(rng),
        rng.standard_normal((4, 3)), rng.standard_normal((2, 4, 2)),
    )  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_the_comparison(fault, case, monkeypatch):
    assert max(relative_errors(case, elbo_and_gradient).values()) <= AUTOGRAD
    monkeypatch.setattr(*FAULTS[fault])
    assert max(relative_errors(case, elbo_and_gradient).values()) > 1e-5


# -----------------------------------------------------------------------------------------------------
# Without noise, and with a weight on the KL
# -----------------------------------------------------------------------------------------------------


def at_gauss_nodes(case, order):
    """The case with Gauss-Hermite nodes as its noise, and their weights."""
    _, N, m = case.noise.shape
    t, weight = evidence.nodes_of(gauss_hermite(order), m)
    return replace(case, noise=np.repeat(t[:, None], N, axis=1)), weight


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_by_quadrature_against_the_complex_step(activation):
    step = 1e-30

    @settings(max_examples=PER_ACTIVATION)
    @given(cases(activation), st.sampled_from((1, 2, 3)), st.sampled_from((0.0, 0.3, 1.0, 4.0)))
    def check(case, order, kl_weight):
        case, weight = at_gauss_nodes(case, order if case.noise.shape[2] < 3 else min(order, 2))
        assume(distance_to_kinks(case) > KINK)
        decoder, encoder, theta, sigma2, phi, x, noise = case.arguments
        _, by = elbo_and_gradient(*case.arguments, weight, kl_weight)
        scale = scales(case, weight)

        def slope(dtheta, dsigma2, dphi):
            values = elbo_values(
                decoder, encoder, theta + dtheta, sigma2 + dsigma2, phi + dphi, x, noise, weight, kl_weight
            )
            return values.sum().imag / step

        found = np.array([slope(e, 0.0, 0.0) for e in 1j * step * np.eye(len(theta))])
        assert np.abs(found - by.theta).max() <= COMPLEX_STEP * scale["theta"]
        found = np.array([slope(0.0, 0.0, e) for e in 1j * step * np.eye(len(phi))])
        assert np.abs(found - by.phi).max() <= COMPLEX_STEP * scale["phi"]
        assert abs(slope(0.0, 1j * step, 0.0) - by.sigma2) <= COMPLEX_STEP * scale["sigma2"]

    check()


def test_by_quadrature_means_at_gauss_hermite_nodes(case):
    nodes, weight = at_gauss_nodes(case, 6)
    values, by = elbo_and_gradient(*nodes.arguments, weight, 0.7)
    bound = elbo_quadrature(case.vae, case.x, 6, kl_weight=0.7)
    assert np.array_equal(bound.per_observation, values)
    assert bound.total == pytest.approx(values.sum(), rel=ROUNDING)
    for one, other in zip(bound.gradient, by, strict=True):
        assert np.array_equal(one, other)
    without = elbo_quadrature(case.vae, case.x, 6, gradient=False, kl_weight=0.7)
    assert np.array_equal(without.per_observation, values)
    assert without.gradient is None


def elbo_by_panels(vae, x):
    """∫ q(z) (log p(x, z) - log q(z)) dz of one observation, m = 1, by Gauss-Legendre panels cut at kinks."""
    mu, log_s2 = encode(vae.encoder, vae.phi, x)
    q = stats.norm(mu[0, 0], np.exp(0.5 * log_s2[0, 0]))
    edges = q.mean() + q.std() * np.linspace(-12, 12, 121)
    kinks = kinks_of(vae.model)
    inside = kinks[(kinks > edges[0]) & (kinks < edges[-1])]
    z, log_w = panels(np.unique(np.concatenate([edges, inside])))
    log_q = q.logpdf(z[:, 0])
    return np.exp(log_w + log_q) @ (vae.model.log_joint(x, z)[0] - log_q)


@pytest.mark.parametrize("activation", ["tanh", "sin", "softplus", "relu", "leaky_relu(-0.7)"])
def test_by_quadrature_is_the_integral_to_within_its_error(activation):
    errors = []
    for seed in range(20):
        vae, rng = random_vae(seed, sigma2=10.0 ** (seed % 4 - 3), activation=activation)
        x = vae.model.sample(1, rng)[1]
        truth = elbo_by_panels(vae, x)
        for order in (4, 20, 60):
            bound = elbo_quadrature(vae, x, order, gradient=False)
            assert abs(bound.total - truth) <= bound.error[0] + PANELS * abs(truth)
            assert bound.converged[0] == (bound.error[0] <= evidence.DISAGREEMENT)
        errors.append(bound.error[0] / abs(truth))
    if activation in ("tanh", "sin", "softplus"):  # and it is not idle caution
        assert np.median(errors) <= 1e-3


def wide_case(seed):
    """m = 2: a decoder, often with large weights, and a q from narrow to as wide as the prior; one x."""
    rng = np.random.default_rng([seed, 2, 7])
    kind = ("tanh", "sin", "relu", "softplus", "leaky_relu", "gelu", "sigmoid", "polynomial")[seed % 8]
    n = int(rng.integers(1, 5))
    decoder = Polynomial(2, n, 3) if kind == "polynomial" else MLP((2, int(rng.integers(2, 9)), n), kind)
    theta = decoder.init(rng) * rng.choice([1.0, 1.0, 3.0])
    model = NonlinearICA(decoder, theta, 10.0 ** rng.uniform(-3, 1))
    x = model.sample(1, rng)[1]
    encoder = MLP((n, 4, 4))
    phi = encoder.init(rng)
    if seed % 3:
        phi[-2:] -= rng.uniform(0, 5, 2)
    return VAE(model, encoder, phi), x


def elbo_by_a_dense_grid(vae, x, points):
    """E_q log p(x | z) - KL of one observation by a product of trapezoidal rules on [-9.3, 9.3]², m = 2."""
    mu, log_s2 = encode(vae.encoder, vae.phi, x)
    t = np.linspace(-9.3, 9.3, points)
    w = stats.norm.pdf(t) * 18.6 / (points - 1)
    z = np.stack(np.meshgrid(t, t, indexing="ij"), axis=-1).reshape(-1, 2) * np.exp(0.5 * log_s2) + mu
    squared = ((x - vae.model.decoder(vae.model.theta, z)) ** 2).sum(axis=1).reshape(points, points)
    sigma2 = vae.model.sigma2
    return (
        w @ (-0.5 * squared / sigma2) @ w
        - 0.5 * x.size * np.log(2 * np.pi * sigma2)
        - kl_to_prior(mu, log_s2)
    )


def uncovered(seeds):
    """Of cases that are called converged, those farther from a dense grid than they say."""
    found = []
    for seed in seeds:
        vae, x = wide_case(seed)
        bound = elbo_quadrature(vae, x, gradient=False)
        if bound.converged[0]:
            truth, coarser = (elbo_by_a_dense_grid(vae, x, points)[0] for points in (451, 351))
            off = abs(bound.total - truth) - bound.error[0] - abs(truth - coarser) - PANELS * abs(truth)
            found += [seed] if off > 0 else []
    return found


HARD = [22, 160, 420]  # of 600 those whose grids, of 33 points, were off to one side by more than their range


def test_two_latents_are_within_their_error(monkeypatch):
    """Another 600 were, when this was written (411 of them converged), by this same comparison."""
    assert uncovered([*HARD, *range(9)]) == []
    monkeypatch.setattr(evidence, "RANGES", 1.0)
    monkeypatch.setattr(evidence, "POINTS", {2: (33,)})
    assert uncovered(HARD) == HARD


def test_too_few_nodes_are_not_called_converged():
    vae, rng = random_vae(0, sigma2=1e-3)
    x = vae.model.sample(5, rng)[1]
    bound = elbo_quadrature(vae, x, order=2)
    assert not bound.converged.any()
    assert "not converged for 5 of 5 observations: the error estimate is above 0.01 nats" in bound.message


def test_the_weight_of_the_kl_is_what_it_says(case):
    q = encode(case.encoder.build(), case.phi, case.x)
    plain = elbo(case.vae, case.x, case.noise)
    for weight in (0.0, 0.5, 3.0):
        weighted = elbo(case.vae, case.x, case.noise, kl_weight=weight)
        off = weighted.per_observation - plain.per_observation - (1 - weight) * kl_to_prior(*q)
        assert np.abs(off).max() <= ROUNDING * np.abs(plain.per_observation).max()
        assert np.array_equal(weighted.gradient.theta, plain.gradient.theta)
    with pytest.raises(ValueError, match="kl_weight must be a finite number >= 0"):
        elbo(case.vae, case.x, case.noise, kl_weight=-1.0)


def test_the_order_must_be_an_integer(case):
    for bad in (0, 2.5, True):
        with pytest.raises((TypeError, ValueError), match="order must be an integer >= 1"):
            elbo_quadrature(case.vae, case.x, bad)
    with pytest.raises(TypeError, match="vae must be a VAE"):
        elbo_quadrature(case.vae.model, case.x)


# -----------------------------------------------------------------------------------------------------
# The divergence
# -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kl_cases():
    """Means, log variances (3, 2) and ∫ q (log q - log p) dz by quadrature, axis by axis, (3,)."""
    rng = np.random.default_rng(0)
    mu, log_s2 = rng.normal(0, 2, (3, 2)), rng.normal(-2, 2, (3, 2))
    expected = np.zeros(len(mu))
    for i, j in np.ndindex(*mu.shape):
        q, p = stats.norm(mu[i, j], np.exp(0.5 * log_s2[i, j])), stats.norm()
        span = 15 * q.std()

        def integrand(z, q=q, p=p):
            return q.pdf(z) * (q.logpdf(z) - p.logpdf(z))

        ends = mu[i, j] - span, mu[i, j] + span
        expected[i] += integrate.quad(integrand, *ends, epsabs=1e-12, epsrel=1e-12, limit=200)[0]
    return mu, log_s2, expected


def kl_error(kl, mu, log_s2, expected):
    return np.abs(kl(mu, log_s2) - expected).max()


def test_kl_against_quadrature(kl_cases):
    assert kl_error(kl_to_prior, *kl_cases) <= QUADRATURE


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mu, a: 2 * kl_to_prior(mu, a),  # a lost 1/2
        lambda mu, a: kl_to_prior(mu, a) - 0.25 * (mu**2).sum(axis=1),  # a half too many, in one term
        lambda mu, a: kl_to_prior(mu, a) / mu.shape[1],  # mean for sum
        lambda mu, a: kl_to_prior(mu, 2 * a),  # log variance taken for log standard deviation
        lambda mu, a: kl_to_prior(mu, a) + 0.5 * mu.shape[1],  # the -1 forgotten
        lambda mu, a: -kl_to_prior(mu, a),
    ],
)
def test_a_wrong_kl_is_caught(wrong, kl_cases):
    assert kl_error(wrong, *kl_cases) > 1e-3


def test_kl_vanishes_at_the_prior_and_loses_no_digits_nearby():
    assert kl_to_prior(np.zeros((1, 2)), np.zeros((1, 2)))[0] == 0.0
    a = 1e-7  # ½ (exp(a) - 1 - a) = a²/4 + ...
    assert kl_to_prior(np.zeros((1, 1)), np.full((1, 1), a))[0] == pytest.approx(
        a * a / 4, rel=1e-7, abs=1e-23
    )


# -----------------------------------------------------------------------------------------------------
# Bound and truth
# -----------------------------------------------------------------------------------------------------


def random_vae(seed, m=1, n=2, sigma2=0.1, activation="tanh"):
    rng = np.random.default_rng(seed)
    decoder, encoder = MLP((m, 6, n), activation), MLP((n, 5, 2 * m))
    vae = VAE(NonlinearICA(decoder, decoder.init(rng), sigma2), encoder, 0.5 * encoder.init(rng))
    return vae, rng


@pytest.mark.parametrize("seed", range(5))
def test_the_elbo_is_a_lower_bound(seed):
    vae, rng = random_vae(seed, sigma2=10.0 ** (0.5 * seed - 2), activation=ACTIVATIONS[seed + 1])
    _, x = vae.model.sample(6, rng)
    draws = np.array(
        [elbo(vae, x, rng.standard_normal((100, 6, 1)), gradient=False).per_observation for _ in range(50)]
    )
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    truth = log_likelihood(vae.model, x, gradient=False)
    assert (draws.mean(axis=0) <= truth.per_observation + 4 * error + truth.error).all()


def exact_posterior_vae(W, b, sigma2):
    """An affine model with an affine encoder that gives the best diagonal posterior, in closed form.

    Its precision is P = I + WᵀW/σ²; the best diagonal Gaussian has the variances 1/P_jj.
    """
    n, m = W.shape
    P = np.eye(m) + W.T @ W / sigma2
    means = np.linalg.solve(P, W.T / sigma2)
    encoder = MLP((n, 2 * m))
    weights = np.vstack([means, np.zeros((m, n))])
    phi = np.concatenate([weights.ravel(), -means @ b, -np.log(np.diag(P))])
    return VAE(NonlinearICA(MLP((m, n)), np.append(W.ravel(), b), sigma2), encoder, phi), P


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("sigma2", [1e-3, 0.1, 10.0])
def test_the_gap_of_an_affine_decoder_is_the_closed_form(m, sigma2):
    """0 for m = 1, where a diagonal Gaussian is the posterior; ½ (Σ log P_jj - log det P) otherwise."""
    rng = np.random.default_rng(m)
    W, b, x = rng.standard_normal((4, m)), rng.standard_normal(4), rng.standard_normal((5, 4))
    vae, P = exact_posterior_vae(W, b, sigma2)
    gap = 0.5 * (np.log(np.diag(P)).sum() - np.linalg.slogdet(P)[1])
    # 2m draws with the mean and the covariance of N(0, I) are exact: the integrand is quadratic
    draws = np.sqrt(m) * np.concatenate([np.eye(m), -np.eye(m)])
    bound = elbo(vae, x, np.repeat(draws[:, None], len(x), axis=1))
    covariance = W @ W.T + sigma2 * np.eye(4)
    truth = stats.multivariate_normal(b, covariance).logpdf(x)
    assert np.abs(affine_map(vae.model)[0] - W).max() == 0
    assert np.abs(bound.per_observation + gap - truth).max() <= 1e-11 * np.abs(truth).max()
    if m == 1:
        assert gap == pytest.approx(0, abs=1e-15)
        # q is the posterior: the gap is stationary, and Fisher's identity gives the gradient of log p
        exact = log_likelihood(vae.model, x).gradient
        assert np.abs(bound.gradient.theta - exact.theta).max() <= 1e-10 * np.abs(exact.theta).max()
        assert bound.gradient.sigma2 == pytest.approx(exact.sigma2, rel=1e-10)
        assert np.abs(bound.gradient.phi).max() <= 1e-10 * np.abs(exact.theta).max()


# -----------------------------------------------------------------------------------------------------
# Blocks
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("N", "L"), [(2500, 1), (300, 7), (3, 600), (2, 2500)])
def test_blocks_change_nothing(N, L, monkeypatch):
    vae, rng = random_vae(3, m=2, n=3)
    x, noise = rng.standard_normal((N, 3)), rng.standard_normal((L, N, 2))
    blocked = elbo(vae, x, noise)
    assert np.array_equal(blocked.per_observation, elbo(vae, x, noise, gradient=False).per_observation)
    assert blocked.total == pytest.approx(blocked.per_observation.sum(), rel=1e-13)
    monkeypatch.setattr(evidence, "DECODER_ROWS", 10**9)
    monkeypatch.setattr(draws, "DECODER_ROWS", 10**9)
    whole = elbo(vae, x, noise)
    assert np.abs(blocked.per_observation / whole.per_observation - 1).max() <= ROUNDING
    for name in ("theta", "sigma2", "phi"):
        one, other = getattr(blocked.gradient, name), getattr(whole.gradient, name)
        assert np.abs(one - other).max() <= 1e-12 * np.abs(other).max()


@pytest.mark.parametrize(("N", "order"), [(120, 3), (2, 40)])
def test_blocks_change_nothing_by_quadrature(N, order, monkeypatch):
    vae, rng = random_vae(3, m=2, n=3)
    x = rng.standard_normal((N, 3))
    blocked = elbo_quadrature(vae, x, order)
    monkeypatch.setattr(evidence, "DECODER_ROWS", 10**9)
    monkeypatch.setattr(draws, "DECODER_ROWS", 10**9)
    whole = elbo_quadrature(vae, x, order)
    assert np.abs(blocked.per_observation / whole.per_observation - 1).max() <= ROUNDING
    for one, other in zip(blocked.gradient, whole.gradient, strict=True):
        assert np.abs(one - other).max() <= 1e-12 * np.abs(other).max()


def test_the_order_of_the_observations_changes_nothing():
    vae, rng = random_vae(4)
    x, noise = rng.standard_normal((3000, 2)), rng.standard_normal((1, 3000, 1))
    order = rng.permutation(3000)
    one, other = elbo(vae, x, noise), elbo(vae, x[order], noise[:, order])
    assert np.abs(one.per_observation[order] / other.per_observation - 1).max() <= ROUNDING
    assert one.total == pytest.approx(other.total, rel=ROUNDING)


def peak_memory(function, *arguments):
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_whatever_the_number_of_observations():
    vae, rng = random_vae(1)
    N = 200_000
    x, noise = rng.standard_normal((N, 2)), rng.standard_normal((1, N, 1))
    # the result itself is 1.6 MB; one hidden layer of all observations would be 10 MB
    assert peak_memory(elbo, vae, x, noise) <= 20e6
    vae, rng = random_vae(1, m=2)
    x = rng.standard_normal((40, 2))
    # the latents of all observations would be 40 · 1600 · 2 floats, 1 MB, and a hidden layer 3 MB
    assert peak_memory(elbo_quadrature, vae, x, 40) <= 1e6


# -----------------------------------------------------------------------------------------------------
# The encoder's log variance
# -----------------------------------------------------------------------------------------------------


def test_log_variances_are_the_outputs_themselves_up_to_30_and_bounded_beyond():
    encoder = MLP((1, 2))
    a = np.array([-1e300, -1e3, -45.0, -30.0, -7.3, 0.0, 30.0, 31.0, 45.0, 1e300])
    mean, log_s2 = encode(encoder, np.array([0.0, 1.0, 2.5, 0.0]), a[:, None])
    assert (mean == 2.5).all()
    inside = np.abs(a) <= 30
    assert np.array_equal(log_s2[inside, 0], a[inside])
    assert np.abs(log_s2).max() <= 40
    assert (np.diff(log_s2[:, 0]) >= 0).all()


@pytest.mark.parametrize("bias", [-60.0, -33.0, -30.0, 29.999, 30.0, 34.0, 60.0])
def test_the_bent_log_variance_has_the_right_derivative(bias):
    rng = np.random.default_rng(0)
    decoder, encoder = MLP((1, 2)), MLP((2, 2))
    theta = 1e-6 * decoder.init(rng)  # exp(±35) goes into z
    phi = np.array([0.1, -0.2, 0.01, 0.02, 0.3, bias])
    x, noise = rng.standard_normal((4, 2)), rng.standard_normal((3, 4, 1))
    _, by = elbo_and_gradient(decoder, encoder, theta, 0.5, phi, x, noise)
    step = 1e-30
    found = [
        elbo_values(decoder, encoder, theta, 0.5, phi + 1j * step * e, x, noise).sum().imag / step
        for e in np.eye(6)
    ]
    assert np.abs(found - by.phi).max() <= COMPLEX_STEP * np.abs(by.phi).max()


def test_an_encoder_far_off_overflows_nowhere():
    decoder, encoder = MLP((1, 3, 2)), MLP((2, 2))
    model = NonlinearICA(decoder, decoder.init(0), 0.1)
    for bias in (-1e4, 1e4):
        vae = VAE(model, encoder, [0.0, 0.0, 0.0, 0.0, 0.0, bias])
        bound = elbo(vae, np.ones((2, 2)), np.ones((1, 2, 1)))
        assert np.isfinite(bound.per_observation).all()
        assert np.isfinite(bound.gradient.phi).all()


# -----------------------------------------------------------------------------------------------------
# The value itself
# -----------------------------------------------------------------------------------------------------


def test_a_vae_is_frozen_and_keeps_its_own_phi():
    vae, rng = random_vae(0)
    with pytest.raises(AttributeError):
        vae.phi = 0
    with pytest.raises(ValueError, match="read-only"):
        vae.phi[0] = 1.0
    phi = rng.standard_normal(len(vae.phi))
    other = vae.replace(phi=phi)
    phi[:] = 0
    assert other.phi.all()
    assert other.model is vae.model
    model = vae.model.replace(sigma2=3.0)
    assert vae.replace(model=model).model is model
    assert np.array_equal(vae.replace(model=model).phi, vae.phi)


@pytest.mark.parametrize("decoder", [MLP((2, 3, 4), "leaky_relu(0.3)"), Polynomial(2, 4, 3)])
def test_json_gives_back_the_same_vae_bit_for_bit(decoder):
    rng = np.random.default_rng(0)
    encoder = MLP((4, 5, 4), leaky_relu(0.1))
    vae = VAE(NonlinearICA(decoder, decoder.init(rng), 1 / 3), encoder, encoder.init(rng) / 3)
    back = VAE.from_dict(json.loads(json.dumps(vae.to_dict())))
    assert back.encoder == encoder
    assert back.model.decoder == decoder
    assert back.model.sigma2 == vae.model.sigma2
    assert np.array_equal(back.phi, vae.phi)
    assert np.array_equal(back.model.theta, vae.model.theta)
    x, noise = rng.standard_normal((3, 4)), rng.standard_normal((1, 3, 2))
    assert np.array_equal(elbo(back, x, noise).per_observation, elbo(vae, x, noise).per_observation)
    assert back.to_dict() == vae.to_dict()


def test_an_incomplete_description_is_refused():
    description = random_vae(0)[0].to_dict()
    del description["phi"], description["encoder"]
    with pytest.raises(ValueError, match="the description of a VAE lacks encoder, phi"):
        VAE.from_dict(description)


def test_what_does_not_fit_is_refused():
    vae, _ = random_vae(0)
    model, encoder, phi = vae.model, vae.encoder, vae.phi
    with pytest.raises(ValueError, match=r"encoder must have 2 inputs .* and 2 outputs .*, got 2 and 1"):
        VAE(model, MLP((2, 1)), np.zeros(3))
    with pytest.raises(ValueError, match=r"got 1 and 2; use for instance MLP\(\(2, 16, 2\)\)"):
        VAE(model, MLP((1, 2)), np.zeros(4))
    with pytest.raises(TypeError, match="encoder must be an MLP"):
        VAE(model, "mlp", phi)
    with pytest.raises(TypeError, match="model must be a NonlinearICA"):
        VAE(encoder, encoder, phi)
    with pytest.raises(ValueError, match="phi must have shape"):
        VAE(model, encoder, phi[1:])
    with pytest.raises(ValueError, match="phi must be finite"):
        VAE(model, encoder, phi * np.nan)


def test_bad_data_and_noise_are_refused():
    vae, _ = random_vae(0)
    x, noise = np.zeros((3, 2)), np.zeros((2, 3, 1))
    for bad in (noise[0], noise[:, :2], noise[:0], np.zeros((2, 3, 2))):
        with pytest.raises(ValueError, match=r"noise must have shape \(L, 3, 1\)"):
            elbo(vae, x, bad)
    with pytest.raises(TypeError, match="noise must be an array of real numbers"):
        elbo(vae, x, noise + 0j)
    with pytest.raises(ValueError, match="x must be finite"):
        elbo(vae, x + np.inf, noise)
    with pytest.raises(TypeError, match="x must be an array of real numbers"):
        elbo(vae, x + 0j, noise)


def test_lists_float32_and_read_only_arrays_are_accepted():
    vae, rng = random_vae(0)
    x = rng.standard_normal((3, 2)).astype(np.float32)
    noise = np.asfortranarray(rng.standard_normal((2, 3, 1)).astype(np.float32))
    x.setflags(write=False)
    noise.setflags(write=False)
    expected = elbo(vae, x.astype(float), noise.astype(float))
    for one, other in ((x, noise), (x.tolist(), noise.tolist())):
        bound = elbo(vae, one, other)
        assert np.array_equal(bound.per_observation, expected.per_observation)
        assert bound.total == expected.total
        assert type(bound.total) is float
        assert type(bound.gradient.sigma2) is float
    assert elbo(vae, x, noise, gradient=False).gradient is None
