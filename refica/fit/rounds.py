"""Several starts, then rounds: what the deterministic methods share.

In a round nodes are frozen, so that value and gradient belong to one smooth function (or follow the modes, in
the opening); after it the model is evaluated again on nodes made for it, and the round counts only if that
value has risen. Between rounds the fit is a plain value, `State`: a checkpoint holds one, and
`Rounds.advance` goes on from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from refica.fit import gauss_newton
from refica.fit.problem import Problem, Round
from refica.fit.starts import principal_start
from refica.model import NonlinearICA
from refica.piecewise import is_piecewise_affine

__all__ = ["Inner", "Rounds", "State"]

OPENING_TRIAL, OPENING_STEPS = 40, 40
"""Steps of Gauss-Newton that every start gets, and those of a round after that."""

Inner: TypeAlias = Callable[[Problem, NonlinearICA, int, int], Round]
"""From a problem, the model to start from, the number of steps done and how many more at most, to the round
from there, judged on nodes made for its end."""


class State(NamedTuple):
    """What changes from round to round.

    ``opening``, whether the next round is Gauss-Newton's; ``best`` so far, and until one of them is dropped
    its ``rival``, the second best; ``tried``, how many starts had their trial; ``longest``, iterations of the
    next round; ``gain`` of the last round after trials and opening, None before the first.
    """

    opening: bool
    best: Round
    rival: Round | None
    tried: int
    longest: int
    gain: float | None


@dataclass(frozen=True, slots=True)
class Rounds:
    """A method: how it starts, goes on and ends.

    ``inner`` runs one round; ``trial_steps`` are the iterations that every start gets before all but the best
    are dropped, ``round_steps`` those on one set of frozen nodes, by latent dimension, 0 for any other. With
    an ``opening`` the first rounds are Gauss-Newton's, where that suits, until one raises the value by less
    than the tolerance, trials included.
    """

    inner: Inner
    trial_steps: int
    round_steps: Mapping[int, int]
    opening: bool = False

    def begin(self, problem: Problem) -> State:
        """Return the state before the first trial."""
        opening = self.opening and gauss_newton.suits(problem)
        return State(opening, Round(problem.start, -math.inf), None, 0, self._longest(problem, opening), None)

    def advance(self, problem: Problem, state: State, rng: np.random.Generator) -> State:
        """Give the next start its trial, the two best ones a round, or the best one its next."""
        if state.tried < problem.settings.n_starts:
            return self._try_a_start(problem, state, rng)
        if state.rival is not None:
            return self._decide(problem, state, state.rival)
        return self._take_a_round(problem, state)

    def ending(self, problem: Problem, state: State) -> str | None:
        """Return the status with which the fit ends here, None if it goes on.

        It has converged when a round that ``max_iter`` did not cut short raises the re-evaluated value by
        less than ``tol``.
        """
        best, gain, tol = state.best, state.gain, problem.settings.tol
        if problem.watch.stopped:
            return "stopped by callback"
        if state.tried < problem.settings.n_starts or state.rival is not None:
            return None
        if problem.has_collapsed(best.model):
            return "collapsed"
        if best.done >= problem.settings.max_iter:
            return "iteration limit"
        if gain is not None and (0.0 <= gain < tol or state.longest == 0):
            return "converged" if gain >= -tol else "integrator not converged"
        return None

    def _longest(self, problem: Problem, opening: bool) -> int:
        if opening:
            return OPENING_STEPS
        return self.round_steps.get(problem.start.latent_dim, self.round_steps[0])

    def _inner(self, state: State) -> Inner:
        return gauss_newton.run_round if state.opening else self.inner

    def _try_a_start(self, problem: Problem, state: State, rng: np.random.Generator) -> State:
        """Run the trial of the next start: the model given, then ones from principal components."""
        start = problem.start
        if state.tried > 0:
            start = principal_start(start.decoder, problem.x, rng, rotate=state.tried % 2 == 0)
        trial = self._trial(problem, problem.admitted(start), state.opening)
        better = problem.watch.stopped or trial.value > state.best.value
        best, other = (trial, state.best) if better else (state.best, trial)
        if math.isfinite(other.value) and (state.rival is None or other.value > state.rival.value):
            state = state._replace(rival=other)
        return state._replace(best=best, tried=state.tried + 1)

    def _trial(self, problem: Problem, start: NonlinearICA, opening: bool) -> Round:
        """Return where a start leads: by Gauss-Newton steps in the opening, else by the method's own.

        If the decoder has kinks by both: far from the data Gauss-Newton steps halt at them.
        """
        most = problem.settings.max_iter
        if opening and not is_piecewise_affine(start.decoder):
            return gauss_newton.run_round(problem, start, 0, min(OPENING_TRIAL, most))
        trial = self.inner(problem, start, 0, min(self.trial_steps, most))
        if not opening or problem.watch.stopped:
            return trial
        steps = min(OPENING_TRIAL, most - trial.done)
        longer = gauss_newton.run_round(problem, trial.model, trial.done, steps)
        counts = longer.value >= trial.value or problem.watch.stopped
        return longer._replace(steps=trial.steps + longer.steps) if counts else trial

    def _decide(self, problem: Problem, state: State, rival: Round) -> State:
        """Give both a round and drop the one that is then behind: a trial may be too short for a good one."""
        best = self._after_a_round(problem, state, state.best)
        if not problem.watch.stopped:
            rival = self._after_a_round(problem, state, rival)
        return state._replace(best=rival if rival.value > best.value else best, rival=None)

    def _after_a_round(self, problem: Problem, state: State, before: Round) -> Round:
        """Return where one round leads, or where it began if the re-evaluated value has not risen."""
        steps = min(state.longest, problem.settings.max_iter - before.done)
        if steps <= 0:
            return before
        latest = self._inner(state)(problem, before.model, before.done, steps)
        counts = latest.value >= before.value or problem.watch.stopped
        return latest._replace(steps=before.steps + latest.steps) if counts else before

    def _take_a_round(self, problem: Problem, state: State) -> State:
        """Run one round from the best model.

        A round that lowers the re-evaluated value has been misled by its frozen nodes: it does not count,
        its steps are not part of the history, and the next one is half as long. After a round that counts
        the next may be twice as long again.
        """
        best = state.best
        steps = min(state.longest, problem.settings.max_iter - best.done)
        latest = self._inner(state)(problem, best.model, best.done, steps)
        gain = latest.value - best.value
        if gain >= 0.0:
            best = latest._replace(steps=best.steps + latest.steps)
        if state.opening and gain < problem.settings.tol:
            return state._replace(opening=False, best=best, longest=self._longest(problem, False))
        if gain >= 0.0:
            longest = min(2 * state.longest, self._longest(problem, state.opening))
            return state._replace(best=best, longest=longest, gain=None if state.opening else gain)
        return state._replace(longest=state.longest // 2, gain=gain)
