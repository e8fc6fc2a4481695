"""Paths, values and system errors as an error message shows them: on one line that can be read."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

__all__ = ["PathLike", "cut", "printable_path", "reason_of"]

PathLike: TypeAlias = str | os.PathLike[str]

_MOST_CHARACTERS = 40


def printable_path(path: PathLike) -> str:
    """Return a path for a message, escaped where it would break the line or cannot be printed."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def cut(value: Any) -> str:
    """Return the repr of a value, shortened for a message."""
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 4] + "..." + text[0]


def reason_of(error: OSError) -> str:
    """Return what the system says went wrong, without the number and the path."""
    return (error.strerror or str(error)).lower()
