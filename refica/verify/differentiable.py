"""The model a third time, in autograd.numpy, from the mathematics alone. Needs autograd.

Everything that the gradient is not taken of is handed in as a number.
"""

# notation: N observations, n data, m latent, K nodes, L draws; x (N, n); z (K, m); W (N, K) weights

from __future__ import annotations

import itertools
from typing import Any

import autograd.numpy as np
from autograd import grad
from autograd.scipy.special import erfc, logsumexp

from refica.decoders import MLP, Polynomial
from refica.validation import Array

__all__ = [
    "activation_slope",
    "decode",
    "decoder_gradient",
    "elbo_gradient",
    "iwae_gradient",
    "kl_gradient",
    "knows",
    "log_likelihood_gradient",
    "sigma2_lines",
    "theta_lines",
]


def knows(decoder: Any) -> bool:
    """Whether the decoder can be rewritten here."""
    return isinstance(decoder, (MLP, Polynomial))


def activation_slope(name: str, a: Array) -> Array:
    """The derivative of an activation at a (K,)."""
    return np.array(grad(lambda b: np.sum(_activate(name, b)))(a))


def _activate(name: str, a: Any) -> Any:
    if name == "identity":
        return a
    if name == "tanh":
        return np.tanh(a)
    if name == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -a))
    if name == "gelu":
        return 0.5 * a * erfc(-a / np.sqrt(2.0))
    if name == "softplus":
        return np.logaddexp(0.0, a)
    if name == "sin":
        return np.sin(a)
    slope = {"relu": 0.0, "leaky_relu": 0.01}[name] if "(" not in name else float(name[11:-1])
    return np.where(a > 0.0, a, slope * a)


def decode(decoder: Any, theta: Any, z: Any) -> Any:
    """g_θ(z), (K, m) -> (K, n); the decoder is only read for its sizes and names."""
    if isinstance(decoder, Polynomial):
        every = [
            e
            for e in itertools.product(range(decoder.degree + 1), repeat=decoder.latent_dim)
            if sum(e) <= decoder.degree
        ]
        every.sort(key=lambda e: (sum(e), [-i for i in e]))
        powers = np.stack([np.prod(z ** np.array(e), axis=-1) for e in every], axis=-1)
        return np.dot(powers, np.reshape(theta, (decoder.data_dim, len(every))).T)
    hidden = [decoder.activation.name] * (len(decoder.sizes) - 2)
    h, position = z, 0
    for fan_in, fan_out, name in zip(
        decoder.sizes, decoder.sizes[1:], [*hidden, decoder.output_activation.name], strict=False
    ):
        W = np.reshape(theta[position : position + fan_in * fan_out], (fan_out, fan_in))
        position += fan_in * fan_out
        h = _activate(name, np.dot(h, W.T) + theta[position : position + fan_out])
        position += fan_out
    return h


def decoder_gradient(decoder: Any, theta: Array, z: Array, cotangent: Array) -> tuple[Array, Array]:
    """The gradient in (θ, z) of Σ_k c_k · g_θ(z_k)."""
    by = grad(lambda t, u: np.sum(cotangent * decode(decoder, t, u)), argnum=(0, 1))(theta, z)
    return by[0], by[1]


def _squared(decoder: Any, theta: Any, x: Array, z: Array) -> Any:
    return np.sum((x[:, None, :] - decode(decoder, theta, z)[None]) ** 2, axis=-1)


def theta_lines(decoder: Any, theta: Array, sigma2: float, x: Array, z: Array, W: Array) -> list[Array]:
    """The four lines of D's gradient in θ; W holds the nodes' weights times φ(z; 0, I)."""
    n = x.shape[1]
    normaliser = (2.0 * np.pi * sigma2) ** (-n / 2.0)
    density = normaliser * np.exp(-_squared(decoder, theta, x, z) / (2.0 * sigma2))
    V = np.einsum("ik,ikn->kn", W * density, x[:, None] - decode(decoder, theta, z)[None]) / sigma2

    def first(t: Any) -> Any:
        each = np.exp(-((x[:, None] - decode(decoder, t, z)[None]) ** 2) / (2.0 * sigma2))
        product = W
        for d in range(n):  # autograd's prod divides by its factors, which may be 0
            product = product * each[:, :, d] / np.sqrt(2.0 * np.pi * sigma2)
        return np.sum(product)

    def second(t: Any) -> Any:
        return normaliser * np.sum(W * np.exp(-_squared(decoder, t, x, z) / (2.0 * sigma2)))

    def third(t: Any) -> Any:
        return np.sum(W * density * -_squared(decoder, t, x, z) / (2.0 * sigma2))

    def fourth(t: Any) -> Any:
        return np.sum(V * decode(decoder, t, z))

    return [grad(line)(theta) for line in (first, second, third, fourth)]


def sigma2_lines(squared: Array, n: int, sigma2: float, W: Array) -> list[float]:
    """The first two lines of D's gradient in σ², by autograd; the third has no derivative left in it."""

    def first(s: Any) -> Any:
        return np.sum(W * np.exp(-n / 2.0 * np.log(2.0 * np.pi * s) - squared / (2.0 * s)))

    def second(s: Any) -> Any:
        return np.sum(W * (2.0 * np.pi * s) ** (-n / 2.0) * np.exp(-squared / (2.0 * s)))

    return [float(grad(line)(sigma2)) for line in (first, second)]


def _log_joint(decoder: Any, theta: Any, sigma2: Any, x: Array, z: Any) -> Any:
    n, m = x.shape[1], z.shape[-1]
    squared = np.sum((x - decode(decoder, theta, z)) ** 2, axis=-1)
    log_x = -squared / (2.0 * sigma2) - n / 2.0 * np.log(2.0 * np.pi * sigma2)
    return log_x - np.sum(z**2, axis=-1) / 2.0 - m / 2.0 * np.log(2.0 * np.pi)


def log_likelihood_gradient(
    decoder: Any, theta: Array, sigma2: float, x: Array, z: Array, log_weight: Array
) -> tuple[Array, float]:
    """The gradient in (θ, σ²) of Σ_i log Σ_k exp(log_weight_k) p(x_i, z_k)."""

    def objective(t: Any, s: Any) -> Any:
        log_x = -_squared(decoder, t, x, z) / (2.0 * s) - x.shape[1] / 2.0 * np.log(2.0 * np.pi * s)
        log_z = -np.sum(z**2, axis=-1) / 2.0 - z.shape[1] / 2.0 * np.log(2.0 * np.pi)
        return np.sum(logsumexp(log_x + log_z + log_weight, axis=1))

    by = grad(objective, argnum=(0, 1))(theta, sigma2)
    return by[0], float(by[1])


def _drawn(encoder: Any, phi: Any, x: Array, noise: Array) -> tuple[Any, Any, Any]:
    outputs = decode(encoder, phi, x)
    m = noise.shape[2]
    mu, log_s2 = outputs[:, :m], outputs[:, m:]
    return mu, log_s2, mu[None] + np.exp(log_s2 / 2.0)[None] * noise


def elbo_gradient(
    decoder: Any, encoder: Any, theta: Array, sigma2: float, phi: Array, x: Array, noise: Array
) -> tuple[Array, float, Array]:
    """The gradient in (θ, σ², φ) of Σ_i mean_l log p(x_i | z_il) - KL(q_i ‖ N(0, I))."""
    n = x.shape[1]

    def objective(t: Any, s: Any, f: Any) -> Any:
        mu, log_s2, z = _drawn(encoder, f, x, noise)
        kl = np.sum(mu**2 + np.exp(log_s2) - 1.0 - log_s2) / 2.0
        flat = np.reshape(z, (-1, noise.shape[2]))
        r = np.tile(x, (len(noise), 1)) - decode(decoder, t, flat)
        log_x = -np.sum(r**2) / (2.0 * s) - len(flat) * n / 2.0 * np.log(2.0 * np.pi * s)
        return log_x / len(noise) - kl

    by = grad(objective, argnum=(0, 1, 2))(theta, sigma2, phi)
    return by[0], float(by[1]), by[2]


def iwae_gradient(
    decoder: Any, encoder: Any, theta: Array, sigma2: float, phi: Array, x: Array, noise: Array
) -> tuple[Array, float, Array]:
    """The gradient in (θ, σ², φ) of Σ_i log mean_l p(x_i, z_il) / q(z_il | x_i)."""
    L, N, m = noise.shape

    def objective(t: Any, s: Any, f: Any) -> Any:
        mu, log_s2, z = _drawn(encoder, f, x, noise)
        log_q = -np.sum((z - mu) ** 2 / np.exp(log_s2) + log_s2 + np.log(2.0 * np.pi), axis=-1) / 2.0
        flat = np.reshape(z, (-1, m))
        joint = np.reshape(_log_joint(decoder, t, s, np.tile(x, (L, 1)), flat), (L, N))
        return np.sum(logsumexp(joint - log_q, axis=0) - np.log(L))

    by = grad(objective, argnum=(0, 1, 2))(theta, sigma2, phi)
    return by[0], float(by[1]), by[2]


def kl_gradient(mu: Array, log_s2: Array) -> tuple[Array, Array]:
    """The gradient of ½ Σ (μ² + s² - 1 - log s²) in μ and log s²."""
    by = grad(lambda a, b: np.sum(a**2 + np.exp(b) - 1.0 - b) / 2.0, argnum=(0, 1))(mu, log_s2)
    return by[0], by[1]
