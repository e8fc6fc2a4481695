"""Stochastic gradient ascent and Adam on minibatches of the observations.

Each step takes the gradient of the mean over a batch. What of it is unbiased, for the gradient at the same
point over all observations with exact integrals?

- On nodes frozen within a round, for either objective: unbiased in the choice of the batch; what the nodes
  are off stays, until they are made anew for the next round.
- With ``fresh_nodes`` = K new draws from the prior in every step, "density-sum": unbiased altogether, since
  the mean of N(x; g(z_k), σ² I) and its derivatives over draws z_k ~ N(0, I) are unbiased for p(x) and its
  own. (The step is scaled by the objective at the start of the round, a constant for its draws.)
- With fresh nodes, "log-likelihood": biased for any finite K, since log p̂ and ∇p̂ / p̂ are not linear in p̂:
  the mean of log p̂ is low by about var(p̂) / 2p². At small σ² few draws come near an observation and the
  bias is large.

A direction is clipped to length `LONGEST` before it is scaled by the rate: where σ² is small, gradients are
too long by its inverse. A clipped gradient is no longer unbiased.
"""

# notation: N observations, K nodes; u (d,), d = p + 1 coordinates, average (d,) of the iterates of a round

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from refica.fit.adam import AdamState, adam_start, adam_step
from refica.fit.problem import Coordinates, Problem, Round, relative_density
from refica.fit.result import Step
from refica.fit.schedules import LOWERINGS, Plateau, batches, next_plateau, rate_of
from refica.fit.starts import principal_start
from refica.likelihood import Gradient
from refica.marginal import estimate_of
from refica.model import NonlinearICA
from refica.neighbourhoods import Neighbourhoods
from refica.quadrature import FixedNodes, Integrator, Quadrature
from refica.rules import monte_carlo
from refica.validation import Array

__all__ = ["ADAM", "SGD", "State", "Stochastic"]

ROUND = 200
"""Steps between two evaluations of all observations, for which nodes are made anew."""

LONGEST = 10.0
"""Longest direction of plain stochastic gradient ascent, in the coordinates of standardised data."""


class State(NamedTuple):
    """What changes from round to round.

    ``best`` of the averages so far, with the whole history; ``tried``, how many starts were evaluated; ``u``
    (d,) the last iterate; ``adam``, its moments; ``plateau``; ``rounds`` taken; ``diverged``.
    """

    best: Round
    tried: int
    u: Array
    adam: AdamState
    plateau: Plateau
    rounds: int
    diverged: bool


@dataclass(frozen=True, slots=True)
class Stochastic:
    """A method: plain ascent, or with Adam's scaling of its steps."""

    with_adam: bool

    def begin(self, problem: Problem) -> State:
        """Return the state before the first start."""
        u = problem.coordinates.to(problem.start)
        return State(Round(problem.start, -math.inf), 0, u, adam_start(len(u)), Plateau(-math.inf), 0, False)

    def advance(self, problem: Problem, state: State, rng: np.random.Generator) -> State:
        """Evaluate the next start, or take a round from the best of them."""
        if state.tried < problem.settings.n_starts:
            return _try_a_start(problem, state, rng)
        return self._take_a_round(problem, state, rng)

    def ending(self, problem: Problem, state: State) -> str | None:
        """Return the status with which the fit ends here, None if it goes on.

        It has converged when the rate has been lowered often enough, or, where the schedule does not lower
        it, when rounds in a row brought no gain.
        """
        settings = problem.settings
        if problem.watch.stopped:
            return "stopped by callback"
        if state.diverged:
            return "diverged"
        if state.tried < settings.n_starts:
            return None
        if problem.has_collapsed(state.best.model):
            return "collapsed"
        if state.plateau.lowered > (LOWERINGS if settings.schedule == "plateau" else 0):
            return "converged"
        return "iteration limit" if state.best.done >= settings.max_iter else None

    def _take_a_round(self, problem: Problem, state: State, rng: np.random.Generator) -> State:
        settings, coordinates = problem.settings, problem.coordinates
        steps = min(ROUND, settings.max_iter - state.best.done)
        rate = rate_of(settings.schedule, settings.learning_rate, state.plateau, state.rounds)
        with np.errstate(over="ignore", invalid="ignore"):  # a fit that diverges says so in its status
            average, u, adam = self._steps(problem, coordinates, state, rate, steps, rng)
        if not np.isfinite(average).all():
            return state._replace(diverged=True)
        latest = problem.judged(coordinates.model_at(average), ())
        iteration = state.best.done + steps
        step = Step(iteration, latest.value, latest.model.sigma2, problem.watch.seconds())
        problem.watch.sees(step)
        best = latest if latest.value > state.best.value else state.best
        plateau = next_plateau(state.plateau, latest.value, settings.tol)
        best = best._replace(steps=(*state.best.steps, step))
        return State(best, state.tried, u, adam, plateau, state.rounds + 1, False)

    def _steps(
        self,
        problem: Problem,
        coordinates: Coordinates,
        state: State,
        rate: float,
        steps: int,
        rng: np.random.Generator,
    ) -> tuple[Array, Array, AdamState]:
        """Take steps at one rate; return the average of the iterates, the last one and Adam's state."""
        settings = problem.settings
        u, adam, total = state.u, state.adam, np.zeros_like(state.u)
        frozen = None if settings.fresh_nodes else problem.nodes_for(coordinates.model_at(u))
        lowest = math.log(problem.floor)
        for rows in itertools.islice(batches(len(problem.x), settings.batch_size, rng), steps):
            if not np.isfinite(u).all():
                return u, u, adam
            model = coordinates.model_at(u)
            nodes = _fresh(model, problem, rng) if frozen is None else _of_rows(frozen, rows)
            gradient = _gradient(problem, model, rows, nodes, state.plateau.best)
            direction = coordinates.pull_back(gradient, model.sigma2)
            if self.with_adam:
                change, adam = adam_step(adam, direction, rate)
            else:
                change = rate * direction / max(1.0, float(np.linalg.norm(direction)) / LONGEST)
            u = u + change
            u[-1] = max(u[-1], min(lowest, state.u[-1]))
            total += u
        return total / steps, u, adam


def _try_a_start(problem: Problem, state: State, rng: np.random.Generator) -> State:
    """Evaluate the next start: the model given, then ones from principal components."""
    start = problem.start
    if state.tried > 0:
        start = principal_start(start.decoder, problem.x, rng, rotate=state.tried % 2 == 0)
    trial = problem.judged(problem.admitted(start), ())
    best = trial if trial.value > state.best.value or state.tried == 0 else state.best
    return state._replace(
        best=best,
        tried=state.tried + 1,
        u=problem.coordinates.to(best.model),
        plateau=Plateau(best.value),
    )


def _fresh(model: NonlinearICA, problem: Problem, rng: np.random.Generator) -> FixedNodes:
    """Return new draws from the prior, shared by the batch."""
    rule = monte_carlo(problem.settings.fresh_nodes or 2, int(rng.integers(2**63)))
    return FixedNodes(*Quadrature(rule).nodes(model, problem.x))


def _of_rows(nodes: Integrator, rows: Array) -> Integrator:
    """Return the nodes of some observations (B,) out of order."""
    if isinstance(nodes, Neighbourhoods):
        return nodes.of_rows(rows)
    if isinstance(nodes, FixedNodes) and nodes.z.ndim == 3:
        return FixedNodes(nodes.z[rows], nodes.log_weight[rows])
    return nodes


def _gradient(
    problem: Problem, model: NonlinearICA, rows: Array, nodes: Integrator, log_scale: float
) -> Gradient:
    """Return the gradient of the mean over a batch: of log p(x_i), or of p(x_i) / exp(log_scale)."""
    weight = None
    if problem.settings.objective == "density-sum":
        weight = partial(relative_density, log_scale=log_scale)
    by = estimate_of(model, True, weight, (problem.x[rows], nodes)).gradient
    assert by is not None
    return Gradient(by.theta / len(rows), by.sigma2 / len(rows))


SGD = Stochastic(with_adam=False)
ADAM = Stochastic(with_adam=True)
