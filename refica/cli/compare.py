"""``refica compare``: the main job."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from refica.cli.console import NOT_CONVERGED, OK, say
from refica.cli.options import add_command, add_data_options, add_fit_options, dataset
from refica.cli.workers import prompt_ctrl_c, workers
from refica.compare import Comparison, Settings, compare, fold_count
from refica.compare_report import as_text, page, to_dict
from refica.files import prepare_folder, to_json, write_json, write_text_atomically
from refica.model_files import save_model

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "compare",
        _run,
        "fit linear, direct MLE and VAE to the same data and compare their log-likelihoods",
        "refica compare --data iris --latent-dim 1 --out iris-report",
    )
    add_data_options(command)
    add_fit_options(command)
    command.add_argument(
        "--out", default="refica-compare", metavar="DIR", help="folder to write to (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print the results as JSON")


def _run(options: argparse.Namespace) -> int:
    data = dataset(options)
    folder = prepare_folder(options.out)
    latent_dim = options.latent_dim
    if latent_dim is None:
        latent_dim = data.truth.latent_dim if data.truth is not None else 1
    settings = Settings(
        latent_dim,
        options.hidden,
        options.activation,
        options.method,
        options.seed or 0,
        max_iter=options.max_iter,
    )
    with prompt_ctrl_c(), workers(fold_count(data) + 1) as executor:
        result = compare(data, settings, say, executor)
    _write_comparison(result, folder)
    print(to_json(to_dict(result), non_finite="null") if options.json else as_text(result))
    say(f"wrote {folder / 'report.html'}, results.json and the models")
    return OK if result.trustworthy else NOT_CONVERGED


def _write_comparison(result: Comparison, folder: Path) -> None:
    write_json(folder / "results.json", to_dict(result), non_finite="null")
    for entry in result.entries:
        if entry.model is not None:
            name = entry.name.lower().replace(" ", "-")
            saved = entry.fit.vae if entry.fit and entry.fit.vae else entry.model
            save_model(folder / f"model-{name}.json", saved, name=entry.name, status=entry.status)
    try:
        write_text_atomically(folder / "report.html", page(result))
    except ImportError as error:
        say(f"no report: {error}")
