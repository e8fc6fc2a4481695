"""Gauss-Legendre on upright boxes: for what a lattice cannot do, such as a ridge that bends, or a kink.

The boxes on which the integrand matters are cut until it is tame on each. Two rules of neighbouring order
are put on a box, of an order that depends on how much of the integral may lie there: most boxes lie far
down a slope, where few points are enough. Where the two disagree most the box is cut.
Their disagreement, summed over the boxes, is reported as the error: it is that of the rule of lower order,
while the value is that of the other.

What matters depends on the integral itself, and on how many boxes will be dropped. Both are learned from
a first pass that is content with a rough answer.
"""

# notation: C boxes, K points, m latent, R order of a rule; F as in `cells`

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

TAME = 3.0
"""How far q may move along half an axis of a box."""

GAIN = 2.5
"""By how many nats the error of a rule falls, at least, from one order to the next, on nine in ten boxes that
are tame: the others are cut, which costs less than a higher order on all."""

LEAST_ORDER, MOST_ORDER = 2, 15
"""Points per axis of the lower of the two rules on a box."""

ROUGH = 1e-2
"""Tolerance of the first pass: for a tenth of what all costs it tells what all depends on."""

PRUNED = 0.1
"""Part of the tolerance that the boxes dropped may take up, and as much the points left out."""

RULED = 0.5
"""Part of the tolerance that the disagreement of rules may take up."""

FEW_DROPPED = 1000.0
"""Boxes that are expected to be dropped by a first pass, in terms of one that is just so."""

GROWTH = 3.0
"""By how many times that grows from a pass to the next: ridges are cut finer, and wider strips of them."""

MOST_PASSES = 8
"""The rough pass, the one that should do, and others where more was dropped than expected."""

LEAST_ERROR = 1e-16
"""An error that is less is rounding, and says nothing of the rules."""

HOPELESS = 500.0
"""Log of a relative error that is as good as any larger one, and of which thousands can be summed."""

MOST_CELLS = {1: 50_000, 2: 6_000_000, 3: 500_000}
"""Cells that are looked at in a pass, by m: 15 seconds. For m = 2 they follow ridges, which may be long."""

MOST_POINTS = {1: 2**17, 2: 2**26, 3: 2**22}
"""Points of the higher rule on all boxes, by m: for m = 2 half a minute, and 1.6 GB if all of them count."""

MOST_ROUNDS = 60
"""Rounds of cutting: a kink at m = 1 is closed in to 2^-50 of a box."""

POINTS_AT_A_TIME = 2**15
"""Points evaluated together: their arrays stay in cache."""


class Panels(NamedTuple):
    """``points``: z (K, m) and log weights (K,), K >= 1; ``error``, that of the log of the integral."""

    points: Nodes
    error: float


class _Outlook(NamedTuple):
    """What a pass tells the next one: ``log_mass``, about log ∫ exp(-F); ``dropped``, how many boxes like the
    last one dropped there will be; ``ease``, by how many nats rules are better than their order promises."""

    log_mass: float
    dropped: float
    ease: float


class _Integrand(NamedTuple):
    """exp(-F) for one observation x (1, n), on boxes of the ``upright`` lattice of step 1."""

    model: NonlinearICA
    lines: Lines
    x: Array
    upright: Lattices

    def log_terms(self, points: Nodes) -> Array:
        """-F plus the log weight, at each point, (K,)."""
        model, z = self.model, points.z
        r = self.x - decode(model.decoder, model.theta, z)
        F = 0.5 * (np.einsum("kn,kn->k", r, r) / model.sigma2 + np.einsum("km,km->k", z, z))
        return np.asarray(points.log_weight - F)


class _Sums(NamedTuple):
    """On boxes, by (C,): the ``order`` of the lower of two rules, and logs of the integral of exp(-F) by the
    higher one and of its error."""

    boxes: Boxes
    order: Array
    log_integral: Array
    log_error: Array

    @property
    def points(self) -> float:
        """How many points the higher rules have on all boxes."""
        return float(((self.order + 1.0) ** self.boxes.low.shape[1]).sum())

    @property
    def log_total(self) -> float:
        """log ∫ exp(-F) over all boxes."""
        return float(np.logaddexp.reduce(self.log_integral))

    @property
    def error(self) -> float:
        """That of the integral over all boxes, relative."""
        return math.exp(min(np.logaddexp.reduce(self.log_error) - self.log_total, HOPELESS))

    def worst(self, rest: float) -> Array:
        """Whether a box is among the fewest without which the relative error is at most ``rest``, (C,)."""
        rising = np.argsort(self.log_error)
        with_others = np.cumsum(np.exp(np.minimum(self.log_error[rising] - self.log_total, HOPELESS)))
        worst = np.empty(len(rising), dtype=bool)
        worst[rising] = with_others > rest
        return worst

    def with_instead(self, parts: _Sums, of: Array) -> _Sums:
        """Return the sums with the parts of some boxes, ``of`` (C,), in their place."""
        boxes = Boxes(*(np.concatenate([a[~of], b]) for a, b in zip(self.boxes, parts.boxes, strict=True)))
        return _Sums(boxes, *(np.concatenate([a[~of], b]) for a, b in zip(self[1:], parts[1:], strict=True)))


def panels_for(
    model: NonlinearICA, lines: Lines, x: Array, log_mass: float, tolerance: float
) -> Panels | None:
    """Return panels for one observation x (1, n), or None if not even rough ones can be afforded, or these
    may be all wrong.

    ``log_mass`` is about log ∫ exp(-F), which is wanted to ``tolerance``, or to `ROUGH` if that is less. The
    error of an integral to a relative e is -log(1 - e) of its log.
    """
    m = model.latent_dim
    upright = Lattices(np.zeros(1, dtype=int), np.zeros((1, m)), np.eye(m)[None], np.zeros((1, 0, m)))
    f, outlook = _Integrand(model, lines, x, upright), _Outlook(log_mass, FEW_DROPPED, 0.0)
    tolerance = min(tolerance, ROUGH)
    wanted, best, error = ROUGH, None, math.inf
    for _ in range(MOST_PASSES):
        log_least = outlook.log_mass + math.log(PRUNED * wanted / outlook.dropped)
        least = np.array([log_least])
        found = survey(model, lines, x, upright, prior_boxes(upright, least), least, MOST_CELLS[m], TAME)
        log_pruned = float(found.log_pruned[0])
        if found.complete[0] and not len(found.boxes.lattice):
            outlook = outlook._replace(log_mass=log_pruned)  # the mass is below that
            continue
        sums = _refined(f, found.boxes, outlook, wanted) if found.complete[0] else None
        if sums is None:
            break
        pruned = math.exp(min(log_pruned - sums.log_total, HOPELESS))
        if sums.error + pruned < error:
            best, error = sums, sums.error + pruned
        if wanted == tolerance and pruned <= 2.0 * PRUNED * tolerance:
            break
        dropped = max(FEW_DROPPED, GROWTH * math.exp(log_pruned - log_least))
        ease = max(0.0, math.log(RULED * wanted / max(sums.error, LEAST_ERROR)))
        outlook, wanted = _Outlook(sums.log_total, dropped, ease), tolerance
    if best is None:
        return None
    points, trimmed = _trimmed(f, best, PRUNED * tolerance)
    error += trimmed
    return Panels(points, -math.log1p(-error)) if error < 1.0 else None


def _refined(f: _Integrand, boxes: Boxes, outlook: _Outlook, tolerance: float) -> _Sums | None:
    """Return sums whose relative error is below the tolerance, or that have as many points as may be; None
    if they would have more from the start."""
    most = MOST_POINTS[f.model.latent_dim]
    log_share = outlook.log_mass + outlook.ease + math.log(tolerance / len(boxes.lattice))
    sums = _sums(f, boxes, log_share)
    if sums.points > most:
        return None
    for _ in range(MOST_ROUNDS):
        if sums.error <= RULED * tolerance:
            break
        log_share = sums.log_total + math.log(RULED * tolerance / len(sums.order))
        worst = sums.worst(0.5 * RULED * tolerance)
        parts = _sums(f, halves(sums.boxes.at(worst), sums.boxes.at(worst).width), log_share)
        if sums.points + parts.points > most:
            break
        sums = sums.with_instead(parts, worst)
    return sums


def _sums(f: _Integrand, boxes: Boxes, log_share: float) -> _Sums:
    """Integrate over each box, by rules whose error should be below exp(log_share).

    The error is how far two rules disagree. On a box with a kink they may agree and both be wrong, the kink
    lying beyond their outermost points: there it is what the kink can do at most.
    """
    on = bounds(f.model, f.lines, f.x, f.upright, boxes)
    excess = np.log(boxes.volume) - on.low - log_share
    order = np.clip(np.ceil(1.0 + excess / GAIN), LEAST_ORDER, MOST_ORDER).astype(int)
    coarse, fine = np.empty(len(order)), np.empty(len(order))
    for R in np.unique(order):
        these = order == R
        coarse[these], fine[these] = (_log_integrals(f, boxes.at(these), each) for each in (R, R + 1))
    with np.errstate(divide="ignore"):
        disagreement = np.maximum(coarse, fine) + np.log(-np.expm1(-np.abs(fine - coarse)))
        kinks = fine + np.log(np.expm1(np.minimum(2.0 * on.roughness, 50.0)))
    return _Sums(boxes, order, fine, np.logaddexp(disagreement, kinks))


def _log_integrals(f: _Integrand, boxes: Boxes, order: int) -> Array:
    """Return log ∫ exp(-F) over each box by the rule of an order, (C,)."""
    logs = []
    for part in _parts(boxes, order):
        terms = f.log_terms(_points(part, order)).reshape(len(part.lattice), -1)
        top = terms.max(axis=1)
        logs.append(top + np.log(np.exp(terms - top[:, None]).sum(axis=1)))
    return np.concatenate(logs)


def _trimmed(f: _Integrand, sums: _Sums, part: float) -> tuple[Nodes, float]:
    """Return the points but those that contribute least, and what part these do, at most ``part``."""
    log_total, trimmed, used = sums.log_total, 0.0, 0
    small = log_total + math.log(part / sums.points)
    # room for all: what is never written to takes up no memory
    z, log_weight = np.empty((int(sums.points), sums.boxes.low.shape[1])), np.empty(int(sums.points))
    for order in np.unique(sums.order) + 1:
        for boxes in _parts(sums.boxes.at(sums.order + 1 == order), order):
            points = _points(boxes, order)
            log_terms = f.log_terms(points)
            keep = np.flatnonzero(log_terms >= small)  # equal where rounding swallows log(part)
            new = slice(used, used + len(keep))
            z[new], log_weight[new], used = points.z[keep], points.log_weight[keep], new.stop
            trimmed += float(np.exp(log_terms[log_terms < small] - log_total).sum())
    return Nodes(z[:used], log_weight[:used]), trimmed


def _parts(boxes: Boxes, order: int) -> Iterator[Boxes]:
    """Yield consecutive boxes with about `POINTS_AT_A_TIME` points at a time."""
    for rows in row_blocks(len(boxes.lattice), max(1, POINTS_AT_A_TIME // order ** boxes.low.shape[1])):
        yield boxes.at(rows)


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
