"""What a check is, and what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from refica.testing.gradients import MIDDLE, TaylorSlope
from refica.validation import Array
from refica.verify.cases import Setting

__all__ = [
    "Check",
    "Comparison",
    "Finding",
    "Note",
    "Observed",
    "Remark",
    "Tolerance",
    "agree",
    "relative",
    "slope_of",
    "summarised",
]


class Tolerance(NamedTuple):
    """The largest discrepancy that passes, and why it is this one."""

    value: float
    reason: str


class Observed(NamedTuple):
    """One comparison on one case: two routes to a number, their relative discrepancy, what is allowed."""

    left: str
    right: str
    discrepancy: float
    tolerance: Tolerance


class Note(NamedTuple):
    """Something that a reader of the check should know, such as a route that could not be taken."""

    words: str


class Comparison(NamedTuple):
    """Two routes to a number: the largest relative ``discrepancy`` over ``cases``, and what is allowed."""

    left: str
    right: str
    discrepancy: float
    tolerance: Tolerance
    cases: int

    @property
    def passed(self) -> bool:
        """Whether the discrepancy is within the tolerance; nan is not."""
        return self.discrepancy <= self.tolerance.value


Run: TypeAlias = Callable[[Setting], Iterator[Observed | Note]]


@dataclass(frozen=True, slots=True)
class Check:
    """One formula: what it says, where it stands, which functions of refica compute it, how it is checked.

    ``formula`` is plain text, ``tex`` the same for matplotlib's mathtext; ``source`` the place in the
    documents (D the derivation, E the exercises) or "refica"; ``code`` dotted names below ``refica``.
    """

    section: str
    name: str
    title: str
    formula: str
    tex: str
    source: str
    code: tuple[str, ...]
    run: Run


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a check.

    ``comparisons`` are empty and ``error`` says why if the check ended in an exception.
    """

    check: Check
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether there was at least one comparison, and all of them passed."""
        return not self.error and bool(self.comparisons) and all(each.passed for each in self.comparisons)


@dataclass(frozen=True, slots=True)
class Remark:
    """A remark on the documents: where, what, and a demonstration in numbers.

    ``columns`` and ``rows`` are a table (empty if nothing can be shown in numbers); ``confirmed`` whether
    the numbers show what the remark says.
    """

    name: str
    title: str
    source: str
    words: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    confirmed: bool


def relative(got: Array | float, want: Array | float, scale: Array | float = 0.0) -> float:
    """‖got - want‖_∞ / max(‖want‖_∞, scale); 0 where all of them are 0, inf for shapes that differ."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return math.inf
    size = max(float(np.max(np.abs(want), initial=0.0)), float(np.max(scale, initial=0.0)))
    off = float(np.max(np.abs(got - want), initial=0.0))
    return off / size if size > 0.0 else off


def agree(
    left: str,
    right: str,
    got: Array | float,
    want: Array | float,
    tolerance: Tolerance,
    scale: Array | float = 0.0,
) -> Observed:
    """Return the comparison of two arrays by `relative`."""
    return Observed(left, right, relative(got, want, scale), tolerance)


SLOPE = Tolerance(
    3.0 - MIDDLE, "distance of the slope from 3, that of a right derivative; a wrong one has slope 1"
)


def slope_of(left: str, found: TaylorSlope) -> Observed:
    """Return the comparison that a Taylor test is: the distance of its slope from 3."""
    off = abs(3.0 - found.slope) if math.isfinite(found.slope) else 0.0
    if found.passed:  # above 3 a slope is as good, and without any remainder there is none
        off = min(off, SLOPE.value)
    return Observed(
        left, "Taylor remainders that fall like h³", off if found.passed else max(off, 2.0), SLOPE
    )


def summarised(observed: Sequence[Observed]) -> tuple[Comparison, ...]:
    """Put the cases of each pair of routes together: the largest discrepancy, nan before any number."""
    pairs: dict[tuple[str, str], list[Observed]] = {}
    for each in observed:
        pairs.setdefault((each.left, each.right), []).append(each)
    return tuple(
        Comparison(
            left,
            right,
            float(np.max([each.discrepancy for each in group])),
            min((each.tolerance for each in group), key=lambda tolerance: tolerance.value),
            len(group),
        )
        for (left, right), group in pairs.items()
    )
