"""Integrators made of a rule and a proposal, and fixed nodes: arrays of nodes for Lebesgue measure.

An integrator is anything with ``nodes(model, x) -> (z, log_weight)``: z (K, m) shared by all
observations or (N, K, m), log weights (K,) or (N, K), such that ∫ f(z) dz ≈ Σ_k exp(log_weight_k)
f(z_k). The prior is never folded in. It may also offer ``evaluate(model, x, gradient)``, as
`Quadrature` does to add an error estimate and a verdict.
"""

# notation: N observations, n data, m latent, K nodes; t, w a rule's nodes and weights for N(0, I);
# q the mixtures that a proposal puts them on

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import special

from refica.likelihood import Coefficient, Estimate, Evaluation, Nodes, Tile, evaluate, rounding_error
from refica.model import NonlinearICA, log_likelihood_given, log_prior
from refica.proposals import PRIOR_SHARE, PROPOSALS, Gaussians, Proposal, defended, place, place_at_random
from refica.rules import Rule, UniformGrid
from refica.spread import Spread, spread
from refica.validation import Array, check_array, check_choice

__all__ = ["FixedNodes", "Integrator", "Quadrature"]

FEW_RANDOM_NODES = 50
"""Fewest effective nodes of a random rule whose standard error is worth the name: at 50 the normal
interval of the log of a mean has lost about a percent of its coverage."""

HEAVIEST = 1.0 / 3.0
"""Largest shape of the weights' tail at which a standard error is trusted: above, the third moment is
infinite. Importance sampling from the Gaussian at the mode, nothing more, had 95 % intervals that covered
91-93 % below, 80 % from 0.4 to 0.5 and 72 % from 0.6 to 0.7 (m = 1, 2551 posteriors)."""

FEW_NODES = 2
"""Fewest effective nodes of a deterministic rule on the prior: below, one node carries the sum."""

EDGE = 1e-6
"""Largest share of the posterior on the border of a grid on the prior; more means that the box cuts it."""

DISAGREEMENT = 1e-2
"""Largest error estimate (nats) of a deterministic rule that is still called converged: where two
rules differ by more, neither is in its range of convergence and their difference is only a guess."""

MARGIN = 2.0
"""Factor on the distance between copies of a grid. It has the size of an error but is no bound on one: were
the errors of three copies independent, all would lie to one side and so near to each other in a few percent
of cases. Most are far below, since the error falls off exponentially."""

OUTSIDE = 0.1
"""Largest bound (nats) on what lies outside a grid on the prior that is left to the error: the bound knows
nothing of the decoder, and above this it says that something may well be there."""

RULE_OF_THREE = 3.0
"""Draws that may be expected in a region that none falls into, at most, with 95 % confidence: -log 0.05."""

UNSEEN = 2.0
"""Factor on the mass of modes that no node covers: Laplace's approximation, which it comes from, may be that
much too low."""

MANY_COMPONENTS = 8
"""Components that a mixture over all modes is taken to have when the size of a block is chosen."""

UNCERTAIN = f"the error estimate is above {DISAGREEMENT:g} nats, so it is itself a guess"
COARSE = "nodes too coarse for sigma: the decoder moves by more than sigma between them"
LONELY = "one node carries the whole sum"
BORDER = "the posterior reaches the border of the grid"
MISSED = "another mode of the posterior, which the nodes do not cover, holds a part of its mass"
FEW = f"fewer than {FEW_RANDOM_NODES} effective nodes, so the error is not to be trusted"
HEAVY = "the largest weights have so heavy a tail that the error is not to be trusted"


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
        ``"prior"``: the rule as it is, shared by all observations. ``"laplace"``: centred at the best
        posterior mode of each observation. ``"modes"``: on a mixture over all modes found. Or any object
        with ``gaussians(model, x)``, such as `EncoderProposal`.

    Raises
    ------
    TypeError, ValueError
        If ``rule`` is not a rule or the proposal unknown.

    Notes
    -----
    One Gauss-Hermite node with ``"laplace"`` is the Laplace approximation, more are adaptive
    Gauss-Hermite quadrature (Liu and Pierce 1994). Random rules with any proposal but the prior are
    importance sampling; on "laplace" and "modes" they sample a defensive mixture (`proposals.defended`),
    on a proposal of the user's what it says.

    The error of a Gauss-Hermite rule is its distance to the mean over three copies of a uniform grid,
    shifted and turned, plus what these differ among themselves (halving its order is no yardstick: it
    covers the truth in 16 % of cases); that of a grid its distance to two copies of it, and on the prior to
    the grid of twice the step; that of a random rule the half-width of a 95 % interval, with Student's
    quantile, from the spread of its replicates. Each has what may lie beyond the border of its region added,
    the mass of modes that the search saw and the nodes do not cover, and what rounding may do.

    How often these errors cover the true ones is measured by ``python -m benchmarks coverage``.
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
        return self._setting(model, x).nodes(self.rule)

    def evaluate(
        self, model: NonlinearICA, x: Array, gradient: bool, coefficient: Coefficient = np.ones_like
    ) -> Estimate:
        """Return log p(x_i) with its error, problems, and the gradient of Σ_i c_i log p(x_i)."""
        setting = self._setting(model, x)
        result = setting.evaluate(self.rule, _watched(self.rule, setting), coefficient if gradient else None)
        if self.rule.replicates is not None:
            error, problems = _judge_random(self.rule, setting, result)
        elif isinstance(self.rule, UniformGrid):
            error, problems = _judge_grid(self.rule, setting, result)
        else:
            error, problems = _judge_gauss(self.rule, setting, result)
        error = error + rounding_error(x, model.sigma2, result.log_p)
        if setting.q is not None:
            missed = np.logaddexp(0.0, math.log(UNSEEN) + _unseen(self.rule, setting) - result.log_p)
            error = error + missed
            problems = problems | setting.q.problems | {MISSED: missed > DISAGREEMENT}
        return Estimate(result.log_p, error, problems, result.gradient)

    def comparison(self, model: NonlinearICA, x: Array) -> Iterator[Nodes]:
        """Yield the nodes, then those of other rules on the prior or on all modes, to compare posterior
        moments with; none for a random rule, whose nodes say themselves how far they are off.

        On all modes, since one that the proposal misses may be so far that its share in moments is large."""
        setting = self._setting(model, x)
        companion = self.rule.companion(model.latent_dim)
        yield setting.nodes(self.rule)
        if self.proposal not in ("prior", "modes") and self.rule.replicates is None:
            setting = setting._replace(q=PROPOSALS["modes"].gaussians(model, x))
        if isinstance(self.rule, UniformGrid):
            others: list[Rule] = [self.rule.another(j) for j in (1, 2)]
        elif isinstance(companion, UniformGrid):
            others = [companion.another(j) for j in (0, 1, 2)]
        else:
            others = [] if companion is None else [companion]
        yield from map(setting.nodes, others)

    def nodes_per_observation(self, m: int) -> int:
        """Return how many nodes each observation has of its own, about; 1 where all share them."""
        if self.proposal == "prior":
            return 1
        companion = self.rule.companion(m)
        K = max(self.rule.count(m), 0 if companion is None else companion.count(m))
        return K * (MANY_COMPONENTS if self.proposal == "modes" and self.rule.replicates is None else 1)

    def _setting(self, model: NonlinearICA, x: Array) -> _Setting:
        if self.proposal == "prior":
            return _Setting(model, x, None, False)
        proposal = PROPOSALS[self.proposal] if isinstance(self.proposal, str) else self.proposal
        return _Setting(model, x, proposal.gaussians(model, x), isinstance(self.proposal, str))


class _Setting(NamedTuple):
    """A model, observations x (N, n), and where rules are placed for them: on the mixtures q, or (None) on
    the prior; ``defend`` whether a random rule samples a defensive mixture in place of q."""

    model: NonlinearICA
    x: Array
    q: Gaussians | None
    defend: bool

    def nodes(self, rule: Rule) -> Nodes:
        """Return a rule's nodes."""
        if self.q is None:
            t, log_w = rule.points(self.model.latent_dim)
            return Nodes(t, log_w - log_prior(t))
        if rule.replicates is None:
            return place(*rule.points(self.model.latent_dim), self.q)
        return place_at_random(rule, defended(self.q) if self.defend else self.q)

    def evaluate(
        self,
        rule: Rule,
        statistic: Array | Callable[[Tile], Array],
        coefficient: Coefficient | None = None,
    ) -> Evaluation:
        """Return a rule's log p(x_i) and posterior means of a statistic of its nodes."""
        nodes = self.nodes(rule)
        if not callable(statistic):  # each component of a mixture repeats the rule's nodes
            statistic = np.tile(statistic, (nodes.z.shape[-2] // len(statistic), 1))
        model = self.model
        return evaluate(
            model.decoder,
            model.theta,
            model.sigma2,
            self.x,
            nodes,
            coefficient=coefficient,
            statistic=statistic,
        )


def _watched(rule: Rule, setting: _Setting) -> Array | Callable[[Tile], Array]:
    """What judges a rule: of a random one the columns of `Spread`; of a deterministic one functions of its
    nodes whose posterior means tell, (K, 3): being on the border, in the coarser grid, the travel of g."""
    m = setting.model.latent_dim
    if rule.replicates is not None:
        return partial(spread, replicates=rule.replicates)
    edge, coarse = rule.edge(m).astype(float), rule.coarse(m)
    travel = np.zeros_like(edge)
    if setting.q is None:
        travel = _travel(rule.spacing(m), setting.model, rule.points(m)[0])
    return np.stack([edge, edge if coarse is None else coarse, travel], axis=1)


def _unseen(rule: Rule, setting: _Setting) -> Array:
    """log of the part of p(x_i) that no node of a rule has seen, as far as the search for modes knows, (N,).

    A defensive mixture draws from the prior too: it has seen what so much of that leads to that
    `RULE_OF_THREE` nodes are expected there.
    """
    assert setting.q is not None
    unseen = np.broadcast_to(setting.q.uncovered, len(setting.x))
    apart = setting.q.apart
    if apart is None:
        return unseen
    mass = apart.mass
    if rule.replicates is not None and setting.defend:
        draws = PRIOR_SHARE * rule.count(setting.model.latent_dim) * np.exp(apart.prior)
        mass = np.where(draws < RULE_OF_THREE, mass, -np.inf)
    return np.asarray(np.logaddexp(unseen, mass))


def _judge_random(rule: Rule, setting: _Setting, result: Evaluation) -> tuple[Array, dict[str, Array]]:
    """Return the half-width (N,) of a 95 % interval, and problems.

    Balanced replicates all lack the same part of a tail that the mixture does not cover, about as much as
    the node farthest out stands for: on a proposal that is not defended, the largest share is added
    (without it Sobol's intervals covered 85 % there, with it 98 %).

    On the prior, largest weights that are all equal are those of draws on a piece where the decoder is flat;
    their spread is silent about a region that none of them fell into, which may well have `RULE_OF_THREE` / K
    of the prior's mass, and weights as large.
    """
    found = Spread(*result.means.T)
    error = found.half_width
    if setting.q is None:
        unseen = np.where(found.shape == -np.inf, RULE_OF_THREE * found.largest, 0.0)
        error = np.maximum(error, unseen)
    balanced = rule.replicates != rule.count(setting.model.latent_dim)
    if setting.q is not None and not setting.defend and balanced:
        error = error + np.where(found.shape > -np.inf, found.largest, 0.0)  # equal weights have no tail
    return error, {FEW: found.effective < FEW_RANDOM_NODES, HEAVY: found.shape > HEAVIEST}


def _judge_grid(grid: UniformGrid, setting: _Setting, result: Evaluation) -> tuple[Array, dict[str, Array]]:
    """Return the error (N,) of a grid, without rounding, and problems.

    By two copies; and on the prior also by halving, log of (2^m Σ over the coarse nodes) / (Σ over all),
    which is log(2^m × their responsibility) and costs nothing. (On other proposals a grid has few nodes to
    halve.)
    """
    edge, coarse, _ = result.means.T
    others, beyond = _on_copies(grid, setting, (1, 2))
    error = MARGIN * np.abs(others - result.log_p).max(axis=0)
    if setting.q is not None:
        error = error + beyond
        return error, _problems(setting, result, error)
    with np.errstate(divide="ignore"):
        halving = np.abs(setting.model.latent_dim * math.log(2.0) + np.log(coarse))
    error = np.maximum(error, halving) + edge / grid.step
    outside = _outside(grid.radius, setting, result.log_p)
    problems = _problems(setting, result, error) | {BORDER: (edge > EDGE) | (outside > OUTSIDE)}
    return error + outside, problems


def _judge_gauss(rule: Rule, setting: _Setting, result: Evaluation) -> tuple[Array, dict[str, Array]]:
    """Return the error (N,) of a rule that has a companion C, without rounding, and problems.

    |Q - C| plus the error of C itself: where C is the better of the two, Q's error is as large as the
    distance, and without C's own it would be covered half of the time. A companion grid is taken as the
    mean over itself and its two copies, its own error as half their range.
    """
    companion = rule.companion(setting.model.latent_dim)
    if companion is None:
        error = np.full(len(setting.x), np.nan)
    elif isinstance(companion, UniformGrid):
        each, beyond = _on_copies(companion, setting, (0, 1, 2))
        mean = np.logaddexp.reduce(each, axis=0) - math.log(3.0)
        error = np.abs(result.log_p - mean) + MARGIN * 0.5 * np.ptp(each, axis=0) + beyond
    else:
        other = setting.evaluate(companion, _watched(companion, setting))
        error = np.abs(result.log_p - other.log_p) + Spread(*other.means.T).half_width
    return error, _problems(setting, result, error)


def _problems(setting: _Setting, result: Evaluation, error: Array) -> dict[str, Array]:
    """What a deterministic rule can see to be wrong."""
    problems = {UNCERTAIN: ~(error <= DISAGREEMENT)}  # True for nan
    if setting.q is None:
        problems[COARSE] = result.means[:, 2] > math.sqrt(setting.model.sigma2)
        problems[LONELY] = 1.0 / result.concentration < FEW_NODES
    return problems


def _on_copies(grid: UniformGrid, setting: _Setting, copies: tuple[int, ...]) -> tuple[Array, Array]:
    """log p (len(copies), N) by copies of a grid, and what lies beyond its border (N,).

    Copies tell more than halving: at a shift the leading error term of a smooth integrand turns by 120
    degrees, and that of a kink, h² B2(θ), goes through B2(θ + 1/3), B2(θ + 2/3); of either, three values
    cannot be close to each other by accident, while T_h and T_2h can (at kinks in some percent of cases).
    With more axes than one, a feature along a diagonal hardly moves against a shifted lattice, but does
    against one that is turned.
    """
    faces = grid.faces(setting.model.latent_dim).astype(float)
    found = [setting.evaluate(grid.another(j), faces) for j in copies]
    beyond = np.max([_tails(result.means, _stretch(setting.q) / grid.step) for result in found], axis=0)
    return np.stack([result.log_p for result in found]), beyond


def _tails(shares: Array, farthest: Array | float) -> Array:
    """What lies beyond the border of a grid (N,), from the shares of its faces and the next layers (N, 4m).

    Across each face the shares go on as a geometric series with the ratio of the last two, but no farther
    than so many layers: steep tails have died out, slow ones may reach as far as the prior does. Three
    times that, since a ratio near 1 is no longer constant.
    """
    outer, inner = np.split(shares, 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        layers = 1.0 / (inner / outer - 1.0)  # ρ / (1 - ρ) with ρ = outer / inner
    limit = np.broadcast_to(np.reshape(farthest, (-1, 1)), outer.shape)
    layers = np.where((layers >= 0.0) & (layers < limit), layers, limit)  # rising or 0/0: the limit
    return np.asarray(3.0 * (outer * layers).sum(axis=1))


def _outside(radius: float, setting: _Setting, log_p: Array) -> Array:
    """How much log p could rise, (N,), by what lies outside [-radius, radius]^m, whatever the decoder does.

    There N(x; g, σ² I) is at most (2πσ²)^(-n/2), and the prior has at most the mass 2m Φ(-radius).
    """
    model = setting.model
    peak = log_likelihood_given(np.zeros(1), model.sigma2, model.data_dim)
    mass = math.log(2.0 * model.latent_dim) + special.log_ndtr(-radius)
    return np.asarray(np.logaddexp(0.0, peak + mass - log_p))


def _stretch(q: Gaussians | None) -> Array | float:
    """The prior's width in units of the narrowest width of the mixture, (N,): how far a tail may reach that
    has not died out at the border of a rule's region."""
    if q is None:
        return 1.0
    widths = np.einsum("ncii->nci", q.scale).min(axis=2)
    return np.asarray(1.0 / np.where(q.log_share > -np.inf, widths, 1.0).min(axis=1)).clip(min=1.0)


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
        z = check_array("z", z, ("N", "K", "m")[3 - ndim :]).copy()
        log_weight = check_array("log_weight", log_weight, z.shape[:-1], minus_infinity=True).copy()
        for name, array in (("z", z), ("log_weight", log_weight)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        """Name the shape only: the arrays would fill pages of a message."""
        return f"FixedNodes(z of shape {self.z.shape})"

    def for_rows(self, rows: slice) -> FixedNodes:
        """Return the nodes of some of the observations, for evaluation block by block."""
        return self if self.z.ndim == 2 else FixedNodes(self.z[rows], self.log_weight[rows])

    def nodes(self, model: NonlinearICA, x: Array) -> Nodes:
        """Return the nodes; raises as `check_fit`."""
        self.check_fit(model, x)
        return Nodes(self.z, self.log_weight)

    def check_fit(self, model: NonlinearICA, x: Array) -> None:
        """Refuse a model or data that the nodes were not made for.

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
