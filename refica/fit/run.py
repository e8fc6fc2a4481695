"""A run: from a first state to an ending, with checkpoints on the way, for every method and model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from refica.fit.checkpoint import Keeper
from refica.fit.watch import Watch
from refica.model import NonlinearICA

__all__ = ["run"]

State = TypeVar("State")
Ending = TypeVar("Ending")


def run(
    first: Callable[[], State],
    advance: Callable[[State], State],
    ending: Callable[[State], Ending | None],
    rng: np.random.Generator,
    watch: Watch,
    keeper: Keeper,
    start: NonlinearICA,
) -> tuple[State, Ending | None]:
    """Return the last state and how it ended; None if by Ctrl-C.

    ``advance`` is a function of the state and of ``rng`` alone. So a fit that was interrupted, by Ctrl-C or
    a callback or the loss of its machine, goes on from its checkpoint as if nothing had happened: what a
    round had done by then is done again.
    """
    state = keeper.restore(first(), rng, start)
    kept = state, rng.bit_generator.state
    try:
        while (end := ending(state)) is None:
            keeper.keep(*kept)
            state = advance(state)
            if not watch.stopped:
                kept = state, rng.bit_generator.state
    except KeyboardInterrupt:
        end, state = None, kept[0]
    finally:
        watch.close()
    keeper.keep(*kept, now=True)
    return state, end
