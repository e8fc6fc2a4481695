"""Running the checks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refica.validation import check_count, check_seed, shown
from refica.verify import (
    blocks,
    bound_checks,
    bound_gradient_checks,
    gradient_checks,
    integrators,
    likelihood_checks,
    model_checks,
    remarks,
)
from refica.verify.cases import Setting, cases
from refica.verify.findings import Check, Finding, Note, Observed, Remark, summarised

__all__ = ["CHECKS", "MODELS", "Report", "results", "verify"]

MODELS = 12
"""Random models on which each formula is compared, if nobody asks for another number."""

CHECKS: tuple[Check, ...] = (
    *blocks.CHECKS,
    *model_checks.CHECKS,
    *gradient_checks.CHECKS,
    *likelihood_checks.CHECKS,
    *integrators.CHECKS,
    *bound_checks.CHECKS,
    *bound_gradient_checks.CHECKS,
)
"""All checks in order: what a check stands on comes before it, so that the first failure is the cause."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found.

    Attributes
    ----------
    findings : tuple of Finding
        One for each formula, in the order in which one stands on the other.
    remarks : tuple of Remark
        On the documents, each with its demonstration.
    models, seed : int
        How many random models, and from which seed.
    decoder : str
        The user's decoder, "" if the built-in ones were used.
    seconds : float
        How long it took.
    """

    findings: tuple[Finding, ...]
    remarks: tuple[Remark, ...]
    models: int
    seed: int
    decoder: str
    seconds: float

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that failed; the first is the one to look at first."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def passed(self) -> bool:
        """Whether all formulas hold and all remarks are confirmed."""
        return not self.failed and all(remark.confirmed for remark in self.remarks)

    def __repr__(self) -> str:
        """Show the verdict, not the findings."""
        return (
            f"Report({len(self.findings)} formulas, {len(self.failed)} failed, {len(self.remarks)} remarks, "
            f"{self.models} models, {self.seconds:.0f} s)"
        )


def verify(models: int = MODELS, decoder: Any = None, seed: int = 0) -> Report:
    """Check every formula of the source documents, and what refica makes of it, by independent routes.

    Parameters
    ----------
    models : int
        Number of random models, >= 1, on which each formula is compared.
    decoder : Decoder, optional
        Your own decoder (see `refica.decoders.Decoder`), in place of the built-in ones; derivatives are
        taken of it by the complex step if it takes complex parameters, otherwise by differences.
    seed : int
        Of everything random.

    Raises
    ------
    TypeError, ValueError
        If ``decoder`` is not one, or a number is out of range.

    Examples
    --------
    >>> report = verify(models=1)
    >>> report.passed, len(report.findings) > 30
    (True, True)
    """
    began = time.perf_counter()
    findings = tuple(results(models, decoder, seed))
    found = tuple(remarks.remarks())
    words = "" if decoder is None else shown(decoder)
    return Report(findings, found, models, seed, words, time.perf_counter() - began)


def results(models: int = MODELS, decoder: Any = None, seed: int = 0) -> Iterator[Finding]:
    """Yield what each check finds, one after the other, as `verify` collects it.

    Raises
    ------
    TypeError, ValueError
        As `verify`.
    """
    models, seed = check_count("models", models), check_seed("seed", seed)
    missing = [] if decoder is None else [name for name in DECODER if not hasattr(decoder, name)]
    if missing:
        raise TypeError(f"decoder must have {', '.join(DECODER)}, got {shown(decoder)} without {missing[0]}")
    setting = _setting(models, decoder, seed)
    for check in CHECKS:
        yield _run(check, setting)


DECODER = ("latent_dim", "data_dim", "n_params", "init", "__call__", "vjp", "jvp")
"""What a decoder must have."""


def _setting(models: int, decoder: Any, seed: int) -> Setting | Exception:
    """The cases; or the error that making them raised, which then every check reports."""
    try:
        return Setting(tuple(cases(models, seed, decoder)), decoder, seed)
    except Exception as error:  # a fault in a decoder shows here first
        return error


def _run(check: Check, setting: Setting | Exception) -> Finding:
    """What one check finds; an exception in it is a finding too."""
    began = time.perf_counter()
    observed: list[Observed] = []
    notes: dict[str, None] = {}
    error = ""
    try:
        if isinstance(setting, Exception):
            raise setting
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for each in check.run(setting):
                if isinstance(each, Note):
                    notes[each.words] = None
                else:
                    observed.append(each)
    except Exception as raised:  # whatever is wrong, the report goes on
        error = f"{type(raised).__name__}: {raised}"
    return Finding(check, summarised(observed), tuple(notes), error, time.perf_counter() - began)
