"""Lessons: prose, formulas and code in the order in which they are read, in plain files.

A lesson is a small part of Markdown: paragraphs, headings (``#`` the title, ``##`` a section), quotations
(``>``), and fenced blocks of ``math`` (one line of mathtext) and ``python``.
"""

from __future__ import annotations

from importlib import resources
from typing import Literal, NamedTuple

__all__ = ["LESSONS", "Piece", "read"]

LESSONS = ("simulate", "direct", "vae")
"""The lessons for Exercises 1, 2 and 3, by the names of their files."""

Kind = Literal["title", "section", "quotation", "prose", "math", "python"]

FENCE = "```"


class Piece(NamedTuple):
    """A part of a lesson: its ``kind``, its ``text``, and the ``line`` of its file at which it begins."""

    kind: Kind
    text: str
    line: int


def read(name: str) -> tuple[Piece, ...]:
    """Return the pieces of one of the `LESSONS`."""
    return parse((resources.files("refica.exercises") / f"{name}.md").read_text(encoding="utf-8"))


def parse(text: str) -> tuple[Piece, ...]:
    """Return the pieces of a lesson's text.

    Raises
    ------
    ValueError
        For a fenced block that is of no known kind, or that does not end.
    """
    pieces: list[Piece] = []
    block: list[str] = []
    fence, began = "", 0
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if fence:
            if line.strip() == FENCE:
                pieces.append(_fenced(fence, "\n".join(block), began))
                block, fence = [], ""
            else:
                block.append(line)
        elif line.startswith(FENCE):
            fence, began = line.removeprefix(FENCE).strip() or "nothing", number
        elif line.strip():
            began = began if block else number
            block.append(line)
        elif block:
            pieces.append(_plain(block, began))
            block = []
    if fence:
        raise ValueError(f"line {began}: the block of {fence} does not end with {FENCE}")
    return tuple(pieces)


def _fenced(fence: str, text: str, line: int) -> Piece:
    match fence:
        case "python" | "math":
            return Piece(fence, text, line + 1)
        case _:
            raise ValueError(f"line {line}: a block must be of python or math, got {fence}")


def _plain(block: list[str], line: int) -> Piece:
    marks: tuple[tuple[str, Kind], ...] = (("## ", "section"), ("# ", "title"), ("> ", "quotation"))
    for mark, kind in marks:
        if block[0].startswith(mark):
            return Piece(kind, " ".join(each.removeprefix(mark).strip() for each in block), line)
    return Piece("prose", " ".join(each.strip() for each in block), line)
