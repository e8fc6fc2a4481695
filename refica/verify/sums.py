"""The formulas of D as sums over nodes, as they stand there, for the checks of the derivation.

Each line of D's gradients has its ∇ taken node by node: by the complex step, or by differences for decoders
that take no complex numbers.
"""

# notation: N observations, n data, m latent, K nodes, p parameters;
# W (1, K) the weights of the nodes times φ(z; 0, I)

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from refica.likelihood import Nodes
from refica.quadrature import FixedNodes
from refica.validation import Array
from refica.verify import formulas
from refica.verify.cases import Case, other_nodes
from refica.verify.routes import partials

__all__ = [
    "density_gradient",
    "density_of",
    "frozen",
    "own_nodes",
    "resolved",
    "sigma2_lines",
    "sigma2_size",
    "theta_line",
    "theta_size",
    "total_in_sigma2",
    "total_in_theta",
    "weights_of",
]

FINE = 1e-9
"""Difference of log p(x) on two kinds of nodes up to which both are taken to be the integral."""


def weights_of(case: Case, nodes: Nodes | None = None) -> tuple[Array, Array]:
    """z (K, m), and the nodes' weights times φ(z; 0, I), (1, K)."""
    z, log_weight = case.nodes if nodes is None else nodes
    return z, (np.exp(log_weight) * formulas.normal(z, 0.0, 1.0))[None]


def density_of(case: Case, theta: Array, sigma2: complex, nodes: Nodes | None = None) -> Array:
    """p(x_i) = ∫ φ(x_i; g_θ(z), σ² I) φ(z; 0, I) dz, (N,): E(3) on the nodes, as it stands there."""
    z, W = weights_of(case, nodes)
    g = case.model.decoder(theta, z)
    return (W * formulas.normal(case.x[:, None], g[None], sigma2)).sum(axis=1)


def theta_line(case: Case, number: int, analytic: bool) -> Array:
    """Line ``number`` (1 to 4) of D's gradient in θ, (p,), its ∇ taken node by node."""
    decoder, theta, sigma2 = case.model.decoder, case.model.theta, case.model.sigma2
    (z, W), n = weights_of(case), case.model.data_dim
    g = decoder(theta, z)
    phi = formulas.normal(case.x[:, None], g[None], sigma2)

    def of(function: Callable[[Array], Array]) -> Array:
        return partials(lambda t: function(decoder(t, z)), theta, analytic=analytic)

    match number:
        case 1:
            return (of(lambda h: formulas.normal(case.x[:, None], h[None], sigma2)) * W).sum(axis=(1, 2))
        case 2:
            normaliser = (2.0 * math.pi * sigma2) ** (-n / 2.0)
            return normaliser * (of(lambda h: np.exp(formulas.exponent(case.x, h, sigma2))) * W).sum(
                axis=(1, 2)
            )
        case 3:
            return (of(lambda h: formulas.exponent(case.x, h, sigma2)) * (phi * W)).sum(axis=(1, 2))
        case _:
            r = formulas.residuals(case.x, g) / sigma2
            return np.einsum("jkn,kn->j", of(lambda h: h), np.einsum("ikn,ik->kn", r, phi * W))


def sigma2_lines(case: Case) -> tuple[float, float, float]:
    """The three lines of D's gradient in σ², the ∇ in the first two taken by the complex step."""
    (z, W), n, sigma2 = weights_of(case), case.model.data_dim, case.model.sigma2
    g = case.model.decoder(case.model.theta, z)
    squared = formulas.squared_norm(formulas.residuals(case.x, g))
    at = np.array([sigma2])

    def of(function: Callable[[Array], Array]) -> float:
        return float((W * partials(lambda s: function(s[0]), at, analytic=True)[0]).sum())

    phi = formulas.normal(case.x[:, None], g[None], sigma2)
    return (
        of(lambda s: formulas.normal(case.x[:, None], g[None], s)),
        of(lambda s: (2.0 * math.pi * s) ** (-n / 2.0) * np.exp(-squared / (2.0 * s))),
        float((W * phi * (1.0 / (2.0 * sigma2)) * (-n + squared / sigma2)).sum()),
    )


def density_gradient(case: Case, analytic: bool) -> tuple[Array, Array, Array]:
    """p(x_i) (N,), ∇_θ p(x_i) (N, p) and ∂_σ² p(x_i) (N,), observation by observation."""
    theta, sigma2 = case.model.theta, case.model.sigma2
    by_theta = partials(lambda t: density_of(case, t, sigma2), theta, analytic=analytic).T
    by_sigma2 = partials(lambda s: density_of(case, theta, s[0]), np.array([sigma2]), analytic=True)[0]
    return density_of(case, theta, sigma2), by_theta, by_sigma2


def frozen(case: Case) -> FixedNodes:
    """The nodes of a case as an integrator, shared by its observations."""
    return FixedNodes(case.nodes.z, case.nodes.log_weight)


def own_nodes(case: Case) -> FixedNodes:
    """The same nodes, as if each observation had its own."""
    N = len(case.x)
    return FixedNodes(
        np.repeat(case.nodes.z[None], N, axis=0), np.repeat(case.nodes.log_weight[None], N, axis=0)
    )


def resolved(case: Case) -> bool:
    """Whether log p(x) on the nodes is the integral: nodes of another kind say the same."""
    at = case.model.theta, case.model.sigma2
    here, there = (
        np.log(density_of(case, *at, nodes)) for nodes in (None, other_nodes(case.model.latent_dim))
    )
    return bool(np.abs(here - there).max() <= FINE)


def total_in_theta(case: Case, nodes: Nodes | None = None) -> Callable[[Array], float]:
    """Return the objective Σ_i p(x_i) as a function of θ (p,)."""
    return lambda theta: float(density_of(case, theta, case.model.sigma2, nodes).sum())


def total_in_sigma2(case: Case, nodes: Nodes | None = None) -> Callable[[Array], float]:
    """Return the objective Σ_i p(x_i) as a function of σ²/σ₀² (1,), σ₀² being that of the case."""
    return lambda s: float(density_of(case, case.model.theta, s[0] * case.model.sigma2, nodes).sum())


def theta_size(case: Case) -> Array:
    """The size of what ∇_θ p(x_i) sums, (N,): Σ_k W φ ‖r‖/σ²."""
    z, W = weights_of(case)
    g = case.model.decoder(case.model.theta, z)
    r = formulas.residuals(case.x, g)
    phi = formulas.normal(case.x[:, None], g[None], case.model.sigma2)
    return np.asarray((W * phi * np.sqrt(formulas.squared_norm(r))).sum(axis=1) / case.model.sigma2)


def sigma2_size(case: Case) -> Array:
    """The size of what ∂_σ² p(x_i) sums, (N,): Σ_k W φ (n + ‖r‖²/σ²)/2σ²."""
    z, W = weights_of(case)
    g, sigma2 = case.model.decoder(case.model.theta, z), case.model.sigma2
    squared = formulas.squared_norm(formulas.residuals(case.x, g))
    phi = formulas.normal(case.x[:, None], g[None], sigma2)
    return np.asarray((W * phi * (case.model.data_dim + squared / sigma2)).sum(axis=1) / (2.0 * sigma2))
