"""Adam: stochastic gradient ascent with steps scaled by running moments (Kingma and Ba, ICLR 2015)."""

# notation: d parameters, gradient (d,); mean and square the running moments m_t and v_t of the paper

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refica.validation import Array

__all__ = ["AdamState", "adam_start", "adam_step"]

MEAN_DECAY = 0.9
"""β₁, the paper's."""

SQUARE_DECAY = 0.999
"""β₂, the paper's."""

EPSILON = 1e-8
"""ε, the paper's: what divides a gradient that has always been 0."""


class AdamState(NamedTuple):
    """What Adam remembers: the number of ``steps`` taken, running ``mean`` (d,) of the gradient and
    ``square`` (d,) of its square."""

    steps: int
    mean: Array
    square: Array


def adam_start(size: int) -> AdamState:
    """Return the state before the first step, for ``size`` parameters."""
    return AdamState(0, np.zeros(size), np.zeros(size))


def adam_step(state: AdamState, gradient: Array, rate: float) -> tuple[Array, AdamState]:
    """Return the change (d,) to add to the parameters, and the next state: ascent, Algorithm 1.

    m_t = β₁ m_{t-1} + (1 - β₁) g_t,  v_t = β₂ v_{t-1} + (1 - β₂) g_t²,
    change = rate · (m_t / (1 - β₁ᵗ)) / (sqrt(v_t / (1 - β₂ᵗ)) + ε).

    Parameters
    ----------
    state : AdamState
    gradient : (d,)
        Of what is to be maximised.
    rate : float
        About the size of the change of each parameter.
    """
    t = state.steps + 1
    mean = MEAN_DECAY * state.mean + (1.0 - MEAN_DECAY) * gradient
    square = SQUARE_DECAY * state.square + (1.0 - SQUARE_DECAY) * gradient**2
    scale = np.sqrt(square / (1.0 - SQUARE_DECAY**t)) + EPSILON
    return rate * (mean / (1.0 - MEAN_DECAY**t)) / scale, AdamState(t, mean, square)
