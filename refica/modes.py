"""The modes of log p(x_i, z) over z: where, for each observation, the posterior has its mass.

The starts are the local maxima of log p(x_i, z) on a lattice that all observations share, highest
first; from each one `refica.ascent` climbs to a maximum. Ends that coincide are one mode.

On a lattice a mode far narrower than its step can be passed over. So for m > 1 the cells of `refica.lattices`
are looked at as well: one that seems to hold more than the modes found explain is searched too.

Beyond the lattice's radius R the log joint is at most C - R²/2, with C = -n/2 log 2πσ² - m/2 log 2π. Of an
observation far from the manifold the best mode found may be lower than that, and a better one lie out there:
it is searched again from lattices twice, four times .. as wide.
"""

# notation: N observations, S starts, C modes, m latent, n data; A (.., m, m) precision

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refica import lattices
from refica.activations import LeakyReLU
from refica.ascent import climb
from refica.lattices import CELL, LATTICE, Apart, Starts, cells, has_cells, step, summits
from refica.likelihood import row_blocks
from refica.model import LOG_2PI, NonlinearICA
from refica.validation import Array

__all__ = ["Modes", "find_modes", "laplace_mass", "log_volume", "mass_apart"]

BATCH = 8
"""Starts that are followed at a time. Most observations need no second batch."""

NEWS = 1e-6
"""Relative growth of the mass found (nats) below which a batch of starts counts as having brought nothing
new, so that the search ends."""

BLOCK = 1024
"""Observations searched at a time: bounds the memory for their searches to some tens of MB."""

DOUBLINGS = 14
"""Of the lattice's radius: beyond its 16 000-fold the log joint is below -2e9."""

FAINT = 7.0
"""Nats below the best mode at which one beyond the lattice is no longer looked for: it would have a
thousandth of the mass of a mode as narrow."""

UNEXPLAINED = math.log(1.5)
"""Nats by which a cell's mass must exceed what the modes found put there for it to be searched. The tangent
that stands for the decoder may mislead; then a search is all that is lost."""

MANY_PIECES = 3
"""Latent dimensions from which a decoder with kinks has more pieces, of the order of H^m with H hidden units,
than a search has starts. Each may hold a mode; where two are found no search can say that these are all."""

REACH = 2.5
"""Factor on the widths of the Gaussians at modes, whose tails nodes follow: at 6 of their standard deviations
the wider ones still have a hundredth of what they have at the mode, per volume."""

SAME = 0.3
"""Distance, in posterior standard deviations, within which two ends of a search are one mode."""


class Modes(NamedTuple):
    """The modes found, those of an observation sorted by `laplace_mass`, largest first.

    ``modes`` (N, C, m); ``log_joint`` (N, C) = log p(x_i, z), -inf for an absent mode, whose other entries
    repeat the first one's; ``hessian`` (N, C, m, m) positive definite: minus the Hessian of the log joint,
    or Gauss-Newton's matrix where that is indefinite or the mode sits on a kink; ``converged`` (N, C)
    whether it is a maximum: the gradient vanishes to rounding, or on a kink no direction rises (False: the
    iteration limit, or a saddle);
    ``complete`` (N,) whether all local maxima on the lattices, and cells with unexplained mass, served as
    starts, or the last ones that did brought nothing new and there are few modes for so many starts, and
    nothing worth it can be beyond them; and there are not several on the many pieces of a kinked decoder.
    """

    modes: Array
    log_joint: Array
    hessian: Array
    converged: Array
    complete: Array


def find_modes(
    model: NonlinearICA, x: Array, most_starts: int = 64, far: bool = True, cells: bool = True
) -> Modes:
    """Return the modes of log p(x_i, z) for observations x (N, n), from at most ``most_starts`` starts each.

    Needs of the decoder no more than its protocol. Every observation is searched by itself: what is found
    for it does not depend on the others, only the number C of columns does. ``far``: also beyond the lattice,
    where that is not excluded; for more than four latent dimensions there is nothing to double. ``cells``:
    also from cells of the lattice with mass that the modes found do not explain, which doubles the time.
    """
    blocks = [
        _search_near_and_far(model, x[rows], most_starts, far, cells) for rows in row_blocks(len(x), BLOCK)
    ]
    C = max(block.log_joint.shape[1] for block in blocks)
    return Modes._make(map(np.concatenate, zip(*(_widen(block, C) for block in blocks), strict=True)))


def modes_from(model: NonlinearICA, x: Array, starts: Array) -> Modes:
    """Return the modes that searches from given starts (N, S, m) end at."""
    return _distinct(_from_starts(model, x, starts, np.ones(starts.shape[:2], dtype=bool)))


def _search_near_and_far(model: NonlinearICA, x: Array, most_starts: int, far: bool, cells: bool) -> Modes:
    """Search from the lattice, its cells, and lattices that double in width."""
    found = _search(model, x, most_starts)
    if model.latent_dim not in LATTICE:
        return found
    if cells and model.latent_dim > 1 and has_cells(model):  # along a line no slope of a mode hides another
        found = _search_cells(model, x, found, most_starts)
    if far:
        found = _search_far(model, x, found, most_starts)
    if model.latent_dim >= MANY_PIECES and _has_kinks(model):
        several = (found.log_joint > -np.inf).sum(axis=1) > 1
        found = found._replace(complete=found.complete & ~several)
    return found


def _has_kinks(model: NonlinearICA) -> bool:
    """Whether the decoder is known to be affine in pieces with kinks between them."""
    activations = getattr(model.decoder, "activations", ())
    return any(isinstance(f, LeakyReLU) and f.slope != 1.0 for f in activations)


def _search_far(model: NonlinearICA, x: Array, found: Modes, most_starts: int) -> Modes:
    """Search from lattices that double in width, until nothing beyond them can matter."""
    rows = np.arange(len(x))
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
    """Search from the highest summits, then from the next ones while they bring something new."""
    starts = summits(model, x, most_starts, scale)
    found = _distinct(_from_starts(model, x, starts.z[:, :BATCH], starts.height[:, :BATCH] > -np.inf))
    complete = starts.all & (starts.height[:, BATCH:] == -np.inf).all(axis=1)
    return _search_on(model, x, found._replace(complete=complete), starts, BATCH)


def _search_cells(model: NonlinearICA, x: Array, found: Modes, most_starts: int) -> Modes:
    """Search from cells that hold more mass than the modes found put there: one may have been passed over."""
    starts = cells(model, x, most_starts)
    h = step(model.latent_dim)
    # what the cells would hold if the joint density were a sum of Gaussians at the modes
    known = model.latent_dim * math.log(h) + _gaussians_at(found, starts.z, 1.0, (CELL * h) ** 2)
    missing = starts.height > known + UNEXPLAINED
    height = np.where(missing, starts.height, -np.inf)
    order = np.argsort(~missing, axis=1, kind="stable")  # those to search first
    starts = Starts(_take(starts.z, order), _take(height, order), starts.all)
    before, complete = found.complete, np.asarray(~missing.any(axis=1))
    found = _search_on(model, x, found._replace(complete=complete), starts, 0)
    return found._replace(complete=before & found.complete)


def mass_apart(model: NonlinearICA, x: Array, found: Modes) -> Apart:
    """Return the mass that the lattice sees where Gaussians at the modes, made `REACH` times as wide, have
    next to none; -inf where it does not look (`lattices.has_cells`)."""
    if not has_cells(model):
        return Apart(*np.full((2, len(x)), -np.inf))

    def expected(rows: Array, z: Array) -> Array:
        return _gaussians_at(Modes._make(part[rows] for part in found), z, REACH, 0.0)

    return lattices.mass_apart(model, x, expected)


def _gaussians_at(found: Modes, z: Array, wider: float, s2: float) -> Array:
    """log Σ_c mass_c N(z_is; z_c, wider² A_c⁻¹ + s² I) at z (N, S, m), (N, S)."""
    m = z.shape[2]
    total = np.full(z.shape[:2], -np.inf)
    for c, mass in enumerate(laplace_mass(found).T):
        V = wider**2 * np.linalg.inv(found.hessian[:, c]) + s2 * np.eye(m)
        d = z - found.modes[:, c, None]
        square = np.einsum("nsl,nls->ns", d, np.linalg.solve(V, np.swapaxes(d, 1, 2)))
        constant = mass - 0.5 * (m * LOG_2PI + np.linalg.slogdet(V)[1])
        total = np.logaddexp(total, constant[:, None] - 0.5 * square)
    return total


def _search_on(model: NonlinearICA, x: Array, found: Modes, starts: Starts, begin: int) -> Modes:
    """Search from the starts after the first ones while they bring something new, where not yet complete."""
    rows, present = np.arange(len(x)), starts.height > -np.inf
    for first in range(begin, present.shape[1], BATCH):
        batch = slice(first, first + BATCH)
        rows = rows[~found.complete[rows] & present[rows, first]]
        if not len(rows):
            break
        more = _from_starts(model, x[rows], starts.z[rows, batch], present[rows, batch])
        before = _total_mass(Modes._make(part[rows] for part in found))
        exhausted = starts.all[rows] & ~present[rows, first + BATCH :].any(axis=1)
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
