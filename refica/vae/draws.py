"""Latents drawn from the encoder's Gaussians, z = μ + s ε, and the way back from them to φ.

Everything here accepts complex theta and phi, for differentiation by the complex step.
"""

# notation: R observations, n data, m latent, q parameters of the encoder, L draws; x (R, n),
# mu and log_s2 (R, m), noise ε (L, R, m)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refica.decoders import Decoder
from refica.encoder import soft_clamp
from refica.likelihood import DECODER_ROWS, decode, row_blocks
from refica.model import squared_distances
from refica.validation import Array

__all__ = [
    "Draws",
    "Encoded",
    "draw",
    "encode_with_slope",
    "kl_per_latent",
    "kl_to_prior",
    "pull_back",
    "pull_back_to_phi",
]


class Encoded(NamedTuple):
    """q of R observations: ``mu``, ``log_s2`` and the slope of it in the encoder's output, each (R, m)."""

    mu: Array
    log_s2: Array
    slope: Array


class Draws(NamedTuple):
    """L draws for each of R observations: noise ``epsilon`` and latents ``z`` (R, L, m), the decoder's values
    ``g`` (R, L, n) at them, ``squared`` = ‖x_i - g_il‖² (R, L)."""

    epsilon: Array
    z: Array
    g: Array
    squared: Array


def encode_with_slope(encoder: Decoder, phi: Array, x: Array) -> Encoded:
    """Return μ, log s² and its slope for x (R, n)."""
    outputs = encoder(phi, x)
    m = outputs.shape[1] // 2
    return Encoded(outputs[:, :m], *soft_clamp(outputs[:, m:]))


def draw(decoder: Decoder, theta: Array, mu: Array, log_s2: Array, x: Array, noise: Array) -> Draws:
    """Return z_il = μ_i + s_i ε_li for noise (L, R, m), decoded."""
    epsilon = noise.swapaxes(0, 1)
    z = mu[:, None] + np.exp(0.5 * log_s2)[:, None] * epsilon
    g = decode(decoder, theta, z.reshape(-1, z.shape[2])).reshape(*z.shape[:2], x.shape[1])
    return Draws(epsilon, z, g, squared_distances(x, g))


def kl_to_prior(mu: Array, log_s2: Array) -> Array:
    """KL(N(μ, diag s²) ‖ N(0, I)) = Σ_j KL_j, (R, m) -> (R,)."""
    return np.asarray(kl_per_latent(mu, log_s2).sum(axis=1))


def kl_per_latent(mu: Array, log_s2: Array) -> Array:
    """KL_j = KL(N(μ_j, s_j²) ‖ N(0, 1)) = ½ (μ_j² + s_j² - 1 - log s_j²), (R, m) -> (R, m)."""
    return np.asarray(0.5 * (mu * mu + np.expm1(log_s2) - log_s2))


def pull_back(decoder: Decoder, theta: Array, z: Array, g_bar: Array) -> tuple[Array, Array]:
    """Return theta_bar (p,) and z_bar (R, L, m) for g_bar (R, L, n), a block of latents at a time."""
    R, L, m = z.shape
    flat, cotangent = z.reshape(R * L, m), g_bar.reshape(R * L, -1)
    blocks = [decoder.vjp(theta, flat[rows], cotangent[rows]) for rows in row_blocks(R * L, DECODER_ROWS)]
    theta_bar = np.sum([block[0] for block in blocks], axis=0)
    return theta_bar, np.concatenate([block[1] for block in blocks]).reshape(R, L, m)


def pull_back_to_phi(
    encoder: Decoder, phi: Array, x: Array, slope: Array, mu_bar: Array, log_s2_bar: Array
) -> Array:
    """Return phi_bar (q,) for derivatives in μ and log s², each (R, m)."""
    outputs_bar = np.concatenate([mu_bar, log_s2_bar * slope], axis=1)
    return encoder.vjp(phi, x, outputs_bar)[0]
