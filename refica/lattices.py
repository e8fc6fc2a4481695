"""Lattices on which the modes of log p(x_i, z) are looked for: summits, and cells that hold mass.

A *summit* is a point where log p(x_i, z) is higher than at its neighbours. Where a posterior is far
narrower than the step of the lattice, a mode may lie between points that are all lower than others nearby. So
the mass about each point is looked at too, with the decoder replaced by its tangent there:

    ∫ N(x; g + J δ, σ² I) N(δ; 0, s² I) dδ = N(x; g, σ² I + s² J Jᵀ).

Such Gaussians about all points stand for the prior (Alspach and Sorenson, IEEE Trans. Autom. Control 17,
1972), so that the sum over the lattice is about p(x), however narrow the posterior.
"""

# notation: N observations, S starts, m latent, n data, K points; h step, J (K, n, m)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import spatial, special, stats

from refica.ascent import regular
from refica.likelihood import decode, row_blocks
from refica.model import LOG_2PI, NonlinearICA, log_likelihood_given, log_prior
from refica.validation import Array

__all__ = ["CELL", "LATTICE", "Apart", "Starts", "cells", "has_cells", "mass_apart", "step", "summits"]

LATTICE = {1: (1601, 8.0), 2: (101, 6.0), 3: (33, 5.25), 4: (9, 4.0)}
"""Points per axis and radius of the lattice of starts, by m: as fine as some thousand points allow
(some ten thousand for m >= 2)."""

FINE = 25
"""Points per axis from which a summit need only be above its neighbours along the axes."""

SCATTERED = 4096
"""Number of points that stand for a lattice where m is above those of `LATTICE`."""

LATTICE_TILE = 2**17
"""Bound on (observations x points of the lattice) looked at in one go: 1 MiB an array, so in cache."""

CELL = 0.5
"""s in steps of the lattice: the Gaussians add up to a density that ripples by 3 percent per axis."""

MOST_ENTRIES = 2**25
"""Of the Jacobians of all points: 256 MB. It takes more than 300 data dimensions for m = 3 to exceed it."""

FAINTEST = 28.0
"""Nats below the mass of all cells at which one is of no account: 1e-12 of it."""

APART = math.log(100.0)
"""Nats by which log p(x, z) must exceed what is expected at a point for it to lie apart."""

VISITED = 1024
"""Cells of an observation, those with the most mass, at which the decoder itself is asked."""

Heights = Callable[[Array], Array]
"""From observations x (N, n) to log p(x_i, z_k), or a cell's mass, (N, K)."""

Expected = Callable[[Array, Array], Array]
"""From rows (B,) and points (B, S, m) to the log of a density there, (B, S)."""


class Apart(NamedTuple):
    """``mass`` (N,), the log of the part of p(x_i) that lies apart from what is expected; ``prior`` (N,), the
    log of the part of the prior that it comes from. Both -inf where nothing was seen."""

    mass: Array
    prior: Array


class Starts(NamedTuple):
    """``z`` (N, S, m), highest first; ``height`` (N, S), -inf for an absent one; ``all`` (N,) whether
    there are no more than these."""

    z: Array
    height: Array
    all: Array


def summits(model: NonlinearICA, x: Array, S: int, scale: float = 1.0) -> Starts:
    """Return the S highest summits on the lattice, made ``scale`` times as wide."""
    points, neighbours = _lattice(model.latent_dim)
    points = scale * points
    g = decode(model.decoder, model.theta, points)
    return _highest(x, S, points, neighbours, _heights(model, points, g))


def has_cells(model: NonlinearICA) -> bool:
    """Whether there is a lattice, and its Jacobians are not too many, to look at cells."""
    m = model.latent_dim
    return m in LATTICE and LATTICE[m][0] ** m * m * model.data_dim <= MOST_ENTRIES


def cells(model: NonlinearICA, x: Array, S: int) -> Starts:
    """Return the S points about which there is more mass than about their neighbours, with its log."""
    points, neighbours = _lattice(model.latent_dim)
    h = step(model.latent_dim)
    return _highest(x, S, points, neighbours, _masses(model, _tangents(model, h), h), FAINTEST)


def mass_apart(model: NonlinearICA, x: Array, expected: Expected) -> Apart:
    """Return the mass of the cells in which p(x, z) is far above a density that is expected.

    It is asked at z + s² Jᵀ(σ² I + s² J Jᵀ)⁻¹ r = z + L⁻ᵀL⁻¹Jᵀ r, where the tangent puts most of the cell's
    mass, and where the decoder fits x worse than the tangent does, the mass is that much less. Cells beyond
    those `VISITED` are taken to be as the others.

    Parameters
    ----------
    model : NonlinearICA
    x : (N, n)
    expected : callable
        From rows (B,) and points (B, S, m) to the log of the density expected there, (B, S).
    """
    h = step(model.latent_dim)
    tangents = _tangents(model, h)
    masses, apart = _masses(model, tangents, h), Apart(*np.full((2, len(x)), -np.inf))
    for rows in row_blocks(len(x), max(1, LATTICE_TILE // len(tangents.z))):
        for i, mass in zip(range(rows.start, rows.stop), masses(x[rows]), strict=False):
            all_mass = special.logsumexp(mass)
            k = np.flatnonzero(mass > all_mass - FAINTEST)
            if len(k) > VISITED:
                k = k[np.argpartition(-mass[k], VISITED)[:VISITED]]
            z, height, less = _visited(model, x[i], _Tangents._make(part[k] for part in tangents))
            far = height > expected(np.array([i]), z[None])[0] + APART
            if far.any():
                there, beyond = (mass[k] - less)[far], all_mass - special.logsumexp(mass[k])
                apart.mass[i] = special.logsumexp(there) + beyond
                given = (height - log_prior(z))[far]  # log L, L = p(x | z)
                # (∫ L p dz)² / ∫ L² p dz, as for an effective number of draws
                apart.prior[i] = 2.0 * apart.mass[i] - special.logsumexp(there + given) - beyond
    return apart


def _visited(model: NonlinearICA, x: Array, tangents: _Tangents) -> tuple[Array, Array, Array]:
    """Return the points z + δ (K, m) where tangents put most mass, log p(x, z + δ) there, and how much less
    that is than by the tangent, log N(x; g + J δ, σ² I) p(z) - log p(x, z + δ), at least 0, (K,)."""
    z, g, J, L = tangents
    r = x - g
    across = np.linalg.solve(L, np.einsum("knl,kn->kl", J, r)[..., None])
    delta = np.linalg.solve(np.swapaxes(L, 1, 2), across)[..., 0]
    line = r - np.einsum("knl,kl->kn", J, delta)
    bent = x - decode(model.decoder, model.theta, z + delta)
    by_tangent, height = (
        log_likelihood_given(np.einsum("kn,kn->k", each, each), model.sigma2, len(x)) + log_prior(at)
        for each, at in ((line, z), (bent, z + delta))
    )
    return z + delta, height, np.maximum(by_tangent - height, 0.0)


def step(m: int) -> float:
    """Return the lattice's step h."""
    per_axis, radius = LATTICE[m]
    return 2.0 * radius / (per_axis - 1)


def _highest(
    x: Array,
    S: int,
    points: Array,
    neighbours: int | Array,
    heights: Heights,
    faintest: float = math.inf,
) -> Starts:
    """Return the S highest of the points that are above their neighbours, and not too far below all mass."""
    starts = np.zeros((len(x), S, points.shape[1]))
    best, complete = np.full((len(x), S), -np.inf), np.zeros(len(x), dtype=bool)
    for rows in row_blocks(len(x), max(1, LATTICE_TILE // len(points))):
        height = heights(x[rows])
        above = height >= _highest_near(height, neighbours)
        if faintest < math.inf:
            above &= height > special.logsumexp(height, axis=1, keepdims=True) - faintest
        i, k = np.nonzero(above)
        order = np.lexsort((-height[i, k], i))
        i, k = i[order], k[order]
        rank = np.arange(len(i)) - np.searchsorted(i, i)  # of each summit among those of its observation
        complete[rows] = np.bincount(i, minlength=len(height)) <= S
        i, k, rank = i[rank < S], k[rank < S], rank[rank < S]
        starts[rows.start + i, rank] = points[k]
        best[rows.start + i, rank] = height[i, k]
    return Starts(starts, best, complete)


def _heights(model: NonlinearICA, points: Array, g: Array) -> Heights:
    """log p(x, z_k) up to a constant for each x: (x - c)ᵀ(g - c)/σ² - ‖g - c‖²/2σ² + log p(z).

    One matrix product. It cancels at small σ², which a start does not mind.
    """
    centre = g.mean(axis=0)
    g = (g - centre) / model.sigma2
    offset = log_prior(points) - 0.5 * model.sigma2 * np.einsum("kn,kn->k", g, g)

    def heights(x: Array) -> Array:
        height: Array = (x - centre) @ g.T
        height += offset
        return height

    return heights


class _Tangents(NamedTuple):
    """A decoder's tangents at ``z`` (K, m): ``g`` (K, n), ``J`` (K, n, m), and L (K, m, m), the Cholesky
    factor of JᵀJ + (σ²/s²) I."""

    z: Array
    g: Array
    J: Array
    L: Array


def _tangents(model: NonlinearICA, h: float) -> _Tangents:
    z, _ = _lattice(model.latent_dim)
    J = _jacobian(model, z)
    ridge = model.sigma2 / (CELL * h) ** 2 * np.eye(model.latent_dim)
    L = np.linalg.cholesky(regular(np.einsum("knl,knj->klj", J, J) + ridge))
    return _Tangents(z, decode(model.decoder, model.theta, z), J, L)


def _masses(model: NonlinearICA, tangents: _Tangents, h: float) -> Heights:
    """log of h^m p(z_k) N(x; g, σ² I + s² J Jᵀ), which with r = x - g and L Lᵀ = JᵀJ + (σ²/s²) I is

    m log h + log p(z_k) + log N(x; g, σ² I) + ‖L⁻¹Jᵀr‖²/2σ² - ½ log det(I + s² JᵀJ/σ²).
    """
    m, sigma2 = model.latent_dim, model.sigma2
    z, g, J, L = tangents
    s2 = (CELL * h) ** 2
    across = np.linalg.solve(L, np.swapaxes(J, 1, 2)) / math.sqrt(2.0 * sigma2)  # (K, m, n)
    centre = g.mean(axis=0)
    moved = np.einsum("kln,kn->lk", across, g - centre)
    half_log_det = np.log(np.einsum("kll->kl", L)).sum(axis=1) + 0.5 * m * math.log(s2 / sigma2)
    constant = m * math.log(h) - 0.5 * model.data_dim * (LOG_2PI + math.log(sigma2)) - half_log_det
    raw = _heights(model, z, g)

    def masses(x: Array) -> Array:
        offset = x - centre
        mass = raw(x)
        mass += constant
        mass -= 0.5 / sigma2 * np.einsum("in,in->i", offset, offset)[:, None]
        for axis in range(m):
            along = offset @ across[:, axis].T
            along -= moved[axis]
            along *= along
            mass += along
        return mass

    return masses


def _jacobian(model: NonlinearICA, z: Array) -> Array:
    """∂g/∂z at many points, (K, n, m), a block of rows at a time."""
    J = np.empty((len(z), model.data_dim, model.latent_dim))
    still = np.zeros(model.decoder.n_params)
    for rows in row_blocks(len(z), LATTICE_TILE // 16):
        for axis, e in enumerate(np.eye(model.latent_dim)):
            along = np.broadcast_to(e, z[rows].shape)
            J[rows, :, axis] = model.decoder.jvp(model.theta, z[rows], still, along)
    return J


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
