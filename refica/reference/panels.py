"""Gauss-Legendre on upright boxes: for what a lattice cannot do, such as a ridge that bends, or a kink.

The boxes on which the integrand matters are cut until it is tame on each, and then wherever two rules
of different order disagree. Their disagreement, summed over the boxes, is reported as the error: it is
that of the rule of lower order, while the value is that of the other.
"""

# notation: C boxes, K points, m latent

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refica.likelihood import Nodes, decode, row_blocks
from refica.model import NonlinearICA
from refica.reference.cells import Boxes, Lattices, bounds, halves, survey
from refica.reference.lines import Lines
from refica.reference.patches import prior_boxes
from refica.validation import Array

__all__ = ["Panels", "panels_for"]

ORDERS = (11, 12)
"""Points per axis of the two rules."""

TAME = 2.0
"""How far q may move along half an axis of a box: the rule of order 11 is then right to about 1e-11."""

MOST_CELLS = {1: 50_000, 2: 2_000_000, 3: 500_000}
"""Cells that are looked at, by m: some seconds. For m = 2 they follow ridges, which may be long."""

MOST_POINTS = {1: 2**17, 2: 2**24, 3: 2**22}
"""Points of the finer rule on all boxes, by m: 10 seconds and 400 MB at most."""

TRIM = 1e-3
"""A point is left out if it contributes less than this part of what a dropped cell may."""

MOST_ROUNDS = 60
"""Rounds of cutting: a kink at m = 1 is closed in to 2^-50 of a box."""

POINTS_AT_A_TIME = 2**15
"""Points evaluated together: their arrays stay in cache."""


class Panels(NamedTuple):
    """``points``: z (K, m) and log weights (K,); ``error``, relative, of the integral over them."""

    points: Nodes
    error: float


def panels_for(
    model: NonlinearICA, lines: Lines, x: Array, log_mass: float, depth: float, tolerance: float
) -> Panels | None:
    """Return panels for one observation x (1, n), or None if not even their first round can be afforded.

    ``log_mass`` is about log ∫ exp(-F); what is exp(-depth) of that does not matter.
    """
    m = model.latent_dim
    upright = Lattices(np.zeros(1, dtype=int), np.zeros((1, m)), np.eye(m)[None], np.zeros((1, 0, m)))
    log_least = np.array([log_mass - depth])
    found = survey(model, lines, x, upright, prior_boxes(upright, log_least), log_least, MOST_CELLS[m], TAME)
    boxes, most = found.boxes, MOST_POINTS[m] // ORDERS[1] ** m
    if not found.complete[0] or len(boxes.lattice) > most:
        return None
    F = float(found.least[0])  # about the least there is: exp(F - F(z)) does not overflow
    integral, error = _integrate(model, lines, x, upright, boxes, F)
    pruned = math.exp(found.log_pruned[0] + F)
    for _ in range(MOST_ROUNDS):
        excess = error > 0.25 * tolerance * integral.sum() / len(error)
        if error.sum() + pruned <= tolerance * integral.sum() or not excess.any():
            break
        if len(error) + excess.sum() > most:
            break
        worst = boxes.at(excess)
        parts = halves(worst, worst.width)
        new_integral, new_error = _integrate(model, lines, x, upright, parts, F)
        boxes = Boxes(*(np.concatenate([a[~excess], b]) for a, b in zip(boxes, parts, strict=True)))
        integral = np.concatenate([integral[~excess], new_integral])
        error = np.concatenate([error[~excess], new_error])
    points, trimmed = _trimmed(model, x, boxes, F, TRIM * math.exp(log_least[0] + F))
    return Panels(points, float((error.sum() + pruned + trimmed) / integral.sum()))


def _trimmed(model: NonlinearICA, x: Array, boxes: Boxes, least: float, small: float) -> tuple[Nodes, float]:
    """Return the points of the finer rule that contribute more than ``small``, and the sum of the others."""
    z, log_weight, trimmed = [], [], 0.0
    for part in _parts(boxes, ORDERS[1]):
        points = _points(part, ORDERS[1])
        f = _contributions(model, x, points, least)
        keep = f > small
        z.append(points.z[keep])
        log_weight.append(points.log_weight[keep])
        trimmed += float(f[~keep].sum())
    return Nodes(np.concatenate(z), np.concatenate(log_weight)), trimmed


def _integrate(
    model: NonlinearICA, lines: Lines, x: Array, upright: Lattices, boxes: Boxes, least: float
) -> tuple[Array, Array]:
    """Return ∫ exp(least - F) over each box by the finer rule, and its error, (C,).

    That is how far the two rules disagree. On a box with a kink they may agree and both be wrong, the kink
    lying beyond their outermost points: there it is what the kink can do at most.
    """
    coarse, fine = (
        np.concatenate(
            [
                _contributions(model, x, _points(part, order), least)
                .reshape(len(part.lattice), -1)
                .sum(axis=1)
                for part in _parts(boxes, order)
            ]
        )
        for order in ORDERS
    )
    roughness = bounds(model, lines, x, upright, boxes).roughness
    return fine, np.abs(fine - coarse) + fine * np.expm1(np.minimum(2.0 * roughness, 50.0))


def _parts(boxes: Boxes, order: int) -> Iterator[Boxes]:
    """Yield consecutive boxes with about `POINTS_AT_A_TIME` points at a time."""
    for rows in row_blocks(len(boxes.lattice), max(1, POINTS_AT_A_TIME // order ** boxes.low.shape[1])):
        yield boxes.at(rows)


def _contributions(model: NonlinearICA, x: Array, points: Nodes, least: float) -> Array:
    """exp(least - F) times the weight, at each point, (K,)."""
    r = x - decode(model.decoder, model.theta, points.z)
    F = 0.5 * (np.einsum("kn,kn->k", r, r) / model.sigma2 + np.einsum("km,km->k", points.z, points.z))
    return np.asarray(np.exp(points.log_weight - F + least))


def _points(boxes: Boxes, order: int) -> Nodes:
    """Return the tensor rule on all boxes, z (K, m) and log weights (K,), box by box."""
    m = boxes.low.shape[1]
    t, w = np.polynomial.legendre.leggauss(order)
    t = np.array(list(itertools.product(t, repeat=m)))
    log_w = np.array([math.fsum(each) for each in itertools.product(np.log(w), repeat=m)])
    middle, half = 0.5 * (boxes.low + boxes.high), 0.5 * boxes.width
    z = middle[:, None, :] + half[:, None, :] * t
    log_weight = np.log(half).sum(axis=1)[:, None] + log_w
    return Nodes(z.reshape(-1, m), log_weight.ravel())
