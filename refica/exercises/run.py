"""A lesson, worked through: its code is executed, and what it prints and draws stands below it."""

from __future__ import annotations

import ast
import contextlib
import io
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import scipy

from refica import report
from refica.exercises.lesson import LESSONS, Piece, read
from refica.plot.canvas import figure_png
from refica.plot.formula import formula

__all__ = ["FULL", "QUICK", "Effort", "page", "work_through"]


class Effort(NamedTuple):
    """What a lesson is given: how many observations ``size`` to simulate, the latent dimensions ``dims`` to
    try, and the iterations ``max_iter`` after which fits are cut short (None: each method's own limit)."""

    size: int = 500
    dims: tuple[int, ...] = (1, 2, 3, 4)
    max_iter: int | None = None


FULL, QUICK = Effort(), Effort(100, (1, 2), 20)
"""Some minutes, and a rough page in some seconds."""

DPI = 110
"""Of figures: a page of some twenty stays small enough to be sent by mail."""

FORMULA_DPI = 144

INTRODUCTION = (
    "Exercises 1 to 3 of the document that this package implements, answered. Every block of code on this "
    "page has been executed to make it, in this order, and what stands below a block is what it printed and "
    "drew. To work through an exercise yourself, paste its blocks into a session, these two lines first:"
)


def page(effort: Effort = FULL, progress: Callable[[str], None] = lambda _: None) -> str:
    """Return the lessons, worked through, as one self-contained HTML page.

    Parameters
    ----------
    effort : Effort
        ``FULL`` or ``QUICK``, or one's own.
    progress : callable
        Told what is being computed.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    began = time.perf_counter()
    blocks: list[report.Block] = [
        report.paragraph(INTRODUCTION),
        report.code(
            f"size, dims, max_iter = {', '.join(map(repr, effort))}\n"
            'def show(drawn, words): drawn.figure.savefig(f"{words[:20]}.png")'
        ),
    ]
    for name in LESSONS:
        blocks += work_through(read(name), effort, partial(_say, progress, name))
    blocks.append(
        report.paragraph(
            f"Computed in {time.perf_counter() - began:.0f} s by refica {version('refica')}, NumPy "
            f"{np.__version__} and SciPy {scipy.__version__} under Python {platform.python_version()}."
        )
    )
    return report.render(report.Page("The exercises, answered", tuple(blocks)))


def _say(progress: Callable[[str], None], name: str, words: str) -> None:
    progress(f"{name}, {words}")


def work_through(
    lesson: tuple[Piece, ...], effort: Effort, progress: Callable[[str], None] = lambda _: None
) -> list[report.Block]:
    """Return a lesson as blocks of a page; its code shares one namespace, in which the effort is given.

    Whatever the code raises is passed on, with the line of the lesson in a note.
    """
    names: dict[str, Any] = effort._asdict()
    count = sum(piece.kind == "python" for piece in lesson)
    done = 0
    blocks: list[report.Block] = []
    for piece in lesson:
        if piece.kind == "python":
            done += 1
            progress(f"block {done} of {count}")
        blocks += _blocks(piece, names)
    return blocks


def _blocks(piece: Piece, names: dict[str, Any]) -> Iterator[report.Block]:
    match piece.kind:
        case "title":
            yield report.heading(piece.text)
        case "section":
            yield report.heading(piece.text, 3)
        case "quotation":
            yield report.paragraph(f"“{piece.text}”")
        case "prose":
            yield report.paragraph(piece.text)
        case "math":
            yield report.figure(figure_png(formula(piece.text), FORMULA_DPI), piece.text, dpi=FORMULA_DPI)
        case "python":
            yield report.code(piece.text)
            yield from _executed(piece, names)


def _executed(piece: Piece, names: dict[str, Any]) -> list[report.Block]:
    """What a block of code prints, then what it shows."""
    shown: list[report.Block] = []

    def show(drawn: Any, words: str) -> None:
        """Put axes, or a figure, on the page with a caption."""
        shown.append(report.figure(figure_png(drawn.figure, DPI), words, words, DPI))

    names["show"] = show
    printed = io.StringIO()
    tree = ast.increment_lineno(ast.parse(piece.text), piece.line - 1)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, "lesson", "exec"), names)
    except Exception as error:
        error.add_note(f"in the block of the lesson that begins at line {piece.line}")
        raise
    text = printed.getvalue().rstrip()
    return [*([report.output(text)] if text else []), *shown]
