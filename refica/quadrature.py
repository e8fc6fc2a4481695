"""Integrators made of a rule and a proposal, and fixed nodes: arrays of nodes for Lebesgue measure.

An integrator is anything with ``nodes(model, x) -> (z, log_weight)``: z (K, m) shared by all
observations or (N, K, m), log weights (K,) or (N, K), such that ∫ f(z) dz ≈ Σ_k exp(log_weight_k)
f(z_k). The prior is never folded in. It may also offer ``evaluate(model, x, gradient)``, as
`Quadrature` does to add an error estimate and a verdict.
"""

# notation: N observations, n data, m latent, K nodes; t, w a rule's nodes and weights for N(0, I)

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from refica.likelihood import (
    Coefficient,
    Estimate,
    Evaluation,
    Nodes,
    Tile,
    evaluate,
    log_marginal,
    rounding_error,
)
from refica.model import NonlinearICA, log_prior
from refica.proposals import PROPOSALS, Gaussians, Proposal, place
from refica.rules import Rule, UniformGrid
from refica.spread import Spread, spread
from refica.validation import Array, check_array, check_choice

__all__ = ["FixedNodes", "Integrator", "Quadrature"]

FEW_RANDOM_NODES = 50
"""Fewest effective nodes of a random rule whose standard error is worth the name: at 50 the normal
interval of the log of a mean has lost about a percent of its coverage."""

FEW_NODES = 2
"""Fewest effective nodes of a deterministic rule on the prior: below, one node carries the sum."""

EDGE = 1e-6
"""Largest share of the posterior on the border of a grid; more means that the box cuts it off."""

DISAGREEMENT = 1e-2
"""Largest error estimate (nats) of a deterministic rule that is still called converged: where two
rules differ by more, neither is in its range of convergence and their difference is only a guess."""

MANY_COMPONENTS = 8
"""Components that a mixture over all modes is taken to have when the size of a block is chosen."""

UNCERTAIN = f"the error estimate is above {DISAGREEMENT:g} nats, so it is itself a guess"
COARSE = "nodes too coarse for sigma: the decoder moves by more than sigma between them"
MISSED = "another mode of the posterior, which the nodes do not cover, holds a part of its mass"


class Integrator(Protocol):
    """Anything that hands out nodes; see the module's first lines."""

    def nodes(self, model: Any, x: Array) -> tuple[Array, Array]:
        """Return z (K, m) or (N, K, m) and log weights (K,) or (N, K) for Lebesgue measure."""


@dataclass(frozen=True, slots=True, init=False)
class Quadrature:
    """A rule placed by a proposal.

    Parameters
    ----------
    rule : Rule
        Nodes and weights for N(0, I): `gauss_hermite`, `uniform_grid`, `monte_carlo`, `sobol`.
    proposal : str or Proposal
        ``"prior"``: the rule as it is, shared by all observations. ``"laplace"``: centred at the
        posterior mode of each observation. ``"modes"``: on a mixture over all modes found. Or any object
        with ``gaussians(model, x)``, such as `EncoderProposal`.

    Raises
    ------
    TypeError, ValueError
        If ``rule`` is not a rule or the proposal unknown.

    Notes
    -----
    One Gauss-Hermite node with ``"laplace"`` is the Laplace approximation, more are adaptive
    Gauss-Hermite quadrature (Liu and Pierce 1994); Monte Carlo with any proposal but the prior is
    importance sampling.

    The error of a Gauss-Hermite rule is its distance to a uniform grid on the same region (halving its
    order is no yardstick: it covers the truth in 16 % of cases); that of a grid its distance to the grid
    of twice the step, plus what lies beyond its border; that of a random rule the half-width of a 95 %
    interval from the standard error (delta method). Each has what rounding may do added.
    """

    rule: Rule
    proposal: str | Proposal

    def __init__(self, rule: Rule, proposal: str | Proposal = "prior") -> None:
        if not callable(getattr(rule, "points", None)):
            raise TypeError(f"rule must be one such as gauss_hermite(20), got {rule!r}")
        if isinstance(proposal, str):
            check_choice("proposal", proposal, ("prior", *PROPOSALS))
        elif not callable(getattr(proposal, "gaussians", None)):
            raise TypeError(f"proposal must be a name or offer gaussians(model, x), got {proposal!r}")
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "proposal", proposal)

    def nodes(self, model: NonlinearICA, x: Array) -> Nodes:
        """Return the nodes: z (K, m) for the prior, otherwise (N, K, m)."""
        return _placed(self.rule, model, self._gaussians(model, x))

    def evaluate(
        self, model: NonlinearICA, x: Array, gradient: bool, coefficient: Coefficient = np.ones_like
    ) -> Estimate:
        """Return log p(x_i) with its error, problems, and the gradient of Σ_i c_i log p(x_i)."""
        q = self._gaussians(model, x)
        nodes = _placed(self.rule, model, q)
        random = self.rule.replicates is not None
        result = evaluate(
            model.decoder,
            model.theta,
            model.sigma2,
            x,
            nodes,
            coefficient=coefficient if gradient else None,
            statistic=_spread_of(self.rule, model) if random else self._watched(model, nodes),
        )
        judge = _judge_random if random else self._judge
        error, problems = judge(model, x, q, result)
        error = error + rounding_error(x, model.sigma2, result.log_p)
        if q is not None:
            missed = np.logaddexp(0.0, q.uncovered - result.log_p)
            error = error + missed
            problems = problems | q.problems | {MISSED: missed > DISAGREEMENT}
        return Estimate(result.log_p, error, problems, result.gradient)

    def nodes_per_observation(self, m: int) -> int:
        """Return how many nodes each observation has of its own, about; 1 where all share them."""
        if self.proposal == "prior":
            return 1
        companion = self.rule.companion(m)
        K = max(self.rule.count(m), 0 if companion is None else companion.count(m))
        return K * (MANY_COMPONENTS if self.proposal == "modes" else 1)

    def _gaussians(self, model: NonlinearICA, x: Array) -> Gaussians | None:
        """The proposal's mixtures, None for the prior."""
        if self.proposal == "prior":
            return None
        proposal = PROPOSALS[self.proposal] if isinstance(self.proposal, str) else self.proposal
        return proposal.gaussians(model, x)

    def _watched(self, model: NonlinearICA, nodes: Nodes) -> Array:
        """Functions of the nodes whose posterior means judge a deterministic rule, the `_WATCHED`, (K, 3)."""
        m = model.latent_dim
        coarse = self.rule.coarse(m)
        edge = self.rule.edge(m).astype(float)
        travel = np.zeros_like(edge)
        if self.proposal == "prior":
            travel = _travel(self.rule.spacing(m), model, nodes.z)
        statistic = np.stack([edge, edge if coarse is None else coarse, travel], axis=1)
        # each component of a mixture repeats the rule's nodes
        return np.tile(statistic, (nodes.z.shape[-2] // len(statistic), 1))

    def _judge(
        self, model: NonlinearICA, x: Array, q: Gaussians | None, result: Evaluation
    ) -> tuple[Array, dict[str, Array]]:
        """Return the error (N,) of a deterministic rule, without rounding, and problems."""
        edge, coarse, travel = result.means.T
        m = model.latent_dim
        if self.rule.coarse(m) is not None:
            # log of (2^m Σ over the coarse nodes) / (Σ over all) is log(2^m × their responsibility)
            with np.errstate(divide="ignore"):
                halving = np.abs(m * math.log(2.0) + np.log(coarse))
            error = halving + edge / float(self.rule.spacing(m)[0, 0])
        else:
            error = self._distance_to_companion(model, x, q, result.log_p)
        problems = {UNCERTAIN: ~(error <= DISAGREEMENT)}
        if self.proposal == "prior":
            problems[COARSE] = travel > math.sqrt(model.sigma2)
            problems["one node carries the whole sum"] = 1.0 / result.concentration < FEW_NODES
        if isinstance(self.rule, UniformGrid):
            problems["the posterior reaches the border of the grid"] = edge > EDGE
        return error, problems

    def _distance_to_companion(
        self, model: NonlinearICA, x: Array, q: Gaussians | None, log_p: Array
    ) -> Array:
        companion = self.rule.companion(model.latent_dim)
        if companion is None:
            return np.full(len(x), np.nan)
        nodes = _placed(companion, model, q)
        if companion.replicates is None:
            other = log_marginal(model.decoder, model.theta, model.sigma2, x, nodes)
            return np.asarray(np.abs(log_p - other))
        statistic = _spread_of(companion, model)
        found = evaluate(model.decoder, model.theta, model.sigma2, x, nodes, statistic=statistic)
        return np.asarray(np.abs(log_p - found.log_p) + found.means[:, 0])


def _placed(rule: Rule, model: NonlinearICA, q: Gaussians | None) -> Nodes:
    """The nodes of a rule on the mixtures q, or on the prior."""
    t, log_w = rule.points(model.latent_dim)
    if q is not None:
        return place(t, log_w, q)
    return Nodes(t, log_w - log_prior(t))


def _spread_of(rule: Rule, model: NonlinearICA) -> Callable[[Tile], Array]:
    """The statistic that judges a random rule: the columns of `Spread`."""
    return partial(spread, K=rule.count(model.latent_dim), replicates=rule.replicates)


def _judge_random(
    model: NonlinearICA, x: Array, q: Gaussians | None, result: Evaluation
) -> tuple[Array, dict[str, Array]]:
    """Return the half-width (N,) of a 95 % interval, and problems."""
    found = Spread(*result.means.T)
    problems = {
        f"fewer than {FEW_RANDOM_NODES} effective nodes, so the error is not to be trusted": (
            found.effective < FEW_RANDOM_NODES
        ),
    }
    return found.half_width, problems


def _travel(spacing: Array, model: NonlinearICA, z: Array) -> Array:
    """How far g moves from one node to the next, along the worst axis: spacing times |∂g/∂z_l|, (K,)."""
    still = np.zeros(model.decoder.n_params)
    farthest = np.zeros(len(z))
    for axis in range(model.latent_dim):
        step = np.zeros_like(z)
        step[:, axis] = np.where(np.isfinite(spacing[:, axis]), spacing[:, axis], 0.0)
        move = model.decoder.jvp(model.theta, z, still, step)
        farthest = np.maximum(farthest, np.sqrt(np.einsum("kn,kn->k", move, move)))
    return farthest


@dataclass(frozen=True, slots=True, init=False, eq=False)
class FixedNodes:
    """Nodes as they are given, whatever the model: what derivative checks and optimisers hold fixed.

    Parameters
    ----------
    z : array_like (K, m) shared, or (N, K, m)
    log_weight : array_like (K,) or (N, K)
        For Lebesgue measure; -inf for a node that does not count.

    Raises
    ------
    TypeError, ValueError
        For arrays that do not fit together; ``nodes`` raises if they do not fit the model or the data.
    """

    z: Array
    log_weight: Array

    def __init__(self, z: Any, log_weight: Any) -> None:
        ndim = np.ndim(z)
        if ndim not in (2, 3):
            raise ValueError(f"z must have shape (K, m) or (N, K, m), got {np.shape(z)}")
        z = check_array("z", z, ("N", "K", "m")[3 - ndim :])
        weights = np.asarray(log_weight)
        absent = weights == -np.inf
        log_weight = check_array("log_weight", np.where(absent, 0.0, weights), z.shape[:-1])
        object.__setattr__(self, "z", z)
        object.__setattr__(self, "log_weight", np.where(absent, -np.inf, log_weight))

    def __repr__(self) -> str:
        """Name the shape only: the arrays would fill pages of a message."""
        return f"FixedNodes(z of shape {self.z.shape})"

    def for_rows(self, rows: slice) -> FixedNodes:
        """Return the nodes of some of the observations, for evaluation block by block."""
        return self if self.z.ndim == 2 else FixedNodes(self.z[rows], self.log_weight[rows])

    def nodes(self, model: NonlinearICA, x: Array) -> Nodes:
        """Return the nodes.

        Raises
        ------
        ValueError
            If their dimension is not the model's or their number of observations not that of x.
        """
        if self.z.shape[-1] != model.latent_dim or (self.z.ndim == 3 and len(self.z) != len(x)):
            raise ValueError(
                f"fixed nodes of shape {self.z.shape} do not fit {len(x)} observations "
                f"and latent_dim {model.latent_dim}"
            )
        return Nodes(self.z, self.log_weight)
