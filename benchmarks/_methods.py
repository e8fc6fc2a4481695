"""The methods that `benchmarks.accuracy` compares: refica's integrators and those of SciPy, by size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import integrate, stats

import refica as ri
from refica.piecewise import is_piecewise_affine
from refica.reference import Reference

GIVE_UP = 50_000
"""Calls of a scalar integrand after which nested adaptive quadrature is stopped: a second."""
MOST_SUBDIVISIONS = 500
"""Of `cubature`: a second or so."""
BOX = 7.0
"""`qmc_quad` needs a box: [-BOX, BOX]^m."""

TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
SIZES = (64, 256, 1024, 4096, 16384, 65536)
ORDERS = {
    "prior": {
        1: (5, 10, 20, 40, 80, 160, 320),
        2: (5, 10, 20, 40, 80, 160),
        3: (5, 10, 20, 40),
        4: (4, 7, 10, 14, 20),
    },
    "own": {
        1: (1, 3, 5, 7, 10, 15, 20, 30, 40),
        2: (1, 3, 5, 7, 10, 15, 20, 30),
        3: (1, 3, 5, 7, 10, 15),
        4: (1, 2, 3, 5, 7, 9),
    },
}
POINTS = {
    "prior": {
        1: (21, 41, 81, 161, 321, 641, 1281, 2561),
        2: (21, 41, 81, 161, 321),
        3: (11, 21, 41, 61),
        4: (9, 13, 19, 27),
    },
    "own": {1: (7, 11, 15, 21, 31, 41, 61), 2: (7, 11, 15, 21, 31), 3: (7, 11, 15, 21), 4: (5, 7, 9, 11)},
}
RADIUS = {"prior": {1: 8.0, 2: 7.0, 3: 6.0, 4: 5.5}, "own": {1: 7.0, 2: 6.5, 3: 6.0, 4: 5.0}}


class Found(NamedTuple):
    """What a method says: log p(x), its error estimate (nan: none), whether it claims to have converged."""

    value: float
    reported: float
    converged: bool


Run = Callable[[ri.NonlinearICA, np.ndarray, int], Found]


class Method(NamedTuple):
    """A method at one size; ``run(model, x, seed)``; whether it is random."""

    name: str
    size: float
    run: Run
    random: bool = False


class Counted(ri.MLP):
    """An MLP that counts the points at which it is evaluated or differentiated."""

    evaluations: int

    def __init__(self, decoder: ri.MLP) -> None:
        super().__init__(decoder.sizes, decoder.activation, decoder.output_activation)
        self.reset()

    def reset(self) -> None:
        """Start from 0."""
        object.__setattr__(self, "evaluations", 0)

    def __call__(self, theta: Any, z: Any) -> Any:
        """Return g(z)."""
        object.__setattr__(self, "evaluations", self.evaluations + len(z))
        return super().__call__(theta, z)

    def jvp(self, theta: Any, z: Any, dtheta: Any, dz: Any) -> Any:
        """Return dg."""
        object.__setattr__(self, "evaluations", self.evaluations + len(z))
        return super().jvp(theta, z, dtheta, dz)

    def vjp(self, theta: Any, z: Any, cotangent: Any) -> Any:
        """Return theta_bar, z_bar."""
        object.__setattr__(self, "evaluations", self.evaluations + len(z))
        return super().vjp(theta, z, cotangent)


def methods(model: ri.NonlinearICA) -> list[Method]:
    """Return every method at every size that applies to a model."""
    m = model.latent_dim
    found: list[Method] = []
    for proposal in ("prior", "laplace", "modes"):
        kind = "prior" if proposal == "prior" else "own"
        for order in ORDERS[kind][m]:
            rule: Any = ri.gauss_hermite(order)
            found.append(_refica(f"gauss_hermite {proposal}", order, ri.Quadrature(rule, proposal)))
        for points in POINTS[kind][m]:
            rule = ri.uniform_grid(points, RADIUS[kind][m])
            found.append(_refica(f"uniform_grid {proposal}", points, ri.Quadrature(rule, proposal)))
        for size in SIZES:
            found.append(
                Method(
                    f"monte_carlo {proposal}", size, partial(_random, ri.monte_carlo, size, proposal), True
                )
            )
            found.append(Method(f"sobol {proposal}", size, partial(_random, ri.sobol, size, proposal), True))
    if is_piecewise_affine(model.decoder) and m <= 2:
        found.append(_refica("ExactPiecewiseAffine", 1, ri.ExactPiecewiseAffine()))
    return found + _references(m) + _scipy(m)


def _refica(name: str, size: float, integrator: Any) -> Method:
    return Method(name, size, partial(_evaluated, integrator))


def _evaluated(integrator: Any, model: ri.NonlinearICA, x: np.ndarray, seed: int) -> Found:
    result = ri.log_likelihood(model, x[None], integrator, gradient=False)
    return Found(result.total, float(result.error[0]), bool(result.converged[0]))


def _random(
    rule: Callable[..., Any], size: int, proposal: str, model: ri.NonlinearICA, x: np.ndarray, seed: int
) -> Found:
    return _evaluated(ri.Quadrature(rule(size, seed=seed), proposal), model, x, seed)


def _references(m: int) -> list[Method]:
    if m > 3:
        return []
    return [_refica("Reference", rtol, Reference(rtol)) for rtol in (1e-2, 1e-5, 1e-8, 1e-11)]


def _scipy(m: int) -> list[Method]:
    """SciPy's integrators, each as its documentation has it used, on the density itself."""
    found = []
    if m == 1:
        found += [Method("scipy quad", tol, partial(_quad, tol)) for tol in TOLERANCES]
    if m == 2:
        found += [Method("scipy dblquad", tol, partial(_dblquad, tol)) for tol in TOLERANCES[:3]]
    found += [Method("scipy cubature", tol, partial(_cubature, tol)) for tol in TOLERANCES]
    found += [Method("scipy qmc_quad", size, partial(_qmc_quad, size), True) for size in SIZES]
    return found


class _TooManyError(Exception):
    """The integrand was called `GIVE_UP` times."""


def _density(model: ri.NonlinearICA, x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """p(x, z) for z (K, m), as a user of SciPy would write it."""
    decoder, theta, sigma2 = model.decoder, model.theta, model.sigma2
    constant = (2.0 * math.pi * sigma2) ** (-0.5 * len(x)) * (2.0 * math.pi) ** (-0.5 * model.latent_dim)

    def density(z: np.ndarray) -> np.ndarray:
        r = decoder(theta, z) - x
        return np.asarray(constant * np.exp(-0.5 * ((r * r).sum(axis=1) / sigma2 + (z * z).sum(axis=1))))

    return density


def _scalar(model: ri.NonlinearICA, x: np.ndarray) -> Callable[..., float]:
    """p(x, z) for z given coordinate by coordinate."""
    density, left = _density(model, x), iter(range(GIVE_UP))

    def integrand(*z: float) -> float:
        if next(left, None) is None:
            raise _TooManyError
        return float(density(np.array([z]))[0])

    return integrand


def _logged(integral: float, error: float) -> Found:
    """Found from an integral and its absolute error; SciPy's results have no verdict that is always given."""
    if not integral > 0.0:
        return Found(-math.inf, math.inf, False)
    return Found(math.log(integral), error / integral, True)


def _quad(tolerance: float, model: ri.NonlinearICA, x: np.ndarray, seed: int) -> Found:
    value, error, *_ = integrate.quad(
        _scalar(model, x), -np.inf, np.inf, epsabs=0.0, epsrel=max(tolerance, 1e-13), limit=500, full_output=1
    )
    return _logged(value, error)


def _dblquad(tolerance: float, model: ri.NonlinearICA, x: np.ndarray, seed: int) -> Found:
    try:
        value, error = integrate.dblquad(
            _scalar(model, x), -np.inf, np.inf, -np.inf, np.inf, epsabs=0.0, epsrel=tolerance
        )
    except _TooManyError:
        return Found(math.nan, math.nan, False)
    return _logged(value, error)


def _cubature(tolerance: float, model: ri.NonlinearICA, x: np.ndarray, seed: int) -> Found:
    m = model.latent_dim
    result = integrate.cubature(
        _density(model, x), [-np.inf] * m, [np.inf] * m, rtol=tolerance, atol=0.0,
        rule="gk21" if m == 1 else "genz-malik", max_subdivisions=MOST_SUBDIVISIONS,
    )  # fmt: skip
    found = _logged(float(result.estimate), float(result.error))
    return found._replace(converged=result.status == "converged")


def _qmc_quad(size: int, model: ri.NonlinearICA, x: np.ndarray, seed: int) -> Found:
    m, density = model.latent_dim, _density(model, x)
    result = integrate.qmc_quad(
        lambda z: density(z.reshape(m, -1).T), [-BOX] * m, [BOX] * m, n_estimates=8, n_points=size // 8,
        qrng=stats.qmc.Sobol(m, seed=np.random.default_rng(seed)),
    )  # fmt: skip
    return _logged(float(result.integral), float(stats.t.ppf(0.975, 7) * result.standard_error))


def names(found: Sequence[Method]) -> list[str]:
    """Return the names of methods in order of appearance."""
    return list(dict.fromkeys(method.name for method in found))
