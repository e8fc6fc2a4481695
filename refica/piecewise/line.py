"""One latent dimension: nodes for each observation, on the pieces that matter to it.

On a piece g(z) = value + slope τ, τ = z - anchor, makes the log joint density a parabola,

    log p(x, z) = const - (κ τ + λ τ²/2),     λ = 1 + ‖slope‖²/σ²,  κ = anchor - slope·(x - value)/σ²,

that is a Gaussian on an interval, for which `truncated` has Gauss rules.
"""

# notation: N observations, n data, P pieces; S sides of (observation, piece) pairs, by observation

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refica.model import NonlinearICA
from refica.piecewise.network import pieces
from refica.piecewise.scattered import Scattered
from refica.piecewise.truncated import Truncated, fine, pair, truncate
from refica.validation import Array

__all__ = ["Parts", "fine_nodes", "pair_nodes", "parts_on_the_line"]

NEGLIGIBLE = 40.0
"""A piece whose mass is below exp(-40) = 4e-18 of the largest one's is left out."""


class Parts(NamedTuple):
    """The S parts that matter, in order of their observation: its number ``row`` (S,) and the ``gaussian``
    in the coordinate z; ``peak`` (N, 1) is where the largest part of each observation has its peak."""

    row: Array
    gaussian: Truncated
    peak: Array


def parts_on_the_line(model: NonlinearICA, x: Array) -> Parts:
    """Return the parts of the line that matter to the observations x (N, n).

    The mass of a piece is between 0.4 and 1 times exp(peak) min(its length, sqrt(2π), 1/decay).

    Raises
    ------
    ValueError
        If the decoder is not piecewise affine.
    """
    lower, upper, anchor, value, slope = pieces(model.decoder, model.theta)
    residual = x[:, None, :] - value
    precision = 1.0 + np.einsum("pn,pn->p", slope, slope) / model.sigma2
    kappa = anchor - np.einsum("ipn,pn->ip", residual, slope) / model.sigma2
    part = truncate(kappa, precision, lower - anchor, upper - anchor)
    part = Truncated(*(np.broadcast_to(field, kappa.shape) for field in part))
    residual -= part.peak[..., None] * slope
    z = anchor + part.peak
    log_peak = -0.5 * (np.einsum("ipn,ipn->ip", residual, residual) / model.sigma2 + z * z)
    log_mass = log_peak + np.log(part.scale * _extent(part))
    best = log_mass.argmax(axis=1)[:, None]
    row, piece = np.nonzero(log_mass > np.take_along_axis(log_mass, best, axis=1) - NEGLIGIBLE)
    gaussian = Truncated(*(field[row, piece] for field in part._replace(peak=z)))
    return Parts(row, gaussian, np.take_along_axis(z, best, axis=1))


def _extent(part: Truncated) -> Array:
    """min(length, sqrt(2π), 1/decay) in units of the scale: within a factor 2.5 of the mass over the peak."""
    longest = 1.0 / np.maximum(part.decay, 1.0 / math.sqrt(2.0 * math.pi))
    return np.maximum(np.minimum(part.left + part.right, longest), np.finfo(float).tiny)


def fine_nodes(parts: Parts) -> Scattered:
    """Return 24 Gauss-Legendre nodes on each side of each peak: they serve not only the likelihood, but any
    function that is smooth between the bends of the decoder, and samples of the posterior."""
    z, log_weight, owner = fine(parts.gaussian)
    return _nodes(parts.row[owner], z, log_weight)


def pair_nodes(parts: Parts) -> Scattered:
    """Return the two-point Gauss rule of each part: exact for p(x) and its gradient, whose integrands are
    there a Gaussian times polynomials of degree 0 and 2."""
    return _nodes(parts.row, *pair(parts.gaussian))


def _nodes(row: Array, z: Array, log_weight: Array) -> Scattered:
    return Scattered(np.repeat(row, z.shape[1]), z.reshape(-1, 1), log_weight.ravel())
