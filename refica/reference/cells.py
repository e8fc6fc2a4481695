"""Branch and bound: where, on the lattices of some observations, the integrand is not negligible.

With F(z) = ‖x - g(z)‖²/2σ² + ‖z‖²/2, the integral is ∫ exp(-F(z)) dz, and F = ½‖q‖² for the residual
q(z) = ((x - g(z))/σ, z). On a cell c + G s, |s_j| <= 1, the decoder is a line with a remainder
(`refica.reference.lines`), and so is q = q(c) + Q s + ε, |ε| <= e. Hence on the whole cell

    √(2F) >= u·q(c) - Σ_j |u·Q_j| - |u·ε|,   u = q(c)/‖q(c)‖         as u is a unit vector,
    2F    >= Σ_d max(0, |q_d(c)| - Σ_j |Q_dj| - e_d)²                   component by component,

the first better on small cells and far from the manifold, the second on large ones. A cell whose bound
times its volume is negligible against the integral is dropped, and that product is added to the pruned
mass; others are cut in two, until they hold few lattice points or nothing that could be dropped.
"""

# notation: N observations, P lattices, C cells, m latent, n data, Q rivals

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from refica.likelihood import row_blocks
from refica.model import NonlinearICA
from refica.reference.lines import Lines
from refica.validation import Array

__all__ = [
    "Bounds",
    "Boxes",
    "Lattices",
    "Survey",
    "bounds",
    "halves",
    "lattice_points",
    "near_rivals",
    "survey",
    "towards_rivals",
    "unresolved",
]

FEW_POINTS = {1: 8.0, 2: 36.0, 3: 125.0}
"""Lattice points in a cell that is not cut further, by m: evaluating them costs about as much as a bound."""

RESOLVED = 2.0
"""How far q may move between neighbours on a lattice. A bump of the integrand has then a point within about
one of its standard deviations, and whatever is wrong with its sum shows in the alias terms."""

SWEEPS = 6
"""Sweeps of basis reduction; a basis that is not quite reduced only makes a lattice look coarser."""

NEGLIGIBLE = 1e-6
"""A coarse cell is not worth cutting if all of it is below this part of what matters."""

CELLS_AT_A_TIME = 2048
"""Cells that pass through the decoder together: their arrays stay in cache."""


class Lattices(NamedTuple):
    """P lattices z = centre + step k, k integer: ``row`` (P,) the observation that each belongs to,
    ``centre`` (P, m), ``step`` (P, m, m) with the steps in its columns, and ``rivals`` (P, Q, m): a
    lattice serves the points that are nearer to its centre than to any rival (the centre itself stands
    for an absent rival)."""

    row: Array
    centre: Array
    step: Array
    rivals: Array

    @property
    def log_volume(self) -> Array:
        """log |det step|, (P,): the weight of a point."""
        return np.asarray(np.linalg.slogdet(self.step)[1])


class Boxes(NamedTuple):
    """C cells of lattices: low <= k < high, (C, m) real, on lattice number ``lattice`` (C,)."""

    lattice: Array
    low: Array
    high: Array

    def at(self, which: Array | slice) -> Boxes:
        """Return some of them."""
        return Boxes(self.lattice[which], self.low[which], self.high[which])

    @property
    def width(self) -> Array:
        """Steps along each axis, (C, m)."""
        return np.asarray(self.high - self.low)

    @property
    def volume(self) -> Array:
        """Volume of each in cells of the lattice, (C,): about its number of points."""
        return np.asarray(self.width.prod(axis=1))

    @property
    def points(self) -> Array:
        """Number of points of each, (C,), as floats: that of a whole prior may exceed all integers."""
        return np.asarray((np.ceil(self.high) - np.ceil(self.low)).prod(axis=1))

    def placed(self, lattices: Lattices) -> tuple[Array, Array]:
        """Return the centres c (C, m) and generators G (C, m, m) of the cells in z."""
        step = lattices.step[self.lattice]
        middle = 0.5 * (self.low + self.high)
        c = lattices.centre[self.lattice] + np.einsum("cij,cj->ci", step, middle)
        return c, step * (0.5 * self.width)[:, None, :]


class Survey(NamedTuple):
    """What survives: ``boxes``; ``coarse`` (C,), whether on a box there may be a kink, or q move by more than
    `RESOLVED` from some point to the next; ``log_pruned`` (N,), log of a bound on the integral over the
    cells that were dropped; ``complete`` (N,), whether the cells allowed were enough; ``least`` (N,), the
    least F seen at a centre, and ``where`` (N, m)."""

    boxes: Boxes
    coarse: Array
    log_pruned: Array
    complete: Array
    least: Array
    where: Array


class Bounds(NamedTuple):
    """On cells: the centre ``c`` (C, m), F there, bounds ``low``, ``high`` (C,) of F; ``moves`` (C, m), how
    far q moves along each half axis, ``gram`` (C, m, m) the products of these movements, ``strays`` (C,), how
    far q strays from its line at most; and ``kinked`` (C,)."""

    c: Array
    F: Array
    low: Array
    high: Array
    moves: Array
    gram: Array
    strays: Array
    kinked: Array

    @property
    def roughness(self) -> Array:
        """How much F may differ from that of the line, where there may be a kink, (C,): ‖q‖ ‖ε‖ + ‖ε‖²/2."""
        return np.where(self.kinked, self.strays * (np.sqrt(2.0 * self.F) + 0.5 * self.strays), 0.0)


def survey(
    model: NonlinearICA,
    lines: Lines,
    x: Array,
    lattices: Lattices,
    boxes: Boxes,
    log_least: Array,
    most: int,
    tame: float | None = None,
) -> Survey:
    """Return the cells inside the boxes that matter to observations x (N, n).

    A cell is negligible if the integral over it is below exp(log_least) (N,). Others are cut until they
    hold few points or none that could be dropped; or, given ``tame``, until q moves by at most so much
    along half of each axis. At most ``most`` cells are looked at for an observation.
    """
    N, row, log_volume = len(x), lattices.row, lattices.log_volume
    few = FEW_POINTS[lattices.centre.shape[1]]
    visited, pruned = np.zeros(N), np.zeros(N)
    least, where = np.full(N, np.inf), np.zeros((N, lattices.centre.shape[1]))
    kept, coarse = [boxes.at(slice(0))], [np.zeros(0, dtype=bool)]
    while len(boxes.lattice):
        on = bounds(model, lines, x, lattices, boxes)
        i = row[boxes.lattice]
        visited += np.bincount(i, minlength=N)
        before = least.copy()
        np.minimum.at(least, i, on.F)
        lowest = (least[i] == on.F) & (before[i] > on.F)
        where[i[lowest]] = on.c[lowest]
        volume = boxes.volume
        log_mass = log_volume[boxes.lattice] + np.log(volume) - on.low - log_least[i]
        drop = log_mass < 0.0
        pruned += np.bincount(i[drop], np.exp(log_mass[drop]), minlength=N)
        drop |= visited[i] > most
        if tame is None:
            done = (volume <= few) | (log_volume[boxes.lattice] - on.high > log_least[i])
        else:
            done = on.moves.max(axis=1) <= tame
        keep = ~drop & done
        kept.append(boxes.at(keep))
        coarse.append((on.kinked | (_steps(boxes, on).max(axis=1) > RESOLVED))[keep])
        cut = ~drop & ~keep
        # on a lattice an axis is not cut within a step as long as another is longer
        moves = np.where(boxes.width > 1.0, on.moves, 0.0) if tame is None else on.moves
        boxes = halves(boxes.at(cut), moves[cut])
    with np.errstate(divide="ignore"):
        log_pruned = log_least + np.log(pruned)
    kept_boxes = Boxes(*map(np.concatenate, zip(*kept, strict=True)))
    return Survey(kept_boxes, np.concatenate(coarse), log_pruned, visited <= most, least, where)


def unresolved(
    model: NonlinearICA, lines: Lines, x: Array, lattices: Lattices, boxes: Boxes, log_least: Array, most: int
) -> Array:
    """Return about how much of the integral, relative to exp(log_least), lies in the boxes where q moves by
    more than `RESOLVED` from one point to the next, or hangs on a kink, by lattice and axis, (P, m).

    There the lattice may pass over a ridge or a bump, and its sums would not tell; nor would they always of
    a kink. The boxes are cut to fractions of a step until they are dropped, or are resolved, or F at the
    centre stands for the cell. The search ends for an observation once its part exceeds 1, or ``most``
    cells have been looked at.
    """
    N, m = len(x), lattices.centre.shape[1]
    row, log_volume = lattices.row, lattices.log_volume
    mass, visited = np.zeros((len(row), m)), np.zeros(N)
    while len(boxes.lattice):
        on = bounds(model, lines, x, lattices, boxes)
        i = row[boxes.lattice]
        visited += np.bincount(i, minlength=N)
        log_volumes = np.log(boxes.volume) + log_volume[boxes.lattice] - log_least[i]
        wide = (_steps(boxes, on) > RESOLVED) | on.kinked[:, None]
        matters = np.asarray((log_volumes - on.low > math.log(NEGLIGIBLE)) & wide.any(axis=1))
        small = on.moves.sum(axis=1) + on.strays < 1.0
        small &= ~on.kinked | (boxes.width <= 1.0).all(axis=1)
        part = np.where(_longest_step(boxes, on) > RESOLVED, 1.0, np.minimum(1.0, on.roughness))
        for axis in range(m):
            at = matters & small & wide[:, axis]
            inside = np.exp((log_volumes - on.F)[at]) * part[at]
            mass[:, axis] += np.bincount(boxes.lattice[at], inside, minlength=len(row))
        beyond = np.bincount(row, mass.sum(axis=1), minlength=N) > 1.0
        tired = visited > most
        cut = matters & ~small & ~(beyond | tired)[i]
        mass[np.unique(boxes.lattice[matters & ~small & tired[i]])] = np.inf
        boxes = halves(boxes.at(cut), on.moves[cut])
    return mass


def _steps(boxes: Boxes, on: Bounds) -> Array:
    """Return about how far at most q moves from one point of a box to the next, by axis, (C, m)."""
    return np.asarray(2.0 * (on.moves + 2.0 * on.strays[:, None]) / boxes.width)


def _longest_step(boxes: Boxes, on: Bounds) -> Array:
    """Return how far q moves, as its line does, along the longest of m steps that span the lattice, (C,).

    Not along the axes: a lattice that is fine along one axis sees what is slanted against another. The steps
    are those of a basis reduced pair by pair (Lagrange), b_i <- b_i - round(b_i·b_j / b_j·b_j) b_j.
    """
    half = 0.5 * boxes.width
    gram = on.gram / (half[:, :, None] * half[:, None, :])
    m = gram.shape[1]
    for _ in range(SWEEPS):
        for i, j in itertools.permutations(range(m), 2):
            k = np.where(gram[:, j, j] < gram[:, i, i], np.rint(gram[:, i, j] / gram[:, j, j]), 0.0)
            gram[:, i, :] -= k[:, None] * gram[:, j, :]
            gram[:, :, i] -= k[:, None] * gram[:, :, j]
    return np.asarray(np.sqrt(np.einsum("cjj->cj", gram).max(axis=1)))


def bounds(model: NonlinearICA, lines: Lines, x: Array, lattices: Lattices, boxes: Boxes) -> Bounds:
    """Return the bounds of F on boxes, some at a time."""
    parts = [
        _bounds_of_some(model, lines, x, lattices, boxes.at(rows))
        for rows in row_blocks(len(boxes.lattice), CELLS_AT_A_TIME)
    ]
    return Bounds(*map(np.concatenate, zip(*parts, strict=True)))


def _bounds_of_some(model: NonlinearICA, lines: Lines, x: Array, lattices: Lattices, boxes: Boxes) -> Bounds:
    """Return the bounds of F on boxes; one beyond a rival has low = inf."""
    sigma = math.sqrt(model.sigma2)
    c, G = boxes.placed(lattices)
    line = lines(c, G)
    r = (x[lattices.row[boxes.lattice]] - line.g) / sigma
    q = np.concatenate([r, c], axis=1)
    Q = np.concatenate([-line.J / sigma, G.transpose(0, 2, 1)], axis=2)  # (C, m, n + m), as J is
    e = np.concatenate([line.error / sigma, np.zeros_like(c)], axis=1)

    size = np.sqrt(np.einsum("cd,cd->c", q, q))
    along = np.abs(np.einsum("cjd,cd->cj", Q, q)).sum(axis=1)
    along += np.einsum("ch,ch->c", np.abs(r @ line.mix), line.spread) / sigma
    first = np.maximum(size - along / np.maximum(size, np.finfo(float).tiny), 0.0)
    each = np.maximum(np.abs(q) - np.abs(Q).sum(axis=1) - e, 0.0)
    low = 0.5 * np.maximum(first**2, np.einsum("cd,cd->c", each, each))
    if lattices.rivals.shape[1]:
        ahead, reach = towards_rivals(lattices, boxes.lattice, c, G)
        low[(ahead > reach).any(axis=1)] = np.inf

    gram = Q @ Q.transpose(0, 2, 1)
    steep, strays = np.sqrt(np.einsum("cjj->cj", gram)), np.sqrt(np.einsum("cd,cd->c", e, e))
    high = 0.5 * (size + steep.sum(axis=1) + strays) ** 2
    # the remainder is put down to the axes by their length in z: that only guides the cutting
    length = np.sqrt(np.einsum("cij,cij->cj", G, G))
    moves = steep + strays[:, None] * length / length.sum(axis=1, keepdims=True)
    return Bounds(c, 0.5 * size**2, low, high, moves, gram, strays, line.kinked)


def towards_rivals(lattices: Lattices, lattice: Array, z: Array, G: Array) -> tuple[Array, Array]:
    """Return how far points z (K, m) are on the way to the rivals, and how far G (K, m, m) reaches, (K, Q).

    (z - middle)·(rival - centre), positive beyond the border half-way, and Σ_j |G_j·(rival - centre)|.
    """
    way = lattices.rivals - lattices.centre[:, None, :]
    middle = 0.5 * (lattices.rivals + lattices.centre[:, None, :])
    way, middle = way[lattice], middle[lattice]
    ahead = np.einsum("kqm,kqm->kq", z[:, None, :] - middle, way)
    return ahead, np.abs(np.einsum("kqm,kmj->kqj", way, G)).sum(axis=2)


def near_rivals(lattices: Lattices, boxes: Boxes) -> Array:
    """Whether a step from somewhere in a box may lead beyond the border to a rival, (C,)."""
    if not lattices.rivals.shape[1]:
        return np.zeros(len(boxes.lattice), dtype=bool)
    c, G = boxes.placed(lattices)
    ahead, reach = towards_rivals(lattices, boxes.lattice, c, G + lattices.step[boxes.lattice])
    return np.asarray((ahead + reach > 0.0).any(axis=1))


def halves(boxes: Boxes, moves: Array) -> Boxes:
    """Return both halves of each box, cut across the axis that ``moves`` (C, m) is largest for."""
    axis, all_of = moves.argmax(axis=1), np.arange(len(moves))
    low, high = boxes.low.copy(), boxes.high.copy()
    middle = 0.5 * (low[all_of, axis] + high[all_of, axis])
    low[all_of, axis] = high[all_of, axis] = middle
    return Boxes(
        np.tile(boxes.lattice, 2), np.concatenate([boxes.low, low]), np.concatenate([high, boxes.high])
    )


def lattice_points(boxes: Boxes) -> tuple[Array, Array]:
    """Return the points k (K, m) of all boxes and the box (K,) that each is from."""
    first = np.ceil(boxes.low).astype(int)
    size = np.ceil(boxes.high).astype(int) - first
    count = size.prod(axis=1)
    box = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(box)) - np.repeat(np.cumsum(count) - count, count)
    k = np.empty((len(box), size.shape[1]), dtype=int)
    for axis in reversed(range(size.shape[1])):
        place, k[:, axis] = np.divmod(place, size[box, axis])
    k += first[box]
    return k, box
