"""Nodes for a round of a fit: made for one model, then frozen while an optimiser moves.

For one or two latent dimensions a grid that all observations share, each visiting the nodes near its
posterior: it sees every mode, and its value can be trusted where the grid resolves σ. Where that would take
too many nodes, and for more dimensions, a few nodes at each posterior mode.
"""

# notation: N observations, m latent, K nodes

from __future__ import annotations

import math

import numpy as np

from refica.grids import grid_that_resolves, halving_error, radius_for
from refica.model import NonlinearICA
from refica.neighbourhoods import Neighbourhoods, around_modes, near
from refica.quadrature import Quadrature
from refica.rules import UniformGrid, gauss_hermite, uniform_grid
from refica.validation import Array

__all__ = ["nodes_for_round"]

DEPTH = 20.0
"""Nats below an observation's largest contribution at which its neighbourhood ends. What is left out was 1e-9
of that node by node, and what moves in makes the value too low, not too high."""

WORST_HALVING = 0.03
"""For m = 1, halving error (nats) of a grid for the worst observation: about 1e-3 in truth."""

MEAN_HALVING = 0.15
"""For m = 2 the mean over observations: 1e-4 to 1e-2 in truth."""

MOST_NODES = {1: 2**14, 2: 160**2}
"""Largest grid, by m."""

COARSEST, FINER = 24, 1.35
"""Points per axis of the first grid that is tried for m = 2, and the factor to the next one."""

WIDEST = 8.0
"""Radius of a grid for m = 2 beyond which outliers must do with what is inside."""

SUBSET = 128
"""Observations on which halving errors are measured."""

AT_MODES, LEAST = 5, 2
"""Order of Gauss-Hermite at the modes for few latent dimensions, and for many. In between it is one less than
that which `integrator=None` takes, so that the value at the end comes from other nodes."""


def nodes_for_round(model: NonlinearICA, x: Array) -> Neighbourhoods:
    """Return nodes for observations x (N, n), frozen."""
    grid = None
    if model.latent_dim == 1:
        grid = grid_that_resolves(model, x, WORST_HALVING, MOST_NODES[1])
    elif model.latent_dim == 2:
        grid = _grid_in_the_plane(model, x)
    if grid is not None:
        return near(model, x, Quadrature(grid).nodes(model, x), DEPTH)
    return around_modes(model, x, gauss_hermite(max(LEAST, min(AT_MODES, 8 - model.latent_dim))))


def _grid_in_the_plane(model: NonlinearICA, x: Array) -> UniformGrid | None:
    """Return the coarsest grid whose mean halving error on (a subset of) x is below `MEAN_HALVING`.

    From coarse to fine, not from the steepest slope anywhere: that may be where no observation is.
    """
    some = x[np.linspace(0, len(x) - 1, min(SUBSET, len(x))).astype(int)]
    limit = math.isqrt(MOST_NODES[2])
    radius = min(radius_for(model, some, limit, MEAN_HALVING), WIDEST)
    points = COARSEST
    while points <= limit:
        grid = uniform_grid(points | 1, radius)
        if halving_error(model, some, grid).mean() <= MEAN_HALVING:
            return grid
        points = math.ceil(FINER * points)
    return None
