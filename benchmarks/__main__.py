"""``python -m benchmarks NAME``: run one of the measurements; without a name, list them."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys

# One BLAS thread, before NumPy is imported: what is measured is the code, not the contention for cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import benchmarks


def main() -> int:
    """Run the named measurement; what follows its name is for it, if it takes arguments."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: python -m benchmarks NAME, with NAME one of: {', '.join(names)}", file=sys.stderr)
        return 2
    name, arguments = sys.argv[1], sys.argv[2:]
    run = importlib.import_module(f"benchmarks.{name}").main
    if arguments and not inspect.signature(run).parameters:
        print(f"python -m benchmarks {name} takes no arguments, got {' '.join(arguments)}", file=sys.stderr)
        return 2
    run(*([arguments] if arguments else []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
