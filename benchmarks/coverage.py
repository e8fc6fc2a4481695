"""Does the reported error cover the true one? 2000 stratified random cases, every integrator.

``python -m benchmarks coverage`` measures all (some 20 minutes on one core; needs python-flint) and writes
``results/coverage.json`` and ``coverage.png``; ``python -m benchmarks coverage --case 2-137`` makes one case
again and prints what each integrator says of it: latent dimension, then index. With ``--journal FILE`` a run
that was stopped goes on where it was (with another code, begin another file).

The truth is an interval (`benchmarks._cases`). A case is *covered* if the reported error reaches to the far
end of it, *missed* if not even to the near end, and *open* in between; it is a *gross miss* if ten times the
reported error does not reach the near end. Nothing is allowed for rounding: it is part of what is reported.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import refica as ri
from benchmarks import _cases
from benchmarks._coverage_figure import draw
from benchmarks._figures import small_png
from benchmarks._results import FOLDER, write_result
from refica.piecewise import is_piecewise_affine
from refica.reference import Reference

CASES = {1: 1420, 2: 500, 3: 105}
"""Cases by latent dimension."""

GROSS = 10.0
"""A true error of more than so many times the reported one is a gross miss."""

SLOW = 20.0
"""Seconds for one observation that are worth a line on stderr."""

Choice = Callable[[ri.NonlinearICA, int], Any]


class Contender(NamedTuple):
    """An integrator by name: ``build(model, seed)`` returns it, False where it does not apply (None is
    refica's own choice); ``random`` whether its error is the half-width of a 95 % interval."""

    name: str
    build: Choice
    random: bool = False


def _grid(m: int) -> Any:
    return ri.uniform_grid({1: 401, 2: 81, 3: 31}[m], {1: 8.0, 2: 6.0, 3: 5.5}[m])


def _exact(model: ri.NonlinearICA) -> Any:
    if getattr(model.decoder, "is_affine", False):
        return ri.ExactLinear()
    if is_piecewise_affine(model.decoder) and model.latent_dim <= 2:
        return ri.ExactPiecewiseAffine()
    return False


def _placed(rule: Any, proposal: str, model: ri.NonlinearICA, seed: int) -> Any:
    return ri.Quadrature(rule, proposal)


def _random(rule: Callable[..., Any], size: int, proposal: str, model: ri.NonlinearICA, seed: int) -> Any:
    return ri.Quadrature(rule(size, seed=seed), proposal)


def contenders() -> list[Contender]:
    """Return all integrators that are measured."""
    found = [
        Contender("Reference", lambda model, seed: Reference()),
        Contender("integrator=None", lambda model, seed: None),
        Contender("ExactLinear, ExactPiecewiseAffine", lambda model, seed: _exact(model)),
        Contender("gauss_hermite(20) prior", lambda model, seed: ri.Quadrature(ri.gauss_hermite(20))),
        Contender("uniform_grid prior", lambda model, seed: ri.Quadrature(_grid(model.latent_dim))),
    ]
    rules = {
        "gauss_hermite(7)": ri.gauss_hermite(7),
        "gauss_hermite(15)": ri.gauss_hermite(15),
        "uniform_grid(21, 6)": ri.uniform_grid(21, 6.0),
    }
    for (name, rule), proposal in itertools.product(rules.items(), ("laplace", "modes")):
        found += [Contender(f"{name} {proposal}", partial(_placed, rule, proposal))]
    for proposal in ("prior", "laplace", "modes"):
        found += [
            Contender(
                f"monte_carlo(1000) {proposal}", partial(_random, ri.monte_carlo, 1000, proposal), True
            ),
            Contender(f"sobol(1024) {proposal}", partial(_random, ri.sobol, 1024, proposal), True),
        ]
    return found


class Outcome(NamedTuple):
    """What one integrator said of one case: log p(x), its error, whether it converged, the least and the
    greatest that the true error may be, and seconds. An integrator that raised has nan for all."""

    m: int
    number: int
    value: float
    reported: float
    converged: bool
    least: float
    greatest: float
    seconds: float
    words: str

    @property
    def covered(self) -> bool:
        """Whether the reported error reaches the far end of the truth."""
        return self.greatest <= self.reported

    @property
    def missed(self) -> bool:
        """Whether it does not reach the near end (a nan reaches nothing)."""
        return not self.least <= self.reported

    @property
    def gross(self) -> bool:
        """Whether ten times the reported error does not."""
        return not self.least <= GROSS * self.reported


def main(arguments: Sequence[str] = ()) -> None:
    """Measure all cases, or show one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks coverage", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--case", metavar="M-INDEX", help="show one case, such as 2-137")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th case, nothing written")
    parser.add_argument("--journal", type=Path, help="file to keep outcomes in, for a run to go on from")
    options = parser.parse_args(arguments)
    warnings.simplefilter("error", RuntimeWarning)
    if options.case:
        m, _, index = options.case.partition("-")
        show(int(m), int(index))
        return
    outcomes, unsettled = measure(options.every, options.journal)
    result = {**summary(outcomes), "cases_without_truth": unsettled}
    print("\n".join(result["table"]))
    if options.every == 1:
        print(write_result("coverage", result))
        path = FOLDER / "coverage.png"
        path.write_bytes(small_png(draw(outcomes), dpi=110))
        print(path)


def measure(every: int, journal: Path | None) -> tuple[dict[str, list[Outcome]], list[str]]:
    """Return the outcomes of each integrator, and the cases whose truth could not be settled."""
    entries = contenders()
    outcomes: dict[str, list[Outcome]] = {entry.name: [] for entry in entries}
    unsettled, known = [], _read(journal)
    for m, count in CASES.items():
        began = time.perf_counter()
        for index in range(0, count, every):
            found = known.get((m, index))
            if found is None:
                found = _judge_all(entries, m, index)
                if journal is not None:
                    with journal.open("a", encoding="utf-8") as file:
                        print(json.dumps([m, index, found]), file=file)
            if not found:
                unsettled.append(f"{m}-{index}")
            for name, outcome in found.items():
                outcomes[name].append(Outcome(*outcome))
            if (index // every) % 50 == 49:
                print(
                    f"m = {m}: {index + 1} of {count}, {time.perf_counter() - began:.0f} s", file=sys.stderr
                )
    return outcomes, unsettled


def _read(journal: Path | None) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the outcomes by case that an earlier run has left."""
    if journal is None or not journal.exists():
        return {}
    lines = journal.read_text(encoding="utf-8").splitlines()
    return {(m, index): found for m, index, found in map(json.loads, lines)}


def _judge_all(entries: list[Contender], m: int, index: int) -> dict[str, Outcome]:
    """Return what each integrator says of a case; nothing if its truth could not be settled."""
    case = _cases.case(m, index)
    if case.truth is None:
        return {}
    found = {}
    for entry in entries:
        outcome = judge(entry, case, index)
        if outcome is not None:
            _report(entry, case, outcome)
            found[entry.name] = outcome
    return found


def judge(entry: Contender, case: _cases.Case, index: int) -> Outcome | None:
    """Return what an integrator says of a case, None where it does not apply."""
    model, truth = case.model, case.truth
    integrator = entry.build(model, index)
    if integrator is False or truth is None:
        return None
    began = time.process_time()
    nan = float("nan")
    try:
        result = ri.log_likelihood(model, case.x[None], integrator, gradient=False)
    except Exception as error:  # whatever it is, it is reported as a violation, and the others go on
        return Outcome(model.latent_dim, index, nan, nan, True, nan, nan, nan, f"raised {error!r}")
    seconds = time.process_time() - began
    value = float(result.per_observation[0])
    words = result.message.partition("not converged")[2]
    return Outcome(
        model.latent_dim, index, value, float(result.error[0]), bool(result.converged[0]),
        *truth.error(value), seconds, words,
    )  # fmt: skip


def _report(entry: Contender, case: _cases.Case, outcome: Outcome) -> None:
    """Say on stderr what is to be repaired, as soon as it is seen."""
    violation = outcome.converged and (outcome.gross or (outcome.missed and not entry.random))
    unconverged = entry.name == "Reference" and not outcome.converged
    if violation or unconverged or outcome.seconds > SLOW:
        word = "MISS" if violation else "not converged" if unconverged else "slow"
        print(f"{word}: {entry.name}: {_line(case, outcome)}", file=sys.stderr)


def _line(case: _cases.Case, outcome: Outcome) -> str:
    return (
        f"--case {outcome.m}-{outcome.number} ({case.activation}, {case.situation}, n = {len(case.x)}, "
        f"sigma2 = {case.model.sigma2:.1e}): log p = {outcome.value:.6g}, true error {outcome.least:.2g} to "
        f"{outcome.greatest:.2g}, reported {outcome.reported:.2g}, {outcome.seconds:.2g} s"
    )


def show(m: int, index: int) -> None:
    """Print one case, and what each integrator says of it."""
    case = _cases.case(m, index)
    print(f"{case.activation}, {case.situation}: {case.model.decoder}, sigma2 = {case.model.sigma2!r}")
    print(f"x = {case.x.tolist()}\ntruth: {case.truth}")
    for entry in contenders():
        outcome = judge(entry, case, index)
        if outcome is not None:
            verdict = "covered" if outcome.covered else "MISSED" if outcome.missed else "open"
            print(
                f"{entry.name:34} {outcome.value:24.16g} true {outcome.least:.1e} to {outcome.greatest:.1e} "
                f"reported {outcome.reported:.1e} {verdict:8} {outcome.seconds:.3f} s"
            )
            if not outcome.converged:
                print(f"    not converged{outcome.words}")


def summary(outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Counts by integrator, in all and by latent dimension; violations and how to repeat them; a table."""
    randoms = {entry.name for entry in contenders() if entry.random}
    rows = {name: counts(found) for name, found in outcomes.items() if found}
    by_m = {
        name: {
            f"m = {m}": counts([o for o in found if o.m == m]) for m in CASES if any(o.m == m for o in found)
        }
        for name, found in outcomes.items()
    }
    reference = [f"{o.m}-{o.number}" for o in outcomes.get("Reference", []) if not o.converged]
    return {
        "seed": _cases.SEED,
        "cases": {
            f"m = {m}": len({o.number for found in outcomes.values() for o in found if o.m == m})
            for m in CASES
        },
        "integrators": rows,
        "by_latent_dim": by_m,
        "violations": {
            name: found for name, rows in outcomes.items() if (found := _violations(rows, name in randoms))
        },
        "reference_not_converged": reference,
        "table": table(rows, randoms),
    }


def _violations(found: list[Outcome], random: bool) -> list[dict[str, Any]]:
    """What is to be repaired: outcomes that claim to have converged and whose error is too small."""
    return [
        {
            "command": f"python -m benchmarks coverage --case {o.m}-{o.number}",
            "gross": o.gross,
            "true_at_least": o.least,
            "reported": o.reported,
            "words": o.words if np.isnan(o.value) else "",
        }
        for o in found
        if o.converged and (o.gross or (o.missed and not random))
    ]


def counts(found: list[Outcome]) -> dict[str, Any]:
    """Counts of an integrator's outcomes; all but the first two among those that claim to have converged."""
    claimed = [o for o in found if o.converged]
    settled = [o for o in claimed if o.covered or o.missed]
    ratios = [o.reported / o.greatest for o in settled if o.greatest > 0.0]
    return {
        "cases": len(found),
        "converged": len(claimed),
        "settled": len(settled),
        "covered": sum(o.covered for o in settled),
        "missed": sum(o.missed for o in settled),
        "gross": sum(o.gross for o in claimed),
        "open": len(claimed) - len(settled),
        "covered_if_not_converged": _share([o for o in found if not o.converged]),
        "median_reported_over_true": _median(ratios),
        "median_true": _median([o.greatest for o in settled]),
    }


def _median(numbers: list[float]) -> float:
    return float(np.median(numbers)) if numbers else float("nan")


def _share(found: list[Outcome]) -> float:
    settled = [o for o in found if o.covered or o.missed]
    return sum(o.covered for o in settled) / len(settled) if settled else float("nan")


def table(rows: dict[str, dict[str, Any]], randoms: set[str]) -> list[str]:
    """The lines that README quotes."""
    head = f"{'integrator':34}{'cases':>6}{'converged':>11}{'covered':>9}{'gross':>7}{'open':>6}"
    head += f"{'true':>9}{'reported/true':>15}"
    lines = [head, "-" * len(head)]
    for kind in (False, True):
        for name, row in rows.items():
            if (name in randoms) is kind:
                covered = row["covered"] / row["settled"] if row["settled"] else float("nan")
                lines.append(
                    f"{name:34}{row['cases']:6}{row['converged'] / row['cases']:11.1%}{covered:9.2%}"
                    f"{row['gross']:7}{row['open']:6}{row['median_true']:9.0e}"
                    f"{row['median_reported_over_true']:15.2g}"
                )
        if not kind:
            lines.append("")
    return [
        *lines,
        "",
        "converged: share that claims it; all further columns are about these; covered: true error within",
        "the reported one (below the gap a 95 % interval); gross: true error above 10 x the reported one;",
        "open: the truth is not known well enough to tell; true: median true error in nats",
    ]
