"""The catalogue: all faults by name, in the order in which a number passes through refica."""

from __future__ import annotations

from refica.testing.faults import of_bounds, of_integrals, of_likelihoods, of_models
from refica.testing.faults.fault import Fault

__all__ = ["CATALOGUE"]

CATALOGUE: dict[str, Fault] = {
    fault.name: fault
    for fault in (*of_models.FAULTS, *of_integrals.FAULTS, *of_likelihoods.FAULTS, *of_bounds.FAULTS)
}
"""Each fault by its name."""
