"""E(1) to E(4): simulation, the joint and the marginal density, and the objective as it is written."""

# notation: N observations, n data, m latent, K nodes

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import special

from refica.marginal import density, log_likelihood
from refica.quadrature import FixedNodes
from refica.validation import Array
from refica.verify import formulas
from refica.verify.cases import Case, Setting, other_nodes, worked_example
from refica.verify.findings import Check, Note, Observed, Tolerance, agree
from refica.verify.routes import ROUNDING, SAMPLING
from refica.verify.sums import density_of, frozen, own_nodes, resolved

__all__ = ["CHECKS"]

QUADRATURE = Tolerance(2e-9, "two kinds of nodes on which the plain sums agree to 1e-9")
ONE = Tolerance(1e-8, "what is beyond 7σ, and 6.8 in z, is 1e-10")
MOST_POINTS = 12_000
"""Points x of a grid over which p(x) is integrated; models that would need more are left out."""
FEW_POINTS = 500
"""Those up to which the plain sums, which form all of N x K, are afforded too."""


def _sampling(setting: Setting) -> Iterator[Observed]:
    models = [case.model for case in setting.cases] + [
        worked_example("tanh", sigma2)[0] for sigma2 in (0.05, 7.0)
    ]
    for model in models:
        z, x = model.sample(4000, setting.rng(10))
        noise = (x - model.decoder(model.theta, z)) / math.sqrt(model.sigma2)
        for what, draws in (("Z", z), ("(X - g(Z))/σ", noise)):
            first = float(np.abs(draws.mean(axis=0)).max()) * math.sqrt(len(draws))
            second = float(np.abs((draws**2).mean(axis=0) - 1.0).max()) * math.sqrt(len(draws) / 2.0)
            yield Observed(f"mean of {what}", "0", first, SAMPLING)
            yield Observed(f"mean square of {what}", "1", second, SAMPLING)
        along_z = float(np.abs(noise.T @ z).max()) / math.sqrt(len(z))
        yield Observed("(X - g(Z))/σ times Z", "0", along_z, SAMPLING)


def _joint(setting: Setting) -> Iterator[Observed]:
    for case in setting.cases:
        z = case.nodes.z[:: max(1, len(case.nodes.z) // 40)]
        g = case.model.decoder(case.model.theta, z)
        found = case.model.log_joint(case.x, z)
        want = formulas.log_joint(case.x, z, g, case.model.sigma2)
        yield agree("log p(x, z)", "log p(x | z) + log p(z)", found, want, ROUNDING, 1.0)
        product = formulas.normal(case.x[:, None], g[None], case.model.sigma2) * formulas.normal(z, 0.0, 1.0)
        yield agree("p(x, z)", "the product of both densities", np.exp(found), product, ROUNDING)
        own = case.model.log_joint(case.x, np.repeat(z[None], len(case.x), axis=0))
        yield agree("log p(x, z), nodes of its own", "shared nodes", own, found, ROUNDING, 1.0)


def _marginal(setting: Setting) -> Iterator[Observed | Note]:
    for case in setting.cases:
        found = log_likelihood(case.model, case.x, frozen(case), gradient=False).per_observation
        want = np.log(density_of(case, case.model.theta, case.model.sigma2))
        yield agree("log p(x)", "log of the plain sum over nodes", found, want, ROUNDING, 1.0)
        g = case.model.decoder(case.model.theta, case.nodes.z)
        terms = formulas.log_joint(case.x, case.nodes.z, g, case.model.sigma2) + case.nodes.log_weight
        yield agree("log p(x)", "scipy's logsumexp", found, special.logsumexp(terms, axis=1), ROUNDING, 1.0)
        own = log_likelihood(case.model, case.x, own_nodes(case), gradient=False).per_observation
        yield agree("log p(x), nodes of its own", "shared nodes", own, found, ROUNDING, 1.0)
        if case.fine and resolved(case):
            nodes = other_nodes(case.model.latent_dim)
            other = np.log(density_of(case, case.model.theta, case.model.sigma2, nodes))
            yield agree("log p(x) on a uniform grid", "on other nodes", found, other, QUADRATURE, 1.0)
        elif case.fine:
            yield Note("nodes of two kinds differ for a model: they do not resolve it (kinks?)")
        far = case.x + 300.0
        found = log_likelihood(case.model, far, frozen(case), gradient=False).per_observation
        terms = formulas.log_joint(far, case.nodes.z, g, case.model.sigma2) + case.nodes.log_weight
        yield agree(
            "log p of an outlier", "scipy's logsumexp", found, special.logsumexp(terms, axis=1), ROUNDING
        )
        if not case.fine:
            yield Note("more than two latent dimensions: formulas are compared on draws, not on integrals")


def _integrates_to_one(setting: Setting) -> Iterator[Observed | Note]:
    grids = [(case, _grid_of_x(case)) for case in setting.cases if case.fine and case.model.data_dim <= 2]
    for case, grid in grids:
        if grid is not None:
            x, cell = grid
            found = density(case.model, x, _thinned(case), gradient=False).total * cell
            yield agree("∫ p(x) dx, refica.density", "1", found, 1.0, ONE)
            plain = (
                sum(
                    float(density_of(case._replace(x=some), case.model.theta, case.model.sigma2).sum())
                    for some in np.array_split(x, max(1, len(x) // 50))
                )
                if len(x) <= FEW_POINTS
                else found / cell
            )
            yield agree("∫ p(x) dx, plain sums", "1", plain * cell, 1.0, ONE)
    if not any(grid for _, grid in grids):
        yield Note("no model reaches over so small a region that p(x) could be integrated")
        yield Observed("∫ p(x) dx", "1 (not integrated)", 0.0, ONE)


def _grid_of_x(case: Case) -> tuple[Array, float] | None:
    """A grid of x (X, n) over the region that the model reaches, and the volume of its cells; None if it
    would have too many points."""
    central = case.nodes.z[np.abs(case.nodes.z).max(axis=1) <= 6.8]
    g, sigma = case.model.decoder(case.model.theta, central), math.sqrt(case.model.sigma2)
    lower, upper = g.min(axis=0) - 7.0 * sigma, g.max(axis=0) + 7.0 * sigma
    counts = np.ceil((upper - lower) / (0.6 * sigma)).astype(int) + 1
    if counts.prod() > MOST_POINTS:
        return None
    axes = [np.linspace(a, b, count) for a, b, count in zip(lower, upper, counts, strict=True)]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    return x, math.prod(float(axis[1] - axis[0]) for axis in axes)


def _thinned(case: Case) -> FixedNodes:
    """For m = 1 every fourth node, 0.1 apart: fine enough for these σ², and there are many x."""
    if case.model.latent_dim > 1:
        return frozen(case)
    return FixedNodes(case.nodes.z[::4], case.nodes.log_weight[::4] + math.log(4.0))


def _objective(setting: Setting) -> Iterator[Observed]:
    for case in setting.cases:
        found = density(case.model, case.x, frozen(case), gradient=False)
        want = density_of(case, case.model.theta, case.model.sigma2)
        yield agree(
            "Σ p(x_i)", "the plain sum over observations and nodes", found.total, want.sum(), ROUNDING
        )
        one = [density(case.model, row[None], frozen(case), gradient=False).total for row in case.x]
        yield agree("Σ p(x_i)", "one observation at a time", found.total, math.fsum(one), ROUNDING)


PRIOR = r"\,\varphi(z;0,I)\,dz"
PHI = r"\varphi(x^{(i)};g_\theta(z),\sigma^2I)"
SHARED = ("likelihood.tiles", "likelihood._log_sum_exp")
MODEL, OBJECTIVE = "The model", "The objective"

CHECKS = (
    Check(
        MODEL,
        "sampling",
        "Simulation of the model",
        "Z ~ N(0, I),  X | Z ~ N(g_θ(Z), σ² I)",
        r"$Z \sim N(0,I),\qquad X|Z \sim N(g_\theta(Z),\sigma^2 I)$",
        "E(1)",
        ("model.NonlinearICA.sample",),
        _sampling,
    ),
    Check(
        MODEL,
        "joint",
        "The joint density",
        "p(x, z) = p(x | z) p(z) = φ(x; g_θ(z), σ² I) φ(z; 0, I)",
        r"$p(x,z) = p(x|z)\,p(z) = \varphi(x;g_\theta(z),\sigma^2I)\,\varphi(z;0,I)$",
        "E(2)",
        ("model.NonlinearICA.log_joint", "model.log_likelihood_given", "model.log_prior"),
        _joint,
    ),
    Check(
        MODEL,
        "marginal",
        "The marginal density",
        "p(x) = ∫ φ(x; g_θ(z), σ² I) φ(z; 0, I) dz",
        r"$p(x) = \int\ \varphi(x;g_\theta(z),\sigma^2I)\,\varphi(z;0,I)\,dz$",
        "E(3)",
        ("likelihood.log_marginal", *SHARED),
        _marginal,
    ),
    Check(
        MODEL,
        "integrates-to-one",
        "The marginal is a density",
        "∫ p(x) dx = 1",
        r"$\int\ p(x)\,dx = 1$",
        "E(3)",
        ("marginal.density", "marginal._sum", *SHARED),
        _integrates_to_one,
    ),
    Check(
        OBJECTIVE,
        "objective",
        "The objective as it is written: a sum of densities",
        "Σ_i p(x_i)",
        rf"$\sum_{{i=1}}^n\int\ {PHI}{PRIOR}\ =:\ \ell(\theta,\sigma)$",
        "E(4); D, Marginal Density and Inference",
        ("marginal.density", "marginal._sum"),
        _objective,
    ),
)
"""The checks of these sections."""
