"""Slips in gradients, moments and optima."""

# notation: N observations, n data

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refica.testing.conformance.case import Case
from refica.testing.conformance.formulas import Answer
from refica.testing.conformance.slips.slip import (
    GRADIENTS,
    N_of,
    Slip,
    changed,
    everywhere,
    n_of,
    scaled,
    sigma2_of,
)

__all__ = ["SLIPS"]


def _optimum_of(case: Case, sigma2: Any, covariance: Any) -> Answer:
    """The answer with another σ² and covariance C: Σ_i log N(x_i; mean, C) = -N/2 (n log 2π + ...)."""
    x = np.asarray(case.x)
    r = x - x.mean(axis=0)
    quadratic = (r * np.linalg.solve(covariance, r.T).T).sum()
    log_det = np.linalg.slogdet(2.0 * math.pi * covariance)[1]
    return {"value": -0.5 * (quadratic + len(x) * log_det), "sigma2": sigma2, "covariance": covariance}


def _wrong_noise(case: Case, found: Answer) -> Answer:
    if "covariance" not in found:
        return {}
    sigma2 = found["sigma2"] * N_of(case) / (N_of(case) - 1.0)
    shift = sigma2 - found["sigma2"]
    return _optimum_of(case, sigma2, found["covariance"] + shift * np.eye(len(found["mean"])))


def _wrong_covariance(case: Case, found: Answer) -> Answer:
    if "covariance" not in found:
        return {}
    factor = N_of(case) / (N_of(case) - 1.0)
    return _optimum_of(case, factor * found["sigma2"], factor * found["covariance"])


OF_GRADIENTS = (
    Slip(
        "wrong-sign",
        "the gradient in θ has g - x for x - g: descent where ascent is meant",
        GRADIENTS,
        scaled(theta=lambda case: -1.0),
    ),
    Slip(
        "descent",
        "the gradient is that of the negative, as for descent",
        GRADIENTS,
        scaled(theta=lambda case: -1.0, sigma2=lambda case: -1.0, phi=lambda case: -1.0),
    ),
    Slip(
        "descent",
        "value and gradient are those of the negative, a loss",
        GRADIENTS,
        changed(lambda case, found: {name: -value for name, value in found.items()}),
    ),
    Slip("lost-sigma2", "the gradient in θ lacks its 1/σ²", GRADIENTS, scaled(theta=sigma2_of)),
    Slip(
        "log-sigma2-gradient",
        "∂/∂log σ² is given for ∂/∂σ²: too large by a factor σ²",
        GRADIENTS,
        scaled(sigma2=sigma2_of),
    ),
    Slip(
        "sigma-gradient",
        "∂/∂σ is given for ∂/∂σ²: too large by a factor 2σ",
        GRADIENTS,
        scaled(sigma2=lambda case: 2.0 * math.sqrt(sigma2_of(case))),
    ),
    Slip(
        "log-sigma-gradient",
        "∂/∂log σ is given for ∂/∂σ²: too large by a factor 2σ²",
        GRADIENTS,
        scaled(sigma2=lambda case: 2.0 * sigma2_of(case)),
    ),
    Slip(
        "n-observations",
        "the n of the gradient in σ² is the number of observations in place of the dimension",
        ("gradient", "elbo-gradient"),
        changed(
            lambda case, found: {
                "sigma2": found["sigma2"] + N_of(case) * (n_of(case) - N_of(case)) / (2.0 * sigma2_of(case))
            }
        ),
    ),
    Slip(
        "lost-n",
        "the gradient in σ² lacks the derivative of the normaliser, -n/2σ²",
        ("gradient", "elbo-gradient"),
        changed(
            lambda case, found: {
                "sigma2": found["sigma2"] + N_of(case) * n_of(case) / (2.0 * sigma2_of(case))
            }
        ),
    ),
    Slip(
        "averaged-total",
        "totals are means over the observations in place of sums",
        GRADIENTS,
        changed(lambda case, found: {name: value / N_of(case) for name, value in found.items()}),
    ),
    Slip(
        "averaged-total",
        "the value is a mean over the observations, the gradient that of the sum",
        GRADIENTS,
        scaled(value=lambda case: 1.0 / N_of(case)),
    ),
    Slip(
        "log-for-density",
        "the gradient of Σ log p(x_i) is given for that of Σ p(x_i)",
        ("density",),
        everywhere(coefficients=lambda level, log_p: (np.ones_like(log_p), np.ones_like(log_p))),
    ),
    Slip(
        "own-nodes-weights",
        "the gradient of Σ p(x_i) in θ forgets the weight p(x_i) of each observation",
        ("density",),
        everywhere(coefficients=lambda level, log_p: (np.ones_like(log_p), np.exp(log_p))),
    ),
    Slip(
        "density-for-log",
        "the gradient of Σ p(x_i) is given for that of Σ log p(x_i)",
        ("gradient",),
        everywhere(coefficients=lambda level, log_p: (np.exp(log_p), np.exp(log_p))),
    ),
    Slip(
        "moments-about-zero",
        "the posterior covariance is E zzᵀ, without - E z E zᵀ",
        ("posterior",),
        everywhere(covariance=lambda second, mean: second),
    ),
)
"""Slips in gradients and moments."""

OF_OPTIMA = (
    Slip(
        "divisor-n-1",
        "σ² of the closed-form optimum is from the covariance with divisor N - 1",
        ("optimum",),
        changed(_wrong_noise),
    ),
    Slip(
        "divisor-n-1",
        "the closed-form optimum uses the covariance with divisor N - 1",
        ("optimum",),
        changed(_wrong_covariance),
    ),
    Slip(
        "sigma-for-sigma2",
        "σ is given for σ²",
        ("optimum",),
        changed(lambda case, found: {"sigma2": np.sqrt(found["sigma2"])}),
    ),
    Slip(
        "averaged-total",
        "the value is a mean over the observations in place of their sum",
        ("optimum",),
        scaled(value=lambda case: 1.0 / N_of(case)),
    ),
    Slip(
        "descent",
        "the value is that of the negative, a loss",
        ("optimum",),
        scaled(value=lambda case: -1.0),
    ),
)
"""Slips in optima."""

SLIPS = (*OF_GRADIENTS, *OF_OPTIMA)
