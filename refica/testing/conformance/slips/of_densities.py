"""Slips in the joint density."""

# notation: n data, m latent; s stands for ‖x - g‖²

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refica.testing.conformance.formulas import LOG_2PI, Formulas
from refica.testing.conformance.slips.slip import BOUNDS, INTEGRALS, JOINT, Change, Slip, everywhere
from refica.validation import Array

__all__ = ["SLIPS"]


def _normal(wrong: Callable[[Callable[..., Array], Array, Any, int], Array]) -> Change:
    """A fault in log N(x; g, σ² I), given the true one."""

    def change(f: Formulas) -> Formulas:
        right = f.log_normal
        return replace(f, log_normal=lambda squared, sigma2, n: wrong(right, squared, sigma2, n))

    return change


def _prior(wrong: Callable[[Callable[[Array], Array], Array], Array]) -> Change:
    def change(f: Formulas) -> Formulas:
        right = f.log_prior
        return replace(f, log_prior=lambda z: wrong(right, z))

    return change


def _product_form(x: Array, g: Array) -> Array:
    cross = np.einsum("in,...kn->...ik" if g.ndim == 2 else "in,ikn->ik", x, g)
    return np.asarray((x * x).sum(axis=1)[:, None] - 2.0 * cross + (g * g).sum(axis=-1))


GIVEN = (*JOINT, *INTEGRALS, *BOUNDS)
PRIOR = ("log-joint", *INTEGRALS, "iwae")

SLIPS = (
    Slip(
        "lost-constant",
        "n/2 log 2π is left out of log N(x; g, σ² I)",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s, sigma2, n) + 0.5 * n * LOG_2PI),
    ),
    Slip(
        "lost-log-sigma2",
        "n/2 log σ² is left out of log N(x; g, σ² I)",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s, sigma2, n) + 0.5 * n * np.log(sigma2)),
    ),
    Slip(
        "lost-normaliser",
        "n/2 log(2πσ²) is left out of log N(x; g, σ² I): a squared error, not a density",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s, sigma2, n) + 0.5 * n * (LOG_2PI + np.log(sigma2))),
    ),
    Slip(
        "sigma-for-sigma2",
        "σ stands for σ² in N(x; g, σ² I)",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s, sigma2**0.5, n)),
    ),
    Slip(
        "sigma2-for-sigma",
        "the variance that is given is taken for a standard deviation, and squared",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s, sigma2**2, n)),
    ),
    Slip(
        "precision",
        "the variance that is given is taken for a precision, 1/σ²",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s, 1.0 / sigma2, n)),
    ),
    Slip(
        "log-variance",
        "the variance that is given is taken for a log variance",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s, np.exp(sigma2), n)),
    ),
    Slip(
        "missing-half",
        "the exponent is -‖x - g‖²/σ², without its ½",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(2.0 * s, sigma2, n)),
    ),
    Slip(
        "mean-for-sum",
        "‖x - g‖² is the mean over the coordinates in place of their sum",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s / n, sigma2, n)),
    ),
    Slip(
        "one-dimension",
        "the normaliser is that of one coordinate, (2πσ²)^(-1/2), whatever n",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(s, sigma2, 1)),
    ),
    Slip(
        "absolute-distance",
        "‖x - g‖ stands for ‖x - g‖²",
        GIVEN,
        _normal(lambda right, s, sigma2, n: right(np.sqrt(s), sigma2, n)),
    ),
    Slip(
        "cancelling-distance",
        "‖x - g‖² is computed as ‖x‖² - 2 x·g + ‖g‖², which cancels far from 0",
        GIVEN,
        everywhere(squared=_product_form),
    ),
    Slip(
        "forgotten-prior",
        "log N(z; 0, I) is left out of the joint density",
        PRIOR,
        everywhere(log_prior=lambda z: np.zeros(z.shape[:-1])),
    ),
    Slip(
        "prior-twice",
        "log N(z; 0, I) is counted twice",
        ("log-joint", "iwae"),
        _prior(lambda right, z: 2.0 * right(z)),
    ),
    Slip(
        "prior-in-the-weights",
        "the weights of the nodes hold the prior, and so does the joint density: it counts twice",
        INTEGRALS,
        _prior(lambda right, z: 2.0 * right(z)),
    ),
    Slip(
        "lost-prior-constant",
        "m/2 log 2π is left out of log N(z; 0, I)",
        PRIOR,
        _prior(lambda right, z: right(z) + 0.5 * z.shape[-1] * LOG_2PI),
    ),
    Slip(
        "prior-without-half",
        "the exponent of the prior is -‖z‖², without its ½",
        PRIOR,
        _prior(lambda right, z: right(z) - 0.5 * (z * z).sum(axis=-1)),
    ),
)
"""Slips in the joint density."""
