"""Work-precision diagrams: what each integrator's error is after so many evaluations, and after what time.

``python -m benchmarks accuracy`` (ten minutes on one core): 48 integrals, m = 1..4, σ² = 1, 1e-2, 1e-4,
tanh and relu, posteriors with one and two modes; refica's integrators and SciPy's, each at several sizes.
Evaluations are points at which the decoder is evaluated or differentiated, those for the error estimate and
for the search for modes among them (not: what `Reference` asks of whole cells). Times are processor time for
one observation, error estimate included: medians over rounds that run all methods in turn. Random methods
are judged by the root mean square of their errors over as many seeds as there are rounds.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

import refica as ri
from benchmarks._accuracy_figure import draw
from benchmarks._figures import small_png
from benchmarks._integrals import DIMENSIONS, Integral, integrals
from benchmarks._methods import Counted, Method, methods, names
from benchmarks._results import FOLDER, write_result

ROUNDS = 5
"""Runs of each method on each integral."""

ENOUGH = 0.3
"""Seconds after which a method is not run again on an integral: its time is no longer noise."""

PATIENCE = 0.7
"""Seconds for one run after which the larger sizes of a method are left out."""

WANTED = (1e-3, 1e-6)
"""Errors in nats that the table asks for."""


def main() -> None:
    """Measure; write ``results/accuracy.json`` and a figure for each decoder and number of modes."""
    began = time.perf_counter()
    warnings.simplefilter("ignore", Warning)  # SciPy's, of slow convergence and of roundoff
    cases = []
    for case in integrals():
        cases.append(measure(case))
        print(f"{case.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    lines = table(cases)
    print("\n".join(lines))
    result = {"cases": cases, "table": lines, "seconds_in_all": time.perf_counter() - began}
    print(write_result("accuracy", result))
    draw_all(cases)


def draw_all(cases: Sequence[dict[str, Any]]) -> None:
    """Write the figures."""
    for activation, modes, work in itertools.product(("tanh", "relu"), (1, 2), ("evaluations", "time")):
        some = [c for c in cases if c["activation"] == activation and c["modes"] == modes]
        path = FOLDER / f"accuracy-{activation}-{modes}-{work}.png"
        path.write_bytes(small_png(draw(some, work), dpi=120))
        print(path)


def measure(case: Integral) -> dict[str, Any]:
    """Run every method on one integral, and return what README and figures need."""
    model = ri.NonlinearICA(Counted(case.model.decoder), case.model.theta, case.model.sigma2)
    entries = methods(model)
    runs: list[list[tuple[int, float, float, float, bool]]] = [[] for _ in entries]
    too_slow = set()
    for seed in range(ROUNDS):
        for entry, run in zip(entries, runs, strict=True):
            first = seed == 0 and entry.name not in too_slow
            if first or (run and (entry.random or sum(each[1] for each in run) < ENOUGH)):
                run.append(_run(entry, model, case, seed))
                if run[-1][1] > PATIENCE:
                    too_slow.add(entry.name)
    curves: dict[str, dict[str, list[Any]]] = {name: {} for name in names(entries)}
    for entry, run in ((entry, run) for entry, run in zip(entries, runs, strict=True) if run):
        evaluations, seconds, error, reported, converged = (
            np.array(column) for column in zip(*run, strict=True)
        )
        point = {
            "size": entry.size,
            "evaluations": int(np.median(evaluations)),
            "ms": _digits(1e3 * np.median(seconds)),
            "error": _digits(math.sqrt(np.mean(error**2)) if entry.random else error[0]),
            "reported": _digits(np.median(reported)),
            "converged": bool(converged.all()),
        }
        for key, number in point.items():
            curves[entry.name].setdefault(key, []).append(number)
    return {
        "name": case.name,
        "m": case.model.latent_dim,
        "sigma2": case.model.sigma2,
        "activation": case.activation,
        "modes": case.modes,
        "log_p": case.log_p,
        "truth": {route: _digits(off) for route, off in case.routes.items()},
        "methods": curves,
    }


def _run(
    entry: Method, model: ri.NonlinearICA, case: Integral, seed: int
) -> tuple[int, float, float, float, bool]:
    """Return evaluations, seconds, true error, reported error and verdict of one run."""
    decoder: Any = model.decoder
    decoder.reset()
    began = time.process_time()
    found = entry.run(model, case.x, seed)
    seconds = time.process_time() - began
    return decoder.evaluations, seconds, abs(found.value - case.log_p), found.reported, found.converged


def _digits(number: float) -> float:
    """Three significant digits are enough."""
    return float(f"{number:.3g}")


def table(cases: Sequence[dict[str, Any]]) -> list[str]:
    """For each method: on how many of the 12 integrals of each m it comes how close, with what work."""
    every = list(dict.fromkeys(name for case in cases for name in case["methods"]))
    groups = "".join(f"{f'm = {m}':>15}{'':7}" for m in DIMENSIONS).rstrip()
    head = f"{'':22}" + f"{'hits':>7}{'evals':>9}{'ms':>6}" * len(DIMENSIONS)
    lines = []
    for wanted in WANTED:
        lines += [f"{f'within {wanted:g} nats':22}{groups}", head, "-" * len(head)]
        for name in every:
            curves = [
                [c["methods"][name] for c in cases if c["m"] == m and name in c["methods"]]
                for m in DIMENSIONS
            ]
            lines.append((f"{name:22}" + "".join(_cell(some, wanted) for some in curves)).rstrip())
        lines.append("")
    return [
        *lines,
        "hits: of so many integrals (sigma2 = 1, 1e-2, 1e-4; tanh and relu; one and two modes), on how many",
        "some size comes so close; evals, ms: median, over these, of the least number of evaluations of the",
        "decoder and of the least time, error estimate included",
    ]


def _cell(curves: list[dict[str, list[Any]]], wanted: float) -> str:
    if not curves:
        return " " * 22
    hits = [work for curve in curves if (work := _least(curve, wanted)) is not None]
    share = f"{len(hits)}/{len(curves)}"
    if not hits:
        return f"{share:>7}{'-':>9}{'-':>6}"
    evaluations, ms = np.median(hits, axis=0)
    return f"{share:>7}{evaluations:>9.0f}{ms:>6.{0 if ms >= 10 else 1}f}"


def _least(curve: dict[str, list[Any]], wanted: float) -> tuple[float, float] | None:
    """Return the fewest evaluations and the least time of the sizes that are good enough, or None.

    A size counts only if no larger one is worse: a curve that crosses the line by chance has not arrived.
    """
    good = np.array([error <= wanted for error in curve["error"]])
    stays = np.flip(np.logical_and.accumulate(np.flip(good)))
    if not stays.any():
        return None
    return min(np.array(curve["evaluations"])[stays]), min(np.array(curve["ms"])[stays])
