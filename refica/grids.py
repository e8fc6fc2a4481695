"""A uniform grid on the prior that is fine enough for a model and wide enough for its data."""

# notation: N observations, n data, m latent, J the decoder's Jacobian in z

from __future__ import annotations

import math

import numpy as np

from refica.likelihood import Nodes, log_marginal
from refica.model import LOG_2PI, NonlinearICA
from refica.quadrature import Quadrature
from refica.rules import MAX_NODES, UniformGrid, uniform_grid
from refica.validation import Array

__all__ = ["grid_that_resolves"]

NODES_PER_WIDTH = 1.25
"""Nodes on the narrowest posterior width: a trapezoidal sum of a Gaussian of sd s with a step of 0.8 s is
right to about 1e-13."""

COARSE = 65
"""Points per axis of the first grid for more than one latent dimension."""

SUBSET = 256
"""Observations on which the halving error is measured while a grid is refined."""


def grid_that_resolves(
    model: NonlinearICA, x: Array, tolerance: float = 1e-7, max_nodes: int = MAX_NODES
) -> UniformGrid | None:
    """Return a grid for the prior whose halving error on (a subset of) x is below ``tolerance`` nats.

    The halving error of a trapezoidal sum is about the square root of its true error, so that 1e-7
    leaves about 1e-13. The box ends where the integrand is below ``tolerance``² / e⁴ of its peak. None if
    no grid of at most ``max_nodes`` nodes is that good.
    """
    m = model.latent_dim
    limit = int(max_nodes ** (1.0 / m) + 1e-9)
    radius = _radius_for(model, x, limit, tolerance)
    points = math.ceil(2.0 * radius * NODES_PER_WIDTH / _narrowest_width(model, limit)) | 1
    # where the decoder is steepest there may be no observation: the largest grid may do nevertheless, and for
    # more than one dimension, where nodes are dear, a far smaller one
    points = min(points, limit - 1 | 1 if m == 1 else COARSE)
    some = x[np.linspace(0, len(x) - 1, min(SUBSET, len(x))).astype(int)]
    while points <= limit:
        grid = uniform_grid(max(points, 3), radius)
        if _halving_error(model, some, grid).max() <= tolerance:
            return grid
        points = math.ceil(1.5 * points) | 1
    return None


def _probe(m: int, limit: int) -> Array:
    """A coarse lattice on [-8, 8]^m, (K, m)."""
    return uniform_grid(min(limit, {1: 4001, 2: 101, 3: 25}.get(m, 9)), 8.0).points(m)[0]


def _narrowest_width(model: NonlinearICA, limit: int) -> float:
    """1/sqrt(1 + max ‖∂g/∂z_l‖²/σ²): about the width of the narrowest posterior along an axis."""
    z = _probe(model.latent_dim, limit)
    still = np.zeros(model.decoder.n_params)
    steepest = 0.0
    for axis in range(model.latent_dim):
        along = np.zeros_like(z)
        along[:, axis] = 1.0
        move = model.decoder.jvp(model.theta, z, still, along)
        steepest = max(steepest, float(np.einsum("kn,kn->k", move, move).max()))
    return 1.0 / math.sqrt(1.0 + steepest / model.sigma2)


def _halving_error(model: NonlinearICA, x: Array, grid: UniformGrid) -> Array:
    """|log T_2h - log T_h| for each observation, (N,): T_2h = 2^m Σ over every second point of each axis."""
    m = model.latent_dim
    nodes = Quadrature(grid).nodes(model, x)
    coarse = grid.coarse(m)
    assert coarse is not None  # every grid has a coarser one
    every_second = Nodes(nodes.z[coarse], nodes.log_weight[coarse] + m * math.log(2.0))
    fine, half = (
        log_marginal(model.decoder, model.theta, model.sigma2, x, each) for each in (nodes, every_second)
    )
    return np.asarray(np.abs(fine - half))


def _radius_for(model: NonlinearICA, x: Array, limit: int, tolerance: float) -> float:
    """R with R² = 2 (4 - 2 log tolerance - b), where b is the least, over observations, of a lower bound on
    the peak of -‖x - g(z)‖²/2σ² - ‖z‖²/2: beyond R the prior alone is below tolerance² / e⁴ of that peak.

    ``limit``: points per axis of the lattice on which the peak is looked for, at most.
    """
    m, negligible = model.latent_dim, 4.0 - 2.0 * math.log(tolerance)
    z = _probe(m, limit)
    sums = log_marginal(model.decoder, model.theta, model.sigma2, x, Nodes(z, np.zeros(len(z))))
    constant = 0.5 * model.data_dim * (LOG_2PI + math.log(model.sigma2)) + 0.5 * m * LOG_2PI
    lowest_peak = float((sums + constant).min()) - math.log(len(z))  # a sum is at most K times its peak
    return math.sqrt(2.0 * (negligible - min(lowest_peak, 0.0)))
