"""The formulas of the source documents, given nodes: log p(x_i), responsibilities, gradients.

With nodes z_k and log weights for Lebesgue measure, ∫ f(z) dz ≈ Σ_k exp(log_weight_k) f(z_k), so

    log p(x_i) ≈ logsumexp_k( log p(x_i, z_k) + log_weight_k )                              E(3)
    ρ_ik = softmax_k of the same row                                      (responsibilities)

and for any weights c_i on the observations (1 for the log-likelihood, p(x_i) for the documents' sum
of densities), by Fisher's identity,

    ∇_θ  Σ_i c_i log p(x_i) = Σ_ik c_i ρ_ik J_θ(z_k)ᵀ (x_i - g_k) / σ²                    D, line 4 of θ
    ∂_σ² Σ_i c_i log p(x_i) = Σ_ik c_i ρ_ik (‖x_i - g_k‖²/σ² - n) / 2σ²                   D, line 3 of σ²

Both are exact derivatives of the computed sum when the nodes do not depend on (θ, σ²), and an
approximation of the derivative of the integral always. `evaluate` returns these sums, `scores_on` the
term of each observation. Nothing else in the package computes a likelihood.

The functions accept complex theta and sigma2, for differentiation by the complex step; all but `scores_on`.
"""

# notation: N observations, n data, m latent, K nodes; x (N, n); z (K, m) shared or (N, K, m);
# g the decoder's values at z; rho (N, K) responsibilities; c (N,) weights of the observations

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refica.decoders import Decoder
from refica.model import log_likelihood_given, log_prior, squared_distances
from refica.validation import Array

__all__ = [
    "NOTHING",
    "Coefficient",
    "Estimate",
    "Evaluation",
    "Gradient",
    "Nodes",
    "Tile",
    "decode",
    "evaluate",
    "log_marginal",
    "moments",
    "pull_back",
    "rounding_error",
    "row_blocks",
    "scores_on",
    "tells_rows_apart",
    "tiles",
]

TILE = 2**17
"""Bound on (observations x nodes x (n + 1)) in a tile. Its arrays are then at most half a MiB each and
stay in cache, and its matrix products are of a size that OpenBLAS does with one thread: with more threads
products this small are no faster, and on a busy machine now and then tens of times slower
(benchmarks/blas.py)."""

DECODER_ROWS = 1024
"""Nodes that pass through a decoder at a time: bounds the memory of its hidden layers, and keeps
layers of up to 16 x 16 below the same size."""

NOTHING = -300.0
"""An exponent below this is nothing beside 1; exp(-300) and its square are still normal numbers."""

FAINT = float(np.finfo(np.float64).eps) ** 2
"""A responsibility below this is left out where an observation's own score is formed: beside 1 it is nothing,
even if scores are squared."""

JACOBIANS = 2**24
"""Bound on (nodes x n x p) up to which the decoder's Jacobians in θ are formed: 128 MiB."""

JACOBIANS_TILE, JACOBIANS_ROWS = 2**20, 64
"""As `TILE` for products with these Jacobians, which for fewer observations would take longer to read, and
the most observations of such a tile."""

ONE_THREAD = 2**18
"""Multiplications of a matrix product up to which OpenBLAS uses one thread: see `TILE`."""

Coefficient: TypeAlias = Callable[[Array], Array]
"""From log p(x_i) (N,) to the weights c_i (N,): ``np.ones_like`` or ``np.exp``."""


class Nodes(NamedTuple):
    """Integration nodes: z (K, m) shared or (N, K, m), log_weight (K,) or (N, K), for Lebesgue measure."""

    z: Array
    log_weight: Array


class Gradient(NamedTuple):
    """Derivatives of a total: ``theta`` (p,), and ``sigma2`` with respect to σ² itself."""

    theta: Array
    sigma2: float


class Evaluation(NamedTuple):
    """What a set of nodes says of some observations.

    ``log_p`` (N,); if a statistic was given ``concentration`` (N,) = Σ_k ρ_ik², one over the effective
    number of nodes, and ``means`` (N, q) = Σ_k ρ_ik f_k, its posterior means (both are empty if none
    was); ``gradient`` of Σ_i c_i log p(x_i), or None.
    """

    log_p: Array
    concentration: Array
    means: Array
    gradient: Gradient | None


class Estimate(NamedTuple):
    """What an integrator that offers ``evaluate`` returns.

    ``log_p`` (N,) and ``error`` (N,), an estimate of its absolute error (for random rules the half-width
    of a 95 % interval); ``problems`` maps a sentence to the observations (N,) bool that it concerns: an
    observation has converged if it appears in none; ``gradient`` of Σ_i c_i log p(x_i), or None.
    """

    log_p: Array
    error: Array
    problems: dict[str, Array]
    gradient: Gradient | None


class Tile(NamedTuple):
    """R consecutive observations: their ``rows``, ``log_p`` (R,), responsibilities ``rho`` (R, K),
    ``squared`` distances ‖x_i - g_k‖² (R, K), the nodes ``z`` and the decoder's values ``g`` at them,
    (K, ·) shared or (R, K, ·)."""

    rows: slice
    log_p: Array
    rho: Array
    squared: Array
    z: Array
    g: Array


def tiles(
    decoder: Decoder, theta: Array, sigma2: float, x: Array, nodes: Nodes, size: int = TILE
) -> Iterator[Tile]:
    """Yield consecutive observations with their responsibilities, a cache-sized tile at a time."""
    N, n = x.shape
    K = nodes.z.shape[-2]
    shared = nodes.z.ndim == 2
    z = nodes.z
    if shared:
        g = decode(decoder, theta, z)
        offset = nodes.log_weight + log_prior(z)
    for rows in row_blocks(N, max(1, (size // (n + 1) if shared else DECODER_ROWS) // K)):
        if not shared:
            z = nodes.z[rows]
            g = decode(decoder, theta, z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], n)
            offset = nodes.log_weight[rows] + log_prior(z)
        squared = squared_distances(x[rows], g)
        exponent = log_likelihood_given(squared, sigma2, n)
        exponent += offset
        log_p, rho = _log_sum_exp(exponent)
        yield Tile(rows, log_p, rho, squared, z, g)


def log_marginal(decoder: Decoder, theta: Array, sigma2: float, x: Array, nodes: Nodes) -> Array:
    """log p(x_i) ≈ logsumexp_k( log p(x_i, z_k) + log_weight_k ), (N,): E(3), discretised."""
    return np.concatenate([tile.log_p for tile in tiles(decoder, theta, sigma2, x, nodes)])


def evaluate(
    decoder: Decoder,
    theta: Array,
    sigma2: float,
    x: Array,
    nodes: Nodes,
    *,
    coefficient: Coefficient | None = None,
    statistic: Array | Callable[[Tile], Array] | None = None,
) -> Evaluation:
    """Return log p(x_i) and, as asked, the gradient of Σ_i c_i log p(x_i) and posterior means.

    Parameters
    ----------
    decoder, theta (p,), sigma2
        The model.
    x : (N, n)
    nodes : Nodes
    coefficient : callable, optional
        c = coefficient(log_p); None for no gradient.
    statistic : (K, q) or callable, optional
        Values f_k at the nodes (the same for every observation) whose posterior means are wanted; or a
        function of a tile that returns (R, q) for its R observations.
    """
    shared = nodes.z.ndim == 2
    x1 = np.column_stack([x - x.mean(axis=0), np.ones(len(x))])
    log_p, concentration, means = [], [], []
    by_theta, by_sigma2 = np.zeros(()), 0.0
    for tile in tiles(decoder, theta, sigma2, x, nodes):
        log_p.append(tile.log_p)
        if statistic is not None:
            concentration.append(np.einsum("ik,ik->i", tile.rho, tile.rho))
            means.append(statistic(tile) if callable(statistic) else _posterior_mean(tile, statistic))
        if coefficient is not None:
            c = coefficient(tile.log_p)
            by_sigma2 += np.sum(_sigma2_derivative(tile, c, sigma2))
            if shared:  # sums over observations now, the decoder's derivative once at the end
                by_theta = by_theta + (x1[tile.rows] * c[:, None]).T @ tile.rho
            else:
                by_theta = by_theta + _own_nodes_gradient(decoder, theta, sigma2, x, tile, c)
    if coefficient is not None and shared:
        by_theta = _shared_nodes_gradient(decoder, theta, sigma2, x.mean(axis=0), nodes, tile.g, by_theta)
    return Evaluation(
        np.concatenate(log_p),
        np.concatenate(concentration or [np.empty(0)]),
        np.concatenate(means or [np.empty((0, 0))]),
        None if coefficient is None else Gradient(by_theta, by_sigma2),
    )


def scores_on(decoder: Decoder, theta: Array, sigma2: float, x: Array, nodes: Nodes) -> Array:
    """∇ log p(x_i) in (θ, σ²) for each observation, (N, p + 1): the terms of the gradient, unsummed.

    On nodes that all observations share by matrix products with the decoder's Jacobians at them, if it can
    give these (`Decoder`) and they are not too large; else by a vector-Jacobian product for each observation.
    """
    (K, _), n = nodes.z.shape[-2:], x.shape[1]
    affordable = nodes.z.ndim == 2 and K * n * decoder.n_params <= JACOBIANS
    slopes = _slopes(decoder, theta, nodes.z) if affordable and tells_rows_apart(decoder) else []
    size = min(JACOBIANS_TILE, JACOBIANS_ROWS * K * (n + 1)) if slopes else TILE
    scores = np.empty((len(x), decoder.n_params + 1))
    for tile in tiles(decoder, theta, sigma2, x, nodes, size):
        of_tile = x[tile.rows]
        if slopes:
            scores[tile.rows, :-1] = _by_products(decoder, slopes, sigma2, of_tile, tile)
        else:
            scores[tile.rows, :-1] = _one_by_one(decoder, theta, sigma2, of_tile, tile)
        scores[tile.rows, -1] = _sigma2_derivative(tile, np.ones_like(tile.log_p), sigma2)
    return scores


def moments(
    decoder: Decoder, theta: Array, sigma2: float, x: Array, nodes: Nodes
) -> tuple[Array, Array, Array]:
    """Return mean (N, m), covariance (N, m, m) and concentration (N,) of p(z | x_i) on the nodes.

    Second moments are taken about the mean, not about 0: a narrow posterior far from 0 would cancel.
    """
    N, m = len(x), nodes.z.shape[-1]
    mean, covariance, concentration = np.empty((N, m)), np.empty((N, m, m)), np.empty(N)
    for tile in tiles(decoder, theta, sigma2, x, nodes):
        centre = _posterior_mean(tile, tile.z)
        mean[tile.rows] = centre
        concentration[tile.rows] = np.einsum("ik,ik->i", tile.rho, tile.rho)
        for a in range(m):
            weighted = tile.rho * (tile.z[..., a] - centre[:, a, None])
            for b in range(a + 1):
                offset = tile.z[..., b] - centre[:, b, None]
                covariance[tile.rows, a, b] = np.einsum("ik,ik->i", weighted, offset)
                covariance[tile.rows, b, a] = covariance[tile.rows, a, b]
    return mean, covariance, concentration


def rounding_error(x: Array, sigma2: float, log_p: Array) -> Array:
    """Return what rounding alone may have done to log p(x_i), (N,).

    The residual x - g carries an error of a few u ‖x‖ (u the unit roundoff), which the exponent
    ‖x - g‖²/2σ² =: E multiplies by sqrt(2E)/σ; the exponent and the constants round by themselves.
    """
    u = np.finfo(np.float64).eps
    constants = 0.5 * x.shape[1] * abs(np.log(2.0 * np.pi * sigma2))
    E = np.abs(log_p) + constants + x.shape[1]
    size = 1.0 + np.sqrt(np.einsum("in,in->i", x, x))
    return np.asarray(4.0 * u * (E + size * np.sqrt(2.0 * E / sigma2)))


def row_blocks(N: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most ``size`` rows: fixed by the data, not by who works on them."""
    for start in range(0, N, size):
        yield slice(start, min(start + size, N))


def _log_sum_exp(exponent: Array) -> tuple[Array, Array]:
    """Row-wise log-sum-exp (R,) and softmax (R, K); overwrites ``exponent``.

    The shift is the row's largest real part, so that every exponential is at most 1. Those below
    exp(`NOTHING`) are raised to it: they change no sum, and subnormal numbers cost a hundred times more.
    """
    shift = np.real(exponent).max(axis=1, keepdims=True)
    exponent -= shift
    if not np.iscomplexobj(exponent):
        np.maximum(exponent, NOTHING, out=exponent)
    np.exp(exponent, out=exponent)
    mass = exponent.sum(axis=1, keepdims=True)
    exponent /= mass
    return (shift + np.log(mass))[:, 0], exponent


def _posterior_mean(tile: Tile, statistic: Array) -> Array:
    """Σ_k ρ_ik f_k, (R, q), of values (K, q) shared or (R, K, q)."""
    if statistic.ndim == 2:
        return tile.rho @ statistic
    return np.einsum("ik,ikq->iq", tile.rho, statistic)


def _shared_nodes_gradient(
    decoder: Decoder, theta: Array, sigma2: float, centre: Array, nodes: Nodes, g: Array, sums: Array
) -> Array:
    """∇_θ (p,) from sums (n + 1, K): Σ_i c_i ρ_ik (x_i - centre), and in the last row Σ_i c_i ρ_ik.

    V_k = (Σ_i c_i ρ_ik x_i - (Σ_i c_i ρ_ik) g_k) / σ², then one vector-Jacobian product: no array of
    size N x K x n. Centring the data removes the cancellation that an offset of theirs would cause.
    """
    V = (sums[:-1].T - sums[-1][:, None] * (g - centre)) / sigma2
    return pull_back(decoder, theta, nodes.z, V)


def _own_nodes_gradient(
    decoder: Decoder, theta: Array, sigma2: float, x: Array, tile: Tile, c: Array
) -> Array:
    """∇_θ (p,) of a tile whose observations have nodes of their own: V_ik = c_i ρ_ik (x_i - g_ik) / σ²."""
    V = _residuals((c[:, None] * tile.rho)[..., None], x[tile.rows][:, None, :], tile.g, sigma2)
    return pull_back(decoder, theta, tile.z.reshape(-1, tile.z.shape[-1]), V.reshape(-1, V.shape[-1]))


def _residuals(rho: Array, x: Array, g: Array, sigma2: float) -> Array:
    """V = ρ (x - g) / σ²: what the decoder's derivative pulls back; the arrays are broadcast."""
    return np.asarray(rho / sigma2 * (x - g))


def pull_back(decoder: Decoder, theta: Array, z: Array, V: Array) -> Array:
    """Σ_k J_θ(z_k)ᵀ V_k (p,), a block of nodes at a time: a decoder's hidden layers then stay in cache."""
    blocks = row_blocks(len(z), DECODER_ROWS)
    return np.sum([decoder.vjp(theta, z[rows], V[rows])[0] for rows in blocks], axis=0)


def _one_by_one(decoder: Decoder, theta: Array, sigma2: float, x: Array, tile: Tile) -> Array:
    """Σ_k J_θ(z_ik)ᵀ V_ik for each observation x (R, n) of a tile, (R, p), without nodes that are `FAINT`."""
    found = []
    for i, counts in enumerate(tile.rho > FAINT):
        z, g = (tile.z, tile.g) if tile.z.ndim == 2 else (tile.z[i], tile.g[i])
        V = _residuals(tile.rho[i, counts, None], x[i], g[counts], sigma2)
        found.append(pull_back(decoder, theta, z[counts], V))
    return np.stack(found)


def _by_products(
    decoder: Decoder, slopes: list[tuple[Array, Array]], sigma2: float, x: Array, tile: Tile
) -> Array:
    """The same (R, p) as Σ_d V_d J_d, V_d (R, K), from `_slopes` at shared nodes."""
    scores = np.zeros((len(x), decoder.n_params))
    for d, (columns, J_d) in enumerate(slopes):
        V_d = _residuals(tile.rho, x[:, None, d], tile.g[:, d], sigma2)
        blocks = row_blocks(len(J_d), max(1, ONE_THREAD // max(1, len(x) * len(columns))))
        scores[:, columns] += sum(V_d[:, some] @ J_d[some] for some in blocks)
    return scores


def _slopes(decoder: Any, theta: Array, z: Array) -> list[tuple[Array, Array]]:
    """J_d = ∂g_d/∂θ at nodes z (K, m) for each output d: which columns (q,) are not all 0, and these (K, q).

    An output's weights do not touch the other outputs: where there are many, most of J is 0.
    """
    found = []
    for e in np.eye(decoder.data_dim):
        blocks = (z[rows] for rows in row_blocks(len(z), DECODER_ROWS))
        pulled = [decoder.vjp(theta, block, np.tile(e, (len(block), 1)), each=True)[0] for block in blocks]
        columns = np.flatnonzero(np.any([J_d.any(axis=0) for J_d in pulled], axis=0))
        found.append((columns, np.concatenate([J_d[:, columns] for J_d in pulled])))
    return found


def tells_rows_apart(decoder: Decoder) -> bool:
    """Whether the decoder's vjp offers to leave its rows unsummed (`Decoder`)."""
    try:
        return "each" in inspect.signature(decoder.vjp).parameters
    except (TypeError, ValueError):  # a callable written in another language may have no signature
        return False


def _sigma2_derivative(tile: Tile, c: Array, sigma2: float) -> Array:
    """c_i Σ_k ρ_ik (‖x_i - g_k‖²/σ² - n) / 2σ², (R,); the ρ_ik of an observation sum to one."""
    n = tile.g.shape[-1]
    mean_squared = np.einsum("ik,ik->i", tile.rho, tile.squared)
    return np.asarray(c * (mean_squared / sigma2 - n) / (2.0 * sigma2))


def decode(decoder: Decoder, theta: Array, z: Array) -> Array:
    """g_θ at many nodes, (K, m) -> (K, n), a block of rows at a time."""
    return np.concatenate([decoder(theta, z[rows]) for rows in row_blocks(len(z), DECODER_ROWS)])
