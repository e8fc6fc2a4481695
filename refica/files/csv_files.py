"""CSV files: tables of numbers, read with errors that name the cell."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import itertools
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refica.files.messages import PathLike, cut, printable_path
from refica.files.reading import DataError, read_text
from refica.files.writing import write_text_atomically

__all__ = ["Table", "read_csv", "write_csv"]

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


class _Row(NamedTuple):
    """Stripped cells, and where they are: ``number`` counts lines from 1, as an editor does."""

    number: int
    cells: list[str]


class _Faults(NamedTuple):
    """Of one column: the first cell of each bad kind, as (row number, cell)."""

    text: dict[int, tuple[int, str]]
    missing: dict[int, tuple[int, str]]
    infinite: dict[int, tuple[int, str]]


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
    shown = printable_path(path)
    text = read_text(path)
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
            f"{shown}, row {first.number}, holds both a name ({cut(name)}) and a number ({cut(number)}): "
            "it may be a header or data; give every column a name that is not a number, "
            "or add a row of names above"
        )
    names = tuple(cell or f"column_{i + 1}" for i, cell in enumerate(cells))
    for i, name in enumerate(names):
        if name in names[:i]:
            before = names.index(name) + 1
            raise DataError(f"{shown} has two columns {cut(name)} ({before} and {i + 1}); rename one")
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
            raise DataError(f"columns must be different, got {cut(names[position])} ({position + 1}) twice")
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
    raise DataError(f"{shown} has no column {cut(column)}; {guess}")


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
        column = f"{shown}: column {cut(names[i])} ({i + 1})"
        if i in faults.text:
            row, cell = faults.text[i]
            if delimiter != "," and _DECIMAL_COMMA.fullmatch(cell):
                raise DataError(f"{column} has a decimal comma: row {row} holds {cut(cell)}; use points")
            raise DataError(
                f"{column} is not numeric: row {row} holds {cut(cell)}; {_leave_out(names, good)}"
            )
        if i in faults.missing:
            row, cell = faults.missing[i]
            held = f"holds {cut(cell)}" if cell else "holds nothing"
            raise DataError(f"{column} has a missing cell: row {row} {held}; fill it in or remove the row")
        row, cell = faults.infinite[i]
        raise DataError(f"{column} must be finite: row {row} holds {cut(cell)}; correct it or remove the row")


def _leave_out(names: tuple[str, ...], good: list[int]) -> str:
    if not good:
        return "no column is numeric"
    safe = [names[i] if _PLAIN_NAME.fullmatch(names[i]) else str(i + 1) for i in good]
    more = ",..." if len(safe) > _MOST_NAMES else ""
    return f"leave it out with --columns {','.join(safe[:_MOST_NAMES])}{more}"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(cut, names[:_MOST_NAMES])) + more


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
