"""What stochastic ascent needs beside a gradient: batches, rates, and when to stop waiting for a gain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refica.validation import Array

__all__ = ["LOWERINGS", "PATIENCE", "SCHEDULES", "Plateau", "batches", "next_plateau", "rate_of"]

SCHEDULES = ("plateau", "constant", "inverse-time")

PATIENCE = 3
"""Rounds in a row without a gain after which the rate is lowered."""

LOWERING = 3.0
"""What the rate is divided by."""

LOWERINGS = 3
"""How often it is lowered before the fit ends. Measured for `fit_vae` on data of eight hidden units with
sixteen in the fit (m = 1, n = 2, σ² = .01, N = 1000, six seeds, started from principal components): the third
lowering raised the ELBO per observation by at most .0012 nats and log p(x) by .0008, a fourth by .0004 and
.0028."""


class Plateau(NamedTuple):
    """Where the value stands: the ``best`` so far, rounds ``waited`` for a better one, ``lowered`` rates."""

    best: float
    waited: int = 0
    lowered: int = 0


def next_plateau(plateau: Plateau, value: float, tol: float, patience: int = PATIENCE) -> Plateau:
    """Count a round: a gain above tol resets the waiting, waiting out ``patience`` lowers the rate."""
    best = max(plateau.best, value)
    if value > plateau.best + tol:
        return Plateau(best, 0, plateau.lowered)
    if plateau.waited + 1 < patience:
        return Plateau(best, plateau.waited + 1, plateau.lowered)
    return Plateau(best, 0, plateau.lowered + 1)


def rate_of(schedule: str, rate: float, plateau: Plateau, rounds: int) -> float:
    """Return the rate of the next round, after so many ``rounds``.

    "plateau": divided by 3 with each plateau; "constant"; "inverse-time": rate / (1 + rounds), whose sum
    diverges while that of its squares does not (Robbins and Monro 1951).
    """
    if schedule == "plateau":
        return rate / LOWERING**plateau.lowered
    return rate / (1.0 + rounds) if schedule == "inverse-time" else rate


def batches(N: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield rows of one permutation after the other, each cut into batches of (almost) equal size."""
    while True:
        yield from np.array_split(rng.permutation(N), math.ceil(N / size))
