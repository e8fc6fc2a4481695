"""``refica verify``: every formula of the derivation, checked."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

from refica.cli.console import CHECK_FAILED, OK, say
from refica.cli.options import add_command
from refica.files import to_json, write_text_atomically
from refica.testing import faults
from refica.verify import MODELS, as_text, load_decoder, page, to_dict, verify

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "verify",
        _run,
        "check every formula of the derivation, and what refica makes of it, by independent routes",
        "refica verify --html verify.html",
    )
    command.add_argument(
        "--models", type=int, default=MODELS, help="random models for each formula (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    command.add_argument("--decoder", metavar="MODULE:NAME", help="your own decoder, or its class")
    command.add_argument("--fault", metavar="NAME", help="plant a fault into refica, to see where it shows")
    command.add_argument("--list-faults", action="store_true", help="print the faults that can be planted")
    command.add_argument("--html", metavar="FILE", help="write the report as one HTML page")
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def _run(options: argparse.Namespace) -> int:
    if options.list_faults:
        for fault in faults.CATALOGUE.values():
            print(f"{fault.name}\t{fault.place}\t{fault.sentence}")
        return OK
    decoder = load_decoder(options.decoder) if options.decoder else None
    with ExitStack() as planted:
        if options.fault:
            fault = planted.enter_context(faults.plant(options.fault))
            say(f"planted: {fault.sentence} ({fault.place})")
        found = verify(options.models, decoder, options.seed)
    print(to_json(to_dict(found), non_finite="null") if options.json else as_text(found))
    if options.html:
        write_text_atomically(options.html, page(found))
        say(f"wrote {options.html}")
    return OK if found.passed else CHECK_FAILED
