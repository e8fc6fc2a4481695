"""Slips in the decoder and its derivatives."""

# notation: a pre-activation; each change takes formulas and returns wrong ones

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special

from refica.testing.conformance.case import Layer, Network, Power
from refica.testing.conformance.formulas import Formulas
from refica.testing.conformance.slips.slip import (
    BOUNDS,
    GRADIENTS,
    INTEGRALS,
    JOINT,
    MAPS,
    Change,
    Slip,
    everywhere,
)
from refica.validation import Array

__all__ = ["SLIPS"]


def _read(wrong: Callable[[Network], Network]) -> Change:
    def change(f: Formulas) -> Formulas:
        before = f.read
        return replace(f, read=lambda of: wrong(before(of)))

    return change


def _layers(change: Callable[[Layer], Layer]) -> Callable[[Network], Network]:
    return lambda of: Network(tuple(map(change, of.layers)))


def _transposed(of: Network) -> Network:
    return _layers(lambda each: each._replace(weight=each.weight.reshape(each.weight.shape[::-1]).T))(of)


def _without_bias(of: Network) -> Network:
    return _layers(lambda each: each._replace(bias=np.zeros_like(each.bias)))(of)


def _bias_first(of: Network) -> Network:
    def read(layer: Layer) -> Layer:
        flat = np.concatenate([layer.weight.ravel(), layer.bias])
        bias, weight = np.split(flat, [len(layer.bias)])
        return layer._replace(bias=bias, weight=weight.reshape(layer.weight.shape))

    return _layers(read)(of)


def _last(activation: str | None) -> Callable[[Network], Network]:
    """Another activation of the last layer; None is that of the hidden ones."""

    def read(of: Network) -> Network:
        *hidden, last = of.layers
        if activation is not None:
            return Network((*hidden, last._replace(activation=activation)))
        first = of.layers[0]
        return Network((*hidden, last._replace(activation=first.activation, slope=first.slope)))

    return read


def _activation(name: str, wrong: Callable[[Layer, Array], Array]) -> Change:
    def change(f: Formulas) -> Formulas:
        right = f.activate
        return replace(
            f, activate=lambda each, a: wrong(each, a) if each.activation == name else right(each, a)
        )

    return change


def _slope(name: str, wrong: Callable[[Array], Array]) -> Change:
    def change(f: Formulas) -> Formulas:
        right = f.derivative
        return replace(f, derivative=lambda each, a: wrong(a) if each.activation == name else right(each, a))

    return change


def _gelu_by_tanh(layer: Layer, a: Array) -> Array:
    return np.asarray(0.5 * a * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (a + 0.044715 * a**3))))


def _backward(
    wrong: Callable[[Network | Power, Array, Callable[[Network | Power], tuple[Array, Array]]], Any],
) -> Change:
    """A fault in the way back, given the true one as a function of the map."""

    def change(f: Formulas) -> Formulas:
        right = f.backward

        def backward(g: Formulas, of: Network | Power, z: Array, cotangent: Array) -> tuple[Array, Array]:
            theta_bar, z_bar = wrong(of, z, lambda other: right(g, other, z, cotangent))
            return theta_bar, z_bar

        return replace(f, backward=backward)

    return change


def _without_output_slope(of: Network | Power, z: Array, back: Any) -> Any:
    return back(_last("identity")(of) if isinstance(of, Network) else of)


def _averaged_bias(of: Network | Power, z: Array, back: Any) -> Any:
    theta_bar, z_bar = back(of)
    if isinstance(of, Network):
        sizes = np.concatenate([np.full(math.prod(shape), len(shape)) for shape in of.shapes])
        theta_bar = np.where(sizes == 1, theta_bar / len(z), theta_bar)
    return theta_bar, z_bar


def _first_row(of: Network | Power, z: Array, back: Any) -> Any:
    theta_bar, z_bar = back(of)
    return theta_bar, np.broadcast_to(z_bar[:1], z_bar.shape) if isinstance(of, Network) else z_bar


def _weights_transposed_in_answer(of: Network | Power, z: Array, back: Any) -> Any:
    theta_bar, z_bar = back(of)
    if not isinstance(of, Network):
        return theta_bar, z_bar
    parts, start = [], 0
    for shape in of.shapes:
        part = theta_bar[start : start + math.prod(shape)].reshape(shape)
        parts.append(part.T.ravel())
        start += part.size
    return np.concatenate(parts), z_bar


def _biases_first_in_answer(of: Network | Power, z: Array, back: Any) -> Any:
    theta_bar, z_bar = back(of)
    if isinstance(of, Network):
        parts = np.split(theta_bar, np.cumsum([math.prod(shape) for shape in of.shapes])[:-1])
        theta_bar = np.concatenate(
            [each for W, b in zip(parts[::2], parts[1::2], strict=True) for each in (b, W)]
        )
    return theta_bar, z_bar


READ = (*MAPS, *JOINT, *INTEGRALS, *BOUNDS)
BACK = ("decoder-gradient", *GRADIENTS)

SLIPS = (
    Slip(
        "transposed-weights",
        "each weight matrix is read as (fan_in, fan_out) in place of (fan_out, fan_in)",
        READ,
        _read(_transposed),
    ),
    Slip("bias-first", "each layer's bias is read before its weights", READ, _read(_bias_first)),
    Slip(
        "bias-first",
        "each layer's bias is before its weights, in parameters and in their gradient",
        BACK,
        lambda f: _backward(_biases_first_in_answer)(_read(_bias_first)(f)),
    ),
    Slip(
        "bias-first",
        "each layer's bias is before its weights in the gradient",
        BACK,
        _backward(_biases_first_in_answer),
    ),
    Slip("forgotten-bias", "biases are not added", READ, _read(_without_bias)),
    Slip(
        "forgotten-bias",
        "biases are not added, but in the derivatives they are there",
        BACK,
        lambda f: replace(_read(_without_bias)(f), read_to_differentiate=f.read),
    ),
    Slip("output-activation", "the hidden activation is applied to the output too", READ, _read(_last(None))),
    Slip("lost-output-activation", "the output activation is left out", READ, _read(_last("identity"))),
    Slip(
        "default-slope",
        "leaky relu has slope 0.01, the usual default, whatever is asked for",
        READ,
        _read(_layers(lambda each: each._replace(slope=0.01 if each.slope else 0.0))),
    ),
    Slip(
        "leaky-as-relu",
        "leaky relu has slope 0 for negative arguments, as relu",
        READ,
        _read(_layers(lambda each: each._replace(slope=0.0))),
    ),
    Slip(
        "gelu-by-tanh",
        "gelu is approximated by a tanh; the cases mean a Φ(a), by the error function",
        READ,
        _activation("gelu", _gelu_by_tanh),
    ),
    Slip(
        "softplus-overflow",
        "log(1 + exp(a)) is evaluated as written and clipped at a = 30",
        READ,
        _activation("softplus", lambda each, a: np.log1p(np.exp(np.minimum(a, 30.0)))),
    ),
    Slip(
        "tanh-slope",
        "tanh' is taken as 1 - a² of the pre-activation in place of 1 - tanh(a)²",
        BACK,
        _slope("tanh", lambda a: 1.0 - a * a),
    ),
    Slip("tanh-slope", "tanh' is taken as 1 - tanh(a)", BACK, _slope("tanh", lambda a: 1.0 - np.tanh(a))),
    Slip(
        "sigmoid-slope",
        "s' is taken as s(a) in place of s(a) (1 - s(a))",
        BACK,
        _slope("sigmoid", lambda a: np.asarray(special.expit(a))),
    ),
    Slip(
        "sigmoid-slope",
        "s' is taken as a (1 - a) of the pre-activation in place of s(a) (1 - s(a))",
        BACK,
        _slope("sigmoid", lambda a: a * (1.0 - a)),
    ),
    Slip(
        "leaky-slope",
        "the slope of leaky relu is 0 for negative arguments, as relu's",
        BACK,
        _slope("leaky_relu", lambda a: np.where(a > 0.0, 1.0, 0.0)),
    ),
    Slip(
        "gelu-slope",
        "gelu' is Φ(a), without the second term of the product rule, a φ(a)",
        BACK,
        _slope("gelu", lambda a: np.asarray(special.ndtr(a))),
    ),
    Slip(
        "lost-output-slope",
        "the way back leaves out the slope of the output activation",
        BACK,
        _backward(_without_output_slope),
    ),
    Slip(
        "averaged-bias",
        "the gradient of a bias is the mean over the rows in place of their sum",
        BACK,
        _backward(_averaged_bias),
    ),
    Slip(
        "mixed-rows",
        "the derivative in z of the first row is returned for every row",
        ("decoder-gradient", "elbo-gradient"),
        _backward(_first_row),
    ),
    Slip(
        "transposed-gradient",
        "the gradient of each weight matrix is returned as (fan_in, fan_out)",
        BACK,
        _backward(_weights_transposed_in_answer),
    ),
    Slip(
        "lost-exponent",
        "∂ z^e / ∂z is taken as z^(e-1), without its factor e",
        BACK,
        everywhere(power_slope=lambda z, e: z ** (e - 1) if e else np.zeros_like(z)),
    ),
)
"""Slips in the decoder and its derivatives."""
