"""``refica fit``: direct maximum likelihood on a CSV file."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from refica.cli.console import NOT_CONVERGED, OK, say
from refica.cli.options import add_columns, add_command, add_fit_options, dataset
from refica.decoders import MLP
from refica.files import prepare_folder, write_json
from refica.fit import fit_mle
from refica.fit.starts import check_training_data, principal_start
from refica.model_files import save_model

__all__ = ["add"]

CHECKPOINT = "checkpoint.json"
"""The state of a fit after its last round, in the folder of the results."""


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "fit",
        _run,
        "fit a model to a CSV file by direct maximum likelihood",
        "refica fit data.csv --latent-dim 2 --hidden 16 --out fit",
    )
    command.add_argument("data", metavar="DATA.csv", help="a CSV file, or iris")
    add_columns(command)
    add_fit_options(command)
    command.add_argument("--starts", type=int, default=4, help="initial values to try (default: %(default)s)")
    command.add_argument(
        "--out", required=True, metavar="DIR", help=f"folder for model.json, fit.json and {CHECKPOINT}"
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help=f"go on from {CHECKPOINT} in the folder, bit for bit as if the fit had not been interrupted",
    )
    command.set_defaults(example=None)


def _run(options: argparse.Namespace) -> int:
    data = dataset(options)
    folder = prepare_folder(options.out)
    check_training_data(data.x)
    decoder = MLP(
        (1 if options.latent_dim is None else options.latent_dim, options.hidden, data.x.shape[1]),
        options.activation,
    )
    start = principal_start(decoder, data.x, np.random.default_rng(options.seed or 0), rotate=False)
    kept = folder / CHECKPOINT
    fit = fit_mle(
        start,
        data.x,
        method=options.method,
        n_starts=options.starts,
        max_iter=options.max_iter,
        rng=options.seed or 0,
        checkpoint=kept,
        resume=kept if options.resume else None,
        verbose=True,
    )
    result = fit.log_likelihood
    summary = {
        "schema": "refica-fit",
        "version": 1,
        "data": data.name,
        "columns": list(data.columns),
        "observations": len(data.x),
        "status": fit.status,
        "message": fit.message,
        "log_likelihood": result.total,
        "log_likelihood_per_observation": result.total / len(data.x),
        "mean_integration_error": float(result.error.mean()),
        "sigma2": fit.model.sigma2,
        "integrator": result.message,
        "history": [step._asdict() for step in fit.history],
    }
    write_json(folder / "fit.json", summary, non_finite="null")
    save_model(folder / "model.json", fit.model, status=fit.status, columns=list(data.columns))
    for key in ("log_likelihood_per_observation", "mean_integration_error", "sigma2", "status"):
        print(f"{key}\t{summary[key]}")
    say(f"{fit.status}: {fit.message}")
    say(f"wrote {folder / 'model.json'} and fit.json")
    return OK if fit.converged else NOT_CONVERGED
