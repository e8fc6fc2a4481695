"""Direct maximum likelihood (Exercise 2): L-BFGS on the log-likelihood itself.

A quadrature rule that is too coarse for σ misleads an optimiser: it prefers a wrong model whose value
the rule overrates. Hence the fit runs in rounds. In each, nodes are frozen, so that value and gradient
belong to one smooth function; after it the model is evaluated again on nodes made for it, and the round
counts only if that value has risen. The value reported at the end comes from yet other nodes.
"""

# notation: N observations, n data, m latent, p parameters; u = (v, log σ²), what is optimised, with
# θ = shift + units v, so that the units and the origin of the data do not matter

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from refica.exact import ExactLinear
from refica.fit.result import Fit, Step
from refica.fit.starts import (
    check_training_data,
    output_shift,
    output_units,
    principal_start,
    sigma2_floor,
    standardisation,
)
from refica.grids import grid_that_resolves
from refica.marginal import Likelihood, log_likelihood
from refica.model import NonlinearICA, check_model
from refica.quadrature import FixedNodes, Integrator, Quadrature
from refica.rules import gauss_hermite
from refica.validation import Array, check_choice, check_count, check_generator, check_number

__all__ = ["METHODS", "fit_mle"]

METHODS = ("l-bfgs",)

TRIAL_STEPS = 60
"""Iterations that every start gets before all but the best are dropped."""

ROUND_STEPS = {1: 100}
"""Iterations on one set of frozen nodes, by latent dimension; otherwise `SHORT_ROUND`."""

SHORT_ROUND = 25
"""While parameters move far, frozen nodes at the posterior modes promise too much."""

ROUND_TOLERANCE = 0.03
"""Halving error (nats, of the worst observation) of a round's grid: about 1e-3 in truth."""

SHARED_NODES = 4096
"""Largest grid that all observations share; where σ needs a finer one each gets nodes at its own modes."""

AGREEMENT = 1e-3
"""Largest difference (nats per observation) allowed between the optimiser's value and its re-evaluation."""

Callback = Callable[[Step], object]


class _Round(NamedTuple):
    model: NonlinearICA
    value: float  # mean log-likelihood on nodes made for the model
    steps: tuple[Step, ...]
    stopped: bool  # by the callback


@dataclass(frozen=True, slots=True)
class _Problem:
    """What stays the same during a fit."""

    x: Array
    integrator: Integrator | None
    callback: Callback | None
    executor: Executor | None
    started: float

    @property
    def floor(self) -> float:
        return sigma2_floor(self.x)

    def evaluate(self, model: NonlinearICA, integrator: Integrator | None, gradient: bool) -> Likelihood:
        return log_likelihood(model, self.x, integrator, gradient, self.executor)

    def nodes_for(self, model: NonlinearICA) -> Integrator:
        """Return nodes made for this model and frozen, or an integrator that does without."""
        if isinstance(self.integrator, Quadrature):
            return FixedNodes(*self.integrator.nodes(model, self.x))
        if self.integrator is not None:
            return self.integrator
        if getattr(model.decoder, "is_affine", False):
            return ExactLinear()
        grid = None
        if model.latent_dim == 1:
            grid = grid_that_resolves(model, self.x, ROUND_TOLERANCE, SHARED_NODES)
        rule = Quadrature(gauss_hermite(5), proposal="modes") if grid is None else Quadrature(grid)
        return FixedNodes(*rule.nodes(model, self.x))


def fit_mle(
    model: NonlinearICA,
    x: Any,
    integrator: Integrator | None = None,
    *,
    method: str = "l-bfgs",
    n_starts: int = 4,
    max_iter: int = 2000,
    tol: float = 1e-4,
    rng: Any = 0,
    callback: Callback | None = None,
    executor: Executor | None = None,
) -> Fit:
    """Maximise Σ_i log p(x_i) over (θ, log σ²).

    Parameters
    ----------
    model : NonlinearICA
        Its decoder is fitted; its parameters are the first start.
    x : array_like (N, n)
        At least two observations.
    integrator : Integrator, optional
        Used throughout as it is, its nodes frozen within a round if it is a `Quadrature`. None: a grid that
        follows σ for one latent dimension, nodes at the posterior modes for more.
    method : str
        "l-bfgs".
    n_starts : int
        Starts >= 1: the model given, then ones from principal components (`principal_start`). Each is
        tried for `TRIAL_STEPS` iterations and the best one is run to the end.
    max_iter : int
        Iterations of the run to the end, trial included.
    tol : float
        Converged when a round raises the mean log-likelihood by less than this (nats per observation).
    rng : int or numpy.random.Generator
        For the starts.
    callback : callable, optional
        Called with each `Step`; a true return value stops the fit.
    executor : concurrent.futures.Executor, optional
        As in `log_likelihood`.

    Returns
    -------
    Fit
        ``status`` is "converged", "iteration limit", "stopped by callback", "collapsed" (σ² at its
        floor, 1e-8 of the data's variance: the likelihood is unbounded) or "integrator not converged".

    Raises
    ------
    TypeError, ValueError
        For bad data or arguments.
    """
    x = check_model(model).check_data(x)
    check_training_data(x)
    check_choice("method", method, METHODS)
    count, limit = check_count("n_starts", n_starts), check_count("max_iter", max_iter)
    tol, rng = check_number("tol", tol, above=0.0), check_generator(rng)
    problem = _Problem(x, integrator, callback, executor, time.perf_counter())
    best = _run_round(problem, model, 0, min(TRIAL_STEPS, limit))
    for start in range(1, count):
        if best.stopped:
            break
        candidate = principal_start(model.decoder, x, rng, rotate=start > 1)
        trial = _run_round(problem, candidate, 0, min(TRIAL_STEPS, limit))
        best = max(best, trial, key=lambda tried: (tried.stopped, tried.value))
    best, status = _rounds_to_the_end(problem, best, limit, tol)
    return _finish(problem, best, status, limit, tol)


def _rounds_to_the_end(problem: _Problem, best: _Round, limit: int, tol: float) -> tuple[_Round, str]:
    """Run rounds until one raises the re-evaluated value by less than ``tol``; return why it ended.

    A round that lowers it has been misled by its frozen nodes: it does not count, its steps are not part of
    the history, and the next one is half as long.
    """
    longest = ROUND_STEPS.get(best.model.latent_dim, SHORT_ROUND)
    while True:
        if best.stopped:
            return best, "stopped by callback"
        if best.model.sigma2 <= 1.01 * problem.floor:
            return best, "collapsed"
        done = best.steps[-1].iteration if best.steps else 0
        if done >= limit:
            return best, "iteration limit"
        latest = _run_round(problem, best.model, done, min(longest, limit - done))
        gain = latest.value - best.value
        if gain >= 0.0:
            best = latest._replace(steps=best.steps + latest.steps)
        else:
            best, longest = best._replace(stopped=latest.stopped), longest // 2
        if not best.stopped and (0.0 <= gain < tol or longest == 0):
            return best, "converged" if gain >= -tol else "integrator not converged"


def _run_round(problem: _Problem, start: NonlinearICA, done: int, steps: int) -> _Round:
    """Run L-BFGS on nodes made for ``start`` and frozen, then re-evaluate on nodes made for the result."""
    nodes = problem.nodes_for(start)
    N = len(problem.x)
    history: list[Step] = []
    stopped = False

    mean, sd = standardisation(problem.x)
    shift, units = output_shift(start.decoder, mean), output_units(start.decoder, sd)

    def model_at(u: Array) -> NonlinearICA:
        return start.replace(theta=shift + units * u[:-1], sigma2=math.exp(u[-1]))

    def loss(u: Array) -> tuple[float, Array]:
        model = model_at(u)
        result = problem.evaluate(model, nodes, gradient=True)
        assert result.gradient is not None
        by_log_sigma2 = model.sigma2 * result.gradient.sigma2  # chain rule: dσ²/d log σ² = σ²
        return -result.total / N, -np.append(units * result.gradient.theta, by_log_sigma2) / N

    def report(intermediate_result: Any) -> None:
        nonlocal stopped
        step = Step(
            done + len(history) + 1,
            -float(intermediate_result.fun),
            math.exp(intermediate_result.x[-1]),
            time.perf_counter() - problem.started,
        )
        history.append(step)
        if problem.callback is not None and problem.callback(step):
            stopped = True
            raise StopIteration

    u = np.append((start.theta - shift) / units, math.log(max(start.sigma2, problem.floor)))
    bounds = [(None, None)] * (len(u) - 1) + [(math.log(problem.floor), None)]
    found = optimize.minimize(
        loss,
        u,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        callback=report,
        options={"maxiter": steps, "maxfun": 2 * steps + 20, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-7},
    )
    model = model_at(found.x)
    value = problem.evaluate(model, problem.nodes_for(model), gradient=False).total / N
    return _Round(model, value, tuple(history), stopped)


def _finish(problem: _Problem, best: _Round, status: str, limit: int, tol: float) -> Fit:
    """Re-evaluate on other nodes than the optimiser's (exactly for an affine decoder); say how it ended."""
    result = problem.evaluate(best.model, None, gradient=False)
    difference = abs(result.total / len(problem.x) - best.value)
    unsure = int((~result.converged).sum())
    if status == "converged" and (difference > AGREEMENT or unsure):
        status = "integrator not converged"
    sentences = {
        "converged": f"a further round raised the mean log-likelihood by less than {tol:g} nats",
        "iteration limit": f"the limit of {limit} iterations was reached; give a larger max_iter",
        "stopped by callback": "the callback returned a true value",
        "collapsed": (
            f"sigma2 reached its floor {problem.floor:.3g}: the decoder passes through the data and the "
            "likelihood is unbounded; take a smaller decoder or more data, or fix sigma2"
        ),
        "integrator not converged": (
            f"the optimiser's value and its re-evaluation differ by {difference:.2g} nats per observation "
            f"or no round raises it: {result.message}"
        ),
    }
    return Fit(best.model, result, best.steps, status, sentences[status])
