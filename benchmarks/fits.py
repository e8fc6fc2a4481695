"""Is the truth found? Direct maximum likelihood, VAE and linear beside the model that the data come from.

``python -m benchmarks fits`` fits decoders with 16 hidden units to N = 1000 observations, σ² = .01, of the
named examples and of networks with 8 hidden units drawn from a seed, and writes ``results/fits.json`` and
``fits.png``. ``--seeds 5`` samples of each setting, ``--settings tanh,relu`` only some, ``--every 3`` every
third, nothing written; with ``--journal FILE`` a run that was stopped goes on where it was (with other code
begin another file), and ``--finish`` writes what there is.

Every fit has a process of its own, whose peak memory is what it took beyond the imports. Direct maximum
likelihood has the VAE's solution as one of its four starts, as in ``refica compare``; its time is without the
VAE's. Methods other than "l-bfgs" are run for m = 1 and the first seed. Where m > 1 and the decoder contains
the truth, another row starts there: its optimum is what a search could find, and shows what of an error in σ²
is maximum likelihood's own.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import refica as ri
from benchmarks._figures import small_png
from benchmarks._fits_figure import draw
from benchmarks._results import FOLDER, write_result
from refica.examples import EXAMPLES, example
from refica.fit.nodes import nodes_for_round
from refica.fit.starts import principal_start
from refica.marginal import Likelihood
from refica.uncertainty import paired_difference, standard_errors

N, SIGMA2, HIDDEN, TRUE_HIDDEN = 1000, 0.01, 16, 8

SEEDS = 5

HELD_OUT = {1: 10_000, 2: 500, 3: 100}
"""Fresh observations, by m: for m = 2 what `Reference` takes seconds for."""

CHECKED = {1: 50, 2: 20, 3: 4}
"""Training observations, by m, on which another integrator is compared with the reported log-likelihood:
`Reference`, and where that, or a grid, has been reported (m = 2) Gauss-Hermite of high order at the modes."""

RECOVERED = {1: 1000, 2: 500, 3: 500}
"""Training observations, by m, whose latents are compared."""

SEED = 20_241

FROM_TRUTH = "from the truth"

OTHERS = ("adam", "em", "gradient-ascent", "sgd")
"""Methods beside "l-bfgs"."""

DRAWN = {
    "m1-n5-relu": ((1, TRUE_HIDDEN, 5), "relu", 1.0),
    "m2-n3-tanh": ((2, TRUE_HIDDEN, 3), "tanh", 1.0),
    "m2-n5-tanh": ((2, TRUE_HIDDEN, 5), "tanh", 1.0),
    "m2-n10-sigmoid": ((2, TRUE_HIDDEN, 10), "sigmoid", 3.0),
    "m3-n6-tanh": ((3, TRUE_HIDDEN, 6), "tanh", 1.0),
}
"""Networks whose parameters are drawn anew for each seed: sizes, activation, their standard deviation."""

SETTINGS = (*EXAMPLES, *DRAWN)

GAP = 0.05
"""Nats beyond p/2N, the loss that is expected of p parameters, by which the held-out value may be below the
truth's."""

SECONDS = {1: 10.0, 2: 60.0, 3: 300.0}
"""What a fit by "l-bfgs" may take, by m."""


class Data(NamedTuple):
    """A truth, a sample of it with latents z (N, m), fresh observations, and the decoder to fit."""

    truth: ri.NonlinearICA
    z: np.ndarray
    x: np.ndarray
    fresh: np.ndarray
    decoder: ri.MLP


def data_of(setting: str, seed: int) -> Data:
    """Return the data of a setting: an example's truth is the same for each seed, a drawn one is not."""
    rng = np.random.default_rng([SEED, SETTINGS.index(setting), seed])
    if setting in DRAWN:
        sizes, activation, spread = DRAWN[setting]
        decoder = ri.MLP(sizes, activation)
        truth = ri.NonlinearICA(decoder, spread * rng.standard_normal(decoder.n_params), SIGMA2)
    else:
        truth, activation = example(setting).model, "relu" if setting == "relu" else "tanh"
    z, x = truth.sample(N, rng)
    m = truth.latent_dim
    fitted = ri.MLP((m, HIDDEN, truth.data_dim), activation)
    return Data(truth, z, x, truth.sample(HELD_OUT[m], rng)[1], fitted)


def rows_of(setting: str, seed: int) -> list[str]:
    """Return which models are compared, those of `OTHERS` apart; "linear" needs m < n."""
    data = data_of(setting, seed)
    linear = ["linear"] if data.truth.latent_dim < data.truth.data_dim else []
    return ["truth", *linear, "VAE", "l-bfgs", *([FROM_TRUTH] if _contains_truth(data) else [])]


def _contains_truth(data: Data) -> bool:
    """Whether the decoder to fit is the truth's with more hidden units, of more than one latent dimension."""
    truth, wider = data.truth.decoder, data.decoder
    alike = isinstance(truth, ri.MLP) and len(truth.sizes) == 3 and truth.activation == wider.activation
    return alike and data.truth.latent_dim > 1


def _at_truth(data: Data, rng: np.random.Generator) -> ri.NonlinearICA:
    """Return the truth, with hidden units that the output does not use yet."""
    theta = data.decoder.init(rng)
    (W1, b1), (W2, b2) = data.decoder.unpack(theta)
    (V1, c1), (V2, c2) = data.truth.decoder.unpack(data.truth.theta)
    units = len(c1)
    W1[:units], b1[:units] = V1, c1
    W2[:, :units], W2[:, units:], b2[:] = V2, 0.0, c2
    return ri.NonlinearICA(data.decoder, theta, SIGMA2)


def measure(setting: str, seed: int, row: str, vae: tuple[list[float], float] | None) -> dict[str, Any]:
    """Return what is measured of one model; ``vae`` the VAE's (θ, σ²) where it is one of the starts."""
    warnings.simplefilter("ignore")
    data = data_of(setting, seed)
    before, began, worked = _peak(), time.perf_counter(), time.process_time()
    model, trained, status, iterations = _fitted(row, data, seed, vae)
    cost = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
        "megabytes": _peak() - before,
    }
    fresh, true_fresh = (ri.log_likelihood(each, data.fresh, gradient=False) for each in (model, data.truth))
    if trained is None:
        trained = ri.log_likelihood(model, data.x, gradient=False)
    paired = paired_difference(fresh, true_fresh)
    nodes = None if model.latent_dim == 1 else nodes_for_round(model, data.x)
    se = standard_errors(model, data.x, nodes) if row in ("l-bfgs", FROM_TRUTH) else None
    return {
        "setting": setting, "seed": seed, "row": row, "m": model.latent_dim, "n": model.data_dim,
        "p": model.decoder.n_params + 1, "status": status, "iterations": iterations, **cost,
        "theta": model.theta.tolist(), "sigma2": model.sigma2,
        "log_sigma2_se": None if se is None else se.log_sigma2,
        "train": trained.total / N, "train_error": float(trained.error.mean()),
        "held_out": fresh.total / len(data.fresh), "held_out_error": float(fresh.error.mean()),
        "to_truth": float(np.mean(fresh.per_observation - true_fresh.per_observation)),
        "to_truth_se": float(paired.standard_error),
        "recovery": _recovery(model, data), **_checked(model, data, trained),
    }  # fmt: skip


def _fitted(
    row: str, data: Data, seed: int, vae: tuple[list[float], float] | None
) -> tuple[ri.NonlinearICA, Likelihood | None, str, int]:
    """Return a row's model, its log-likelihood as the fit reports it, the fit's status and iterations."""
    if row == "truth":
        return data.truth, None, "", 0
    if row == "linear":
        return ri.probabilistic_pca(data.x, data.truth.latent_dim), None, "exact", 0
    rng = np.random.default_rng([SEED, seed])
    if row == FROM_TRUTH:
        fit = ri.fit_mle(_at_truth(data, rng), data.x, n_starts=1, rng=rng)
        return fit.model, fit.log_likelihood, fit.status, fit.history[-1].iteration
    start = principal_start(data.decoder, data.x, rng, rotate=False)
    if row == "VAE":
        fit = ri.fit_vae(ri.initial_vae(start, data.x, HIDDEN, rng=rng), data.x, rng=rng)
    else:
        assert vae is not None
        fit = ri.fit_mle(start.replace(theta=np.array(vae[0]), sigma2=vae[1]), data.x, method=row, rng=rng)
    return fit.model, fit.log_likelihood, fit.status, fit.history[-1].iteration


def _recovery(model: ri.NonlinearICA, data: Data) -> float:
    """R² of the true latents on the posterior means, after the best affine map."""
    some = slice(0, RECOVERED[model.latent_dim])
    return float(ri.recovery(data.z[some], ri.posterior(model, data.x[some], _rough(model)).mean).affine_r2)


def _rough(model: ri.NonlinearICA) -> ri.Quadrature | None:
    """Return an integrator for posterior means that takes seconds: what is made of them has two digits."""
    return None if model.latent_dim == 1 else ri.Quadrature(ri.gauss_hermite(5), proposal="modes")


def _checked(model: ri.NonlinearICA, data: Data, trained: Likelihood) -> dict[str, float]:
    """Mean difference of the reported value from another integrator's on a fixed subset, and the mean of both
    reported errors there."""
    some = np.linspace(0, N - 1, CHECKED[model.latent_dim]).astype(int)
    at_modes = ri.Quadrature(ri.gauss_hermite(25), proposal="modes")
    other = at_modes if model.latent_dim == 2 else ri.Reference()
    found = ri.log_likelihood(model, data.x[some], other, gradient=False)
    off = np.abs(found.per_observation - trained.per_observation[some])
    allowed = found.error + trained.error[some]
    return {
        "off": float(off.mean()),
        "off_allowed": float(allowed.mean()),
        "off_within": int(np.sum(off <= allowed)),
    }


def _peak() -> float:
    """Peak memory of this process so far, in megabytes (Linux counts in kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def main(arguments: Sequence[str] = ()) -> None:
    """Measure and summarise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fits", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help="samples of each setting")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="names with commas between")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th setting, nothing written")
    parser.add_argument("--journal", type=Path, help="file to keep results in, for a run to go on from")
    parser.add_argument("--finish", action="store_true", help="summarise the journal as it is, fit nothing")
    options = parser.parse_args(arguments)
    names = options.settings.split(",")[:: options.every]
    found = _read(options.journal)
    if not options.finish:
        run(names, options.seeds, found, options.journal)
    rows = [row for row in found.values() if row["setting"] in names and row["seed"] < options.seeds]
    rows.sort(key=lambda row: SETTINGS.index(row["setting"]))
    table = summary(rows)
    print("\n".join(table))
    if options.every == 1:
        plain = [{key: value for key, value in row.items() if key != "theta"} for row in rows]
        measured = {"summary": short(rows), "table": table, "verdicts": verdicts(rows), "rows": plain}
        print(write_result("fits", {"seed": SEED, **measured}))
        path = FOLDER / "fits.png"
        path.write_bytes(small_png(draw(rows, GAP, N), dpi=110))
        print(path)


Key = tuple[str, int, str]


def run(names: list[str], seeds: int, found: dict[Key, dict[str, Any]], journal: Path | None) -> None:
    """Add what is missing to ``found``: one seed of all settings after the other, then other methods."""
    keys = [(name, seed, row) for seed in range(seeds) for name in names for row in rows_of(name, seed)]
    keys += [(name, 0, row) for name in names if data_of(name, 0).truth.latent_dim == 1 for row in OTHERS]
    for setting, seed, row in keys:
        if (setting, seed, row) in found:
            continue
        vae = found.get((setting, seed, "VAE"))
        result = _apart(setting, seed, row, None if vae is None else (vae["theta"], vae["sigma2"]))
        found[setting, seed, row] = result
        print(_line(result), file=sys.stderr, flush=True)
        if journal is not None:
            with journal.open("a", encoding="utf-8") as file:
                print(json.dumps(result), file=file)


def _apart(*job: Any) -> dict[str, Any]:
    """Measure in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *job).result()


def _read(journal: Path | None) -> dict[Key, dict[str, Any]]:
    """Return what an earlier run has left."""
    if journal is None or not journal.exists():
        return {}
    rows = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return {(row["setting"], row["seed"], row["row"]): row for row in rows}


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['setting']:16}{row['seed']:2} {row['row']:16}train {row['train']:9.4f}  held-out to truth "
        f"{row['to_truth']:+.4f} (s.e. {row['to_truth_se']:.4f})  sigma2 {row['sigma2']:.4f}  "
        f"{row['processor_seconds']:6.1f} s  {row['status']}"
    )


def short(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of "l-bfgs" beside the VAE: medians over seeds, counts of seeds."""
    lines = [
        "setting         seeds    VAE's  held-out  (s.e.)   allowed    train  from it  >= it  sigma2  cpu s",
        "-" * 98,
    ]
    truths = {(row["setting"], row["seed"]): row["train"] for row in rows if row["row"] == "truth"}
    for setting, holds in verdicts(rows).items():
        of = {
            name: [r for r in rows if (r["setting"], r["row"]) == (setting, name)]
            for name in ("VAE", "l-bfgs", FROM_TRUTH)
        }
        fits = of["l-bfgs"]
        median = {key: statistics.median(fit[key] for fit in fits) for key in ("to_truth", "to_truth_se")}
        train, best = (
            [fit["train"] - truths[setting, fit["seed"]] for fit in of[name]]
            for name in ("l-bfgs", FROM_TRUTH)
        )
        begun = f"{statistics.median(best):.4f}" if best else ""
        within = "" if holds["sigma2_within_3_se"] is None else str(holds["sigma2_within_3_se"])
        lines.append(
            f"{setting:16}{holds['seeds']:5} {statistics.median(r['to_truth'] for r in of['VAE']):8.4f} "
            f"{median['to_truth']:9.4f} {median['to_truth_se']:7.4f} {-GAP - fits[0]['p'] / (2 * N):9.4f} "
            f"{statistics.median(train):8.4f} {begun:>8} {holds['train_at_least_truth']:6} {within:>7} "
            f"{holds['processor_seconds']:6.1f}"
        )
    return [
        *lines,
        "",
        "held-out, train: nats per observation above the truth's, medians over seeds, of direct MLE by",
        "L-BFGS; VAE's: held-out, of the VAE; allowed: -(.05 + p/2N), and two standard errors more; from it:",
        "train of a fit that starts at the truth, where m > 1 and the decoder contains it; >= it: seeds in",
        "which train reaches the truth's within its error; sigma2: seeds in which it is within 3 standard",
        "errors (blank: n = m); cpu s: processor time of L-BFGS from its four starts",
    ]


def verdicts(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return, for each setting, what "l-bfgs" must hold and whether it does; counts are of seeds."""
    by = {(row["setting"], row["seed"], row["row"]): row for row in rows}
    result = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        fits = [row for row in rows if row["setting"] == setting and row["row"] == "l-bfgs"]
        if not fits:
            continue
        of = {name: [by.get((setting, fit["seed"], name)) for fit in fits] for name in ("truth", "VAE")}
        spare = [fit["to_truth"] + GAP + fit["p"] / (2 * N) + 2 * fit["to_truth_se"] for fit in fits]
        pulls = [abs(math.log(f["sigma2"] / SIGMA2)) / (f["log_sigma2_se"] or math.nan) for f in fits]
        result[setting] = {
            "seeds": len(fits),
            "held_out_within": statistics.median(spare) >= 0.0,
            "train_at_least_truth": _at_least(fits, of["truth"]),
            "train_at_least_vae": _at_least(fits, of["VAE"]),
            "sigma2_within_3_se": sum(pull <= 3.0 for pull in pulls) if fits[0]["n"] > fits[0]["m"] else None,
            "equals_another": sum(fit["off"] <= fit["off_allowed"] for fit in fits),
            "processor_seconds": statistics.median(fit["processor_seconds"] for fit in fits),
            "seconds_allowed": SECONDS[fits[0]["m"]],
        }
    return result


def _at_least(fits: list[dict[str, Any]], others: list[dict[str, Any] | None]) -> int:
    """In how many seeds a fit's training value, with its error, reaches another's."""
    pairs = [(fit, other) for fit, other in zip(fits, others, strict=True) if other is not None]
    return sum(f["train"] + f["train_error"] + o["train_error"] >= o["train"] for f, o in pairs)


_HEAD = (
    "setting         row              seeds    train  held-out    s.e.  allowed   sigma2     R2   cpu s"
    "    MB  status"
)


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of medians over seeds, then the verdicts."""
    truths = {(row["setting"], row["seed"]): row["train"] for row in rows if row["row"] == "truth"}
    lines = [
        "medians over seeds; train and held-out: nats per observation above the truth's",
        _HEAD,
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["row"]), []).append(row)
    for (setting, name), group in groups.items():
        middle = {
            key: statistics.median(row[key] for row in group)
            for key in ("to_truth", "to_truth_se", "sigma2", "recovery", "processor_seconds", "megabytes")
        }
        train = statistics.median(row["train"] - truths[setting, row["seed"]] for row in group)
        statuses = ", ".join(dict.fromkeys(row["status"] for row in group))
        lines.append(
            f"{setting:16}{name:17}{len(group):5} {train:8.4f} {middle['to_truth']:9.4f}"
            f" {middle['to_truth_se']:7.4f}{-GAP - group[0]['p'] / (2 * N):9.4f}{middle['sigma2']:9.4f}"
            f"{middle['recovery']:7.3f}{middle['processor_seconds']:8.1f}{middle['megabytes']:6.0f}"
            f"  {statuses}"
        )
    return [*lines, "", *(f"{setting}: {words}" for setting, words in verdicts(rows).items())]
