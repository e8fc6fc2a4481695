"""The posterior p(z | x_i) of observations: its mean, covariance and samples, with an error and a verdict."""

# notation: N observations, n data, m latent, K nodes, R replicates of a random rule, L samples

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from refica.exact import ExactLinear
from refica.likelihood import Nodes, moments, row_blocks, tiles
from refica.marginal import block_size, checked_nodes, estimate_of, for_rows, given_or_chosen, verdict
from refica.model import NonlinearICA, check_model
from refica.quadrature import DISAGREEMENT, HEAVIEST, Integrator
from refica.quantiles import quantiles, tabulate
from refica.reference import BOUNDED
from refica.spread import pareto_shape
from refica.validation import Array, check_count, check_generator

__all__ = ["Posterior", "posterior"]

MARGIN = 2.0
"""Factor on the distance to the moments by other nodes, which has the size of the error but is no bound."""

ROWS = 512
"""Observations whose densities are tabulated at a time: some 100 panels each, a few MB."""

UNCERTAIN = f"the error of the posterior's moments is above {DISAGREEMENT:g}, so it is itself a guess"

HEAVY = "far nodes contribute so unequally to the variance that the error is not to be trusted"


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """The result of `posterior`: moments of p(z | x_i) on integration nodes.

    Attributes
    ----------
    mean : (N, m)
    covariance : (N, m, m)
    effective_nodes : (N,)
        1 / Σ_k ρ_ik², with ρ the responsibilities of the nodes (2m for `ExactLinear`, which needs no more).
    error : (N,)
        Estimated error of the moments in units of the posterior's standard deviations: the largest of
        |δ mean_a| / sd_a and |δ covariance_ab| / (sd_a sd_b). For random rules the half-width of a 95 %
        interval; nan where the integrator gives none.
    converged : (N,) bool
        Where the integrator trusts its error of log p(x_i), and this one is small enough to be trusted.
    message : str
        What was integrated with, and what each False in ``converged`` means.
    model, x, integrator
        What it was computed from.
    """

    mean: Array
    covariance: Array
    effective_nodes: Array
    error: Array
    converged: Array
    message: str
    model: NonlinearICA
    x: Array
    integrator: Any

    def __repr__(self) -> str:
        """Show shapes, not arrays."""
        return (
            f"Posterior(mean of shape {self.mean.shape}, largest error={np.max(self.error):.2g}, "
            f"{np.sum(self.converged)} converged, message={self.message!r})"
        )

    def sample(self, size: int, rng: Any) -> Array:
        """Draw ``size`` latents for each observation, (size, N, m).

        - If the decoder is affine they are draws of the Gaussian N(M⁻¹Wᵀ(x - b), σ² M⁻¹), for any m.
        - For m = 1 the distribution function of p(z | x_i) is inverted. It is computed from the density
          itself between and around the integrator's nodes, right to 1e-5, and so continuous; the nodes
          only say where to look.
        - Otherwise nodes are drawn, with their responsibilities as probabilities: there are about
          ``effective_nodes`` different ones, and draws cannot be more right than they are many. Take an
          integrator with more nodes for draws that look continuous.

        Raises
        ------
        TypeError, ValueError
            If ``size`` is not an integer >= 1 or ``rng`` neither a seed nor a generator.
        """
        size, rng = check_count("size", size), check_generator(rng)
        if getattr(self.model.decoder, "is_affine", False):
            return _gaussian_draws(self.model, self.x, size, rng)
        uniform = rng.random((size, len(self.x)))
        draw, most = (_inverted, ROWS) if self.model.latent_dim == 1 else (_resampled, len(self.x))
        parts = []
        for rows in row_blocks(len(self.x), min(most, block_size(self.model, self.integrator))):
            nodes = checked_nodes(self.model, for_rows(self.integrator, rows), self.x[rows])
            parts.append(draw(self.model, self.x[rows], nodes, uniform[:, rows]))
        return np.concatenate(parts, axis=1)


def posterior(model: NonlinearICA, x: Any, integrator: Integrator | None = None) -> Posterior:
    """Return mean, covariance and effective number of nodes of p(z | x_i), with an error and a verdict.

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

    Notes
    -----
    The error comes from that of log p(x_i), taken as mass in the tails. For a `Quadrature` the moments are
    also computed on the nodes that it compares log p(x_i) with, shifted and turned grids or Sobol's points,
    and twice the distance is added; for a random rule their standard error follows from its replicates.
    Other integrators offer no nodes to compare with. What a random rule cannot know of is a mode with less
    than some 3 / ``effective_nodes`` of the mass, which can dominate a variance if it is far away.

    Examples
    --------
    >>> from refica import MLP
    >>> model = NonlinearICA(MLP((1, 2)), [1.0, 0.5, 0.0, 0.0], sigma2=0.1)
    >>> post = posterior(model, [[0.3, 0.2]])
    >>> post.mean.round(12).tolist(), bool(post.converged.all()), post.sample(5, rng=0).shape
    ([[0.296296296296]], True, (5, 1, 1))
    """
    x = check_model(model).check_data(x)
    integrator, why = given_or_chosen(model, x, integrator)
    parts = [
        _block(model, x[rows], for_rows(integrator, rows))
        for rows in row_blocks(len(x), block_size(model, integrator))
    ]
    converged, problems = verdict([part.problems for part in parts], [len(part.mean) for part in parts])
    mean, covariance, effective, error = (
        np.concatenate(part) for part in zip(*(part[:4] for part in parts), strict=True)
    )
    message = f"{integrator} ({why}){problems}"
    return Posterior(mean, covariance, effective, error, converged, message, model, x, integrator)


class _Part(NamedTuple):
    """What `Posterior` says of some observations, with ``problems`` as in `refica.likelihood.Estimate`."""

    mean: Array
    covariance: Array
    effective_nodes: Array
    error: Array
    problems: dict[str, Array]


class _Moments(NamedTuple):
    """``mean`` (N, m) and ``covariance`` (N, m, m)."""

    mean: Array
    covariance: Array


def _block(model: NonlinearICA, x: Array, integrator: Any) -> _Part:
    """Evaluate one block."""
    compares = hasattr(integrator, "comparison")
    several = integrator.comparison(model, x) if compares else iter([checked_nodes(model, integrator, x)])
    nodes = next(several)
    *pair, concentration = moments(model.decoder, model.theta, model.sigma2, x, nodes)
    found = _Moments(*pair)
    off = np.zeros(len(x))
    for others in several:
        other = _Moments(*moments(model.decoder, model.theta, model.sigma2, x, others)[:2])
        off = np.maximum(off, MARGIN * _distance(found, other))
    estimate = estimate_of(model, False, None, (x, integrator))
    problems = estimate.problems
    replicates = integrator.rule.replicates if compares else None
    if replicates is not None:
        half_width, shape = _spread(model, x, nodes, found, replicates)
        error = np.maximum(half_width, estimate.error)
        problems = problems | {HEAVY: shape > HEAVIEST}
    else:
        error = off + _in_the_tails(estimate.error)
        if BOUNDED in problems:  # the bounds that overrule log p say nothing of the nodes' moments
            error = np.where(problems[BOUNDED], np.inf, error)
        problems = problems | {UNCERTAIN: error > DISAGREEMENT}  # False for nan, which has its own sentence
    return _Part(*found, 1.0 / concentration, error + _rounding(found), problems)


def _distance(one: _Moments, other: _Moments) -> Array:
    """The largest difference of moments in units of the larger standard deviations, (N,); inf if one is 0."""
    sd = np.sqrt(np.maximum(*(np.einsum("iaa->ia", each.covariance) for each in (one, other))))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.abs(one.mean - other.mean) / sd
        covariance = np.abs(one.covariance - other.covariance) / (sd[:, :, None] * sd[:, None, :])
    worst = np.maximum(mean.max(axis=1), covariance.max(axis=(1, 2)))  # nan of either is passed on
    return np.where(np.isnan(worst), math.inf, worst)


def _in_the_tails(error: Array) -> Array:
    """What mass that is missing or too much may do to moments, as `_distance`, (N,).

    A mass δ in the tail of a Gaussian is about t = sqrt(2 log 1/δ) standard deviations away, and so changes
    the variance by δ t²; rounding of weights changes it by 2 δ.
    """
    return error * (2.0 + 2.0 * np.log(1.0 / np.clip(error, np.finfo(float).tiny, 1.0)))


def _spread(
    model: NonlinearICA, x: Array, nodes: Nodes, found: _Moments, replicates: int
) -> tuple[Array, Array]:
    """Half-width (N,) of a 95 % interval of the worst moment, as `_distance`, from R replicates, and the
    `pareto_shape` (N,) of the tail of what the nodes contribute to the worst variance.

    A moment Σ_k ρ_k f_k is a ratio of means over the replicates. With A_r = Σ_{k in r} ρ_k (f_k - moment),
    which sum to 0, its variance is R/(R - 1) Σ_r A_r² (delta method). Balanced replicates (Sobol's) all
    lack the same part of a tail, about as much as the largest contribution: that is added.
    """
    m, factor = model.latent_dim, special.stdtrit(replicates - 1.0, 0.975)
    sd = np.sqrt(np.einsum("iaa->ia", found.covariance))
    worst, shape, largest = np.zeros(len(x)), np.full(len(x), -math.inf), np.zeros(len(x))
    for tile in tiles(model.decoder, model.theta, model.sigma2, x, nodes):
        rows, rho = tile.rows, tile.rho
        with np.errstate(divide="ignore", invalid="ignore"):
            t = [(tile.z[..., a] - found.mean[rows, a, None]) / sd[rows, a, None] for a in range(m)]
            C = found.covariance[rows] / (sd[rows, :, None] * sd[rows, None, :])
        weighted = [rho * t[a] for a in range(m)]
        weighted += [rho * (t[a] * t[b] - C[:, a, b, None]) for a in range(m) for b in range(a + 1)]
        for each in weighted:
            A = each.reshape(len(rho), replicates, -1).sum(axis=2)
            variance = replicates / (replicates - 1.0) * np.einsum("ir,ir->i", A, A)
            worst[rows] = np.maximum(worst[rows], factor * np.sqrt(variance))
        for each in (rho * t[a] * t[a] for a in range(m)):
            shape[rows] = np.maximum(shape[rows], pareto_shape(np.nan_to_num(each)))
            largest[rows] = np.maximum(largest[rows], each.max(axis=1))
    if replicates < nodes.z.shape[-2]:
        worst += largest
    return np.where(np.isnan(worst), math.inf, worst), shape


def _rounding(found: _Moments) -> Array:
    """What rounding of the nodes themselves does, as `_distance`: a few u |mean| / sd, (N,)."""
    sd = np.sqrt(np.einsum("iaa->ia", found.covariance))
    with np.errstate(divide="ignore", invalid="ignore"):
        size = 4.0 * np.finfo(float).eps * (1.0 + np.abs(found.mean) / sd)
    return np.where(np.isnan(size), math.inf, size).max(axis=1)


def _gaussian_draws(model: NonlinearICA, x: Array, size: int, rng: np.random.Generator) -> Array:
    """μ_i + L ε with the exact posterior N(μ_i, L Lᵀ) of an affine decoder."""
    _, mean, scale, *_ = ExactLinear().gaussians(model, x)
    noise = rng.standard_normal((size, len(x), model.latent_dim))
    return mean[:, 0] + np.einsum("iab,sib->sia", scale[:, 0], noise)


def _inverted(model: NonlinearICA, x: Array, nodes: Nodes, uniform: Array) -> Array:
    """Quantiles (L, N, 1) of the posteriors at uniform numbers (L, N)."""
    return quantiles(tabulate(model, x, nodes), uniform)[..., None]


def _resampled(model: NonlinearICA, x: Array, nodes: Nodes, uniform: Array) -> Array:
    """Nodes (L, N, m), each with the probability of its responsibility, by uniform numbers (L, N)."""
    draws = np.empty((*uniform.shape, model.latent_dim))
    for tile in tiles(model.decoder, model.theta, model.sigma2, x, nodes):
        for i, rho in zip(range(tile.rows.start, tile.rows.stop), tile.rho, strict=True):
            z = tile.z if tile.z.ndim == 2 else tile.z[i - tile.rows.start]
            upto = np.cumsum(rho)
            chosen = np.searchsorted(upto, uniform[:, i] * upto[-1], side="right")
            draws[:, i] = z[np.minimum(chosen, len(rho) - 1)]
    return draws
