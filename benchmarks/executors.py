"""One machine, several, and a million observations: that an executor changes no bit, and what it costs.

The same likelihood with gradient, and the same short fit, without an executor, by threads, by processes and
by `dask.distributed` on a local cluster where that is installed; then a million observations, with the
memory that is taken beyond them and the results.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

import refica as ri
from benchmarks._results import write_result

WORKERS = 2
OBSERVATIONS = 20_000
FIT_OBSERVATIONS, FIT_ITERATIONS = 5000, 10
MANY, MANY_SIGMA2 = 1_000_000, 0.25
"""So much noise that a grid of 401 nodes resolves it; memory does not depend on that, time does."""


def main() -> None:
    """Run all; write executors.json."""
    rows = list(_compared())
    many = _many()
    lines = summary(rows, many)
    print("\n".join(lines))
    print(
        write_result(
            "executors",
            {"cores": os.cpu_count(), "workers": WORKERS, "executors": rows, "many": many, "summary": lines},
        )
    )


@contextmanager
def dask_executor() -> Iterator[Executor]:
    """An executor on a local cluster of processes.

    Raises
    ------
    ImportError
        If dask.distributed is not installed.
    """
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor()


EXECUTORS: dict[str, Callable[[], Any]] = {
    "threads": lambda: ThreadPoolExecutor(WORKERS),
    "processes": lambda: ProcessPoolExecutor(WORKERS),
    "dask": dask_executor,
}


def _compared() -> Iterator[dict[str, Any]]:
    """Each executor's times, and whether its numbers are those of no executor, bit for bit."""
    model = ri.example("tanh").model
    _, x = model.sample(OBSERVATIONS, 0)
    start = ri.NonlinearICA(model.decoder, model.decoder.init(0), 1.0)
    expected: tuple[bytes, ...] = ()
    for name in ("none", *EXECUTORS):
        with ExitStack() as stack:
            try:
                executor = stack.enter_context(EXECUTORS[name]()) if name != "none" else None
            except ImportError:
                yield {"executor": name, "installed": False}
                continue
            integrator = ri.Quadrature(ri.uniform_grid(2001, 9.0))
            ri.log_likelihood(model, x[:100], integrator, executor=executor)  # workers start
            began = time.perf_counter()
            result = ri.log_likelihood(model, x, integrator, executor=executor)
            seconds = time.perf_counter() - began
            began = time.perf_counter()
            some, steps = x[:FIT_OBSERVATIONS], FIT_ITERATIONS
            fit = ri.fit_mle(start, some, integrator, n_starts=1, max_iter=steps, executor=executor)
            fit_seconds = time.perf_counter() - began
        assert result.gradient is not None
        numbers = (
            result.per_observation.tobytes(),
            result.gradient.theta.tobytes(),
            fit.model.theta.tobytes(),
        )
        expected = expected or numbers
        yield {
            "executor": name,
            "installed": True,
            "seconds": seconds,
            "fit_seconds": fit_seconds,
            "identical": numbers == expected,
        }


def _many() -> dict[str, Any]:
    """A million observations: time and peak of traced memory beyond data and results."""
    model = ri.example("tanh").model.replace(sigma2=MANY_SIGMA2)
    _, x = model.sample(MANY, 1)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    began = time.perf_counter()
    result = ri.log_likelihood(model, x, ri.Quadrature(ri.uniform_grid(401, 9.0)))
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    results = result.per_observation.nbytes + result.error.nbytes + result.converged.nbytes
    return {
        "observations": MANY,
        "data_MB": x.nbytes / 1e6,
        "results_MB": results / 1e6,
        "beyond_MB": (peak - results) / 1e6,
        "seconds": seconds,
        "converged": float(np.mean(result.converged)),
    }


def summary(rows: list[dict[str, Any]], many: dict[str, Any]) -> list[str]:
    """Return the measurements as lines of text."""
    lines = ["executor    likelihood, s   fit, s   every bit the same", "-" * 51]
    for row in rows:
        if row["installed"]:
            same = "yes" if row["identical"] else "NO"
            lines.append(f"{row['executor']:10} {row['seconds']:14.1f} {row['fit_seconds']:8.1f}   {same}")
        else:
            lines.append(f"{row['executor']:10}  not installed")
    size = f"data {many['data_MB']:.0f} MB, results {many['results_MB']:.0f} MB"
    took = (
        f"{many['beyond_MB']:.0f} MB beyond these, {many['seconds']:.0f} s with gradient and error estimate"
    )
    return [
        *lines,
        "",
        f"{many['observations']} observations ({size}), 401 nodes:",
        f"{took}; converged for {many['converged']:.2%}",
    ]


if __name__ == "__main__":
    main()
