"""The random models on which formulas are compared, with observations and integration nodes."""

# notation: N observations, n data, m latent, K nodes

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refica.activations import LeakyReLU
from refica.decoders import MLP, Decoder, Polynomial
from refica.likelihood import Nodes
from refica.model import NonlinearICA
from refica.validation import Array

__all__ = ["Case", "Setting", "cases", "grid_nodes", "other_nodes", "worked_example"]

OBSERVATIONS = 3
"""Observations of each case: more would only repeat the formula."""

DECODERS: tuple[Decoder, ...] = (
    MLP((1, 3, 2), "tanh"),
    MLP((2, 3, 3), "tanh", output_activation="sigmoid"),
    Polynomial(latent_dim=1, data_dim=2, degree=2),
    MLP((1, 4, 1), "sigmoid"),
    MLP((2, 2), "identity"),
    MLP((1, 2, 2, 3), "softplus"),
    MLP((1, 3, 2), "sin", output_activation="softplus"),
    Polynomial(latent_dim=2, data_dim=1, degree=2),
    MLP((1, 3, 2), "gelu"),
    MLP((2, 2, 2), "gelu"),
    MLP((1, 2), "identity", output_activation="sigmoid"),
    MLP((1, 5, 3), "tanh", output_activation="sigmoid"),
)
"""Smooth decoders, of which the models take as many as are asked for, in turn."""

THETA = (1.5, -2.0, 0.7, 0.3, 0.1, -0.5, 1.0, -0.5, 0.8, 0.4, 1.2, -0.9, 0.1, -0.2)


class Case(NamedTuple):
    """A model, a few observations x (N, n), fixed nodes, and whether these integrate to rounding."""

    model: NonlinearICA
    x: Array
    nodes: Nodes
    fine: bool


class Setting(NamedTuple):
    """What every check is given: the cases; the user's decoder, if there is one; a seed."""

    cases: tuple[Case, ...]
    decoder: Decoder | None
    seed: int

    def rng(self, number: int) -> np.random.Generator:
        """Return a stream of random numbers of its own for a check."""
        return np.random.default_rng([self.seed, number])


def cases(count: int, seed: int, decoder: Any = None) -> Iterator[Case]:
    """Yield random models of the decoders above, or of one decoder; σ² from 0.2 to 2."""
    for number in range(count):
        rng = np.random.default_rng([seed, 1000 + number])
        chosen = DECODERS[number % len(DECODERS)] if decoder is None else decoder
        theta = np.asarray(chosen.init(rng), dtype=float)
        theta = (0.5 * theta if decoder is None else theta) + 0.2 * rng.standard_normal(theta.shape)
        model = NonlinearICA(chosen, theta, float(0.2 * 10.0 ** rng.uniform(0.0, 1.0)))
        z = rng.standard_normal((OBSERVATIONS, model.latent_dim))
        x = chosen(theta, z) + math.sqrt(model.sigma2) * rng.standard_normal((OBSERVATIONS, model.data_dim))
        yield Case(model, x, grid_nodes(model.latent_dim), model.latent_dim <= 2)


def grid_nodes(m: int) -> Nodes:
    """Return a uniform grid (m <= 2), otherwise prior draws with their weights, as Lebesgue nodes."""
    if m > 2:
        z = np.random.default_rng(m).standard_normal((2000, m))
        log_prior = -0.5 * (z**2).sum(axis=1) - 0.5 * m * math.log(2.0 * math.pi)
        return Nodes(z, -math.log(len(z)) - log_prior)
    return _grid(m, *((360, 0.025) if m == 1 else (36, 0.2)))


def other_nodes(m: int) -> Nodes:
    """Return nodes (m <= 2) none of which is on that grid: Gauss-Legendre panels on [-9, 9] for m = 1, for
    m = 2 a finer grid that is turned by an odd angle."""
    if m == 2:
        z, log_weight = _grid(2, 45, 0.16)
        turn = np.array([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
        return Nodes((z + 0.03) @ turn, log_weight)
    t, w = np.polynomial.legendre.leggauss(10)
    edges = np.linspace(-9.0, 9.0, 101)
    half = 0.5 * np.diff(edges)[:, None]
    return Nodes((edges[:-1, None] + half * (t + 1.0)).reshape(-1, 1), np.log(half * w).ravel())


def _grid(m: int, half: int, step: float) -> Nodes:
    """The grid of 2 half + 1 points per axis through 0."""
    axis = step * np.arange(-half, half + 1)
    z = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    return Nodes(z, np.full(len(z), m * math.log(step)))


def worked_example(name: str, sigma2: float) -> tuple[NonlinearICA, Array]:
    """Return the model and observation with known digits: "tanh", "leaky relu" (slope 0.1) or "square"."""
    if name == "square":
        return NonlinearICA(Polynomial(1, 1, 2), [0.0, 0.0, 1.0], sigma2), np.array([[1.0]])
    activation = "tanh" if name == "tanh" else LeakyReLU(0.1)
    return NonlinearICA(MLP((1, 3, 2), activation), THETA, sigma2), np.array([[0.5, -0.25]])
