"""The documents' algorithm: ascent along the gradient in θ, then along the derivative in σ², and again.

The objective is either their own Σ_i p(x_i), E(4), or the log-likelihood. Each half step goes along the
gradient of D at the point that the other half has reached, as far as a backtracking line search finds a
sufficient rise (Armijo's rule; Nocedal and Wright 2006, 3.1); the length that served is tried doubled the
next time. It is taken in the coordinates u = (v, log σ²) of `refica.fit.problem`: for σ², one number, that is
the documents' direction; for θ it is their gradient in units of the data.

The method is here because the documents describe it. It takes many times the steps of L-BFGS, which sees
curvature.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refica.fit.problem import Coordinates, Problem, Round
from refica.fit.result import Step
from refica.fit.rounds import Rounds
from refica.model import NonlinearICA
from refica.quadrature import Integrator
from refica.validation import Array

__all__ = ["METHOD"]

TRIAL_STEPS = 20

ROUND_STEPS = {1: 100, 0: 25}
"""As for L-BFGS."""

FIRST_LENGTH = 0.1
"""How far the first step of a round moves at most, in units of the data."""

SUFFICIENT = 1e-4
"""Part of the promised rise that a step must reach."""

BLIND = 4.0 * float(np.finfo(np.float64).eps)
"""A promised rise below this part of the objective is lost in its rounding: the point is stationary."""


class _Point(NamedTuple):
    """Coordinates, the objective there and its gradient in them."""

    u: Array
    value: float
    gradient: Array


class _Objective(NamedTuple):
    """The objective on frozen nodes, in coordinates."""

    problem: Problem
    coordinates: Coordinates
    nodes: Integrator

    def at(self, u: Array) -> _Point:
        """Return the objective with its gradient."""
        model = self.coordinates.model_at(u)
        value, gradient = self.problem.value_and_gradient(model, self.nodes)
        return _Point(u, value, self.coordinates.pull_back(gradient, model.sigma2))

    def value(self, u: Array) -> float:
        """Return the objective alone."""
        return self.problem.value(self.coordinates.model_at(u), self.nodes)


def _run_round(problem: Problem, start: NonlinearICA, done: int, steps: int) -> Round:
    """Ascend on nodes made for ``start`` and frozen: a step is one in θ and one in σ²."""
    coordinates = problem.coordinates
    objective = _Objective(problem, coordinates, problem.nodes_for(start))
    point = objective.at(coordinates.to(start))
    in_theta = np.arange(len(point.u)) < len(point.u) - 1
    lengths = [_first_length(point.gradient[part]) for part in (in_theta, ~in_theta)]
    history: list[Step] = []
    for iteration in range(done + 1, done + steps + 1):
        lengths[0], point = _ascend(objective, point, in_theta, lengths[0])
        lengths[1], point = _ascend(objective, point, ~in_theta, lengths[1])
        model = coordinates.model_at(point.u)
        history.append(Step(iteration, point.value, model.sigma2, problem.watch.seconds()))
        if problem.watch.sees(history[-1]) or not any(lengths) or problem.has_collapsed(model):
            break
    return problem.judged(coordinates.model_at(point.u), tuple(history))


def _first_length(gradient: Array) -> float:
    """The factor on a gradient with which a first step is `FIRST_LENGTH` long."""
    norm = float(np.linalg.norm(gradient))
    return FIRST_LENGTH / norm if norm > 0.0 else 0.0


def _ascend(objective: _Objective, point: _Point, part: Array, length: float) -> tuple[float, _Point]:
    """Take a step along the gradient of one part of u (p + 1,) bool; return the length to try next and the
    point reached. 0 and the same point where no length rises enough.

    σ² is not taken below its floor.
    """
    direction = np.where(part, point.gradient, 0.0)
    log_floor = math.log(objective.coordinates.floor)
    while length > 0.0:
        u = point.u + length * direction
        u[-1] = max(u[-1], min(log_floor, point.u[-1]))
        promised = float(point.gradient @ (u - point.u))
        if promised <= BLIND * (1.0 + abs(point.value)):
            break
        if objective.value(u) >= point.value + SUFFICIENT * promised:
            return 2.0 * length, objective.at(u)
        length *= 0.5
    return 0.0, point


METHOD = Rounds(_run_round, TRIAL_STEPS, ROUND_STEPS)
