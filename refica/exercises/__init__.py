"""The three exercises of the document, answered on one page whose code is executed."""

from refica.exercises.run import FULL, QUICK, Effort, page

__all__ = ["FULL", "QUICK", "Effort", "page"]
