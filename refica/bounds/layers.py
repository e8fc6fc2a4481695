"""Interval and complex-ball passes through the layers of a decoder.

One pass carries, for every unit and cell, a line h(z) = h + J (z - c) + ε with bounds on ε for the real
cell and for each polydisc, an interval that holds h on the cell, and η, the rounding error of h as the
decoder computes it. An affine layer maps lines to lines; an activation f is replaced by its tangent at
the centre, with the remainder that the activation knows for a disc:

    f(a + w) = f(a) + f'(a) w + E,     |w| <= ρ = Σ_i |J_i| κ r_i + e   =>   e -> |f'(a)| e + E(a, ρ).

Carrying the line rather than a disc about the centre is what makes an observation far from the manifold
cheap: its exponent is steep in g, and only ε, of second order in the cell, is left to be bounded.
"""

# notation: C cells, m latent, S polydiscs; one layer takes h (C, fan_in) to a = h Wᵀ + b and f(a)

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refica.activations import Enclosable, LeakyReLU
from refica.bounds.enclosure import DISCS, GROW, Enclosure, U, node_roundoff
from refica.validation import Array

__all__ = ["Layer", "enclose_layers", "image_of_layers"]

SLOPE = 64.0 * U
"""Every computed derivative of an activation is right to SLOPE (1 + |f'|): a few elementary functions, each
right to 8 U, of a number that is exact. It covers the rounding of what is made from slopes too."""


class Layer(NamedTuple):
    """W (fan_out, fan_in), b (fan_out,) and the activation."""

    W: Array
    b: Array
    activation: Enclosable


class _Units(NamedTuple):
    """The units of a layer on C cells.

    h (C, u), J (C, m, u); lower, upper (C, u) as in `Enclosure`; error (1 + S, C, u), that of the real
    cell first; roundoff (C, u) = η; bend (C, m, u), how much of the real error each axis has caused.
    """

    h: Array
    J: Array
    lower: Array
    upper: Array
    error: Array
    roundoff: Array
    bend: Array


@np.errstate(over="ignore", invalid="ignore")  # inf and nan are bounds that say nothing
def enclose_layers(layers: Sequence[Layer], c: Array, r: Array) -> Enclosure:
    """Return the enclosure of a network on the cells c ± r, both (C, m)."""
    C, m = c.shape
    node = node_roundoff(c, r)
    units = _Units(
        h=c,
        J=np.broadcast_to(np.eye(m), (C, m, m)),
        lower=c - r - node,
        upper=c + r + node,
        error=np.zeros((1 + len(DISCS), C, m)),
        roundoff=node,
        bend=np.zeros((C, m, m)),
    )
    for layer in layers:
        units = _activate(layer, _affine(layer, units, r), r)
    return Enclosure(
        units.h,
        units.J.transpose(0, 2, 1),
        units.lower,
        units.upper,
        units.error[0],
        units.error[1:],
        units.roundoff,
        units.bend.transpose(0, 2, 1),
    )


@np.errstate(over="ignore", invalid="ignore")
def image_of_layers(layers: Sequence[Layer], lower: Array, upper: Array) -> tuple[Array, Array]:
    """Return an interval (B, n) that holds the network on each of B boxes, which may be infinite, (B, m).

    Plain interval arithmetic, layer by layer, widened by the rounding error of every step.
    """
    for W, b, activation in layers:
        terms = np.stack([W * lower[:, None, :], W * upper[:, None, :]])
        terms[:, :, W == 0] = 0.0  # not 0 times inf
        low, high = terms.min(axis=0), terms.max(axis=0)
        finite = np.where(np.isfinite(terms), np.abs(terms), 0.0).max(axis=0)
        slack = (W.shape[1] + 2) * U * (finite.sum(axis=-1) + np.abs(b)) * GROW
        low, high = low.sum(axis=-1) + b - slack, high.sum(axis=-1) + b + slack
        lower, upper = _widened(activation, *activation.image(low, high))
    return lower, upper


def _affine(layer: Layer, h: _Units, r: Array) -> _Units:
    """Return a = W h + b: the line is mapped, the bounds go through |W|, rounding is added.

    The sum W h + b of fan_in + 1 terms, computed in floats, is right to (fan_in + 2) U (|W| |h| + |b|);
    so is each column of W J to (fan_in + 2) U |W| |J|, which δ turns into |W| Σ_i |J_i| κ r_i.
    """
    W, b, _ = layer
    size, u = np.abs(W), (W.shape[1] + 2) * U * GROW
    a, J = h.h @ W.T + b, h.J @ W.T
    scales = np.concatenate([[1.0], DISCS])[:, None, None]
    spread = _spread(h.J, r)
    rounding = u * ((np.abs(h.h) + scales * spread) @ size.T + np.abs(b))
    error = _sure((h.error @ size.T + rounding) * GROW)

    magnitude = np.maximum(np.abs(h.lower), np.abs(h.upper)) @ size.T + np.abs(b)
    roundoff = (h.roundoff @ size.T) * GROW + u * magnitude
    # Interval arithmetic, and the line's own interval, which does not forget that units move together.
    positive, negative = np.maximum(W, 0.0).T, np.minimum(W, 0.0).T
    lower = h.lower @ positive + h.upper @ negative + b - 3.0 * u * magnitude
    upper = h.upper @ positive + h.lower @ negative + b + 3.0 * u * magnitude
    reach = (_spread(J, r) + error[0] + roundoff) * GROW + 2.0 * U * np.abs(a)
    lower, upper = np.maximum(lower, a - reach), np.minimum(upper, a + reach)
    return _Units(a, J, lower, upper, error, roundoff, h.bend @ size.T)


def _activate(layer: Layer, a: _Units, r: Array) -> _Units:
    """Return f(a): by its tangent at the centre or, where no polydisc has a use for that, by a secant.

    With a line of slope λ and deviation E from it, f(a + J δ + ε) = (line at a) + λ J δ + λ ε ± E. On the
    real cell E is that of a disc which holds [lower, upper] or, from the image, sup |f - f(a)| + |λ| radius.
    """
    f = layer.activation
    spread = _spread(a.J, r)
    half = np.maximum(a.upper - a.h, a.h - a.lower)
    radius = _sure(np.concatenate([half[None], DISCS[:, None, None] * spread + a.error[1:]]) * GROW)
    remainder = _sure(f.remainder(a.h, radius))
    low, high = f.image(a.lower, a.upper)
    slope, offset, error = _secant(f, a.lower, a.upper)
    # A tangent, which the polydiscs need, wherever it serves one of them or is the better line.
    smooth = np.isfinite(remainder[1:]).any(axis=0) | (remainder[0] <= error)
    slope = np.where(smooth, f.derivative(a.h), slope)
    h = np.where(smooth, f(a.h), slope * a.h + offset)
    wide = np.maximum(high - h, h - low) + np.abs(slope) * radius[0]
    remainder[0] = np.where(smooth, np.minimum(remainder[0], wide), error)
    remainder[1:, ~smooth] = np.inf

    rounding = f.roundoff * U * (1.0 + np.abs(h)) + SLOPE * (1.0 + np.abs(slope)) * (radius + spread)
    error = _sure((np.abs(slope) * a.error + remainder + rounding) * GROW)
    steepest = np.maximum(*map(np.abs, f.slopes(a.lower, a.upper))) + SLOPE
    lower, upper = _widened(f, low, high)
    magnitude = np.maximum(np.abs(lower), np.abs(upper))
    roundoff = (steepest * a.roundoff + f.roundoff * U * (1.0 + magnitude)) * GROW
    moved = np.abs(a.J) * r[:, :, None] + a.bend  # of the deviation each axis has caused what it moved
    share = remainder[0] / np.maximum(moved.sum(axis=1), np.finfo(float).tiny)
    bend = np.abs(slope)[:, None, :] * a.bend + share[:, None, :] * moved
    return _Units(h, slope[:, None, :] * a.J, lower, upper, error, roundoff, bend)


def _secant(f: Enclosable, lower: Array, upper: Array) -> tuple[Array, Array, Array]:
    """Return λ, v and E with |f(a) - v - λ a| <= E for real a in [lower, upper].

    An activation with a kink knows such a line; for others the middle of the image will do.
    """
    if isinstance(f, LeakyReLU):
        return f.secant(lower, upper)
    least, greatest = f.image(lower, upper)
    return np.zeros_like(lower), 0.5 * (least + greatest), 0.5 * (greatest - least)


def _spread(J: Array, r: Array) -> Array:
    """Σ_i |J_i| r_i, (C, u): how far the line moves on the cell."""
    return np.einsum("cmu,cm->cu", np.abs(J), r)


def _widened(activation: Enclosable, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Return an exact image widened by what its evaluation, and that of f within it, may be off."""
    slack = 2.0 * activation.roundoff * U * GROW
    if slack == 0.0:  # which an infinite end would turn into nan
        return lower, upper
    return lower - slack * (1.0 + np.abs(lower)), upper + slack * (1.0 + np.abs(upper))


def _sure(bound: Array) -> Array:
    """Return the bound with nan (0 times inf, inf - inf) read as inf."""
    return np.where(np.isnan(bound), np.inf, bound)
