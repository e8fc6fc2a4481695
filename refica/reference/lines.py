"""A decoder on cells of any orientation: a line, and how far the decoder strays from it.

A cell is the parallelepiped z = c + G s, |s_j| <= 1, with generators G (m, m) in its columns. On it

    g(c + G s) = g + J s + ε,        |ε| <= e  (componentwise, for every s of the cell).

The line goes through the layers as it is; an activation f is replaced by a line of its own. With f'
between s and s' on the interval a ± ρ,

    |f(a + t) - f(a) - λ t| <= ½ (s' - s) ρ    for    λ = ½ (s + s'),    |t| <= ρ,

which holds across kinks too; where ρ is so large that the image of f is narrower than that, λ = 0 and
the width of the image serve. Carrying lines keeps what units have in common: a direction along which
their movements cancel costs nothing. Rounding is left out: these bounds choose nodes, a bound on log p(x)
is what `refica.bounds` is for.
"""

# notation: C cells, m latent, n data; in a layer, units h = h + J s + ε and a = W h + b alike

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, cast

import numpy as np

from refica.activations import Enclosable, LeakyReLU
from refica.bounds.taylor import Taylor
from refica.decoders import MLP, Polynomial
from refica.model import NonlinearICA
from refica.validation import Array

__all__ = ["Line", "Lines", "lines_of"]


class Line(NamedTuple):
    """g (C, n), J (C, m, n), the remainder as ε = mix ε', |ε'| <= spread, with mix (n, h) and spread
    (C, h), and whether a kink may lie on the cell (C,).

    The mix is that of the last layer, if its activation is the identity: in a given direction u the
    remainder is |u mix|·spread, which is less than |u|·(|mix| spread).
    """

    g: Array
    J: Array
    mix: Array
    spread: Array
    kinked: Array

    @property
    def error(self) -> Array:
        """|mix| spread, the bound e (C, n) on each component of ε."""
        return np.asarray(self.spread @ np.abs(self.mix).T)


class _Units(NamedTuple):
    """The units of a layer, h (C, u), as lines J (C, m, u) with errors (C, u); ``kinked`` as in `Line`."""

    h: Array
    J: Array
    error: Array
    kinked: Array


Lines: TypeAlias = Callable[[Array, Array], Line]
"""From cells c (C, m), G (C, m, m) to the decoder's lines on them."""


def lines_of(model: NonlinearICA) -> Lines | None:
    """Return the lines of a model's decoder, or None if nothing is known of how it bends."""
    decoder, theta = model.decoder, model.theta
    if isinstance(decoder, MLP):
        enclosable = [cast(Enclosable, f) for f in decoder.activations if hasattr(f, "slopes")]
        if len(enclosable) < len(decoder.activations):
            return None
        layers = [(W, b, f) for (W, b), f in zip(decoder.unpack(theta), enclosable, strict=True)]
        return lambda c, G: _through(layers, c, G)
    if isinstance(decoder, Polynomial):
        taylor = Taylor(decoder, theta)
        return lambda c, G: _expanded(taylor, c, G)
    return None


def _through(layers: list[tuple[Array, Array, Enclosable]], c: Array, G: Array) -> Line:
    """Return the lines of a network."""
    units = _Units(c, G.transpose(0, 2, 1), np.zeros_like(c), np.zeros(len(c), dtype=bool))
    mix, spread = np.eye(c.shape[1]), units.error
    for W, b, f in layers:
        mix, spread = W, units.error
        units = _Units(units.h @ W.T + b, units.J @ W.T, spread @ np.abs(W).T, units.kinked)
        if f.name != "identity":
            units = _bent(f, units)
            mix, spread = np.eye(len(b)), units.error
    return Line(units.h, units.J, mix, spread, units.kinked)


def _bent(f: Enclosable, units: _Units) -> _Units:
    """Return the lines of f(a), for units a + J s + ε."""
    a, J, error, kinked = units
    radius = np.abs(J).sum(axis=1) + error
    if isinstance(f, LeakyReLU) and f.slope != 1.0:
        kinked = kinked | ((np.abs(a) <= radius) & (radius > 0.0)).any(axis=1)
    low, high = f.slopes(a - radius, a + radius)
    slope, bend, value = 0.5 * (low + high), 0.5 * (high - low) * radius, f(a)
    error = np.abs(slope) * error + bend
    bent = np.nonzero(bend > np.abs(slope) * radius)  # elsewhere the image is hardly narrower than the line's
    if len(bent[0]):
        least, most = f.image((a - radius)[bent], (a + radius)[bent])
        reach = np.maximum(most - value[bent], value[bent] - least)
        flat = reach < (np.abs(slope) * radius + bend)[bent]
        slope[bent] = np.where(flat, 0.0, slope[bent])
        error[bent] = np.where(flat, reach, error[bent])
    return _Units(value, slope[:, None, :] * J, error, kinked)


def _expanded(taylor: Taylor, c: Array, G: Array) -> Line:
    """Return the lines of a polynomial, its remainder bounded on the upright box around the cell."""
    enclosure = taylor(c, np.abs(G).sum(axis=2))
    J = np.einsum("cnl,clj->cjn", enclosure.J, G)
    return Line(enclosure.g, J, np.eye(J.shape[2]), enclosure.error, np.zeros(len(c), dtype=bool))
