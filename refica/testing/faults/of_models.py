"""Faults of activations, decoders and the model."""

# notation: K nodes, n data, m latent; W (fan_out, fan_in), b; a pre-activation; each function takes the
# true function and returns the wrong one

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refica.decoders import MLP
from refica.testing.faults.fault import Fault
from refica.validation import Array

__all__ = ["FAULTS"]

Wrong = Callable[..., Any]


def _transposed_weights(true: Wrong) -> Wrong:
    def unpack(self: MLP, theta: Array) -> Iterator[tuple[Array, Array]]:
        for W, b in true(self, theta):
            yield W.reshape(W.shape[::-1]).T, b

    return unpack


def _forgotten_bias(true: Wrong) -> Wrong:
    def call(self: MLP, theta: Array, z: Array) -> Array:
        without = np.array(theta)
        for _, b in self.unpack(without):
            b[...] = 0.0
        return np.asarray(true(self, without, z))

    return call


def _bias_first(true: Wrong) -> Wrong:
    def unpack(self: MLP, theta: Array) -> Iterator[tuple[Array, Array]]:
        start = 0
        for fan_in, fan_out in itertools.pairwise(self.sizes):
            middle, end = start + fan_out, start + fan_out * (fan_in + 1)
            yield theta[middle:end].reshape(fan_out, fan_in, *theta.shape[1:]), theta[start:middle]
            start = end

    return unpack


def _averaged_bias(true: Wrong) -> Wrong:
    def vjp(self: MLP, theta: Array, z: Array, cotangent: Array) -> tuple[Array, Array]:
        theta_bar, z_bar = true(self, theta, z, cotangent)
        for _, b_bar in self.unpack(theta_bar):
            b_bar /= len(z)
        return theta_bar, z_bar

    return vjp


def _vjp_without_output_slope(true: Wrong) -> Wrong:
    def vjp(self: MLP, theta: Array, z: Array, cotangent: Array) -> tuple[Array, Array]:
        h = z
        for (W, b), act in zip(self.unpack(np.asarray(theta)), self.activations, strict=True):
            a = h @ W.T + b
            h = act(a)
        slope = act.derivative(a)
        found: tuple[Array, Array] = true(self, theta, z, cotangent / np.where(slope == 0.0, 1.0, slope))
        return found

    return vjp


def _z_bar_of_the_first_row(true: Wrong) -> Wrong:
    def vjp(self: MLP, theta: Array, z: Array, cotangent: Array) -> tuple[Array, Array]:
        theta_bar, z_bar = true(self, theta, z, cotangent)
        return theta_bar, np.broadcast_to(z_bar[:1], z_bar.shape)

    return vjp


def _jvp_without_biases(true: Wrong) -> Wrong:
    def jvp(self: MLP, theta: Array, z: Array, dtheta: Array, dz: Array) -> Array:
        without = np.array(dtheta)
        for _, db in self.unpack(without):
            db[...] = 0.0
        return np.asarray(true(self, theta, z, without, dz))

    return jvp


def _lost_exponent(true: Wrong) -> Wrong:
    def slopes(self: Any, z: Array) -> list[Array]:
        each = true(self, z)
        alpha = np.maximum(np.array(self.exponents), 1)
        return [slope / alpha[:, axis] for axis, slope in enumerate(each)]

    return slopes


def _product_form(true: Wrong) -> Wrong:
    def squared_distances(x: Array, g: Array) -> Array:
        cross = np.einsum("in,...kn->...ik" if g.ndim == 2 else "in,ikn->ik", x, g)
        return np.asarray((x * x).sum(axis=1)[:, None] - 2.0 * cross + (g * g).sum(axis=-1))

    return squared_distances


def _noise_of_variance_sigma4(true: Wrong) -> Wrong:
    def sample(self: Any, size: int, rng: Any) -> tuple[Array, Array]:
        z, x = true(self, size, rng)
        g = self.decoder(self.theta, z)
        return z, g + math.sqrt(self.sigma2) * (x - g)

    return sample


FAULTS = (
    Fault(
        "tanh-slope",
        "activations.Tanh.derivative",
        "tanh' is taken as 1 - a² of the pre-activation in place of 1 - tanh(a)²",
        lambda true: lambda self, a: 1.0 - a * a,
    ),
    Fault(
        "sigmoid-slope",
        "activations.Sigmoid.derivative",
        "s' is taken as s(a) in place of s(a) (1 - s(a))",
        lambda true: lambda self, a: self(a),
    ),
    Fault(
        "leaky-slope",
        "activations.LeakyReLU.derivative",
        "the slope of leaky relu is 0 for negative arguments, as relu's",
        lambda true: lambda self, a: np.where(np.real(a) > 0, 1.0, 0.0),
    ),
    Fault(
        "gelu-slope",
        "activations.GELU.derivative",
        "gelu' is Φ(a), without the second term of the product rule, a φ(a)",
        lambda true: lambda self, a: true(self, a) - a * np.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi),
    ),
    Fault(
        "softplus-overflow",
        "activations.Softplus.__call__",
        "log(1 + exp(a)) is evaluated as written and clipped at a = 30",
        lambda true: lambda self, a: np.log1p(np.exp(np.minimum(a, 30.0))),
    ),
    Fault(
        "transposed-weights",
        "decoders.MLP.unpack",
        "each weight matrix is read as (fan_in, fan_out) in place of (fan_out, fan_in)",
        _transposed_weights,
    ),
    Fault("bias-first", "decoders.MLP.unpack", "each layer's bias is read before its weights", _bias_first),
    Fault("forgotten-bias", "decoders.MLP.__call__", "biases are not added", _forgotten_bias),
    Fault(
        "output-activation",
        "decoders.MLP.activations",
        "the hidden activation is applied to the output too",
        lambda true: property(lambda self: (self.activation,) * (len(self.sizes) - 1)),
    ),
    Fault(
        "averaged-bias",
        "decoders.MLP.vjp",
        "the gradient of a bias is the mean over the rows in place of their sum",
        _averaged_bias,
    ),
    Fault(
        "lost-output-slope",
        "decoders.MLP.vjp",
        "the way back leaves out the slope of the output activation",
        _vjp_without_output_slope,
    ),
    Fault(
        "mixed-rows",
        "decoders.MLP.vjp",
        "the derivative in z of the first row is returned for every row",
        _z_bar_of_the_first_row,
    ),
    Fault("jvp-without-bias", "decoders.MLP.jvp", "the way forward leaves out db", _jvp_without_biases),
    Fault(
        "lost-exponent",
        "decoders.Polynomial._monomial_slopes",
        "∂ z^e / ∂z is taken as z^(e-1), without its factor e",
        _lost_exponent,
    ),
    Fault(
        "absolute-distance",
        "model.squared_distances",
        "‖x - g‖ stands for ‖x - g‖²",
        lambda true: lambda x, g: np.sqrt(true(x, g)),
    ),
    Fault(
        "cancelling-distance",
        "model.squared_distances",
        "‖x - g‖² is computed as ‖x‖² - 2 x·g + ‖g‖², which cancels far from 0",
        _product_form,
    ),
    Fault(
        "lost-constant",
        "model.log_likelihood_given",
        "n/2 log 2π is left out of log N(x; g, σ² I)",
        lambda true: lambda s, sigma2, n: true(s, sigma2, n) + 0.5 * n * math.log(2.0 * math.pi),
    ),
    Fault(
        "lost-log-sigma2",
        "model.log_likelihood_given",
        "n/2 log σ² is left out of log N(x; g, σ² I)",
        lambda true: lambda s, sigma2, n: true(s, sigma2, n) + 0.5 * n * np.log(sigma2),
    ),
    Fault(
        "sigma-for-sigma2",
        "model.log_likelihood_given",
        "σ stands for σ² in N(x; g, σ² I)",
        lambda true: lambda s, sigma2, n: true(s, sigma2**0.5, n),
    ),
    Fault(
        "missing-half",
        "model.log_likelihood_given",
        "the exponent is -‖x - g‖²/σ², without its ½",
        lambda true: lambda s, sigma2, n: true(2.0 * s, sigma2, n),
    ),
    Fault(
        "mean-for-sum",
        "model.log_likelihood_given",
        "‖x - g‖² is the mean over the coordinates in place of their sum",
        lambda true: lambda s, sigma2, n: true(s / n, sigma2, n),
    ),
    Fault(
        "one-dimension",
        "model.log_likelihood_given",
        "the normaliser is that of one coordinate, (2πσ²)^(-1/2), whatever n",
        lambda true: lambda s, sigma2, n: true(s, sigma2, 1),
    ),
    Fault(
        "forgotten-prior",
        "model.log_prior",
        "log N(z; 0, I) is left out of the joint density",
        lambda true: lambda z: np.zeros(z.shape[:-1]),
    ),
    Fault(
        "prior-twice",
        "model.log_prior",
        "log N(z; 0, I) is counted twice",
        lambda true: lambda z: 2.0 * true(z),
    ),
    Fault(
        "lost-prior-constant",
        "model.log_prior",
        "m/2 log 2π is left out of log N(z; 0, I)",
        lambda true: lambda z: true(z) + 0.5 * z.shape[-1] * math.log(2.0 * math.pi),
    ),
    Fault(
        "noise-sigma2",
        "model.NonlinearICA.sample",
        "samples have noise of standard deviation σ² in place of σ",
        _noise_of_variance_sigma4,
    ),
)
"""Faults of activations, decoders and the model."""
