"""What the commands say to people: words on stderr, exit codes to the shell."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["BAD_DATA", "CHECK_FAILED", "NOT_CONVERGED", "OK", "USAGE", "say", "say_warning"]

OK, CHECK_FAILED, USAGE, BAD_DATA, NOT_CONVERGED = range(5)


def say(words: str) -> None:
    """Print a line of words on stderr; stdout is for results."""
    print(f"refica: {words}", file=sys.stderr, flush=True)


def say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line; takes the place of `warnings.showwarning`."""
    say(f"warning: {message}")
