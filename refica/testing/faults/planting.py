"""Planting a fault: one function replaced, wherever refica holds it, and everything put back."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from refica.testing.faults.catalogue import CATALOGUE
from refica.testing.faults.fault import Fault
from refica.validation import check_choice

__all__ = ["Fault", "graded", "located", "plant"]


@contextmanager
def plant(name: str) -> Iterator[Fault]:
    """Plant a fault of the catalogue into refica for the length of a ``with`` block.

    Faults may be nested. Threads of this process see them; other processes do not.

    Parameters
    ----------
    name : str
        A key of `CATALOGUE`.

    Raises
    ------
    ValueError
        If it is not one.

    Examples
    --------
    >>> from refica import MLP, NonlinearICA
    >>> model = NonlinearICA(MLP((1, 1)), [1.0, 0.0], sigma2=1.0)
    >>> with plant("lost-constant") as fault:
    ...     wrong = model.log_joint([[0.0]], [[0.0]])
    >>> round(float((wrong - model.log_joint([[0.0]], [[0.0]]))[0, 0]), 12)  # ½ log 2π
    0.918938533205
    >>> fault.sentence
    'n/2 log 2π is left out of log N(x; g, σ² I)'
    """
    fault = CATALOGUE[check_choice("fault", name, CATALOGUE)]
    owner, attribute = located(fault.place)
    true = vars(owner)[attribute]
    wrong = fault.wrong(true)
    holders = _holders(owner, attribute, true)
    try:
        for holder, key in holders:
            setattr(holder, key, wrong)
        yield fault
    finally:
        for holder, key in holders:
            setattr(holder, key, true)
        # A module that was imported while the fault was planted holds it under a name of its own.
        for holder, key in _holders(owner, attribute, wrong):
            setattr(holder, key, true)


def graded(check: Callable[[], Any], names: Collection[str] = tuple(CATALOGUE)) -> list[str]:
    """Return the faults that survive a check: those with which it raises no AssertionError.

    Parameters
    ----------
    check : callable
        Takes nothing and raises AssertionError, or any other exception, if something is wrong.
    names : collection of str
        The faults to plant, one after the other.

    Raises
    ------
    ValueError
        If the check fails with no fault planted, or a name is not in the catalogue.

    Examples
    --------
    >>> from refica import gauss_hermite
    >>> def check():
    ...     assert abs(np.exp(gauss_hermite(3).points(1)[1]).sum() - 1.0) < 1e-12
    >>> import numpy as np
    >>> graded(check, ["hermite-weights", "hermite-nodes"])  # the weights alone do not tell
    ['hermite-nodes']
    """
    if not _passes(check):
        raise ValueError("the check must pass with no fault planted, or nothing can be said of it")
    survivors = []
    for name in names:
        with plant(name):
            if _passes(check):
                survivors.append(name)
    return survivors


def located(place: str) -> tuple[Any, str]:
    """Return the owner (a module or class) and the attribute that a place in refica names.

    Raises
    ------
    ValueError
        If there is nothing there.
    """
    parts = ["refica", *place.split(".")]
    for count in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:-1]:
            owner = getattr(owner, part, None)
        if owner is not None and parts[-1] in vars(owner):
            return owner, parts[-1]
        break
    raise ValueError(f"there is no {place!r} in refica")


def _holders(owner: Any, attribute: str, value: object) -> list[tuple[Any, str]]:
    """Who holds a value: its owner, and each module of refica that has imported it."""
    found = [(owner, attribute)]
    for name, module in list(sys.modules.items()):
        if (name == "refica" or name.startswith("refica.")) and module is not owner:
            found += [(module, key) for key, held in list(vars(module).items()) if held is value]
    return found


def _passes(check: Callable[[], Any]) -> bool:
    try:
        check()
    except Exception:  # a fault may show as any error
        return False
    return True
