"""What Hypothesis calls when it is imported (entry point ``hypothesis`` in pyproject.toml)."""

import sys

__all__ = ["register"]

STRATEGIES = "refica.testing.strategies"


def register() -> None:
    """Make ``from_type`` know refica's types, by importing the strategies.

    If these are what imports Hypothesis, they are half done at this moment, and register themselves later.
    """
    if STRATEGIES not in sys.modules:
        __import__(STRATEGIES)
