"""Reading a text file, with errors that say why it cannot be read."""

from __future__ import annotations

from pathlib import Path

from refica.files.messages import PathLike, printable_path, reason_of

__all__ = ["DataError", "read_text"]


class DataError(ValueError):
    """A file that was given as input is missing or does not hold what it should; one line says what."""


def read_text(path: PathLike) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark."""
    shown = printable_path(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"cannot read {shown}: no such file; check the path") from None
    except IsADirectoryError:
        raise DataError(f"cannot read {shown}: it is a folder; give a file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {shown}: {reason}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{shown} is UTF-16 text, expected UTF-8; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise DataError(
            f"{shown} is not UTF-8 text: byte {byte:#04x} in line {line}; save it as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{shown} is not text: a NUL character in line {line}")
    return text
