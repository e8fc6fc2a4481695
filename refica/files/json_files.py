"""JSON files: written so that every float reads back bit for bit, read with a check of their kind.

Non-finite numbers have no JSON of their own. A model file must not hold any, so `write_json` refuses
them by default and names the place; results, where an error of nan means "none can be given", are
written with ``non_finite="null"`` and read back as None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any, Literal, TypeAlias

import numpy as np

from refica.files.messages import PathLike, cut, printable_path
from refica.files.reading import DataError, read_text
from refica.files.writing import write_text_atomically

__all__ = ["read_json", "to_json", "write_json"]

NonFinite: TypeAlias = Literal["reject", "null"]


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
    text = read_text(path)
    shown = printable_path(path)
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
        got = "no schema" if found is None else f"schema {cut(found)}"
        raise DataError(f"{shown} must be of schema {schema!r}, got {got}; is it the right file?")
    if isinstance(version, bool) or not isinstance(version, int):
        raise DataError(f"{shown} must have an integer 'version', got {cut(version)}")
    if version not in versions:
        known = ", ".join(map(str, sorted(versions)))
        advice = "it was made by a newer refica: upgrade" if version > max(versions) else "write it anew"
        raise DataError(f"{shown} has version {version} of schema {schema!r}, expected {known}; {advice}")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"the number {cut(literal)} is not finite")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is repeated")
    return data
