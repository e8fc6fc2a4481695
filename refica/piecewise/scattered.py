"""Nodes of several observations, as many for each as it needs."""

# notation: N observations, m latent, K nodes; S nodes of all observations together

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refica.likelihood import Nodes
from refica.validation import Array

__all__ = ["Scattered", "pack", "unpack"]


class Scattered(NamedTuple):
    """Nodes ``z`` (S, m) with ``log_weight`` (S,) for Lebesgue measure, of the observations ``row`` (S,), in
    their order; each of the N observations has at least one."""

    row: Array
    z: Array
    log_weight: Array


def pack(scattered: Scattered) -> Nodes:
    """Return nodes (N, K, m) and log weights (N, K), K the most that an observation has.

    One with fewer repeats its first node, with log weight -inf.
    """
    row, z, log_weight = scattered
    count = np.bincount(row)
    start = np.cumsum(count) - count
    place = np.arange(len(row)) - start[row]
    packed = np.repeat(z[start][:, None, :], count.max(), axis=1)
    packed[row, place] = z
    weights = np.full(packed.shape[:2], -np.inf)
    weights[row, place] = log_weight
    return Nodes(packed, weights)


def unpack(scattered: Scattered) -> Iterator[Nodes]:
    """Yield the nodes (K, m) and log weights (K,) of one observation after the other."""
    end = np.cumsum(np.bincount(scattered.row))
    for start, stop in zip((0, *end[:-1]), end, strict=True):
        yield Nodes(scattered.z[start:stop], scattered.log_weight[start:stop])
