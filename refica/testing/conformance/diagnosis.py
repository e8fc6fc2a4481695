"""Which known slips explain an implementation's wrong answers?

Level by level, in the order in which a number passes through an implementation: the answers that each slip
would give are compared with those that were given. A slip is named if it explains wrong answers and does not
change one that is right; what was found at one level is taken for granted at the next. Where no single slip
explains a level, pairs are tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from refica.testing.conformance.case import LEVELS, Case
from refica.testing.conformance.formulas import MOST_POINTS, RIGHT, Answer, Formulas, answer
from refica.testing.conformance.judging import Outcome
from refica.testing.conformance.slips import SLIPS, Slip
from refica.testing.conformance.slips.fitted import fitted

__all__ = ["Diagnosis", "diagnose"]

MOST_FAILED, MOST_PASSED = 20, 10
"""Cases of a level that are looked at: enough to tell slips apart."""

EXACT = 1e-5
"""Part of the difference that may be left for a slip to explain an answer: what two quadratures differ by."""

ROUGHLY = 0.05
"""The same, for an implementation with an error of its own beside, such as Monte Carlo's."""

ALLOWED = 10.0
"""Tolerances that may be left, however small the difference is."""

CLEARLY = 1000.0
"""Tolerances by which a slip must change a right answer to be ruled out: its effect is known roughly only."""

CONSISTENT = 0.8
"""Part of the cases that a slip concerns in which it must explain the answer."""

SCREEN = 3
"""Cases on which a pair must do before it is tried on all."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What explains the failures of a level.

    Attributes
    ----------
    level : str
    failed : int
        Wrong answers that were looked at.
    slips : tuple of Slip
        Found at this level; none if what was found below explains it, or nothing does.
    explained : int
        Of the wrong answers.
    alternatives : tuple of Slip
        Which these answers cannot tell from the first of ``slips``.
    inherited : bool
        Whether slips of lower levels have their part in the explanation.
    """

    level: str
    failed: int
    slips: tuple[Slip, ...]
    explained: int
    alternatives: tuple[Slip, ...] = ()
    inherited: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the slips and of their alternatives, each once."""
        return tuple(dict.fromkeys(slip.name for slip in (*self.slips, *self.alternatives)))


class _Fit(NamedTuple):
    """How well some slips explain the wrong answers: bit by bit exactly or roughly, and what is left."""

    slips: tuple[Slip, ...]
    exactly: frozenset[int]
    roughly: frozenset[int]
    left: float

    @property
    def rank(self) -> tuple[float, ...]:
        """Better fits have larger ones."""
        return (len(self.roughly), len(self.exactly), -len(self.slips), -self.left)


def diagnose(outcomes: Iterable[Outcome]) -> list[Diagnosis]:
    """Return, for each level with wrong answers, what explains them.

    Parameters
    ----------
    outcomes : iterable of Outcome
        Of one implementation; those without an answer say nothing.
    """
    found: list[Diagnosis] = []
    outcomes = list(outcomes)
    by_level = {level: [o for o in outcomes if o.case.level == level] for level in LEVELS}
    base: tuple[Slip, ...] = ()
    for level, some in by_level.items():
        failed = _chosen([o for o in some if o.status == "failed"], MOST_FAILED)
        if not failed:
            continue
        passed = _chosen([o for o in some if o.status == "passed"], MOST_PASSED)
        diagnosis = _of_level(level, failed, passed, base)
        found.append(diagnosis)
        base = (*base, *(slip for slip in diagnosis.slips if slip.name not in {s.name for s in base}))
    return found


def _chosen(outcomes: Sequence[Outcome], most: int) -> list[Outcome]:
    """Return some outcomes of all kinds, those first whose integrals are cheap."""
    affordable = [o for o in outcomes if _affordable(o.case)] or list(outcomes)
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in sorted(affordable, key=lambda o: o.case.hint.get("points_per_axis", 0)):
        by_kind.setdefault(outcome.case.kind, []).append(outcome)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_kind.values()))
    return [outcome for outcome in in_turn if outcome is not None][:most]


def _affordable(case: Case) -> bool:
    """Whether the grids of `formulas` are fine enough for the case."""
    if case.model is None or not case.hint:
        return True
    m, step = case.model.latent_dim, 2.0 * case.hint["radius"] / (case.hint["points_per_axis"] - 1)
    finest = 16.0 / (MOST_POINTS[m] - 1)
    return m < 3 and (step >= finest or case.kind == "kinked")


class _Level:
    """The answers of one level, with what the right formulas and what slips make of them."""

    def __init__(self, level: str, failed: Sequence[Outcome], passed: Sequence[Outcome]) -> None:
        self.level, self.failed, self.passed = level, failed, passed
        self._right: dict[str, Answer] = {}

    def predicted(self, slips: Sequence[Slip], case: Case, by_hand: bool) -> Answer:
        """What an implementation with these slips would answer: expected + their effect on a grid."""
        if case.id not in self._right:
            self._right[case.id] = answer(RIGHT, case)
        right = self._right[case.id]
        f: Formulas = RIGHT
        for slip in slips:
            f = slip.change(f)
        wrong = answer(replace(f, by_hand=True) if by_hand else f, case)
        with np.errstate(invalid="ignore"):
            return {name: case.expected[name] + (wrong[name] - right[name]) for name in case.expected}

    def fit(self, slips: Sequence[Slip], by_hand: bool, among: Iterable[int] | None = None) -> _Fit | None:
        """Return how well the slips explain the wrong answers; None if they do not, or change right ones."""
        places = list(range(len(self.failed)) if among is None else among)
        exactly, roughly, missed, left = set(), set(), 0, 0.0
        for i in places:
            outcome = self.failed[i]
            predicted = self.predicted(slips, outcome.case, by_hand)
            rest = _left_over(outcome, predicted)
            if rest <= ROUGHLY:
                roughly.add(i)
                left += rest
            elif _differs(outcome.case, predicted):
                missed += 1
                if missed > (1.0 - CONSISTENT) * len(places):  # whatever the others are
                    return None
            if rest <= EXACT:
                exactly.add(i)
        if len(roughly) < CONSISTENT * (len(roughly) + missed) or not roughly:
            return None
        if among is None:
            for outcome in self.passed:
                if _differs(outcome.case, self.predicted(slips, outcome.case, by_hand), CLEARLY):
                    return None
        return _Fit(tuple(slips), frozenset(exactly), frozenset(roughly), left)

    def best(self, slips: Sequence[Slip], among: Iterable[int] | None = None) -> _Fit | None:
        """Return the better fit of the slips with derivatives of the wrong value, and of the right one."""
        among = None if among is None else list(among)
        ways = (False, True) if self.level in ("gradient", "density", "elbo-gradient") else (False,)
        fits = [fit for way in ways if (fit := self.fit(slips, way, among)) is not None]
        return max(fits, key=lambda fit: fit.rank, default=None)

    def concerns(self, slip: Slip, among: Iterable[int]) -> bool:
        """Whether a slip changes any of these answers."""
        some = (self.failed[i].case for i in among)
        return any(_differs(case, self.predicted((slip,), case, False)) for case in some)


def _left_over(outcome: Outcome, predicted: Answer) -> float:
    """The part of the difference that a prediction leaves: 0 for all explained, 1 or more for nothing."""
    worst = 0.0
    for name, tolerance in outcome.case.tolerance.items():
        got, expected = np.asarray((outcome.answer or {})[name]), outcome.case.expected[name]
        with np.errstate(invalid="ignore", divide="ignore"):
            same = got == predicted[name]  # infinities too
            off = np.where(same, 0.0, np.abs(got - predicted[name]))
            allowed = ALLOWED * tolerance.around(expected)
            size = np.max(np.where(np.isfinite(got), np.abs(got - expected), 0.0), initial=0.0)
            part = np.where(off <= allowed, 0.0, off / size if size > 0.0 else np.inf)
        worst = max(worst, float(np.max(np.where(np.isnan(part), np.inf, part), initial=0.0)))
    return worst


def _differs(case: Case, predicted: Answer, tolerances: float = ALLOWED) -> bool:
    """Whether a prediction differs from the right answer by so many tolerances; nan says nothing."""
    return any(
        bool((np.abs(predicted[name] - expected) > tolerances * case.tolerance[name].around(expected)).any())
        for name, expected in case.expected.items()
    )


def _of_level(
    level: str, failed: Sequence[Outcome], passed: Sequence[Outcome], base: Sequence[Slip]
) -> Diagnosis:
    answers = _Level(level, failed, passed)
    inherited = answers.best(base) if base else None
    if inherited is not None and len(inherited.roughly) == len(failed):
        return Diagnosis(level, len(failed), (), len(failed), inherited=True)
    wrong = [(outcome.case, outcome.answer or {}) for outcome in failed]
    single = [slip for slip in (*SLIPS, *fitted(level, wrong)) if level in slip.levels]
    fits = _distinct([answers.best((slip,)) for slip in single])
    if base:
        fits += _distinct([answers.best((*base, slip)) for slip in single])
        fits += _distinct([inherited])
    covered = _cover(fits)
    explained = frozenset[int]().union(*(fit.roughly for fit in covered))
    rest = [i for i in range(len(failed)) if i not in explained]
    if not base and len(rest) > (1.0 - CONSISTENT) * len(failed):
        pairs = _pairs(answers, single, rest)
        covered = _cover([*fits, *pairs])
        explained = frozenset[int]().union(*(fit.roughly for fit in covered))
    slips = tuple(dict.fromkeys(slip for fit in covered for slip in fit.slips if slip not in base))
    uses_base = any(slip in base for fit in covered for slip in fit.slips)
    alternatives = _alternatives(fits, covered, slips)
    return Diagnosis(level, len(failed), slips, len(explained), alternatives, uses_base)


def _distinct(fits: Iterable[_Fit | None]) -> list[_Fit]:
    return [fit for fit in fits if fit is not None]


def _cover(fits: Sequence[_Fit]) -> list[_Fit]:
    """Return few fits that explain much together: the best one, then the best for what is left."""
    found: list[_Fit] = []
    left = frozenset[int]().union(*(fit.roughly for fit in fits))
    while left:
        best = max(fits, key=lambda fit: (len(fit.roughly & left), *fit.rank))
        if not best.roughly & left:
            break
        found.append(best)
        left -= best.roughly
    return found


def _pairs(answers: _Level, single: Sequence[Slip], rest: Sequence[int]) -> list[_Fit]:
    """Return the pairs of slips that explain what single ones do not."""
    concern = [slip for slip in single if answers.concerns(slip, rest[:SCREEN])]
    pairs = [pair for pair in itertools.combinations(concern, 2) if pair[0].name != pair[1].name]
    for screen in (rest[:1], rest[:SCREEN]):
        pairs = [pair for pair in pairs if answers.best(pair, screen) is not None]
    return _distinct([answers.best(pair) for pair in pairs])


def _alternatives(fits: Sequence[_Fit], covered: Sequence[_Fit], named: Sequence[Slip]) -> tuple[Slip, ...]:
    """Return slips of another name that explain just as many answers as exactly as the first one found."""
    if not covered:
        return ()
    best = covered[0]
    names = {slip.name for slip in named}
    return tuple(
        slip
        for fit in fits
        for slip in fit.slips
        if slip.name not in names
        and (fit.exactly, fit.roughly, len(fit.slips)) == (best.exactly, best.roughly, len(best.slips))
        and len(best.exactly) == len(best.roughly)
    )
