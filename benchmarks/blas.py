"""What OpenBLAS threads do to the products that the likelihood makes, on an idle and on a busy machine.

The number of threads is fixed when NumPy is imported, so that each setting is a process of its own. The
busy machine has one spinning process per core.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from typing import Any

from benchmarks._results import write_result
from refica.likelihood import TILE

MEASURE = """
import json, time
import numpy as np
rng = np.random.default_rng(0)
result = {}
for shape in [(3, 42, 1024), (1024, 16, 16), (3, 128, 1024), (3, 1000, 1024), (11, 128, 1024)]:
    a, b = rng.standard_normal(shape[:2]), rng.standard_normal(shape[1:])
    times = []
    for _ in range(1000):
        began = time.perf_counter()
        a @ b
        times.append(1e6 * (time.perf_counter() - began))
    median, slow, worst = np.quantile(times, [0.5, 0.99, 1.0]).tolist()
    size = shape[0] * shape[1] * shape[2]
    name = " x ".join(map(str, shape))
    result[name] = {"size": size, "median_us": median, "99%_us": slow, "worst_us": worst}
print(json.dumps(result))
"""


def main() -> None:
    """Time the products with one and with two threads; write blas.json."""
    before = os.getloadavg()[0]
    measured: dict[str, Any] = {}
    for load in ("idle", "busy"):
        spinners = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
        for spinner in spinners if load == "busy" else []:
            spinner.start()
        for threads in (1, 2):
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}
            done = subprocess.run(
                [sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True
            )
            measured[f"{load}, {threads} thread{'s' * (threads > 1)}"] = json.loads(done.stdout)
        for spinner in spinners if load == "busy" else []:
            spinner.terminate()
    lines = table(measured)
    print("\n".join(lines))
    machine = {"cores": os.cpu_count(), "load_before": before, "tile": TILE}
    print(write_result("blas", {"machine": machine, "products": measured, "table": lines}))


def table(measured: dict[str, Any]) -> list[str]:
    """A line for each product, a column for each setting: median and 99 % quantile."""
    head = f"{'product':18}" + "".join(f"{setting:>18}" for setting in measured)
    lines = [head, "-" * len(head)]
    for shape in next(iter(measured.values())):
        times = [products[shape] for products in measured.values()]
        lines.append(
            f"{shape:18}" + "".join(f"{each['median_us']:11.0f}{each['99%_us']:7.0f}" for each in times)
        )
    return [*lines, "", "microseconds: median, then what 1 % of 1000 runs exceed"]


def _spin() -> None:
    while True:
        pass
