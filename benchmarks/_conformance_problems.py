"""Which conformance cases there are: the models, observations, draws and noise, without their answers."""

# notation: N observations, n data, m latent, K nodes, L draws

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["problems"]

DECIMALS = 4
"""Of every number that is drawn, so that cases can be read and typed."""

Document = dict[str, Any]

WORKED = {
    "type": "mlp",
    "layers": [
        {"weight": [[1.5], [-2.0], [0.7]], "bias": [0.3, 0.1, -0.5], "activation": "tanh"},
        {"weight": [[1.0, -0.5, 0.8], [0.4, 1.2, -0.9]], "bias": [0.1, -0.2], "activation": "identity"},
    ],
}
"""A net of three units that curves enough for everything to be seen, with numbers for typing in."""

SQUARE = {"type": "polynomial", "exponents": [[0], [1], [2]], "coefficients": [[0.0, 0.0, 1.0]]}
"""g(z) = z²: the posterior has two modes of equal mass."""


def problems() -> list[Document]:
    """Return all cases without answers: id, level, kind and what is given."""
    found = [
        *_decoders(),
        *_log_joints(),
        *_monte_carlos(),
        *_integrals(),
        *_bounds(),
        *_optima(),
    ]
    names = [document["id"] for document in found]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    return found


def _rounded(array: Any) -> Any:
    return np.round(array, DECIMALS).tolist()


def network(
    rng: np.random.Generator,
    sizes: Sequence[int],
    activation: str,
    output: str = "identity",
    slope: float = 0.0,
    scale: float = 1.2,
) -> Document:
    """Return a random network."""
    layers = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        name = output if last else activation
        layer = {
            "weight": _rounded(rng.standard_normal((fan_out, fan_in)) * scale / np.sqrt(fan_in)),
            "bias": _rounded(0.5 * rng.standard_normal(fan_out)),
            "activation": name,
        }
        layers.append({**layer, "slope": slope} if name == "leaky_relu" else layer)
    return {"type": "mlp", "layers": layers}


def polynomial(rng: np.random.Generator, m: int, n: int, degree: int) -> Document:
    """Return a random polynomial with all monomials up to a degree: 1, z1, z2, z1², z1 z2, z2², ..."""
    exponents = [
        [axes.count(axis) for axis in range(m)]
        for total in range(degree + 1)
        for axes in itertools.combinations_with_replacement(range(m), total)
    ]
    coefficients = _rounded(0.6 * rng.standard_normal((n, len(exponents))))
    return {"type": "polynomial", "exponents": exponents, "coefficients": coefficients}


def dimensions(decoder: Document) -> tuple[int, int]:
    """Return m and n."""
    if decoder["type"] == "polynomial":
        return len(decoder["exponents"][0]), len(decoder["coefficients"])
    return len(decoder["layers"][0]["weight"][0]), len(decoder["layers"][-1]["bias"])


def model(decoder: Document, sigma2: float) -> Document:
    """Return the description of a model."""
    m, n = dimensions(decoder)
    return {"latent_dim": m, "data_dim": n, "sigma2": sigma2, "decoder": decoder}


def values(decoder: Document, z: Any) -> np.ndarray:
    """Return g(z) roughly, (K, m) -> (K, n): observations are put near it."""
    z = np.asarray(z, dtype=float)
    if decoder["type"] == "polynomial":
        powers = np.prod(z[:, None, :] ** np.array(decoder["exponents"]), axis=2)
        return powers @ np.array(decoder["coefficients"]).T
    apply = {
        "identity": lambda a, s: a,
        "tanh": lambda a, s: np.tanh(a),
        "sigmoid": lambda a, s: 0.5 + 0.5 * np.tanh(a / 2),
        "softplus": lambda a, s: np.logaddexp(0, a),
        "sin": lambda a, s: np.sin(a),
        "gelu": lambda a, s: 0.5 * a * (1 + np.tanh(0.8 * (a + 0.045 * a**3))),
    }
    h = z
    for layer in decoder["layers"]:
        a = h @ np.array(layer["weight"]).T + np.array(layer["bias"])
        slope = layer.get("slope", 0.0)
        h = apply.get(layer["activation"], lambda a, s: np.where(a > 0, a, s * a))(a, slope)
    return h


def sampled(rng: np.random.Generator, decoder: Document, sigma2: float, N: int) -> Any:
    """Return N observations drawn from the model, rounded as far as σ allows."""
    m, n = dimensions(decoder)
    g = values(decoder, rng.standard_normal((N, m)))
    return np.round(g + np.sqrt(sigma2) * rng.standard_normal((N, n)), 6).tolist()


MAPS: dict[str, tuple[Any, ...]] = {
    "identity-2-3": ((2, 3), "identity"),
    "identity-3-3": ((3, 3), "identity"),
    "tanh-1-4-2": ((1, 4, 2), "tanh"),
    "tanh-2-3-3": ((2, 3, 3), "tanh"),
    "tanh-3-3-3-2": ((3, 3, 3, 2), "tanh"),
    "sigmoid-1-3-2": ((1, 3, 2), "sigmoid"),
    "sigmoid-2-4-1": ((2, 4, 1), "sigmoid"),
    "relu-1-4-2": ((1, 4, 2), "relu"),
    "relu-2-3-3-2": ((2, 3, 3, 2), "relu"),
    "leaky-relu-1-4-2": ((1, 4, 2), "leaky_relu", "identity", 0.1),
    "leaky-relu-2-3-2": ((2, 3, 2), "leaky_relu", "identity", 0.01),
    "gelu-1-3-2": ((1, 3, 2), "gelu"),
    "gelu-2-3-3": ((2, 3, 3), "gelu"),
    "softplus-1-3-2": ((1, 3, 2), "softplus"),
    "softplus-2-2-3": ((2, 2, 3), "softplus"),
    "sin-1-3-2": ((1, 3, 2), "sin"),
    "sin-2-4-3": ((2, 4, 3), "sin"),
    "tanh-1-3-2-sigmoid": ((1, 3, 2), "tanh", "sigmoid"),
    "relu-2-3-2-softplus": ((2, 3, 2), "relu", "softplus"),
    "gelu-1-3-3-tanh": ((1, 3, 3), "gelu", "tanh"),
}
"""Networks whose values and derivatives are asked for: sizes, activation, output activation, slope."""

POWERS = {
    "cubic-1-2": (1, 2, 3),
    "quadratic-2-3": (2, 3, 2),
    "quartic-2-1": (2, 1, 4),
    "affine-3-2": (3, 2, 1),
}


def _maps() -> Iterator[tuple[str, str, Document]]:
    for i, (name, arguments) in enumerate(MAPS.items()):
        kind = "affine" if name.startswith("identity") else "kinked" if "relu" in name else "smooth"
        yield name, kind, network(np.random.default_rng([1, i]), *arguments)
    for i, (name, sizes) in enumerate(POWERS.items()):
        yield name, "polynomial", polynomial(np.random.default_rng([2, i]), *sizes)


def _decoders() -> Iterator[Document]:
    for i, (name, kind, decoder) in enumerate(_maps()):
        rng = np.random.default_rng([3, i])
        m, n = dimensions(decoder)
        given = {"kind": kind, "model": model(decoder, 1.0), "z": _rounded(rng.standard_normal((4, m)))}
        yield {"id": f"decoder/{name}", "level": "decoder", **given}
        cotangent = {"cotangent": _rounded(rng.standard_normal((4, n)))}
        yield {"id": f"decoder-gradient/{name}", "level": "decoder-gradient", **given, **cotangent}
    z = [[-2.5], [-0.4], [0.3], [1.75]]
    for name in ("tanh", "sigmoid", "softplus", "gelu", "sin"):
        decoder = {
            "type": "mlp",
            "layers": [
                {"weight": [[40.0], [-36.0]], "bias": [1.0, 2.0], "activation": name},
                {"weight": [[1.0, 0.5], [-0.25, 2.0]], "bias": [0.5, -1.0], "activation": "identity"},
            ],
        }
        given = {"kind": "saturated", "model": model(decoder, 1.0), "z": z}
        yield {"id": f"decoder/{name}-saturated", "level": "decoder", **given}
        if name != "sin":
            cotangent = {"cotangent": [[1.0, -0.5], [0.25, 1.5], [-2.0, 1.0], [0.75, 0.5]]}
            yield {
                "id": f"decoder-gradient/{name}-saturated",
                "level": "decoder-gradient",
                **given,
                **cotangent,
            }


def _log_joints() -> Iterator[Document]:
    names = ["tanh-1-4-2", "identity-2-3", "tanh-3-3-3-2", "relu-2-3-3-2", "softplus-2-2-3", "cubic-1-2"]
    maps = {name: (kind, decoder) for name, kind, decoder in _maps()}
    for i, (name, sigma2) in enumerate(itertools.product(names, (1.0, 0.3, 0.01, 1e-4))):
        kind, decoder = maps[name]
        rng = np.random.default_rng([4, i])
        given = {"model": model(decoder, sigma2), "x": sampled(rng, decoder, sigma2, 2 + i % 3)}
        z = _rounded(rng.standard_normal((3, dimensions(decoder)[0])))
        yield {"id": f"log-joint/{name}-{sigma2:g}", "level": "log-joint", "kind": kind, **given, "z": z}
    for i, name in enumerate(("tanh-2-3-3", "gelu-1-3-2", "quadratic-2-3")):
        kind, decoder = maps[name]
        rng = np.random.default_rng([5, i])
        m, n = dimensions(decoder)
        x = _rounded(50.0 * rng.standard_normal((2, n)))
        z = _rounded(6.0 * rng.standard_normal((3, m)))
        given = {"kind": "outlier", "model": model(decoder, 0.01), "x": x, "z": z}
        yield {"id": f"log-joint/{name}-outlier", "level": "log-joint", **given}
    for i, m in enumerate((1, 2)):
        rng = np.random.default_rng([6, i])
        decoder = network(rng, (m, 3, 3), "tanh")
        decoder["layers"][-1]["bias"] = [100.25, -200.5, 300.75]
        z = _rounded(rng.standard_normal((3, m)))
        x = np.round(values(decoder, z)[:2] + 1e-3 * rng.standard_normal((2, 3)), 6).tolist()
        given = {"kind": "offset", "model": model(decoder, 1e-6), "x": x, "z": z}
        yield {"id": f"log-joint/tanh-{m}-3-3-offset", "level": "log-joint", **given}


def _monte_carlos() -> Iterator[Document]:
    names = ["tanh-1-4-2", "tanh-2-3-3", "relu-1-4-2", "identity-3-3", "sigmoid-2-4-1"]
    maps = {name: (kind, decoder) for name, kind, decoder in _maps()}
    for i, (name, sigma2) in enumerate(itertools.product(names, (1.0, 0.05, 0.002))):
        kind, decoder = maps[name]
        rng = np.random.default_rng([7, i])
        draws = _rounded(rng.standard_normal((8 + 4 * (i % 3), dimensions(decoder)[0])))
        x = sampled(rng, decoder, sigma2, 2)
        given = {"kind": kind, "model": model(decoder, sigma2), "x": x, "z": draws}
        yield {"id": f"monte-carlo/{name}-{sigma2:g}", "level": "monte-carlo", **given}
    for name in ("tanh-1-4-2", "tanh-2-3-3"):
        decoder = maps[name][1]
        rng = np.random.default_rng(8)
        m, n = dimensions(decoder)
        x = [[9.0] * n, [-8.0] * n]
        draws = _rounded(rng.standard_normal((10, m)))
        given = {"kind": "outlier", "model": model(decoder, 0.01), "x": x, "z": draws}
        yield {"id": f"monte-carlo/{name}-outlier", "level": "monte-carlo", **given}


PLACES: dict[str, tuple[Document, Sequence[float], str]] = {
    "worked": (WORKED, (1.0, 0.1, 0.01, 1e-3, 1e-4), "smooth"),
    "square": (SQUARE, (1.0, 0.1, 0.01, 1e-3), "two-modes"),
    "tanh-1-4-1": (network(np.random.default_rng(11), (1, 4, 1), "tanh"), (1.0, 0.1, 0.01), "smooth"),
    "tanh-1-3-3-2": (network(np.random.default_rng(12), (1, 3, 3, 2), "tanh"), (0.3, 0.01, 1e-3), "smooth"),
    "sigmoid-1-3-2": (
        network(np.random.default_rng(13), (1, 3, 2), "sigmoid", scale=3.0),
        (1.0, 0.05, 0.002),
        "smooth",
    ),
    "gelu-1-3-2": (network(np.random.default_rng(14), (1, 3, 2), "gelu"), (1.0, 0.1, 0.003), "smooth"),
    "softplus-1-3-2": (
        network(np.random.default_rng(15), (1, 3, 2), "softplus"),
        (0.5, 0.05, 0.002),
        "smooth",
    ),
    "sin-1-3-2": (network(np.random.default_rng(16), (1, 3, 2), "sin"), (0.5, 0.05, 0.005), "smooth"),
    "tanh-1-3-2-sigmoid": (
        network(np.random.default_rng(17), (1, 3, 2), "tanh", "sigmoid"),
        (0.5, 0.02),
        "smooth",
    ),
    "relu-1-4-2": (network(np.random.default_rng(18), (1, 4, 2), "relu"), (1.0, 0.1, 0.01), "kinked"),
    "leaky-relu-1-3-2": (
        network(np.random.default_rng(19), (1, 3, 2), "leaky_relu", slope=0.1),
        (0.5, 0.05, 0.005),
        "kinked",
    ),
    "cubic-1-2": (polynomial(np.random.default_rng(20), 1, 2, 3), (1.0, 0.1, 0.01), "polynomial"),
    "affine-1-2": (network(np.random.default_rng(21), (1, 2), "identity"), (1.0, 0.1, 0.01), "affine"),
    "affine-2-3": (network(np.random.default_rng(22), (2, 3), "identity"), (0.5, 0.05), "affine"),
    "affine-3-2": (network(np.random.default_rng(23), (3, 2), "identity"), (0.8,), "affine"),
    "tanh-2-3-3": (network(np.random.default_rng(24), (2, 3, 3), "tanh"), (1.0, 0.2), "smooth"),
    "gelu-2-3-2": (network(np.random.default_rng(25), (2, 3, 2), "gelu"), (0.5,), "smooth"),
}
"""Decoders and noise variances of the integrals."""

THREE = network(np.random.default_rng(26), (3, 3, 3), "tanh", scale=0.5)
"""With three latents only values are asked for, at a σ² that a plain grid can afford."""

OUTLIERS: dict[str, tuple[Document, float, Any]] = {
    "tail-1-4-1": (PLACES["tanh-1-4-1"][0], 0.1, [[6.0], [-7.5]]),
    "worked-far": (WORKED, 0.01, [[9.0, -8.0], [-7.0, 6.0]]),
    "worked-near": (WORKED, 0.05, [[3.0, 2.5]]),
    "affine-1-2-tail": (PLACES["affine-1-2"][0], 0.1, None),
    "relu-1-4-2-tail": (PLACES["relu-1-4-2"][0], 0.1, None),
    "cubic-1-2-tail": (PLACES["cubic-1-2"][0], 0.1, None),
}
"""Observations far from the model, or with a latent beyond 3."""

SHARP = 1e-6


def _integrals() -> Iterator[Document]:
    for given in _places():
        name = given.pop("name")
        rng = np.random.default_rng([30, *map(ord, name)])
        m = given["model"]["latent_dim"]
        yield {"id": f"log-marginal/{name}", "level": "log-marginal", **given}
        if m == 3 and given["kind"] != "affine":
            continue
        other = {**given, "x": given["x"][: 1 + len(name) % 2] if m == 1 else given["x"][:1]}
        yield {"id": f"gradient/{name}", "level": "gradient", **other}
        if rng.random() < 0.45:
            yield {"id": f"posterior/{name}", "level": "posterior", **given}
        if given["kind"] not in ("outlier", "sharp") and m == 1 and rng.random() < 0.3:
            yield {"id": f"density/{name}", "level": "density", **given}


def _places() -> Iterator[Document]:
    for name, (decoder, sigma2s, kind) in PLACES.items():
        for i, sigma2 in enumerate(sigma2s):
            rng = np.random.default_rng([31, *map(ord, name), i])
            x = [[0.5, -0.25]] if name == "worked" else sampled(rng, decoder, sigma2, 2 + i % 2)
            if name == "square":
                x = [[1.0]]
            yield {"name": f"{name}-{sigma2:g}", "kind": kind, "model": model(decoder, sigma2), "x": x}
    x = sampled(np.random.default_rng(32), THREE, 1.0, 1)
    yield {"name": "tanh-3-3-3-1", "kind": "smooth", "model": model(THREE, 1.0), "x": x}
    for name, (decoder, sigma2, far) in OUTLIERS.items():
        x = far or np.round(values(decoder, [[3.4], [-3.1]]), 4).tolist()
        yield {"name": name, "kind": "outlier", "model": model(decoder, sigma2), "x": x}
    for name in ("worked", "cubic-1-2", "affine-1-2"):
        decoder = PLACES[name][0]
        x = sampled(np.random.default_rng(33), decoder, SHARP, 1)
        yield {"name": f"{name}-sharp", "kind": "sharp", "model": model(decoder, SHARP), "x": x}


BOUNDS = ["tanh-1-4-2", "tanh-2-3-3", "identity-2-3", "relu-2-3-3-2", "gelu-1-3-2", "quadratic-2-3"]


def _bounds() -> Iterator[Document]:
    maps = {name: (kind, decoder) for name, kind, decoder in _maps()}
    for i, (name, sigma2) in enumerate(itertools.product(BOUNDS, (1.0, 0.1, 0.01))):
        kind, decoder = maps[name]
        rng = np.random.default_rng([40, i])
        m, n = dimensions(decoder)
        hidden = ("tanh", "relu", "softplus")[i % 3]
        N, L = 1 + i % 3, 2 + i % 4
        given = {
            "kind": kind,
            "model": model(decoder, sigma2),
            "x": sampled(rng, decoder, sigma2, N),
            "encoder": network(rng, (n, 3, 2 * m), hidden),
            "noise": _rounded(rng.standard_normal((L, N, m))),
        }
        for level in ("elbo", "iwae", "elbo-gradient"):
            yield {"id": f"{level}/{name}-{sigma2:g}", "level": level, **given}


def _optima() -> Iterator[Document]:
    for i, (n, m, N) in enumerate([(2, 1, 5), (3, 1, 12), (3, 2, 8), (4, 2, 20), (5, 3, 15), (4, 1, 6)]):
        rng = np.random.default_rng([50, i])
        decoder = network(rng, (m, n), "identity")
        x = np.round(sampled(rng, decoder, 0.3, N), 3).tolist()
        name = f"optimum/affine-{m}-{n}-of-{N}"
        yield {"id": name, "level": "optimum", "kind": "affine", "latent_dim": m, "x": x}
    for name, sigma2 in (("worked", 0.2), ("relu-1-4-2", 0.1), ("cubic-1-2", 0.2), ("affine-1-2", 0.3)):
        decoder, _, kind = PLACES[name]
        x = np.round(sampled(np.random.default_rng([51, *map(ord, name)]), decoder, sigma2, 5), 3).tolist()
        given = {"kind": kind, "model": model(decoder, sigma2), "x": x}
        yield {"id": f"optimum/{name}-sigma2", "level": "optimum", **given}
