"""The modes of log p(x_i, z) over z: where, for each observation, the posterior has its mass.

The starts are the local maxima of log p(x_i, z) on a lattice that all observations share, highest
first; from each one `refica.ascent` climbs to a maximum. Ends that coincide are one mode.

Beyond the lattice's radius R the log joint is at most C - R²/2, with C = -n/2 log 2πσ² - m/2 log 2π. Of an
observation far from the manifold the best mode found may be lower than that, and a better one lie out there:
it is searched again from lattices twice, four times .. as wide.
"""

# notation: N observations, S starts, C modes, m latent, n data, K points of the lattice; A (.., m, m)
# precision

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import spatial, special, stats

from refica.ascent import climb
from refica.likelihood import decode, row_blocks
from refica.model import LOG_2PI, NonlinearICA, log_prior
from refica.validation import Array

__all__ = ["Modes", "find_modes", "laplace_mass", "log_volume"]

LATTICE = {1: (1601, 8.0), 2: (101, 6.0), 3: (33, 5.25), 4: (9, 4.0)}
"""Points per axis and radius of the lattice of starts, by m: as fine as some thousand points allow."""

FINE = 25
"""Points per axis from which a summit need only be above its neighbours along the axes."""

SCATTERED = 4096
"""Number of points that stand for a lattice where m is above those of `LATTICE`."""

BATCH = 8
"""Starts that are followed at a time. Most observations need no second batch."""

NEWS = 1e-6
"""Relative growth of the mass found (nats) below which a batch of starts counts as having brought nothing
new, so that the search ends."""

BLOCK = 1024
"""Observations searched at a time: bounds the memory for their searches to some tens of MB."""

DOUBLINGS = 14
"""Of the lattice's radius: beyond its 16 000-fold the log joint is below -4e9."""

FAINT = 7.0
"""Nats below the best mode at which one beyond the lattice is no longer looked for: it would have a
thousandth of the mass of a mode as narrow."""

LATTICE_TILE = 2**17
"""Bound on (observations x points of the lattice) looked at in one go: 1 MiB an array, so in cache."""

SAME = 0.3
"""Distance, in posterior standard deviations, within which two ends of a search are one mode."""


class Modes(NamedTuple):
    """The modes found, those of an observation sorted by `laplace_mass`, largest first.

    ``modes`` (N, C, m); ``log_joint`` (N, C) = log p(x_i, z), -inf for an absent mode, whose other entries
    repeat the first one's; ``hessian`` (N, C, m, m) positive definite: minus the Hessian of the log joint,
    or Gauss-Newton's matrix where that is indefinite or the mode sits on a kink; ``converged`` (N, C)
    whether it is a maximum: the gradient vanishes to rounding, or on a kink no direction rises (False: the
    iteration limit, or a saddle);
    ``complete`` (N,) whether all local maxima on the lattices served as starts, or the last ones that did
    brought nothing new and there are few modes for so many starts, and nothing worth it can be beyond them.
    """

    modes: Array
    log_joint: Array
    hessian: Array
    converged: Array
    complete: Array


def find_modes(model: NonlinearICA, x: Array, most_starts: int = 64, far: bool = True) -> Modes:
    """Return the modes of log p(x_i, z) for observations x (N, n), from at most ``most_starts`` starts each.

    Needs of the decoder no more than its protocol. Every observation is searched by itself: what is found
    for it does not depend on the others, only the number C of columns does. ``far``: also beyond the lattice,
    where that is not excluded; for more than four latent dimensions there is nothing to double.
    """
    search = _search_far if far and model.latent_dim in LATTICE else _search
    blocks = [search(model, x[rows], most_starts) for rows in row_blocks(len(x), BLOCK)]
    C = max(block.log_joint.shape[1] for block in blocks)
    return Modes._make(map(np.concatenate, zip(*(_widen(block, C) for block in blocks), strict=True)))


def modes_from(model: NonlinearICA, x: Array, starts: Array) -> Modes:
    """Return the modes that searches from given starts (N, S, m) end at."""
    return _distinct(_from_starts(model, x, starts, np.ones(starts.shape[:2], dtype=bool)))


def _search_far(model: NonlinearICA, x: Array, most_starts: int) -> Modes:
    """Search from lattices that double in width, until nothing beyond them can matter."""
    found, rows = _search(model, x, most_starts), np.arange(len(x))
    for doubling in range(DOUBLINGS):
        rows = rows[_radius_that_matters(model, found, rows) > LATTICE[model.latent_dim][1] * 2.0**doubling]
        if not len(rows):
            return found
        more = _search(model, x[rows], most_starts, 2.0 ** (doubling + 1))
        found = _merged(found, rows, more, found.complete[rows] & more.complete)
    found.complete[rows] = False
    return found


def _radius_that_matters(model: NonlinearICA, found: Modes, rows: Array) -> Array:
    """R with C - R²/2 = `FAINT` below the best mode, for some rows (R,)."""
    C = -0.5 * (model.data_dim * (LOG_2PI + math.log(model.sigma2)) + model.latent_dim * LOG_2PI)
    return np.asarray(np.sqrt(2.0 * np.maximum(C - found.log_joint[rows].max(axis=1) + FAINT, 0.0)))


def _merged(found: Modes, rows: Array, more: Modes, complete: Array) -> Modes:
    """Return the modes with those that another search found for some rows, of which there were R."""
    before = Modes._make(part[rows] for part in found)
    both = [np.concatenate(pair, axis=1) for pair in zip(before[:4], more[:4], strict=True)]
    after = _distinct(Modes._make([*both, complete]))
    C = max(found.log_joint.shape[1], after.log_joint.shape[1])
    found, after = _widen(found, C), _widen(after, C)
    for part, update in zip(found, after, strict=True):
        part[rows] = update
    return found


def _search(model: NonlinearICA, x: Array, most_starts: int, scale: float = 1.0) -> Modes:
    """Search from the highest starts, then from the next ones while they bring something new."""
    starts, present, complete = _starts(model, x, most_starts, scale)
    found = _distinct(_from_starts(model, x, starts[:, :BATCH], present[:, :BATCH]))
    exhausted, rows = complete & ~present[:, BATCH:].any(axis=1), np.arange(len(x))
    found = found._replace(complete=exhausted)
    for first in range(BATCH, starts.shape[1], BATCH):
        rows = rows[~found.complete[rows]]
        if not len(rows):
            break
        batch = slice(first, first + BATCH)
        more = _from_starts(model, x[rows], starts[rows, batch], present[rows, batch])
        before = _total_mass(Modes._make(part[rows] for part in found))
        exhausted = complete[rows] & ~present[rows, first + BATCH :].any(axis=1)
        found = _merged(found, rows, more, exhausted)
        news = _total_mass(Modes._make(part[rows] for part in found)) - before
        # many modes for the starts so far: it is likely that there are more
        many = 2 * (found.log_joint[rows] > -np.inf).sum(axis=1) > first + BATCH
        found.complete[rows] |= (news < NEWS) & ~many
    return found


def _from_starts(model: NonlinearICA, x: Array, starts: Array, present: Array) -> Modes:
    """Return the ends of the searches from starts (N, S, m), where present (N, S), as they come."""
    N, S, m = starts.shape
    i, _ = np.nonzero(present)
    ends = climb(model, x[i], starts[present])
    found = Modes(
        np.zeros((N, S, m)),
        np.full((N, S), -np.inf),
        np.broadcast_to(np.eye(m), (N, S, m, m)).copy(),
        np.zeros((N, S), dtype=bool),
        np.zeros(N, dtype=bool),
    )
    for part, end in zip(found, ends, strict=False):
        part[present] = end
    return found


def _widen(found: Modes, C: int) -> Modes:
    """Return the modes with C columns, the new ones absent."""
    old = found.log_joint.shape[1]
    columns = np.where(np.arange(C) < old, np.arange(C), 0)
    wider = Modes._make([*(part[:, columns] for part in found[:4]), found.complete.copy()])
    wider.log_joint[:, old:] = -np.inf
    return wider


def _total_mass(modes: Modes) -> Array:
    """log of the summed masses, (N,)."""
    return np.asarray(np.logaddexp.reduce(laplace_mass(modes), axis=1))


def laplace_mass(modes: Modes) -> Array:
    """log of the mass of the Gaussian that osculates the joint density at each mode, (N, C).

    log p(x, z*) + m/2 log 2π - ½ log det A: Laplace's approximation of the mode's share of p(x).
    """
    return modes.log_joint + log_volume(modes)


def log_volume(modes: Modes) -> Array:
    """log ∫ exp(-½ zᵀ A z) dz = m/2 log 2π - ½ log det A at each mode, (N, C)."""
    m = modes.modes.shape[-1]
    _, log_det = np.linalg.slogdet(modes.hessian)
    return np.asarray(0.5 * m * math.log(2.0 * math.pi) - 0.5 * log_det)


def _distinct(found: Modes) -> Modes:
    """Sort by mass, drop repetitions, and let absent ones repeat the first."""
    order = np.argsort(-laplace_mass(found), axis=1, kind="stable")
    z, log_joint, A, converged = (_take(part, order) for part in found[:4])
    S = z.shape[1]
    keep = log_joint > -np.inf
    for c in range(1, S):
        d = z[:, c, None] - z[:, :c]
        near = np.einsum("ncl,nclj,ncj->nc", d, A[:, :c], d) < SAME**2
        keep[:, c] &= ~(near & keep[:, :c]).any(axis=1)
    C = int(keep.sum(axis=1).max())
    first = np.argsort(~keep, axis=1, kind="stable")[:, :C]
    absent = ~_take(keep, first)
    first[absent] = 0
    distinct = Modes._make([*(_take(part, first) for part in (z, log_joint, A, converged)), found.complete])
    distinct.log_joint[absent] = -np.inf
    return distinct


def _take(values: Array, order: Array) -> Array:
    """values[i, order[i, c]] for values (N, S, ...)."""
    return np.asarray(values[np.arange(len(values))[:, None], order])


def _starts(model: NonlinearICA, x: Array, S: int, scale: float) -> tuple[Array, Array, Array]:
    """Return starts (N, S, m), highest first, which are present (N, S), and whether these are all (N,)."""
    points, neighbours = _lattice(model.latent_dim)
    points = scale * points
    g = decode(model.decoder, model.theta, points)
    # up to a constant for each x, log p(x, z) = (x - c)ᵀ(g - c)/σ² - ‖g - c‖²/2σ² + log p(z): one matrix
    # product. It cancels at small σ², which a start does not mind
    centre = g.mean(axis=0)
    g = (g - centre) / model.sigma2
    offset = log_prior(points) - 0.5 * model.sigma2 * np.einsum("kn,kn->k", g, g)
    starts, present = np.zeros((len(x), S, points.shape[1])), np.zeros((len(x), S), dtype=bool)
    complete = np.zeros(len(x), dtype=bool)
    for rows in row_blocks(len(x), max(1, LATTICE_TILE // len(points))):
        height = (x[rows] - centre) @ g.T
        height += offset
        i, k = np.nonzero(height >= _highest_near(height, neighbours))
        order = np.lexsort((-height[i, k], i))
        i, k = i[order], k[order]
        rank = np.arange(len(i)) - np.searchsorted(i, i)  # of each summit among those of its observation
        complete[rows] = np.bincount(i) <= S
        i, k, rank = i[rank < S], k[rank < S], rank[rank < S]
        starts[rows.start + i, rank] = points[k]
        present[rows.start + i, rank] = True
    return starts, present, complete


def _lattice(m: int) -> tuple[Array, int | Array]:
    """Return points (K, m) and who is whose neighbour: points per axis of a lattice, or indices (K, k).

    A lattice is shifted off the origin by an irrational part of its step, so that no start lies on an
    axis of symmetry of a decoder, where a search could end on a saddle.
    """
    if m in LATTICE:
        per_axis, radius = LATTICE[m]
        axis = np.linspace(-radius, radius, per_axis) + 0.1 * math.sqrt(2.0) * radius / per_axis
        return np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m), per_axis
    uniform = stats.qmc.Sobol(m, seed=0).random(SCATTERED)
    points = 1.25 * special.ndtri(np.clip(uniform, 1e-9, 1.0 - 1e-9))
    _, neighbours = spatial.cKDTree(points).query(points, 2 * m + 1)
    return points, np.asarray(neighbours)[:, 1:]


def _highest_near(height: Array, neighbours: int | Array) -> Array:
    """Return the largest of each point's and its neighbours' heights, (N, K).

    On a lattice these are the 2m along the axes: with those along diagonals as well, a narrow mode beside
    the slope of a higher one is passed over. Only where it is so coarse that a ridge aslant to it would be
    a row of summits (m = 4) are they taken in.
    """
    N, K = height.shape
    highest = height.copy()
    if not isinstance(neighbours, int):
        for column in neighbours.T:
            np.maximum(highest, height[:, column], out=highest)
        return highest
    m = round(math.log(K, neighbours))
    grid, result = (each.reshape(N, *[neighbours] * m) for each in (height, highest))
    for axis in range(1, m + 1):
        if neighbours < FINE:
            grid = result.copy()  # the largest over a box is the largest over its axes in turn
        narrow, wide = np.moveaxis(grid, axis, 0), np.moveaxis(result, axis, 0)
        np.maximum(wide[1:], narrow[:-1], out=wide[1:])
        np.maximum(wide[:-1], narrow[1:], out=wide[:-1])
    return highest
