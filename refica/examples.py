"""The settings of E, Exercise 1, as named examples: each a fixed model, a size and a seed.

An example's parameters are drawn when it is asked for, from its own seed and not with ``decoder.init``:
they are data, and must not change when the starting points of fits do. MLP: θ ~ N(0, spread² I);
Polynomial: the coefficient of z^α ~ N(0, 1/α!²), since monomials grow. Each seed was picked by eye: a
manifold that is clearly bent, a few units wide (many σ) and does not run into itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refica.decoders import MLP, Polynomial
from refica.model import NonlinearICA
from refica.validation import Array, check_choice

__all__ = ["DEFAULT", "EXAMPLES", "Example", "example", "held_out"]

SIGMA2 = 0.01
SIZE = 1000

# Streams of one seed: parameters, the sample and the held-out sample are independent of each other.
_PARAMETERS, _SAMPLE, _HELD_OUT = range(3)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A setting of Exercise 1.

    Attributes
    ----------
    name : str
    sentence : str
        What it is, for a reader.
    model : NonlinearICA
        The truth that generates the data.
    size : int
        Number of observations N.
    seed : int
        Fixes the parameters, the sample and the held-out sample.
    """

    name: str
    sentence: str
    model: NonlinearICA
    size: int
    seed: int

    def simulate(self, size: int | None = None, rng: Any = None) -> tuple[Array, Array]:
        """Draw latents and observations, E(1); without arguments the same ones each time.

        Parameters
        ----------
        size : int, optional
            Number of observations N >= 1; None is the example's own.
        rng : int or numpy.random.Generator, optional
            None is the example's own seed.

        Returns
        -------
        z : (N, m)
        x : (N, n)

        Raises
        ------
        TypeError, ValueError
            As `NonlinearICA.sample`.
        """
        rng = _stream(self.seed, _SAMPLE) if rng is None else rng
        return self.model.sample(self.size if size is None else size, rng)


class _Setting(NamedTuple):
    sentence: str
    decoder: MLP | Polynomial
    seed: int
    spread: float = 1.0


# Sigmoids have parameters three times as wide: with less they stay near their linear part, and their
# values, confined to [0, 1], show no bend against σ = 0.1.
_SETTINGS = {
    "tanh": _Setting(
        "a curve in the plane: a network with 8 hidden tanh units (m = 1, n = 2)",
        MLP((1, 8, 2), activation="tanh"),
        seed=1075,
    ),
    "relu": _Setting(
        "a polygonal curve in the plane: a network with 8 hidden relu units (m = 1, n = 2)",
        MLP((1, 8, 2), activation="relu"),
        seed=1281,
    ),
    "polynomial": _Setting(
        "a cubic curve in the plane (m = 1, n = 2)",
        Polynomial(latent_dim=1, data_dim=2, degree=3),
        seed=887,
    ),
    "polynomial-1-1": _Setting(
        "a cubic of one variable (m = n = 1)",
        Polynomial(latent_dim=1, data_dim=1, degree=3),
        seed=37,
    ),
    "sigmoid-1-1": _Setting(
        "a sigmoid of an affine function of one variable (m = n = 1)",
        MLP((1, 1), output_activation="sigmoid"),
        seed=2,
        spread=3.0,
    ),
    "sigmoid": _Setting(
        "a surface in the unit cube: sigmoids of an affine map (m = 2, n = 3)",
        MLP((2, 3), output_activation="sigmoid"),
        seed=354,
        spread=3.0,
    ),
    "tanh-2-3": _Setting(
        "a surface in space: a network with 8 hidden tanh units (m = 2, n = 3)",
        MLP((2, 8, 3), activation="tanh"),
        seed=192,
    ),
    "polynomial-2-4": _Setting(
        "a quadratic surface in four dimensions (m = 2, n = 4)",
        Polynomial(latent_dim=2, data_dim=4, degree=2),
        seed=2,
    ),
}

EXAMPLES: tuple[str, ...] = tuple(_SETTINGS)
"""The names, the default first."""

DEFAULT = EXAMPLES[0]


def example(name: str = DEFAULT) -> Example:
    """Return the example of that name, one of `EXAMPLES`.

    Raises
    ------
    ValueError
        If there is none; the message suggests the nearest.

    Examples
    --------
    >>> curve = example("tanh")
    >>> z, x = curve.simulate()
    >>> z.shape, x.shape, curve.model.sigma2
    ((1000, 1), (1000, 2), 0.01)
    """
    sentence, decoder, seed, spread = _SETTINGS[check_choice("example", name, EXAMPLES)]
    theta = _scale(decoder, spread) * _stream(seed, _PARAMETERS).standard_normal(decoder.n_params)
    return Example(name, sentence, NonlinearICA(decoder, theta, SIGMA2), SIZE, seed)


def held_out(setting: Example, size: int | None = None) -> tuple[Array, Array]:
    """Return latents (size, m) and observations (size, n) that are independent of the example's sample.

    Without a size, as many as log p(x) takes seconds for: 10 000 for m = 1, 1000 for m > 1.

    Raises
    ------
    TypeError, ValueError
        If ``size`` is not an integer >= 1.
    """
    if size is None:
        size = 10_000 if setting.model.latent_dim == 1 else 1000
    return setting.simulate(size, _stream(setting.seed, _HELD_OUT))


def _scale(decoder: MLP | Polynomial, spread: float) -> Array:
    """Standard deviation of each parameter (p,), see the module's first lines."""
    if isinstance(decoder, MLP):
        return np.full(decoder.n_params, spread)
    each = [spread / math.prod(map(math.factorial, alpha)) for alpha in decoder.exponents]
    return np.tile(each, decoder.data_dim)


def _stream(seed: int, number: int) -> np.random.Generator:
    # Spawned, so that no stream is the one that a caller gets who seeds with the same number.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
