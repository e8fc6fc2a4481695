"""The integrator for piecewise-affine decoders."""

# notation: N observations, n data, m latent, K nodes

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refica.likelihood import Coefficient, Estimate, Gradient, Nodes, evaluate
from refica.model import NonlinearICA
from refica.piecewise.line import fine_nodes, pair_nodes, parts_on_the_line
from refica.piecewise.network import forward, layers_of
from refica.piecewise.plane import nodes_in_the_plane
from refica.piecewise.scattered import pack, unpack
from refica.validation import Array

__all__ = ["ExactPiecewiseAffine", "rounding"]

TYPICAL_NODES = {1: 512, 2: 8192}
"""Nodes that an observation may have with some 16 hidden units, by latent dimension."""

ROUNDINGS = 2.0
"""Units of roundoff allowed for each term; the largest of some 1000 true errors was a sixth of this."""


@dataclass(frozen=True, slots=True)
class ExactPiecewiseAffine:
    """Log-likelihood, gradient and posterior to rounding, for an MLP of relu, leaky relu and identity layers.

    Any depth, any slopes, also as output activation; one or two latent dimensions. On a piece (m = 1) or a
    line through a cell (m = 2) on which the decoder is affine, the posterior is a Gaussian on an interval,
    and its own two-point Gauss rule is exact for p(x) and its gradient. What is left for m = 1 is rounding.
    For m = 2 the lines are the nodes of Gauss-Legendre panels across each cell, bisected until they agree.

    ``error`` is rounding; for m = 2 also the disagreement of the panels, a bound on the cells left out, and
    the distance to what the cells' affine maps say without the decoder. The work grows with the pieces of a
    line (about the number of units) or the cells of the plane (its square).

    Examples
    --------
    >>> from refica import MLP, NonlinearICA, log_likelihood
    >>> decoder = MLP((1, 2, 1), activation="relu", output_activation="identity")  # g(z) = |z|
    >>> model = NonlinearICA(decoder, [1.0, -1.0, 0.0, 0.0, 1.0, 1.0, 0.0], sigma2=1.0)
    >>> res = log_likelihood(model, [[0.0]], ExactPiecewiseAffine())
    >>> round(res.total, 12)  # N(0; 0, 2), as without the bend: the sign of z does not matter
    -1.265512123485
    """

    def nodes(self, model: NonlinearICA, x: Array) -> Nodes:
        """Return nodes (N, K, m) and log weights (N, K).

        For m = 1 they are Gauss-Legendre nodes wherever the posterior is, and serve other functions as
        well; for m = 2 they are those of `evaluate`, right for functions up to quadratic on each cell.

        Raises
        ------
        ValueError
            If the decoder is not piecewise affine or has more than two latent dimensions.
        """
        _check_latent_dim(model)
        if model.latent_dim == 1:
            return pack(fine_nodes(parts_on_the_line(model, x)))
        return pack(nodes_in_the_plane(model, x).nodes)

    def gradient_nodes(self, model: NonlinearICA, x: Array) -> Nodes:
        """Return the nodes of `evaluate`: for m = 1 fewer than `nodes`, right for p(x) and its gradient."""
        if model.latent_dim != 1:
            return self.nodes(model, x)
        return pack(pair_nodes(parts_on_the_line(model, x)))

    def evaluate(
        self, model: NonlinearICA, x: Array, gradient: bool, coefficient: Coefficient = np.ones_like
    ) -> Estimate:
        """Return log p(x_i) with its error, problems, and the gradient of Σ_i c_i log p(x_i)."""
        _check_latent_dim(model)
        wanted = coefficient if gradient else None
        if model.latent_dim == 1:
            parts = parts_on_the_line(model, x)
            nodes = pack(pair_nodes(parts))
            result = evaluate(model.decoder, model.theta, model.sigma2, x, nodes, coefficient=wanted)
            return Estimate(result.log_p, rounding(model, x, result.log_p, parts.peak), {}, result.gradient)
        placed = nodes_in_the_plane(model, x)
        # One observation at a time: their numbers of nodes differ, and shared nodes stay in cache.
        each = [
            evaluate(model.decoder, model.theta, model.sigma2, x[i : i + 1], nodes, coefficient=wanted)
            for i, nodes in enumerate(unpack(placed.nodes))
        ]
        log_p = np.concatenate([result.log_p for result in each])
        found = [result.gradient for result in each if result.gradient is not None]
        total = _sum(found) if found else None
        problems = {"a panel still differs from its halves after all bisections": ~placed.resolved}
        # The decoder itself and the affine maps of its cells: two routes, which a lost cell would part.
        error = placed.error + np.abs(log_p - placed.log_p) + rounding(model, x, log_p, placed.peak)
        return Estimate(log_p, error, problems, total)

    def nodes_per_observation(self, m: int) -> int:
        """Return about how many nodes each observation has of its own."""
        return TYPICAL_NODES.get(m, 1)


def rounding(model: NonlinearICA, x: Array, log_p: Array, peak: Array) -> Array:
    """Return what rounding may have done to log p(x_i), (N,), given where the posterior is, (N, m).

    A decoder that adds up terms of total size s, layer by layer, is wrong by about u s a layer, u being the
    unit roundoff. The exponent E = ‖x - g‖²/2σ² + ‖z‖²/2 makes sqrt(2E)/σ times as much of the error of
    x - g; and it rounds by itself, as do the constants.
    """
    layers = layers_of(model.decoder, model.theta)
    *_, signal = forward(layers, peak, np.empty((0, model.latent_dim)))
    size = np.abs(x) + len(layers) * signal.size * np.maximum(1.0, abs(layers[-1].slope))
    r = x - signal.output
    E = 0.5 * (np.einsum("in,in->i", r, r) / model.sigma2 + np.einsum("im,im->i", peak, peak))
    E += 0.5 * (model.data_dim + model.latent_dim)  # what the posterior adds to that of its peak
    constants = 0.5 * model.data_dim * abs(np.log(2.0 * np.pi * model.sigma2))
    turned = np.linalg.norm(size, axis=1) * np.sqrt(2.0 * E / model.sigma2)
    return np.asarray(ROUNDINGS * np.finfo(np.float64).eps * (np.abs(log_p) + constants + E + turned))


def _sum(gradients: list[Gradient]) -> Gradient:
    return Gradient(np.sum([g.theta for g in gradients], axis=0), math.fsum(g.sigma2 for g in gradients))


def _check_latent_dim(model: NonlinearICA) -> None:
    if model.latent_dim > 2:
        raise ValueError(
            f"ExactPiecewiseAffine integrates over 1 or 2 latent dimensions, got {model.latent_dim}; use "
            "Quadrature(gauss_hermite(7), proposal='modes') or integrator=None, which picks one that fits"
        )
