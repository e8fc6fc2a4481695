"""What the brackets need to know of a decoder on a cell, and the unit roundoff.

A cell is a box c ± r (componentwise) of the latent space. On it a decoder is replaced by a line with
a proved error,

    g(z) = g + J (z - c) + ε,        |ε| <= e for every z of the cell,

and likewise, with an error of its own, for every complex z of the polydisc |z_i - c_i| <= κ r_i, κ in
`DISCS`, on which g is then known to be analytic. g and J are plain float arrays about which nothing is
claimed: how far they are from g(c) and its Jacobian, rounding included, is part of ε.

Rounding: U is the unit roundoff. A sum of k products of floats is right to (k + 1) U times the sum of
their moduli, in any order and with or without fused operations; an elementary function of NumPy or
SciPy is *taken* as right to 4 units in the last place (8 U relative). Bounds that are built from
non-negative numbers by sums and products alone are off by a relative error of a few hundred U at most:
multiplication by GROW, which is 2^23 U above 1, puts them on the safe side.
"""

# notation: C cells, m latent, n data, S polydiscs

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from refica.validation import Array

__all__ = ["DISCS", "GROW", "Enclose", "Enclosure", "U", "node_roundoff"]

U = 2.0**-53
"""Unit roundoff of float64."""

GROW = 1.0 + 2.0**-30
"""Factor that covers the relative rounding error of a bound made of sums and products of numbers >= 0."""

DISCS = np.array([2.0, 4.0])
"""κ of the polydiscs: the wide one pays where the decoder is smooth on the scale of the cell."""


class Enclosure(NamedTuple):
    """A decoder on C cells.

    Attributes
    ----------
    g : (C, n)
    J : (C, n, m)
    lower, upper : (C, n)
        g(z) lies between them for every real z of the cell, and so does every value that the decoder
        computes in floats at a float point of the cell.
    error : (C, n)
        e on the real cell.
    disc_error : (S, C, n)
        e on the polydiscs; inf where g is not known to be analytic.
    roundoff : (C, n)
        η: the decoder's floats at a computed point of the cell are within η of g at the exact point.
    bend : (C, n, m)
        How much of e each axis has caused: a guess, for choosing the axis to cut.
    """

    g: Array
    J: Array
    lower: Array
    upper: Array
    error: Array
    disc_error: Array
    roundoff: Array
    bend: Array


Enclose: TypeAlias = Callable[[Array, Array], Enclosure]
"""From cells c (C, m), r (C, m) to the decoder's enclosures on them."""


def node_roundoff(c: Array, r: Array) -> Array:
    """How far a computed point c + r t, |t| <= 1, of a cell may be from the exact one, (C, m).

    U (|c| + r) for the sum, U r for the product, 2 U r for t, which is the rounding of an exact node.
    """
    return U * (np.abs(c) + 4.0 * r) * GROW
