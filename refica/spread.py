"""What the nodes of a random rule say of its own error: standard error, effective nodes, tail of weights.

The estimate of p(x) is the mean of R independent estimates P_r, one for each of the rule's replicates
(single draws for Monte Carlo, scramblings for Sobol). With the responsibilities ρ_k of the nodes,
S_r = Σ ρ_k over the nodes of replicate r is P_r / Σ P_r, so that nothing is exponentiated here:

    relative variance of the mean  =  Σ_r (R S_r - 1)² / (R (R - 1)),
    half-width of a 95 % interval for log p(x)  =  t_{R-1, 0.975} × its square root       (delta method)

A few large weights make this a poor guess: their law is then one with a heavy tail, of which a sample
shows too little. Two diagnostics say when: the effective number of nodes 1/Σ ρ_k² and the shape k of a
generalised Pareto distribution fitted to the largest weights (Vehtari, Simpson, Gelman, Yao and Gabry,
JMLR 25, 2024). Beyond k = 1/2 the variance of the law is infinite, beyond 1/3 its third moment, on which
the error of the normal approximation depends.
"""

# notation: N observations, K nodes of the rule, R replicates, M weights in the tail, k the tail's shape

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from refica.likelihood import Tile
from refica.validation import Array

__all__ = ["Spread", "pareto_shape", "spread"]


class Spread(NamedTuple):
    """``half_width`` (N,) of a 95 % interval, ``effective`` (N,) number of nodes, tail ``shape`` (N,), and
    the ``largest`` (N,) share of a node."""

    half_width: Array
    effective: Array
    shape: Array
    largest: Array


def spread(tile: Tile, replicates: int) -> Array:
    """Return the columns of `Spread` for the observations of a tile, (rows, 4)."""
    rho = tile.rho
    S = rho.reshape(len(rho), replicates, -1).sum(axis=2)
    R = replicates
    variance = ((R * S - 1.0) ** 2).sum(axis=1) / (R * (R - 1.0))
    half_width = special.stdtrit(R - 1.0, 0.975) * np.sqrt(variance)
    effective = 1.0 / np.einsum("ik,ik->i", rho, rho)
    return np.stack([half_width, effective, pareto_shape(rho), rho.max(axis=1)], axis=1)


def pareto_shape(weights: Array) -> Array:
    """Return the shape k of the tail of each row of positive weights (N, K), (N,).

    A generalised Pareto distribution is fitted to the M = min(K/5, 3 sqrt(K)) largest, above the next
    one, by the estimator of Zhang and Stephens (Technometrics 51, 2009): with b = -k/s as the parameter,
    k(b) = mean log(1 - b y) maximises the likelihood for given b, and b is averaged over a grid with the
    profile likelihood as weights. The result is drawn a little to ½, as by ten more weights (Vehtari et
    al. 2024, appendix). Equal weights have no tail: -inf.
    """
    N, K = weights.shape
    M = min(K // 5, math.ceil(3.0 * math.sqrt(K)))
    if M < 5:  # too few to fit anything
        return np.full(N, np.inf)
    top = -np.partition(-weights, M, axis=1)[:, : M + 1]
    top.sort(axis=1)
    y = top[:, 1:] - top[:, :1]
    even = y[:, -1] <= 1e-10 * top[:, -1]
    y = np.where(even[:, None], np.arange(1.0, M + 1.0), y)
    grid = 30 + int(math.sqrt(M))
    quartile = y[:, math.floor(M / 4.0 + 0.5) - 1]
    quartile = np.maximum(quartile, 1e-10 * y[:, -1])
    b = 1.0 / y[:, -1:] + (1.0 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3.0 * quartile[:, None])
    k = np.log1p(-b[:, :, None] * y[:, None, :]).mean(axis=2)
    profile = M * (np.log(-b / k) - k - 1.0)
    share = np.exp(profile - profile.max(axis=1, keepdims=True))
    b_mean = (b * share).sum(axis=1) / share.sum(axis=1)
    shape = np.log1p(-b_mean[:, None] * y).mean(axis=1)
    return np.asarray(np.where(even, -np.inf, (M * shape + 5.0) / (M + 10.0)))
