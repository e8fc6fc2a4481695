"""The entry point: a parser of all commands, and one line on stderr for whatever goes wrong."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

import refica
from refica.cli import compare, conform, evaluate, exercises, fit, simulate, verify
from refica.cli.console import BAD_DATA, NOT_CONVERGED, OK, USAGE, say, say_warning
from refica.files import DataError, OutputError

__all__ = ["main"]

COMMANDS = (compare, simulate, fit, evaluate, verify, conform, exercises)
"""In the order of the help text; each module has ``add(commands)``, which adds its parser."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        None for those of the process.
    """
    warnings.showwarning = say_warning
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (DataError, OutputError) as error:
        say(f"error: {error}")
        return BAD_DATA
    except (TypeError, ValueError) as error:
        say(f"error: {error}")
        return USAGE
    except KeyboardInterrupt:
        say("interrupted")
        return NOT_CONVERGED
    except BrokenPipeError:  # the reader of our stdout has gone, as `refica simulate | head` does
        sys.stderr.close()
        return OK
    except (MemoryError, OSError) as error:
        say(f"error: {str(error) or 'out of memory'}")
        return BAD_DATA


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refica",
        description="Exact likelihoods of nonlinear ICA models: simulate, fit, evaluate, compare, verify.",
        epilog="exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad data, 4 not converged",
    )
    parser.add_argument("--version", action="version", version=f"refica {refica.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
