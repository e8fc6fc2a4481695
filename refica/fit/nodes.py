"""Nodes for a round of a fit: made for one model, then frozen while an optimiser moves.

For one or two latent dimensions a grid that all observations share, each visiting the nodes near its
posterior: it sees every mode, and its value can be trusted where the grid resolves σ. Where that would take
too many nodes, and for more dimensions, a few nodes at each posterior mode.
"""

# notation: N observations, m latent, K nodes

from __future__ import annotations

import math

import numpy as np

from refica.grids import grid_that_resolves
from refica.likelihood import log_marginal
from refica.model import NonlinearICA
from refica.neighbourhoods import Neighbourhoods, around_modes, near
from refica.quadrature import Quadrature
from refica.rules import UniformGrid, gauss_hermite, uniform_grid
from refica.validation import Array

__all__ = ["nodes_for_round"]

DEPTH = 16.0
"""Nats below an observation's largest contribution at which its neighbourhood ends. What is left out was 1e-7
of that node by node, and what moves in makes the value too low, not too high."""

WORST_HALVING = 0.03
"""For m = 1, halving error (nats) of a grid for the worst observation: about 1e-3 in truth."""

MEAN_DIFFERENCE = 5e-3
"""For m = 2 the mean difference (nats) of a grid from a shifted and turned copy: about twice its error."""

TURNED = 1.4
"""Times the points per axis that the copy has: turned by 30 degrees it then holds the grid."""

HOPELESS = 0.5
"""Mean difference that a grid with less than twice the points per axis will not bring down to that."""

MOST_NODES = {1: 2**14, 2: 300**2}
"""Largest grid, by m."""

COARSEST, FINER = 24, 1.35
"""Points per axis of the first grid that is tried for m = 2, and the factor to the next one."""

LATTICE, WIDEST = 97, 8.0
"""Points per axis, and radius, of the lattice on which is seen how far posteriors reach for m = 2: outliers
beyond must do with what is inside."""

NEGLIGIBLE = 8.0
"""Nats below an observation's largest contribution there that need not be reached."""

SUBSET = 64
"""Observations on which errors are measured for m = 2."""

ORDER = {1: 7, 2: 7, 3: 5, 4: 4, 5: 3}
"""Of Gauss-Hermite at the modes, by m; 2 for more. Less than that which `integrator=None` takes, so that the
value at the end comes from other nodes."""


def nodes_for_round(model: NonlinearICA, x: Array) -> Neighbourhoods:
    """Return nodes for observations x (N, n), frozen."""
    grid = None
    if model.latent_dim == 1:
        grid = grid_that_resolves(model, x, WORST_HALVING, MOST_NODES[1])
    elif model.latent_dim == 2:
        grid = _grid_in_the_plane(model, x)
    if grid is not None:
        return near(model, x, Quadrature(grid).nodes(model, x), DEPTH)
    return around_modes(model, x, gauss_hermite(ORDER.get(model.latent_dim, 2)))


def _grid_in_the_plane(model: NonlinearICA, x: Array) -> UniformGrid | None:
    """Return the coarsest grid that agrees, in the mean over (a subset of) x, with a wider copy of itself.

    From coarse to fine, not from the steepest slope anywhere: that may be where no observation is.
    """
    some = x[np.linspace(0, len(x) - 1, min(SUBSET, len(x))).astype(int)]
    radius = _reach(model, x)
    points, limit = COARSEST, math.isqrt(MOST_NODES[2])
    while points <= limit:
        grid = uniform_grid(points | 1, radius)
        wide = math.ceil(TURNED * points) | 1
        copy = uniform_grid(wide, 0.5 * grid.step * (wide - 1)).another(1)
        difference = np.abs(_log_p(model, some, grid) - _log_p(model, some, copy)).mean()
        if difference <= MEAN_DIFFERENCE:
            return grid
        if difference > HOPELESS and points > limit // 2:
            break
        points = math.ceil(FINER * points)
    return None


def _reach(model: NonlinearICA, x: Array) -> float:
    """How far from the origin, along an axis, posteriors reach that are looked at on a coarse lattice."""
    lattice = uniform_grid(LATTICE, WIDEST)
    seen = near(model, x, Quadrature(lattice).nodes(model, x), NEGLIGIBLE)
    return float(np.abs(seen.z).max()) + lattice.step


def _log_p(model: NonlinearICA, x: Array, grid: UniformGrid) -> Array:
    return log_marginal(model.decoder, model.theta, model.sigma2, x, Quadrature(grid).nodes(model, x))
