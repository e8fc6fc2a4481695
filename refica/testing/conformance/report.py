"""The kit run on an implementation: verdicts, what explains the wrong answers, and both in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refica.testing.conformance.case import LEVELS, VERSION, Case, cases
from refica.testing.conformance.diagnosis import Diagnosis, diagnose
from refica.testing.conformance.implementations import Adapter, AnswersFile, Command, Implementation
from refica.testing.conformance.judging import Outcome, asked

__all__ = ["Counts", "Report", "as_text", "run", "to_dict"]

SHOWN = 3
"""Failures of a level that are printed; --json has all."""


class Counts(NamedTuple):
    """Of a level: cases by their status, seconds in all, and the largest difference over its tolerance."""

    level: str
    passed: int
    failed: int
    errors: int
    skipped: int
    seconds: float
    ratio: float

    @property
    def total(self) -> int:
        """Cases that were answered, or should have been."""
        return self.passed + self.failed + self.errors


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """The result of `run`.

    Attributes
    ----------
    name : str
        Of the implementation.
    outcomes : tuple of Outcome
        One for each case.
    diagnoses : tuple of Diagnosis
        One for each level with wrong answers.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    diagnoses: tuple[Diagnosis, ...]

    @property
    def passed(self) -> bool:
        """Whether some cases were answered and all of those are right."""
        counts = self.counts
        return any(each.passed for each in counts) and not any(each.failed or each.errors for each in counts)

    @property
    def names(self) -> tuple[str, ...]:
        """The slips that were found, by name."""
        return tuple(dict.fromkeys(name for each in self.diagnoses for name in each.names))

    @property
    def counts(self) -> list[Counts]:
        """Counts of each level that has cases."""
        found = []
        for level in LEVELS:
            some = [outcome for outcome in self.outcomes if outcome.case.level == level]
            if some:
                ratio = max((o.ratio for o in some if not math.isnan(o.ratio)), default=math.nan)
                statuses = [outcome.status for outcome in some]
                found.append(
                    Counts(
                        level,
                        passed=statuses.count("passed"),
                        failed=statuses.count("failed"),
                        errors=statuses.count("error"),
                        skipped=statuses.count("skipped"),
                        seconds=sum(o.seconds for o in some),
                        ratio=ratio,
                    )
                )
        return found

    def __repr__(self) -> str:
        """Show counts, not the cases."""
        passed = sum(each.passed for each in self.counts)
        return f"Report({self.name!r}, {passed} of {sum(each.total for each in self.counts)} passed)"


def run(
    implementation: Any,
    wanted: Iterable[Case] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Ask an implementation for its answers, judge them and diagnose what is wrong.

    Parameters
    ----------
    implementation : Adapter, Command, AnswersFile, or what `Adapter` takes
    wanted : iterable of Case, optional
        By default all cases.
    progress : callable, optional
        Is told each level before it is run.

    Raises
    ------
    TypeError
        If the implementation offers nothing.
    DataError
        If a command cannot be started.

    Examples
    --------
    >>> from refica.testing import conformance
    >>> report = conformance.run(conformance.Refica(), conformance.cases(["decoder", "log-joint"]))
    >>> report.passed
    True
    """
    judged: Implementation = (
        implementation
        if isinstance(implementation, (Adapter, Command, AnswersFile))
        else Adapter(implementation)
    )
    outcomes: list[Outcome] = []
    level = ""
    for case in cases() if wanted is None else wanted:
        if progress is not None and case.level != level:
            progress(case.level)
        level = case.level
        outcomes.append(asked(judged.answers_to, case))
    return Report(judged.name, tuple(outcomes), tuple(diagnose(outcomes)))


def as_text(report: Report) -> str:
    """Return a report for a terminal."""
    lines = [f"{report.name}: conformance cases, version {VERSION}", ""]
    lines += [f"{'level':18}{'passed':>9}{'worst/tolerance':>18}{'seconds':>10}", "-" * 55]
    for each in report.counts:
        share = f"{each.passed}/{each.total}" if each.total else "-"
        ratio = "" if math.isnan(each.ratio) else f"{each.ratio:.2g}"
        skipped = f"  {each.skipped} not answered" if each.skipped else ""
        lines.append(f"{each.level:18}{share:>9}{ratio:>18}{each.seconds:>10.2f}{skipped}")
    lines += ["", *_failures(report), *_explanations(report.diagnoses)]
    lines.append(_verdict(report))
    return "\n".join(lines)


def _failures(report: Report) -> list[str]:
    lines = []
    for each in report.counts:
        wrong = [o for o in report.outcomes if o.case.level == each.level and o.status in ("failed", "error")]
        lines += [f"{outcome.case}: {outcome.message}" for outcome in wrong[:SHOWN]]
        if len(wrong) > SHOWN:
            lines.append(f"... and {len(wrong) - SHOWN} more of {each.level}")
    return [*lines, ""] if lines else []


def _explanations(diagnoses: Sequence[Diagnosis]) -> list[str]:
    lines = []
    for each in diagnoses:
        part = f"{each.explained} of {each.failed}" + (" looked at" if each.failed else "")
        lines += [f"{each.level}: {slip.name}: {slip.sentence}" for slip in each.slips]
        lines += [f"{each.level}: or {slip.name}: {slip.sentence}" for slip in each.alternatives]
        if each.slips:
            lines.append(f"{'':4}explains {part}{', with what was found before' if each.inherited else ''}")
        elif each.explained:
            lines.append(f"{each.level}: what was found before explains {part}")
        else:
            lines.append(
                f"{each.level}: no known slip explains the wrong answers; mend the levels above first"
            )
    return [*lines, ""] if lines else []


def _verdict(report: Report) -> str:
    passed, total = sum(c.passed for c in report.counts), sum(c.total for c in report.counts)
    if not total:
        return "nothing was answered"
    return f"{'conforms' if report.passed else 'DOES NOT CONFORM'}: {passed} of {total} cases passed"


def to_dict(report: Report) -> dict[str, Any]:
    """Return a report as plain data."""
    return {
        "schema": "refica-conformance-report",
        "version": VERSION,
        "implementation": report.name,
        "passed": report.passed,
        "levels": [each._asdict() for each in report.counts],
        "diagnoses": [
            {
                "level": each.level,
                "slips": [{"name": slip.name, "sentence": slip.sentence} for slip in each.slips],
                "alternatives": [{"name": s.name, "sentence": s.sentence} for s in each.alternatives],
                "explained": each.explained,
                "of": each.failed,
                "with_slips_of_lower_levels": each.inherited,
            }
            for each in report.diagnoses
        ],
        "cases": [
            {
                "id": o.case.id,
                "status": o.status,
                "message": o.message,
                "difference_over_tolerance": o.ratio if np.isfinite(o.ratio) else None,
                "seconds": o.seconds,
            }
            for o in report.outcomes
        ],
    }
