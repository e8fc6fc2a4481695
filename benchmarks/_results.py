"""Where results go: small JSON and PNG files beside this one, with the command that makes them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import scipy

import refica
from refica.files import write_json

FOLDER = Path(__file__).parent / "results"


def write_result(name: str, measured: dict[str, Any]) -> Path:
    """Write ``results/NAME.json``: the measurement, how it was made and with what."""
    path = FOLDER / f"{name}.json"
    made = {
        "command": f"python -m benchmarks {name.partition('-')[0]}",
        "refica": refica.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    write_json(path, {"made_by": made, **measured}, non_finite="null")
    return path
