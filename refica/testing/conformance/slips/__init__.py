"""Known slips, each as a replacement of formulas: what an implementation that made it would answer.

Names that are in `refica.testing.faults.CATALOGUE` too mean the same.
"""

from refica.testing.conformance.slips import of_bounds, of_densities, of_gradients, of_maps, of_sums
from refica.testing.conformance.slips.slip import Slip

__all__ = ["SLIPS", "Slip"]

SLIPS: tuple[Slip, ...] = (
    *of_maps.SLIPS,
    *of_densities.SLIPS,
    *of_sums.SLIPS,
    *of_gradients.SLIPS,
    *of_bounds.SLIPS,
)
"""All of them, in the order in which a number passes through an implementation."""
