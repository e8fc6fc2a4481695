"""The main job as README shows it: the default example and Fisher's iris, tables and a figure."""

from __future__ import annotations

import time
import warnings
from typing import Any

from benchmarks._results import FOLDER, write_result
from refica import plot
from refica.cli.workers import workers
from refica.compare import Comparison, Settings, compare, fold_count
from refica.compare_report import as_text, to_dict
from refica.datasets import from_example, iris


def main() -> None:
    """Run both comparisons and write compare-tanh.json, compare-iris.json and compare-tanh.png."""
    for data in (from_example(), iris()):
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # iris has one duplicate row
            with workers(fold_count(data) + 1) as executor:
                result = compare(data, Settings(latent_dim=1), print, executor)
        print(as_text(result))
        print(write_result(f"compare-{data.name}", _small(result, time.perf_counter() - began)))
        if data.truth is not None:
            models = {e.name: e.model for e in result.entries if e.model is not None}
            axes = plot.manifold(models, data.x, names=data.columns)
            path = FOLDER / f"compare-{data.name}.png"
            path.write_bytes(plot.figure_png(axes.figure))
            print(path)


def _small(result: Comparison, seconds: float) -> dict[str, Any]:
    """The results without the histories."""
    plain = to_dict(result)
    for entry in plain["entries"]:
        del entry["history"]
    return {**plain, "seconds_in_all": seconds, "table": as_text(result).splitlines()}
