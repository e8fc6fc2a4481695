"""The plane cut into the cells on which a piecewise-affine network is affine.

A sweep without an order of events: on a line y = const the bends and the affine maps between them say up
to which y above and below nothing new can happen, namely until some bend t_j(y), which moves along a
straight line, meets the zero of another unit. So each line settles an interval of y, and what is left
between settled intervals is probed again in its middle, until nothing is left. Any depth, since all that
is used of the network is its values and derivatives along the line.
"""

# notation: z = frame (t, y); L lines y = const, B bends of each, P = B + 1 pieces, U units, C cells

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refica.decoders import Decoder
from refica.piecewise.network import COINCIDENT, Layer, bends_on_lines, forward, intervals, layers_of
from refica.validation import Array

__all__ = ["FRAME", "Cells", "cells"]

FRAME = np.array([[math.cos(1.0), -math.sin(1.0)], [math.sin(1.0), math.cos(1.0)]])
"""z = FRAME (t, y): lines y = const lie askew, so that weights of 0 or 1 put no bend parallel to them."""

GAP = 1e-10
"""An interval of y shorter than this times 1 + |y| is not probed: what it could hide is of size GAP²."""

OFF_CENTRE = 0.487
"""Intervals are probed a little off their middle, where symmetric networks have their vertices."""

LINES = 64
"""Lines probed at a time, which bounds memory."""


class Cells(NamedTuple):
    """C trapezia on each of which the decoder is affine; together they cover the plane.

    With (t, y) = ``anchor`` (C, 2) + (τ, η), a cell is ``bottom`` <= η <= ``top`` (C,), left[0] + left[1] η
    <= τ <= right[0] + right[1] η with ``left`` and ``right`` (C, 2), and g = ``value`` (C, n) + ``jacobian``
    (C, n, 2) (τ, η). Ends may be infinite; the anchor is a point of the cell.
    """

    bottom: Array
    top: Array
    anchor: Array
    left: Array
    right: Array
    value: Array
    jacobian: Array


class _Probe(NamedTuple):
    """L lines, each with how far ``down`` and ``up`` (L,) from it nothing happens, and all their pieces:
    what `Cells` has of them, and a ``key`` (C, q) that pieces of the same cell have in common."""

    down: Array
    up: Array
    line: Array
    t: Array
    left: Array
    right: Array
    value: Array
    jacobian: Array
    key: Array


def cells(decoder: Decoder, theta: Array) -> Cells:
    """Return the cells of a decoder with two latent dimensions.

    Raises
    ------
    ValueError
        If the decoder is not piecewise affine.
    """
    y, bottom, top, probe = _sweep(layers_of(decoder, theta))
    cell, first, last = _join(probe.key, np.argsort(np.argsort(y))[probe.line])
    y, bottom, top = y[probe.line], bottom[probe.line], top[probe.line]
    # The piece nearest to 0 speaks for its cell.
    order = np.lexsort([np.abs(probe.t) + np.abs(y), cell])
    chosen = order[np.flatnonzero(np.diff(cell[order], prepend=-1))]
    return Cells(
        bottom[first] - y[chosen],
        top[last] - y[chosen],
        np.stack([probe.t[chosen], y[chosen]], axis=1),
        probe.left[chosen],
        probe.right[chosen],
        probe.value[chosen],
        probe.jacobian[chosen],
    )


def _join(key: Array, level: Array) -> tuple[Array, Array, Array]:
    """Number the cells that pieces belong to: those of one key on adjoining lines are one.

    Return the cell of each piece, and the first and the last piece of each cell. Where several units bend at
    one place, any of them may be the one in the key, so that a key can come back several lines later.
    """
    order = np.lexsort([level, *key.T])
    changed = (np.diff(key[order], axis=0, prepend=~key[order[:1]]) != 0).any(axis=1)
    start = np.flatnonzero(changed | (np.diff(level[order], prepend=-2) != 1))
    cell = np.empty(len(order), dtype=int)
    cell[order] = np.repeat(np.arange(len(start)), np.diff(start, append=len(order)))
    return cell, order[start], order[np.append(start[1:], len(order)) - 1]


def _sweep(layers: Sequence[Layer]) -> tuple[Array, Array, Array, _Probe]:
    """Lines y (L,), the adjoining intervals around them in which nothing happens, bottom (L,) and top (L,),
    and their pieces."""
    gaps = np.array([[-np.inf], [np.inf]])
    lines, probes, count = [], [], 0
    while gaps.shape[1]:
        (below, above), gaps = gaps[:, :LINES], gaps[:, LINES:]
        y = _middle(below, above)
        probe = _probe(layers, y)
        bottom, top = np.maximum(y + probe.down, below), np.minimum(y + probe.up, above)
        # A line through a vertex settles nothing but cuts its gap in two.
        sound = np.minimum(-probe.down, probe.up) > GAP * (1.0 + np.abs(y))
        bottom, top = np.where(sound, bottom, y), np.where(sound, top, y)
        lines.append(np.stack([y, bottom, top])[:, sound])
        probes.append(_keep_lines(probe, sound, count))
        count += int(sound.sum())
        left_over = np.concatenate([[below, bottom], [top, above]], axis=1)
        narrow = np.minimum(GAP * (1.0 + np.abs(left_over).min(axis=0)), 1.0)
        wide = left_over[0] + narrow < left_over[1]
        gaps = np.concatenate([gaps, left_over[:, wide]], axis=1)
    y, bottom, top = np.concatenate(lines, axis=1)
    order = np.argsort(y)
    between = 0.5 * (top[order][:-1] + bottom[order][1:])
    bottom[order[1:]] = between
    top[order[:-1]] = between
    return y, bottom, top, _Probe(*(np.concatenate(field) for field in zip(*probes, strict=True)))


def _middle(below: Array, above: Array) -> Array:
    """A point of each interval, not far out if the interval reaches far out."""
    with np.errstate(invalid="ignore"):  # inf - inf
        y = (1.0 - OFF_CENTRE) * below + OFF_CENTRE * above
        highest = np.where(np.isfinite(below), below + (1.0 + np.abs(below)), np.inf)
        lowest = np.where(np.isfinite(above), above - (1.0 + np.abs(above)), -np.inf)
    return np.minimum(np.maximum(np.where(np.isnan(y), 0.1, y), lowest), highest)


def _probe(layers: Sequence[Layer], y: Array) -> _Probe:
    """Return what the lines y (L,) say of the network."""
    direction, normal = FRAME.T
    origin = y[:, None] * normal
    at, unit = bends_on_lines(layers, origin, direction)
    lower, upper, anchor = intervals(at)
    signals = list(forward(layers, origin[:, None, :] + anchor[..., None] * direction, FRAME.T))
    bending = [signal for layer, signal in zip(layers, signals, strict=True) if layer.slope != 1.0]
    none = np.empty((*anchor.shape, 0))
    a = np.concatenate([none, *(signal.a for signal in bending)], axis=-1)
    size = np.concatenate([none, *(signal.size for signal in bending)], axis=-1)
    by_t, by_y = (np.concatenate([none, *(s.da[..., i, :] for s in bending)], axis=-1) for i in range(2))
    rate = _rates(by_t, by_y, unit)
    eta = _events(at - anchor[:, :-1], unit, rate, a, by_t, by_y, size)
    up = np.where(eta >= 0.0, eta, np.inf).min(axis=1, initial=np.inf)
    down = np.where(eta <= 0.0, eta, -np.inf).max(axis=1, initial=-np.inf)
    line, piece = np.nonzero(lower < upper)
    edges = np.pad(rate, ((0, 0), (1, 1)))
    names = np.pad(unit, ((0, 0), (1, 1)), constant_values=-1)
    return _Probe(
        down,
        up,
        line,
        anchor[line, piece],
        np.stack([(lower - anchor)[line, piece], edges[line, piece]], axis=1),
        np.stack([(upper - anchor)[line, piece], edges[line, piece + 1]], axis=1),
        signals[-1].output[line, piece],
        np.swapaxes(signals[-1].doutput[line, piece], 1, 2),
        np.column_stack([_words(a[line, piece] > 0), names[line, piece], names[line, piece + 1]]),
    )


def _words(pattern: Array) -> Array:
    """Rows of booleans (C, U) as integers (C, ceil(U / 64))."""
    packed = np.packbits(pattern, axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.int64)


def _rates(by_t: Array, by_y: Array, unit: Array) -> Array:
    """dt/dy = -∂_y a / ∂_t a of each bend, (L, B), from the pre-activation of the unit that bends."""
    own = unit[..., None]
    own_t = np.take_along_axis(by_t[:, :-1], own, axis=2)[..., 0]
    own_y = np.take_along_axis(by_y[:, :-1], own, axis=2)[..., 0]
    return np.where(unit < 0, 0.0, -own_y / np.where(own_t == 0.0, 1.0, own_t))


def _events(step: Array, unit: Array, rate: Array, a: Array, by_t: Array, by_y: Array, size: Array) -> Array:
    """η (L, ...) of all events of each line, were its structure to last for ever; nan where there is none.

    At the bend t(y) = anchor + step + rate η another unit's pre-activation is α + β η, and an event is its
    zero. A unit that does not change along the line bends nowhere on it, and at once all over a piece.
    """
    present = unit >= 0
    step, rate = np.where(present, step, 0.0)[..., None], rate[..., None]
    along, across = by_t[:, :-1], by_y[:, :-1]
    alpha, beta = a[:, :-1] + along * step, along * rate + across
    alpha = np.where(np.abs(alpha) <= COINCIDENT * (size[:, :-1] + np.abs(along * step)), 0.0, alpha)
    lasting = np.abs(beta) <= COINCIDENT * (np.abs(along * rate) + np.abs(across))
    own = np.arange(a.shape[2]) == unit[..., None]
    at_bends = np.where(lasting | own | ~present[..., None], np.nan, -alpha / np.where(lasting, 1.0, beta))
    flat = (np.abs(by_t) <= COINCIDENT * np.abs(by_y)) & (by_y != 0.0)
    at_once = np.where(flat, -a / np.where(flat, by_y, 1.0), np.nan)
    return np.concatenate([at_bends, at_once], axis=1).reshape(len(a), -1)


def _keep_lines(probe: _Probe, sound: Array, count: int) -> _Probe:
    """The sound lines of a probe, numbered from ``count``."""
    kept = sound[probe.line]
    number = count + np.cumsum(sound) - 1
    rest = _Probe(*(field if i < 2 else field[kept] for i, field in enumerate(probe)))
    return rest._replace(down=probe.down[sound], up=probe.up[sound], line=number[rest.line])
