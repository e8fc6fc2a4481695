"""Conformance cases: what is asked, what the answer is, and how far from it an honest program may be.

The cases are data, JSON files beside this module that need no Python to be read; `cases` reads them. Their
format is described by ``cases/v1/schema.json``. Parameters are written layer by layer, the weight matrix
(fan_out, fan_in) as a list of rows and the bias as a list; a layer is ``activation(weight h + bias)``. The
same parameters as one flat vector, an answer may use either: layer by layer the rows of the weight matrix,
one after the other, then the bias (PyTorch's `parameters_to_vector` of a Sequential of Linear layers).
"""

# notation: N observations, n data, m latent, K nodes, L draws, p parameters

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from refica.validation import Array, check_choice

__all__ = ["KINDS", "LEVELS", "VERSION", "Case", "Layer", "Model", "Network", "Power", "Tolerance", "cases"]

VERSION = 1
"""Of the case set. Cases are never changed within a version, only added to a new one."""

LEVELS: dict[str, tuple[str, ...]] = {
    "decoder": ("g",),
    "decoder-gradient": ("theta", "z"),
    "log-joint": ("log_joint",),
    "monte-carlo": ("log_p",),
    "log-marginal": ("log_p",),
    "gradient": ("value", "theta", "sigma2"),
    "density": ("value", "theta", "sigma2"),
    "posterior": ("mean", "covariance"),
    "elbo": ("elbo",),
    "elbo-gradient": ("value", "theta", "sigma2", "phi"),
    "iwae": ("iwae",),
    "optimum": ("value", "sigma2", "mean", "covariance"),
}
"""Levels in the order in which a number passes through an implementation, with the an answer's quantities."""


KINDS = (
    *("smooth", "kinked", "affine", "polynomial", "two-modes"),
    *("outlier", "sharp", "offset", "saturated"),
)
"""What may be special about a case."""


class Layer(NamedTuple):
    """activation(weight h + bias): ``weight`` (fan_out, fan_in), ``bias`` (fan_out,); ``slope`` is that of
    leaky_relu for negative arguments, 0 otherwise."""

    weight: Array
    bias: Array
    activation: str
    slope: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Layers one after the other."""

    layers: tuple[Layer, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters in their flat order."""
        return [np.shape(part) for layer in self.layers for part in layer[:2]]

    @property
    def theta(self) -> Array:
        """The parameters (p,) in their flat order."""
        return np.concatenate([np.ravel(part) for layer in self.layers for part in layer[:2]])


@dataclass(frozen=True, slots=True, eq=False)
class Power:
    """A polynomial, g(z)_d = Σ_j coefficients_dj z^exponents_j.

    ``exponents`` (monomials, m) are integers, ``coefficients`` (n, monomials).
    """

    exponents: Array
    coefficients: Array

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters in their flat order."""
        return [self.coefficients.shape]

    @property
    def theta(self) -> Array:
        """The parameters (p,) in their flat order."""
        return self.coefficients.ravel()


class Model(NamedTuple):
    """Z ~ N(0, I_m), X | Z ~ N(g(Z), sigma2 I_n)."""

    decoder: Network | Power
    sigma2: float
    latent_dim: int
    data_dim: int


class Tolerance(NamedTuple):
    """|answer - expected| <= absolute + relative |expected|, in every entry."""

    absolute: float
    relative: float

    def around(self, expected: Array) -> Array:
        """The largest accepted difference, same shape as ``expected``."""
        return self.absolute + self.relative * np.abs(expected)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One question with its answer. What a level does not need is None, hence ``Any``.

    Attributes
    ----------
    id : str
        ``level/name``.
    level : str
        A key of `LEVELS`.
    kind : str
        What is special, one of `KINDS`.
    model : Model or None
        Missing where an optimum over all parameters is asked for.
    x : (N, n)
        Observations.
    z : (K, m)
        Latents: where the decoder and the joint density are wanted, or the draws of a Monte Carlo sum.
    cotangent : (K, n)
        c of Σ_k c_k · g(z_k), whose gradient is wanted.
    noise : (L, N, m)
        ε of z = μ + s ε.
    encoder : Network
        n inputs, 2m outputs: m means, then m log variances.
    latent_dim : int
        m of the affine model whose optimum is wanted.
    hint : dict
        A uniform grid that is fine enough: ``points_per_axis`` on [-``radius``, ``radius``].
    expected, tolerance : dict
        By quantity; parameters flat.
    document : dict
        The case as it stands in its file.
    """

    id: str
    level: str
    kind: str
    model: Model | None
    x: Any
    z: Any
    cotangent: Any
    noise: Any
    encoder: Network | None
    latent_dim: Any
    hint: Mapping[str, Any]
    expected: Mapping[str, Array]
    tolerance: Mapping[str, Tolerance]
    document: Mapping[str, Any]

    def __str__(self) -> str:
        """Return the id, for pytest's ``ids=str``."""
        return self.id

    def request(self) -> dict[str, Any]:
        """Return what a program in another language is given: the document without its answer."""
        hidden = ("expected", "error", "tolerance", "provenance")
        return {key: value for key, value in self.document.items() if key not in hidden}


def cases(level: str | Collection[str] | None = None, kind: str | None = None) -> list[Case]:
    """Return the cases of some levels, in their order; None for all.

    Parameters
    ----------
    level : str or collection of str, optional
        Keys of `LEVELS`.
    kind : str, optional
        Only cases of this kind.

    Raises
    ------
    ValueError
        For an unknown level or kind.

    Examples
    --------
    >>> str(cases("decoder")[0])
    'decoder/identity-2-3'
    """
    wanted = list(LEVELS) if level is None else [level] if isinstance(level, str) else list(level)
    for name in wanted:
        check_choice("level", name, LEVELS)
    found = [case for name in LEVELS if name in wanted for case in _of_level(name)]
    if kind is not None:
        check_choice("kind", kind, KINDS)
        found = [case for case in found if case.kind == kind]
    return found


@lru_cache(maxsize=len(LEVELS))
def _of_level(level: str) -> tuple[Case, ...]:
    """The cases of a level: files that never change, so that reading them once is no state."""
    text = resources.files("refica.testing.conformance").joinpath("cases", f"v{VERSION}", f"{level}.json")
    return tuple(map(case_from, json.loads(text.read_text(encoding="utf-8"))["cases"]))


def case_from(document: Mapping[str, Any]) -> Case:
    """Return a case from its document; expected parameters become flat."""
    decoder = _map_from(document["model"]["decoder"]) if "model" in document else None
    model = None
    if decoder is not None:
        description = document["model"]
        model = Model(decoder, description["sigma2"], description["latent_dim"], description["data_dim"])
    encoder = _map_from(document["encoder"]) if "encoder" in document else None
    x, z, cotangent, noise = (
        np.array(document[key], dtype=float) if key in document else None
        for key in ("x", "z", "cotangent", "noise")
    )
    maps = {"theta": decoder, "phi": encoder}
    return Case(
        id=document["id"],
        level=document["level"],
        kind=document["kind"],
        model=model,
        x=x,
        z=z,
        cotangent=cotangent,
        noise=noise,
        encoder=encoder if isinstance(encoder, Network) else None,
        latent_dim=document.get("latent_dim"),
        hint=document.get("hint", {}),
        expected={key: as_array(value, maps.get(key)) for key, value in document["expected"].items()},
        tolerance={key: Tolerance(**value) for key, value in document["tolerance"].items()},
        document=document,
    )


def _map_from(description: Mapping[str, Any]) -> Network | Power:
    if description["type"] == "polynomial":
        return Power(
            np.array(description["exponents"], dtype=int), np.array(description["coefficients"], dtype=float)
        )
    return Network(
        tuple(
            Layer(
                np.array(layer["weight"], dtype=float),
                np.array(layer["bias"], dtype=float),
                layer["activation"],
                layer.get("slope", 0.0),
            )
            for layer in description["layers"]
        )
    )


def as_array(value: Any, parameters_of: Network | Power | None = None) -> Array:
    """Return an answer as an array of floats; parameters, flat or layer by layer, become flat.

    Raises
    ------
    TypeError, ValueError
        If it is not made of real numbers, or its layers are not those of the map.
    """
    if parameters_of is not None and isinstance(value, Mapping):
        value = [value]
    if parameters_of is not None and isinstance(value, (list, tuple)) and _in_parts(value):
        parts = [_parameter_parts(layer) for layer in value]
        found = [_numbers(part) for pair in parts for part in pair]
        shapes = [part.shape for part in found]
        if shapes != parameters_of.shapes:
            raise ValueError(f"parameters must have shapes {parameters_of.shapes}, got {shapes}")
        return np.concatenate([part.ravel() for part in found])
    return _numbers(value)


def _in_parts(value: Any) -> bool:
    return bool(value) and all(isinstance(layer, Mapping) for layer in value)


def _parameter_parts(layer: Mapping[str, Any]) -> list[Any]:
    names = ["coefficients"] if "coefficients" in layer else ["weight", "bias"]
    missing = [name for name in names if name not in layer]
    if missing:
        raise ValueError(f"a layer must have weight and bias, got {', '.join(map(repr, layer)) or 'nothing'}")
    return [layer[name] for name in names]


def _numbers(value: Any) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"it is not a rectangular array of numbers: {error}") from None
    if array.dtype.kind == "O":  # None, which JSON writers make of nan, and numbers as strings are no answers
        array = np.array([np.nan if entry is None else entry for entry in array.ravel()]).reshape(array.shape)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"it is not made of real numbers (dtype {array.dtype})")
    return array.astype(float)
