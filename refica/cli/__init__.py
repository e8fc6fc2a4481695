"""The command line: parse, call, print. One module for each command.

Results go to stdout, messages and progress to stderr. Exit codes: 0 ok, 1 a check failed, 2 usage,
3 bad data, 4 something has not converged.
"""

from refica.cli.console import BAD_DATA, CHECK_FAILED, NOT_CONVERGED, OK, USAGE
from refica.cli.entry import main

__all__ = ["BAD_DATA", "CHECK_FAILED", "NOT_CONVERGED", "OK", "USAGE", "main"]
