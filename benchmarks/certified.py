"""Do the proved bounds hold the truth, and how narrow are they after how long?

``python -m benchmarks certified``: 1000 random cases against ball arithmetic (`tests/certified_oracle.py`;
needs python-flint), with no allowance; then widths and times of random decoders at their initial weights.
About half an hour, nearly all of it for the truth.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

import refica as ri
from benchmarks._results import write_result
from refica.certified import certified_bounds
from tests import certified_oracle

DECIDED = {1: 700, 2: 250, 3: 50}
"""Cases by latent dimension whose truth ball arithmetic settles; the others are counted and replaced."""

SMOOTH = ("tanh", "sigmoid", "softplus", "sin", "gelu", "identity", "polynomial")
KINKED = ("relu", "leaky_relu", "leaky_relu(0.3)")
KINDS = ("model", "outlier", "dead", "large")

WIDTH = {
    (1, False): 1e-9,
    (1, True): 1e-9,
    (2, False): 1e-8,
    (2, True): 1e-3,
    (3, False): 1e-2,
    (3, True): 1e-2,
}
"""Width asked for, by latent dimension and whether the decoder has kinks."""

DRAWS = {1: 200, 2: 120, 3: 40}
"""Random decoders whose widths and times are measured, by latent dimension."""


def main() -> None:
    """Measure, print the tables and write ``results/certified.json``."""
    containment = measure_containment()
    widths = measure_widths()
    path = write_result("certified", {"containment": containment, "widths": widths})
    print(f"\nwritten to {path}")


def measure_containment() -> dict[str, Any]:
    """Count the cases whose truth lies between the bounds."""
    contained, groups, missed = 0, {}, []
    undecided: Counter[str] = Counter()
    for m, wanted in DECIDED.items():
        decided = seed = 0
        while decided < wanted:
            activation = (*SMOOTH, *KINKED)[seed % 10]
            kind = KINDS[seed // 10 % 4]
            case = certified_oracle.random_case(np.random.default_rng([m, seed]), m, kind, activation)
            seed += 1
            if not certified_oracle.is_sharp(case.log_p):
                undecided[f"{m}, {kind}, {activation}"] += 1
                continue
            decided += 1
            result, seconds = timed(case.model, case.x, WIDTH[m, activation in KINKED])
            inside = certified_oracle.contains(result.lower[0], result.upper[0], case.log_p)
            contained += inside
            if not inside:
                missed.append({"m": m, "seed": seed - 1, "kind": kind, "activation": activation})
            group = groups.setdefault(f"m = {m}, {kind}, {sort(activation)}", [])
            group.append((inside, result.converged[0], width(result), seconds))
    print("1000 cases against ball arithmetic: contained", contained)
    table = {name: summary(rows) for name, rows in groups.items()}
    show(table)
    return {
        "cases": sum(DECIDED.values()),
        "contained": contained,
        "missed": missed,
        "truth_undecided": dict(undecided),
        "groups": table,
    }


def measure_widths() -> dict[str, Any]:
    """Widths and times of decoders with their initial weights, x drawn from the model or moved away."""
    groups: dict[str, list[tuple[bool, bool, float, float]]] = {}
    for m, draws in DRAWS.items():
        for seed in range(draws):
            rng = np.random.default_rng([m, seed, 1])
            activation = (*SMOOTH, *KINKED)[seed % 10]
            model = random_model(rng, m, activation)
            x = model.sample(1, rng)[1][0]
            kind = "model" if seed // 10 % 4 < 3 else "outlier"
            if kind == "outlier":
                x = x + 3.0 * rng.standard_normal(len(x))
            result, seconds = timed(model, x, WIDTH[m, activation in KINKED])
            name = f"m = {m}, {kind}, {sort(activation)}"
            groups.setdefault(name, []).append((True, result.converged[0], width(result), seconds))
    table = {name: summary(rows) for name, rows in groups.items()}
    print("\nrandom decoders at their initial weights")
    show(table)
    for row in table.values():
        del row["contained"]  # no truth here
    return table


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


def timed(model: ri.NonlinearICA, x: np.ndarray, wanted: float) -> tuple[Any, float]:
    """Bounds of one observation, and seconds of processor time (other processes share the machine)."""
    start = time.process_time()
    result = certified_bounds(model, [x], wanted)
    return result, time.process_time() - start


def width(result: Any) -> float:
    """upper - lower of one observation."""
    return float(result.upper[0] - result.lower[0])


def sort(activation: str) -> str:
    """Whether a decoder with it has kinks."""
    return "kinked" if activation in KINKED else "smooth"


def summary(rows: list[tuple[bool, bool, float, float]]) -> dict[str, Any]:
    """Counts, and quantiles of widths and seconds."""
    inside, converged, widths, seconds = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "cases": len(rows),
        "contained": int(inside.sum()),
        "converged": int(converged.sum()),
        "width_median": float(np.median(widths)),
        "width_max": float(widths.max()),
        "seconds_median": float(np.median(seconds)),
        "seconds_90": float(np.quantile(seconds, 0.9)),
        "seconds_max": float(seconds.max()),
    }


def show(table: dict[str, dict[str, Any]]) -> None:
    """Print a table."""
    print(
        f"{'':28}{'cases':>6}{'inside':>8}{'conv.':>7}{'width':>10}{'max':>10}{'s':>9}{'90 %':>9}{'max':>9}"
    )
    for name, row in table.items():
        print(
            f"{name:28}{row['cases']:6}{row['contained']:8}{row['converged']:7}"
            f"{row['width_median']:10.1e}{row['width_max']:10.1e}"
            f"{row['seconds_median']:9.3f}{row['seconds_90']:9.3f}{row['seconds_max']:9.3f}"
        )
