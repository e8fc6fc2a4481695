"""``python -m benchmarks NAME``: run one of the measurements; without a name, list them."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

# One BLAS thread, before NumPy is imported: what is measured is the code, not the contention for cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import benchmarks


def main() -> int:
    """Run the named measurement."""
    names = sorted(
        module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")
    )
    if len(sys.argv) != 2 or sys.argv[1] not in names:
        print(f"usage: python -m benchmarks NAME, with NAME one of: {', '.join(names)}", file=sys.stderr)
        return 2
    importlib.import_module(f"benchmarks.{sys.argv[1]}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
