"""Posterior modes that are followed while parameters move, with nodes placed at them.

Frozen nodes hold a fit back: when a decoder slides along itself, or a fold opens, posteriors leave the places
that were looked at. Modes move with it, and a few steps of Gauss and Newton from where they were find them
again:

    z <- z + α A⁻¹ (Gᵀ r / σ² - z),     A = I + GᵀG / σ²,     r = x - g(z),     G = ∂g/∂z

Nodes at the followed modes see no mode that appears elsewhere, and can mislead where a posterior is no
mixture of Gaussians: what they promise is to be judged on nodes made anew.
"""

# notation: N observations, C modes of each at most, R modes in all, n data, m latent, P pairs

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refica.ascent import regular
from refica.likelihood import decode
from refica.model import NonlinearICA, log_likelihood_given, log_prior
from refica.neighbourhoods import Neighbourhoods, of_mixtures
from refica.proposals import Gaussians
from refica.rules import Rule
from refica.validation import Array

__all__ = ["FollowedModes", "follow", "modes_within"]

MOST_MODES = 3
"""Modes followed of an observation, those with most mass."""

WORTH = 1e-3
"""Part of the first mode's mass below which another is not followed, of p(x) below which none is sought."""

APART = 5.0
"""Standard deviations about a mode within which nodes say nothing of another."""

SAME = 1.0
"""Standard deviations within which two searches have found one mode: tails may reach farther than `APART`."""

STEPS, HALVINGS = 10, 5
"""Steps at most that find a mode again after parameters moved, and halvings of one."""

NEAR = 1e-4
"""Squared length of a step, in posterior standard deviations, after which a search ends."""


class FollowedModes(NamedTuple):
    """Modes ``z`` (N, C, m), Gauss-Newton's matrix ``A`` (N, C, m, m) there, and ``mass`` (N, C), the log of
    Laplace's approximation of p(x_i) about each; -inf where an observation has no such mode."""

    z: Array
    A: Array
    mass: Array

    @property
    def log_share(self) -> Array:
        """The share (N, C) of each mode in an observation's mass, its log."""
        return np.asarray(self.mass - np.logaddexp.reduce(self.mass, axis=1, keepdims=True))

    def nodes(self, rule: Rule) -> Neighbourhoods:
        """Return a rule's nodes, placed by the mixture of N(z, A⁻¹) over each observation's modes."""
        scale = np.swapaxes(np.linalg.inv(np.linalg.cholesky(self.A)), 2, 3)
        return of_mixtures(Gaussians(self.log_share, self.z, scale, {}), rule)


def modes_within(nodes: Neighbourhoods, model: NonlinearICA, x: Array) -> FollowedModes:
    """Return the modes reached from each observation's best node, then from the best ones apart from it.

    Every observation has the first; others if they are other ones and worth it.
    """
    rho = nodes.shares(model, x, decode(model.decoder, model.theta, nodes.z))[1]
    row = np.repeat(np.arange(len(x)), np.diff(nodes.start))
    parts: list[tuple[Array, Array, Array]] = []
    for _ in range(MOST_MODES):
        start = nodes.z[nodes.node[_best_of_each(rho, nodes.start)]]
        z, A, mass = _ascend(model, x, start)
        new = np.ones(len(x), dtype=bool)
        for other, A_there, mass_there in parts:
            new &= (_squared_distance(z - other, A_there) > SAME**2) & (mass > mass_there + np.log(WORTH))
        parts.append((z, A, np.where(new, mass, -np.inf)))
        for centre in (z, start):
            rho[_squared_distance(nodes.z[nodes.node] - centre[row], A[row]) < APART**2] = 0.0
        if not (np.add.reduceat(rho, nodes.start[:-1]) > WORTH).any():
            break
    return FollowedModes(*(np.stack(part, axis=1) for part in zip(*parts, strict=True)))


def follow(modes: FollowedModes, model: NonlinearICA, x: Array) -> FollowedModes:
    """Return the modes again after the model has moved."""
    here = modes.mass > -np.inf
    i, _ = np.nonzero(here)
    moved = FollowedModes(*(part.copy() for part in modes))
    moved.z[here], moved.A[here], moved.mass[here] = _ascend(model, x[i], modes.z[here])
    return moved


def _squared_distance(dz: Array, A: Array) -> Array:
    """dzᵀ A dz, row by row."""
    return np.asarray(np.einsum("ri,rij,rj->r", dz, A, dz))


def _best_of_each(rho: Array, start: Array) -> Array:
    """Return the pair (N,) with the largest share of each observation."""
    largest = np.repeat(np.maximum.reduceat(rho, start[:-1]), np.diff(start))
    at_it = np.flatnonzero(rho == largest)
    return np.asarray(at_it[np.searchsorted(at_it, start[:-1])])


def _ascend(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array, Array]:
    """Return z (R, m) after `STEPS` steps from z, and A and Laplace's log mass there."""
    z = z.copy()
    value, r = _log_joint(model, x, z)
    active = np.arange(len(z))
    for _ in range(STEPS):
        G = latent_slopes(model, z[active])
        gradient = np.einsum("rnm,rn->rm", G, r[active]) / model.sigma2 - z[active]
        step = np.zeros_like(z)
        step[active] = np.linalg.solve(_gauss_newton(G, model.sigma2), gradient[..., None])[..., 0]
        far = np.einsum("rm,rm->r", step[active], gradient) > NEAR
        step /= np.maximum(np.abs(step).max(axis=1, keepdims=True), 1.0)
        rows = active
        active = active[far]
        for _ in range(HALVINGS):
            there, r_there = _log_joint(model, x[rows], z[rows] + step[rows])
            rises = there >= value[rows]
            up = rows[rises]
            z[up] += step[up]
            value[up], r[up] = there[rises], r_there[rises]
            rows = rows[~rises]
            step[rows] *= 0.5
            if not len(rows):
                break
        if not len(active):
            break
    A = _gauss_newton(latent_slopes(model, z), model.sigma2)
    log_volume = 0.5 * (model.latent_dim * np.log(2.0 * np.pi) - np.linalg.slogdet(A)[1])
    return z, A, value + log_volume


def _log_joint(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array]:
    """log p(x_r, z_r) (R,) and x_r - g(z_r) (R, n), row by row."""
    r = x - decode(model.decoder, model.theta, z)
    squared = np.einsum("rn,rn->r", r, r)
    return log_likelihood_given(squared, model.sigma2, model.data_dim) + log_prior(z), r


def latent_slopes(model: NonlinearICA, z: Array) -> Array:
    """G = ∂g/∂z at z (R, m), (R, n, m)."""
    still = np.zeros(model.decoder.n_params)
    columns = [
        model.decoder.jvp(model.theta, z, still, np.broadcast_to(e, z.shape)) for e in np.eye(z.shape[1])
    ]
    return np.stack(columns, axis=2)


def _gauss_newton(G: Array, sigma2: float) -> Array:
    """A = I + GᵀG / σ², (R, m, m)."""
    return regular(np.eye(G.shape[2]) + np.einsum("rni,rnj->rij", G, G) / sigma2)
