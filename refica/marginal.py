"""log p(x) of observations, its gradient and scores: choice of integrator, blocks, executor.

The observations are cut into fixed blocks; each is evaluated by itself, here or by any
``concurrent.futures.Executor``, and the results are put together in order, so that neither the block
size nor the executor changes them (beyond rounding of sums).
"""

# notation: N observations, n data, m latent, K nodes, p parameters

from __future__ import annotations

import inspect
import math
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
    evaluate,
    row_blocks,
    scores_on,
)
from refica.model import NonlinearICA, check_model
from refica.piecewise import ExactPiecewiseAffine, is_piecewise_affine
from refica.quadrature import Integrator, Quadrature
from refica.reference import Reference
from refica.rules import MAX_NODES, gauss_hermite
from refica.validation import Array, shown

__all__ = [
    "Likelihood",
    "block_size",
    "checked_nodes",
    "choose_integrator",
    "density",
    "estimate_of",
    "for_rows",
    "given_or_chosen",
    "log_likelihood",
    "scores",
    "verdict",
]

BLOCK = 4096
"""Observations evaluated at a time."""

SHARED_NODES = {1: 4096, 2: 300**2}
"""Largest grid that all observations share, by m. Where σ needs a finer one, others are faster."""

HALVING = {1: 1e-7, 2: 1e-3}
"""Halving error (nats) of such a grid, by m: its true error is about the square."""

FEW = 50
"""Observations up to which `Reference` is as fast as a grid for m = 2."""

AFFORDABLE = {1: math.inf, 2: 1000, 3: 5}
"""Observations up to which `Reference` is chosen, by m: some ten seconds for typical models."""

PLANE = 200
"""Observations up to which a piecewise-affine decoder of the plane is integrated exactly: 10-50 ms each."""

NO_ERROR = "the integrator gives no error estimate"
OVERFLOW = "p(x) is above the largest float; log_likelihood gives its logarithm"

LOG_LARGEST = math.log(np.finfo(np.float64).max)

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

    def __repr__(self) -> str:
        """Show totals, not arrays."""
        return (
            f"Likelihood(total={self.total!r} of {len(self.per_observation)} observations, largest error="
            f"{np.max(self.error):.2g}, {np.sum(self.converged)} converged, message={self.message!r})"
        )


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
    ``error`` its absolute error. A p(x_i) above the largest float, 1.8e308, is inf, as NumPy's exp has it,
    but without a warning: it is not ``converged``, ``message`` says why, and the gradient is nan. Where only
    a sum is above it, ``total`` or the gradient is inf.
    """
    return _evaluate(model, x, integrator, gradient, executor, _density)


def scores(model: NonlinearICA, x: Any, integrator: Integrator | None = None) -> Array:
    """Return the gradient of each log p(x_i) in (θ, σ²), (N, p + 1), for information matrices.

    Their sum is the gradient of `log_likelihood`, whose parameters they share.

    Raises
    ------
    TypeError, ValueError
        As `log_likelihood`.
    """
    x = check_model(model).check_data(x)
    integrator, _ = given_or_chosen(model, x, integrator)
    rows = row_blocks(len(x), block_size(model, integrator))
    return np.concatenate([_scores(model, x[block], for_rows(integrator, block)) for block in rows])


def choose_integrator(model: NonlinearICA, x: Array) -> tuple[Integrator, str]:
    """Return the best affordable integrator for these observations, and why it was picked."""
    m, N = model.latent_dim, len(x)
    if getattr(model.decoder, "is_affine", False):
        return ExactLinear(), "exact, since the decoder is affine"
    if is_piecewise_affine(model.decoder) and (m == 1 or (m == 2 and N <= PLANE)):
        return ExactPiecewiseAffine(), "exact, since the decoder is piecewise affine"
    suits = Reference.suits(model)
    dimensions = f"latent dimension {m} and {N} observation{'s' if N > 1 else ''}"
    if m == 2 and suits and N <= FEW:
        return Reference(), f"{dimensions}: the reference can be afforded"
    if m <= 2:
        most, tolerance = SHARED_NODES[m] if suits or m == 2 else MAX_NODES, HALVING[m]
        grid = grid_that_resolves(model, x, tolerance, most)
        if grid is not None:
            return Quadrature(grid), f"{dimensions}: a grid that resolves sigma"
    if suits and AFFORDABLE.get(m, 0) >= N:
        return Reference(), f"{dimensions}: the reference can be afforded"
    order = 9 if m <= 2 else max(3, 9 - m)
    return Quadrature(gauss_hermite(order), proposal="modes"), f"{dimensions}: nodes at the posterior modes"


def given_or_chosen(model: NonlinearICA, x: Array, integrator: Integrator | None) -> tuple[Integrator, str]:
    """Return the integrator to use for observations x (N, n), and why.

    Raises
    ------
    TypeError, ValueError
        If the one given offers no nodes or was made for other observations.
    """
    if integrator is None:
        return choose_integrator(model, x)
    if not callable(getattr(integrator, "nodes", None)):
        raise TypeError(f"integrator must offer nodes(model, x), got {shown(integrator)}")
    if hasattr(
        integrator, "check_fit"
    ):  # made for other observations, it raises: cut to blocks, it might fit
        integrator.check_fit(model, x)
    return integrator, "as given"


def _evaluate(
    model: NonlinearICA,
    x: Any,
    integrator: Integrator | None,
    gradient: bool,
    executor: Executor | None,
    coefficient: Coefficient | None,
) -> Likelihood:
    """Evaluate block by block; ``coefficient`` is None for the log-likelihood, `_density` for densities."""
    x = check_model(model).check_data(x)
    if executor is not None and not callable(getattr(executor, "map", None)):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")
    integrator, why = given_or_chosen(model, x, integrator)
    rows = list(row_blocks(len(x), block_size(model, integrator)))
    blocks = [(x[block], for_rows(integrator, block)) for block in rows]
    work = partial(estimate_of, model, gradient, coefficient)
    parts = list((map if executor is None else executor.map)(work, blocks))
    log_p, error = (np.concatenate([part[i] for part in parts]) for i in range(2))
    total = _total([part.gradient for part in parts if part.gradient is not None])
    converged, problems = verdict([part.problems for part in parts], [len(block) for block, _ in blocks])
    value = log_p
    if coefficient is not None:
        with np.errstate(over="ignore"):
            # p (e^error - 1), without the 0 times infinity of a tiny p and a large error
            value, error = np.exp(log_p), np.exp(log_p + error) * -np.expm1(-error)
        beyond, words = verdict([{OVERFLOW: log_p > LOG_LARGEST}], [len(x)])
        converged, problems = converged & beyond, problems + words
    return Likelihood(
        value, _sum(value), error, total, converged, f"{integrator} ({why}){problems}", integrator
    )


def _density(log_p: Array) -> Array:
    """p = exp(log p), as the weight of an observation in a gradient; nan where it is above the largest
    float, so that the gradient is nan too (inf would become it on the way, with warnings)."""
    return np.where(log_p > LOG_LARGEST, np.nan, np.exp(np.minimum(log_p, LOG_LARGEST)))


@np.errstate(over="ignore", invalid="ignore")  # densities may be near the largest float
def _total(gradients: list[Gradient]) -> Gradient | None:
    """Return the gradient of all blocks, None if there are none."""
    if not gradients:
        return None
    return Gradient(np.sum([g.theta for g in gradients], axis=0), _sum([g.sigma2 for g in gradients]))


@np.errstate(over="ignore", invalid="ignore")
def _sum(values: Array | list[float]) -> float:
    """Return the correctly rounded sum; inf or nan where that of floats is."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond the largest float; inf - inf
        return float(np.sum(values))


def estimate_of(
    model: NonlinearICA, gradient: bool, coefficient: Coefficient | None, block: tuple[Array, Any]
) -> Estimate:
    """Evaluate one block (x, integrator): by the integrator's own ``evaluate`` if it has one, otherwise by
    its nodes."""
    x, integrator = block
    if coefficient is not None and gradient:
        with np.errstate(over="ignore", invalid="ignore"):  # p(x) may be near the largest float
            return _estimate_with_weights(model, coefficient, x, integrator)
    if hasattr(integrator, "evaluate"):
        return _checked(model, integrator, x, gradient, integrator.evaluate(model, x, gradient))
    return _estimate_by_nodes(model, np.ones_like if gradient else None, x, integrator)


def _estimate_by_nodes(
    model: NonlinearICA, coefficient: Coefficient | None, x: Array, integrator: Any
) -> Estimate:
    """log p(x_i) and the gradient of Σ_i c_i log p(x_i) on nodes, whose error nobody knows."""
    nodes = checked_nodes(model, integrator, x)
    result = evaluate(model.decoder, model.theta, model.sigma2, x, nodes, coefficient=coefficient)
    unknown = {NO_ERROR: np.ones(len(x), dtype=bool)}
    return Estimate(result.log_p, np.full(len(x), np.nan), unknown, result.gradient)


def _estimate_with_weights(
    model: NonlinearICA, coefficient: Coefficient, x: Array, integrator: Any
) -> Estimate:
    """log p(x_i) and the gradient of Σ_i c_i log p(x_i).

    An integrator whose ``evaluate`` takes no coefficient, which is all that is asked of a third party, is
    evaluated one observation at a time: Σ_i c_i ∇ log p(x_i).
    """
    if not hasattr(integrator, "evaluate"):
        return _estimate_by_nodes(model, coefficient, x, integrator)
    if _takes_a_coefficient(integrator):
        return _checked(model, integrator, x, True, integrator.evaluate(model, x, True, coefficient))
    found = _checked(model, integrator, x, False, integrator.evaluate(model, x, False))
    theta, sigma2 = np.zeros(model.decoder.n_params), np.float64(0.0)
    for row, c in zip(row_blocks(len(x), 1), coefficient(found.log_p), strict=True):
        one = for_rows(integrator, row)
        _, _, _, by = _checked(model, one, x[row], True, one.evaluate(model, x[row], True))
        if by is not None:  # it never is, having been checked
            theta, sigma2 = theta + c * by.theta, sigma2 + c * by.sigma2
    return found._replace(gradient=Gradient(theta, float(sigma2)))


def _scores(model: NonlinearICA, x: Array, integrator: Any) -> Array:
    """Gradients of the log p(x_i) of one block in (θ, σ²), (N, p + 1).

    On the integrator's nodes, whose gradient is also what refica's own ``evaluate`` returns: it is known by
    its coefficient. That of a third party may know better; it is asked, one observation at a time.
    `Reference` has so many nodes for outliers that it takes each observation on its own.
    """
    if isinstance(integrator, Reference):
        return integrator.scores(model, x)
    if not hasattr(integrator, "evaluate") or _takes_a_coefficient(integrator):
        fewer = getattr(integrator, "gradient_nodes", None)
        nodes = fewer(model, x) if fewer else checked_nodes(model, integrator, x)
        return scores_on(model.decoder, model.theta, model.sigma2, x, nodes)
    ones = [(x[row], for_rows(integrator, row)) for row in row_blocks(len(x), 1)]
    each = [estimate_of(model, True, None, one).gradient for one in ones]
    return np.stack([np.append(gradient.theta, gradient.sigma2) for gradient in each if gradient])


def _takes_a_coefficient(integrator: Any) -> bool:
    """Whether ``evaluate`` takes a fourth argument."""
    try:
        inspect.signature(integrator.evaluate).bind(None, None, True, None)
    except TypeError:
        return False
    return True


def _checked(model: NonlinearICA, integrator: Any, x: Array, gradient: bool, found: Any) -> Estimate:
    """Return what ``evaluate`` returned as an Estimate: a third party may have made it."""
    if not isinstance(found, (tuple, list)) or len(found) != 4:
        raise TypeError(
            f"{integrator}.evaluate must return (log_p, error, problems, gradient), got {shown(found)}"
        )
    log_p, error, problems, by = found
    for name, array in (("log_p", log_p), ("error", error), *dict(problems).items()):
        if np.shape(array) != (len(x),):
            raise ValueError(
                f"{integrator}.evaluate must return {name!r} of shape ({len(x)},), got {np.shape(array)}"
            )
    if not gradient:
        return Estimate(np.asarray(log_p), np.asarray(error), dict(problems), None)
    p = model.decoder.n_params
    if not isinstance(by, (tuple, list)) or len(by) != 2 or np.shape(by[0]) != (p,) or np.ndim(by[1]) != 0:
        raise TypeError(
            f"{integrator}.evaluate was asked for a gradient and must return a pair, theta of shape ({p},) "
            f"and the derivative in sigma2, got {shown(by)}"
        )
    return Estimate(
        np.asarray(log_p), np.asarray(error), dict(problems), Gradient(np.asarray(by[0]), float(by[1]))
    )


def for_rows(integrator: Any, rows: slice) -> Any:
    """Return the integrator for some of the observations: fixed nodes of each must be cut as x is."""
    return integrator.for_rows(rows) if hasattr(integrator, "for_rows") else integrator


def checked_nodes(model: NonlinearICA, integrator: Integrator, x: Array) -> Nodes:
    """Return an integrator's nodes, checked: a third party may have made them."""
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


def block_size(model: NonlinearICA, integrator: Any) -> int:
    """Return how many observations to evaluate at a time; fewer where each has many nodes of its own."""
    per_observation = getattr(integrator, "nodes_per_observation", None)
    K = per_observation(model.latent_dim) if callable(per_observation) else 1
    return max(1, min(BLOCK, OWN_NODES // K))


def verdict(problems: list[dict[str, Array]], lengths: list[int]) -> tuple[Array, str]:
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
