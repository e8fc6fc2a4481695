"""The best diagonal Gaussian for one observation: the q that maximises its ELBO, with no encoder in between.

For each x the ELBO, with its expectation by a quadrature rule, is maximised over (μ, log s) by
quasi-Newton steps (BFGS; Nocedal and Wright 2006, chapter 6) from several starts, for many pairs of an
observation and a start at once. The first inverse Hessian is diagonal. Where L = log p(x, z),

    λ_j = -E_q ∂²L/∂z_j² = 1 - E_q[ε_j ∂_j log p(x | z)] / s_j       (Stein's identity: no second derivative)

is minus the second derivative in μ_j and, at a maximum, equal to 1/s_j²; that in log s_j is then 2 λ_j s_j².
"""

# notation: R rows, each an observation and a start; m latent; u (R, 2m) = (μ, log s); H (R, 2m, 2m)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refica.likelihood import DECODER_ROWS, row_blocks
from refica.model import NonlinearICA, log_likelihood_given
from refica.rules import Rule
from refica.vae.draws import draw, kl_to_prior
from refica.vae.evidence import elbo_gradient_in_q, nodes_of
from refica.validation import Array

__all__ = ["Optimum", "maximise_elbo"]

MAX_ITER = 200
"""Steps of a search. Ordinary cases take 5 to 15."""

LONGEST = 2.0
"""Farthest that one step moves a mean, in prior standard deviations, or the log of a standard deviation."""

MAX_HALVINGS = 12
"""Halvings of a step before it is given up."""

SUFFICIENT = 1e-4
"""Part of the promised increase that a step must reach (Armijo's rule)."""

DECREMENT = 1e-13
"""Promised increase (twice, in nats) at which a search ends, with one more step."""

LEAST_CURVATURE = 0.5
"""Smallest second derivative, in modulus, that the first inverse Hessian is made of: that of log s_j is 0
where s_j is far too small, and λ_j may have any sign where q lies off the posterior."""


class Optimum(NamedTuple):
    """Where searches ended: ``mu`` and ``log_s2`` (R, m), and the increase ``promised`` (R,) there, which is
    all but 0 at a smooth maximum."""

    mu: Array
    log_s2: Array
    promised: Array


class _Local(NamedTuple):
    """The ELBO (R,), its gradient in u (R, 2m), and the diagonal (R, 2m) of a first inverse Hessian."""

    value: Array
    gradient: Array
    scale: Array


def maximise_elbo(model: NonlinearICA, x: Array, mu: Array, log_s2: Array, rule: Rule) -> Optimum:
    """Return the local maxima that searches from mu and log_s2 (R, m) for x (R, n) end at, E_q by a rule."""
    nodes = nodes_of(rule, model.latent_dim)
    u = np.concatenate([mu, 0.5 * log_s2], axis=1)
    here = _expand(model, x, u, nodes)
    H = here.scale[:, :, None] * np.eye(u.shape[1])
    promised, active = np.zeros(len(u)), np.arange(len(u))
    for _ in range(MAX_ITER):
        gradient = here.gradient[active]
        step = np.einsum("rij,rj->ri", H[active], gradient)
        decrement = np.einsum("ri,ri->r", gradient, step)
        promised[active] = 0.5 * decrement
        length = _line_search(model, x[active], u[active], here.value[active], step, decrement, nodes)
        step = length[:, None] * step
        u[active] += step
        there = _expand(model, x[active], u[active], nodes)
        H[active] = _updated(H[active], step, there.gradient - gradient, there.scale)
        for old, new in zip(here, there, strict=True):
            old[active] = new
        active = active[(decrement > DECREMENT) & (length > 0.0)]
        if not len(active):
            break
    m = mu.shape[1]
    return Optimum(u[:, :m], 2.0 * u[:, m:], promised)


def _line_search(
    model: NonlinearICA,
    x: Array,
    u: Array,
    value: Array,
    step: Array,
    decrement: Array,
    nodes: tuple[Array, Array],
) -> Array:
    """Return the first of α, α/2, α/4, .. (R,) that rises enough, 0 if none does.

    A step that promises less than rounding lets the values tell apart is taken on trust.
    """
    length = np.minimum(1.0, LONGEST / np.maximum(np.abs(step).max(axis=1), LONGEST))
    rows = np.flatnonzero(decrement > 1e2 * np.finfo(float).eps * np.maximum(1.0, np.abs(value)))
    for _ in range(MAX_HALVINGS):
        if not len(rows):
            return length
        there = _elbo(model, x[rows], u[rows] + length[rows, None] * step[rows], nodes)
        short = ~(there >= value[rows] + SUFFICIENT * length[rows] * decrement[rows])  # True for nan
        rows = rows[short]
        length[rows] *= 0.5
    length[rows] = 0.0
    return length


def _updated(H: Array, step: Array, change: Array, scale: Array) -> Array:
    """Return the BFGS update of an inverse Hessian of minus the ELBO, H (R, 2m, 2m), after a step and the
    ``change`` (R, 2m) of the gradient over it; a fresh diagonal one where the ELBO curved upwards.

    H <- (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ,      s the step, y minus the change, ρ = 1 / yᵀs.
    """
    eye = np.eye(H.shape[1])
    y = -change
    along = np.einsum("ri,ri->r", y, step)
    size = np.sqrt(np.einsum("ri,ri->r", y, y) * np.einsum("ri,ri->r", step, step))
    usable = along > 1e-10 * size
    rho = 1.0 / np.where(usable, along, 1.0)
    left = eye - rho[:, None, None] * step[:, :, None] * y[:, None, :]
    update = left @ H @ np.swapaxes(left, 1, 2) + rho[:, None, None] * step[:, :, None] * step[:, None, :]
    fresh = scale[:, :, None] * eye
    return np.where(usable[:, None, None], update, fresh)


def _elbo(model: NonlinearICA, x: Array, u: Array, nodes: tuple[Array, Array]) -> Array:
    """The ELBO of each row at u = (μ, log s), (R,)."""
    return np.asarray(_expand(model, x, u, nodes, gradient=False).value)


def _expand(
    model: NonlinearICA, x: Array, u: Array, nodes: tuple[Array, Array], gradient: bool = True
) -> _Local:
    """Return the ELBO of each row at u and, unless only values are wanted, its gradient and curvature."""
    t, weight = nodes
    m, n = t.shape[1], x.shape[1]
    found = _Local(np.empty(len(u)), np.zeros(u.shape), np.ones(u.shape))
    for rows in row_blocks(len(u), max(1, DECODER_ROWS // len(t))):
        mu, log_s = u[rows, :m], u[rows, m:]
        noise = np.broadcast_to(t[:, None], (len(t), len(mu), m))
        draws = draw(model.decoder, model.theta, mu, 2.0 * log_s, x[rows], noise)
        expected = log_likelihood_given(draws.squared, model.sigma2, n) @ weight
        found.value[rows] = expected - kl_to_prior(mu, 2.0 * log_s)
        if not gradient:
            continue
        _, mu_bar, log_s2_bar = elbo_gradient_in_q(
            model.decoder, model.theta, model.sigma2, x[rows], mu, 2.0 * log_s, draws, weight
        )
        found.gradient[rows] = np.concatenate([mu_bar, 2.0 * log_s2_bar], axis=1)
        s2 = np.exp(2.0 * log_s)
        precision = np.abs(1.0 - 2.0 * log_s2_bar) / s2  # ∂ELBO/∂log s = 1 - λ s²
        curvature = np.concatenate([precision, 2.0 * precision * s2], axis=1)
        found.scale[rows] = 1.0 / np.maximum(curvature, LEAST_CURVATURE)
    return found
