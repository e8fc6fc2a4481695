"""``refica evaluate``: log p(x) of each row of a CSV file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from refica.cli.console import NOT_CONVERGED, OK, say
from refica.cli.options import add_columns, add_command, dataset, integrator
from refica.files import DataError, write_csv
from refica.marginal import log_likelihood
from refica.model_files import columns_of, load_model
from refica.vae import VAE

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "evaluate",
        _run,
        "print log p(x), its error and whether it converged, for each row of a CSV file",
        "refica evaluate fit/model.json data.csv --integrator gauss-hermite:7@laplace",
    )
    command.add_argument("model", metavar="MODEL.json", help="a model written by fit or compare")
    command.add_argument("data", metavar="DATA.csv", help="a CSV file, or iris")
    add_columns(
        command, "columns to use, by name or 1-based number (default: those that the model was fitted to)"
    )
    command.set_defaults(example=None)
    command.add_argument(
        "--integrator",
        default="auto",
        metavar="WORDS",
        help="auto, gauss-hermite:ORDER, uniform-grid:POINTS:RADIUS, monte-carlo:SIZE:SEED or "
        "sobol:SIZE:SEED, each with @laplace or @modes to place its nodes at the posterior (default: "
        "%(default)s)",
    )
    command.add_argument("--out", metavar="FILE", help="file to write (default: stdout)")


def _run(options: argparse.Namespace) -> int:
    loaded = load_model(options.model)
    model = loaded.model if isinstance(loaded, VAE) else loaded
    options.columns = options.columns or ",".join(columns_of(options.model))
    x = dataset(options).x
    if x.shape[1] != model.data_dim:
        raise DataError(
            f"{options.data} has {x.shape[1]} columns, expected {model.data_dim} for "
            f"{options.model}; choose them with --columns"
        )
    result = log_likelihood(model, x, integrator(options.integrator), gradient=False)
    rows = np.column_stack([result.per_observation, result.error, result.converged])
    write_csv(options.out or sys.stdout, rows, ["log_p", "error", "converged"])
    say(
        f"log-likelihood {result.total:.12g}, {result.total / len(x):.12g} per observation, "
        f"mean integration error {result.error.mean():.2g}"
    )
    say(f"integrator: {result.message}")
    return OK if result.converged.all() else NOT_CONVERGED
