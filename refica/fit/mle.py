"""Direct maximum likelihood (Exercise 2): the likelihood itself, by one of several methods.

A quadrature rule that is too coarse for σ misleads an optimiser: it prefers a wrong model whose value
the rule overrates. Hence a fit runs in rounds, each judged by the value on nodes made anew, and the value
reported at the end comes from yet other nodes.
"""

# notation: N observations, n data, m latent, p parameters

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from refica.files.messages import PathLike
from refica.fit import em, gradient_ascent, lbfgs, stochastic
from refica.fit.checkpoint import Keeper, digest, name_of
from refica.fit.problem import OBJECTIVES, Problem, Round, Settings
from refica.fit.result import Fit
from refica.fit.run import run
from refica.fit.schedules import SCHEDULES
from refica.fit.starts import check_training_data
from refica.fit.watch import Callback, Watch
from refica.marginal import Likelihood
from refica.model import NonlinearICA, check_model
from refica.quadrature import Integrator
from refica.reference import Reference
from refica.validation import Array, check_choice, check_count, check_generator, check_number

__all__ = ["METHODS", "Method", "fit_mle"]


class Method(Protocol):
    """How a fit starts, goes on and ends; a state is a NamedTuple that offers ``best``, a `Round`."""

    def begin(self, problem: Problem) -> Any:
        """Return the first state."""

    def advance(self, problem: Problem, state: Any, rng: np.random.Generator) -> Any:
        """Return the next state: a function of the state and of the generator's."""

    def ending(self, problem: Problem, state: Any) -> str | None:
        """Return the status with which the fit ends here, None if it goes on."""


METHODS: dict[str, Method] = {
    "l-bfgs": lbfgs.METHOD,
    "em": em.METHOD,
    "gradient-ascent": gradient_ascent.METHOD,
    "adam": stochastic.ADAM,
    "sgd": stochastic.SGD,
}

STOCHASTIC = ("adam", "sgd")

MAX_ITER = {"adam": 20_000, "sgd": 20_000}
"""Where none is given, by method; 2000 for the others."""

AGREEMENT = 1e-3
"""Largest difference (nats per observation) allowed between the optimiser's value and its re-evaluation, or
the tolerance of the fit if that is more: nodes that mislead by less hide no more than another round may."""

CHECKED = {1: 500, 2: 100, 3: 10}
"""Observations, by m, on which `Reference` checks the value where it cannot be had for all."""

MOSTLY = 0.9
"""Share of observations for which an integrator must converge to judge another."""

NOISE_SHARE = 0.05
"""Part of (p + 1)/2N that is the default tolerance."""

NEARBY = 1.1
"""Factor on σ² by which it is seen which observations pull it down."""


def fit_mle(
    model: NonlinearICA,
    x: Any,
    integrator: Integrator | None = None,
    *,
    method: str = "l-bfgs",
    objective: str = "log-likelihood",
    n_starts: int = 4,
    max_iter: int | None = None,
    tol: float | None = None,
    rng: Any = 0,
    callback: Callback | None = None,
    checkpoint: PathLike | None = None,
    resume: PathLike | None = None,
    executor: Executor | None = None,
    verbose: bool = False,
    fixed_sigma2: bool = False,
    batch_size: int = 100,
    learning_rate: float = 0.01,
    schedule: str = "plateau",
    fresh_nodes: int | None = None,
    evaluate: bool = True,
) -> Fit:
    """Maximise Σ_i log p(x_i), or the documents' Σ_i p(x_i), over (θ, σ²).

    Parameters
    ----------
    model : NonlinearICA
        Its decoder is fitted; its parameters are the first start.
    x : array_like (N, n)
        At least two observations.
    integrator : Integrator, optional
        Used throughout as it is, its nodes frozen within a round. None: a grid that follows σ for one and
        two latent dimensions while it is affordable, else nodes at the posterior modes (`refica.fit.nodes`);
        "l-bfgs" then is opened by steps whose nodes follow the modes (`refica.fit.gauss_newton`).
    method : str
        "l-bfgs"; "em", expectation and maximisation; "gradient-ascent", the documents' algorithm; "adam"
        and "sgd", stochastic ascent on minibatches.
    objective : str
        "log-likelihood", or "density-sum": E(4) as it is written, which has no maximum where σ² is free. It
        is worked with, and reported in the history, as the log of the mean density.
    n_starts : int
        Starts >= 1: the model given, then ones from principal components and, every second one, from
        mixtures of more of them that random features choose (`refica.fit.starts`). Each is tried for a few
        iterations (the stochastic methods: evaluated) and the best one is run to the end.
    max_iter : int, optional
        Iterations of the run to the end, trial included; 2000, or 20 000 of the stochastic methods.
    tol : float, optional
        Converged when a round raises the mean objective by less than this (nats per observation). None: a
        twentieth of (p + 1)/2N, the gain that p + 1 parameters are expected to owe to noise; what a fit gains
        after that it mostly loses on fresh data. Where n <= m the likelihood hardly depends on σ², and
        "l-bfgs" lowers it only while a quarter of it promises four times the tolerance.
    rng : int or numpy.random.Generator
        For the starts, and the batches and nodes of the stochastic methods.
    callback : callable, optional
        Called with each `Step`; a true return value stops the fit.
    checkpoint : path, optional
        A JSON file that holds the state of the fit after the last round, about every second: whole at any
        moment, whatever happens.
    resume : path, optional
        A checkpoint to go on from, bit for bit as if the fit had not been interrupted: what the round after
        it had done is done again (one that ``max_iter`` cut short stays so, if the limit is raised). All
        arguments must be as they were, but for ``max_iter``, ``callback``, ``executor``, ``verbose``,
        ``evaluate`` and the paths.
    executor : concurrent.futures.Executor, optional
        As in `log_likelihood`, and for EM's expectations; its maximisations, and the steps of the stochastic
        methods, are taken here. The result does not depend on it.
    verbose : bool
        Whether to show progress on stderr.
    fixed_sigma2 : bool
        Whether σ² stays as it is in ``model``.
    batch_size : int
        Most observations in a step of "adam" and "sgd".
    learning_rate : float
        Their rate at the start, > 0, in coordinates in which the data are standardised.
    schedule : str
        Of their rate: "plateau" divides it by 3 when 3 rounds of 200 steps in a row brought no gain, and ends
        after the fourth time; "constant" and "inverse-time" end the first time.
    fresh_nodes : int, optional
        Draws >= 2 from the prior in each of their steps, in place of ``integrator``'s nodes, frozen in each
        round: unbiased for "density-sum", biased for "log-likelihood" (`refica.fit.stochastic`).
    evaluate : bool
        Whether another integrator evaluates the result, and has a say in the status. False, where only the
        model is wanted, saves seconds: ``log_likelihood`` then is the optimiser's own, on its nodes and
        without an error (an affine decoder's is exact).

    Returns
    -------
    Fit
        ``status`` is "converged", "iteration limit", "stopped by callback", "interrupted" (by Ctrl-C: the
        best model so far), "collapsed" (σ² at its floor, 1e-8 of the data's variance: the objective is
        unbounded), "diverged" or "integrator not converged". ``log_likelihood`` is that of the data,
        whatever the objective, by an integrator the optimiser did not use (but for ``evaluate=False``).

    Raises
    ------
    TypeError, ValueError
        For bad data or arguments; ``DataError`` for a checkpoint that is not of this fit.
    OutputError
        If the checkpoint cannot be written.
    """
    x = check_model(model).check_data(x)
    check_training_data(x)
    limit = MAX_ITER.get(method, 2000) if max_iter is None else max_iter
    settings = Settings(
        method=check_choice("method", method, METHODS),
        objective=check_choice("objective", objective, OBJECTIVES),
        n_starts=check_count("n_starts", n_starts),
        max_iter=check_count("max_iter", limit),
        tol=check_number("tol", _noise(model, x) if tol is None else tol, above=0.0),
        fixed_sigma2=bool(fixed_sigma2),
        batch_size=check_count("batch_size", batch_size),
        learning_rate=check_number("learning_rate", learning_rate, above=0.0),
        schedule=check_choice("schedule", schedule, SCHEDULES),
        fresh_nodes=None if fresh_nodes is None else check_count("fresh_nodes", fresh_nodes, minimum=2),
    )
    if fresh_nodes is not None and method not in STOCHASTIC:
        raise ValueError(
            f"fresh_nodes is for the methods {' and '.join(STOCHASTIC)}, got method={method!r}, which needs "
            "its nodes frozen within a round; give an integrator instead"
        )
    problem = Problem(model, x, integrator, settings, Watch(callback, verbose), executor)
    return _run(problem, check_generator(rng), checkpoint, resume, evaluate)


def _run(
    problem: Problem,
    rng: np.random.Generator,
    checkpoint: PathLike | None,
    resume: PathLike | None,
    evaluate: bool,
) -> Fit:
    """Run the method from its first state, or from a checkpoint, to its end."""
    method = METHODS[problem.settings.method]
    keeper = Keeper(_identity(problem, rng), problem.watch, checkpoint, resume)
    state, status = run(
        lambda: method.begin(problem),
        lambda state: method.advance(problem, state, rng),
        lambda state: method.ending(problem, state),
        rng,
        problem.watch,
        keeper,
        problem.start,
    )
    if status is None:
        return _interrupted(problem, state.best, keeper)
    return (_finish if evaluate else _as_it_is)(problem, state.best, status)


def _noise(model: NonlinearICA, x: Array) -> float:
    """`NOISE_SHARE` of (p + 1)/2N."""
    return NOISE_SHARE * (model.decoder.n_params + 1) / (2.0 * len(x))


def _identity(problem: Problem, rng: np.random.Generator) -> dict[str, Any]:
    """Return what a checkpoint must agree in to be one of this fit."""
    settings = problem.settings._asdict()
    del settings["max_iter"]  # a fit may go on beyond its limit
    return {
        "kind": "fit_mle",
        "decoder": name_of(problem.start.decoder),
        "model": digest(problem.start.theta, np.array(problem.start.sigma2)),
        "data": digest(problem.x),
        "integrator": name_of(problem.integrator),
        **settings,
        "rng": name_of(rng.bit_generator.state),
    }


def _interrupted(problem: Problem, best: Round, keeper: Keeper) -> Fit:
    """Return the best model so far, evaluated here: Ctrl-C has reached the executor's workers too."""
    result = replace(problem, executor=None).evaluate(best.model, None, gradient=False)
    return Fit(best.model, result, best.steps, "interrupted", f"interrupted by Ctrl-C: {keeper.words()}")


def _finish(problem: Problem, best: Round, status: str) -> Fit:
    """Re-evaluate on other nodes than the optimiser's (exactly for an affine decoder); say how it ended."""
    result = problem.evaluate(best.model, None, gradient=False)
    judge = status in ("converged", "integrator not converged")
    difference = _disagreement(problem, best, result) if judge else math.nan
    if status == "converged" and not difference <= _allowed(problem):  # True for nan
        status = "integrator not converged"
    return Fit(
        best.model, result, best.steps, status, _sentence(problem, best.model, status, difference, result)
    )


def _as_it_is(problem: Problem, best: Round, status: str) -> Fit:
    """Take the optimiser's value and status."""
    result = problem.evaluate(best.model, problem.nodes_for(best.model), gradient=False)
    if status == "integrator not converged":
        words = "no round raises the value on nodes made anew: those of a round are too few for this model"
    else:
        words = _sentence(problem, best.model, status, math.nan, result)
    return Fit(best.model, result, best.steps, status, words)


def _allowed(problem: Problem) -> float:
    return max(AGREEMENT, problem.settings.tol)


def _disagreement(problem: Problem, best: Round, result: Likelihood) -> float:
    """Return by how much the optimiser's mean objective differs from an independent integrator's.

    That is the one that was chosen for all observations, if it trusts itself for most and its mean error is
    small enough to tell; otherwise `Reference`, on those of a fixed subset for which it converges. Those that
    are left out, at most a tenth, are the hard ones: their own errors are in the result.
    """
    if result.converged.mean() >= MOSTLY and result.error.mean() <= 0.5 * _allowed(problem):  # False for nan
        return abs(problem.mean_objective(result.per_observation) - best.value)
    model, x = best.model, problem.x
    if not Reference.suits(model):
        return math.nan
    some = x[np.linspace(0, len(x) - 1, min(CHECKED[model.latent_dim], len(x))).astype(int)]
    checked = replace(problem, x=some, latest=[])
    reference = checked.evaluate(model, Reference(), gradient=False)
    sure = reference.converged
    if sure.mean() < MOSTLY:
        return math.nan
    frozen = checked.evaluate(model, checked.nodes_for(model), gradient=False)
    exact, promised = (problem.mean_objective(each.per_observation[sure]) for each in (reference, frozen))
    return abs(promised - exact)


def _sentence(
    problem: Problem, model: NonlinearICA, status: str, difference: float, result: Likelihood
) -> str:
    """Return a sentence that explains a status."""
    settings = problem.settings
    what = "log of the mean density" if settings.objective == "density-sum" else "mean log-likelihood"
    if status == "converged":
        rounds = "rounds at the last rate" if settings.method in STOCHASTIC else "a further round"
        return f"{rounds} raised the {what} by less than {settings.tol:g} nats"
    if status == "iteration limit":
        return f"the limit of {settings.max_iter} iterations was reached; give a larger max_iter"
    if status == "stopped by callback":
        return "the callback returned a true value"
    if status == "diverged":
        return f"parameters became infinite; take a smaller learning_rate than {settings.learning_rate:g}"
    if status == "collapsed":
        return (
            f"sigma2 reached its floor {problem.floor:.3g}: the decoder passes through "
            f"{_who_pulls(problem, model)} and the objective is unbounded; take a smaller decoder, more or "
            "unrounded data, or fixed_sigma2=True"
        )
    differ = (
        "there is no independent integrator that trusts itself for this model"
        if math.isnan(difference)
        else f"the optimiser's value and its re-evaluation differ by {difference:.2g} nats per observation"
    )
    return f"{differ}, or no round raises the value: {result.message}"


def _who_pulls(problem: Problem, model: NonlinearICA) -> str:
    """Return which observations pull σ² down, in words: their log p(x_i) falls when σ² rises (or, if the fit
    ended before the decoder quite reached any, the nearest)."""
    here, above = (
        problem.evaluate(other, None, gradient=False).per_observation
        for other in (model, model.replace(sigma2=NEARBY * model.sigma2))
    )
    rows: Array = np.flatnonzero(above < here)
    if not len(rows):
        rows = np.array([here.argmax()])
    if len(rows) == len(problem.x):
        return f"all {len(rows)} observations"
    some = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return f"{len(rows)} of {len(problem.x)} observations (rows {some})"
