"""Do the proved bounds hold the truth, and how narrow are they after how long?

``python -m benchmarks certified``: 1000 random cases against ball arithmetic (`tests/certified_oracle.py`;
needs python-flint), with no allowance; then widths and times of random decoders at their initial weights.
About half an hour, most of it for the truth. Progress goes to stderr. Every number is kept in a journal in
the folder for temporary files, with a digest of what it was made of: a run that was stopped goes on where it
was, and after a change of the code the bounds are computed anew and the truth is not.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flint import arb

import refica as ri
from benchmarks._results import write_result
from refica.certified import certified_bounds
from tests import certified_oracle as oracle

JOURNAL = Path(tempfile.gettempdir()) / "refica-benchmark-certified.jsonl"
SOURCES = ("certified.py", "bounds/*.py", "activations.py", "decoders.py", "model.py")

SMOOTH = ("tanh", "sigmoid", "softplus", "sin", "gelu", "identity", "polynomial")
KINKED = ("relu", "leaky_relu", "leaky_relu(0.3)")
KINDS = ("model", "outlier", "dead", "large")

DECIDED = {(1, "lines"): 700, (2, "lines"): 220, (2, "dense"): 30, (3, "lines"): 50}
"""Cases by latent dimension and kind of truth, proved ("lines") or a sum of 16 digits and more ("dense").
Where ball arithmetic does not settle the truth, the case is counted and replaced."""

DRAWS = {1: 200, 2: 120, 3: 40}
"""Random decoders whose widths and times are measured, by latent dimension."""

UNSLACKED = 1e-13
"""Width asked for when rounding slack is left out: more than 1e-9, other errors would make up for it."""


class Limit(NamedTuple):
    """Width asked for in nats, and the processor time in seconds within which it should be reached."""

    width: float
    seconds: float


LIMITS = {
    (1, "smooth"): Limit(1e-9, 0.1),
    (1, "kinked"): Limit(1e-9, 0.1),
    (2, "smooth"): Limit(1e-8, 2.0),
    (2, "kinked"): Limit(1e-3, 2.0),
    (3, "smooth"): Limit(1e-2, 20.0),
    (3, "kinked"): Limit(1e-2, 20.0),
}


def main() -> None:
    """Measure, print the tables and write ``results/certified.json``."""
    journal = Journal(JOURNAL)
    containment = measure_containment(journal)
    widths = measure_widths(journal)
    table = as_text(containment, widths)
    print("\n".join(table))
    summary = as_text(containment, widths, brief=True)
    path = write_result(
        "certified", {"containment": containment, "widths": widths, "summary": summary, "table": table}
    )
    print(f"\nwritten to {path}")


def measure_containment(journal: Journal) -> dict[str, Any]:
    """Count the cases whose truth lies between the bounds."""
    rows, missed = [], []
    undecided: Counter[str] = Counter()
    for (m, sort), wanted in DECIDED.items():
        decided = seed = 0
        while decided < wanted:
            kind, activation, case = containment_case(m, sort, seed)
            seed += 1
            truth = truth_of(journal, case)
            if not oracle.is_sharp(truth):
                undecided[f"m = {m}, {sort}"] += 1
                continue
            decided += 1
            progress(f"m = {m}, {sort}: {decided} of {wanted} ({kind}, {activation})")
            row = measured(journal, case.model, case.x, m, kind, activation)
            row["inside"] = oracle.contains(row["lower"], row["upper"], truth)
            if m == 1:
                low, high = unslacked(journal, case.model, case.x)
                row["inside_unslacked"] = oracle.contains(low, high, truth)
            rows.append(row)
            if not row["inside"]:
                missed.append(
                    {"m": m, "sort": sort, "seed": seed - 1, "kind": kind, "activation": activation}
                )
    return {
        "cases": len(rows),
        "contained": sum(row["inside"] for row in rows),
        "missed": missed,
        "without_rounding_slack": {
            "cases": sum("inside_unslacked" in row for row in rows),
            "contained": sum(row.get("inside_unslacked", False) for row in rows),
        },
        "truth_undecided": dict(undecided),
        "by_activation": dict(Counter(row["activation"] for row in rows)),
        "groups": grouped(rows),
    }


def containment_case(m: int, sort: str, seed: int) -> tuple[str, str, oracle.Case]:
    """The seed'th case: kinds and activations in turn."""
    rng = np.random.default_rng([m, seed] if sort == "lines" else [m, seed, 7])
    names = (*SMOOTH, *KINKED) if sort == "lines" else SMOOTH
    kind, activation = KINDS[seed // len(names) % len(KINDS)], names[seed % len(names)]
    draw = oracle.random_case if sort == "lines" else oracle.random_dense_case
    return kind, activation, draw(rng, m, kind, activation)


def truth_of(journal: Journal, case: oracle.Case) -> arb:
    """log p(x) as a ball; its digits carry their radius."""
    return arb(journal(f"truth {digest_of(case.model, case.x)}", lambda: case.log_p().str(40)))


def measure_widths(journal: Journal) -> list[dict[str, Any]]:
    """Widths and times of decoders with their initial weights, x drawn from the model or moved away."""
    rows = []
    for m, draws in DRAWS.items():
        for seed in range(draws):
            rng = np.random.default_rng([m, seed, 1])
            activation = (*SMOOTH, *KINKED)[seed % 10]
            model = random_model(rng, m, activation)
            x = model.sample(1, rng)[1][0]
            kind = "model" if seed // 10 % 4 < 3 else "outlier"
            if kind == "outlier":
                x = x + 3.0 * rng.standard_normal(len(x))
            progress(f"widths, m = {m}: {seed + 1} of {draws} ({kind}, {activation})")
            rows.append(measured(journal, model, x, m, kind, activation))
    return grouped(rows)


def random_model(rng: np.random.Generator, m: int, activation: str) -> ri.NonlinearICA:
    """One or two hidden layers of 3 to 16 units, or degree 1 to 3; n from m to 4; σ² from 1e-6 to 1."""
    n = int(rng.integers(m, 5))
    sigma2 = 10.0 ** rng.uniform(-6, 0)
    decoder: Any
    if activation == "polynomial":
        decoder = ri.Polynomial(m, n, int(rng.integers(1, 4)))
    else:
        hidden = [int(rng.integers(3, 17)) for _ in range(int(rng.integers(1, 3)))]
        decoder = ri.MLP((m, *hidden, n), activation)
    return ri.NonlinearICA(decoder, decoder.init(rng), sigma2)


def measured(
    journal: Journal, model: ri.NonlinearICA, x: np.ndarray, m: int, kind: str, activation: str
) -> dict[str, Any]:
    """The bounds of one observation and the processor time they took (other processes share the machine)."""
    smooth = "kinked" if activation in KINKED else "smooth"
    limit = LIMITS[m, smooth]

    def compute() -> dict[str, Any]:
        start = time.process_time()
        result = certified_bounds(model, [x], limit.width)
        seconds = time.process_time() - start
        return {
            "lower": float(result.lower[0]),
            "upper": float(result.upper[0]),
            "seconds": seconds,
            "rounding": "rounding" in result.message,
        }

    row = journal(f"bounds {code_digest()} {limit.width:g} {digest_of(model, x)}", compute)
    width = row["upper"] - row["lower"]
    reached = width <= limit.width
    return {**row, "m": m, "smooth": smooth, "kind": kind, "activation": activation, "width": width,
            "reached": reached, "in_time": reached and row["seconds"] <= limit.seconds}  # fmt: skip


def unslacked(journal: Journal, model: ri.NonlinearICA, x: np.ndarray) -> list[float]:
    """Lower and upper as they would be, were floats exact."""

    def compute() -> list[float]:
        with oracle.without_rounding_slack():
            result = certified_bounds(model, [x], UNSLACKED, max_cells=3000)
        return [float(result.lower[0]), float(result.upper[0])]

    return journal(f"unslacked {code_digest()} {UNSLACKED:g} {digest_of(model, x)}", compute)


class Journal:
    """Values by key, in memory and in a file of lines to which each new one is added at once."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run has left."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.path, self.values = path, dict(json.loads(line) for line in lines)

    def __call__(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the value that there is for the key, or else a new one."""
        if key not in self.values:
            self.values[key] = compute()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self.values[key]]) + "\n")
        return self.values[key]


@cache
def code_digest() -> str:
    """A digest of the code that the bounds depend on."""
    folder = Path(ri.__file__).parent
    paths = sorted(path for pattern in SOURCES for path in folder.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def digest_of(model: ri.NonlinearICA, x: np.ndarray) -> str:
    """A digest of all that log p(x) depends on."""
    numbers = np.concatenate([model.theta, [model.sigma2], x])
    return hashlib.sha256(repr(model.decoder).encode() + numbers.tobytes()).hexdigest()[:16]


def grouped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts, and quantiles of widths and seconds, by latent dimension, smoothness and kind."""
    groups = []
    for (m, smooth), limit in LIMITS.items():
        for kinds in (("model", "dead"), ("large",), ("outlier",)):
            some = [r for r in rows if (r["m"], r["smooth"]) == (m, smooth) and r["kind"] in kinds]
            if not some:
                continue
            width, seconds = (np.array([row[name] for row in some]) for name in ("width", "seconds"))
            groups.append({
                "m": m,
                "decoder": smooth,
                "kinds": list(kinds),
                "cases": len(some),
                "contained": sum(row["inside"] for row in some) if "inside" in some[0] else None,
                "width_asked": limit.width,
                "seconds_limit": limit.seconds,
                "reached": sum(row["reached"] for row in some),
                "in_time": sum(row["in_time"] for row in some),
                "stopped_by_rounding": sum(row["rounding"] for row in some),
                "width_median": float(np.median(width)),
                "width_max": float(width.max()),
                "seconds_median": float(np.median(seconds)),
                "seconds_90": float(np.quantile(seconds, 0.9)),
                "seconds_max": float(seconds.max()),
            })  # fmt: skip
    return groups


def as_text(containment: dict[str, Any], widths: list[dict[str, Any]], brief: bool = False) -> list[str]:
    """The tables, line by line; ``brief``: of ordinary observations alone, what README quotes."""
    bare = containment["without_rounding_slack"]
    heading = (
        f"{'m':<3}{'decoder':9}{'observations':15}{'cases':>5}{'contained':>11}{'width asked':>13}"
        f"{'reached':>9}{'in time':>9}{'rounding':>10}{'seconds: median':>17}{'90 %':>8}{'most':>8}"
    )
    return [
        f"{containment['contained']} of {containment['cases']} random cases contained, with no allowance",
        f"(m = 1 with the rounding slack taken out: {bare['contained']} of {bare['cases']})",
        "",
        heading,
        "-" * len(heading),
        *[_line(group) for group in containment["groups"] if not brief or group["kinds"][0] == "model"],
        *([] if brief else ["", "decoders at their initial weights", *map(_line, widths)]),
        "",
        "in time: within " + ", ".join(f"{LIMITS[m, 'smooth'].seconds:g} s at m = {m}" for m in (1, 2, 3)),
        "rounding: cases that rounding alone keeps from the width asked, nearly all of them outliers",
        "seconds: of processor time, per observation",
    ]


def _line(group: dict[str, Any]) -> str:
    kinds = {"model": "from the model", "large": "large weights", "outlier": "outliers"}[group["kinds"][0]]
    contained = "" if group["contained"] is None else group["contained"]
    return (
        f"{group['m']:<3}{group['decoder']:9}{kinds:15}{group['cases']:>5}{contained:>11}"
        f"{group['width_asked']:>13.0e}{group['reached']:>9}{group['in_time']:>9}{group['stopped_by_rounding']:>10}"
        f"{group['seconds_median']:>17.3f}{group['seconds_90']:>8.3f}{group['seconds_max']:>8.2f}"
    )


def progress(message: str) -> None:
    """Say on stderr how far it is."""
    print(f"\r{message:70}", end="", file=sys.stderr, flush=True)
