"""From the modes of a posterior to the lattices that sample it.

Around a mode the posterior is about a Gaussian of precision A (minus the Hessian). A lattice with the
mode as a node and steps along the eigenvectors of A, h/sqrt(eigenvalue) long, sees a standard normal
density on h Z^m. Modes with nothing negligible between them share a lattice, whitened by the join of
their precisions: the least matrix, in the metric of one of them, that is above each. Modes that are
worlds apart have a lattice each, for the points nearer to them than to the others.
"""

# notation: N observations, C modes of each, P lattices, m latent; A (.., m, m) precision; F as in `cells`

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refica.likelihood import decode
from refica.model import LOG_2PI, NonlinearICA
from refica.modes import Modes, find_modes, laplace_mass, modes_from
from refica.reference.cells import Boxes, Lattices
from refica.validation import Array

__all__ = ["Posteriors", "lattices_on", "posteriors", "prior_boxes", "with_modes_from"]

LEAST_PRECISION = 0.25
"""Smallest precision that a lattice is made for. The prior's is 1; where a Hessian says less, the
posterior is a plateau that ends where the prior does."""


class Posteriors(NamedTuple):
    """The modes (N, C, m) of some observations, their ``precision`` (N, C, m, m), ``F`` (N, C) there, inf
    for an absent one, and ``log_masses`` (N, C), Laplace's approximation of each one's share in
    log ∫ exp(-F); log p(x) is log ∫ exp(-F) less the ``constant``."""

    modes: Array
    precision: Array
    F: Array
    log_masses: Array
    constant: float

    @property
    def log_mass(self) -> Array:
        """log ∫ exp(-F), about, (N,)."""
        return np.asarray(np.logaddexp.reduce(self.log_masses, axis=1))

    def at(self, rows: Array) -> Posteriors:
        """Return those of some observations."""
        return self.each(lambda part: part[rows])

    def each(self, change: Callable[[Array], Array]) -> Posteriors:
        """Return the posteriors with a change made to all arrays alike."""
        return Posteriors(
            change(self.modes), change(self.precision), change(self.F), change(self.log_masses), self.constant
        )


def posteriors(model: NonlinearICA, x: Array) -> Posteriors:
    """Return what Laplace's approximation says of the posteriors of x (N, n)."""
    return _laplace(model, find_modes(model, x, far=False))


def with_modes_from(
    model: NonlinearICA, x: Array, about: Posteriors, rows: Array, starts: Array
) -> Posteriors:
    """Return the posteriors with one more mode for some rows (R,), where a search from starts (R, m) ends."""
    more = _laplace(model, modes_from(model, x[rows], starts[:, None, :]))
    N, C = about.F.shape
    wide = about.each(lambda part: np.concatenate([part, part[:, :1]], axis=1))
    wide.F[:, C], wide.log_masses[:, C] = np.inf, -np.inf
    wide.modes[rows, C], wide.precision[rows, C] = more.modes[:, 0], more.precision[:, 0]
    wide.F[rows, C], wide.log_masses[rows, C] = more.F[:, 0], more.log_masses[:, 0]
    order = np.argsort(-wide.log_masses, axis=1, kind="stable")
    first = np.arange(N)[:, None]
    return wide.each(lambda part: part[first, order])


def _laplace(model: NonlinearICA, found: Modes) -> Posteriors:
    """Return the posteriors with these modes."""
    m, n = model.latent_dim, model.data_dim
    constant = 0.5 * m * LOG_2PI + 0.5 * n * (LOG_2PI + math.log(model.sigma2))
    return Posteriors(
        found.modes, found.hessian, -found.log_joint - constant, laplace_mass(found) + constant, constant
    )


def lattices_on(
    model: NonlinearICA, x: Array, about: Posteriors, h: float, depth: Array, merge: Array
) -> Lattices:
    """Return the lattices of step h for x; what is exp(-depth) of the integral does not matter.

    ``merge``: one lattice for each observation, however far apart its modes are.
    """
    matters = about.log_masses > (about.log_mass - depth)[:, None]
    matters[:, 0] = True
    group = _groups(model, x, about, matters, depth, merge)
    N, C = matters.shape
    precision = about.precision.copy()
    for c in range(1, C):
        rows = np.flatnonzero(matters[:, c] & (group[:, c] != c))
        leader = group[rows, c]
        precision[rows, leader] = _join(precision[rows, leader], about.precision[rows, c])
    leads = matters & (group == np.arange(C))
    row, mode = np.nonzero(leads)
    eigenvalues, axes = np.linalg.eigh(precision[row, mode])
    step = axes * (h / np.sqrt(np.maximum(eigenvalues, LEAST_PRECISION)))[:, None, :]
    centre = about.modes[row, mode]
    rivals = np.where(leads[row][:, :, None], about.modes[row], centre[:, None, :])
    return Lattices(row, centre, step, rivals[:, : 0 if len(row) == N else C])


def _groups(
    model: NonlinearICA, x: Array, about: Posteriors, matters: Array, depth: Array, merge: Array
) -> Array:
    """Return for each mode the first of its group, (N, C).

    Two modes are neighbours if half-way between them, where the border of their regions would be, the
    integrand is above exp(-depth) of its peak; a group is all that neighbours of neighbours reach.
    """
    C = matters.shape[1]
    together = np.eye(C, dtype=bool) | merge[:, None, None]
    i, a, b = np.nonzero(matters[:, :, None] & matters[:, None, :] & (np.arange(C)[:, None] < np.arange(C)))
    if len(i):
        z = 0.5 * (about.modes[i, a] + about.modes[i, b])
        r = x[i] - decode(model.decoder, model.theta, z)
        F = 0.5 * (np.einsum("kn,kn->k", r, r) / model.sigma2 + np.einsum("km,km->k", z, z))
        near = (about.F.min(axis=1) + depth)[i] > F
        i, a, b = i[near], a[near], b[near]
        together[i, a, b] = together[i, b, a] = True
    for _ in range(C.bit_length()):
        together = together @ together
    return np.asarray(together.argmax(axis=2))


def _join(A: Array, B: Array) -> Array:
    """Return L U max(D, 1) Uᵀ Lᵀ for A = L Lᵀ, L⁻¹ B L⁻ᵀ = U D Uᵀ: above both A and B, (R, m, m)."""
    L = np.linalg.cholesky(A)
    W = np.linalg.inv(L)
    D, U = np.linalg.eigh(W @ B @ W.transpose(0, 2, 1))
    root = L @ U * np.sqrt(np.maximum(D, 1.0))[:, None, :]
    return np.asarray(root @ root.transpose(0, 2, 1))


def prior_boxes(lattices: Lattices, log_least: Array) -> Boxes:
    """Return one box for each lattice, outside of which ∫ exp(-F) is below exp(log_least) (N,).

    F >= ‖z‖²/2, and (2π)^(m/2) P(‖Z‖ > R) <= (2π)^(m/2) exp(-R²/2) (e R²/m)^(m/2) for R² >= m.
    """
    m = lattices.centre.shape[1]
    depth = np.maximum(0.5 * m * LOG_2PI - log_least[lattices.row], m)
    square = 2.0 * depth
    for _ in range(20):  # R² = 2 depth + m log(e R²/m) converges like (m/R²)^k
        square = 2.0 * depth + m * np.log(math.e * square / m)
    inverse = np.linalg.inv(lattices.step)
    origin = -np.einsum("pij,pj->pi", inverse, lattices.centre)
    reach = np.sqrt(square[:, None] * np.einsum("pij,pij->pi", inverse, inverse))
    return Boxes(np.arange(len(lattices.row)), origin - reach, origin + reach)
