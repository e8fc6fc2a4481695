"""Ascent on the ELBO in rounds of Adam steps: the state of a fit, how it goes on, how it ends.

What a round leaves is the average of its iterates (Polyak and Juditsky 1992: it takes out most of the
jitter), and this is evaluated at noise held fixed for the whole fit, so that two rounds differ by their
parameters only.
"""

# notation: N observations, m latent; u (d,) the coordinates of `Problem`

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from refica.fit.adam import AdamState, adam_start, adam_step
from refica.fit.elbo_problem import Problem, Settings, best_sigma2, held_elbo
from refica.fit.encoder_start import starts
from refica.fit.result import Step
from refica.fit.schedules import LOWERINGS, Plateau, batches, next_plateau, rate_of
from refica.fit.watch import Watch
from refica.vae import VAE, elbo_and_gradient
from refica.validation import Array

__all__ = ["ROUND", "SIGMA2_UPDATES", "State", "advance", "begin", "ending"]

ROUND = 500
"""Steps between two evaluations: long enough for an average, and for a gain to show."""

SIGMA2_UPDATES = ("gradient", "closed-form")

MEMORY = 0.1
"""Weight of a batch in the running mean that σ² is in closed form: with 100 observations of two dimensions
in a batch it then varies by some 2 %."""


class State(NamedTuple):
    """What changes from round to round.

    ``u`` (d,) the last iterate; ``best`` (d,) of the rounds' averages, with its ``value``; ``adam``, its
    moments; ``plateau``; ``history``, empty before the start has been evaluated.
    """

    u: Array
    best: Array
    value: float
    adam: AdamState
    plateau: Plateau
    history: tuple[Step, ...]


def begin(vae: VAE, problem: Problem) -> State:
    """Return the state before the first evaluation."""
    u = problem.to_coordinates(vae)
    return State(u, u, -math.inf, adam_start(len(u)), Plateau(-math.inf), ())


def advance(
    state: State, vae: VAE, problem: Problem, settings: Settings, watch: Watch, rng: np.random.Generator
) -> State:
    """Evaluate the starts, or take a round and evaluate the average of its iterates."""
    if not state.history:
        return _best_start(state, vae, problem, settings, watch, rng)
    done = state.history[-1].iteration
    steps = min(ROUND, settings.max_iter - done)
    rate = rate_of(settings.schedule, settings.learning_rate, state.plateau, len(state.history) - 1)
    average, u, adam = _round(state, problem, settings, rate, steps, rng)
    value = held_elbo(average, problem)
    if value > state.value:
        state = state._replace(best=average, value=value)
    # while the KL counts for less than it does in the ELBO no gain in the ELBO is to be expected
    warming = done + steps < settings.kl_warmup
    plateau = (
        Plateau(value) if warming else next_plateau(state.plateau, value, settings.tol, settings.patience)
    )
    history = (*state.history, _step(done + steps, value, average, problem, watch))
    return state._replace(u=u, adam=adam, plateau=plateau, history=history)


def ending(state: State, problem: Problem, settings: Settings, watch: Watch) -> tuple[str, str] | None:
    """Return why the fit ends here, as status and sentence, or None if it goes on."""
    if not state.history:
        return None
    step = state.history[-1]
    after = f"after {step.iteration} steps"
    if watch.stopped:
        return "stopped by callback", f"the callback asked to stop {after}"
    if step.iteration and not math.isfinite(step.objective):
        return (
            "diverged",
            f"the ELBO is not finite {after}; take a smaller learning_rate than {settings.learning_rate:g}",
        )
    if state.u[problem.at_sigma2] <= problem.log_floor:
        return "collapsed", (
            f"sigma2 is at its floor {math.exp(problem.log_floor):.3g} {after}: the decoder all but passes "
            "through the data, where the bound has no maximum; take fewer hidden units or more observations"
        )
    if state.plateau.lowered > (LOWERINGS if settings.schedule == "plateau" else 0):
        return "converged", _settled(problem, settings, after)
    if step.iteration < settings.max_iter:
        return None
    if step.iteration < settings.kl_warmup:
        reached = step.iteration / settings.kl_warmup
        return "iteration limit", (
            f"the weight of the KL had only reached {reached:.2g} {after}; raise max_iter or lower kl_warmup"
        )
    lowest = " at the lowest rate" if settings.schedule == "plateau" else ""
    return "iteration limit", f"the ELBO had not settled{lowest} {after}; raise max_iter"


def _settled(problem: Problem, settings: Settings, after: str) -> str:
    """Say what no longer rose, for how long, and with which rate."""
    aside = problem.judge is not problem.training
    what = f"the ELBO of {len(problem.judge.x)} observations set aside" if aside else "the ELBO"
    rate = f" at the last of {LOWERINGS + 1} rates" if settings.schedule == "plateau" else ""
    return (
        f"{what} gained less than {settings.tol:g} per observation in each of {settings.patience} rounds of "
        f"{ROUND} steps{rate}, {after}"
    )


def _best_start(
    state: State, vae: VAE, problem: Problem, settings: Settings, watch: Watch, rng: np.random.Generator
) -> State:
    """Begin at the start with the largest ELBO: the one given, or one from principal components."""
    for start in starts(vae, problem.x, settings.n_starts, rng):
        u = problem.to_coordinates(start)
        value = held_elbo(u, problem)
        if value > state.value:
            state = state._replace(u=u, best=u, value=value)
    history = (_step(0, state.value, state.u, problem, watch),)
    return state._replace(plateau=Plateau(state.value), history=history)


def _step(iteration: int, value: float, u: Array, problem: Problem, watch: Watch) -> Step:
    """Return an entry of the history, after the watch has seen it."""
    _, sigma2, _ = problem.to_parameters(u)
    step = Step(iteration, value, float(sigma2), watch.seconds())
    watch.sees(step)
    return step


def _round(
    state: State,
    problem: Problem,
    settings: Settings,
    rate: float,
    steps: int,
    rng: np.random.Generator,
) -> tuple[Array, Array, AdamState]:
    """Take Adam steps at one rate; return the average of the iterates, the last one and Adam's state."""
    u, adam, at, closed = state.u, state.adam, problem.at_sigma2, settings.sigma2_update == "closed-form"
    total = np.zeros_like(u)
    for rows in itertools.islice(batches(len(problem.x), settings.batch_size, rng), steps):
        theta, sigma2, phi = problem.to_parameters(u)
        noise = rng.standard_normal((settings.n_samples, len(rows), problem.training.noise.shape[2]))
        arguments = problem.decoder, problem.encoder, theta, sigma2, phi, problem.x[rows], noise
        _, by = elbo_and_gradient(*arguments, kl_weight=_kl_weight(settings, adam.steps))
        change, adam = adam_step(adam, problem.pull_back(by, sigma2) / len(rows), rate)
        u = u + change
        if closed:
            latest = best_sigma2(sigma2, by.sigma2, len(rows), problem.x.shape[1])
            u[at] = math.log((1.0 - MEMORY) * sigma2 + MEMORY * latest)
        u[at] = max(u[at], problem.log_floor)
        total += u
    average = total / steps
    if closed:
        average[at] = max(_log_best_sigma2(average, problem), problem.log_floor)
    return average, u, adam


def _kl_weight(settings: Settings, done: int) -> float:
    """Return the weight of the KL after so many steps: rising from 0 to 1 in ``kl_warmup`` of them."""
    return min(1.0, done / settings.kl_warmup) if settings.kl_warmup else 1.0


def _log_best_sigma2(u: Array, problem: Problem) -> float:
    """The log of the σ² that maximises the ELBO of the training data at its noise, nan if that overflows."""
    theta, sigma2, phi = problem.to_parameters(u)
    x, noise = problem.training
    _, by = elbo_and_gradient(problem.decoder, problem.encoder, theta, sigma2, phi, x, noise)
    found = best_sigma2(sigma2, by.sigma2, *x.shape)
    return math.log(found) if found > 0.0 else math.nan
