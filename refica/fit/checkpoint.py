"""Checkpoints: the state of a fit as a JSON file that is whole at any moment and reads back bit for bit.

A state is a NamedTuple of numbers, strings, arrays, models and other NamedTuples. It is written field by
field and read back by the types that its class declares.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from refica.files import DataError, prepare_folder, read_json, write_json
from refica.files.messages import PathLike, cut, printable_path
from refica.fit.watch import Watch
from refica.model import NonlinearICA
from refica.quadrature import FixedNodes
from refica.validation import Array, shown

__all__ = ["Keeper", "decode", "digest", "encode", "name_of"]

SCHEMA = "refica-checkpoint"
VERSION = 3

LONGEST_NAME = 200
"""Characters of a name beyond which it ends in a fingerprint."""

SECONDS_BETWEEN = 1.0
"""Least time between two checkpoints: a file that is flushed to the disk takes milliseconds."""


class Keeper:
    """Writes the state of a fit to a file and reads it back, for one fit only.

    Parameters
    ----------
    identity : dict
        What the fit is of: names to plain values. A file of another fit is refused.
    watch : Watch
        Whose seconds are kept.
    checkpoint : path, optional
        Where to write; None: nowhere.
    resume : path, optional
        Where to read from; None: begin anew.

    Raises
    ------
    OutputError
        If the folder of ``checkpoint`` cannot be written to.
    """

    def __init__(
        self,
        identity: Mapping[str, Any],
        watch: Watch,
        checkpoint: PathLike | None = None,
        resume: PathLike | None = None,
    ) -> None:
        self.path = None if checkpoint is None else Path(checkpoint)
        if self.path is not None:
            prepare_folder(self.path.parent)
        self._identity = dict(identity)
        self._watch = watch
        self._resume = resume
        self._written = -math.inf

    def restore(self, first: Any, rng: np.random.Generator, start: NonlinearICA) -> Any:
        """Return the state to go on from, and set ``rng`` to what it was then: ``first`` if there is none.

        Raises
        ------
        DataError
            If the file cannot be read, is no checkpoint, or is one of another fit.
        """
        if self._resume is None:
            return first
        shown_path = printable_path(self._resume)
        content = read_json(self._resume, SCHEMA, [VERSION])
        try:
            self._compare(content["fit"], shown_path)
            state = decode(type(first), content["state"], start)
            rng.bit_generator.state = _generator_state(content["rng"])
            self._watch.resume(float(content["seconds"]))
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{shown_path} is no complete checkpoint: {error!r}") from None
        return state

    def keep(self, state: Any, generator_state: Mapping[str, Any], *, now: bool = False) -> None:
        """Write the state unless the last was written a moment ago; in any case if ``now``."""
        if self.path is None or not (now or time.monotonic() - self._written >= SECONDS_BETWEEN):
            return
        content = {
            "schema": SCHEMA,
            "version": VERSION,
            "fit": self._identity,
            "seconds": self._watch.seconds(),
            "rng": dict(generator_state),
            "state": encode(state),
        }
        write_json(self.path, content)
        self._written = time.monotonic()

    def words(self) -> str:
        """Say where the state is and how to go on from it."""
        if self.path is None:
            return "no checkpoint was asked for; give checkpoint= to be able to go on"
        shown_path = printable_path(self.path)
        return f"the state after the last round is in {shown_path}; resume={shown_path!r} goes on from it"

    def _compare(self, found: Mapping[str, Any], shown_path: str) -> None:
        names = [*self._identity, *(set(found) - set(self._identity))]
        other = [name for name in names if found.get(name) != self._identity.get(name)]
        if other:
            there, here = (cut(values.get(other[0])) for values in (found, self._identity))
            raise DataError(
                f"{shown_path} is the checkpoint of another fit, with other {', '.join(other)} ({other[0]} "
                f"{there} there, {here} here); resume with the arguments that it was begun with"
            )


def digest(*arrays: Array) -> str:
    """Return a fingerprint of arrays: equal for the same shapes and bits only."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape}{array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def name_of(value: Any) -> str:
    """Return the repr of a decoder, an integrator or a generator's state, the same in every process: without
    addresses, arrays with all their digits, and shortened by a fingerprint where it is long."""
    if isinstance(value, FixedNodes):
        return f"{value} {digest(value.z, value.log_weight)}"
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        words = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    if len(words) <= LONGEST_NAME:
        return words
    return f"{words[: LONGEST_NAME - 64]}{hashlib.sha256(words.encode()).hexdigest()}"


def encode(value: Any) -> Any:
    """Return a state as plain values that JSON holds without loss; floats that are not finite as words."""
    if isinstance(value, NonlinearICA):
        return {"theta": encode(value.theta), "sigma2": value.sigma2}
    if isinstance(value, np.ndarray):
        return encode(value.tolist())
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: encode(field) for name, field in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def decode(kind: Any, data: Any, start: NonlinearICA) -> Any:
    """Return a value of the type ``kind`` from what `encode` made of it; models with the decoder of start.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        If the data do not fit the type.
    """
    arguments = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return None if data is None else decode(arguments[0], data, start)
    if get_origin(kind) is np.ndarray:
        return np.array(data, dtype=np.float64)
    if kind is NonlinearICA:
        return start.replace(theta=decode(Array, data["theta"], start), sigma2=data["sigma2"])
    if get_origin(kind) is tuple:
        return tuple(decode(arguments[0], item, start) for item in data)
    if issubclass(kind, tuple):
        hints = get_type_hints(kind)
        return kind(**{name: decode(hint, data[name], start) for name, hint in hints.items()})
    if kind is float:
        return float(data)
    if not isinstance(data, kind):
        raise TypeError(f"expected {kind.__name__}, got {shown(data)}")
    return data


def _generator_state(value: Any) -> Any:
    """Return the state of a bit generator as JSON gives it back, with its arrays."""
    if isinstance(value, dict):
        return {name: _generator_state(item) for name, item in value.items()}
    return np.array(value, dtype=np.uint64) if isinstance(value, list) else value
