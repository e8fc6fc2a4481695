"""The importance-weighted bound (Burda, Grosse and Salakhutdinov, ICLR 2016) and two gradients of it.

With L draws z_l = μ + s ε_l of q(z | x) = N(μ, diag s²) for each observation,

    log w_l = log p(x, z_l) - log q(z_l | x),        IWAE(x) = log mean_l w_l <= log p(x) in expectation,

more tightly the more draws there are. With the normalised weights v_l = w_l / Σ w held fixed,

    plain:                   Σ_l v_l ∇ log w_l                       the derivative of the value itself,
    doubly reparameterised:  Σ_l v_l² (∂ log w_l/∂z_l) (∂z_l/∂φ)      for φ (Tucker et al., ICLR 2019),

of the same expectation. Where the weights have a finite variance, the signal-to-noise ratio of the plain one
for φ falls like 1/√L (Rainforth et al., ICML 2018) while that of the other one grows like √L. Where q has
lighter tails than the posterior they have none, and neither rate holds (benchmarks/estimators.py shows both).

The formulas accept complex theta, sigma2 and phi, for differentiation by the complex step.
"""

# notation: N observations, R of them, n data, m latent, L draws; x (R, n), noise ε (L, R, m), z (R, L, m),
# log_w and v (R, L), mu and log_s2 (R, m)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refica.decoders import Decoder
from refica.likelihood import DECODER_ROWS, row_blocks
from refica.model import LOG_2PI, log_likelihood_given, log_prior
from refica.vae.draws import Draws, Encoded, draw, encode_with_slope, pull_back, pull_back_to_phi
from refica.vae.model import Bound, BoundGradient, bound_at, check_vae
from refica.validation import Array, check_array, check_choice

__all__ = ["ESTIMATORS", "iwae", "iwae_and_gradient", "iwae_values"]

ESTIMATORS = ("plain", "doubly-reparameterised")
"""Gradients of the bound; they differ in φ only."""


def iwae(vae: Any, x: Any, noise: Any, gradient: bool = True, estimator: str = "plain") -> Bound:
    """Return the importance-weighted bound at given noise, and its gradient in (θ, σ², φ).

    Parameters
    ----------
    vae : VAE
    x : array_like (N, n)
    noise : array_like (L, N, m)
        ε: L draws from N(0, I_m) for each observation. With L = 1 the expectation is the ELBO.
    gradient : bool
        Whether to compute the gradient, of the total and at this noise.
    estimator : str
        ``"plain"``: the exact derivative of the value returned. ``"doubly-reparameterised"``: in φ another
        estimate of the same expected gradient, with less noise for most q; in θ and σ² the same.

    Raises
    ------
    TypeError, ValueError
        For arrays that are not finite or of another shape, or an unknown estimator.

    Notes
    -----
    For an estimate of log p(x) with an error use `refica.Quadrature` with `refica.monte_carlo` on a
    `refica.EncoderProposal`.

    Examples
    --------
    >>> from refica import MLP, VAE, NonlinearICA
    >>> model = NonlinearICA(MLP((1, 1)), [1.0, 0.0], sigma2=1.0)
    >>> vae = VAE(model, MLP((1, 2)), [0.5, 0.0, 0.0, np.log(0.5)])  # q is the posterior N(x/2, 1/2)
    >>> noise = np.random.default_rng(0).standard_normal((2, 1, 1))
    >>> round(iwae(vae, [[1.0]], noise).total, 12)  # all weights are p(x): log N(1; 0, 2)
    -1.515512123485
    """
    model = check_vae(vae).model
    x = model.check_data(x)
    noise = check_array("noise", noise, ("L", len(x), model.latent_dim))
    estimator = check_choice("estimator", estimator, ESTIMATORS)
    arguments = (model.decoder, vae.encoder, model.theta, model.sigma2, vae.phi, x, noise)
    if not gradient:
        return bound_at(iwae_values(*arguments), None)
    return bound_at(*iwae_and_gradient(*arguments, estimator=estimator))


def iwae_values(
    decoder: Decoder, encoder: Decoder, theta: Array, sigma2: float, phi: Array, x: Array, noise: Array
) -> Array:
    """Return IWAE(x_i) (N,) at noise (L, N, m): the plain formula behind `iwae`, which checks nothing."""
    tiles = _tiles(decoder, encoder, theta, sigma2, phi, x, noise)
    return np.concatenate([_log_mean(tile.log_w) for tile in tiles])


def iwae_and_gradient(
    decoder: Decoder,
    encoder: Decoder,
    theta: Array,
    sigma2: float,
    phi: Array,
    x: Array,
    noise: Array,
    estimator: str = "plain",
) -> tuple[Array, BoundGradient]:
    """Return IWAE(x_i) (N,) and an estimate of the gradient of their sum, otherwise as `iwae_values`."""
    values = []
    theta_bar, sigma2_bar, phi_bar = np.zeros_like(theta), 0.0, np.zeros_like(phi)
    for tile in _tiles(decoder, encoder, theta, sigma2, phi, x, noise):
        values.append(_log_mean(tile.log_w))
        by = _tile_gradient(decoder, encoder, theta, sigma2, phi, x[tile.rows], tile, estimator)
        theta_bar, sigma2_bar, phi_bar = theta_bar + by.theta, sigma2_bar + by.sigma2, phi_bar + by.phi
    return np.concatenate(values), BoundGradient(theta_bar, sigma2_bar, phi_bar)


class _Tile(NamedTuple):
    """R observations, their ``rows``, with all of their draws and the log weights ``log_w`` (R, L)."""

    rows: slice
    q: Encoded
    draws: Draws
    log_w: Array


def _tiles(
    decoder: Decoder, encoder: Decoder, theta: Array, sigma2: float, phi: Array, x: Array, noise: Array
) -> Iterator[_Tile]:
    """Yield tiles of DECODER_ROWS latents, or one observation if it has more."""
    for rows in row_blocks(len(x), max(1, DECODER_ROWS // len(noise))):
        q = encode_with_slope(encoder, phi, x[rows])
        draws = draw(decoder, theta, q.mu, q.log_s2, x[rows], noise[:, rows])
        yield _Tile(rows, q, draws, _log_weights(sigma2, q, draws))


def _log_weights(sigma2: float, q: Encoded, draws: Draws) -> Array:
    """log w_il = log N(x_i; g_il, σ² I) + log N(z_il; 0, I) - log N(z_il; μ_i, diag s_i²), (R, L), with

    log N(z; μ, diag s²) = -½ Σ_j (ε_j² + log s_j² + log 2π)    at z = μ + s ε.
    """
    log_q = -0.5 * (np.square(draws.epsilon) + q.log_s2[:, None] + LOG_2PI).sum(axis=2)
    log_x = log_likelihood_given(draws.squared, sigma2, draws.g.shape[2])
    return np.asarray(log_x + log_prior(draws.z) - log_q)


def _log_mean(log_w: Array) -> Array:
    """log mean_l exp(log w_l), (R, L) -> (R,)."""
    top = np.real(log_w).max(axis=1)
    return np.asarray(top + np.log(np.exp(log_w - top[:, None]).mean(axis=1)))


def _normalised(log_w: Array) -> Array:
    """v_l = w_l / Σ_l w_l, (R, L)."""
    w = np.exp(log_w - np.real(log_w).max(axis=1, keepdims=True))
    return np.asarray(w / w.sum(axis=1, keepdims=True))


def _tile_gradient(
    decoder: Decoder,
    encoder: Decoder,
    theta: Array,
    sigma2: float,
    phi: Array,
    x: Array,
    tile: _Tile,
    estimator: str,
) -> BoundGradient:
    """Gradient of Σ_i IWAE(x_i) over a tile. With v_bar = ∂/∂z Σ_l v_l log p(x, z_l), (R, L, m),

    plain:       ∂/∂μ = Σ_l v_bar_l,      ∂/∂log s² = Σ_l ½ s ε_l v_bar_l + ½,
    doubly r.:   ∂/∂μ = Σ_l d_l,          ∂/∂log s² = Σ_l ½ s ε_l d_l,     d_l = v_l v_bar_l + v_l² ε_l / s,

    for in the total derivative log q = -½ ε² - ½ log s² + .., while ∂ log q/∂z = -ε/s at fixed μ and s.
    """
    n, q, (epsilon, z, g, squared) = tile.draws.g.shape[2], tile.q, tile.draws
    v = _normalised(tile.log_w)
    sigma2_bar = (v * (squared / sigma2 - n)).sum() / (2.0 * sigma2)
    theta_bar, v_bar = pull_back(decoder, theta, z, (v / sigma2)[:, :, None] * (x[:, None] - g))
    v_bar = v_bar - v[:, :, None] * z
    s = np.exp(0.5 * q.log_s2)
    if estimator == "plain":
        mu_bar = v_bar.sum(axis=1)
        log_s2_bar = 0.5 * s * np.einsum("ilm,ilm->im", v_bar, epsilon) + 0.5
    else:
        d = v[:, :, None] * (v_bar + v[:, :, None] * epsilon / s[:, None])
        mu_bar = d.sum(axis=1)
        log_s2_bar = 0.5 * s * np.einsum("ilm,ilm->im", d, epsilon)
    return BoundGradient(
        theta_bar, sigma2_bar, pull_back_to_phi(encoder, phi, x, q.slope, mu_bar, log_s2_bar)
    )
