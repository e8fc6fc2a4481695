"""log p(x) of observations, its gradient, scores and posterior: choice of integrator, blocks, executor.

The observations are cut into fixed blocks; each is evaluated by itself, here or by any
``concurrent.futures.Executor``, and the results are put together in order, so that neither the block
size nor the executor changes them (beyond rounding of sums).
"""

# notation: N observations, n data, m latent, K nodes, p parameters

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from refica.exact import ExactLinear
from refica.grids import grid_that_resolves
from refica.likelihood import (
    Coefficient,
    Estimate,
    Gradient,
    Nodes,
    Tile,
    evaluate,
    moments,
    row_blocks,
    tiles,
)
from refica.model import NonlinearICA, check_model
from refica.piecewise import ExactPiecewiseAffine, is_piecewise_affine
from refica.quadrature import Integrator, Quadrature
from refica.rules import gauss_hermite
from refica.validation import Array, check_count, check_generator, shown

__all__ = ["Likelihood", "Posterior", "choose_integrator", "density", "log_likelihood", "posterior", "scores"]

BLOCK = 4096
"""Observations evaluated at a time."""

PLANE = 200
"""Observations up to which a piecewise-affine decoder of the plane is integrated exactly: 10-50 ms each."""

NO_ERROR = "the integrator gives no error estimate"

OWN_NODES = 2**18
"""Nodes that a block of observations with nodes of their own may have in all: about 100 MB of arrays."""


@dataclass(frozen=True, slots=True, eq=False)
class Likelihood:
    """The result of `log_likelihood` or `density`.

    Attributes
    ----------
    per_observation : (N,)
        log p(x_i), or p(x_i) for `density`.
    total : float
        Their sum.
    error : (N,)
        Estimated absolute error of each (for random rules the half-width of a 95 % interval); nan where
        the integrator gives none.
    gradient : Gradient or None
        Of the total: ``theta`` (p,) and ``sigma2`` (float, with respect to σ² itself).
    converged : (N,) bool
        Where the integrator trusts its own error estimate.
    message : str
        What was integrated with, and what each False in ``converged`` means.
    integrator : Integrator
        The one that was used.
    """

    per_observation: Array
    total: float
    error: Array
    gradient: Gradient | None
    converged: Array
    message: str
    integrator: Any


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """The result of `posterior`: p(z | x_i) on integration nodes.

    Attributes
    ----------
    mean : (N, m)
    covariance : (N, m, m)
    effective_nodes : (N,)
        1 / Σ_k ρ_ik², with ρ the responsibilities of the nodes.
    model, x, integrator
        What it was computed from.
    """

    mean: Array
    covariance: Array
    effective_nodes: Array
    model: NonlinearICA
    x: Array
    integrator: Any

    def sample(self, size: int, rng: Any) -> Array:
        """Draw ``size`` latents for each observation by resampling the nodes, (size, N, m).

        Draws are nodes: there are about ``effective_nodes`` different ones (2m of `ExactLinear`), whose mean
        and covariance are right. Take an integrator with more nodes for draws that look continuous.

        Raises
        ------
        TypeError, ValueError
            If ``size`` is not an integer >= 1 or ``rng`` neither a seed nor a generator.
        """
        size, rng = check_count("size", size), check_generator(rng)
        draws = np.empty((size, *self.mean.shape))
        for rows, tile in _posterior_tiles(self.model, self.x, self.integrator):
            for i, rho in zip(range(rows.start, rows.stop), tile.rho, strict=True):
                z = tile.z if tile.z.ndim == 2 else tile.z[i - rows.start]
                draws[:, i] = z[_draw(np.cumsum(rho), rng.random(size))]
        return draws


def log_likelihood(
    model: NonlinearICA,
    x: Any,
    integrator: Integrator | None = None,
    gradient: bool = True,
    executor: Executor | None = None,
) -> Likelihood:
    """Return log p(x_i), E(3), their sum and its gradient, with an error and a verdict for each.

    Parameters
    ----------
    model : NonlinearICA
    x : array_like (N, n)
    integrator : Integrator, optional
        None picks the best that is affordable (`choose_integrator`); the result says which and why.
    gradient : bool
        Whether to compute the gradient, D with Fisher's identity.
    executor : concurrent.futures.Executor, optional
        Maps the blocks of observations; the result does not depend on it.

    Raises
    ------
    TypeError, ValueError
        For bad data, or an integrator that does not fit the model.

    Examples
    --------
    >>> from refica import MLP
    >>> model = NonlinearICA(MLP((1, 2)), [1.0, 0.5, 0.0, 0.0], sigma2=0.1)
    >>> res = log_likelihood(model, [[0.3, 0.2]])
    >>> round(res.total, 12), bool(res.converged.all())
    (-0.894044223545, True)
    """
    return _evaluate(model, x, integrator, gradient, executor, None)


def density(
    model: NonlinearICA,
    x: Any,
    integrator: Integrator | None = None,
    gradient: bool = True,
    executor: Executor | None = None,
) -> Likelihood:
    """Return p(x_i), their sum E(4) and its gradient: the objective as the documents write it.

    A sum of densities is not a likelihood: over (θ, σ²) it is unbounded (let g be constant at one
    observation and σ² -> 0). It is here to verify the derivation; to fit, use `log_likelihood`.

    Parameters, errors and the result are those of `log_likelihood`; ``per_observation`` is p(x_i) and
    ``error`` its absolute error.
    """
    return _evaluate(model, x, integrator, gradient, executor, np.exp)


def scores(model: NonlinearICA, x: Any, integrator: Integrator | None = None) -> Array:
    """Return the gradient of each log p(x_i) in (θ, σ²), (N, p + 1), for information matrices.

    Raises
    ------
    TypeError, ValueError
        As `log_likelihood`.
    """
    x = check_model(model).check_data(x)
    integrator, _ = _given_or_chosen(model, x, integrator)
    each = [
        _block(model, True, None, (x[row], _for_rows(integrator, row))).gradient
        for row in row_blocks(len(x), 1)
    ]
    return np.stack([np.append(gradient.theta, gradient.sigma2) for gradient in each if gradient])


def posterior(model: NonlinearICA, x: Any, integrator: Integrator | None = None) -> Posterior:
    """Return mean, covariance and effective number of nodes of p(z | x_i).

    Parameters
    ----------
    model : NonlinearICA
    x : array_like (N, n)
    integrator : Integrator, optional
        As in `log_likelihood`.

    Raises
    ------
    TypeError, ValueError
        As `log_likelihood`.
    """
    x = check_model(model).check_data(x)
    integrator, _ = _given_or_chosen(model, x, integrator)
    parts = [
        moments(model.decoder, model.theta, model.sigma2, x[rows], _nodes(model, integrator, x, rows))
        for rows in row_blocks(len(x), _block_size(model, integrator))
    ]
    mean, covariance, concentration = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Posterior(mean, covariance, 1.0 / concentration, model, x, integrator)


def choose_integrator(model: NonlinearICA, x: Array) -> tuple[Integrator, str]:
    """Return the best affordable integrator for these observations, and why it was picked."""
    m = model.latent_dim
    if getattr(model.decoder, "is_affine", False):
        return ExactLinear(), "exact, since the decoder is affine"
    if is_piecewise_affine(model.decoder) and (m == 1 or (m == 2 and len(x) <= PLANE)):
        return ExactPiecewiseAffine(), "exact, since the decoder is piecewise affine"
    grid = grid_that_resolves(model, x) if m == 1 else None
    if grid is not None:
        return Quadrature(grid), "one latent dimension: a grid that resolves sigma"
    order = max(3, 9 - m)
    return Quadrature(
        gauss_hermite(order), proposal="modes"
    ), f"latent dimension {m}: nodes at the posterior modes"


def _given_or_chosen(model: NonlinearICA, x: Array, integrator: Integrator | None) -> tuple[Integrator, str]:
    if integrator is None:
        return choose_integrator(model, x)
    if not callable(getattr(integrator, "nodes", None)):
        raise TypeError(f"integrator must offer nodes(model, x), got {shown(integrator)}")
    if hasattr(integrator, "for_rows"):
        integrator.nodes(model, x)  # made for other observations, it raises: cut to blocks, it might fit
    return integrator, "as given"


def _evaluate(
    model: NonlinearICA,
    x: Any,
    integrator: Integrator | None,
    gradient: bool,
    executor: Executor | None,
    coefficient: Coefficient | None,
) -> Likelihood:
    """Evaluate block by block; ``coefficient`` None is the log-likelihood, exp the sum of densities."""
    x = check_model(model).check_data(x)
    if executor is not None and not callable(getattr(executor, "map", None)):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")
    integrator, why = _given_or_chosen(model, x, integrator)
    rows = list(row_blocks(len(x), _block_size(model, integrator)))
    blocks = [(x[block], _for_rows(integrator, block)) for block in rows]
    work = partial(_block, model, gradient, coefficient)
    parts = list((map if executor is None else executor.map)(work, blocks))
    log_p, error = (np.concatenate([part[i] for part in parts]) for i in range(2))
    total = None
    if gradient:
        by = [part.gradient for part in parts if part.gradient is not None]
        total = Gradient(np.sum([g.theta for g in by], axis=0), math.fsum(g.sigma2 for g in by))
    converged, problems = _verdict([part.problems for part in parts], [len(block) for block, _ in blocks])
    value = log_p
    if coefficient is not None:
        with np.errstate(over="ignore"):
            # p (e^error - 1), without the 0 times infinity of a tiny p and a large error
            value, error = np.exp(log_p), np.exp(log_p + error) * -np.expm1(-error)
    return Likelihood(
        value, math.fsum(value), error, total, converged, f"{integrator} ({why}){problems}", integrator
    )


def _block(
    model: NonlinearICA, gradient: bool, coefficient: Coefficient | None, block: tuple[Array, Any]
) -> Estimate:
    """Evaluate one block: by the integrator's own ``evaluate`` if it has one, otherwise by its nodes."""
    x, integrator = block
    if hasattr(integrator, "evaluate"):
        extra = () if coefficient is None else (coefficient,)
        estimate: Estimate = integrator.evaluate(model, x, gradient, *extra)
        return estimate
    result = evaluate(
        model.decoder,
        model.theta,
        model.sigma2,
        x,
        _nodes(model, integrator, x, slice(None)),
        coefficient=(coefficient or np.ones_like) if gradient else None,
    )
    unknown = {NO_ERROR: np.ones(len(x), dtype=bool)}
    return Estimate(result.log_p, np.full(len(x), np.nan), unknown, result.gradient)


def _for_rows(integrator: Any, rows: slice) -> Any:
    """Return the integrator for some of the observations: fixed nodes of each must be cut as x is."""
    return integrator.for_rows(rows) if hasattr(integrator, "for_rows") else integrator


def _nodes(model: NonlinearICA, integrator: Integrator, x: Array, rows: slice) -> Nodes:
    """Return an integrator's nodes for rows of x, checked: a third party may have made them."""
    x, integrator = x[rows], _for_rows(integrator, rows)
    pair: Any = integrator.nodes(model, x)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{integrator} must return a pair (z, log_weight), got {shown(pair)}")
    z, log_weight = map(np.asarray, pair)
    if z.dtype.kind not in "fiu" or log_weight.dtype.kind not in "fiu":
        raise TypeError(f"{integrator} must return real numbers, got {z.dtype} and {log_weight.dtype}")
    lead = z.shape[:-1]
    fits = z.ndim in (2, 3) and z.shape[-1] == model.latent_dim and z.size > 0
    if not fits or (z.ndim == 3 and len(z) != len(x)):
        raise ValueError(
            f"{integrator} must return z of shape (K, {model.latent_dim}) or ({len(x)}, K, "
            f"{model.latent_dim}), got {z.shape}"
        )
    if log_weight.shape != lead:
        raise ValueError(f"{integrator} must return log_weight of shape {lead}, got {log_weight.shape}")
    if not np.isfinite(z).all() or not (log_weight < np.inf).all():  # also False for nan
        raise ValueError(f"{integrator} returned nodes or log weights that are nan or infinite")
    if (log_weight == -np.inf).all(axis=-1).any():
        raise ValueError(f"{integrator} returned log weights of -inf only: no node counts")
    return Nodes(z.astype(np.float64), log_weight.astype(np.float64))


def _block_size(model: NonlinearICA, integrator: Any) -> int:
    """Return how many observations to evaluate at a time; fewer where each has many nodes of its own."""
    per_observation = getattr(integrator, "nodes_per_observation", None)
    K = per_observation(model.latent_dim) if callable(per_observation) else 1
    return max(1, min(BLOCK, OWN_NODES // K))


def _verdict(problems: list[dict[str, Array]], lengths: list[int]) -> tuple[Array, str]:
    """Return converged (N,) and a sentence for each kind of problem, with how many it concerns."""
    sentences = dict.fromkeys(sentence for block in problems for sentence in block)
    converged, words = np.ones(sum(lengths), dtype=bool), ""
    for sentence in sentences:
        none = [np.zeros(length, dtype=bool) for length in lengths]
        concerned = np.concatenate(
            [block.get(sentence, nobody) for block, nobody in zip(problems, none, strict=True)]
        )
        converged &= ~concerned
        if concerned.any():
            words += f"; not converged for {concerned.sum()} of {len(converged)} observations: {sentence}"
    return converged, words


def _posterior_tiles(model: NonlinearICA, x: Array, integrator: Integrator) -> Iterator[tuple[slice, Tile]]:
    """Yield every tile of every block with its place among all observations."""
    for block in row_blocks(len(x), _block_size(model, integrator)):
        nodes = _nodes(model, integrator, x, block)
        for tile in tiles(model.decoder, model.theta, model.sigma2, x[block], nodes):
            yield slice(block.start + tile.rows.start, block.start + tile.rows.stop), tile


def _draw(cumulative: Array, uniform: Array) -> Array:
    """Return indices distributed as the steps of a cumulative distribution, one per uniform number."""
    chosen = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return np.minimum(chosen, len(cumulative) - 1)
