"""The command line: parse, call, print.

Results go to stdout, messages and progress to stderr. Exit codes: 0 ok, 1 a check failed, 2 usage,
3 bad data, 4 something has not converged.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import refica
from refica.compare import Comparison, Settings, compare
from refica.compare_report import as_text, page, to_dict
from refica.datasets import Dataset, from_csv, from_example, iris
from refica.decoders import MLP
from refica.examples import DEFAULT, EXAMPLES, example
from refica.files import (
    DataError,
    OutputError,
    prepare_folder,
    read_csv,
    to_json,
    write_csv,
    write_json,
    write_text_atomically,
)
from refica.fit import METHODS, Step, fit_mle
from refica.fit.starts import check_training_data, principal_start
from refica.marginal import log_likelihood
from refica.model_files import load_model, save_model
from refica.quadrature import Integrator, Quadrature
from refica.rules import gauss_hermite, monte_carlo, sobol, uniform_grid
from refica.testing import faults
from refica.vae import VAE
from refica.validation import check_choice
from refica.verify import MODELS, load_decoder, verify
from refica.verify import as_text as verify_text
from refica.verify import page as verify_page
from refica.verify import to_dict as verify_dict

__all__ = ["main"]

OK, CHECK_FAILED, USAGE, BAD_DATA, NOT_CONVERGED = range(5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        None for those of the process.
    """
    warnings.showwarning = _say_warning
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (DataError, OutputError) as error:
        _say(f"error: {error}")
        return BAD_DATA
    except (TypeError, ValueError) as error:
        _say(f"error: {error}")
        return USAGE
    except KeyboardInterrupt:
        _say("interrupted")
        return NOT_CONVERGED
    except BrokenPipeError:  # the reader of our stdout has gone, as `refica simulate | head` does
        sys.stderr.close()
        return OK
    except (MemoryError, OSError) as error:
        _say(f"error: {str(error) or 'out of memory'}")
        return BAD_DATA


def _say(words: str) -> None:
    print(f"refica: {words}", file=sys.stderr, flush=True)


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


def _compare(options: argparse.Namespace) -> int:
    data = _dataset(options)
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
    result = compare(data, settings, _say)
    _write_comparison(result, folder)
    print(to_json(to_dict(result), non_finite="null") if options.json else as_text(result))
    _say(f"wrote {folder / 'report.html'}, results.json and the models")
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
        _say(f"no report: {error}")


def _dataset(options: argparse.Namespace) -> Dataset:
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


def _simulate(options: argparse.Namespace) -> int:
    chosen = example(options.example)
    z, x = chosen.simulate(options.size, options.seed)
    columns = [f"x{j + 1}" for j in range(x.shape[1])]
    if options.latents:
        x = np.hstack([x, z])
        columns += [f"z{j + 1}" for j in range(z.shape[1])]
    write_csv(options.out or sys.stdout, x, columns)
    _say(f"{len(x)} observations of {chosen.name}: {chosen.sentence}")
    return OK


def _fit(options: argparse.Namespace) -> int:
    data = _dataset(options)
    folder = prepare_folder(options.out)
    check_training_data(data.x)
    decoder = MLP(
        (1 if options.latent_dim is None else options.latent_dim, options.hidden, data.x.shape[1]),
        options.activation,
    )
    start = principal_start(decoder, data.x, np.random.default_rng(options.seed or 0), rotate=False)
    with _Progress() as progress:
        fit = fit_mle(
            start,
            data.x,
            method=options.method,
            max_iter=options.max_iter,
            rng=options.seed or 0,
            callback=progress.show,
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
    _say(f"{fit.status}: {fit.message}")
    _say(f"wrote {folder / 'model.json'} and fit.json")
    return OK if fit.converged else NOT_CONVERGED


def _evaluate(options: argparse.Namespace) -> int:
    loaded = load_model(options.model)
    model = loaded.model if isinstance(loaded, VAE) else loaded
    columns = options.columns.split(",") if options.columns else None
    table = read_csv(options.data, columns)
    if table.values.shape[1] != model.data_dim:
        raise DataError(
            f"{options.data} has {table.values.shape[1]} columns, expected {model.data_dim} for "
            f"{options.model}; choose them with --columns"
        )
    result = log_likelihood(model, table.values, _integrator(options.integrator), gradient=False)
    rows = np.column_stack([result.per_observation, result.error, result.converged])
    write_csv(options.out or sys.stdout, rows, ["log_p", "error", "converged"])
    _say(
        f"log-likelihood {result.total:.12g}, {result.total / len(table.values):.12g} per observation, "
        f"mean integration error {result.error.mean():.2g}"
    )
    _say(f"integrator: {result.message}")
    return OK if result.converged.all() else NOT_CONVERGED


def _verify(options: argparse.Namespace) -> int:
    if options.list_faults:
        for fault in faults.CATALOGUE.values():
            print(f"{fault.name}\t{fault.place}\t{fault.sentence}")
        return OK
    decoder = load_decoder(options.decoder) if options.decoder else None
    with ExitStack() as planted:
        if options.fault:
            fault = planted.enter_context(faults.plant(options.fault))
            _say(f"planted: {fault.sentence} ({fault.place})")
        found = verify(options.models, decoder, options.seed)
    print(to_json(verify_dict(found), non_finite="null") if options.json else verify_text(found))
    if options.html:
        write_text_atomically(options.html, verify_page(found))
        _say(f"wrote {options.html}")
    return OK if found.passed else CHECK_FAILED


RULES: dict[str, tuple[Callable[..., Any], tuple[type, ...]]] = {
    "gauss-hermite": (gauss_hermite, (int,)),
    "uniform-grid": (uniform_grid, (int, float)),
    "monte-carlo": (monte_carlo, (int, int)),
    "sobol": (sobol, (int, int)),
}
"""Rules by their name on the command line, with the types of their arguments."""


def _integrator(words: str) -> Integrator | None:
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


class _Progress:
    """A line on stderr while a fit runs: rewritten in place on a terminal, else one every few seconds."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.last = -INTERVAL

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.terminal:
            print(file=sys.stderr)

    def show(self, step: Step) -> None:
        """Say where the fit is; as a callback it never stops it."""
        if step.seconds - self.last < (0.1 if self.terminal else INTERVAL):
            return
        self.last = step.seconds
        words = (
            f"iteration {step.iteration}: {step.objective:.6f} nats per observation, "
            f"sigma2 {step.sigma2:.4g}, {step.seconds:.0f} s"
        )
        if self.terminal:
            print(f"\r\x1b[Krefica: {words}", end="", file=sys.stderr, flush=True)
        else:
            _say(words)


NAMES = f"one of {', '.join(EXAMPLES)}"

INTERVAL = 5.0
"""Seconds between lines of progress where stderr is not a terminal."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refica",
        description="Exact likelihoods of nonlinear ICA models: simulate, fit, evaluate, compare.",
        epilog="exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad data, 4 not converged",
    )
    parser.add_argument("--version", action="version", version=f"refica {refica.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_compare(commands)
    _add_simulate(commands)
    _add_fit(commands)
    _add_evaluate(commands)
    _add_verify(commands)
    return parser


def _add_compare(commands: Any) -> None:
    command = _command(
        commands,
        "compare",
        _compare,
        "fit linear, direct MLE and VAE to the same data and compare their log-likelihoods",
        "refica compare --data iris --latent-dim 1 --out iris-report",
    )
    _add_data_options(command)
    _add_fit_options(command)
    command.add_argument(
        "--out", default="refica-compare", metavar="DIR", help="folder to write to (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print the results as JSON")


def _add_simulate(commands: Any) -> None:
    command = _command(
        commands,
        "simulate",
        _simulate,
        "write a sample of a named example as CSV",
        "refica simulate --example relu --size 500 > relu.csv",
    )
    command.add_argument(
        "--example",
        metavar="NAME",
        default=DEFAULT,
        help=f"{NAMES} (default: %(default)s)",
    )
    command.add_argument("--size", type=int, help="observations (default: the example's)")
    command.add_argument("--seed", type=int, help="(default: the example's)")
    command.add_argument("--latents", action="store_true", help="add the true latents as columns z1, ...")
    command.add_argument("--out", metavar="FILE", help="file to write (default: stdout)")


def _add_fit(commands: Any) -> None:
    command = _command(
        commands,
        "fit",
        _fit,
        "fit a model to a CSV file by direct maximum likelihood",
        "refica fit data.csv --latent-dim 2 --hidden 16 --out fit",
    )
    command.add_argument("data", metavar="DATA.csv", help="a CSV file, or iris")
    command.add_argument("--columns", metavar="A,B,...", help="columns to use, by name or 1-based number")
    _add_fit_options(command)
    command.add_argument("--out", required=True, metavar="DIR", help="folder for model.json and fit.json")
    command.set_defaults(example=None)


def _add_evaluate(commands: Any) -> None:
    command = _command(
        commands,
        "evaluate",
        _evaluate,
        "print log p(x), its error and whether it converged, for each row of a CSV file",
        "refica evaluate fit/model.json data.csv --integrator gauss-hermite:7@laplace",
    )
    command.add_argument("model", metavar="MODEL.json", help="a model written by fit or compare")
    command.add_argument("data", metavar="DATA.csv")
    command.add_argument("--columns", metavar="A,B,...", help="columns to use, by name or 1-based number")
    command.add_argument(
        "--integrator",
        default="auto",
        metavar="WORDS",
        help="auto, gauss-hermite:ORDER, uniform-grid:POINTS:RADIUS, monte-carlo:SIZE:SEED or "
        "sobol:SIZE:SEED, each with @laplace or @modes to place its nodes at the posterior (default: "
        "%(default)s)",
    )
    command.add_argument("--out", metavar="FILE", help="file to write (default: stdout)")


def _add_verify(commands: Any) -> None:
    command = _command(
        commands,
        "verify",
        _verify,
        "check every formula of the derivation, and what refica makes of it, by independent routes",
        "refica verify --html verify.html",
    )
    command.add_argument(
        "--models", type=int, default=MODELS, help="random models for each formula (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    command.add_argument("--decoder", metavar="MODULE:NAME", help="your own decoder, or its class")
    command.add_argument("--fault", metavar="NAME", help="plant a fault into refica, to see where it shows")
    command.add_argument("--list-faults", action="store_true", help="print the faults that can be planted")
    command.add_argument("--html", metavar="FILE", help="write the report as one HTML page")
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], sentence: str, usage: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=sentence, description=sentence, epilog=f"example: {usage}"
    )
    command.set_defaults(command=run)
    return command


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", metavar="FILE.csv", help="a CSV file, or iris (shipped)")
    command.add_argument("--columns", metavar="A,B,...", help="columns to use, by name or 1-based number")
    command.add_argument(
        "--example",
        metavar="NAME",
        help=f"simulate {NAMES} (default: {DEFAULT})",
    )


def _add_fit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--latent-dim", type=int, help="dimension m of Z (default: the example's, or 1)")
    command.add_argument("--hidden", type=int, default=8, help="hidden units (default: %(default)s)")
    command.add_argument("--activation", default="tanh", help="of the hidden units (default: %(default)s)")
    command.add_argument("--method", default="l-bfgs", help=f"{', '.join(METHODS)} (default: %(default)s)")
    command.add_argument("--max-iter", type=int, default=2000, help="iterations (default: %(default)s)")
    command.add_argument("--seed", type=int, help="of every draw (default: 0; of an example its own)")


if __name__ == "__main__":
    sys.exit(main())
