"""log p(x) as each integrator of refica gives it: proved digits, closed forms, posterior moments."""

# notation: N observations, n data, m latent; W (n, m), b (n,) of a linear decoder

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import stats

from refica.certified import certified_bounds
from refica.decoders import MLP
from refica.exact import ExactLinear, probabilistic_pca
from refica.likelihood import Gradient, Nodes
from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.piecewise import ExactPiecewiseAffine
from refica.posterior import posterior
from refica.quadrature import FixedNodes, Integrator, Quadrature
from refica.reference import Reference
from refica.rules import gauss_hermite, uniform_grid
from refica.validation import Array
from refica.verify.cases import Setting, other_nodes, worked_example
from refica.verify.findings import Check, Note, Observed, Tolerance, agree
from refica.verify.routes import DIGITS

__all__ = ["CHECKS", "LOG_P"]

LOG_P = {
    "tanh": {
        1.0: -2.9083724698303578,
        0.1: -2.0110450891291042,
        0.01: -2.1610949994049498,
        1e-3: -13.816159006209140,
    },
    "leaky relu": {
        1.0: -2.8162095361644760,
        0.1: -1.8986851157693194,
        0.01: -3.5712593692295845,
        1e-4: -307.86995377269158,
    },
    "square": {
        1.0: -1.2917136232852654,
        0.1: -1.3227720643840694,
        0.01: -1.4113145545215114,
        1e-4: -1.4188635213247739,
    },
}
"""log p(x) of the worked example by σ², proved to 16 digits by ball arithmetic (Arb)."""

GRADIENT = (
    -0.32309034964881925, 0.0652536229751159949, -0.438062224640058761, -0.961248603334939723,
    -0.949483729589679502, -0.282353386466513943, -1.01938754911854142, 0.907548786012433813,
    0.255755259306693298, -0.387273555895076147, 0.0196615565716123033, 0.462022892625834864,
    -1.33965531708798243, -1.02906761104323831,
)  # fmt: skip
"""∇_θ log p(x) of the tanh example at σ² = 0.1, by a trapezoidal sum in 30 digits; four of its entries, ∂_σ²
and E[z | x] agree with those proved by ball arithmetic."""
BY_SIGMA2, MEAN, SECOND_MOMENT = -3.34357426884140148, 0.259447183650389659, 0.078213672328498003

LINEAR = Tolerance(1e-10, "solving with WWᵀ + σ²I costs its condition, rules of 20 nodes some digits")


def _digits(setting: Setting) -> Iterator[Observed]:
    for name, values in LOG_P.items():
        for sigma2, digits in values.items():
            model, x = worked_example(name, sigma2)
            found = log_likelihood(model, x, Reference(), gradient=False)
            yield agree("log p(x), Reference", "proved digits", found.total, digits, DIGITS, 1.0)
    for sigma2 in (1.0, 0.1):
        model, x = worked_example("tanh", sigma2)
        nodes = other_nodes(1)
        for words, integrator in (
            ("Gauss-Legendre panels", FixedNodes(nodes.z, nodes.log_weight)),
            ("uniform grid", Quadrature(uniform_grid(721, 9.0))),
            ("200 nodes at the modes", Quadrature(gauss_hermite(200), proposal="modes")),
        ):
            found = log_likelihood(model, x, integrator, gradient=False)
            tolerance = (
                DIGITS if "modes" not in words else Tolerance(1e-7, "tanh has poles near the real axis")
            )
            yield agree(
                f"log p(x), {words}", "proved digits", found.total, LOG_P["tanh"][sigma2], tolerance, 1.0
            )
    model, x = worked_example("tanh", 0.1)
    gradient = log_likelihood(model, x, Reference()).gradient
    assert gradient is not None  # it was asked for
    yield agree("∇_θ log p(x)", "digits of all 14 entries", gradient.theta, np.array(GRADIENT), DIGITS)
    yield agree("∂_σ² log p(x)", "proved digits", gradient.sigma2, BY_SIGMA2, DIGITS)


def _certified(setting: Setting) -> Iterator[Observed]:
    for name in ("tanh", "square"):
        for sigma2 in (0.1, 0.01):
            model, x = worked_example(name, sigma2)
            found, digits = certified_bounds(model, x, 1e-8), LOG_P[name][sigma2]
            outside = max(float(found.lower[0]) - digits, digits - float(found.upper[0]), 0.0)
            contained = Tolerance(2e-16, "the digits lie within the enclosure, up to their last one")
            yield Observed("enclosure of log p(x)", "proved digits", outside / abs(digits), contained)
            width = float(found.upper[0] - found.lower[0])
            yield Observed("width of the enclosure", "at most 1e-8", width, Tolerance(1e-8, "as asked for"))


def _linear_model(m: int, n: int, sigma2: float, rng: np.random.Generator) -> tuple[NonlinearICA, Array]:
    model = NonlinearICA(MLP((m, n), "identity"), 0.8 * rng.standard_normal(n * (m + 1)), sigma2)
    return model, model.sample(4, rng)[1]


def _linear_gradient(W: Array, b: Array, sigma2: float, x: Array) -> tuple[Array, Gradient]:
    """log N(x; b, C) (N,) with C = WWᵀ + σ²I, and the gradient of its sum in (W, b, σ²) in closed form."""
    C = W @ W.T + sigma2 * np.eye(len(b))
    values = np.atleast_1d(stats.multivariate_normal(b, C).logpdf(x))
    inverse = np.linalg.inv(C)
    u = (x - b) @ inverse
    G = 0.5 * (u.T @ u - len(x) * inverse)
    return values, Gradient(np.concatenate([(2.0 * G @ W).ravel(), u.sum(axis=0)]), float(np.trace(G)))


def _linear(setting: Setting) -> Iterator[Observed]:
    rng = setting.rng(20)
    for m, n, sigma2 in ((1, 2, 0.5), (2, 3, 0.1), (2, 1, 0.4), (3, 4, 0.05)):
        model, x = _linear_model(m, n, sigma2, rng)
        W, b = model.theta[: m * n].reshape(n, m), model.theta[m * n :]
        values, by = _linear_gradient(W, b, sigma2, x)
        rules: list[tuple[str, Integrator]] = [("ExactLinear", ExactLinear())]
        if m <= 2:
            rules.append(
                ("Gauss-Hermite at the posterior", Quadrature(gauss_hermite(20), proposal="laplace"))
            )
        if m == 1:
            rules.append(("uniform grid on the prior", Quadrature(uniform_grid(401, 9.0))))
        for words, integrator in rules:
            found = log_likelihood(model, x, integrator)
            assert found.gradient is not None  # it was asked for
            yield agree(
                f"log p(x), {words}", "log N(x; b, WWᵀ + σ²I)", found.per_observation, values, LINEAR, 1.0
            )
            yield agree(
                f"gradient, {words}", "closed form", found.gradient.theta, by.theta, LINEAR, 1.0 / sigma2
            )
            yield agree(f"∂_σ², {words}", "closed form", found.gradient.sigma2, by.sigma2, LINEAR, n / sigma2)


def _posterior(setting: Setting) -> Iterator[Observed]:
    rng = setting.rng(21)
    model, x = worked_example("tanh", 0.1)
    found = posterior(model, x, Reference())
    variance = SECOND_MOMENT - MEAN**2
    yield agree("E[z | x]", "proved digits", found.mean[0, 0], MEAN, DIGITS, math.sqrt(variance))
    yield agree("Var[z | x]", "digits", found.covariance[0, 0, 0], variance, DIGITS)
    for m, n in ((1, 2), (2, 3)):
        model, x = _linear_model(m, n, 0.3, rng)
        W, b = model.theta[: m * n].reshape(n, m), model.theta[m * n :]
        M = W.T @ W + model.sigma2 * np.eye(m)
        mean, covariance = np.linalg.solve(M, W.T @ (x - b).T).T, model.sigma2 * np.linalg.inv(M)
        each = np.broadcast_to(covariance, (len(x), m, m))
        for words, integrator in (
            ("ExactLinear", ExactLinear()),
            ("Gauss-Hermite", Quadrature(gauss_hermite(12), proposal="laplace")),
        ):
            post = posterior(model, x, integrator)
            yield agree(f"E[z | x], {words}", "M⁻¹Wᵀ(x - b)", post.mean, mean, LINEAR, 1.0)
            yield agree(f"Cov[z | x], {words}", "σ² M⁻¹", post.covariance, each, LINEAR)


def _optimum(setting: Setting) -> Iterator[Observed]:
    rng = setting.rng(22)
    x = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 4)) + 0.4 * rng.standard_normal((40, 4))
    found = probabilistic_pca(x, 2)
    eigenvalues, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    yield agree(
        "σ²", "mean of the discarded eigenvalues", found.sigma2, float(eigenvalues[:2].mean()), LINEAR
    )
    W = found.theta[:8].reshape(4, 2)
    want = vectors[:, 2:] * (eigenvalues[2:] - eigenvalues[:2].mean()) @ vectors[:, 2:].T
    yield agree("WWᵀ", "U (Λ - σ²I) Uᵀ", W @ W.T, want, LINEAR)
    gradient = _linear_gradient(W, found.theta[8:], found.sigma2, x)[1]
    size = len(x) * 4 / found.sigma2
    yield agree(
        "the gradient there", "0", np.append(gradient.theta, gradient.sigma2), np.zeros(13), LINEAR, size
    )


def _piecewise(setting: Setting) -> Iterator[Observed | Note]:
    for sigma2, digits in LOG_P["leaky relu"].items():
        model, x = worked_example("leaky relu", sigma2)
        found = log_likelihood(model, x, ExactPiecewiseAffine())
        yield agree("log p(x), ExactPiecewiseAffine", "proved digits", found.total, digits, DIGITS, 1.0)
        if sigma2 < 0.05:
            continue
        kinks = np.sort(-np.array([0.3, 0.1, -0.5]) / np.array([1.5, -2.0, 0.7]))
        by_panels = log_likelihood(model, x, _panels_between(kinks))
        assert found.gradient is not None  # it was asked for
        assert by_panels.gradient is not None
        yield agree(
            "∇_θ, ExactPiecewiseAffine",
            "panels between the kinks",
            found.gradient.theta,
            by_panels.gradient.theta,
            DIGITS,
        )
    decoder = MLP((2, 2, 2), "relu")
    rng = setting.rng(23)
    model = NonlinearICA(decoder, rng.standard_normal(decoder.n_params), 0.5)
    x = model.sample(1, rng)[1]
    turn = np.array([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
    theta = model.theta.copy()
    theta[:4] = (theta[:4].reshape(2, 2) @ turn).ravel()
    turned = log_likelihood(model.replace(theta=theta), x, ExactPiecewiseAffine(), gradient=False).total
    plain = log_likelihood(model, x, ExactPiecewiseAffine(), gradient=False).total
    yield agree("log p(x) in the plane", "after a turn of the latent plane", plain, turned, DIGITS, 1.0)


def _panels_between(kinks: Array) -> FixedNodes:
    """Gauss-Legendre panels on [-10, 10], cut at the kinks."""
    t, w = np.polynomial.legendre.leggauss(12)
    edges = np.unique(np.concatenate([np.linspace(-10.0, 10.0, 121), kinks]))
    half = 0.5 * np.diff(edges)[:, None]
    nodes = Nodes((edges[:-1, None] + half * (t + 1.0)).reshape(-1, 1), np.log(half * w).ravel())
    return FixedNodes(nodes.z, nodes.log_weight)


SECTION = "log p(x) by each integrator"

LINEAR_CHECKS = (
    Check(
        SECTION,
        "linear",
        "A linear decoder has a closed form",
        "g(z) = W z + b:  X ~ N(b, W Wᵀ + σ² I)",
        r"$g(z)=Wz+b:\qquad X\sim N(b,\,WW^T+\sigma^2I)$",
        "E(1)-(3) for a linear f",
        ("exact.ExactLinear.gaussians", "proposals.place", "quadrature._Setting.nodes"),
        _linear,
    ),
    Check(
        SECTION,
        "linear-optimum",
        "Its maximum likelihood in closed form",
        "σ² = mean of the discarded eigenvalues, divisor N",
        r"$\hat\sigma^2=\frac{1}{n-m}\sum_{j>m}\lambda_j,\qquad \hat W=U(\Lambda-\hat\sigma^2I)^{1/2}$",
        "E(4) for a linear f (Tipping and Bishop 1999)",
        ("exact.probabilistic_pca",),
        _optimum,
    ),
    Check(
        SECTION,
        "piecewise",
        "A piecewise-affine decoder, piece by piece",
        "p(x) = Σ over pieces of Gaussians on intervals",
        r"$p(x)=\sum_{\mathrm{pieces}}\int_a^b\varphi(x;Az+B,\sigma^2I)\,\varphi(z;0,1)\,dz$",
        "E(3) for relu networks",
        ("piecewise.truncated.truncate", "piecewise.ExactPiecewiseAffine.evaluate"),
        _piecewise,
    ),
)
DIGIT_CHECKS = (
    Check(
        SECTION,
        "digits",
        "Proved digits of the worked example",
        "log p(x), ∇_θ log p(x), ∂_σ² log p(x)",
        r"$\log p(x),\quad \nabla_\theta\log p(x),\quad \partial_{\sigma^2}\log p(x)$",
        "E(3), D",
        ("reference.Reference.evaluate", "likelihood.evaluate"),
        _digits,
    ),
    Check(
        SECTION,
        "certified",
        "Proved enclosures",
        "lower <= log p(x) <= upper",
        r"$\ell_- \leq \log p(x) \leq \ell_+$",
        "E(3)",
        ("certified.certified_bounds",),
        _certified,
    ),
    Check(
        SECTION,
        "posterior",
        "The posterior and its moments",
        "p(z | x) = p(x, z)/p(x);  E[z | x], Cov[z | x]",
        r"$p(z|x)=p(x,z)/p(x),\qquad E[z|x],\ \mathrm{Cov}[z|x]$",
        "E(2), E(3)",
        ("likelihood.moments", "posterior.posterior"),
        _posterior,
    ),
)
CHECKS = (*LINEAR_CHECKS, *DIGIT_CHECKS)
"""The checks of this section."""
