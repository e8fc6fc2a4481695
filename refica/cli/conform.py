"""``refica conform``: is another implementation of the model right, and if not, what did it forget?"""

from __future__ import annotations

import argparse
from typing import Any

from refica.cli.console import CHECK_FAILED, OK, say
from refica.cli.options import add_command
from refica.files import to_json
from refica.testing import conformance
from refica.testing.conformance.implementations import TIMEOUT

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "conform",
        _run,
        "judge another implementation of the model by cases with known answers, and diagnose its slips",
        "refica conform --command 'Rscript answer.R' --level log-joint",
    )
    ways = command.add_mutually_exclusive_group(required=True)
    ways.add_argument("--adapter", metavar="MODULE:NAME", help="Python functions, one for each level")
    ways.add_argument(
        "--command", metavar="WORDS", dest="words", help="a program: a case on stdin, its answer on stdout"
    )
    ways.add_argument(
        "--answers",
        metavar="FILE.json",
        help='a file {"schema": "refica-conformance-answers", "version": 1, "answers": {id: answer, ...}}',
    )
    ways.add_argument("--export", metavar="FILE.json", help="write the cases, without answers, and stop")
    command.add_argument(
        "--level", action="append", metavar="NAME", help=f"of {', '.join(conformance.LEVELS)}; all by default"
    )
    command.add_argument(
        "--timeout", type=float, default=TIMEOUT, help="seconds for a case (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def _run(options: argparse.Namespace) -> int:
    wanted = conformance.cases(options.level)
    if options.export:
        conformance.export(options.export, wanted)
        say(f"wrote {len(wanted)} cases to {options.export}")
        return OK
    report = conformance.run(_implementation(options), wanted, lambda level: say(f"{level} ..."))
    found = conformance.to_dict(report)
    print(to_json(found, non_finite="null") if options.json else conformance.as_text(report))
    return OK if report.passed else CHECK_FAILED


def _implementation(options: argparse.Namespace) -> Any:
    if options.adapter:
        return conformance.load_adapter(options.adapter)
    if options.words is not None:
        return conformance.Command(options.words, options.timeout)
    return conformance.AnswersFile(options.answers)
