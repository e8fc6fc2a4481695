"""The conformance kit on other implementations, written as their users would.

``python -m benchmarks peers`` (some minutes on one core) runs it on those of refica, PyTorch and JAX that are
installed, and writes ``results/peers.json``. The peers need an environment of their own:

    python3 -m venv peers && peers/bin/python -m pip install -r benchmarks/peers/requirements.txt .
"""

from __future__ import annotations

import importlib
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks._results import write_result
from refica.testing import conformance

PEERS = {
    "refica": ("refica.testing.conformance", "Refica", "refica"),
    "PyTorch": ("benchmarks.peers.torch_adapter", "Torch", "torch"),
    "JAX": ("benchmarks.peers.jax_adapter", "Jax", "jax"),
}
"""Module and class of each adapter, and the package whose version is reported."""


def main() -> None:
    """Run the kit on what is installed, print the table and write it."""
    reports = {}
    for name, (module, attribute, package) in PEERS.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            print(f"{name} is not installed", file=sys.stderr)
            continue
        adapter = getattr(importlib.import_module(module), attribute)()
        began = time.process_time()
        report = conformance.run(
            adapter, progress=lambda level, name=name: print(name, level, file=sys.stderr)
        )
        seconds = time.process_time() - began
        print(conformance.as_text(report), file=sys.stderr)
        reports[name] = {"version": installed, "seconds": round(seconds, 1), **counted(report)}
    lines = summary(reports)
    print("\n".join(lines))
    print(write_result("peers", {"implementations": reports, "summary": lines}))


def counted(report: conformance.Report) -> dict[str, Any]:
    """Return what is kept of a report: counts and worst differences, and what went wrong."""
    wrong = {o.case.id: o.message for o in report.outcomes if o.status in ("failed", "error")}
    levels = {
        each.level: {
            "passed": each.passed,
            "total": each.total,
            "worst_over_tolerance": float(f"{each.ratio:.2g}"),
        }
        for each in report.counts
    }
    return {"passed": report.passed, "levels": levels, "wrong": wrong, "slips": list(report.names)}


def summary(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table for README: a row for each level, a column for each implementation."""
    names = list(reports)
    width = {name: max(16, len(name) + len(reports[name]["version"]) + 3) for name in names}
    head = "".join(f"{name + ' ' + reports[name]['version']:>{width[name]}}" for name in names)
    lines = [f"{'level':18}{head}", "-" * (18 + sum(width.values()))]
    for level in conformance.LEVELS:
        cells = [reports[name]["levels"].get(level) for name in names]
        shares = [f"{cell['passed']}/{cell['total']}" if cell else "-" for cell in cells]
        lines.append(f"{level:18}" + "".join(f"{s:>{width[n]}}" for s, n in zip(shares, names, strict=True)))
    totals = [
        f"{sum(c['passed'] for c in r['levels'].values())}/{sum(c['total'] for c in r['levels'].values())}"
        for r in reports.values()
    ]
    lines.append(f"{'all':18}" + "".join(f"{t:>{width[n]}}" for t, n in zip(totals, names, strict=True)))
    times = [f"{r['seconds']:.0f} s" for r in reports.values()]
    lines.append(
        f"{'processor time':18}" + "".join(f"{t:>{width[n]}}" for t, n in zip(times, names, strict=True))
    )
    return [
        *lines,
        "",
        "cases passed, of cases; times with tracing and compilation; PyTorch and JAX integrate on uniform",
        "grids as fine as each case hints, refica by Reference and in closed form",
    ]
