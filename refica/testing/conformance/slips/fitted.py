"""Slips with a number of their own, which is found from the answers: an offset, a factor, a precision."""

# notation: N observations, m latent, K nodes

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from refica.testing.conformance.case import Case
from refica.testing.conformance.formulas import Answer, Formulas
from refica.testing.conformance.slips.slip import Change, Slip, changed
from refica.validation import Array

__all__ = ["fitted"]

FEWEST = 3
"""Answers from which a number may be found."""

LEAST_OFFSET = 1e-6
"""Offsets of log p(x) below this are no slip."""

WHOLE = 0.02
"""How near to an integer the exponential of an offset must be to be called a number of draws."""

Wrong = Sequence[tuple[Case, Answer]]


def fitted(level: str, wrong: Wrong) -> list[Slip]:
    """Return the slips whose number is found from the wrong answers of a level."""
    found = [*_single_precision(level, wrong)]
    if level in ("log-marginal", "monte-carlo"):
        found += _offsets(level, wrong)
    if level in ("gradient", "density"):
        found += _scaled_gradients(level, wrong)
    return found


def _offsets(level: str, wrong: Wrong) -> list[Slip]:
    """log p(x) + c: log K, m times the log of a ratio, or just a constant."""
    pairs = [
        (case.model.latent_dim, answer["log_p"] - case.expected["log_p"])
        for case, answer in wrong
        if case.model
    ]
    off = np.concatenate([np.ravel(each) for _, each in pairs]) if pairs else np.zeros(0)
    per_axis = np.concatenate([np.ravel(each) / m for m, each in pairs]) if pairs else np.zeros(0)
    good = np.isfinite(off)
    if good.sum() < FEWEST or abs(np.median(off[good])) < LEAST_OFFSET:
        return []
    c, c1 = float(np.median(off[good])), float(np.median(per_axis[good]))
    slips = []
    K = math.exp(min(abs(c), 700.0))
    if K > 1.5 and abs(K - round(K)) < max(WHOLE * K, 1e-6):
        which = ("not divided", "too high") if c > 0 else ("divided twice", "too low")
        words = f"the sum over draws is {which[0]} by their number: log K {which[1]}, K = {K:.4g} or so"
        slips.append(Slip("forgotten-1/K" if c > 0 else "1/K-twice", words, (level,), _plus(c, 0.0)))
    if -0.1 < c1 < 0.0:
        words = (
            "the step of a grid is its length over the number of points, not of intervals: "
            f"{-1.0 / math.expm1(c1):.0f} points"
        )
        slips.append(Slip("grid-step", words, (level,), _plus(0.0, c1)))
    slips.append(Slip("constant-offset", f"log p(x) is off by {c:.6g}, always", (level,), _plus(c, 0.0)))
    return slips


def _plus(c: float, per_axis: float) -> Change:
    def change(f: Formulas) -> Formulas:
        right = f.log_p

        def log_p(value: Array, case: Case) -> Array:
            m = case.model.latent_dim if case.model else 0
            return np.asarray(right(value, case) + c + m * per_axis)

        return replace(f, log_p=log_p)

    return change


def _scaled_gradients(level: str, wrong: Wrong) -> list[Slip]:
    """The right direction with a factor that differs from case to case, where there is one observation."""
    factors: dict[str, float] = {}
    for case, answer in wrong:
        right = np.append(case.expected["theta"], case.expected["sigma2"])
        got = np.append(answer["theta"], answer["sigma2"])
        if len(np.asarray(case.x)) == 1 and np.isfinite(got).all():
            factors[case.id] = float(got @ right / (right @ right))
    values = np.array(list(factors.values()))
    if len(values) < FEWEST or np.ptp(values) <= 1e-3 * np.abs(values).max():
        return []
    words = "responsibilities are not normalised: the gradient has the right direction, its size varies"
    return [Slip("unnormalised-responsibilities", words, (level,), changed(_by_factor(factors)))]


def _by_factor(factors: Mapping[str, float]) -> Callable[[Case, Answer], Answer]:
    def wrong(case: Case, found: Answer) -> Answer:
        factor = factors.get(case.id, math.nan)  # nan says nothing of this case
        return {name: found[name] * factor for name in ("theta", "sigma2") if name in found}

    return wrong


def _single_precision(level: str, wrong: Wrong) -> list[Slip]:
    """Answers none of which has more digits than float32 has, and that are right to some of those."""
    known: dict[str, Answer] = {}
    for case, answer in wrong:
        if all(_is_single(value, case.expected[name]) for name, value in answer.items()):
            known[case.id] = answer
    if len(known) < min(FEWEST, len(wrong)) or not known:
        return []

    def given(case: Case, found: Answer) -> Answer:
        return known.get(case.id, {name: np.full_like(found[name], math.nan) for name in found})

    words = "numbers have single precision, float32"
    return [Slip("single-precision", words, (level,), changed(given))]


def _is_single(value: Array, expected: Array) -> bool:
    value, expected = np.asarray(value), np.asarray(expected)
    with np.errstate(all="ignore"):
        same = np.array_equal(value, value.astype(np.float32).astype(np.float64), equal_nan=True)
        near = np.max(np.abs(value - expected)) <= 1e-2 * max(np.max(np.abs(expected)), 1.0)
    return bool(same and near)
