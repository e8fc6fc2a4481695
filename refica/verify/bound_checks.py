"""Exercise 3: encoder, KL, evidence lower bound, and what is missing from it."""

# notation: N observations, n data, m latent, L draws; mu, s (N, m); noise ε (L, N, m); phi (q,)

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from refica.decoders import MLP
from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.rules import gauss_hermite
from refica.testing.gradients import STEP
from refica.vae import VAE, elbo, elbo_quadrature, gaps
from refica.vae.draws import encode_with_slope, kl_to_prior
from refica.vae.evidence import elbo_values, nodes_of
from refica.validation import Array
from refica.verify import formulas
from refica.verify.cases import Setting
from refica.verify.encoded import Variational, bound_of, encoded_cases, log_weights_of
from refica.verify.findings import Check, Note, Observed, Tolerance, agree
from refica.verify.routes import COMPLEX, ROUNDING, WITHOUT_AUTOGRAD, differentiable
from refica.verify.sums import frozen

__all__ = ["CHECKS"]

INTEGRAL = Tolerance(1e-10, "a Gauss-Hermite sum of 60 nodes for polynomials and logarithms of Gaussians")
SMOOTH = Tolerance(1e-6, "Gauss-Hermite over q of 40 nodes per axis, with poles of the decoder not far away")
OTHER = Tolerance(1e-8, "log p(x) on a grid over the prior, the rest on one over q")
MOST_NODES = 300
"""Nodes of the product rule that is compared with NumPy's."""
BELOW = Tolerance(1e-10, "by how much a bound exceeds log p(x): not at all, up to rounding")


def _encoder(setting: Setting) -> Iterator[Observed]:
    for v in encoded_cases(setting, 1):
        mu, s = v.q(v.vae.phi)
        found = encode_with_slope(v.vae.encoder, v.vae.phi, v.case.x)
        yield agree("μ", "the first m outputs", found.mu, mu, ROUNDING, 1.0)
        yield agree("log s²", "the last m outputs", found.log_s2, 2.0 * np.log(s), ROUNDING, 1.0)
        draws = v.vae.encoder(v.vae.phi, v.case.x)
        yield agree(
            "d log s²/d output", "1 up to ±30", found.slope, np.ones_like(draws[:, mu.shape[1] :]), ROUNDING
        )


def _kl(setting: Setting) -> Iterator[Observed | Note]:
    rng = setting.rng(30)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    mu, log_s2 = rng.standard_normal((5, 2)), rng.uniform(-3.0, 2.0, (5, 2))
    s = np.exp(log_s2 / 2.0)
    found = kl_to_prior(mu, log_s2)
    yield agree("KL", "½ Σ (μ² + s² - 1 - log s²)", found, formulas.kl(mu, s), ROUNDING)
    total = np.zeros(5)
    for axis in range(2):
        z = mu[:, axis, None] + s[:, axis, None] * nodes
        log_q = -0.5 * np.log(2.0 * math.pi * s[:, axis, None] ** 2) - 0.5 * nodes**2
        total += (log_q - formulas.log_normal(z[..., None], 0.0, 1.0)) @ weights
    yield agree("KL", "∫ q log(q/φ) by quadrature", found, total, INTEGRAL)
    yield agree(
        "KL at q = N(0, I)", "0", kl_to_prior(np.zeros((1, 3)), np.zeros((1, 3))), np.zeros(1), ROUNDING, 1.0
    )
    auto = differentiable()
    if auto is None:
        yield Note(WITHOUT_AUTOGRAD)
        return
    by = auto.kl_gradient(mu, log_s2)
    steps = [np.imag(kl_to_prior(mu + 1j * STEP * e, log_s2)) / STEP for e in np.eye(2)]
    yield agree(
        "∂KL/∂μ, autograd of the formula", "complex step of refica's", by[0], np.array(steps).T, COMPLEX
    )
    steps = [np.imag(kl_to_prior(mu, log_s2 + 1j * STEP * e)) / STEP for e in np.eye(2)]
    yield agree(
        "∂KL/∂log s², autograd of the formula", "complex step of refica's", by[1], np.array(steps).T, COMPLEX
    )


def _elbo(setting: Setting) -> Iterator[Observed]:
    for v in encoded_cases(setting, 2):
        found = elbo(v.vae, v.case.x, v.noise, gradient=False).per_observation
        yield agree(
            "ELBO at given noise",
            "its formula, draw by draw",
            found,
            bound_of(v, v.params, v.noise),
            ROUNDING,
            1.0,
        )
        one = [elbo(v.vae, v.case.x, e[None], gradient=False).per_observation for e in v.noise]
        yield agree("ELBO of L draws", "mean over single draws", found, np.mean(one, axis=0), ROUNDING, 1.0)
        mu, s = v.q(v.vae.phi)
        log_q = -0.5 * (v.noise**2 + np.log(2.0 * math.pi) + 2.0 * np.log(s)).sum(axis=2)
        prior = np.array([formulas.log_normal(mu + s * e, 0.0, 1.0) for e in v.noise])
        drawn = (log_q - prior).mean(axis=0)
        other = log_weights_of(v, v.params, v.noise).mean(axis=1) + drawn - formulas.kl(mu, s)
        yield agree(
            "ELBO at given noise",
            "mean of log p(x, z) - log q, its KL in closed form",
            found,
            other,
            ROUNDING,
            1.0,
        )


def _elbo_rule(setting: Setting) -> Iterator[Observed]:
    for v in encoded_cases(setting, 3):
        m = v.noise.shape[2]
        order = max(2, min(16, int(MOST_NODES ** (1.0 / m) + 1e-9)))
        nodes, weights = np.polynomial.hermite_e.hermegauss(order)
        t = np.array(list(itertools.product(nodes, repeat=m)))
        w = np.array([math.prod(each) for each in itertools.product(weights / weights.sum(), repeat=m)])
        each = np.array([bound_of(v, v.params, np.broadcast_to(e, (1, len(v.case.x), m))) for e in t])
        found = elbo_quadrature(v.vae, v.case.x, order=order, gradient=False).per_observation
        yield agree("ELBO by Gauss-Hermite", "numpy's hermegauss", found, w @ each, COMPLEX, 1.0)
        mine = nodes_of(gauss_hermite(order), m)[1]
        yield agree("its weights", "numpy's hermegauss", mine, w, COMPLEX)


def _log_p(v: Variational) -> Array:
    return log_likelihood(v.case.model, v.case.x, frozen(v.case), gradient=False).per_observation


def _lower_bound(setting: Setting) -> Iterator[Observed | Note]:
    for v in encoded_cases(setting, 4):
        if not v.case.fine:
            yield Note("more than two latent dimensions: not integrated")
            yield Observed("ELBO - log p(x)", "0 (not integrated)", 0.0, BELOW)
            continue
        log_p, model = _log_p(v), v.case.model
        mu, s = v.q(v.vae.phi)
        t, log_weight = v.case.nodes
        weight = np.exp(log_weight) * formulas.normal(t, 0.0, 1.0)
        direct = np.zeros(len(log_p))
        for i, x in enumerate(v.case.x):
            z = mu[i] + s[i] * t
            g = model.decoder(model.theta, z)
            log_posterior = formulas.log_joint(x[None], z, g, model.sigma2)[0] - log_p[i]
            direct[i] = weight @ (formulas.log_normal(z, mu[i], s[i] ** 2) - log_posterior)
        noise = np.broadcast_to(t[:, None], (len(t), len(log_p), t.shape[1]))
        arguments = (model.decoder, v.vae.encoder, model.theta, model.sigma2, v.vae.phi, v.case.x, noise)
        bound = elbo_values(*arguments, weight / weight.sum())
        yield Observed("ELBO - log p(x)", "at most 0", float(np.maximum(bound - log_p, 0.0).max()), BELOW)
        yield agree(
            "log p(x) - ELBO", "KL(q ‖ p(z | x)), integrated directly", log_p - bound, direct, OTHER, 1.0
        )


def _gaps(setting: Setting) -> Iterator[Observed]:
    rng = setting.rng(31)
    model = NonlinearICA(MLP((2, 3), "identity"), 0.8 * rng.standard_normal(9), 0.3)
    vae = VAE(model, MLP((3, 4), "identity"), 0.3 * rng.standard_normal(16))
    x = model.sample(2, rng)[1]
    found = gaps(vae, x)
    W = model.theta[:6].reshape(3, 2)
    P = np.eye(2) + W.T @ W / model.sigma2
    want = 0.5 * (np.log(np.diag(P)).sum() - np.linalg.slogdet(P)[1])
    yield agree(
        "approximation gap, linear decoder",
        "½ (Σ log P_jj - log det P)",
        found.approximation,
        np.full(2, want),
        SMOOTH,
    )
    mean = np.linalg.solve(P, W.T @ (x - model.theta[6:]).T / model.sigma2).T
    outputs = vae.encoder(vae.phi, x)
    mu, variance = outputs[:, :2], np.exp(outputs[:, 2:])
    d = mu - mean
    kl = 0.5 * (
        variance @ np.diag(P) + np.einsum("ni,ij,nj->n", d, P, d) - 2.0 - np.log(variance).sum(axis=1)
    )
    kl -= 0.5 * np.linalg.slogdet(P)[1]
    yield agree(
        "both gaps, linear decoder",
        "KL of two Gaussians",
        found.approximation + found.amortisation,
        kl,
        SMOOTH,
    )
    yield agree("KL(q ‖ posterior), integrated", "KL of two Gaussians", found.kl, kl, SMOOTH)


SECTION = "Exercise 3: the variational side"
Q = r"q_\phi(z|x)"

CHECKS = (
    Check(
        SECTION,
        "encoder",
        "The encoder's Gaussian",
        "q_φ(z | x) = N(μ_φ(x), diag s_φ(x)²)",
        rf"${Q}=N(\mu_\phi(x),\,\mathrm{{diag}}\,s_\phi(x)^2)$",
        "E, Exercise 3",
        ("vae.draws.encode_with_slope", "encoder.encode"),
        _encoder,
    ),
    Check(
        SECTION,
        "kl",
        "The divergence from the prior",
        "KL(q ‖ N(0, I)) = ½ Σ_j (μ_j² + s_j² - 1 - log s_j²)",
        r"$\mathrm{KL}(q\,\|\,N(0,I))=\frac{1}{2}\sum_j(\mu_j^2+s_j^2-1-\log s_j^2)$",
        "E, Exercise 3",
        ("vae.draws.kl_to_prior",),
        _kl,
    ),
    Check(
        SECTION,
        "elbo",
        "The evidence lower bound at given noise",
        "ELBO = mean_l log p(x | z_l) - KL,  z_l = μ + s ε_l",
        r"$\mathrm{ELBO}(x)=\frac{1}{L}\sum_l\log p(x|z_l)-\mathrm{KL},\qquad z_l=\mu+s\,\varepsilon_l$",
        "E, Exercise 3",
        ("vae.draws.draw", "vae.evidence._tile_values"),
        _elbo,
    ),
    Check(
        SECTION,
        "elbo-quadrature",
        "The same without noise",
        "ELBO = E_q log p(x | z) - KL",
        r"$\mathrm{ELBO}(x)=E_q\log p(x|z)-\mathrm{KL}$",
        "E, Exercise 3",
        ("vae.evidence.nodes_of", "vae.evidence.elbo_quadrature"),
        _elbo_rule,
    ),
    Check(
        SECTION,
        "lower-bound",
        "It is a lower bound, and what is missing is a divergence",
        "log p(x) - ELBO = KL(q ‖ p(z | x)) >= 0",
        rf"$\log p(x)-\mathrm{{ELBO}}(x)=\mathrm{{KL}}({Q}\,\|\,p(z|x))\geq 0$",
        'E, approach 2: "a lower bound on the likelihood"',
        ("vae.evidence.elbo_values", "vae.draws.kl_to_prior"),
        _lower_bound,
    ),
    Check(
        SECTION,
        "gaps",
        "The gaps of a linear decoder in closed form",
        "approximation gap = ½ (Σ_j log P_jj - log det P),  P = M/σ²",
        r"$\frac{1}{2}\left(\sum_j\log P_{jj}-\log\det P\right),\qquad P=I+W^TW/\sigma^2$",
        "mathematics of refica",
        ("vae.ledger.gaps", "vae.ledger._log_ratio"),
        _gaps,
    ),
)
"""The checks of this section, up to its gradients."""
