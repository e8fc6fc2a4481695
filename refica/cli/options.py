"""Options that several commands share, and what they name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from refica.datasets import Dataset, from_csv, from_example, iris
from refica.examples import DEFAULT, EXAMPLES
from refica.files import DataError
from refica.fit import METHODS
from refica.quadrature import Integrator, Quadrature
from refica.rules import gauss_hermite, monte_carlo, sobol, uniform_grid
from refica.validation import check_choice

__all__ = [
    "NAMES",
    "add_columns",
    "add_command",
    "add_data_options",
    "add_fit_options",
    "dataset",
    "integrator",
]

NAMES = f"one of {', '.join(EXAMPLES)}"

RULES: dict[str, tuple[Callable[..., Any], tuple[type, ...]]] = {
    "gauss-hermite": (gauss_hermite, (int,)),
    "uniform-grid": (uniform_grid, (int, float)),
    "monte-carlo": (monte_carlo, (int, int)),
    "sobol": (sobol, (int, int)),
}
"""Rules by their name on the command line, with the types of their arguments."""


def integrator(words: str) -> Integrator | None:
    """Return the integrator that ``auto`` or ``RULE:ARGUMENTS[@PROPOSAL]`` names.

    Raises
    ------
    ValueError
        If the words name none.
    """
    if words == "auto":
        return None
    rule_words, _, proposal = words.partition("@")
    name, *arguments = rule_words.split(":")
    build, types = RULES[check_choice("--integrator", name, RULES)]
    try:
        values = [kind(argument) for kind, argument in zip(types, arguments, strict=True)]
    except ValueError:
        kinds = ":".join(kind.__name__ for kind in types)
        raise ValueError(f"--integrator {name} must be given as {name}:{kinds}, got {words!r}") from None
    return Quadrature(build(*values), proposal or "prior")


def dataset(options: argparse.Namespace) -> Dataset:
    """Return the data that ``--data`` and ``--columns``, or ``--example``, name."""
    if options.data is None:
        if options.columns:
            raise ValueError("--columns needs --data FILE.csv")
        return from_example(options.example or DEFAULT, options.seed)
    if options.example:
        raise ValueError("give --data or --example, not both")
    columns = options.columns.split(",") if options.columns else None
    if options.data != "iris":
        return from_csv(options.data, columns)
    data = iris()
    if columns is None:
        return data
    unknown = set(columns) - set(data.columns)
    if unknown:
        raise DataError(f"iris has columns {', '.join(data.columns)}, got {', '.join(sorted(unknown))}")
    keep = [data.columns.index(column) for column in columns]
    return replace(data, columns=tuple(columns), x=data.x[:, keep])


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], sentence: str, usage: str
) -> argparse.ArgumentParser:
    """Add a command that calls ``run(options)``, and return its parser."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=sentence, description=sentence, epilog=f"example: {usage}"
    )
    command.set_defaults(command=run)
    return command


def add_columns(
    command: argparse.ArgumentParser, words: str = "columns to use, by name or 1-based number"
) -> None:
    """Add ``--columns``."""
    command.add_argument("--columns", metavar="A,B,...", help=words)


def add_data_options(command: argparse.ArgumentParser) -> None:
    """Add what chooses the data of `dataset`."""
    command.add_argument("--data", metavar="FILE.csv", help="a CSV file, or iris (shipped)")
    add_columns(command)
    command.add_argument(
        "--example",
        metavar="NAME",
        help=f"simulate {NAMES} (default: {DEFAULT})",
    )


def add_fit_options(command: argparse.ArgumentParser) -> None:
    """Add what chooses the decoder and the method."""
    command.add_argument("--latent-dim", type=int, help="dimension m of Z (default: the example's, or 1)")
    command.add_argument("--hidden", type=int, default=8, help="hidden units (default: %(default)s)")
    command.add_argument("--activation", default="tanh", help="of the hidden units (default: %(default)s)")
    command.add_argument("--method", default="l-bfgs", help=f"{', '.join(METHODS)} (default: %(default)s)")
    command.add_argument("--max-iter", type=int, help="iterations (default: the method's)")
    command.add_argument("--seed", type=int, help="of every draw (default: 0; of an example its own)")
