"""Faults of the likelihood, its gradient, and the posterior."""

# notation: N observations, K nodes; rho (N, K) responsibilities; each function takes the true function and
# returns the wrong one

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refica.likelihood import Nodes, Tile
from refica.testing.faults.fault import Fault
from refica.validation import Array

__all__ = ["FAULTS"]

Wrong = Callable[..., Any]


def _shift_not_restored(true: Wrong) -> Wrong:
    def log_sum_exp(exponent: Array) -> tuple[Array, Array]:
        shift = np.real(exponent).max(axis=1)
        log_p, rho = true(exponent)
        return log_p - shift, rho

    return log_sum_exp


def _floor(true: Wrong) -> Wrong:
    def log_sum_exp(exponent: Array) -> tuple[Array, Array]:
        p = np.exp(exponent)
        mass = p.sum(axis=1, keepdims=True)
        mass = np.where(np.real(mass) > np.finfo(float).tiny, mass, np.finfo(float).tiny)
        return np.log(mass)[:, 0], p / mass

    return log_sum_exp


def _not_normalised(true: Wrong) -> Wrong:
    def log_sum_exp(exponent: Array) -> tuple[Array, Array]:
        log_p, rho = true(exponent)
        return log_p, rho / np.real(rho).max(axis=1, keepdims=True)

    return log_sum_exp


def _without_weights(true: Wrong) -> Wrong:
    def tiles(
        decoder: Any, theta: Array, sigma2: float, x: Array, nodes: Nodes, *size: int
    ) -> Iterator[Tile]:
        yield from true(decoder, theta, sigma2, x, Nodes(nodes.z, np.zeros_like(nodes.log_weight)), *size)

    return tiles


def _number_of_observations(true: Wrong) -> Wrong:
    def derivative(tile: Tile, c: Array, sigma2: float) -> Array:
        N, n = tile.rho.shape[0], tile.g.shape[-1]
        return np.asarray(true(tile, c, sigma2) + c * (n - N) / (2.0 * sigma2))

    return derivative


def _without_n(true: Wrong) -> Wrong:
    def derivative(tile: Tile, c: Array, sigma2: float) -> Array:
        return np.asarray(true(tile, c, sigma2) + c * tile.g.shape[-1] / (2.0 * sigma2))

    return derivative


def _own_nodes_without_c(true: Wrong) -> Wrong:
    def gradient(decoder: Any, theta: Array, sigma2: float, x: Array, tile: Tile, c: Array) -> Array:
        return np.asarray(true(decoder, theta, sigma2, x, tile, np.ones_like(c)))

    return gradient


def _about_zero(true: Wrong) -> Wrong:
    def moments(*arguments: Any) -> tuple[Array, Array, Array]:
        mean, covariance, concentration = true(*arguments)
        return mean, covariance + mean[:, :, None] * mean[:, None, :], concentration

    return moments


FAULTS = (
    Fault(
        "lost-shift",
        "likelihood._log_sum_exp",
        "the maximum that was subtracted before the sum is not added again",
        _shift_not_restored,
    ),
    Fault(
        "floored-density",
        "likelihood._log_sum_exp",
        "exponentials are summed as they are, and log p is clamped at log(tiny)",
        _floor,
    ),
    Fault(
        "unnormalised-responsibilities",
        "likelihood._log_sum_exp",
        "responsibilities are relative to the largest, not to their sum",
        _not_normalised,
    ),
    Fault("lost-log-weights", "likelihood.tiles", "the nodes' weights are left out", _without_weights),
    Fault(
        "wrong-sign",
        "likelihood._shared_nodes_gradient",
        "the gradient in θ has g - x for x - g: descent where ascent is meant",
        lambda true: lambda *arguments: -true(*arguments),
    ),
    Fault(
        "lost-sigma2",
        "likelihood._shared_nodes_gradient",
        "the gradient in θ lacks its 1/σ²",
        lambda true: lambda decoder, theta, sigma2, *rest: sigma2 * true(decoder, theta, sigma2, *rest),
    ),
    Fault(
        "own-nodes-weights",
        "likelihood._own_nodes_gradient",
        "with nodes for each observation the gradient forgets the weight of the observation",
        _own_nodes_without_c,
    ),
    Fault(
        "log-sigma2-gradient",
        "likelihood._sigma2_derivative",
        "∂/∂log σ² is given for ∂/∂σ²: too large by a factor σ²",
        lambda true: lambda tile, c, sigma2: sigma2 * true(tile, c, sigma2),
    ),
    Fault(
        "sigma-gradient",
        "likelihood._sigma2_derivative",
        "∂/∂σ is given for ∂/∂σ²: too large by a factor 2σ",
        lambda true: lambda tile, c, sigma2: 2.0 * sigma2**0.5 * true(tile, c, sigma2),
    ),
    Fault(
        "n-observations",
        "likelihood._sigma2_derivative",
        "the n of the gradient in σ² is the number of observations in place of the dimension",
        _number_of_observations,
    ),
    Fault(
        "lost-n",
        "likelihood._sigma2_derivative",
        "the gradient in σ² lacks the derivative of the normaliser, -n/2σ²",
        _without_n,
    ),
    Fault(
        "log-for-density",
        "marginal._density",
        "the gradient of Σ log p(x_i) is given for that of Σ p(x_i)",
        lambda true: lambda log_p: np.ones_like(log_p),
    ),
    Fault(
        "averaged-total",
        "marginal._sum",
        "totals are means over the observations in place of sums",
        lambda true: lambda values: true(values) / len(values),
    ),
    Fault(
        "averaged-scores",
        "marginal.scores",
        "each observation's gradient is divided by their number",
        lambda true: lambda model, x, integrator=None: true(model, x, integrator) / len(x),
    ),
    Fault(
        "moments-about-zero",
        "likelihood.moments",
        "the posterior covariance is E zzᵀ, without - E z E zᵀ",
        _about_zero,
    ),
)
"""Faults of the likelihood, its gradient, and the posterior."""
