"""Routes to a derivative that share no code with the one that is checked.

The complex step where a function takes complex arguments, extrapolated differences otherwise; autograd, in
`refica.verify.differentiable`, where it is installed; Taylor tests.
"""

# notation: p parameters, theta (p,), v (p,) a direction

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refica.testing.gradients import STEP, TaylorSlope, extrapolate, taylor_slope
from refica.validation import Array
from refica.verify.cases import Case
from refica.verify.findings import Tolerance

__all__ = [
    "AUTOGRAD",
    "COMPLEX",
    "DIFFERENCES",
    "DIGITS",
    "ROUNDING",
    "SAMPLING",
    "WITHOUT_AUTOGRAD",
    "along",
    "derivative_tolerance",
    "differentiable",
    "partials",
    "route_name",
    "slope_along",
    "takes_complex",
]

ROUNDING = Tolerance(1e-12, "one formula in float64 in two orders: some thousand roundings, no cancellation")
COMPLEX = Tolerance(1e-11, "as rounding, with complex exponentials good to a few more units")
AUTOGRAD = Tolerance(
    1e-11, "as rounding, but its gradients sum up terms in another order, some of which cancel"
)
DIFFERENCES = Tolerance(1e-6, "extrapolated differences of float64 values lose some nine digits")
DIGITS = Tolerance(1e-10, "digits proved by ball arithmetic; the integrators ask 1e-11 of themselves")
SAMPLING = Tolerance(6.0, "standard errors of a sample mean; beyond 6 by chance once in 5e8")

WITHOUT_AUTOGRAD = 'autograd is not installed: this route is left out (pip install "refica[verify]")'


def differentiable(case: Case | None = None) -> Any:
    """Return the module of autograd's routes, None without autograd or if it does not know the decoder."""
    try:
        module = importlib.import_module("refica.verify.differentiable")
    except ImportError:
        return None
    return module if case is None or module.knows(case.model.decoder) else None


def takes_complex(case: Case) -> bool:
    """Whether the decoder takes complex parameters and is analytic in them, by one difference quotient."""
    decoder, theta, z = case.model.decoder, case.model.theta, case.nodes.z[:: max(1, len(case.nodes.z) // 7)]
    v = np.random.default_rng(0).standard_normal(len(theta))
    try:
        found = np.asarray(decoder(theta + 1j * STEP * v, z))
    except Exception:  # it may do anything with what it was not written for
        return False
    if not np.iscomplexobj(found):
        return False
    h = 1e-5
    quotient = (decoder(theta + h * v, z) - decoder(theta - h * v, z)) / (2.0 * h)
    size = max(float(np.abs(quotient).max()), 1e-3)
    return bool(np.abs(found.imag / STEP - quotient).max() <= 1e-5 * size)


def partials(f: Callable[[Array], Array], theta: Array, *, analytic: bool) -> Array:
    """Return ∂f/∂θ_j for a function of theta that returns an array, (p, ...)."""
    each = []
    for j in range(len(theta)):
        e = np.zeros(len(theta))
        e[j] = 1.0
        if analytic:
            each.append(np.imag(f(theta + 1j * STEP * e)) / STEP)
        else:
            h = 2e-3 * max(1.0, abs(float(theta[j])))
            near, far = (f(theta + k * h * e) - f(theta - k * h * e) for k in (1.0, 2.0))
            each.append((8.0 * near - far) / (12.0 * h))
    return np.array(each)


def route_name(analytic: bool) -> str:
    """The name of the route that `partials` takes."""
    return "complex step" if analytic else "differences"


def derivative_tolerance(analytic: bool) -> Tolerance:
    """What `partials` may be off by."""
    return COMPLEX if analytic else DIFFERENCES


def along(f: Callable[[Array], Any], theta: Array, v: Array) -> tuple[float, float]:
    """Return the derivative of f at theta along v by extrapolated differences, and its estimated error."""
    return extrapolate(lambda t: float(f(theta + t * v)), 0.05)


def slope_along(
    f: Callable[[Array], Any], gradient: Array, theta: Array, rng: np.random.Generator
) -> TaylorSlope:
    """Test a gradient along one random direction by the slope of Taylor remainders."""
    v = rng.standard_normal(len(theta))
    v /= math.sqrt(float(v @ v))
    return taylor_slope(f, float(gradient @ v), theta, v)
