"""Proved bounds of a decoder on boxes, by interval and complex-ball passes, and brackets of integrals."""

from __future__ import annotations

from functools import partial

import numpy as np

from refica.bounds.brackets import (
    ORDERS,
    exponent,
    first_order,
    gauss_legendre,
    gauss_legendre_doubt,
    gauss_legendre_error,
    second_order,
)
from refica.bounds.enclosure import Enclose, Enclosure, U
from refica.bounds.layers import Layer, enclose_layers, image_of_layers
from refica.bounds.taylor import Taylor
from refica.decoders import Decoder, Polynomial
from refica.validation import Array

__all__ = [
    "ORDERS",
    "Enclose",
    "Enclosure",
    "U",
    "encloser",
    "exponent",
    "first_order",
    "gauss_legendre",
    "gauss_legendre_doubt",
    "gauss_legendre_error",
    "image_of_boxes",
    "second_order",
]


def encloser(decoder: Decoder, theta: Array) -> Enclose:
    """Return the function from cells c, r (C, m) to the decoder's enclosures on them.

    Raises
    ------
    TypeError
        If the decoder is neither a Polynomial nor made of layers, or an activation lacks its bounds.
    """
    if isinstance(decoder, Polynomial):
        return Taylor(decoder, theta)
    return partial(enclose_layers, _layers(decoder, theta))


def image_of_boxes(decoder: Decoder, theta: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Return an interval (B, n) that holds g on each of B boxes (B, m), which may be infinite.

    For a polynomial it is the whole line, which is what it is on an infinite box.

    Raises
    ------
    TypeError
        As `encloser`.
    """
    if isinstance(decoder, Polynomial):
        whole = np.full((len(lower), decoder.data_dim), np.inf)
        return -whole, whole
    return image_of_layers(_layers(decoder, theta), lower, upper)


def _layers(decoder: Decoder, theta: Array) -> list[Layer]:
    unpack, activations = getattr(decoder, "unpack", None), getattr(decoder, "activations", None)
    if unpack is None or activations is None:
        raise TypeError(
            "proved bounds need a Polynomial or a decoder made of layers, with unpack(theta) and activations "
            f"as MLP has them, got {decoder!r}"
        )
    for activation in activations:
        for method in ("roundoff", "image", "slopes", "remainder"):
            if not hasattr(activation, method):
                raise TypeError(
                    f"proved bounds need an activation with {method!r} "
                    f"(see refica.activations.Enclosable), got {activation!r}"
                )
    return [Layer(W, b, act) for (W, b), act in zip(unpack(theta), activations, strict=True)]
