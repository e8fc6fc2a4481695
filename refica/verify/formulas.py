"""The formulas of the documents as they stand there: plain, slow, and sharing nothing with refica.

Densities are products of densities of one coordinate, networks are loops over units, sums are sums. All
accept complex parameters. `refica verify` compares refica with these.
"""

# notation: N observations, n data, m latent, K nodes; x (N, n); z (K, m); g (K, n); theta (p,)

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refica.validation import Array

__all__ = [
    "ACTIVATIONS",
    "exponent",
    "iwae",
    "kl",
    "log_joint",
    "log_normal",
    "network",
    "normal",
    "polynomial",
    "residuals",
    "squared_norm",
]


def normal(u: Array, mean: Array | float, variance: Any) -> Array:
    """φ(u; mean, variance I): the product over the last axis of one-dimensional normal densities."""
    each = (2.0 * math.pi * variance) ** -0.5 * np.exp(-((u - mean) ** 2) / (2.0 * variance))
    return np.prod(each, axis=-1)


def log_normal(u: Array, mean: Array | float, variance: Any) -> Array:
    """log φ(u; mean, variance I), coordinate by coordinate."""
    each = -0.5 * np.log(2.0 * math.pi * variance) - (u - mean) ** 2 / (2.0 * variance)
    return each.sum(axis=-1)


def residuals(x: Array, g: Array) -> Array:
    """x_i - g_k, (N, K, n)."""
    return x[:, None, :] - g[None, :, :]


def squared_norm(r: Array) -> Array:
    """‖r‖² over the last axis, as a sum of squares (not of moduli: r may be complex)."""
    return (r * r).sum(axis=-1)


def exponent(x: Array, g: Array, sigma2: Any) -> Array:
    """-‖x_i - g_k‖² / 2σ², (N, K)."""
    return -squared_norm(residuals(x, g)) / (2.0 * sigma2)


def log_joint(x: Array, z: Array, g: Array, sigma2: Any) -> Array:
    """log φ(x_i; g_k, σ² I) + log φ(z_k; 0, I), (N, K): E(2)."""
    return log_normal(x[:, None, :], g[None, :, :], sigma2) + log_normal(z, 0.0, 1.0)


def kl(mu: Array, s: Array) -> Array:
    """½ Σ_j (μ_j² + s_j² - 1 - log s_j²) for standard deviations s (N, m)."""
    return 0.5 * (mu**2 + s**2 - 1.0 - np.log(s**2)).sum(axis=-1)


def iwae(log_w: Array) -> Array:
    """log (1/L Σ_l exp log_w_l), (N, L) -> (N,), in the plainest way."""
    return np.log(np.exp(log_w).sum(axis=1) / log_w.shape[1])


def _sigmoid(a: complex) -> complex:
    return 1.0 / (1.0 + cmath.exp(-a)) if a.real >= 0 else cmath.exp(a) / (1.0 + cmath.exp(a))


def _softplus(a: float) -> float:
    return a + math.log1p(math.exp(-a)) if a > 0 else math.log1p(math.exp(a))


ACTIVATIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "identity": (lambda a: a, lambda a: 1.0),
    "tanh": (math.tanh, lambda a: 1.0 / math.cosh(a) ** 2),
    "sigmoid": (
        lambda a: _sigmoid(complex(a)).real,
        lambda a: (_sigmoid(complex(a)) * _sigmoid(complex(-a))).real,
    ),
    "relu": (lambda a: max(a, 0.0), lambda a: 1.0 if a > 0 else 0.0),
    "leaky_relu": (lambda a: a if a > 0 else 0.01 * a, lambda a: 1.0 if a > 0 else 0.01),
    "gelu": (
        lambda a: 0.5 * a * math.erfc(-a / math.sqrt(2.0)),
        lambda a: (
            0.5 * math.erfc(-a / math.sqrt(2.0)) + a * math.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)
        ),
    ),
    "softplus": (_softplus, lambda a: _sigmoid(complex(a)).real),
    "sin": (math.sin, math.cos),
}
"""Each activation and its derivative for one number, from the mathematics library."""


def network(sizes: Sequence[int], activations: Sequence[str], theta: Array, z: Array) -> Array:
    """An MLP unit by unit: a_j = b_j + Σ_i W_ji h_i, where theta is W row by row, then b, layer by layer."""
    rows = []
    for row in z:
        h, position = list(map(float, row)), 0
        for fan_in, fan_out, name in zip(sizes, sizes[1:], activations, strict=False):
            biases = position + fan_in * fan_out
            h = [
                ACTIVATIONS[name][0](
                    float(theta[biases + j])
                    + math.fsum(theta[position + j * fan_in + i] * h[i] for i in range(fan_in))
                )
                for j in range(fan_out)
            ]
            position = biases + fan_out
        rows.append(h)
    return np.array(rows)


def polynomial(m: int, n: int, degree: int, theta: Array, z: Array) -> Array:
    """Σ_j C_dj z^α_j monomial by monomial, graded, within a degree z1 before z2."""
    every = [e for e in itertools.product(range(degree + 1), repeat=m) if sum(e) <= degree]
    every.sort(key=lambda e: (sum(e), [-i for i in e]))
    rows = []
    for row in z:
        monomials = [math.prod(float(row[i]) ** e[i] for i in range(m)) for e in every]
        rows.append(
            [math.fsum(theta[d * len(every) + j] * monomials[j] for j in range(len(every))) for d in range(n)]
        )
    return np.array(rows)
