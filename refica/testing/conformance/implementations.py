"""Three ways to an implementation: Python functions, a program that is started for each case, a file."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from refica.files import DataError, read_json, write_json
from refica.testing.conformance.case import LEVELS, VERSION, Case, cases
from refica.validation import check_number, shown

__all__ = ["ANSWERS", "Adapter", "AnswersFile", "Command", "Implementation", "export", "load_adapter"]

ANSWERS = "refica-conformance-answers"
"""Schema of a file of answers."""

TIMEOUT = 60.0
"""Seconds that a program may take for a case, by default."""


class Implementation(Protocol):
    """What can be judged."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    def answers_to(self, case: Case) -> Any:
        """Return the answer to a case: by quantity, or the bare array; None if the level is not offered."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Python functions, one for each level that is offered, each of which takes a `Case`.

    Parameters
    ----------
    functions : object, module or dict
        With some of decoder, decoder_gradient, log_joint, monte_carlo, log_marginal, gradient, density,
        posterior, elbo, elbo_gradient, iwae, optimum.

    Raises
    ------
    TypeError
        If it has none of them.
    """

    functions: Any

    def __post_init__(self) -> None:
        """Refuse what offers nothing: it would be skipped everywhere without a word."""
        if not any(callable(self._function(level)) for level in LEVELS):
            names = ", ".join(level.replace("-", "_") for level in LEVELS)
            raise TypeError(f"an adapter must offer some of {names}, got {shown(self.functions)}")

    @property
    def name(self) -> str:
        """The name of the class or module."""
        return str(getattr(self.functions, "__name__", type(self.functions).__name__))

    def answers_to(self, case: Case) -> Any:
        """Call the function of the case's level."""
        function = self._function(case.level)
        return None if function is None else function(case)

    def _function(self, level: str) -> Any:
        name = level.replace("-", "_")
        if isinstance(self.functions, Mapping):
            return self.functions.get(name)
        return getattr(self.functions, name, None)


@dataclass(frozen=True, slots=True)
class Command:
    """A program in any language: one case as JSON on its stdin, its answer as JSON on its stdout.

    The answer is an object ``{"answer": ...}``, by quantity or the bare array, or ``{"unsupported": true}``.

    Parameters
    ----------
    words : str or sequence of str
        The command line.
    timeout : float
        Seconds for each case.

    Raises
    ------
    TypeError, ValueError
        For an empty command line or a timeout that is not a number > 0.
    """

    words: Sequence[str]
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        """Split the command line."""
        words = shlex.split(self.words) if isinstance(self.words, str) else list(self.words)
        if not words:
            raise ValueError("the command must not be empty")
        object.__setattr__(self, "words", tuple(words))
        object.__setattr__(self, "timeout", check_number("timeout", self.timeout, above=0.0))

    @property
    def name(self) -> str:
        """The command line."""
        return shlex.join(self.words)

    def answers_to(self, case: Case) -> Any:
        """Start the program for a case.

        Raises
        ------
        DataError
            If it cannot be started at all.
        RuntimeError
            If it takes too long, fails, or what it prints is not such an object.
        """
        try:
            done = subprocess.run(
                self.words,
                input=json.dumps(case.request()) + "\n",
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=self.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"no answer within {self.timeout:g} s") from None
        except OSError as error:
            raise DataError(f"{self.words[0]} cannot be started: {error.strerror}") from None
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}: {_last_line(done.stderr) or 'no message'}")
        return _answer_in(done.stdout)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _answer_in(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise RuntimeError(f"its output is not JSON: {shown(text.strip())}") from None
    if not isinstance(found, dict) or not ({"answer", "unsupported"} & set(found)):
        raise RuntimeError(f'its output must be an object with "answer", got {shown(found)}')
    return None if found.get("unsupported") else found.get("answer")


@dataclass(frozen=True, slots=True, init=False)
class AnswersFile:
    """A JSON file of answers by the id of their case; cases that it does not hold are skipped.

    ``{"schema": "refica-conformance-answers", "version": 1, "answers": {id: answer, ...}}``, each answer as
    it is: what a program on stdin would give as ``{"answer": ...}`` without that.

    Parameters
    ----------
    path : str

    Raises
    ------
    DataError
        If it cannot be read, is of another kind, or answers cases that do not exist.
    """

    path: str
    implementation: str
    answers: Mapping[str, Any]

    def __init__(self, path: Any) -> None:
        data = read_json(path, ANSWERS, (VERSION,))
        answers = data.get("answers")
        if not isinstance(answers, dict) or not answers:
            raise DataError(f"{path} must hold an object 'answers' by the ids of cases, got {shown(answers)}")
        unknown = sorted(set(answers) - {case.id for case in cases()})
        if unknown:
            raise DataError(f"{path} answers {shown(unknown[0])}, which is no case of version {VERSION}")
        object.__setattr__(self, "path", str(path))
        object.__setattr__(self, "implementation", str(data.get("implementation", path)))
        object.__setattr__(self, "answers", answers)

    @property
    def name(self) -> str:
        """What the file says, or its path."""
        return self.implementation

    def answers_to(self, case: Case) -> Any:
        """Look the answer up."""
        return self.answers.get(case.id)


def load_adapter(words: str) -> Adapter:
    """Return the adapter that ``module:name`` or ``module`` names; a class is called without arguments.

    Raises
    ------
    ValueError
        If there is none.
    """
    module_name, _, name = words.partition(":")
    if os.getcwd() not in sys.path:  # as for `python -m`: the user's module is in the folder at hand
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split(".") if name else []:
            found = getattr(found, part)
        return Adapter(found() if isinstance(found, type) else found)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--adapter must name a Python adapter as module:name, got {words!r}: {error}"
        ) from None


def export(path: Any, wanted: Sequence[Case]) -> None:
    """Write cases without their answers as one JSON file, for programs that answer by a file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    requests = [case.request() for case in wanted]
    write_json(path, {"schema": "refica-conformance-requests", "version": VERSION, "cases": requests})
