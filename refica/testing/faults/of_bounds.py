"""Faults of the variational side: KL, ELBO, IWAE and their gradients."""

# notation: N observations, m latent, L draws; mu, log_s2 (N, m); log_w and v (N, L); each function takes the
# true function and returns the wrong one

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refica.testing.faults.fault import Fault
from refica.vae.draws import Draws, Encoded, kl_to_prior
from refica.validation import Array

__all__ = ["FAULTS"]

Wrong = Callable[..., Any]


def _standard_deviation_s2(true: Wrong) -> Wrong:
    def drawn(decoder: Any, theta: Array, mu: Array, log_s2: Array, x: Array, noise: Array) -> Draws:
        found: Draws = true(decoder, theta, mu, 2.0 * log_s2, x, noise)
        return found

    return drawn


def _same_noise(true: Wrong) -> Wrong:
    def drawn(decoder: Any, theta: Array, mu: Array, log_s2: Array, x: Array, noise: Array) -> Draws:
        found: Draws = true(decoder, theta, mu, log_s2, x, np.broadcast_to(noise[:, :1], noise.shape))
        return found

    return drawn


def _log_standard_deviation(true: Wrong) -> Wrong:
    def encode_with_slope(encoder: Any, phi: Array, x: Array) -> Encoded:
        q: Encoded = true(encoder, phi, x)
        return q._replace(log_s2=2.0 * q.log_s2, slope=2.0 * q.slope)

    return encode_with_slope


def _summed_draws(true: Wrong) -> Wrong:
    def values(sigma2: float, tile: Any, kl_weight: float) -> Array:
        kl = kl_weight * tile.weight.sum() * kl_to_prior(tile.q.mu, tile.q.log_s2)
        return np.asarray((true(sigma2, tile, kl_weight) + kl) / tile.weight[0] - kl)

    return values


def _kl_added(true: Wrong) -> Wrong:
    def values(sigma2: float, tile: Any, kl_weight: float) -> Array:
        return np.asarray(true(sigma2, tile, -kl_weight))

    return values


def _in_q(change: Callable[[Any, Any, Array, Array, Draws, float], tuple[Array, Array]]) -> Any:
    """A fault in the derivatives of the ELBO in μ and log s²."""

    def wrapped(true: Wrong) -> Wrong:
        def gradient(
            decoder: Any,
            theta: Array,
            sigma2: float,
            x: Array,
            mu: Array,
            log_s2: Array,
            draws: Draws,
            weight: Array,
            kl_weight: float = 1.0,
        ) -> tuple[Array, Array, Array]:
            theta_bar, mu_bar, log_s2_bar = true(
                decoder, theta, sigma2, x, mu, log_s2, draws, weight, kl_weight
            )
            beta = kl_weight * float(weight.sum())
            return theta_bar, *change(mu_bar, log_s2_bar, mu, log_s2, draws, beta)

        return gradient

    return wrapped


def _no_way_through_z(
    mu_bar: Array, log_s2_bar: Array, mu: Array, log_s2: Array, draws: Draws, beta: float
) -> tuple[Array, Array]:
    return -beta * mu, -0.5 * beta * np.expm1(log_s2)


def _kl_half_lost(
    mu_bar: Array, log_s2_bar: Array, mu: Array, log_s2: Array, draws: Draws, beta: float
) -> tuple[Array, Array]:
    return mu_bar, log_s2_bar - 0.5 * beta * np.expm1(log_s2)


def _log_weights(change: Callable[[Encoded, Draws], Array]) -> Callable[[Wrong], Wrong]:
    """A fault in log q, which the log weights subtract."""

    def wrapped(true: Wrong) -> Wrong:
        def log_weights(sigma2: float, q: Encoded, draws: Draws) -> Array:
            return np.asarray(true(sigma2, q, draws) + change(q, draws))

        return log_weights

    return wrapped


def _log_q(q: Encoded, draws: Draws) -> Array:
    constant = math.log(2.0 * math.pi)
    return np.asarray(-0.5 * (draws.epsilon**2 + q.log_s2[:, None] + constant).sum(axis=2))


def _single_weights(true: Wrong) -> Wrong:
    """d_l = v_l v_bar_l + v_l² ε_l / s has v_l for one v_l too few: weights that are not squared."""

    def gradient(
        decoder: Any,
        encoder: Any,
        theta: Array,
        sigma2: float,
        phi: Array,
        x: Array,
        tile: Any,
        estimator: str,
    ) -> Any:
        if estimator == "plain":
            return true(decoder, encoder, theta, sigma2, phi, x, tile, estimator)
        by = true(decoder, encoder, theta, sigma2, phi, x, tile, "plain")
        # what v_l in place of v_l² gives: the plain gradient with the score Σ_l v_l ∇ log q of q taken out
        score_mu = (_normalised(tile.log_w)[:, :, None] * tile.draws.epsilon).sum(axis=1)
        s = np.exp(0.5 * tile.q.log_s2)
        outputs = [score_mu / s, 0.5 * (_normalised(tile.log_w)[:, :, None] * tile.draws.epsilon**2).sum(1)]
        bars = np.concatenate([outputs[0], (outputs[1] - 0.5) * tile.q.slope], axis=1)
        return by._replace(phi=by.phi + encoder.vjp(phi, x, bars)[0])

    return gradient


def _normalised(log_w: Array) -> Array:
    w = np.exp(log_w - np.real(log_w).max(axis=1, keepdims=True))
    return np.asarray(w / w.sum(axis=1, keepdims=True))


FAULTS = (
    Fault(
        "kl-without-half",
        "vae.draws.kl_to_prior",
        "KL(q ‖ N(0, I)) lacks its ½",
        lambda true: lambda mu, log_s2: 2.0 * true(mu, log_s2),
    ),
    Fault(
        "kl-without-one",
        "vae.draws.kl_to_prior",
        "KL(q ‖ N(0, I)) lacks the -1 of each axis, so that it is not 0 for q = N(0, I)",
        lambda true: lambda mu, log_s2: true(mu, log_s2) + 0.5 * mu.shape[1],
    ),
    Fault(
        "kl-log-s",
        "vae.draws.kl_to_prior",
        "KL(q ‖ N(0, I)) has log s for log s²",
        lambda true: lambda mu, log_s2: true(mu, log_s2) + 0.25 * log_s2.sum(axis=1),
    ),
    Fault(
        "kl-reversed",
        "vae.draws.kl_to_prior",
        "KL(N(0, I) ‖ q) is given for KL(q ‖ N(0, I))",
        lambda true: lambda mu, log_s2: 0.5 * ((1.0 + mu * mu) * np.exp(-log_s2) - 1.0 + log_s2).sum(axis=1),
    ),
    Fault(
        "log-standard-deviation",
        "vae.draws.encode_with_slope",
        "the encoder's outputs are read as log s in place of log s²",
        _log_standard_deviation,
    ),
    Fault(
        "variance-for-deviation",
        "vae.draws.draw",
        "z = μ + s² ε in place of z = μ + s ε",
        _standard_deviation_s2,
    ),
    Fault(
        "shared-noise",
        "vae.draws.draw",
        "every observation is given the noise of the first one",
        _same_noise,
    ),
    Fault(
        "kl-added",
        "vae.evidence._tile_values",
        "the KL is added to the expected log-likelihood in place of subtracted",
        _kl_added,
    ),
    Fault(
        "summed-draws",
        "vae.evidence._tile_values",
        "the ELBO sums log p(x | z) over the draws of noise in place of the mean",
        _summed_draws,
    ),
    Fault(
        "no-way-through-z",
        "vae.evidence.elbo_gradient_in_q",
        "the gradient in φ has the KL only: z = μ + s ε is taken as constant",
        _in_q(_no_way_through_z),
    ),
    Fault(
        "kl-gradient-without-half",
        "vae.evidence.elbo_gradient_in_q",
        "the gradient of the KL in log s² is s² - 1 in place of (s² - 1)/2",
        _in_q(_kl_half_lost),
    ),
    Fault(
        "equal-weights",
        "vae.evidence.nodes_of",
        "the nodes of a Gauss rule over q are averaged with equal weights",
        lambda true: lambda rule, m: (true(rule, m)[0], np.full(rule.count(m), 1.0 / rule.count(m))),
    ),
    Fault(
        "mean-of-logs",
        "vae.importance._log_mean",
        "IWAE is the mean of the log weights in place of the log of their mean",
        lambda true: lambda log_w: log_w.mean(axis=1),
    ),
    Fault(
        "iwae-forgotten-1/K",
        "vae.importance._log_mean",
        "IWAE sums the weights without dividing by their number",
        lambda true: lambda log_w: true(log_w) + math.log(log_w.shape[1]),
    ),
    Fault(
        "weights-without-q",
        "vae.importance._log_weights",
        "the importance weights lack their denominator q(z | x)",
        _log_weights(_log_q),
    ),
    Fault(
        "weights-without-log-s",
        "vae.importance._log_weights",
        "log q(z | x) lacks -log s: the density of the noise in place of that of z",
        _log_weights(lambda q, draws: -0.5 * q.log_s2.sum(axis=1)[:, None]),
    ),
    Fault(
        "equal-importance",
        "vae.importance._normalised",
        "the gradient of IWAE weights all draws equally",
        lambda true: lambda log_w: np.full(log_w.shape, 1.0 / log_w.shape[1]),
    ),
    Fault(
        "weights-not-squared",
        "vae.importance._tile_gradient",
        "the doubly-reparameterised gradient has v_l in place of v_l²",
        _single_weights,
    ),
    Fault(
        "ledger-without-log-s",
        "vae.ledger._log_ratio",
        "KL(q ‖ posterior), integrated directly, lacks the -log s of log q",
        lambda true: (
            lambda model, draws, log_s2: true(model, draws, log_s2) + 0.5 * log_s2.sum(axis=1)[:, None]
        ),
    ),
)
"""Faults of the variational side."""
