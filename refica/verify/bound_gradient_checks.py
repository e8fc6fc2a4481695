"""Exercise 3's gradients, and the importance-weighted bound with both of its own."""

# notation: N observations, n data, m latent, L draws; mu, s (N, m); noise ε (L, N, m); phi (q,)

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from refica.decoders import MLP
from refica.model import NonlinearICA
from refica.vae import VAE, elbo, iwae
from refica.vae.evidence import elbo_and_gradient
from refica.vae.model import BoundGradient
from refica.validation import Array
from refica.verify import formulas
from refica.verify.cases import Setting
from refica.verify.encoded import Variational, bound_of, encoded_cases, log_weights_of
from refica.verify.findings import Check, Note, Observed, Tolerance, agree, relative, slope_of
from refica.verify.routes import (
    AUTOGRAD,
    COMPLEX,
    ROUNDING,
    WITHOUT_AUTOGRAD,
    derivative_tolerance,
    differentiable,
    partials,
    route_name,
    slope_along,
)

__all__ = ["CHECKS"]

SUMS = Tolerance(1e-10, "both are sums over 361 nodes that are right to rounding for Gaussians")
SMOOTH = Tolerance(1e-6, "a Gauss-Hermite sum over 14 nodes per draw")


def _joined(by: BoundGradient | None) -> Array:
    """A gradient in (θ, σ², φ) as one vector."""
    assert by is not None  # it was asked for
    return np.concatenate([by.theta, [by.sigma2], by.phi])


def _elbo_total(v: Variational) -> Callable[[Array], Array]:
    """Σ_i ELBO(x_i) as a function of (θ, σ², φ)."""
    return lambda params: bound_of(v, params, v.noise).sum()


def _iwae_total(v: Variational) -> Callable[[Array], Array]:
    """Σ_i IWAE(x_i) as a function of (θ, σ², φ)."""
    return lambda params: formulas.iwae(log_weights_of(v, params, v.noise)).sum()


def _reparameterised(setting: Setting) -> Iterator[Observed | Note]:
    for v in encoded_cases(setting, 5):
        found = _joined(elbo(v.vae, v.case.x, v.noise).gradient)
        yield from _three_ways(v, found, "∇ELBO", _elbo_total(v), "elbo_gradient")
    if differentiable() is None:
        yield Note(WITHOUT_AUTOGRAD)


def _three_ways(
    v: Variational, found: Array, words: str, f: Callable[[Array], Array], by_autograd: str
) -> Iterator[Observed]:
    """A gradient in (θ, σ², φ) by the complex step, autograd and Taylor remainders."""
    want = partials(f, v.params, analytic=v.analytic)
    size = max(float(np.abs(want).max()), 1.0)
    yield agree(words, route_name(v.analytic), found, want, derivative_tolerance(v.analytic), size)
    auto = differentiable(v.case)
    if auto is not None:
        model = v.vae.model
        by = getattr(auto, by_autograd)(
            model.decoder, v.vae.encoder, model.theta, model.sigma2, v.vae.phi, v.case.x, v.noise
        )
        yield agree(words, "autograd", found, np.concatenate([by[0], [by[1]], by[2]]), AUTOGRAD, size)
    rng = np.random.default_rng(5)
    slope = slope_along(lambda params: float(np.real(f(params))), found, v.params, rng)
    yield slope_of(words, slope)


def _score_function(setting: Setting) -> Iterator[Observed | Note]:
    """E_ε ∇_φ f(μ + s ε) = E_q[f(z) ∇_φ log q(z)]: the reparameterised and the score-function gradient."""
    for v in encoded_cases(setting, 6):
        if v.noise.shape[2] > 1:
            continue
        (found, want), (finer, _) = (_both_gradients(v, count) for count in (361, 721))
        size = max(float(np.abs(want).max()), 1.0)
        if relative(found, finer, size) <= SUMS.value:
            names = "E of the reparameterised gradient in φ", "E[f ∇ log q], the score function's"
            yield agree(*names, found, want, SUMS, size)
        else:
            yield Note("361 nodes over q do not resolve a model (kinks?)")
    t = np.linspace(-9.0, 9.0, 361)
    second = float(np.exp(-0.5 * t**2) @ t**2 / np.exp(-0.5 * t**2).sum())
    yield agree("E ε²", "1, under the nodes of both", second, 1.0, ROUNDING)


def _both_gradients(v: Variational, count: int) -> tuple[Array, Array]:
    """The expected gradient in φ of Σ_i ELBO(x_i) on so many nodes for ε: as refica has it, and as the score
    function has it, m = 1."""
    nodes, model, x = np.linspace(-9.0, 9.0, count), v.vae.model, v.case.x
    weights = np.exp(-0.5 * nodes**2) / np.exp(-0.5 * nodes**2).sum()
    mu, s = v.q(v.vae.phi)
    g = [model.decoder(model.theta, mu + s * t) for t in nodes]
    f = np.array([formulas.log_normal(x, each, model.sigma2) for each in g])
    by_mu = (weights * nodes) @ f / s[:, 0] - mu[:, 0]
    by_log_s2 = 0.5 * (weights * (nodes**2 - 1.0)) @ f - 0.5 * (s[:, 0] ** 2 - 1.0)
    score = v.vae.encoder.vjp(v.vae.phi, x, np.stack([by_mu, by_log_s2], axis=1))[0]
    noise = np.broadcast_to(nodes[:, None, None], (count, len(x), 1))
    arguments = (model.decoder, v.vae.encoder, model.theta, model.sigma2, v.vae.phi, x, noise, weights)
    return elbo_and_gradient(*arguments)[1].phi, score


def _importance(setting: Setting) -> Iterator[Observed]:
    for v in encoded_cases(setting, 7, draws=4):
        log_w = log_weights_of(v, v.params, v.noise)
        found = iwae(v.vae, v.case.x, v.noise, gradient=False).per_observation
        yield agree(
            "IWAE at given noise",
            "log of the mean weight, as it stands",
            found,
            formulas.iwae(log_w),
            ROUNDING,
            1.0,
        )
        largest = log_w.max(axis=1)
        shifted = largest + np.log(np.mean(np.exp(log_w - largest[:, None]), axis=1))
        yield agree("IWAE at given noise", "the same, shifted by the largest", found, shifted, ROUNDING, 1.0)
        one = iwae(v.vae, v.case.x, v.noise[:1], gradient=False).per_observation
        yield agree("IWAE of one draw", "its log weight", one, log_w[:, 0], ROUNDING, 1.0)


def _importance_gradient(setting: Setting) -> Iterator[Observed | Note]:
    for v in encoded_cases(setting, 8, draws=4):
        found = _joined(iwae(v.vae, v.case.x, v.noise).gradient)
        yield from _three_ways(v, found, "∇IWAE, plain", _iwae_total(v), "iwae_gradient")
    if differentiable() is None:
        yield Note(WITHOUT_AUTOGRAD)


def _doubly(setting: Setting) -> Iterator[Observed]:
    """Both estimators have the same expectation, here all pairs of 14 nodes for ε_1 and ε_2."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(14)
    weights = weights / weights.sum()
    rng = np.random.default_rng([0, 32])  # whatever the seed: a model for which so few nodes are enough
    model = NonlinearICA(MLP((1, 2, 2), "tanh"), 0.4 * rng.standard_normal(10), 1.5)
    encoder = MLP((2, 2), "identity")
    # q wider than the posterior, so that the weights are bounded and the rule converges
    phi = np.concatenate([0.2 * rng.standard_normal(4), [0.1, 0.2]])
    vae, x = VAE(model, encoder, phi), model.sample(1, rng)[1]
    noise = np.stack(np.meshgrid(nodes, nodes, indexing="ij")).reshape(2, -1, 1)
    w = np.outer(weights, weights).ravel()
    totals = {}
    for estimator in ("plain", "doubly-reparameterised"):
        each = [iwae(vae, x, noise[:, i : i + 1], estimator=estimator).gradient for i in range(len(w))]
        totals[estimator] = sum(weight * by.phi for weight, by in zip(w, each, strict=True) if by is not None)
    plain, doubly = (np.asarray(total) for total in totals.values())
    yield agree("E of the doubly-reparameterised gradient", "E of the plain one", doubly, plain, SMOOTH, 0.1)

    def values(params: Array) -> Array:
        return np.asarray(w @ np.array([_pair_bound(vae, x, params, pair) for pair in noise[:, :, 0].T]))

    want = partials(values, phi, analytic=True)
    yield agree("E of the plain gradient", "complex step of E IWAE", plain, want, COMPLEX, 0.1)


def _pair_bound(vae: VAE, x: Array, phi: Array, pair: Array) -> Array:
    """IWAE of one observation at two draws, by formulas."""
    outputs = vae.encoder(phi, x)
    mu, s, model = outputs[0, 0], np.exp(outputs[0, 1] / 2.0), vae.model
    total = 0.0
    for e in pair:
        z = np.array([[mu + s * e]])
        log_q = -0.5 * np.log(2.0 * math.pi) - np.log(s) - 0.5 * e**2
        log_x = formulas.log_normal(x, model.decoder(model.theta, z), model.sigma2)[0]
        total = total + np.exp(log_x + formulas.log_normal(z, 0.0, 1.0)[0] - log_q) / 2.0
    return np.log(total)


SECTION = "Exercise 3: the variational side"

CHECKS = (
    Check(
        SECTION,
        "reparameterised",
        "The reparameterised gradient",
        "∇_(θ,σ²,φ) ELBO through z = μ_φ(x) + s_φ(x) ε",
        r"$\nabla_{\theta,\sigma^2,\phi}\ \mathrm{ELBO},\quad z=\mu_\phi(x)+s_\phi(x)\,\varepsilon$",
        'E, approach 2: "optimize the ELBO using SGD"',
        ("vae.evidence.elbo_gradient_in_q", "vae.evidence._tile_gradient"),
        _reparameterised,
    ),
    Check(
        SECTION,
        "score-function",
        "Its expectation is that of the score function",
        "E_ε ∇_φ f(μ + s ε) = E_q[f(z) ∇_φ log q(z)]",
        r"$E_\varepsilon\nabla_\phi f(\mu+s\,\varepsilon)=E_q\left[f(z)\,\nabla_\phi\log q_\phi(z|x)\right]$",
        "E, Exercise 3",
        ("vae.evidence.elbo_gradient_in_q",),
        _score_function,
    ),
    Check(
        SECTION,
        "iwae",
        "The importance-weighted bound",
        "IWAE = log (1/L) Σ_l p(x, z_l)/q(z_l | x)",
        r"$\mathrm{IWAE}(x)=\log\frac{1}{L}\sum_l\,p(x,z_l)/q_\phi(z_l|x)$",
        "refica (Burda et al. 2016)",
        ("vae.importance._log_mean", "vae.importance._log_weights"),
        _importance,
    ),
    Check(
        SECTION,
        "iwae-gradient",
        "Its gradient",
        "Σ_l v_l ∇ log w_l",
        r"$\sum_l v_l\,\nabla\log w_l,\qquad v_l=w_l/\sum_k w_k$",
        "refica (Burda et al. 2016)",
        ("vae.importance._normalised", "vae.importance._tile_gradient"),
        _importance_gradient,
    ),
    Check(
        SECTION,
        "doubly-reparameterised",
        "The doubly-reparameterised gradient",
        "Σ_l v_l² (∂ log w_l/∂z_l)(∂z_l/∂φ)",
        r"$\sum_l v_l^2\,\frac{\partial\log w_l}{\partial z_l}\,\frac{\partial z_l}{\partial\phi}$",
        "refica (Tucker et al. 2019)",
        ("vae.importance._tile_gradient",),
        _doubly,
    ),
)
"""The rest of the section."""
