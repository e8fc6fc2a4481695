"""Decoders g_θ: R^m -> R^n with hand-written derivatives.

``theta`` is one flat float64 vector: layer by layer the weight matrix W (fan_out, fan_in) in C order,
then its bias b. A layer is ``activation(h @ W.T + b)``. This is the order in which PyTorch's
``parameters_to_vector`` flattens a Sequential of Linear layers.

A decoder is a frozen value that knows shapes; the parameters are an argument of every call. What the
likelihood needs of one is only the `Decoder` protocol: a value, a vector-Jacobian product summed over
rows, a Jacobian-vector product.
"""

# notation: K nodes, m latent, n data, p parameters; per layer: h input, a = h Wᵀ + b, output act(a)

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from refica.activations import Activation, as_activation
from refica.validation import Array, check_choice, check_count, check_generator, shape_words, shown

__all__ = ["MLP", "Decoder", "Polynomial", "decoder_from_dict", "decoder_to_dict"]


class Decoder(Protocol):
    """What a decoder offers; ten lines of it written elsewhere are as good as the ones here.

    Shapes are checked (in constant time), values are not: NaN propagates, and complex arrays pass, so
    that the complex step can differentiate every formula.

    `vjp` may take a keyword ``each`` too: if it is True, theta_bar (K, p) has a row J_θ(z_k)ᵀ c_k for each
    z_k, unsummed. Scores of many observations that share their nodes are far faster for it.
    """

    @property
    def latent_dim(self) -> int:
        """Dimension m of z."""

    @property
    def data_dim(self) -> int:
        """Dimension n of g(z)."""

    @property
    def n_params(self) -> int:
        """Length p of theta."""

    def init(self, rng: Any) -> Array:
        """Return initial parameters theta (p,)."""

    def __call__(self, theta: Array, z: Array) -> Array:
        """Return g_θ(z), (K, m) -> (K, n)."""

    def vjp(self, theta: Array, z: Array, cotangent: Array) -> tuple[Array, Array]:
        """Return theta_bar (p,) = Σ_k J_θ(z_k)ᵀ c_k and z_bar (K, m) = J_z(z_k)ᵀ c_k."""

    def jvp(self, theta: Array, z: Array, dtheta: Array, dz: Array) -> Array:
        """Return dg (K, n) = J_θ(z_k) dtheta + J_z(z_k) dz_k."""


@dataclass(frozen=True, slots=True, init=False)
class MLP:
    """Multilayer perceptron, also the encoder of a VAE.

    Parameters
    ----------
    sizes : sequence of int
        Widths (m, ..., n), at least two, each >= 1; ``(m, n)`` alone is affine (with the identity
        as output activation).
    activation : Activation or str
        Of every hidden layer: identity, tanh, sigmoid, relu, leaky_relu, gelu, softplus, sin.
    output_activation : Activation or str
        Of the last layer.

    Raises
    ------
    TypeError, ValueError
        For widths that are not integers >= 1 or an unknown activation.

    Examples
    --------
    >>> decoder = MLP((1, 8, 2), activation="tanh")
    >>> decoder.n_params
    34
    >>> decoder(decoder.init(0), np.zeros((5, 1))).shape
    (5, 2)
    """

    sizes: tuple[int, ...]
    activation: Activation
    output_activation: Activation

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Activation | str = "tanh",
        output_activation: Activation | str = "identity",
    ) -> None:
        if not isinstance(sizes, (tuple, list, np.ndarray)) or len(sizes) < 2:
            raise ValueError(f"sizes must be at least two widths (m, ..., n), got {shown(sizes)}")
        widths = tuple(check_count(f"sizes[{i}]", width) for i, width in enumerate(sizes))
        object.__setattr__(self, "sizes", widths)
        object.__setattr__(self, "activation", as_activation("activation", activation))
        object.__setattr__(self, "output_activation", as_activation("output_activation", output_activation))

    @property
    def latent_dim(self) -> int:
        """Dimension m of the input."""
        return self.sizes[0]

    @property
    def data_dim(self) -> int:
        """Dimension n of the output."""
        return self.sizes[-1]

    @property
    def n_params(self) -> int:
        """Length p of theta."""
        return sum(fan_out * (fan_in + 1) for fan_in, fan_out in itertools.pairwise(self.sizes))

    @property
    def is_affine(self) -> bool:
        """Whether every activation is the identity."""
        return all(act.name in ("identity", "leaky_relu(1.0)") for act in self.activations)

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The activation after each layer."""
        return (self.activation,) * (len(self.sizes) - 2) + (self.output_activation,)

    def unpack(self, theta: Array) -> Iterator[tuple[Array, Array]]:
        """Yield a view of (W, b) of each layer, W (fan_out, fan_in), b (fan_out,).

        Further axes of theta, if it has any, stay behind these.
        """
        start = 0
        for fan_in, fan_out in itertools.pairwise(self.sizes):
            middle, end = start + fan_out * fan_in, start + fan_out * (fan_in + 1)
            yield theta[start:middle].reshape(fan_out, fan_in, *theta.shape[1:]), theta[middle:end]
            start = end

    def init(self, rng: Any) -> Array:
        """Return theta (p,): W ~ N(0, gain²/fan_in) with the gain of the activation, b ~ N(0, 1).

        Biases of the hidden layers are drawn too, since with few inputs all kinks or centres would
        otherwise sit at 0; output biases are 0.

        Parameters
        ----------
        rng : int or numpy.random.Generator

        Raises
        ------
        TypeError, ValueError
            If ``rng`` is neither.
        """
        rng = check_generator(rng)
        theta = np.zeros(self.n_params)
        layers = list(self.unpack(theta))
        for i, ((W, b), act) in enumerate(zip(layers, self.activations, strict=True)):
            W[...] = rng.standard_normal(W.shape) * act.gain / math.sqrt(W.shape[1])
            if i < len(layers) - 1:
                b[...] = rng.standard_normal(b.shape)
        return theta

    def __call__(self, theta: Array, z: Array) -> Array:
        """Return g_θ(z), (K, m) -> (K, n)."""
        theta, h = _check_shapes(self, theta, z)
        for (W, b), act in zip(self.unpack(theta), self.activations, strict=True):
            h = act(h @ W.T + b)
        return h

    def vjp(self, theta: Array, z: Array, cotangent: Array, each: bool = False) -> tuple[Array, Array]:
        """Return theta_bar (p,), summed over rows, and z_bar (K, m) for a cotangent (K, n).

        Backwards through the layers: a_bar = h_bar ∘ act'(a), W_bar = a_barᵀ h, b_bar = Σ_k a_bar,
        h_bar = a_bar W. With ``each`` theta_bar (K, p) is not summed.
        """
        theta, h, cotangent = _check_shapes(self, theta, z, cotangent=cotangent)
        inputs, slopes, weights = [], [], []
        for (W, b), act in zip(self.unpack(theta), self.activations, strict=True):
            a = h @ W.T + b
            inputs.append(h)
            slopes.append(act.derivative(a))
            weights.append(W)
            h = act(a)
        shape = (self.n_params, len(z)) if each else (self.n_params,)
        theta_bar = np.empty(shape, dtype=np.result_type(theta, h, cotangent))
        h_bar = cotangent
        layers = list(zip(self.unpack(theta_bar), inputs, slopes, weights, strict=True))
        for (W_bar, b_bar), h, slope, W in reversed(layers):
            a_bar = h_bar * slope
            W_bar[...] = a_bar.T[:, None] * h.T if each else a_bar.T @ h
            b_bar[...] = a_bar.T if each else a_bar.sum(axis=0)
            h_bar = a_bar @ W
        return theta_bar.T, h_bar

    def jvp(self, theta: Array, z: Array, dtheta: Array, dz: Array) -> Array:
        """Return dg (K, n): forwards, da = dh Wᵀ + h dWᵀ + db, dh = act'(a) ∘ da."""
        theta, h, dtheta, dh = _check_shapes(self, theta, z, dtheta=dtheta, dz=dz)
        layers = zip(self.unpack(theta), self.unpack(dtheta), self.activations, strict=True)
        for (W, b), (dW, db), act in layers:
            a = h @ W.T + b
            da = dh @ W.T + h @ dW.T + db
            h, dh = act(a), act.derivative(a) * da
        return dh


@dataclass(frozen=True, slots=True, init=False)
class Polynomial:
    """All monomials up to a total degree: g(z)_d = Σ_j C_dj z^α_j, linear in theta.

    Monomials are graded, within a degree lexicographic with z1 first: 1, z1, z2, z1², z1 z2, z2², ...
    theta is the coefficient matrix C (n, monomials) in C order.

    Parameters
    ----------
    latent_dim, data_dim : int
        m and n, >= 1.
    degree : int
        Largest total degree, >= 0.

    Raises
    ------
    TypeError, ValueError
        If one is not such an integer.

    Examples
    --------
    >>> Polynomial(latent_dim=2, data_dim=1, degree=2).exponents
    ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
    """

    latent_dim: int
    data_dim: int
    degree: int

    def __init__(self, latent_dim: int, data_dim: int, degree: int) -> None:
        object.__setattr__(self, "latent_dim", check_count("latent_dim", latent_dim))
        object.__setattr__(self, "data_dim", check_count("data_dim", data_dim))
        object.__setattr__(self, "degree", check_count("degree", degree, minimum=0))

    @property
    def exponents(self) -> tuple[tuple[int, ...], ...]:
        """The exponents α_j (monomials, m) in their order."""
        return tuple(
            tuple(axes.count(axis) for axis in range(self.latent_dim))
            for total in range(self.degree + 1)
            for axes in itertools.combinations_with_replacement(range(self.latent_dim), total)
        )

    @property
    def n_params(self) -> int:
        """Length p = n binomial(m + degree, degree) of theta."""
        return self.data_dim * math.comb(self.latent_dim + self.degree, self.degree)

    @property
    def is_affine(self) -> bool:
        """Whether the degree is at most 1."""
        return self.degree <= 1

    def init(self, rng: Any) -> Array:
        """Return theta (p,): coefficients ~ N(0, 1/α!), so that no degree dominates under Z ~ N(0, I).

        Parameters
        ----------
        rng : int or numpy.random.Generator

        Raises
        ------
        TypeError, ValueError
            If ``rng`` is neither.
        """
        rng = check_generator(rng)
        scale = [1.0 / math.sqrt(math.prod(map(math.factorial, alpha))) for alpha in self.exponents]
        return (rng.standard_normal((self.data_dim, len(scale))) * scale).ravel()

    def __call__(self, theta: Array, z: Array) -> Array:
        """Return g_θ(z), (K, m) -> (K, n)."""
        theta, z = _check_shapes(self, theta, z)
        return self._monomials(z) @ self._coefficients(theta).T

    def vjp(self, theta: Array, z: Array, cotangent: Array, each: bool = False) -> tuple[Array, Array]:
        """Return theta_bar (p,), summed over rows, and z_bar (K, m) for a cotangent (K, n).

        With ``each`` theta_bar (K, p) is not summed.
        """
        theta, z, cotangent = _check_shapes(self, theta, z, cotangent=cotangent)
        monomials = self._monomials(z)
        monomials_bar = cotangent @ self._coefficients(theta)
        slopes = self._monomial_slopes(z)
        z_bar = np.stack([np.einsum("kj,kj->k", monomials_bar, s) for s in slopes], axis=1)
        if each:
            return (cotangent[:, :, None] * monomials[:, None, :]).reshape(len(z), -1), z_bar
        return (cotangent.T @ monomials).ravel(), z_bar

    def jvp(self, theta: Array, z: Array, dtheta: Array, dz: Array) -> Array:
        """Return dg (K, n)."""
        theta, z, dtheta, dz = _check_shapes(self, theta, z, dtheta=dtheta, dz=dz)
        dmonomials = sum(s * dz[:, axis, None] for axis, s in enumerate(self._monomial_slopes(z)))
        from_z = np.asarray(dmonomials) @ self._coefficients(theta).T
        return np.asarray(from_z + self._monomials(z) @ self._coefficients(dtheta).T)

    def _coefficients(self, theta: Array) -> Array:
        return theta.reshape(self.data_dim, -1)

    def _powers(self, z: Array) -> Array:
        """z_l^e for e = 0..degree, (degree + 1, K, m)."""
        powers = np.ones((self.degree + 1, *z.shape), dtype=z.dtype)
        for e in range(1, self.degree + 1):
            powers[e] = powers[e - 1] * z
        return powers

    def _monomials(self, z: Array) -> Array:
        """z^α_j, (K, monomials)."""
        powers = self._powers(z)
        columns = [math.prod(powers[e, :, axis] for axis, e in enumerate(alpha)) for alpha in self.exponents]
        return np.stack(columns, axis=1)

    def _monomial_slopes(self, z: Array) -> list[Array]:
        """∂ z^α_j / ∂ z_l for each axis l, each (K, monomials)."""
        powers = self._powers(z)

        def slope(alpha: tuple[int, ...], axis: int) -> Array:
            lowered = [max(e - (other == axis), 0) for other, e in enumerate(alpha)]
            return np.asarray(alpha[axis] * math.prod(powers[e, :, other] for other, e in enumerate(lowered)))

        return [
            np.stack([slope(alpha, axis) for alpha in self.exponents], axis=1)
            for axis in range(self.latent_dim)
        ]


def decoder_to_dict(decoder: Decoder) -> dict[str, Any]:
    """Return a plain description of a decoder (or encoder) that `decoder_from_dict` reads back."""
    if isinstance(decoder, MLP):
        return {
            "type": "MLP",
            "sizes": list(decoder.sizes),
            "activation": decoder.activation.name,
            "output_activation": decoder.output_activation.name,
        }
    if isinstance(decoder, Polynomial):
        return {
            "type": "Polynomial",
            "latent_dim": decoder.latent_dim,
            "data_dim": decoder.data_dim,
            "degree": decoder.degree,
        }
    raise TypeError(f"only MLP and Polynomial can be described as JSON, got {decoder!r}")


def decoder_from_dict(description: dict[str, Any]) -> MLP | Polynomial:
    """Return the decoder that `decoder_to_dict` described.

    Raises
    ------
    ValueError
        If the description names no known type or lacks an entry.
    """
    kinds: dict[str, type[MLP] | type[Polynomial]] = {"MLP": MLP, "Polynomial": Polynomial}
    if not isinstance(description, dict):
        raise ValueError(f"the description of a decoder must be a dict, got {shown(description)}")
    arguments = dict(description)
    kind = check_choice("decoder type", arguments.pop("type", None), kinds)
    try:
        return kinds[kind](**arguments)
    except TypeError as error:
        raise ValueError(f"the description of the {kind} does not fit: {error}") from None


def _check_shapes(decoder: Decoder, theta: Any, z: Any, **others: Any) -> list[Array]:
    """Return the arguments as arrays after comparing their shapes with what the decoder expects."""
    z = np.asarray(z)
    rows = z.shape[0] if z.ndim == 2 else "K"
    expected: dict[str, tuple[int | str, ...]] = {
        "theta": (decoder.n_params,),
        "dtheta": (decoder.n_params,),
        "z": (rows, decoder.latent_dim),
        "dz": (rows, decoder.latent_dim),
        "cotangent": (rows, decoder.data_dim),
    }
    arrays = {name: np.asarray(value) for name, value in {"theta": theta, "z": z, **others}.items()}
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise ValueError(f"{name} must have shape {shape_words(expected[name])}, got {array.shape}")
    return list(arrays.values())
