"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Fault"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A wrong variant of one function of refica.

    Attributes
    ----------
    name : str
        As in the catalogue.
    place : str
        The function that is replaced, as a dotted name below ``refica``: ``likelihood.tiles``,
        ``decoders.MLP.vjp``.
    sentence : str
        What is wrong.
    wrong : callable
        From the true function to the wrong one.
    """

    name: str
    place: str
    sentence: str
    wrong: Callable[[Any], Any]
