"""A piecewise-affine network on a line: where it bends, and the affine map on each piece between.

Layer by layer: on the pieces found so far every pre-activation of the next layer is affine, so each of
its units bends at most once on each, where its pre-activation is zero (Balestriero, Paris and Baraniuk,
NeurIPS 2020, carry such pieces through relu networks in any dimension).
"""

# notation: L lines {origin + t direction}, P pieces of each, h units of a layer, U of all bending layers

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refica.activations import Identity, LeakyReLU
from refica.decoders import MLP, Decoder
from refica.validation import Array

__all__ = [
    "COINCIDENT",
    "Bends",
    "Layer",
    "Pieces",
    "Signal",
    "bends_on_lines",
    "forward",
    "intervals",
    "is_piecewise_affine",
    "layers_of",
    "pieces",
]

FAR = 1e12
"""A bend beyond this is left out: the prior there is exp(-5e23), out of reach of any x."""

COINCIDENT = 1e-12
"""A pre-activation, or its derivative, below this in units of the terms it is made of is zero."""


class Layer(NamedTuple):
    """An affine map and its activation: a for a > 0, ``slope`` a otherwise; it bends unless slope is 1."""

    W: Array
    b: Array
    slope: float


class Signal(NamedTuple):
    """What passes through a layer at some points: pre-activation ``a`` (..., h) and output (..., h), their
    derivatives along q tangents (..., q, h), and ``size`` (..., h), the sum of the moduli of all terms that
    ``a`` was added up from, which is the measure of its rounding error."""

    a: Array
    da: Array
    output: Array
    doutput: Array
    size: Array


class Bends(NamedTuple):
    """Where lines bend, in order: ``at`` (L, B), and the ``unit`` (L, B) that bends there, counted through
    the bending layers; inf and -1 where a line has fewer than B."""

    at: Array
    unit: Array


class Pieces(NamedTuple):
    """An affine map on each of P intervals (lower, upper): g(t) = value + slope (t - anchor).

    ``lower``, ``upper``, ``anchor`` (P,), ``value`` and ``slope`` (P, n). The map is given at a point of
    the interval, not at 0: a steep piece far away would lose its digits on the way there.
    """

    lower: Array
    upper: Array
    anchor: Array
    value: Array
    slope: Array


def is_piecewise_affine(decoder: Decoder) -> bool:
    """Whether a decoder is an MLP whose activations are all identity, relu or leaky relu."""
    return isinstance(decoder, MLP) and all(
        isinstance(act, (Identity, LeakyReLU)) for act in decoder.activations
    )


def layers_of(decoder: Decoder, theta: Array) -> list[Layer]:
    """Return the layers of a piecewise-affine decoder.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not (isinstance(decoder, MLP) and is_piecewise_affine(decoder)):
        raise ValueError(
            "ExactPiecewiseAffine needs an MLP whose activations are identity, relu or leaky_relu, got "
            f"{decoder}; use integrator=None, which picks one that fits"
        )
    slopes = [act.slope if isinstance(act, LeakyReLU) else 1.0 for act in decoder.activations]
    return [Layer(W, b, slope) for (W, b), slope in zip(decoder.unpack(theta), slopes, strict=True)]


def forward(layers: Sequence[Layer], z: Array, tangents: Array) -> Iterator[Signal]:
    """Yield the signal of each layer at points z (..., m), with derivatives along tangents (q, m)."""
    h, dh, size = z, np.broadcast_to(tangents, (*z.shape[:-1], *tangents.shape)), np.abs(z)
    for W, b, slope in layers:
        a, da, size = h @ W.T + b, dh @ W.T, size @ np.abs(W).T + np.abs(b)
        bend = np.where(a > 0, 1.0, slope)
        h, dh = a * bend, da * bend[..., None, :]
        yield Signal(a, da, h, dh, size)
        size = size * np.abs(bend)


def bends_on_lines(layers: Sequence[Layer], origin: Array, direction: Array) -> Bends:
    """Return where the network bends on the lines origin (L, m) + t direction (m,)."""
    at, unit = np.empty((len(origin), 0)), np.empty((len(origin), 0), dtype=int)
    first = 0
    for depth, layer in enumerate(layers):
        if layer.slope == 1.0:
            continue
        lower, upper, anchor = intervals(at)
        points = origin[:, None, :] + anchor[..., None] * direction
        *_, signal = forward(layers[: depth + 1], points, direction[None, :])
        zero, number = _zeros(signal, lower, upper, anchor)
        at = np.concatenate([at, zero], axis=1)
        unit = np.concatenate([unit, first + number], axis=1)
        order = np.argsort(at, axis=1, kind="stable")[:, : np.isfinite(at).sum(axis=1).max(initial=0)]
        at, unit = np.take_along_axis(at, order, axis=1), np.take_along_axis(unit, order, axis=1)
        first += len(layer.b)
    return Bends(at, np.where(np.isfinite(at), unit, -1))


def intervals(at: Array) -> tuple[Array, Array, Array]:
    """Return lower, upper end and a point (L, B + 1) of each interval between bends (L, B) of lines.

    The point is the middle, or the point that is 1 + |end| inside from an end that is nearer to 0 than
    that: so it is not far out in an interval that reaches far out. Past the last bend of a line, intervals
    are empty: lower = upper = inf, with the point 0.
    """
    edge = np.full((len(at), 1), np.inf)
    lower, upper = np.hstack([-edge, at]), np.hstack([at, edge])
    with np.errstate(invalid="ignore"):  # inf - inf
        middle = 0.5 * lower + 0.5 * upper
        rightmost = np.where(np.isfinite(lower), lower + (1.0 + np.abs(lower)), np.inf)
        leftmost = np.where(np.isfinite(upper), upper - (1.0 + np.abs(upper)), -np.inf)
    anchor = np.minimum(np.maximum(middle, leftmost), rightmost)
    return lower, upper, np.where(np.isfinite(anchor), anchor, 0.0)


def pieces(decoder: Decoder, theta: Array) -> Pieces:
    """Return the affine pieces of a decoder with one latent dimension, from left to right.

    Raises
    ------
    ValueError
        If the decoder is not piecewise affine.
    """
    layers = layers_of(decoder, theta)
    direction = np.ones(1)
    lower, upper, anchor = (
        part[0] for part in intervals(bends_on_lines(layers, np.zeros((1, 1)), direction).at)
    )
    present = lower < upper  # two units may bend at the same place
    *_, signal = forward(layers, anchor[present, None], direction[None, :])
    return Pieces(lower[present], upper[present], anchor[present], signal.output, signal.doutput[:, 0, :])


def _zeros(signal: Signal, lower: Array, upper: Array, anchor: Array) -> tuple[Array, Array]:
    """Where each unit of a layer is zero inside each interval, else inf, and the unit, both (L, P h).

    A unit that is zero at the end of an interval (as those of relu layers without bias are where the layer
    before dies) does not bend inside it, whatever rounding says.
    """
    a, slope = signal.a, signal.da[..., 0, :]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zero = anchor[..., None] - a / slope
        inside = np.abs(zero) < FAR
        for end, beyond in ((lower, zero - lower[..., None]), (upper, upper[..., None] - zero)):
            step = np.where(np.isfinite(end), end - anchor, 0.0)[..., None]
            noise = COINCIDENT * (signal.size + np.abs(slope * step))
            inside &= (beyond > 0.0) & (beyond * np.abs(slope) > noise)
    zero = np.where(inside, zero, np.inf)
    number = np.broadcast_to(np.arange(a.shape[-1]), a.shape)
    return zero.reshape(len(a), -1), number.reshape(len(a), -1)
