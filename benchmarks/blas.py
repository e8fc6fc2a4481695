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

from benchmarks._results import write_result

MEASURE = """
import json, time
import numpy as np
rng = np.random.default_rng(0)
result = {}
for shape in [(3, 42, 1024), (1024, 16, 16), (3, 128, 1024), (3, 1000, 1024), (11, 128, 1024)]:
    a, b = rng.standard_normal(shape[:2]), rng.standard_normal(shape[1:])
    times = []
    for _ in range(300):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    size = shape[0] * shape[1] * shape[2]
    result[str(shape)] = {"size": size, "median_us": 1e6 * np.median(times), "worst_us": 1e6 * max(times)}
print(json.dumps(result))
"""


def main() -> None:
    """Time the products with one and with two threads; write blas.json."""
    measured = {}
    for load in ("idle", "busy"):
        spinners = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
        for spinner in spinners if load == "busy" else []:
            spinner.start()
        for threads in (1, 2):
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}
            done = subprocess.run(
                [sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True
            )
            measured[f"{load}, {threads} threads"] = json.loads(done.stdout)
        for spinner in spinners if load == "busy" else []:
            spinner.terminate()
    for setting, products in measured.items():
        for shape, times in products.items():
            median, worst = times["median_us"], times["worst_us"]
            print(f"{setting:18} {shape:16} median {median:8.1f} us, worst {worst:9.1f} us")
    print(write_result("blas", measured))


def _spin() -> None:
    while True:
        pass
