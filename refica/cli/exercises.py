"""``refica exercises``: the three exercises of the document, answered on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from refica.cli.console import OK, say
from refica.cli.options import add_command
from refica.exercises import FULL, QUICK, page
from refica.files import prepare_folder, write_text_atomically

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "exercises",
        _run,
        "work through the document's Exercises 1, 2 and 3 on one HTML page: prose, code, what it printed",
        "refica exercises --out exercises.html",
    )
    command.add_argument(
        "--out", default="exercises.html", metavar="FILE", help="page to write (default: %(default)s)"
    )
    command.add_argument(
        "--quick",
        action="store_true",
        help="with less data and fits cut short: a rough page in half a minute",
    )


def _run(options: argparse.Namespace) -> int:
    prepare_folder(Path(options.out).parent)
    write_text_atomically(options.out, page(QUICK if options.quick else FULL, say))
    say(f"wrote {options.out}")
    return OK
