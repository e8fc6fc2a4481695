"""Files in and out: JSON written whole or not at all, CSV read with errors that name the cell.

This room knows no model: plain dicts, lists and arrays come in and go out.

Writing never leaves half a file. The text goes to a temporary file in the same folder, is flushed to
the disk, and takes the final name in one step; a crash at any point leaves the old file as it was.

Non-finite numbers have no JSON of their own. A model file must not hold any, so `write_json` refuses
them by default and names the place; results, where an error of nan means "none can be given", are
written with ``non_finite="null"`` and read back as None.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import errno
import io
import itertools
import json
import math
import os
import re
import secrets
import stat
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DataError",
    "OutputError",
    "Table",
    "prepare_folder",
    "read_csv",
    "read_json",
    "to_json",
    "write_csv",
    "write_json",
    "write_text_atomically",
]

PathLike: TypeAlias = str | os.PathLike[str]
NonFinite: TypeAlias = Literal["reject", "null"]


class DataError(ValueError):
    """A file that was given as input is missing or does not hold what it should; one line says what."""


class OutputError(OSError):
    """A file or folder cannot be written; one line says which, why and what to do."""


class Table(NamedTuple):
    """The numbers of a CSV file.

    Attributes
    ----------
    values : (N, n) float64 array
        Finite numbers, one row per line of the file, in the order in which the columns were asked for.
    columns : tuple of n str
        Their names: from the header, or x1, x2, ... (by position in the file) where there is none.
    """

    values: NDArray[np.float64]
    columns: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------

_ADVICE = {
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EEXIST: "a file of that name is in the way; choose another name",
    errno.ENOTDIR: "a part of that path is a file; choose another name",
    errno.EISDIR: "a folder of that name is in the way; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def prepare_folder(path: PathLike) -> Path:
    """Create the folder ``path`` with its parents, and make sure that files can be written to it.

    Meant to be called before a long computation, so that it cannot be lost at its end.

    Parameters
    ----------
    path : path
        A folder; it may exist already.

    Returns
    -------
    pathlib.Path
        The same folder.

    Raises
    ------
    OutputError
        If it cannot be created or written to.
    """
    folder = Path(path)
    with _output_errors(folder, "write to the folder"):
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell (read-only mounts, quotas, being root): only trying does.
        probe = _temporary_name(folder)
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)
    return folder


def write_text_atomically(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8 so that ``path`` holds either all of it or what it held before.

    The parent folder is created if it is missing. An existing file keeps its permissions, and a
    symbolic link its target.

    Parameters
    ----------
    path : path
        The file; it is replaced if it exists.
    text : str
        Its content. Line ends are written as they are.

    Raises
    ------
    OutputError
        If the file or its folder cannot be written, or ``path`` is a device or a pipe (which cannot be
        replaced as a whole).
    """
    content = text.encode("utf-8")
    with _output_errors(path, "write"):
        target = Path(os.path.realpath(path))
        mode = _mode_of_existing(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(target.parent)
        try:
            # "x" gives the permissions of any new file; the tempfile module would make it private.
            with open(temporary, "xb") as stream:
                stream.write(content)
                stream.flush()
                # Without this the new name can reach the disk before the content does.
                os.fsync(stream.fileno())
            if mode is not None:
                temporary.chmod(mode)
            os.replace(temporary, target)
        finally:  # after a success there is nothing left to remove
            temporary.unlink(missing_ok=True)


def write_json(path: PathLike, data: Any, *, non_finite: NonFinite = "reject") -> None:
    """Write ``data`` as JSON, atomically; every finite float reads back bit for bit.

    Parameters
    ----------
    path : path
        The file; it is replaced if it exists, and its folder created if it does not.
    data : dict, list, tuple, str, int, float, bool, None, or numpy scalars and arrays of them
        Tuples and arrays become lists. By convention a dict with ``"schema"`` and ``"version"``,
        which `read_json` checks.
    non_finite : {"reject", "null"}
        What to do with nan and infinities: refuse them, or write null.

    Raises
    ------
    TypeError
        For a value or a key that JSON cannot hold; the message names its place.
    ValueError
        For a number that is not finite, unless ``non_finite="null"``.
    OutputError
        As `write_text_atomically`.
    """
    write_text_atomically(path, to_json(data, non_finite=non_finite))


def to_json(data: Any, *, non_finite: NonFinite = "reject") -> str:
    """Return the text that `write_json` writes.

    Parameters
    ----------
    data : dict, list, tuple, str, int, float, bool, None, or numpy scalars and arrays of them
    non_finite : {"reject", "null"}

    Raises
    ------
    TypeError, ValueError
        As `write_json`.

    Examples
    --------
    >>> print(to_json({"schema": "refica.example", "version": 1, "theta": np.array([0.1, 2.0])}), end="")
    {
      "schema": "refica.example",
      "version": 1,
      "theta": [0.1, 2.0]
    }
    """
    if non_finite not in ("reject", "null"):
        raise ValueError(f"non_finite must be 'reject' or 'null', got {non_finite!r}")
    plain = _plain(data, "", non_finite)
    if isinstance(plain, dict):
        # One line per top-level entry: readable and diffable, without a line per parameter.
        entries = (f"  {_dumps(key)}: {_dumps(value)}" for key, value in plain.items())
        return "{\n" + ",\n".join(entries) + "\n}\n" if plain else "{}\n"
    return _dumps(plain) + "\n"


def write_csv(
    destination: PathLike | TextIO, values: ArrayLike, columns: Sequence[str] | None = None
) -> None:
    r"""Write the rows of ``values`` as CSV: comma, ``\n`` line ends, floats that read back bit for bit.

    Parameters
    ----------
    destination : path or text stream
        A path is written atomically; a stream (such as standard output) is written to and left open.
    values : (N, n) array_like of real numbers
        nan and infinities are written as ``nan``, ``inf``, ``-inf``; `read_csv` refuses those.
    columns : sequence of n str, optional
        The header; without it there is none.

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        If they are not a table, or the column names are not n different ones.
    OutputError
        As `write_text_atomically`, for a path.
    """
    table = np.asarray(values)
    if table.dtype.kind not in "fiub" or isinstance(values, np.ma.MaskedArray):
        kind = "a masked array" if isinstance(values, np.ma.MaskedArray) else f"dtype {table.dtype}"
        raise TypeError(f"values must be an array of real numbers, got {kind}")
    if table.ndim != 2:
        raise ValueError(f"values must have shape (N, n), got {table.shape}")
    names = None if columns is None else [str(name) for name in columns]
    if names is not None and (len(names) != table.shape[1] or len(set(names)) != len(names)):
        raise ValueError(f"columns must be {table.shape[1]} different names, got {names}")
    if isinstance(destination, (str, os.PathLike)):
        text = io.StringIO()
        _write_rows(text, table, names)
        write_text_atomically(destination, text.getvalue())
    else:
        _write_rows(destination, table, names)


def _write_rows(stream: TextIO, table: NDArray[Any], names: list[str] | None) -> None:
    writer = csv.writer(stream, lineterminator="\n")  # it writes floats with repr
    if names is not None:
        # Quotes around names that could mislead a reader about the delimiter.
        if all(_PLAIN_NAME.fullmatch(name) for name in names):
            writer.writerow(names)
        else:
            csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(names)
    # Row by row, so that the Python floats of a large table never exist all at once.
    writer.writerows(row.tolist() for row in table)


def _plain(value: Any, place: str, non_finite: NonFinite) -> Any:
    """Return ``value`` made of the types that the json module writes as they are."""
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "fiubU":
            raise TypeError(f"{_named(place)} cannot be written as JSON: an array of dtype {value.dtype}")
        value = value.tolist()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if non_finite == "null":
            return None
        raise ValueError(f"{_named(place)} must be finite to be written, got {value}")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{_named(place)} cannot be written as JSON: the key {key!r} is not a str")
        return {
            key: _plain(item, f"{place}.{key}" if place else key, non_finite) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{i}]", non_finite) for i, item in enumerate(value)]
    raise TypeError(f"{_named(place)} cannot be written as JSON: {type(value).__name__}")


def _named(place: str) -> str:
    return place or "the data"


def _dumps(plain: Any) -> str:
    return json.dumps(plain, allow_nan=False)  # pure ASCII, so that no encoding can spoil it


def _temporary_name(folder: Path) -> Path:
    # Not made from the final name, which may be as long as names can be.
    return folder / f".{secrets.token_hex(8)}.tmp"


def _mode_of_existing(path: PathLike) -> int | None:
    """Return the permission bits of the file at ``path``, or None if there is none; see that it may go."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(mode):
        # To replace /dev/null by a file of that name is possible for root, and a disaster.
        raise OSError(errno.EINVAL, "Not a regular file")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "The existing file is read-only")
    return stat.S_IMODE(mode)


@contextlib.contextmanager
def _output_errors(path: PathLike, verb: str) -> Iterator[None]:
    """Turn an OSError inside the block into one line: what, where, why, what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "choose another place")
        raise OutputError(f"cannot {verb} {_shown(path)}: {_reason(error)}; {advice}") from error


# ---------------------------------------------------------------------------------------------------
# Reading JSON
# ---------------------------------------------------------------------------------------------------


def read_json(path: PathLike, schema: str, versions: Collection[int]) -> dict[str, Any]:
    """Return the object in a JSON file, after checking that it is of a kind that can be read.

    Parameters
    ----------
    path : path
        A file written by `write_json`.
    schema : str
        What its top-level ``"schema"`` must be.
    versions : collection of int
        The values of its top-level integer ``"version"`` that the caller understands.

    Returns
    -------
    dict
        The whole object, with ``"schema"`` and ``"version"``.

    Raises
    ------
    DataError
        If the file is missing or unreadable, is not JSON (line and column are named), repeats a key,
        holds a number that is not finite, is of another schema, or of a version not in ``versions``.
    """
    text = _read_text(path)
    shown = _shown(path)
    try:
        data = json.loads(
            text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_repeats
        )
    except json.JSONDecodeError as error:
        raise DataError(
            f"{shown} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "is it the right file, and whole?"
        ) from None
    except RecursionError:
        raise DataError(f"{shown} cannot be read: it is nested too deeply") from None
    except ValueError as error:  # from the two hooks, or an integer of absurd length
        raise DataError(f"{shown} cannot be read: {error}") from None
    _check_kind(shown, data, schema, versions)
    return dict(data)


def _check_kind(shown: str, data: Any, schema: str, versions: Collection[int]) -> None:
    if not isinstance(data, dict):
        raise DataError(f"{shown} must hold a JSON object of schema {schema!r}, got a {type(data).__name__}")
    found, version = data.get("schema"), data.get("version")
    if found != schema:
        got = "no schema" if found is None else f"schema {_cut(found)}"
        raise DataError(f"{shown} must be of schema {schema!r}, got {got}; is it the right file?")
    if isinstance(version, bool) or not isinstance(version, int):
        raise DataError(f"{shown} must have an integer 'version', got {_cut(version)}")
    if version not in versions:
        known = ", ".join(map(str, sorted(versions)))
        advice = "it was made by a newer refica: upgrade" if version > max(versions) else "write it anew"
        raise DataError(f"{shown} has version {version} of schema {schema!r}, expected {known}; {advice}")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"the number {_cut(literal)} is not finite")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is repeated")
    return data


# ---------------------------------------------------------------------------------------------------
# Reading CSV
# ---------------------------------------------------------------------------------------------------

# Ways of writing "no value"; nan is among the numbers that are not finite.
_MISSING = frozenset({"", "na", "n/a", "null", "none", "?", "-"})
_DELIMITERS = (",", ";", "\t")
# Enough to tell one delimiter from another.
_SNIFFED_ROWS = 20
_SNIFFED_CHARACTERS = 1 << 16
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
# Names that need no quotes in a shell, and no comma, which separates them there.
_PLAIN_NAME = re.compile(r"[\w.+][\w.+-]*")
# A message is one line that can be read.
_MOST_NAMES = 20
_MOST_CHARACTERS = 40


class _Row(NamedTuple):
    """Stripped cells, and where they are: ``number`` counts lines from 1, as an editor does."""

    number: int
    cells: list[str]


class _Faults(NamedTuple):
    """Of one column: the first cell of each bad kind, as (row number, cell)."""

    text: dict[int, tuple[int, str]]
    missing: dict[int, tuple[int, str]]
    infinite: dict[int, tuple[int, str]]


def read_csv(path: PathLike, columns: Sequence[str | int] | None = None) -> Table:
    """Read a table of numbers.

    Commas separate cells; semicolons or tabs are recognised. A first row of names is the header; a
    first row of numbers is data, whose columns are then called x1, x2, ...; a first row of both is
    refused, since either guess could lose an observation. A byte-order mark, quoted cells, blanks
    around numbers and blank lines before and after the table are accepted.

    Parameters
    ----------
    path : path
        A file in UTF-8.
    columns : sequence of str or int, optional
        The columns wanted, in the order wanted: names, or numbers counted from 1 (as int, or as str
        where no column has that name). Default: all. Columns that are not wanted may hold anything.

    Returns
    -------
    Table
        ``values`` (N, n) and ``columns``.

    Raises
    ------
    DataError
        One line, with row (counted from 1, the header included) and column, for: a missing or
        unreadable file, text that is not UTF-8 or not CSV, no rows, a header alone, a repeated column
        name, a row with another number of cells, an unknown column (with the nearest known name), and
        in the wanted columns for a cell that is text, missing, nan or infinite.
    """
    shown = _shown(path)
    text = _read_text(path)
    delimiter = _delimiter(text, shown)
    rows = _table_rows(text, delimiter, shown)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{shown} is empty; expected rows of numbers, with or without a header")
    names = _header(first, shown)
    data_rows = rows if names else itertools.chain([first], rows)
    names = names or tuple(f"x{i + 1}" for i in range(len(first.cells)))
    chosen = _choose(names, columns, shown)
    values, faults = _numbers(data_rows, first, shown)
    if not len(values):
        raise DataError(f"{shown} holds a header and no data; expected rows of numbers below it")
    _refuse_faults(faults, names, chosen, delimiter, shown)
    return Table(np.ascontiguousarray(values[:, chosen]), tuple(names[i] for i in chosen))


def _delimiter(text: str, shown: str) -> str:
    """Return the delimiter that makes most cells of the first rows numbers; the comma if in doubt.

    Only a delimiter found in the first row counts. A decimal comma counts as part of a number here, so
    that a file of such numbers is split in the right places, and the message about them is right.
    """

    def numeric_share(delimiter: str) -> float:
        rows: list[list[str]] = []
        # A malformed quote, or one cut off, ends the look-ahead; it is reported when the table is read.
        with contextlib.suppress(DataError):
            for row in _records(text[:_SNIFFED_CHARACTERS], delimiter, shown):
                if row.cells:
                    rows.append(row.cells)
                if len(rows) > _SNIFFED_ROWS:
                    break
        if not rows or len(rows[0]) < 2:
            return -1.0
        cells = [cell for row in rows[1:] or rows for cell in row]
        hits = [not math.isnan(_number(cell)) or bool(_DECIMAL_COMMA.fullmatch(cell)) for cell in cells]
        return sum(hits) / len(hits)

    return max(_DELIMITERS, key=numeric_share)  # the first of equals


def _records(text: str, delimiter: str, shown: str) -> Iterator[_Row]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    while True:
        number = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{shown}, row {number}, is not CSV: {error}; check its quotes") from None
        yield _Row(number, [] if cells == [""] else cells)


def _table_rows(text: str, delimiter: str, shown: str) -> Iterator[_Row]:
    """Yield the rows without the blank ones before and after them; refuse one in between."""
    started = False
    blank: int | None = None
    for row in _records(text, delimiter, shown):
        if not row.cells:
            blank = (blank or row.number) if started else None
        elif blank is not None:
            # In a table of one column it would be a missing cell.
            raise DataError(f"{shown}, row {blank}, is blank, with data below it; remove it")
        else:
            started = True
            yield row


def _header(first: _Row, shown: str) -> tuple[str, ...]:
    """Return the names in the first row, or () if it holds data."""
    cells = first.cells
    kinds = [_kind(cell) for cell in cells]
    if "text" not in kinds:
        return ()
    if "number" in kinds:
        name, number = cells[kinds.index("text")], cells[kinds.index("number")]
        raise DataError(
            f"{shown}, row {first.number}, holds both a name ({_cut(name)}) and a number ({_cut(number)}): "
            "it may be a header or data; give every column a name that is not a number, "
            "or add a row of names above"
        )
    names = tuple(cell or f"column_{i + 1}" for i, cell in enumerate(cells))
    for i, name in enumerate(names):
        if name in names[:i]:
            before = names.index(name) + 1
            raise DataError(f"{shown} has two columns {_cut(name)} ({before} and {i + 1}); rename one")
    return names


def _choose(names: tuple[str, ...], columns: Sequence[str | int] | None, shown: str) -> list[int]:
    """Return the positions of the wanted columns."""
    if columns is None:
        return list(range(len(names)))
    if isinstance(columns, str):
        raise TypeError(f"columns must be a sequence of names or numbers, got the single str {columns!r}")
    chosen = [_position(names, column, shown) for column in columns]
    if not chosen:
        raise DataError(f"columns must name at least one column of {shown}, got none")
    for i, position in enumerate(chosen):
        if position in chosen[:i]:
            raise DataError(f"columns must be different, got {_cut(names[position])} ({position + 1}) twice")
    return chosen


def _position(names: tuple[str, ...], column: str | int, shown: str) -> int:
    name = str(column).strip()
    if isinstance(column, str) and name in names:
        return names.index(name)
    # "--columns 1,3" arrives as text.
    if not isinstance(column, bool) and re.fullmatch(r"-?[0-9]{1,9}", name):
        if 1 <= int(name) <= len(names):
            return int(name) - 1
        raise DataError(f"{shown} has columns 1 to {len(names)}, got {name}; they are counted from 1")
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}?" if near else f"known: {_listed(names)}"
    raise DataError(f"{shown} has no column {_cut(column)}; {guess}")


def _numbers(rows: Iterable[_Row], first: _Row, shown: str) -> tuple[NDArray[np.float64], _Faults]:
    """Return all cells as (N, columns) numbers, nan where they are none, with where that is so."""
    width = len(first.cells)
    numbers = array("d")  # 8 bytes a cell: the text of a large file must not stay around as objects
    faults = _Faults({}, {}, {})
    for row in rows:
        if len(row.cells) != width:
            raise DataError(
                f"{shown}, row {row.number}, must have as many cells as row {first.number}, {width}, "
                f"got {len(row.cells)}; complete or remove it"
            )
        values = [_number(cell) for cell in row.cells]
        numbers.extend(values)
        if not all(map(math.isfinite, values)):
            _note_faults(faults, row)
    return np.frombuffer(numbers, dtype=np.float64).reshape(-1, width), faults


def _note_faults(faults: _Faults, row: _Row) -> None:
    where = {"text": faults.text, "missing": faults.missing, "infinite": faults.infinite}
    for i, cell in enumerate(row.cells):
        kind = _kind(cell)
        if kind in where:
            where[kind].setdefault(i, (row.number, cell))


def _refuse_faults(
    faults: _Faults, names: tuple[str, ...], chosen: list[int], delimiter: str, shown: str
) -> None:
    """Raise for the first wanted column that holds anything but finite numbers."""
    bad = faults.text.keys() | faults.missing.keys() | faults.infinite.keys()
    good = [i for i in chosen if i not in bad]
    for i in chosen:
        if i not in bad:
            continue
        column = f"{shown}: column {_cut(names[i])} ({i + 1})"
        if i in faults.text:
            row, cell = faults.text[i]
            if delimiter != "," and _DECIMAL_COMMA.fullmatch(cell):
                raise DataError(f"{column} has a decimal comma: row {row} holds {_cut(cell)}; use points")
            raise DataError(
                f"{column} is not numeric: row {row} holds {_cut(cell)}; {_leave_out(names, good)}"
            )
        if i in faults.missing:
            row, cell = faults.missing[i]
            held = f"holds {_cut(cell)}" if cell else "holds nothing"
            raise DataError(f"{column} has a missing cell: row {row} {held}; fill it in or remove the row")
        row, cell = faults.infinite[i]
        raise DataError(
            f"{column} must be finite: row {row} holds {_cut(cell)}; correct it or remove the row"
        )


def _leave_out(names: tuple[str, ...], good: list[int]) -> str:
    if not good:
        return "no column is numeric"
    safe = [names[i] if _PLAIN_NAME.fullmatch(names[i]) else str(i + 1) for i in good]
    more = ",..." if len(safe) > _MOST_NAMES else ""
    return f"leave it out with --columns {','.join(safe[:_MOST_NAMES])}{more}"


def _number(cell: str) -> float:
    """Return the number in a cell, nan if it holds none; 1_000 is a number to Python only."""
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _kind(cell: str) -> Literal["number", "missing", "infinite", "text"]:
    """Say what a cell holds."""
    if cell.lower() in _MISSING:
        return "missing"
    if math.isfinite(_number(cell)):
        return "number"
    try:
        float(cell)
    except ValueError:
        return "text"
    return "text" if "_" in cell else "infinite"


# ---------------------------------------------------------------------------------------------------
# Shared
# ---------------------------------------------------------------------------------------------------


def _read_text(path: PathLike) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark."""
    shown = _shown(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"cannot read {shown}: no such file; check the path") from None
    except IsADirectoryError:
        raise DataError(f"cannot read {shown}: it is a folder; give a file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = _reason(error) if isinstance(error, OSError) else str(error)
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


def _shown(path: PathLike) -> str:
    """Return a path for a message, escaped where it would break the line or cannot be printed."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def _cut(value: Any) -> str:
    """Return the repr of a value, shortened for a message."""
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 4] + "..." + text[0]


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(_cut, names[:_MOST_NAMES])) + more


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
