"""Every line of D's two gradients, as an equality with the line before it, and as refica computes it.

Each line is evaluated with the ∇ that stands in it taken node by node by the complex step, and by autograd.
"""

# notation: N observations, n data, m latent, K nodes, p parameters;
# W (1, K) the weights of the nodes times φ(z; 0, I)

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from refica.likelihood import Gradient, Nodes
from refica.marginal import density
from refica.quadrature import FixedNodes
from refica.verify import formulas
from refica.verify.cases import Case, Setting, other_nodes
from refica.verify.findings import Check, Note, Observed, Tolerance, agree, slope_of
from refica.verify.routes import (
    AUTOGRAD,
    COMPLEX,
    ROUNDING,
    WITHOUT_AUTOGRAD,
    along,
    derivative_tolerance,
    differentiable,
    route_name,
    slope_along,
    takes_complex,
)
from refica.verify.sums import (
    frozen,
    own_nodes,
    resolved,
    sigma2_lines,
    sigma2_size,
    theta_line,
    theta_size,
    total_in_sigma2,
    total_in_theta,
    weights_of,
)

__all__ = ["CHECKS"]

INTEGRAL_DIFFERENCES = Tolerance(1e-7, "beyond the error that the extrapolated differences give themselves")
ACROSS_KINKS = Tolerance(
    1e-3, "nodes that do not resolve a model: kinks of its decoder pass over them within a difference"
)
MARGIN = 3.0
"""Factor on that error."""
UNRESOLVED = "the nodes do not resolve a model: ∇ and Σ are exchanged, on the same nodes"


def _exchange_in_theta(setting: Setting) -> Iterator[Observed | Note]:
    rng = setting.rng(11)
    for case in setting.cases:
        analytic, theta = takes_complex(case), case.model.theta
        first, other = theta_line(case, 1, analytic), _others(case)
        if other is None:
            yield Note(UNRESOLVED)
        v = rng.standard_normal(len(theta))
        v /= np.linalg.norm(v)
        found, error = along(total_in_theta(case, other), theta, v)
        off = max(abs(found - float(first @ v)) - MARGIN * error, 0.0) / float(np.abs(first * v).sum())
        yield Observed(*EXCHANGED, off, INTEGRAL_DIFFERENCES if other else ACROSS_KINKS)
        yield slope_of("line 1", slope_along(total_in_theta(case), first, theta, rng))


def _exchange_in_sigma2(setting: Setting) -> Iterator[Observed | Note]:
    rng = setting.rng(13)
    for case in setting.cases:
        first, one, other = sigma2_lines(case)[0], np.ones(1), _others(case)
        if other is None:
            yield Note(UNRESOLVED)
        relative = first * case.model.sigma2
        found, error = along(total_in_sigma2(case, other), one, one)
        off = max(abs(found - relative) - MARGIN * error, 0.0)
        off /= case.model.sigma2 * float(sigma2_size(case).sum())
        yield Observed(*EXCHANGED, off, INTEGRAL_DIFFERENCES if other else ACROSS_KINKS)
        yield slope_of("line 1", slope_along(total_in_sigma2(case), np.array([relative]), one, rng))


def _others(case: Case) -> Nodes | None:
    """Nodes of another kind, if both kinds give the integral itself."""
    return other_nodes(case.model.latent_dim) if case.fine and resolved(case) else None


def _equal_theta(number: int) -> Callable[[Setting], Iterator[Observed | Note]]:
    """Line ``number`` of D's gradient in θ equals line ``number + 1``."""

    def run(setting: Setting) -> Iterator[Observed | Note]:
        for case in setting.cases:
            analytic, size = takes_complex(case), theta_size(case).sum()
            route, tolerance = route_name(analytic), derivative_tolerance(analytic)
            left, right = (theta_line(case, each, analytic) for each in (number, number + 1))
            names = f"line {number} by the {route}", f"line {number + 1} by the {route}"
            yield agree(*names, left, right, tolerance, size)
            auto = differentiable(case)
            if auto is not None:
                (z, W), model = weights_of(case), case.model
                W = np.repeat(W, len(case.x), axis=0)
                lines = auto.theta_lines(model.decoder, model.theta, model.sigma2, case.x, z, W)
                names = f"line {number} by autograd", f"line {number + 1} by autograd"
                yield agree(*names, lines[number - 1], lines[number], AUTOGRAD, size)
                yield agree(names[1], f"the same by the {route}", lines[number], right, tolerance, size)
        if differentiable() is None:
            yield Note(WITHOUT_AUTOGRAD)

    return run


def _equal_sigma2(number: int) -> Callable[[Setting], Iterator[Observed | Note]]:
    """Line ``number`` of D's gradient in σ² equals line ``number + 1``."""

    def run(setting: Setting) -> Iterator[Observed | Note]:
        auto = differentiable()
        for case in setting.cases:
            lines, size = sigma2_lines(case), sigma2_size(case).sum()
            left, right = f"line {number} by the complex step", f"line {number + 1}"
            yield agree(left, right, lines[number - 1], lines[number], COMPLEX, size)
            if auto is not None:
                (z, W), model = weights_of(case), case.model
                squared = formulas.squared_norm(formulas.residuals(case.x, model.decoder(model.theta, z)))
                found = auto.sigma2_lines(squared, model.data_dim, model.sigma2, W)[number - 1]
                yield agree(f"line {number} by autograd", right, found, lines[number], AUTOGRAD, size)
        if auto is None:
            yield Note(WITHOUT_AUTOGRAD)

    return run


def _theta_in_refica(setting: Setting) -> Iterator[Observed]:
    rng = setting.rng(12)
    for case in setting.cases:
        analytic, size = takes_complex(case), theta_size(case).sum()
        fourth, name = theta_line(case, 4, analytic), f"line 4 by the {route_name(analytic)}"
        for words, nodes in NODES:
            found = _gradient(case, nodes(case)).theta
            yield agree(f"refica.density, {words}", name, found, fourth, derivative_tolerance(analytic), size)
            slope = slope_along(total_in_theta(case), found, case.model.theta, rng)
            yield slope_of(f"refica.density, {words}", slope)


def _sigma2_in_refica(setting: Setting) -> Iterator[Observed]:
    for case in setting.cases:
        (first, _, third), size = sigma2_lines(case), sigma2_size(case).sum()
        for words, nodes in NODES:
            found, name = _gradient(case, nodes(case)).sigma2, f"refica.density, {words}"
            yield agree(name, "line 1 by the complex step", found, first, COMPLEX, size)
            yield agree(name, "line 3, as it stands", found, third, ROUNDING, size)


def _gradient(case: Case, nodes: FixedNodes) -> Gradient:
    """The gradient of the documents' objective as refica has it."""
    gradient = density(case.model, case.x, nodes).gradient
    assert gradient is not None  # it was asked for
    return gradient


NODES = (("shared nodes", frozen), ("nodes of its own", own_nodes))
EXCHANGED = ("∇ of the integral, on other nodes, by differences", "line 1, the integral of ∇")

SUM = r"\sum_{i=1}^k\int\ "
PRIOR = r"\,\varphi(z;0,I)\,dz"
PHI = r"\varphi(x^{(i)};g_\theta(z),\sigma^2I)"
NORM2 = r"\dfrac{\|x^{(i)}-g_\theta(z)\|_2^2}{2\sigma^2}"
R2 = r"\|x^{(i)}-g_\theta(z)\|_2^2"
SLOPE = r"\left[\dfrac{1}{\sigma^2}(x^{(i)}-g_\theta(z))^T\nabla_\theta g_\theta(z)\right]"
THETA_LINES = (
    rf"$={SUM}\nabla_\theta\,{PHI}{PRIOR}$",
    rf"$={SUM}(2\pi\sigma^2)^{{-n/2}}\,\nabla_\theta\exp\left(-{NORM2}\right){PRIOR}$",
    rf"$={SUM}\nabla_\theta\left(-{NORM2}\right){PHI}{PRIOR}$",
    rf"$={SUM}{SLOPE}{PHI}{PRIOR}$",
)
FACTOR = rf"\left[\dfrac{{1}}{{2\sigma^2}}\left(-n+\dfrac{{{R2}}}{{\sigma^2}}\right)\right]"
SIGMA2_LINES = (
    rf"$={SUM}\nabla_{{\sigma^2}}\,{PHI}{PRIOR}$",
    rf"$={SUM}\nabla_{{\sigma^2}}\,(2\pi\sigma^2)^{{-n/2}}\exp\left(-{NORM2}\right){PRIOR}$",
    rf"$={SUM}{FACTOR}{PHI}{PRIOR}$",
)
THETA_WORDS = (
    "Σ_i ∫ ∇_θ φ(x_i; g_θ(z), σ²I) φ(z; 0, I) dz",
    "Σ_i ∫ (2πσ²)^(-n/2) ∇_θ exp(-‖x_i - g_θ(z)‖²/2σ²) φ(z; 0, I) dz",
    "Σ_i ∫ ∇_θ(-‖x_i - g_θ(z)‖²/2σ²) φ(x_i; g_θ(z), σ²I) φ(z; 0, I) dz",
    "Σ_i ∫ [1/σ² (x_i - g_θ(z))ᵀ ∇_θ g_θ(z)] φ(x_i; g_θ(z), σ²I) φ(z; 0, I) dz",
)
SIGMA2_WORDS = (
    "Σ_i ∫ ∇_σ² φ(x_i; g_θ(z), σ²I) φ(z; 0, I) dz",
    "Σ_i ∫ ∇_σ² (2πσ²)^(-n/2) exp(-‖x_i - g_θ(z)‖²/2σ²) φ(z; 0, I) dz",
    "Σ_i ∫ [1/2σ² (-n + ‖x_i - g_θ(z)‖²/σ²)] φ(x_i; g_θ(z), σ²I) φ(z; 0, I) dz",
)
SHARED = ("likelihood.tiles", "likelihood._log_sum_exp")
IN_THETA = (
    "likelihood._shared_nodes_gradient",
    "likelihood._own_nodes_gradient",
    "likelihood.pull_back",
    "marginal._density",
)
BY_THETA, BY_SIGMA2 = "Gradient in θ", "Gradient in σ²"

CHECKS = (
    Check(
        BY_THETA,
        "theta-1",
        "Line 1: ∇_θ goes under the integral",
        f"∇_θ ℓ = {THETA_WORDS[0]}",
        rf"$\nabla_\theta\ell\ ${THETA_LINES[0]}",
        "D, Gradient w.r.t. θ, line 1",
        ("decoders.MLP.__call__",),
        _exchange_in_theta,
    ),
    *(
        Check(
            BY_THETA,
            f"theta-{number + 1}",
            f"Line {number + 1}: {what}",
            f"line {number} = {THETA_WORDS[number]}",
            THETA_LINES[number],
            f"D, Gradient w.r.t. θ, line {number + 1}",
            ("decoders.MLP.__call__",),
            _equal_theta(number),
        )
        for number, what in (
            (1, "the normaliser does not depend on θ"),
            (2, "∇ exp(u) = exp(u) ∇u"),
            (3, "the chain rule through ‖x - g_θ(z)‖²"),
        )
    ),
    Check(
        BY_THETA,
        "theta-in-refica",
        "Line 4 as refica computes it: one vector-Jacobian product",
        "Σ_k J_θ(z_k)ᵀ V_k,  V_k = Σ_i c_i ρ_ik (x_i - g_k)/σ²",
        r"$\sum_k J_\theta(z_k)^T V_k,\quad V_k=\sum_i c_i\,\rho_{ik}\,(x^{(i)}-g_\theta(z_k))/\sigma^2$",
        "D, Gradient w.r.t. θ, line 4",
        (*IN_THETA, *SHARED),
        _theta_in_refica,
    ),
    *(
        Check(
            BY_SIGMA2,
            f"sigma2-{number + 1}",
            f"Line {number + 1}: {what}",
            f"{'∇_σ² ℓ' if number == 0 else f'line {number}'} = {SIGMA2_WORDS[number]}",
            (r"$\nabla_{\sigma^2}\ell\ $" if number == 0 else "") + SIGMA2_LINES[number],
            f"D, Gradient w.r.t. σ², line {number + 1}",
            ("decoders.MLP.__call__",),
            _equal_sigma2(number) if number else _exchange_in_sigma2,
        )
        for number, what in (
            (0, "∇_σ² goes under the integral"),
            (1, "the density written out"),
            (2, "the product rule"),
        )
    ),
    Check(
        BY_SIGMA2,
        "sigma2-in-refica",
        "Line 3 as refica computes it",
        "Σ_ik c_i ρ_ik (‖x_i - g_k‖²/σ² - n)/2σ²",
        r"$\sum_{ik} c_i\,\rho_{ik}\,\left(\|x^{(i)}-g_\theta(z_k)\|^2/\sigma^2-n\right)/2\sigma^2$",
        "D, Gradient w.r.t. σ², line 3",
        ("likelihood._sigma2_derivative", "marginal._density", *SHARED),
        _sigma2_in_refica,
    ),
)
"""The checks of these sections."""
