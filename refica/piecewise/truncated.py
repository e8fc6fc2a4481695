"""A Gaussian on an interval: its mass and Gauss rules for it, without cancellation in the tails.

On [lower, upper] take exp(-(κ τ + λ τ²/2)) relative to its value at its peak there, and each *side* of the
peak by itself. With v the distance from the peak in units of 1/sqrt(λ) a side is exp(-α v - v²/2) on
[0, V], where α > 0 only if the peak is an end of the interval. A side is cut where the exponent has
fallen by `DROP` and integrated by a 24-point Gauss-Legendre rule. All terms are positive, so nothing
cancels, however far the interval is from the mode or however narrow; closed forms (differences of normal
tails) do cancel there, those of the moments worst.
"""

# notation: κ linear coefficient, λ precision; T Gaussians, S sides; v = V s with s in [0, 1]

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from refica.likelihood import row_blocks
from refica.validation import Array

__all__ = ["Truncated", "fine", "gauss_legendre", "mass", "pair", "truncate"]

DROP = 42.0
"""A side ends where the exponent is this far below its peak: exp(-42) of it is 6e-19."""

BLOCK = 4096
"""Sides integrated at a time: 24 nodes of each are 800 kB, which stays in cache."""


class Truncated(NamedTuple):
    """Gaussians on intervals, arrays of any one shape: where they ``peak``, their ``scale`` 1/sqrt(λ), the
    ``decay`` α at the peak, and how far they extend to the ``left`` and to the ``right`` of it in units of
    ``scale``, up to `DROP`."""

    peak: Array
    scale: Array
    decay: Array
    left: Array
    right: Array


def gauss_legendre(order: int) -> tuple[Array, Array]:
    """Return nodes and weights on [0, 1], the weights to a few units in the last place.

    w_k = 1 / Σ_{j<order} p_j(s_k)² over the orthonormal Legendre polynomials: a sum of squares, where the
    usual formula with the derivative of the last one loses three digits at the outer nodes.
    """
    x = special.roots_legendre(order)[0]
    before, now = np.ones_like(x), x
    total = 0.5 + 1.5 * now * now
    for j in range(1, order - 1):
        before, now = now, ((2 * j + 1) * x * now - j * before) / (j + 1)
        total = total + (j + 1.5) * now * now
    return 0.5 * (1.0 + x), 0.5 / total


NODES, WEIGHTS = gauss_legendre(24)
"""With `DROP`, masses and the first two moments are right to 4e-15, the third to 4e-14 of the standard
deviation cubed, over all decays from 0 to 1e4 and lengths from 1e-8 up (against 60 digits)."""

POWERS = np.stack([NODES, NODES**2])
MOMENTS = WEIGHTS[:, None] * NODES[:, None] ** np.arange(4)


def truncate(kappa: Array, precision: Array, lower: Array, upper: Array) -> Truncated:
    """Return exp(-(κ τ + λ τ²/2)) on lower <= τ <= upper, either end of which may be infinite."""
    mode = -kappa / precision
    peak = np.minimum(np.maximum(mode, lower), upper)
    root = np.sqrt(precision)
    decay = root * np.abs(mode - peak)
    reach = 2.0 * DROP / (decay + np.sqrt(decay * decay + 2.0 * DROP))
    left, right = (np.minimum(root * np.maximum(side, 0.0), reach) for side in (peak - lower, upper - peak))
    return Truncated(peak, 1.0 / root, decay, left, right)


def mass(part: Truncated) -> Array:
    """∫ exp(-(κ τ + λ τ²/2)) dτ over the value at the peak, (T,)."""
    return part.scale * (part.left + part.right) * _moments(part)[0]


def fine(part: Truncated) -> tuple[Array, Array, Array]:
    """Return the Gauss-Legendre nodes τ on each side of positive length, their log weights for dτ, both
    (S, 24), and whose side it is (S,), in order."""
    reach = np.stack([-part.left, part.right], axis=1)
    owner, side = np.nonzero(reach)
    reach = (part.scale[:, None] * reach)[owner, side, None]
    return part.peak[owner, None] + reach * NODES, np.log(np.abs(reach) * WEIGHTS), owner


def pair(part: Truncated) -> tuple[Array, Array]:
    """Return the nodes τ (T, 2) of each Gaussian's own two-point Gauss rule, and log weights for dτ.

    The rule is exact for the Gaussian on its interval times a polynomial of degree up to 3. With mean, sd
    and skewness γ of that density, the nodes are mean + sd t with shares 1/(1 + t²) of its mass, for the
    two roots t of t² - γ t - 1 = 0; like those of every Gauss rule they lie inside. A weight for dτ is the
    share over the density. If the interval is long to both sides, the nodes are one sd from the mode: there
    v exp(-v²/2) is stationary, so that rounding of g(z) hardly touches the gradient of log p(x).
    """
    m0, m1, m2, m3 = _moments(part)
    mean, square = m1 / m0, m2 / m0
    variance = square - mean * mean  # loses nothing: sd >= |mean|/sqrt(3) for a density falling from 0
    sd = np.sqrt(variance)
    skewness = (m3 / m0 - mean * (3.0 * square - 2.0 * mean * mean)) / (variance * sd)
    far = 0.5 * (np.abs(skewness) + np.sqrt(skewness * skewness + 4.0))
    t = np.copysign(np.stack([far, 1.0 / far], axis=1), np.stack([skewness, -skewness], axis=1))
    length = part.left + part.right
    v = length[:, None] * (mean[:, None] + sd[:, None] * t)
    share = (part.scale * length * m0)[:, None] / (1.0 + t * t)
    depth = np.abs(v) * (part.decay[:, None] + 0.5 * np.abs(v))
    return part.peak[:, None] + part.scale[:, None] * v, np.log(share) + depth


def _moments(part: Truncated) -> Array:
    """∫ s^k exp(-α |v| - v²/2) ds for k = 0, 1, 2, 3 with v = (left + right) s, (4, T)."""
    length = part.left + part.right
    moments = np.zeros((4, len(length)))
    for sign, reach in ((-1.0, part.left), (1.0, part.right)):
        some = np.flatnonzero(reach)
        signed = sign * reach[some] / length[some]
        factor = np.abs(signed)
        for k, moment in enumerate(_side_moments(part.decay[some], reach[some])):
            moments[k, some] += factor * moment
            factor = factor * signed
    return moments


def _side_moments(decay: Array, length: Array) -> Array:
    """∫_0^1 s^k exp(-α v - v²/2) ds for k = 0, 1, 2, 3 with v = V s, as (4, S)."""
    coefficients = np.stack([decay * length, 0.5 * length * length], axis=1)
    moments = np.empty((4, len(length)))
    for rows in row_blocks(len(length), BLOCK):
        density = coefficients[rows] @ POWERS
        np.exp(np.negative(density, out=density), out=density)
        moments[:, rows] = (density @ MOMENTS).T
    return moments
