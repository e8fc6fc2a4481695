"""Trapezoidal sums on lattices, refined until the alias terms that can be seen are below the tolerance.

By Poisson's formula the sum T_h of an integrand over a lattice is the integral plus the values of its
Fourier transform at the dual lattice, which for analytic integrands fall exponentially in 1/h. Those that
T_2h has beyond T_h can be read off the same points: for each χ in {0, 1}^m but 0

    a_χ = Σ_k (-1)^(χ·k) f(z_k) / Σ_k f(z_k),        |T_2h - T_h| <= T_h Σ_χ |a_χ|,

for the lattice of step 2h through the mode and for all its shifts by h alike. The sum on the right is
reported as the error: it is that of T_2h, while the value is T_h, whose error is about the square. The
square is not reported, since it is not honest (it covers the truth in 76-100 % of cases). An axis is
refined where it has to do with a large a_χ.

What no point comes near leaves no trace in the a_χ. So before a grid is accepted, `unresolved` searches
the cells between the points for mass that the lattice might step over.
"""

# notation: N observations, P lattices, K points, m latent; alias (P, 2^m) holds |Σ_k (-1)^(χ·k) f(z_k)|

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refica.likelihood import Nodes, decode, rounding_error
from refica.model import NonlinearICA
from refica.reference.cells import (
    Boxes,
    Lattices,
    lattice_points,
    near_rivals,
    survey,
    towards_rivals,
    unresolved,
)
from refica.reference.lines import Lines
from refica.reference.patches import Posteriors, lattices_on, posteriors, prior_boxes, with_modes_from
from refica.validation import Array

__all__ = ["Grid", "depth_for", "grid_for"]

MARGIN = 1e-4
"""A cell is dropped if the integral over it is below this part of rtol: some thousands are dropped."""

TRIM = 1e-3
"""A point is left out if it contributes less than this part of what a cell may."""

AIM = 0.1
"""Part of the tolerance that a refinement aims at, so that a second one is seldom needed; also the most that
cells dropped, or points next to a border between lattices, may contribute before they are what is changed."""

FINEST, COARSEST = 0.4, 0.95
"""Factors between which the step of an axis changes in one refinement."""

MOST_ROUNDS = 16
"""Refinements of a grid. Most need one or two; the limits below end the others."""

LOWER = 1.0
"""By how much F must be lower somewhere than at the modes for another mode to be sought there."""

MOST_ATTEMPTS = 6
"""Grids tried for an observation: one, and another where lattices were not apart, cells were dropped too
early or a mode had been missed."""

MOST_CELLS = {1: 10_000, 2: 300_000, 3: 1_000_000}
"""Cells that are looked at for one observation between two refinements, by m: a second or two."""

MOST_POINTS = {1: 2**14, 2: 2**19, 3: 2**22}
"""Points of the grid of one observation, by m. Where more are needed, panels are usually better, but for
m = 3, where they are seldom affordable; there it takes some seconds, and 300 MB."""

POINTS_AT_A_TIME = 2**15
"""Points evaluated together: their arrays stay in cache."""


class Grid(NamedTuple):
    """Grids of N observations: ``points``, for each its z (K_i, m) and log weights (K_i,), K_i >= 1;
    ``error`` (N,) of log p(x_i), without rounding; ``tolerance`` (N,) that it was to meet; ``log_mass`` (N,),
    about log ∫ exp(-F)."""

    points: list[Nodes]
    error: Array
    tolerance: Array
    log_mass: Array

    @property
    def converged(self) -> Array:
        """Whether the error is below the tolerance, (N,)."""
        return self.error <= self.tolerance


class _Task(NamedTuple):
    """The integrals to be done: those of observations x (N, n), of which exp(-depth) (N,) does not matter."""

    model: NonlinearICA
    lines: Lines
    x: Array
    about: Posteriors
    depth: Array
    rtol: float

    def tolerance(self, log_integral: Array) -> Array:
        """rtol max(1, |log p(x_i)|), or what rounding may do if that is more, (N,)."""
        log_p = log_integral - self.about.constant
        wanted = self.rtol * np.maximum(1.0, np.abs(log_p))
        return np.maximum(wanted, rounding_error(self.x, self.model.sigma2, log_p))


class _Sums(NamedTuple):
    """Sums over the points of lattices, relative to exp(log_mass): ``alias`` (P, 2^m), that of χ = 0 being
    the plain sum; ``leak`` (N,), over points next to a border; ``trimmed`` (N,), over negligible points;
    ``lower`` (N,), F is lower at a point, ``where`` (N, m), than at all modes known: these sums are void;
    and the points that are not negligible (K,), by observation."""

    alias: Array
    leak: Array
    trimmed: Array
    lower: Array
    where: Array
    row: Array
    z: Array
    log_weight: Array


class _Attempt(NamedTuple):
    """Grids, and what other lattices are needed for: ``leaky`` (N,), mass between lattices; ``shallow`` (N,),
    by how much the depth was too small, 0 where it was not; ``lower`` (N,), F is lower at ``where`` (N, m)
    than at all modes known."""

    grid: Grid
    leaky: Array
    shallow: Array
    lower: Array
    where: Array


class _Verdict(NamedTuple):
    """What the sums are worth: ``error`` and ``tolerance`` (N,), relative; ``leaky`` (N,), mass between
    lattices; ``shallow`` (N,), by how much the depth is too small, 0 where it is not; and by lattice
    ``alias`` (P, 2^m - 1) = |a_χ| and ``doubtful`` (P, m), axes along which something may be missed."""

    error: Array
    tolerance: Array
    leaky: Array
    shallow: Array
    alias: Array
    doubtful: Array


def grid_for(model: NonlinearICA, lines: Lines, x: Array, rtol: float) -> Grid:
    """Return grids for observations x (N, n): log p(x_i) to rtol max(1, |log p(x_i)|), or to rounding."""
    about = posteriors(model, x)
    N, h = len(x), _first_step(model.latent_dim, rtol)
    depth, merge, rows = np.full(N, depth_for(rtol)), np.zeros(N, dtype=bool), np.arange(N)
    grid = Grid([Nodes(x, x)] * N, np.empty(N), np.empty(N), np.empty(N))
    for _ in range(MOST_ATTEMPTS):
        task = _Task(model, lines, x[rows], about.at(rows), depth[rows], rtol)
        attempt = _refine(task, lattices_on(model, x[rows], task.about, h, task.depth, merge[rows]))
        for i, points in zip(rows, attempt.grid.points, strict=True):
            grid.points[i] = points
        grid.error[rows], grid.tolerance[rows] = attempt.grid.error, attempt.grid.tolerance
        grid.log_mass[rows] = attempt.grid.log_mass
        merge[rows] |= attempt.leaky
        depth[rows] += attempt.shallow
        lost = attempt.lower
        if lost.any():
            about = with_modes_from(model, x, about, rows[lost], attempt.where[lost])
        rows = rows[attempt.leaky | (attempt.shallow > 0.0) | lost]
        if not len(rows):
            break
    return grid


def depth_for(rtol: float) -> float:
    """Return how many nats below the integral a cell does not matter."""
    return -math.log(MARGIN * rtol)


def _first_step(m: int, rtol: float) -> float:
    """The step h at which a standard normal density has Σ_χ |a_χ| = 2 m exp(-π²/2h²) = AIM rtol."""
    return math.pi / math.sqrt(2.0 * math.log(2.0 * m / (AIM * rtol)))


def _refine(task: _Task, lattices: Lattices) -> _Attempt:
    """Refine each observation's lattices until the error is below the tolerance or a limit is met."""
    N, m = len(task.x), task.model.latent_dim
    log_least = task.about.log_mass - task.depth
    grid = Grid(
        _laplace(task.about), np.full(N, np.inf), task.tolerance(task.about.log_mass), task.about.log_mass
    )
    active, leaky, lower = np.ones(N, dtype=bool), np.zeros(N, dtype=bool), np.zeros(N, dtype=bool)
    where, shallow, pruned = np.zeros((N, m)), np.zeros(N), np.zeros(N)
    boxes = prior_boxes(lattices, log_least)
    for _ in range(MOST_ROUNDS):
        found = survey(task.model, task.lines, task.x, lattices, boxes, log_least, MOST_CELLS[m])
        count = np.bincount(lattices.row[found.boxes.lattice], found.boxes.points, minlength=N)
        at_centre = active & (found.least < task.about.F.min(axis=1) - LOWER)
        where[at_centre], lower = found.where[at_centre], lower | at_centre
        active &= found.complete & (count <= MOST_POINTS[m]) & ~lower
        if not active.any():
            break
        pruned += np.exp(found.log_pruned - task.about.log_mass)
        chosen = active[lattices.row[found.boxes.lattice]]
        boxes = found.boxes.at(chosen)
        sums = _sums(task, lattices, boxes)
        where[sums.lower], lower = sums.where[sums.lower], lower | sums.lower
        active &= ~lower
        verdict = _judge(task, lattices, boxes, found.coarse[chosen], sums, pruned)
        for i, points in _by_observation(sums, active):
            grid.points[i] = points
        grid.error[active], grid.tolerance[active] = verdict.error[active], verdict.tolerance[active]
        leaky, shallow = leaky | (active & verdict.leaky), np.where(active, verdict.shallow, shallow)
        active &= ~grid.converged & ~leaky & (shallow == 0.0)
        lattices, boxes = _finer(lattices, boxes.at(active[lattices.row[boxes.lattice]]), verdict)
    grid.error[lower] = np.inf
    return _Attempt(grid, leaky, shallow, lower, where)


def _judge(
    task: _Task, lattices: Lattices, boxes: Boxes, coarse: Array, sums: _Sums, pruned: Array
) -> _Verdict:
    """Return what the sums over the boxes are worth; nothing is said of observations without boxes."""
    N, row = len(task.x), lattices.row
    total = np.maximum(np.bincount(row, sums.alias[:, 0], minlength=N), np.finfo(float).tiny)
    alias = sums.alias[:, 1:] / total[row, None]
    error = np.bincount(row, alias.sum(axis=1), minlength=N) + (pruned + sums.trimmed + sums.leak) / total
    log_integral = task.about.log_mass + np.log(total)
    tolerance = task.tolerance(log_integral)
    # only where all else is well is it worth asking whether the lattice passes over something
    look = boxes.at(coarse & (error <= tolerance)[row[boxes.lattice]])
    most = MOST_CELLS[task.model.latent_dim]
    missed = unresolved(
        task.model, task.lines, task.x, lattices, look, log_integral + np.log(tolerance), most
    )
    error += tolerance * np.bincount(row, missed.sum(axis=1), minlength=N)
    poor, share = error > tolerance, AIM * tolerance * total
    excess = np.where(poor, pruned / share, 0.0)
    with np.errstate(divide="ignore"):
        error = -np.log1p(-np.minimum(error, 1.0))
    return _Verdict(
        error,
        tolerance,
        poor & (sums.leak > share),
        np.where(excess > 1.0, 1.0 + np.log(np.maximum(excess, 1.0)), 0.0),
        alias,
        missed > AIM,
    )


def _sums(task: _Task, lattices: Lattices, boxes: Boxes) -> _Sums:
    """Evaluate the integrand at the points of the boxes."""
    N, P, m = len(task.x), len(lattices.row), task.model.latent_dim
    log_weight, least = lattices.log_volume, TRIM * np.exp(-task.depth)
    floor = task.about.F.min(axis=1) - LOWER
    cosets, leak, trimmed, kept, below = np.zeros(P * 2**m), np.zeros(N), np.zeros(N), [], []
    for part in _batches(boxes.at(boxes.points > 0.0)):
        k, box = lattice_points(part)
        lattice = part.lattice[box]
        row = lattices.row[lattice]
        z = _place(lattices, lattice, k)
        r = task.x[row] - decode(task.model.decoder, task.model.theta, z)
        F = 0.5 * (np.einsum("kn,kn->k", r, r) / task.model.sigma2 + np.einsum("km,km->k", z, z))
        low = np.flatnonzero(floor[row] > F)  # exp(-F) may be beyond all numbers there
        below.append((row[low], F[low], z[low]))
        F[low] = np.inf
        f = np.exp(log_weight[lattice] - F - task.about.log_mass[row])
        near = np.flatnonzero(near_rivals(lattices, part)[box])
        if len(near):
            ahead, reach = towards_rivals(lattices, lattice[near], z[near], lattices.step[lattice[near]])
            f[near[(ahead > 0.0).any(axis=1)]] = 0.0
            border = near[(ahead + reach > 0.0).any(axis=1)]
            leak += np.bincount(row[border], f[border], minlength=N)
        cosets += np.bincount(lattice * 2**m + (k & 1) @ (1 << np.arange(m)), f, minlength=P * 2**m)
        keep = f > least[row]
        trimmed += np.bincount(row[~keep], f[~keep], minlength=N)
        kept.append((row[keep], z[keep], log_weight[lattice[keep]]))
    row, z, weights = map(np.concatenate, zip(*kept, strict=True))
    order = np.argsort(row, kind="stable")
    alias = np.abs(cosets.reshape(P, -1) @ _signs(m))
    return _Sums(alias, leak, trimmed, *_lowest(below, N, m), row[order], z[order], weights[order])


def _lowest(below: list[tuple[Array, Array, Array]], N: int, m: int) -> tuple[Array, Array]:
    """Return which rows (N,) have points among those given by row, F and z, and their lowest, (N, m)."""
    row, F, z = map(np.concatenate, zip(*below, strict=True))
    falling = np.argsort(-F)
    lower, where = np.zeros(N, dtype=bool), np.zeros((N, m))
    lower[row], where[row[falling]] = True, z[falling]  # of several for one row the last stays
    return lower, where


def _batches(boxes: Boxes) -> Iterator[Boxes]:
    """Yield consecutive boxes with about `POINTS_AT_A_TIME` points at a time."""
    batch = (np.cumsum(boxes.points) // POINTS_AT_A_TIME).astype(int)
    starts = np.flatnonzero(np.diff(batch, prepend=-1))
    for start, stop in zip(starts, np.append(starts[1:], len(batch)), strict=True):
        yield boxes.at(np.arange(start, stop))


def _place(lattices: Lattices, lattice: Array, k: Array) -> Array:
    """z = centre + step k for points k (K, m) of the lattices (K,)."""
    z, step = lattices.centre[lattice], lattices.step[lattice]
    for axis in range(k.shape[1]):
        z += step[:, :, axis] * k[:, axis, None]
    return z


def _signs(m: int) -> Array:
    """(-1)^(χ·k) for parities k (rows) and χ (columns), both as m binary digits."""
    digits = np.arange(2**m)[:, None] >> np.arange(m) & 1
    return np.asarray((-1.0) ** (digits @ digits.T))


def _by_observation(sums: _Sums, active: Array) -> Iterator[tuple[int, Nodes]]:
    """Yield the points of each active observation."""
    ends = np.searchsorted(sums.row, np.arange(len(active) + 1))
    for i in np.flatnonzero(active & (np.diff(ends) > 0)):
        these = slice(ends[i], ends[i + 1])
        yield int(i), Nodes(sums.z[these], sums.log_weight[these])


def _finer(lattices: Lattices, boxes: Boxes, verdict: _Verdict) -> tuple[Lattices, Boxes]:
    """Return lattices with shorter steps, and the same boxes in their points.

    An axis has to do with the a_χ that have χ_axis = 1. With a ∝ exp(-c/h), as for a function that is
    analytic in a strip, the step that takes a to the aim is h log(a) / log(aim).
    """
    m, alias = lattices.centre.shape[1], verdict.alias
    aim = (AIM * verdict.tolerance[lattices.row] / alias.shape[1])[:, None]
    chi = np.arange(1, 2**m)[:, None] >> np.arange(m) & 1
    largest = np.stack([alias[:, chi[:, axis] == 1].max(axis=1) for axis in range(m)], axis=1)
    ratio = np.log(np.clip(largest, np.finfo(float).tiny, 0.5)) / np.log(aim)
    factor = np.where(largest > 3.0 * aim, np.clip(ratio, FINEST, COARSEST), 1.0)
    factor = np.where(verdict.doubtful, FINEST, factor)
    low, high = (end / factor[boxes.lattice] for end in (boxes.low, boxes.high))
    return lattices._replace(step=lattices.step * factor[:, None, :]), Boxes(boxes.lattice, low, high)


def _laplace(about: Posteriors) -> list[Nodes]:
    """Return the modes with Laplace's weights: what is left where no grid can be afforded."""
    there = np.isfinite(about.F)
    return [
        Nodes(about.modes[i, present], about.log_masses[i, present] + about.F[i, present])
        for i, present in enumerate(there)
    ]
