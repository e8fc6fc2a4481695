"""L-BFGS on frozen nodes, in rounds from several starts."""

# notation: u = (v, log σ²), what is optimised: `refica.fit.problem`

from __future__ import annotations

import math
from typing import Any

from scipy import optimize

from refica.fit.problem import Problem, Round
from refica.fit.result import Step
from refica.fit.rounds import Rounds
from refica.model import NonlinearICA
from refica.validation import Array

__all__ = ["METHOD"]

TRIAL_STEPS = 60

ROUND_STEPS = {1: 100, 2: 100, 0: 25}
"""While parameters move far, frozen nodes at the posterior modes promise too much."""

WIDEST = 1e3
"""Times the data's mean variance: largest σ² of a search, unless it starts above."""

SHRINKING = 4.0
"""Most by which σ² may fall in a round: nodes that resolved σ resolve half of it nearly."""


def _run_round(problem: Problem, start: NonlinearICA, done: int, steps: int) -> Round:
    """Run L-BFGS on nodes made for ``start`` and frozen, then re-evaluate on nodes made for the result."""
    nodes, coordinates = problem.nodes_for(start), problem.coordinates
    history: list[Step] = []

    def loss(u: Array) -> tuple[float, Array]:
        model = coordinates.model_at(u)
        value, gradient = problem.value_and_gradient(model, nodes)
        return -value, -coordinates.pull_back(gradient, model.sigma2)

    def report(intermediate_result: Any) -> None:
        value, u = -float(intermediate_result.fun), intermediate_result.x
        sigma2 = coordinates.model_at(u).sigma2
        history.append(Step(done + len(history) + 1, value, sigma2, problem.watch.seconds()))
        if problem.watch.sees(history[-1]):
            raise StopIteration

    u = coordinates.to(start)
    slope = -loss(u)[1][-1] if problem.flat_in_sigma2 else math.nan
    least = problem.lowest(u[-1], slope, math.log(SHRINKING))
    most = max(math.log(WIDEST * float(problem.x.var(axis=0).mean())), u[-1])
    found = optimize.minimize(
        loss,
        u,
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * (len(u) - 1) + [(least, most)],
        callback=report,
        options={"maxiter": steps, "maxfun": 2 * steps + 20, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-7},
    )
    return problem.judged(coordinates.model_at(found.x), tuple(history))


METHOD = Rounds(_run_round, TRIAL_STEPS, ROUND_STEPS, opening=True)
