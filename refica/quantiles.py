"""Quantiles of p(z | x_i) for one latent dimension: the inverse of its distribution function.

Between the nodes of an integrator the density itself, exp(log p(x_i, z)), is tabulated: on each panel it
is the parabola through its ends and its middle, and panels are halved until that agrees with the density
in between. So the nodes say only where to look, and what comes out is continuous and does not inherit
their spacing.
"""

# notation: N observations, n data, K nodes; S panels [a, b] of all observations, each with its `row`;
# F = log p(x, z) at a, at the middle and at b

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refica.likelihood import Nodes, Tile, decode, tiles
from refica.model import NonlinearICA, log_likelihood_given, log_prior, squared_distances
from refica.validation import Array

__all__ = ["Panels", "quantiles", "tabulate"]

TOLERANCE = 1e-5
"""Mass, of 1, by which the parabola on a panel may be off if its error were what it is at the quarters. The
panel's halves are kept, each of them better by a factor of 16 where the density is smooth."""

NEGLIGIBLE = 42.0
"""What is below exp(-42) of the peak, 6e-19, has no mass."""

MOST_EDGES = 32
"""Nodes of an observation that become edges of panels to begin with; halving does the rest."""

CLOSE = 1e-12
"""Step of Newton's method, in units of a panel, after which it has arrived."""

ROUNDS = 60
"""Halvings at most, of panels and of brackets: by then they are as short as floats allow."""


class Panels(NamedTuple):
    """Panels in the order of their observation and of z: ``row`` (S,), ends ``a``, ``b`` (S,), the
    ``density`` (S, 3) at a, middle and b relative to the row's peak, and the probability ``before`` (S,)
    each of them, from 0 to 1; ``total`` (N,), the mass that they were divided by."""

    row: Array
    a: Array
    b: Array
    density: Array
    before: Array
    total: Array


def tabulate(model: NonlinearICA, x: Array, nodes: Nodes) -> Panels:
    """Return the posterior densities of observations x (N, n), around nodes (K, 1) or (N, K, 1)."""
    row, a, b = _first_panels(model, x, nodes)
    F = np.stack([_log_joint(model, x, row, z) for z in (a, 0.5 * (a + b), b)], axis=1)
    halve = np.ones(len(row), dtype=bool)
    for _ in range(ROUNDS):
        if not halve.any():
            break
        row, a, b, F, halve = _halved(model, x, row, a, b, F, halve)
    order = np.lexsort((a, row))
    row, a, b = row[order], a[order], b[order]
    density = np.exp(F[order] - _peaks(row, F[order], len(x))[row, None])
    mass = _simpson(b - a, density)
    total = np.bincount(row, mass, len(x))
    upto = np.cumsum(mass / total[row])  # row i goes from i to i + 1, but for rounding
    return Panels(row, a, b, density, np.maximum(upto - mass / total[row] - row, 0.0), total)


def quantiles(panels: Panels, u: Array) -> Array:
    """Return z (L, N) with the probabilities u (L, N), 0 <= u < 1, below."""
    i = np.arange(len(panels.total))
    panel = np.searchsorted(panels.row + panels.before, i + u, side="right") - 1
    # rounding of i + u may point to a neighbour of the row's first or last panel
    count = np.bincount(panels.row)
    last = np.cumsum(count) - 1
    panel = np.clip(panel, last - count + 1, last)
    width = (panels.b - panels.a)[panel]
    share = (u - panels.before[panel]) * panels.total / width
    t = _inverse(panels.density[panel], share)
    return panels.a[panel] + width * t


def _first_panels(model: NonlinearICA, x: Array, nodes: Nodes) -> tuple[Array, Array, Array]:
    """Return row, a and b (S,) of panels between -R and R, with edges at nodes that matter."""
    rows, edges = [], []
    for tile in tiles(model.decoder, model.theta, model.sigma2, x, nodes):
        for i, z in zip(range(tile.rows.start, tile.rows.stop), _edges(model, tile), strict=True):
            rows.append(np.full(len(z) - 1, i))
            edges.append(np.stack([z[:-1], z[1:]]))
    a, b = np.concatenate(edges, axis=1)
    row = np.concatenate(rows)
    return row[a < b], a[a < b], b[a < b]


def _edges(model: NonlinearICA, tile: Tile) -> list[Array]:
    """Return for each observation of a tile -R, some of its nodes in order, and R.

    The nodes are those that matter and their neighbours, thinned out but for those at which the density is
    highest among their neighbours. Since log p(x, z) is at most ``top`` - z²/2, nothing beyond R matters.
    """
    log_joint = log_likelihood_given(tile.squared, model.sigma2, model.data_dim) + log_prior(tile.z)
    top = float(log_likelihood_given(np.zeros(()), model.sigma2, model.data_dim) + log_prior(np.zeros(1)))
    z = np.broadcast_to(tile.z[..., 0], log_joint.shape)
    order = np.argsort(z, axis=1)
    z, log_joint = np.take_along_axis(z, order, axis=1), np.take_along_axis(log_joint, order, axis=1)
    peak = log_joint.max(axis=1, keepdims=True)
    radius = np.sqrt(2.0 * (top - peak + NEGLIGIBLE))
    matters = _or_a_neighbour(log_joint > peak - NEGLIGIBLE)
    bounded = np.pad(log_joint, ((0, 0), (1, 1)), constant_values=-np.inf)
    highest = (log_joint >= bounded[:, :-2]) & (log_joint >= bounded[:, 2:])
    number = np.cumsum(matters, axis=1)
    stride = -(-number[:, -1:] // MOST_EDGES)
    chosen = matters & (highest | (number % stride == 0))
    return [
        np.concatenate([-R, np.clip(row[some], -R, R), R])
        for R, row, some in zip(radius, z, chosen, strict=True)
    ]


def _or_a_neighbour(some: Array) -> Array:
    """Mark the neighbours along each row of what is marked, too."""
    more = some.copy()
    more[:, 1:] |= some[:, :-1]
    more[:, :-1] |= some[:, 1:]
    return more


def _halved(
    model: NonlinearICA, x: Array, row: Array, a: Array, b: Array, F: Array, halve: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Return the panels with the marked ones halved, and which of the new ones to halve again."""
    keep = ~halve
    row_h, a_h, b_h, F_h = row[halve], a[halve], b[halve], F[halve]
    middle = 0.5 * (a_h + b_h)
    left, right = (_log_joint(model, x, row_h, 0.5 * (middle + end)) for end in (a_h, b_h))
    halves = np.stack([F_h[:, 0], left, F_h[:, 1]], axis=1), np.stack([F_h[:, 1], right, F_h[:, 2]], axis=1)
    row_new = np.concatenate([row[keep], row_h, row_h])
    a_new = np.concatenate([a[keep], a_h, middle])
    b_new = np.concatenate([b[keep], middle, b_h])
    F_new = np.concatenate([F[keep], *halves])
    peak = _peaks(row_new, F_new, len(x))
    mass = _simpson(b_new - a_new, np.exp(F_new - peak[row_new, None]))
    total = np.bincount(row_new, mass, len(x))
    # the parabola through a density of 1, 0, 0 is 3/8 at the first quarter and -1/8 at the other, and so on
    quarters = np.exp(F_h - peak[row_h, None]) @ np.array([[3.0, 6.0, -1.0], [-1.0, 6.0, 3.0]]).T / 8.0
    off = np.abs(quarters - np.exp(np.stack([left, right], axis=1) - peak[row_h, None])).max(axis=1)
    again = (off * (b_h - a_h) > TOLERANCE * total[row_h]) & (a_h < middle) & (middle < b_h)
    return row_new, a_new, b_new, F_new, np.concatenate([np.zeros(keep.sum(), dtype=bool), again, again])


def _log_joint(model: NonlinearICA, x: Array, row: Array, z: Array) -> Array:
    """log p(x_row, z), (S,), for z (S,)."""
    g = decode(model.decoder, model.theta, z[:, None])
    squared = squared_distances(x[row], g[:, None, :])[:, 0]
    return log_likelihood_given(squared, model.sigma2, model.data_dim) + log_prior(z[:, None])


def _peaks(row: Array, F: Array, N: int) -> Array:
    """The largest F of each row, (N,)."""
    peak = np.full(N, -math.inf)
    np.maximum.at(peak, row, F.max(axis=1))
    return peak


def _simpson(width: Array, density: Array) -> Array:
    """∫ of the parabola through the density (S, 3) at a, middle and b."""
    return width * (density @ np.array([1.0, 4.0, 1.0])) / 6.0


def _inverse(density: Array, share: Array) -> Array:
    """t in [0, 1] with ∫_0^t q = share for the parabola q through density (..., 3) at t = 0, 1/2 and 1.

    Newton's steps, kept in a bracket that halves where they leave it.
    """
    shape, share = share.shape, share.ravel()
    start, middle, end = density.reshape(-1, 3).T
    coefficients = np.stack([start, -3.0 * start + 4.0 * middle - end, 2.0 * (start - 2.0 * middle + end)])
    t, bracket, active = np.full(share.shape, 0.5), np.zeros((2, *share.shape)), np.arange(share.size)
    bracket[1] = 1.0
    for _ in range(ROUNDS):
        c0, c1, c2 = coefficients[:, active]
        old, (low, high) = t[active], bracket[:, active]
        excess = old * (c0 + old * (c1 / 2.0 + old * (c2 / 3.0))) - share[active]
        low, high = np.where(excess < 0.0, old, low), np.where(excess < 0.0, high, old)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = old - excess / (c0 + old * (c1 + old * c2))
        new = np.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
        t[active], bracket[:, active] = new, (low, high)
        active = active[np.abs(new - old) > CLOSE]
        if not len(active):
            break
    return t.reshape(shape)
