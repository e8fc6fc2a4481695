"""Faults of rules, of where their nodes are placed, and of exact integrators."""

# notation: K nodes, m latent; t (K, m), log_w (K,); each function takes the true function and returns the
# wrong one

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from refica.likelihood import Nodes
from refica.model import NonlinearICA, log_prior
from refica.proposals import Gaussians
from refica.testing.faults.fault import Fault
from refica.validation import Array

__all__ = ["FAULTS"]

Wrong = Callable[..., Any]


def _of_points(change: Callable[[Array, Array], tuple[Array, Array]]) -> Callable[[Wrong], Wrong]:
    """A fault that changes what the points of a rule are."""
    return lambda true: lambda self, m: change(*true(self, m))


def _prior_counted_twice(true: Wrong) -> Wrong:
    def nodes(self: Any, rule: Any) -> Nodes:
        z, log_weight = true(self, rule)
        return Nodes(z, log_weight + log_prior(z) if self.q is None else log_weight)

    return nodes


def _transposed_scale(true: Wrong) -> Wrong:
    def place(t: Array, log_w: Array, gaussians: Gaussians) -> Nodes:
        _, log_weight = true(t, log_w, gaussians)
        z = gaussians.mean[:, :, None, :] + np.einsum("ncji,kj->ncki", gaussians.scale, t)
        return Nodes(z.reshape(len(z), -1, t.shape[1]), log_weight)

    return place


def _no_determinant(true: Wrong) -> Wrong:
    def place(t: Array, log_w: Array, gaussians: Gaussians) -> Nodes:
        z, log_weight = true(t, log_w, gaussians)
        volume = np.log(np.abs(np.linalg.det(gaussians.scale)))
        return Nodes(z, log_weight - np.repeat(volume, len(t), axis=1))

    return place


def _no_shares(true: Wrong) -> Wrong:
    def place(t: Array, log_w: Array, gaussians: Gaussians) -> Nodes:
        z, log_weight = true(t, log_w, gaussians)
        return Nodes(z, log_weight - np.repeat(gaussians.log_share, len(t), axis=1))

    return place


def _posterior_without_sigma2(true: Wrong) -> Wrong:
    def gaussians(self: Any, model: NonlinearICA, x: Array) -> Gaussians:
        found: Gaussians = true(self, model, x)
        return found._replace(scale=found.scale / math.sqrt(model.sigma2))

    return gaussians


def _divisor_n_minus_1(true: Wrong) -> Wrong:
    def probabilistic_pca(x: Any, latent_dim: int) -> NonlinearICA:
        model: NonlinearICA = true(x, latent_dim)
        N = len(np.asarray(x))
        return model.replace(sigma2=model.sigma2 * N / (N - 1.0))

    return probabilistic_pca


def _one_side(true: Wrong) -> Wrong:
    def truncate(kappa: Array, precision: Array, lower: Array, upper: Array) -> Any:
        part = true(kappa, precision, lower, upper)
        return part._replace(right=np.where(part.left > 0.0, 0.0, part.right))

    return truncate


FAULTS = (
    Fault(
        "hermite-nodes",
        "rules.GaussHermite.points",
        "nodes of the weight exp(-t²) are taken for N(0, 1): not scaled by √2",
        _of_points(lambda t, log_w: (t / math.sqrt(2.0), log_w)),
    ),
    Fault(
        "hermite-weights",
        "rules.GaussHermite.points",
        "weights of the weight exp(-t²) are taken for N(0, 1): not divided by √π in each axis",
        _of_points(lambda t, log_w: (t, log_w + 0.5 * t.shape[1] * math.log(math.pi))),
    ),
    Fault(
        "grid-step",
        "rules.UniformGrid.step",
        "the step of a grid is its length over the number of points, not of intervals",
        lambda true: property(lambda self: 2.0 * self.radius / self.points_per_axis),
    ),
    Fault(
        "short-grid",
        "rules.UniformGrid.points",
        "whatever radius is asked for, the grid covers [-2.5, 2.5] only, as an earlier program does",
        _of_points(lambda t, log_w: (t[np.abs(t).max(axis=1) <= 2.5], log_w[np.abs(t).max(axis=1) <= 2.5])),
    ),
    Fault(
        "diagonal-grid",
        "rules._product",
        "a product rule repeats one axis: all its nodes are on the diagonal",
        lambda true: lambda axis, m, K: np.repeat(np.resize(axis, K)[:, None], m, axis=1),
    ),
    Fault(
        "forgotten-1/K",
        "rules.MonteCarlo.points",
        "the sum over Monte Carlo draws is not divided by their number: log K too high",
        _of_points(lambda t, log_w: (t, np.zeros_like(log_w))),
    ),
    Fault(
        "uniform-draws",
        "rules.Sobol.points",
        "Sobol's points are used on [0, 1], not mapped to the normal distribution",
        _of_points(lambda t, log_w: (special.ndtr(t), log_w)),
    ),
    Fault(
        "transposed-scale",
        "proposals.place",
        "nodes are placed at mean + Lᵀ t in place of mean + L t",
        _transposed_scale,
    ),
    Fault("lost-determinant", "proposals.place", "the weights of placed nodes lack |det L|", _no_determinant),
    Fault("lost-shares", "proposals.place", "every component of a mixture counts as if alone", _no_shares),
    Fault(
        "prior-in-the-weights",
        "quadrature._Setting.nodes",
        "nodes on the prior keep its density in their weights, where the joint density has it too",
        _prior_counted_twice,
    ),
    Fault(
        "posterior-without-sigma2",
        "exact.ExactLinear.gaussians",
        "the posterior covariance of a linear decoder is M⁻¹ in place of σ² M⁻¹",
        _posterior_without_sigma2,
    ),
    Fault(
        "divisor-n-1",
        "exact.probabilistic_pca",
        "the closed-form optimum uses the covariance with divisor N - 1",
        _divisor_n_minus_1,
    ),
    Fault(
        "half-a-gaussian",
        "piecewise.truncated.truncate",
        "of a Gaussian on an interval only what is left of its peak is integrated",
        _one_side,
    ),
)
"""Faults of rules, nodes and exact integrators."""
