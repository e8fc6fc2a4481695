"""Slips in sums over nodes and draws."""

# notation: m latent, K nodes

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import special

from refica.testing.conformance.case import Case
from refica.testing.conformance.formulas import Formulas
from refica.testing.conformance.slips.slip import INTEGRALS, Change, Slip, everywhere, n_of
from refica.validation import Array

__all__ = ["SLIPS"]

VALUES = ("log-marginal", "monte-carlo", "gradient")
LOG_P = ("log-marginal", "monte-carlo")

RADII = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
"""Latent grids that are known to have been too short."""

FLOORS = {
    "log(tiny)": math.log(np.finfo(np.float64).tiny),
    "log of float32's tiny": math.log(np.finfo(np.float32).tiny),
    "log(eps)": math.log(np.finfo(np.float64).eps),
    **{
        f"log(1e-{digits})": -digits * math.log(10.0)
        for digits in (300, 100, 50, 40, 30, 20, 16, 15, 12, 10, 8)
    },
}
"""Values that p(x) is known to have been clamped at, as log p."""


def _log_p(wrong: Callable[[Array, Case], Array]) -> Change:
    def change(f: Formulas) -> Formulas:
        right = f.log_p
        return replace(f, log_p=lambda log_p, case: wrong(right(log_p, case), case))

    return change


def _log_sum(wrong: Callable[[Callable[[Array], Array], Array], Array]) -> Change:
    def change(f: Formulas) -> Formulas:
        right = f.log_sum
        return replace(f, log_sum=lambda exponent: wrong(right, exponent))

    return change


def _weight(wrong: Callable[[Array], Array]) -> Change:
    def change(f: Formulas) -> Formulas:
        right = f.log_weight
        return replace(f, log_weight=lambda z: right(z) + wrong(z))

    return change


def _within(radius: float) -> Callable[[Array], Array]:
    """log of the part of a node's cell that is inside [-radius, radius]^m."""
    return lambda z: _log_share(radius - np.abs(z), z)


def _log_share(inside: Array, z: Array) -> Array:
    """log of the part of each cell of a uniform grid, whose centre is so far inside a bound of each axis."""
    step = np.abs(z[1, -1] - z[0, -1])
    return np.asarray(np.log(np.clip(inside / step + 0.5, 0.0, 1.0)).sum(axis=1))


def _lost_prior_mass(radius: float, m: int) -> float:
    """log of the prior's mass in [-radius, radius]^m."""
    return m * math.log(float(special.ndtr(radius) - special.ndtr(-radius)))


def _renormalised(radius: float) -> Callable[[Array], Array]:
    return lambda z: _within(radius)(z) - _lost_prior_mass(radius, z.shape[1])


def _half_prior(z: Array) -> Array:
    """log N(z; 0, ½ I) - log N(z; 0, I)."""
    return np.asarray(-0.5 * (z * z).sum(axis=1) + 0.5 * z.shape[1] * math.log(2.0))


def _unit_box(z: Array) -> Array:
    """From N(0, I) to the uniform distribution on [0, 1]^m."""
    log_prior = -0.5 * (z * z).sum(axis=1) - 0.5 * z.shape[1] * math.log(2.0 * math.pi)
    return _log_share(z, z) + _log_share(1.0 - z, z) - log_prior


SLIPS = (
    Slip(
        "forgotten-1/K",
        "the sum over draws is not divided by their number: log K too high",
        ("monte-carlo",),
        everywhere(log_draw=lambda z: np.zeros(len(z))),
    ),
    Slip(
        "mean-of-logs",
        "log p(x | z) is averaged in place of p(x | z): a lower bound",
        ("monte-carlo",),
        _log_sum(lambda right, e: e.mean(axis=1) + math.log(e.shape[1])),
    ),
    Slip(
        "lost-shift",
        "the maximum that was subtracted before the sum is not added again",
        ("monte-carlo",),
        _log_sum(lambda right, e: right(e) - e.max(axis=1)),
    ),
    Slip(
        "lost-shift",
        "the maximum that was subtracted before the mean is not added again",
        ("monte-carlo",),
        _log_sum(lambda right, e: right(e) - e.max(axis=1) - math.log(e.shape[1])),
    ),
    Slip(
        "lost-log-weights",
        "the nodes' weights are left out",
        ("monte-carlo",),
        everywhere(log_draw=lambda z: -0.5 * (z * z).sum(axis=1) - 0.5 * z.shape[1] * math.log(2 * math.pi)),
    ),
    *(
        Slip("short-grid", f"the latent grid ends at ±{radius:g}: {words}", INTEGRALS, _weight(weight))
        for radius in RADII
        for words, weight in (
            ("what is beyond is lost", _within(radius)),
            ("what is beyond is lost, and the weights sum to 1", _renormalised(radius)),
        )
    ),
    Slip(
        "hermite-nodes",
        "nodes of the weight exp(-t²) are taken for N(0, 1): not scaled by √2",
        INTEGRALS,
        _weight(_half_prior),
    ),
    Slip(
        "hermite-weights",
        "weights of the weight exp(-t²) are taken for N(0, 1): not divided by √π in each axis",
        VALUES,
        _weight(lambda z: np.full(len(z), 0.5 * z.shape[1] * math.log(math.pi))),
    ),
    Slip(
        "uniform-draws",
        "points of [0, 1] are used as they are, not mapped to the normal distribution",
        INTEGRALS,
        _weight(_unit_box),
    ),
    Slip(
        "underflow",
        "exponentials are summed as they are: p(x) below 1e-323 is 0 and its logarithm -inf",
        ("log-marginal", "monte-carlo", "gradient"),
        _log_sum(lambda right, e: np.log(np.exp(e).sum(axis=1))),
    ),
    *(
        Slip(
            "floored-density",
            f"log p is clamped at {words} = {floor:.6g}",
            VALUES,
            _log_p(lambda log_p, case, floor=floor: np.maximum(log_p, floor)),  # type: ignore[misc]
        )
        for words, floor in FLOORS.items()
    ),
    *(
        Slip(
            "floored-density",
            f"{words} is added to p before the logarithm",
            VALUES,
            _log_p(lambda log_p, case, floor=floor: np.logaddexp(log_p, floor)),  # type: ignore[misc]
        )
        for words, floor in FLOORS.items()
        if floor > -250.0
    ),
    Slip("density-for-log", "p(x) is given for log p(x)", LOG_P, _log_p(lambda log_p, case: np.exp(log_p))),
    Slip("negated", "-log p(x), a loss, is given for log p(x)", LOG_P, _log_p(lambda log_p, case: -log_p)),
    Slip(
        "base-10",
        "logarithms have base 10",
        LOG_P,
        _log_p(lambda log_p, case: log_p / math.log(10.0)),
    ),
    Slip("base-2", "logarithms have base 2", LOG_P, _log_p(lambda log_p, case: log_p / math.log(2.0))),
    Slip(
        "per-dimension",
        "log p(x) is divided by the dimension of x",
        LOG_P,
        _log_p(lambda log_p, case: log_p / n_of(case)),
    ),
)
"""Slips in sums over nodes."""
