"""The log-likelihood, its gradient, and Fisher's identity."""

# notation: N observations, n data, m latent, K nodes, p parameters

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from refica.decoders import Decoder
from refica.marginal import log_likelihood, scores
from refica.validation import Array
from refica.verify import formulas
from refica.verify.cases import Case, Setting
from refica.verify.findings import Check, Note, Observed, agree, slope_of
from refica.verify.routes import (
    AUTOGRAD,
    COMPLEX,
    ROUNDING,
    WITHOUT_AUTOGRAD,
    derivative_tolerance,
    differentiable,
    partials,
    route_name,
    slope_along,
    takes_complex,
)
from refica.verify.sums import density_gradient, density_of, frozen, sigma2_size, theta_size, weights_of

__all__ = ["CHECKS"]


def _log_total(case: Case) -> Callable[[Array], float]:
    """Σ_i log p(x_i) as a function of θ."""
    return lambda theta: float(np.log(density_of(case, theta, case.model.sigma2)).sum())


def _logarithm(setting: Setting) -> Iterator[Observed | Note]:
    for case in setting.cases:
        model, analytic = case.model, takes_complex(case)
        found = log_likelihood(model, case.x, frozen(case))
        assert found.gradient is not None  # it was asked for
        theta, sigma2 = found.gradient
        p, by_theta, by_sigma2 = density_gradient(case, analytic)
        log_p = np.log(p)
        yield agree("ℓ", "Σ log p(x_i)", found.total, log_p.sum(), ROUNDING, np.abs(log_p).sum())
        size, size_sigma2 = (theta_size(case) / p).sum(), (sigma2_size(case) / p).sum()
        route, tolerance = f"Σ ∇p/p by the {route_name(analytic)}", derivative_tolerance(analytic)
        yield agree("∇_θ ℓ", route, theta, (by_theta / p[:, None]).sum(axis=0), tolerance, size)
        want = (by_sigma2 / p).sum()
        yield agree("∂_σ² ℓ", "Σ ∂p/p by the complex step", sigma2, want, COMPLEX, size_sigma2)
        auto = differentiable(case)
        if auto is not None:
            by = auto.log_likelihood_gradient(model.decoder, model.theta, model.sigma2, case.x, *case.nodes)
            yield agree("∇_θ ℓ", "autograd", theta, by[0], AUTOGRAD, size)
            yield agree("∂_σ² ℓ", "autograd", sigma2, by[1], AUTOGRAD, size_sigma2)
        slope = slope_along(_log_total(case), theta, model.theta, setting.rng(14))
        yield slope_of("∇_θ ℓ", slope)
    if differentiable() is None:
        yield Note(WITHOUT_AUTOGRAD)


def _decoded(decoder: Decoder, z: Array, theta: Array) -> Array:
    return decoder(theta, z)


def _fisher(setting: Setting) -> Iterator[Observed]:
    for case in setting.cases:
        analytic = takes_complex(case)
        decoder, theta, sigma2 = case.model.decoder, case.model.theta, case.model.sigma2
        p, by_theta, by_sigma2 = density_gradient(case, analytic)
        (z, W), n = weights_of(case), case.model.data_dim
        g = decoder(theta, z)
        r = formulas.residuals(case.x, g)
        posterior = W * formulas.normal(case.x[:, None], g[None], sigma2) / p[:, None]
        slope = partials(partial(_decoded, decoder, z), theta, analytic=analytic)
        averaged = np.einsum("ik,jkn,ikn->ij", posterior, slope, r / sigma2, optimize=True)
        in_sigma2 = (posterior * (-n + formulas.squared_norm(r) / sigma2)).sum(axis=1) / (2.0 * sigma2)
        size = theta_size(case) / p
        tolerance, route = derivative_tolerance(analytic), route_name(analytic)
        yield agree(
            "E[∇_θ log p(x, Z) | x]", f"∇p/p by the {route}", averaged, by_theta / p[:, None], tolerance, size
        )
        size_sigma2 = sigma2_size(case) / p
        yield agree(
            "E[∂_σ² log p(x, Z) | x]",
            "∂p/p by the complex step",
            in_sigma2,
            by_sigma2 / p,
            COMPLEX,
            size_sigma2,
        )
        found = scores(case.model, case.x, frozen(case))
        yield agree("refica.scores, θ", "E[∇_θ log p(x, Z) | x]", found[:, :-1], averaged, tolerance, size)
        yield agree(
            "refica.scores, σ²", "E[∂_σ² log p(x, Z) | x]", found[:, -1], in_sigma2, ROUNDING, size_sigma2
        )


SHARED = ("likelihood.tiles", "likelihood._log_sum_exp")
IN_THETA = (
    "likelihood._shared_nodes_gradient",
    "likelihood._own_nodes_gradient",
    "likelihood.pull_back",
    "marginal._density",
)
LOGARITHM = "The log-likelihood"

CHECKS = (
    Check(
        LOGARITHM,
        "logarithm",
        "The logarithmic form",
        "ℓ = Σ log p(x_i),  ∇ℓ = Σ ∇p(x_i)/p(x_i)",
        r"$\ell(\theta,\sigma^2)=\sum_i\log p(x^{(i)}),\qquad \nabla\ell=\sum_i\nabla p(x^{(i)})/p(x^{(i)})$",
        'E, before (4): "the observed data likelihood"',
        ("marginal.log_likelihood", *SHARED, *IN_THETA),
        _logarithm,
    ),
    Check(
        LOGARITHM,
        "fisher",
        "Fisher's identity",
        "∇ log p(x) = E[∇ log p(x, Z) | x]",
        r"$\nabla\log p(x) = E\left[\nabla\log p(x,Z)\ |\ x\right]$",
        "mathematics of refica: D divided by p(x)",
        ("marginal.scores", *SHARED),
        _fisher,
    ),
)
"""The checks of this section."""
