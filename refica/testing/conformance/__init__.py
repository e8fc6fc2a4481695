"""Is somebody's implementation of the model right? Cases with known answers, and what a wrong answer means.

The cases (``cases/v1``) are JSON and need no Python: a model with its parameters layer by layer, data, draws
or noise, and the answer with a tolerance. An implementation is judged in one of three ways:

- `Adapter`: Python functions, one for each level that is offered; `check` judges one case, for pytest;
- `Command`: a program in any language, started with a case on its stdin;
- `AnswersFile`: a JSON file of answers.

`run` asks for all answers and, where some are wrong, tells which of the known slips (a lost n/2 log 2π, σ for
σ², a forgotten 1/K, transposed weights, ...) explains them. `refica conform` is the same on the command line.
"""

from refica.testing.conformance.case import LEVELS, VERSION, Case, Layer, Model, Network, Power, cases
from refica.testing.conformance.diagnosis import Diagnosis, diagnose
from refica.testing.conformance.implementations import (
    Adapter,
    AnswersFile,
    Command,
    export,
    load_adapter,
)
from refica.testing.conformance.judging import Outcome, check, judge
from refica.testing.conformance.own import Refica
from refica.testing.conformance.report import Report, as_text, run, to_dict
from refica.testing.conformance.slips import SLIPS, Slip

__all__ = [
    "LEVELS",
    "SLIPS",
    "VERSION",
    "Adapter",
    "AnswersFile",
    "Case",
    "Command",
    "Diagnosis",
    "Layer",
    "Model",
    "Network",
    "Outcome",
    "Power",
    "Refica",
    "Report",
    "Slip",
    "as_text",
    "cases",
    "check",
    "diagnose",
    "export",
    "judge",
    "load_adapter",
    "run",
    "to_dict",
]
