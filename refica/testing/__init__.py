"""refica's own tests, lent to others: gradients checked, and a catalogue of known ways to be wrong.

Nothing here needs more than NumPy and SciPy; what needs another package is imported by its own name.
"""

from refica.testing.gradients import GradientCheck, TaylorSlope, check_gradient, taylor_slope

__all__ = ["GradientCheck", "TaylorSlope", "check_gradient", "taylor_slope"]
