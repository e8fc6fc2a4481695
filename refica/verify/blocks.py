"""What everything stands on: activations, decoders and their derivatives, densities, rules, nodes."""

# notation: K nodes, n data, m latent; a pre-activation; t, w a rule's nodes and weights

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import stats

from refica.activations import ACTIVATIONS
from refica.decoders import MLP, Decoder, Polynomial
from refica.model import log_likelihood_given, log_prior, squared_distances
from refica.proposals import Gaussians, place
from refica.quadrature import Quadrature
from refica.rules import Rule, gauss_hermite, monte_carlo, sobol, uniform_grid
from refica.testing.gradients import STEP
from refica.validation import Array
from refica.verify import formulas
from refica.verify.cases import THETA, Setting
from refica.verify.findings import Check, Note, Observed, Tolerance, agree, slope_of
from refica.verify.routes import (
    AUTOGRAD,
    COMPLEX,
    ROUNDING,
    SAMPLING,
    WITHOUT_AUTOGRAD,
    derivative_tolerance,
    differentiable,
    partials,
    route_name,
    slope_along,
    takes_complex,
)

__all__ = ["CHECKS"]

EXACT = Tolerance(1e-13, "sums of squares of differences: nothing cancels")
RULE = Tolerance(1e-11, "moments up to the fourth: sums of positive terms, and 3e-12 beyond the grid")

BUILT_IN = (
    MLP((2, 3, 2), "tanh", output_activation="sigmoid"),
    MLP((3, 2, 3, 2), "softplus", output_activation="tanh"),
    MLP((2, 2), "identity"),
    MLP((1, 4, 2), "relu"),
    MLP((2, 3, 1), "leaky_relu"),
    Polynomial(2, 2, 3),
)


DETERMINISTIC: tuple[Rule, ...] = (
    gauss_hermite(5), gauss_hermite(12), uniform_grid(41, 9.0), uniform_grid(60, 9.0)
)  # fmt: skip


def _activations(setting: Setting) -> Iterator[Observed | Note]:
    rng, auto = setting.rng(1), differentiable()
    for name, act in ACTIVATIONS.items():
        value, slope = formulas.ACTIVATIONS[name]
        wide = np.concatenate([rng.uniform(-6.0, 6.0, 40), [-40.0, 37.5, 200.0]])
        wide = wide[np.abs(wide) > 1e-3]
        want = np.array([value(float(a)) for a in wide])
        yield agree("values", "one by one by the mathematics library", act(wide), want, ROUNDING)
        a, derivative = wide[:-3], act.derivative(wide[:-3])
        want = np.array([slope(float(each)) for each in a])
        yield agree("derivatives", "one by one by the mathematics library", derivative, want, ROUNDING)
        yield agree("derivatives", "complex step", derivative, np.imag(act(a + 1j * STEP)) / STEP, COMPLEX)
        if auto is not None:
            yield agree("derivatives", "autograd", derivative, auto.activation_slope(name, a), AUTOGRAD)
    if auto is None:
        yield Note(WITHOUT_AUTOGRAD)


def _decoder_value(setting: Setting) -> Iterator[Observed | Note]:
    rng, auto = setting.rng(2), differentiable()
    for decoder in BUILT_IN:
        theta, z = rng.standard_normal(decoder.n_params), rng.standard_normal((5, decoder.latent_dim))
        if isinstance(decoder, Polynomial):
            want = formulas.polynomial(decoder.latent_dim, decoder.data_dim, decoder.degree, theta, z)
        else:
            names = [act.name for act in (decoder.activation, decoder.output_activation)]
            layers = [names[0]] * (len(decoder.sizes) - 2) + names[1:]
            want = formulas.network(decoder.sizes, layers, theta, z)
        yield agree("g(z)", "unit by unit, monomial by monomial", decoder(theta, z), want, ROUNDING)
        if auto is not None:
            again = auto.decode(decoder, theta, z)
            yield agree("g(z)", "rewritten for autograd", decoder(theta, z), again, ROUNDING)
    for case in setting.cases:
        z = rng.standard_normal((4, case.model.latent_dim))
        each = np.concatenate([case.model.decoder(case.model.theta, row[None]) for row in z])
        yield agree("g of many z", "one z at a time", case.model.decoder(case.model.theta, z), each, ROUNDING)
    if setting.decoder is not None:
        yield Note("the decoder is the user's: what it computes is its own definition")


def _decoder_derivative(setting: Setting) -> Iterator[Observed | Note]:
    rng = setting.rng(3)
    for case in setting.cases:
        yield from _derivatives_of(case.model.decoder, case.model.theta, rng, takes_complex(case))
    for decoder in BUILT_IN if setting.decoder is None else ():
        yield from _derivatives_of(decoder, rng.standard_normal(decoder.n_params), rng, True)
    if differentiable() is None:
        yield Note(WITHOUT_AUTOGRAD)


def _derivatives_of(
    decoder: Decoder, theta: Array, rng: np.random.Generator, analytic: bool
) -> Iterator[Observed]:
    """vjp and jvp of a decoder against the complex step, each other, autograd and Taylor remainders."""
    d, z = decoder, 1.2 * rng.standard_normal((4, decoder.latent_dim))
    c, flat = rng.standard_normal((4, d.data_dim)), z.ravel()
    dtheta, dz = rng.standard_normal(len(theta)), rng.standard_normal(z.shape)
    theta_bar, z_bar = d.vjp(theta, z, c)
    moved = d.jvp(theta, z, dtheta, dz)

    def of_theta(t: Array) -> Array:
        return np.asarray(d(t, z))

    def of_z(u: Array) -> Array:
        return np.asarray(d(theta, u.reshape(z.shape)))

    by_theta, by_z = partials(of_theta, theta, analytic=analytic), partials(of_z, flat, analytic=analytic)
    route, tolerance = route_name(analytic), derivative_tolerance(analytic)
    yield agree("vjp in θ", route, theta_bar, np.einsum("jkn,kn->j", by_theta, c), tolerance, 1.0)
    yield agree("vjp in z", route, z_bar.ravel(), np.einsum("jkn,kn->j", by_z, c), tolerance, 1.0)
    want = np.einsum("jkn,j->kn", by_theta, dtheta) + np.einsum("jkn,j->kn", by_z, dz.ravel())
    yield agree("jvp", route, moved, want, tolerance, 1.0)
    left, right = float((c * moved).sum()), float(theta_bar @ dtheta + (z_bar * dz).sum())
    size = float(np.abs(c * moved).sum() + np.abs(theta_bar * dtheta).sum() + 1.0)
    yield agree("c · jvp", "vjp · direction", left, right, ROUNDING, size)
    auto = differentiable()
    if auto is not None and auto.knows(d):
        by = auto.decoder_gradient(d, theta, z, c)
        yield agree("vjp in θ", "autograd", theta_bar, by[0], AUTOGRAD, 1.0)
        yield agree("vjp in z", "autograd", z_bar, by[1], AUTOGRAD, 1.0)
    yield slope_of("vjp in θ", slope_along(lambda t: (c * of_theta(t)).sum(), theta_bar, theta, rng))


def _conditional(setting: Setting) -> Iterator[Observed]:
    rng = setting.rng(4)
    for n, sigma2 in ((1, 0.3), (2, 0.05), (3, 4.0)):
        x, g = rng.standard_normal((3, n)), rng.standard_normal((4, n))
        squared = squared_distances(x, g)
        r2 = formulas.squared_norm(formulas.residuals(x, g))
        yield agree("‖x - g‖²", "the sum of squares", squared, r2, ROUNDING)
        found = log_likelihood_given(r2, sigma2, n)
        product = np.log(formulas.normal(x[:, None], g[None], sigma2))
        yield agree("log p(x | z)", "log of a product of n normal densities", found, product, ROUNDING, 1.0)
        other = np.array(
            [stats.multivariate_normal(mean, sigma2 * np.eye(n)).logpdf(x).reshape(len(x)) for mean in g]
        )
        yield agree("log p(x | z)", "scipy's multivariate normal", found, other.T, ROUNDING, 1.0)
    x, g = 10.0 + 1e-3 * rng.standard_normal((3, 2)), 10.0 + 1e-3 * rng.standard_normal((4, 2))
    exact = np.array(
        [[math.fsum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)) for b in g] for a in x]
    )
    own = squared_distances(x, np.broadcast_to(g, (3, 4, 2)))
    yield agree("‖x - g‖² at an offset of 10", "correctly rounded", squared_distances(x, g), exact, EXACT)
    yield agree("‖x - g‖², nodes of its own", "correctly rounded", own, exact, EXACT)


def _prior(setting: Setting) -> Iterator[Observed]:
    rng = setting.rng(5)
    for m in (1, 2, 3):
        z = rng.standard_normal((4, m))
        found = log_prior(z)
        want = np.log(formulas.normal(z, 0.0, 1.0))
        yield agree("log p(z)", "log of a product of m normal densities", found, want, ROUNDING, 1.0)
        other = stats.norm.logpdf(z).sum(axis=1)
        yield agree("log p(z)", "scipy's normal", found, other, ROUNDING, 1.0)


def _rules(setting: Setting) -> Iterator[Observed]:
    for rule in DETERMINISTIC:
        for m in (1, 2):
            t, log_w = rule.points(m)
            w = np.exp(log_w)
            got = [w.sum(), *(t**2 * w[:, None]).sum(axis=0), *(t**4 * w[:, None]).sum(axis=0)]
            got.append(w @ (t[:, 0] ** 2 * t[:, -1] ** 2))
            want = [1.0, *[1.0] * m, *[3.0] * m, 3.0 if m == 1 else 1.0]
            yield agree("moments of a rule", "those of N(0, I)", np.array(got), np.array(want), RULE)
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    t, log_w = gauss_hermite(12).points(1)
    yield agree("Gauss-Hermite nodes", "numpy's hermegauss", t[:, 0], nodes, ROUNDING)
    scaled = weights / math.sqrt(2.0 * math.pi)
    yield agree("Gauss-Hermite weights", "numpy's hermegauss", np.exp(log_w), scaled, ROUNDING)
    axis = uniform_grid(11, 4.0).points(1)[0][:, 0]
    yield agree("grid on [-4, 4]", "equal steps from end to end", axis, np.linspace(-4.0, 4.0, 11), ROUNDING)
    for draws in (monte_carlo(4096, setting.seed), sobol(1024, setting.seed)):
        t, log_w = draws.points(2)
        w = np.exp(log_w)
        yield agree("weights of draws", "sum to one", w.sum(), 1.0, ROUNDING)
        off = max(abs(w @ t[:, 0]) * math.sqrt(len(t)), abs(w @ t[:, 1] ** 2 - 1.0) * math.sqrt(len(t) / 2.0))
        yield Observed("moments of draws", "those of N(0, I)", float(off), SAMPLING)


def _nodes(setting: Setting) -> Iterator[Observed]:
    rng = setting.rng(6)
    t, log_w = gauss_hermite(9).points(2)
    scale = np.array([[[[0.7, 0.0], [0.4, 0.3]], [[0.2, 0.0], [-0.3, 0.5]]]])
    mean, share = rng.standard_normal((1, 2, 2)), np.array([[0.3, 0.7]])
    for C in (1, 2):
        alpha = share[:, :C] / share[:, :C].sum()
        z, log_weight = place(t, log_w, Gaussians(np.log(alpha), mean[:, :C], scale[:, :C], {}))
        density = sum(
            alpha[0, c] * stats.multivariate_normal(mean[0, c], scale[0, c] @ scale[0, c].T).pdf(z[0])
            for c in range(C)
        )
        w = np.exp(log_weight[0]) * density
        covariances = np.einsum("cij,ckj->cik", scale[0, :C], scale[0, :C])
        second = np.einsum("c,cij->ij", alpha[0], covariances + mean[0, :C, :, None] * mean[0, :C, None, :])
        got = np.array([w.sum(), *(w @ z[0]), *np.einsum("k,ki,kj->ij", w, z[0], z[0]).ravel()])
        want = np.array([1.0, *(alpha[0] @ mean[0, :C]), *second.ravel()])
        yield agree("∫ of a mixture on placed nodes", "its moments in closed form", got, want, RULE)
    case = setting.cases[0]
    m = case.model.latent_dim
    if m <= 3:
        z, log_weight = Quadrature(gauss_hermite(8)).nodes(case.model, case.x)
        mass = np.exp(log_weight) * formulas.normal(z, 0.0, 1.0)
        got, want = np.array([mass.sum(), mass @ z[:, 0] ** 2]), np.ones(2)
        yield agree("∫ φ(z; 0, I) dz on prior nodes", "1", got, want, RULE)


def _worked_decoder(setting: Setting) -> Iterator[Observed]:
    """One network by hand: m = 1, three tanh units, n = 2."""
    decoder, z = MLP((1, 3, 2), "tanh"), np.array([[0.0], [1.0], [-2.5]])
    W1, b1, W2 = np.array([1.5, -2.0, 0.7]), np.array([0.3, 0.1, -0.5]), np.array(THETA[6:12]).reshape(2, 3)
    want = np.array([W2 @ np.tanh(W1 * each + b1) + np.array([0.1, -0.2]) for each in z[:, 0]])
    yield agree(
        "g(z) of the worked example", "W2 tanh(W1 z + b1) + b2", decoder(np.array(THETA), z), want, ROUNDING
    )


def _value(setting: Setting) -> Iterator[Observed | Note]:
    yield from _worked_decoder(setting)
    yield from _decoder_value(setting)


SECTION = "Building blocks"

CHECKS = (
    Check(
        SECTION,
        "activations",
        "Activations and their derivatives",
        "f(a), f'(a) for tanh, sigmoid, relu, leaky relu, gelu, softplus, sin",
        r"$f(a),\ \ f'(a)$",
        "refica",
        tuple(
            f"activations.{type(act).__name__}.{part}"
            for act in {type(a): a for a in ACTIVATIONS.values()}.values()
            for part in ("__call__", "derivative")
        ),
        _activations,
    ),
    Check(
        SECTION,
        "decoder",
        "The decoder",
        "h_0 = z, h_l = f_l(W_l h_(l-1) + b_l), g_θ(z) = h_L;  Σ_α C_α z^α",
        r"$h_0 = z,\quad h_\ell = f_\ell(W_\ell h_{\ell-1} + b_\ell),\quad g_\theta(z) = h_L$",
        "E, before (4): g_θ, a family of functions (E calls them distributions)",
        (
            "decoders.MLP.__call__",
            "decoders.MLP.unpack",
            "decoders.MLP.activations",
            "decoders.Polynomial.__call__",
        ),
        _value,
    ),
    Check(
        SECTION,
        "decoder-derivative",
        "The derivatives of the decoder",
        "J_θ(z)ᵀ c,  J_θ(z) dθ + J_z(z) dz",
        r"$J_\theta(z)^T c,\qquad J_\theta(z)\, d\theta + J_z(z)\, dz$",
        "D, gradient in θ, line 4: ∇_θ g_θ(z)",
        (
            "decoders.MLP.vjp",
            "decoders.MLP.jvp",
            "decoders.Polynomial.vjp",
            "decoders.Polynomial._monomial_slopes",
        ),
        _decoder_derivative,
    ),
    Check(
        SECTION,
        "conditional",
        "The density of X given Z",
        "log φ(x; g(z), σ² I) = -n/2 log 2πσ² - ‖x - g(z)‖²/2σ²",
        r"$\log\varphi(x;g(z),\sigma^2I) = -\frac{n}{2}\log 2\pi\sigma^2 - \frac{\|x-g(z)\|^2}{2\sigma^2}$",
        "E(1), second line; E, before (2): φ(u; μ, Σ)",
        ("model.log_likelihood_given", "model.squared_distances"),
        _conditional,
    ),
    Check(
        SECTION,
        "prior",
        "The density of Z",
        "log φ(z; 0, I) = -m/2 log 2π - ‖z‖²/2",
        r"$\log\varphi(z;0,I) = -\frac{m}{2}\log 2\pi - \frac{1}{2}\|z\|^2$",
        "E(1), first line",
        ("model.log_prior",),
        _prior,
    ),
    Check(
        SECTION,
        "rules",
        "Rules for N(0, I)",
        "Σ_k w_k f(t_k) ≈ E f(T), T ~ N(0, I)",
        r"$\sum_k w_k f(t_k) \approx E f(T),\quad T\sim N(0,I)$",
        'D, last line: "The integrals can be approximated via numerical integration"',
        (
            "rules.GaussHermite.points",
            "rules.UniformGrid.points",
            "rules.UniformGrid.step",
            "rules.MonteCarlo.points",
            "rules.Sobol.points",
            "rules._product",
        ),
        _rules,
    ),
    Check(
        SECTION,
        "nodes",
        "Nodes for Lebesgue measure",
        "z = mean + L t, log weight = log w - log φ(t) + log |det L|",
        r"$z = \mu + L t,\qquad \log w - \log\varphi(t;0,I) + \log|\det L|$",
        "refica",
        ("proposals.place", "quadrature._Setting.nodes"),
        _nodes,
    ),
)
"""The checks of this section, from the ground up."""
