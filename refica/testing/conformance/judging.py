"""Is an answer right? Each is compared entry by entry with what is expected, within the case's tolerance."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from unittest import SkipTest

import numpy as np

from refica.files import DataError
from refica.testing.conformance.case import Case, as_array
from refica.testing.conformance.formulas import Answer

__all__ = ["Outcome", "asked", "check", "judge"]

Status = Literal["passed", "failed", "error", "skipped"]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    case : Case
    status : {"passed", "failed", "error", "skipped"}
        error: there was no answer, or one of another shape; skipped: the implementation does not do this.
    message : str
        What is wrong, in a sentence; "" if nothing is.
    answer : dict or None
        By quantity, parameters flat; None where there is none.
    ratio : float
        Largest difference over its tolerance; at most 1 if the case is passed.
    seconds : float
        What the answer took.
    """

    case: Case
    status: Status
    message: str = ""
    answer: Answer | None = None
    ratio: float = float("nan")
    seconds: float = 0.0


def asked(answers_to: Callable[[Case], Any], case: Case) -> Outcome:
    """Ask for an answer and judge it; whatever the implementation raises is an error of its own.

    An answer of None or NotImplemented, or a NotImplementedError, means that the level is not offered.
    """
    began = time.perf_counter()
    try:
        answer = answers_to(case)
    except NotImplementedError:
        answer = None
    except DataError:  # there is no such program: it will not be there for the next case either
        raise
    except Exception as error:  # another's program may raise anything
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(case, "error", words, seconds=time.perf_counter() - began)
    return judge(case, answer, time.perf_counter() - began)


def judge(case: Case, answer: Any, seconds: float = 0.0) -> Outcome:
    """Return the verdict on an answer.

    Parameters
    ----------
    case : Case
    answer : dict, array_like or None
        By quantity, as in `LEVELS`; what a level with one quantity only answers may be the bare array.
    """
    if answer is None or answer is NotImplemented:
        return Outcome(case, "skipped", "not offered", seconds=seconds)
    try:
        found = _by_quantity(case, answer)
    except (TypeError, ValueError) as error:
        return Outcome(case, "error", str(error), seconds=seconds)
    ratios = {}
    for name, expected in case.expected.items():
        with np.errstate(invalid="ignore"):  # inf - inf
            ratio = np.abs(found[name] - expected) / case.tolerance[name].around(expected)
        ratios[name] = float(np.max(np.where(np.isnan(ratio), np.inf, ratio), initial=0.0))
    worst = max(ratios, key=lambda name: ratios[name])
    if ratios[worst] <= 1.0:
        return Outcome(case, "passed", "", found, ratios[worst], seconds)
    return Outcome(case, "failed", _words(case, worst, found[worst]), found, ratios[worst], seconds)


def check(adapter: Any, case: Case) -> None:
    """Raise AssertionError if an adapter's answer to a case is not right; for pytest.

    Parameters
    ----------
    adapter : object
        See `Adapter`.
    case : Case

    Raises
    ------
    AssertionError
        Which names the entry that is farthest off.
    unittest.SkipTest
        If the adapter does not offer the level; pytest reports it as skipped.

    Examples
    --------
    >>> from refica.testing import conformance
    >>> class Mine:
    ...     def log_joint(self, case):
    ...         return [[0.0]]
    >>> conformance.check(Mine(), conformance.cases("log-joint")[0])
    Traceback (most recent call last):
    AssertionError: log-joint/tanh-1-4-2-1: log_joint must have shape (2, 3), got (1, 1)
    """
    from refica.testing.conformance.implementations import Adapter

    outcome = asked(Adapter(adapter).answers_to, case)
    if outcome.status == "skipped":
        raise SkipTest(f"{case.level} is {outcome.message}")
    if outcome.status != "passed":
        raise AssertionError(f"{case}: {outcome.message}")


def _by_quantity(case: Case, answer: Any) -> Answer:
    wanted = list(case.expected)
    if not isinstance(answer, Mapping):
        if len(wanted) > 1:
            raise TypeError(f"the answer must hold {', '.join(wanted)}, got a {type(answer).__name__}")
        answer = {wanted[0]: answer}
    missing = [name for name in wanted if name not in answer]
    if missing:
        raise ValueError(f"the answer lacks {', '.join(missing)}; {case.level} wants {', '.join(wanted)}")
    maps = {"theta": case.model.decoder if case.model else None, "phi": case.encoder}
    found = {}
    for name in wanted:
        try:
            found[name] = as_array(answer[name], maps.get(name))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot be read: {error}") from None
        shape = np.shape(case.expected[name])
        if found[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {found[name].shape}")
    return found


def _words(case: Case, name: str, got: Any) -> str:
    """Say which entry is farthest off."""
    expected = np.asarray(case.expected[name])
    with np.errstate(invalid="ignore"):
        ratio = np.abs(got - expected) / case.tolerance[name].around(expected)
    place = np.unravel_index(int(np.argmax(np.where(np.isnan(ratio), np.inf, ratio))), expected.shape)
    entry = f"{name}[{', '.join(map(str, place))}]" if place else name
    allowed = float(case.tolerance[name].around(expected)[place])
    return f"{entry} is {float(got[place])!r}, expected {float(expected[place])!r} within {allowed:.2g}"
