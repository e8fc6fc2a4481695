"""What a slip is, and the levels of cases by what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refica.testing.conformance.case import Case
from refica.testing.conformance.formulas import Answer, Formulas

__all__ = [
    "BOUNDS",
    "GRADIENTS",
    "INTEGRALS",
    "JOINT",
    "MAPS",
    "Change",
    "N_of",
    "Slip",
    "changed",
    "everywhere",
    "n_of",
    "scaled",
    "sigma2_of",
]

Change = Callable[[Formulas], Formulas]

MAPS = ("decoder", "decoder-gradient")
JOINT = ("log-joint", "monte-carlo")
INTEGRALS = ("log-marginal", "gradient", "density", "posterior")
BOUNDS = ("elbo", "elbo-gradient", "iwae")
GRADIENTS = ("gradient", "density", "elbo-gradient")


@dataclass(frozen=True, slots=True)
class Slip:
    """A known way to be wrong.

    Attributes
    ----------
    name : str
        Several slips may share one: variants of the same mistake.
    sentence : str
        What is wrong.
    levels : tuple of str
        Where it is looked for.
    change : callable
        From formulas to formulas.
    """

    name: str
    sentence: str
    levels: tuple[str, ...]
    change: Change


def everywhere(**formulas: Any) -> Change:
    """Return the change that puts these formulas in the place of the right ones."""
    return lambda f: replace(f, **formulas)


def changed(wrong: Callable[[Case, Answer], Answer]) -> Change:
    """A change of what is answered, by quantity; those that are not named stay."""

    def change(f: Formulas) -> Formulas:
        right = f.answer

        def answer(case: Case, found: Answer) -> Answer:
            found = right(case, found)
            return {**found, **{k: v for k, v in wrong(case, found).items() if k in found}}

        return replace(f, answer=answer)

    return change


def scaled(**factors: Callable[[Case], float]) -> Change:
    """Return the change that multiplies quantities of an answer by a factor of the case."""
    return changed(lambda case, found: {k: found[k] * by(case) for k, by in factors.items() if k in found})


def sigma2_of(case: Case) -> float:
    """Return σ² of the case's model, 1 where it has none."""
    return case.model.sigma2 if case.model else 1.0


def n_of(case: Case) -> int:
    """Return the dimension n of the data, 1 where there is no model."""
    return case.model.data_dim if case.model else 1


def N_of(case: Case) -> int:
    """Return the number N of observations."""
    return len(np.asarray(case.x))
