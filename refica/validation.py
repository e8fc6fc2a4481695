"""Checks at the public border: each error names what, expected, got and what to do.

Inside the package arrays are trusted; a function that a user can call sends its arguments through
these checks once. Every check returns the value in the one form the inside works with.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Array",
    "check_array",
    "check_choice",
    "check_count",
    "check_generator",
    "check_number",
    "check_seed",
    "shape_words",
]

Array: TypeAlias = NDArray[Any]
"""A float64 array (complex128 where the complex-step checks call an internal formula)."""


def check_array(
    name: str, value: ArrayLike, shape: Sequence[int | str], *, minus_infinity: bool = False
) -> Array:
    """Return ``value`` as a finite C-contiguous float64 array of the given shape.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : array_like
        Lists, float32, integers, read-only and Fortran-ordered arrays are accepted and never
        written to.
    shape : sequence of int or str
        Expected lengths; a string such as ``"N"`` names a free length of at least 1.
    minus_infinity : bool
        Whether -inf is accepted too (the log of a weight 0).

    Raises
    ------
    TypeError
        For complex, object, string or masked data.
    ValueError
        For a wrong shape, an empty array, NaN or infinity.
    """
    array = _real_array(name, value)
    _check_shape(name, array, shape)
    bad = ~(np.isfinite(array) | (minus_infinity & (array == -np.inf)))
    if bad.any():
        where = np.argwhere(bad)[0].tolist()
        more = int(bad.sum()) - 1
        raise ValueError(
            f"{name} must be finite, got {array[tuple(where)]} at index {where}"
            + (f" and {more} more like it" if more else "")
            + "; drop or impute such values first"
        )
    return array


def _real_array(name: str, value: ArrayLike) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise TypeError(
                f"{name} must not be masked, got {int(np.sum(np.ma.getmaskarray(value)))} masked values; "
                "drop or impute them first"
            )
        value = value.data
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array of numbers, got nested rows: {error}") from None
    if array.dtype.kind not in "fiub":
        kind = {"c": "complex numbers", "O": "objects", "U": "text", "S": "bytes"}.get(
            array.dtype.kind, str(array.dtype)
        )
        raise TypeError(f"{name} must be an array of real numbers, got {kind} (dtype {array.dtype})")
    with np.errstate(over="ignore"):  # a longer float may become infinite: `check_array` says so
        return np.ascontiguousarray(array, dtype=np.float64).reshape(array.shape)


def _check_shape(name: str, array: Array, shape: Sequence[int | str]) -> None:
    fits = array.ndim == len(shape) and all(
        got > 0 if isinstance(want, str) else got == want
        for want, got in zip(shape, array.shape, strict=True)
    )
    if fits:
        return
    hint = ""
    if array.size == 0:
        hint = "; it is empty"
    elif array.ndim == 1 and len(shape) == 2 and isinstance(shape[1], int) and array.size % shape[1] == 0:
        hint = f"; use {name}.reshape(-1, {shape[1]}) if its values are rows of {shape[1]}"
    raise ValueError(f"{name} must have shape {shape_words(shape)}, got {array.shape}{hint}")


def shape_words(shape: Sequence[int | str]) -> str:
    """Return a shape as it is written in messages: ``(N, 2)``, ``(p,)``."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def check_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    minimum: float = -math.inf,
    below: float = math.inf,
    maximum: float = math.inf,
) -> float:
    """Return ``value`` as a finite float with above < value < below, minimum <= value <= maximum.

    Raises
    ------
    TypeError
        If it is not a real number (booleans, strings and arrays are not).
    ValueError
        If it is not finite or out of range.
    """
    several = isinstance(value, (str, bytes, list, tuple)) or getattr(value, "ndim", 0) != 0
    if isinstance(value, (bool, np.bool_)) or several or np.iscomplexobj(value):
        raise TypeError(f"{name} must be a real number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {shown(value)}") from None
    bounds = {" > ": above, " >= ": minimum, " < ": below, " <= ": maximum}
    if not (math.isfinite(number) and above < number < below and minimum <= number <= maximum):
        words = " and".join(f"{sign}{limit:g}" for sign, limit in bounds.items() if math.isfinite(limit))
        raise ValueError(f"{name} must be a finite number{words}, got {shown(value)}")
    return number


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an int of at least ``minimum``; numpy integers are accepted, booleans not.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is below ``minimum``.
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer >= {minimum}, got {shown(value)}")
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer >= {minimum}, got {shown(value)}") from None
    if count < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {count}")
    return count


def check_choice(name: str, value: Any, known: Collection[str]) -> str:
    """Return ``value`` if it is one of the known names; the error suggests the nearest one.

    Raises
    ------
    ValueError
        If it is not one of them.
    """
    if isinstance(value, str) and value in known:
        return value
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(sorted(known))}, got {shown(value)}{guess}")


def check_seed(name: str, value: Any) -> int:
    """Return ``value`` as an int seed >= 0 (booleans are rejected).

    Raises
    ------
    TypeError, ValueError
        As `check_count`.
    """
    return check_count(name, value, minimum=0)


def check_generator(rng: Any) -> np.random.Generator:
    """Return the generator that ``rng`` is or, if it is an int, seeds.

    No global state and no entropy from the machine: a run can always be repeated.

    Raises
    ------
    TypeError
        If it is neither an int nor a ``numpy.random.Generator``.
    ValueError
        If the seed is negative.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None or isinstance(rng, (bool, np.bool_, np.random.RandomState)):
        raise TypeError(f"rng must be an int seed or a numpy.random.Generator, got {shown(rng)}")
    return np.random.default_rng(check_seed("rng", rng))


def shown(value: Any) -> str:
    """Return ``value`` for a message: its repr on one line, shortened to 80 characters."""
    words = " ".join(repr(value).split())
    return words if len(words) <= 80 else f"{words[:77]}..."
