"""Nodes of which each observation visits only its neighbourhood: an integrator for fits.

Where σ is small against the spread of the data, all but a few nodes of a grid contribute nothing to
p(x_i). With the pairs (i, k) that matter listed once, value and gradient are those of
`refica.likelihood`, summed over the list:

    e_p = log p(x_i | z_k) + log p(z_k) + log_weight_p,     p = (i, k)
    log p(x_i) ≈ logsumexp_{p of i} e_p,     ρ_p = exp(e_p - log p(x_i))
    V_k = Σ_{p of k} c_i ρ_p (x_i - g_k) / σ²,     ∇_θ = Σ_k J_θ(z_k)ᵀ V_k                  D, line 4 of θ

while the decoder is still evaluated once at each node. Made by `near` from nodes that all observations share:
weights are positive, so that a pair left out can only lower log p(x_i). Or by `around_modes`, for each
observation its own: few nodes, which may be off either way where a posterior is no mixture of Gaussians.
"""

# notation: N observations, n data, m latent, K nodes, P pairs; c (N,) weights of the observations

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from refica.likelihood import (
    NOTHING,
    Coefficient,
    Estimate,
    Gradient,
    Nodes,
    decode,
    pull_back,
    row_blocks,
)
from refica.model import NonlinearICA, log_likelihood_given, log_prior
from refica.modes import find_modes
from refica.piecewise.scattered import Scattered, pack
from refica.proposals import Gaussians, mixture_at, place
from refica.rules import Rule
from refica.validation import Array

__all__ = ["Neighbourhoods", "around_modes", "near", "of_mixtures"]

UNKNOWN = "the nodes are frozen and give no error estimate"

TILE = 2**20
"""Bound on (observations x nodes) of an array when neighbourhoods are looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhoods:
    """Nodes ``z`` (K, m), and pairs sorted by observation: ``node`` (P,), ``log_weight`` (P,) for Lebesgue
    measure; those of observation i are start[i] to start[i + 1], at least one, ``start`` (N + 1,)."""

    z: Array
    node: Array
    log_weight: Array
    start: Array

    def __repr__(self) -> str:
        """Name the sizes only: the arrays would fill pages of a message."""
        N = len(self.start) - 1
        return f"Neighbourhoods({N} observations, {len(self.z)} nodes, {len(self.node)} pairs)"

    def nodes(self, model: NonlinearICA, x: Array) -> Nodes:
        """Return each observation's nodes, z (N, K', m) and log weights (N, K'); raises as `check_fit`."""
        self.check_fit(model, x)
        row = np.repeat(np.arange(len(x)), np.diff(self.start))
        return pack(Scattered(row, self.z[self.node], self.log_weight))

    def check_fit(self, model: NonlinearICA, x: Array) -> None:
        """Refuse a model or data that the nodes were not made for.

        Raises
        ------
        ValueError
            If their dimension is not the model's or their number of observations not that of x.
        """
        if self.z.shape[1] != model.latent_dim or len(self.start) - 1 != len(x):
            raise ValueError(
                f"{self} of dimension {self.z.shape[1]} do not fit {len(x)} observations and "
                f"latent_dim {model.latent_dim}"
            )

    def for_rows(self, rows: slice) -> Neighbourhoods:
        """Return the nodes of some consecutive observations."""
        start = self.start[rows.start : rows.stop + 1]
        pairs = slice(start[0], start[-1])
        node, z = self.node[pairs], self.z
        if len(start) < len(self.start):  # only the nodes that they visit
            used, node = np.unique(node, return_inverse=True)
            z = z[used]
        return Neighbourhoods(z, node, self.log_weight[pairs], start - start[0])

    def of_rows(self, rows: Array) -> Neighbourhoods:
        """Return the nodes of some observations (B,) in any order."""
        count = np.diff(self.start)[rows]
        start = np.concatenate([[0], np.cumsum(count)])
        pairs = np.arange(start[-1]) + np.repeat(self.start[rows] - start[:-1], count)
        used, node = np.unique(self.node[pairs], return_inverse=True)
        return Neighbourhoods(self.z[used], node, self.log_weight[pairs], start)

    def evaluate(
        self, model: NonlinearICA, x: Array, gradient: bool, coefficient: Coefficient = np.ones_like
    ) -> Estimate:
        """Return log p(x_i) without an error, and the gradient of Σ_i c_i log p(x_i)."""
        n, sigma2 = x.shape[1], model.sigma2
        g = decode(model.decoder, model.theta, self.z)
        log_p, rho, squared = self.shares(model, x, g)
        found = None
        if gradient:
            c = coefficient(log_p)
            rho *= np.repeat(c, np.diff(self.start))
            by_sigma2 = (rho @ squared / sigma2 - n * c.sum()) / (2.0 * sigma2)
            by_theta = pull_back(model.decoder, model.theta, self.z, self._V(rho, x, g) / sigma2)
            found = Gradient(by_theta, float(by_sigma2))
        N = len(x)
        return Estimate(log_p, np.full(N, np.nan), {UNKNOWN: np.ones(N, dtype=bool)}, found)

    def shares(self, model: NonlinearICA, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """Return log p(x_i) (N,), responsibilities ρ (P,) and squared distances ‖x - g‖² (P,), from the
        decoder's values g (K, n) at the nodes."""
        first, count = self.start[:-1], np.diff(self.start)
        squared = np.zeros(len(self.node))
        for x_d, g_d in zip(x.T, g.T, strict=True):  # a column at a time: no array of size P x n
            r_d = np.repeat(x_d, count) - g_d.take(self.node)
            squared += r_d * r_d
        e = log_likelihood_given(squared, model.sigma2, x.shape[1])
        e += log_prior(self.z).take(self.node)
        e += self.log_weight
        shift = np.maximum.reduceat(e, first)
        e -= np.repeat(shift, count)
        rho = np.exp(np.maximum(e, NOTHING, out=e), out=e)
        mass = np.add.reduceat(rho, first)
        rho /= np.repeat(mass, count)
        return shift + np.log(mass), rho, squared

    def sums_at_nodes(self, rho: Array, x: Array) -> tuple[Array, Array]:
        """Σ_{p of k} ρ_p (x_i - x̄) (K, n) and Σ_{p of k} ρ_p (K,): about the data's mean x̄, since an offset
        of theirs would cancel."""
        visits = sparse.csr_array((rho, self.node, self.start), shape=(len(x), len(self.z)))
        sums = visits.T @ np.column_stack([x - x.mean(axis=0), np.ones(len(x))])
        return sums[:, :-1], sums[:, -1]

    def _V(self, rho: Array, x: Array, g: Array) -> Array:
        """Σ_{p of k} ρ_p (x_i - g_k), (K, n)."""
        sums, weight = self.sums_at_nodes(rho, x)
        return np.asarray(sums - weight[:, None] * (g - x.mean(axis=0)))


def near(model: NonlinearICA, x: Array, shared: Nodes, depth: float) -> Neighbourhoods:
    """Return of shared nodes those at which the integrand is within exp(-depth) of its largest value.

    Parameters
    ----------
    model : NonlinearICA
    x : (N, n)
    shared : Nodes
        z (K, m) and log weights (K,).
    depth : float
        In nats.
    """
    g, centre = decode(model.decoder, model.theta, shared.z), x.mean(axis=0)
    # -‖x - g‖²/2σ² up to a constant for each x by one matrix product: it cancels, which a list may
    g = (g - centre) / model.sigma2
    offset = shared.log_weight + log_prior(shared.z) - 0.5 * model.sigma2 * np.einsum("kn,kn->k", g, g)
    count, node = [], []
    for rows in row_blocks(len(x), max(1, TILE // len(g))):
        exponent = (x[rows] - centre) @ g.T
        exponent += offset
        i, k = np.nonzero(exponent >= exponent.max(axis=1, keepdims=True) - depth)
        count.append(np.bincount(i, minlength=len(exponent)))
        node.append(k)
    used, index = np.unique(np.concatenate(node).astype(np.int32), return_inverse=True)
    start = np.concatenate([[0], np.cumsum(np.concatenate(count))])
    return Neighbourhoods(shared.z[used], index, shared.log_weight[used][index], start)


def around_modes(model: NonlinearICA, x: Array, rule: Rule) -> Neighbourhoods:
    """Return a rule's nodes at the modes of each posterior, only where there are modes."""
    return of_mixtures(mixture_at(find_modes(model, x, cells=False)), rule)


def of_mixtures(gaussians: Gaussians, rule: Rule) -> Neighbourhoods:
    """Return a rule's nodes on the mixture of each observation, only where components are present."""
    z, log_weight = place(*rule.points(gaussians.mean.shape[-1]), gaussians)
    present = log_weight > -np.inf
    assert present.any(axis=1).all(), "every observation needs a component"
    start = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
    return Neighbourhoods(z[present], np.arange(start[-1]), log_weight[present], start)
