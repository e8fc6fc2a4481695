"""``refica simulate``: a sample of a named example."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from refica.cli.console import OK, say
from refica.cli.options import NAMES, add_command
from refica.examples import DEFAULT, example
from refica.files import write_csv

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "simulate",
        _run,
        "write a sample of a named example as CSV",
        "refica simulate --example relu --size 500 > relu.csv",
    )
    command.add_argument(
        "--example",
        metavar="NAME",
        default=DEFAULT,
        help=f"{NAMES} (default: %(default)s)",
    )
    command.add_argument("--size", type=int, help="observations (default: the example's)")
    command.add_argument("--seed", type=int, help="(default: the example's)")
    command.add_argument("--latents", action="store_true", help="add the true latents as columns z1, ...")
    command.add_argument("--out", metavar="FILE", help="file to write (default: stdout)")


def _run(options: argparse.Namespace) -> int:
    chosen = example(options.example)
    z, x = chosen.simulate(options.size, options.seed)
    columns = [f"x{j + 1}" for j in range(x.shape[1])]
    if options.latents:
        x = np.hstack([x, z])
        columns += [f"z{j + 1}" for j in range(z.shape[1])]
    write_csv(options.out or sys.stdout, x, columns)
    say(f"{len(x)} observations of {chosen.name}: {chosen.sentence}")
    return OK
