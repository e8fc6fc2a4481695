"""A report as text for a terminal, as plain data for JSON, and as one HTML page with typeset formulas."""

from __future__ import annotations

import textwrap
from typing import Any

from refica import report
from refica.plot.canvas import figure_png
from refica.plot.formula import INK, formula
from refica.verify.findings import Comparison, Finding, Remark
from refica.verify.routes import WITHOUT_AUTOGRAD
from refica.verify.run import Report

__all__ = ["as_text", "page", "to_dict"]

WIDTH = 100
"""Characters in a line of text."""

GOOD, BAD = "#1b7f3b", "#c1121f"
"""Colours of a formula that holds and one that does not; the words beside it say the same."""

DPI = 144

COLUMNS = ("what", "compared with", "discrepancy", "allowed", "cases")


def as_text(found: Report) -> str:
    """Return the report that `refica verify` prints."""
    lines, section = [_headline(found), ""], ""
    for finding in found.findings:
        if finding.check.section != section:
            section = finding.check.section
            lines += [section, "-" * len(section)]
        lines += _text_of(finding)
    lines += ["Remarks on the documents", "-" * 24]
    for remark in found.remarks:
        mark = "ok  " if remark.confirmed else "FAIL"
        lines += [f"{mark} {remark.title}  [{remark.source}]", *_wrapped(remark.words)]
        lines += [f"       {line}" for line in _aligned((remark.columns, *remark.rows))]
    return "\n".join([*lines, "", _verdict(found)])


def _text_of(finding: Finding) -> list[str]:
    """One finding: a line with the verdict and the worst comparison; all that failed, where it failed."""
    check = finding.check
    lines = [
        f"{'ok  ' if finding.passed else 'FAIL'} {check.name}: {check.title}  [{check.source}]",
        f"       {check.formula}",
    ]
    if finding.error:
        lines += _wrapped(f"ended in {finding.error}")
    shown = finding.comparisons if not finding.passed else finding.comparisons[:0]
    for each in shown or _worst(finding):
        lines += _wrapped(f"{'' if each.passed else 'WRONG: '}{_in_words(each)}")
    if finding.passed and len(finding.comparisons) > 1:
        routes = ", ".join(dict.fromkeys(each.right for each in finding.comparisons))
        lines += _wrapped(f"compared with: {routes}")
    if not finding.passed:
        lines += _wrapped(f"computed by: {', '.join(check.code)}")
    return [*lines, *(line for note in finding.notes for line in _wrapped(f"note: {note}"))]


def _worst(finding: Finding) -> tuple[Comparison, ...]:
    """The comparison that is nearest to its tolerance."""
    ranked = sorted(finding.comparisons, key=lambda each: -each.discrepancy / each.tolerance.value)
    return tuple(ranked[:1])


def _in_words(each: Comparison) -> str:
    cases = "1 case" if each.cases == 1 else f"{each.cases} cases"
    return (
        f"{each.left} against {each.right}: {each.discrepancy:.1e}, at most {each.tolerance.value:g} "
        f"({each.tolerance.reason}), {cases}"
    )


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent="       ", subsequent_indent="         ")


def _aligned(rows: tuple[tuple[str, ...], ...]) -> list[str]:
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _headline(found: Report) -> str:
    decoder = f"the decoder {found.decoder}" if found.decoder else "built-in decoders"
    models = "1 random model" if found.models == 1 else f"{found.models} random models"
    return f"refica verify: {len(found.findings)} formulas on {models} with {decoder}, seed {found.seed}"


def _verdict(found: Report) -> str:
    seconds = f"in {found.seconds:.0f} s"
    if found.passed:
        missing = any(WITHOUT_AUTOGRAD in finding.notes for finding in found.findings)
        routes = " (without autograd, which is not installed)" if missing else ""
        remarks = f"all {len(found.remarks)} remarks are confirmed"
        return f"All {len(found.findings)} formulas hold{routes} and {remarks}, {seconds}."
    doubtful = [remark.name for remark in found.remarks if not remark.confirmed]
    words = f"{len(found.failed)} of {len(found.findings)} formulas FAIL, {seconds}."
    if found.failed:
        first = found.failed[0].check
        code = ", ".join(first.code)
        words += f" Each stands on those before it: look first at {first.name}, computed by {code}."
    if doubtful:
        words += f" Not confirmed: the remarks {', '.join(doubtful)}."
    return words


def to_dict(found: Report) -> dict[str, Any]:
    """Return the report as plain values (schema "refica-verify", version 1)."""
    return {
        "schema": "refica-verify",
        "version": 1,
        "passed": found.passed,
        "models": found.models,
        "seed": found.seed,
        "decoder": found.decoder,
        "seconds": found.seconds,
        "first_failure": found.failed[0].check.name if found.failed else None,
        "formulas": [_finding_dict(finding) for finding in found.findings],
        "remarks": [
            {
                "name": remark.name,
                "title": remark.title,
                "source": remark.source,
                "words": remark.words,
                "columns": list(remark.columns),
                "rows": [list(row) for row in remark.rows],
                "confirmed": remark.confirmed,
            }
            for remark in found.remarks
        ],
    }


def _finding_dict(finding: Finding) -> dict[str, Any]:
    check = finding.check
    return {
        "name": check.name,
        "section": check.section,
        "title": check.title,
        "formula": check.formula,
        "source": check.source,
        "code": list(check.code),
        "passed": finding.passed,
        "error": finding.error,
        "notes": list(finding.notes),
        "seconds": finding.seconds,
        "comparisons": [
            {
                "left": each.left,
                "right": each.right,
                "discrepancy": each.discrepancy,
                "tolerance": each.tolerance.value,
                "reason": each.tolerance.reason,
                "cases": each.cases,
                "passed": each.passed,
            }
            for each in finding.comparisons
        ],
    }


def page(found: Report) -> str:
    """Return the report as one self-contained HTML page.

    Formulas are typeset where matplotlib is installed, else they are plain text.
    """
    blocks: list[report.Block] = [
        report.paragraph(_headline(found) + "."),
        report.paragraph(_verdict(found)),
        report.table(
            ("formula", "where", "largest discrepancy / allowed", "verdict"),
            [_overview(finding) for finding in found.findings],
            "Discrepancies are relative to the size of the summed contributions. Each formula stands on "
            "those above it: the first that fails is the one to look at.",
            left=(0, 1, 3),
        ),
    ]
    section = ""
    for finding in found.findings:
        if finding.check.section != section:
            section = finding.check.section
            blocks.append(report.heading(section))
        blocks += _blocks_of(finding)
    blocks.append(report.heading("Remarks on the documents"))
    for remark in found.remarks:
        blocks += _remark_blocks(remark)
    return report.render(report.Page("refica verify", tuple(blocks)))


def _overview(finding: Finding) -> tuple[str, str, str, str]:
    worst = _worst(finding)
    ratio = f"{worst[0].discrepancy / worst[0].tolerance.value:.1g}" if worst else ""
    return finding.check.title, finding.check.source, ratio, "holds" if finding.passed else "✗ FAILS"


def _blocks_of(finding: Finding) -> list[report.Block]:
    check = finding.check
    verdict = "holds" if finding.passed else "✗ FAILS"
    blocks = [
        report.heading(f"{check.title}: {verdict}", 3),
        _formula(check.tex, check.formula, finding.passed),
        report.paragraph(f"{check.name}. Where: {check.source}. Computed by {', '.join(check.code)}."),
    ]
    if finding.error:
        blocks.append(report.paragraph(f"The check ended in {finding.error}"))
    if finding.comparisons:
        rows = [
            (
                each.left,
                each.right,
                f"{each.discrepancy:.1e}{'' if each.passed else ' ✗'}",
                f"{each.tolerance.value:g}",
                str(each.cases),
            )
            for each in finding.comparisons
        ]
        reasons = dict.fromkeys(each.tolerance for each in finding.comparisons)
        caption = "; ".join(f"{each.value:g}: {each.reason}" for each in reasons)
        blocks.append(report.table(COLUMNS, rows, f"Allowed: {caption}.", left=(0, 1)))
    return blocks + [report.paragraph(f"Note: {note}.") for note in finding.notes]


def _remark_blocks(remark: Remark) -> list[report.Block]:
    blocks: list[report.Block] = [
        report.heading(remark.title if remark.confirmed else f"{remark.title}: ✗ NOT CONFIRMED", 3),
        report.paragraph(f"{remark.source}. {remark.words}"),
    ]
    if remark.rows:
        blocks.append(report.table(remark.columns, remark.rows))
    return blocks


def _formula(tex: str, words: str, passed: bool) -> report.Block:
    """The formula typeset, with a bar that is green where it holds and red where it does not."""
    try:
        figure = formula(tex, INK if passed else BAD, GOOD if passed else BAD)
    except ImportError:
        return report.code(words)
    verdict = "holds" if passed else "FAILS"
    return report.figure(figure_png(figure, DPI), f"{words} ({verdict})", dpi=DPI)
