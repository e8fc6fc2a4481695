"""Three brackets of the integral over a cell, each a proved inequality.

With F(z) = -‖x - g(z)‖²/2σ² - ‖z‖²/2 the integral of exp F over a cell c ± r lies between

- *first order*: exp(-far²/2σ²) and exp(-near²/2σ²) times the cell's Gaussian mass ∫ exp(-‖z‖²/2);
- *second order*: the integrals of the quadratic that F is on the line of g, times exp of ± what ε can add;
- *Gauss-Legendre*: the sum over q^m nodes, ± an error that is proved by a bound on |exp F| in the
  complex polydisc around the cell.

Everything is in logarithms. All bounds include the rounding of their own evaluation.
"""

# notation: C cells, m latent, n data, S polydiscs; g, J, e of `Enclosure`; w = x - g; δ = z - c

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refica.bounds.enclosure import DISCS, GROW, Enclosure, U, node_roundoff
from refica.decoders import Decoder
from refica.likelihood import row_blocks
from refica.model import squared_distances
from refica.validation import Array

__all__ = [
    "ORDERS",
    "Exponent",
    "exponent",
    "first_order",
    "gauss_legendre",
    "gauss_legendre_doubt",
    "gauss_legendre_error",
    "second_order",
]

ORDERS = (3, 5, 7, 10, 14)
"""Numbers q of Gauss-Legendre nodes per axis to choose from."""

RULES = {q: np.polynomial.legendre.leggauss(q) for q in ORDERS}
"""Nodes and weights on [-1, 1] by order."""

NODES = 2048
"""Gauss-Legendre nodes that pass through the decoder at a time, so that its arrays stay in cache."""

WEIGHT = 32.0 * U
"""NumPy's Gauss-Legendre weights are right to WEIGHT (relative), its nodes to 2 U; a test compares them with
proved ones."""

RHO = DISCS + np.sqrt(DISCS**2 - 1.0)
"""The disc of radius κ holds the Bernstein ellipse of parameter ρ = κ + sqrt(κ² - 1), whose long half-axis
is (ρ + 1/ρ)/2 = κ."""


class Exponent(NamedTuple):
    """F on C cells to second order: F(c + δ) = F0 + b·δ - δᵀAδ/2 + (terms in ε).

    F0 (C,); b (C, m); A (C, m, m); w (C, n) = x - g; spread (C, n) = |J| r, how far g's line moves on the
    cell; doubt (C,): what rounding may do to the right side anywhere on it.
    """

    F0: Array
    b: Array
    A: Array
    w: Array
    spread: Array
    doubt: Array


def exponent(enclosure: Enclosure, x: Array, sigma2: float, c: Array, r: Array) -> Exponent:
    """Return F to second order, on the line of g:  b = Jᵀw/σ² - c,  A = JᵀJ/σ² + I.

    -‖w - Jδ‖²/2σ² - ‖c + δ‖²/2 = F0 + b·δ - δᵀAδ/2 exactly. Every term of the right side is a part of
    (|w| + |J| r)²/2σ² + (|c| + r)²/2 with moduli in place of signs; each is computed by at most
    n + m + 8 operations. F0 is nan, of which nothing follows, where it exceeds the range of floats.
    """
    m, n = c.shape[1], len(x)
    w = x - enclosure.g
    J = enclosure.J
    b = np.einsum("cnm,cn->cm", J, w) / sigma2 - c
    A = J.transpose(0, 2, 1) @ J / sigma2 + np.eye(m)
    F0 = -0.5 * (_square(w) / sigma2 + _square(c))
    F0[np.isneginf(F0)] = np.nan  # -inf would be too low for a bound from above
    spread = np.einsum("cnm,cm->cn", np.abs(J), r) * GROW
    terms = 0.5 * (_square(np.abs(w) + spread) / sigma2 + _square(np.abs(c) + r))
    doubt = (n + m + 24) * U * terms + (256.0 + 16.0 * _logs(r)) * U
    return Exponent(F0, b, A, w, spread, doubt)


def first_order(enclosure: Enclosure, x: Array, sigma2: float, c: Array, r: Array) -> tuple[Array, Array]:
    """Return log bounds (C,) of the first order.

    On the cell every coordinate x_d - g_d(z) has a modulus between near_d and far_d. The Gaussian mass
    is a product over axes of ∫ exp(-z²/2), bracketed by `_axis` with b = -c, a = 1.
    """
    lower, upper = enclosure.lower, enclosure.upper
    near = np.maximum(np.maximum(x - upper, lower - x), 0.0)
    far = np.maximum(np.abs(x - upper), np.abs(x - lower))
    u = (len(x) + 8) * U
    low, high = _axis(-c, np.ones_like(c), r)
    doubt = (c.shape[1] + 24) * U * _square(np.abs(c) + r) + (256.0 + 16.0 * _logs(r)) * U
    mass_low, mass_high = (end.sum(axis=1) - 0.5 * _square(c) for end in (low, high))
    return (
        mass_low - 0.5 * _square(far) / sigma2 * (1.0 + u) - doubt,
        mass_high - 0.5 * _square(near) / sigma2 * (1.0 - u) + doubt,
    )


def second_order(exponent: Exponent, enclosure: Enclosure, sigma2: float, r: Array) -> tuple[Array, Array]:
    """Return log bounds (C,) of the second order.

    x - g(z) = w - Jδ - ε, so the terms in ε are (w - Jδ)·ε/σ² - ‖ε‖²/2σ²: at most v·e/σ² with
    v = |w| + |J| r, at least -(v·e + ‖e‖²/2)/σ². The off-diagonal terms of δᵀAδ/2 are at most
    Σ_{i≠l} |A_il| r_i r_l / 2 either way; without them the integral is a product over axes.
    """
    e = enclosure.error + U * np.abs(exponent.w)
    v = np.abs(exponent.w) + exponent.spread
    diagonal = np.einsum("cii->ci", exponent.A)
    mixed = 0.5 * (np.einsum("cil,ci,cl->c", np.abs(exponent.A), r, r) - (diagonal * r * r).sum(axis=1))
    bend = (v * e).sum(axis=1) / sigma2
    low, high = _axis(exponent.b, diagonal, r)
    slack = (np.maximum(mixed, 0.0) + bend) * GROW + exponent.doubt
    return (
        exponent.F0 + low.sum(axis=1) - slack - 0.5 * _square(e) / sigma2 * GROW,
        exponent.F0 + high.sum(axis=1) + slack,
    )


def gauss_legendre_error(exponent: Exponent, enclosure: Enclosure, sigma2: float, r: Array) -> Array:
    """Return the log of the proved error of q^m Gauss-Legendre nodes on each cell, (C, orders).

    On the polydisc |δ_i| <= s_i = κ r_i, where G = g(z) - g = Jδ + ε,

        log|exp F| <= F0 + |b|·s + Σ_il |A_il| s_i s_l / 2 + (|w| + |J| s)·e/σ² + ‖e‖²/2σ² =: log M.

    A function of one variable bounded by M on the Bernstein ellipse of parameter ρ has Chebyshev
    coefficients of modulus at most 2 M ρ^-k. The rule is exact to degree 2q - 1 and for odd ones; an even
    T_k has integral at most 2/(k² - 1) and rule at most 2, together 32/15 for k >= 4; the sum over even
    k >= 2q is (64/15) M ρ^-2q / (1 - ρ^-2) (Trefethen 2008). Replacing integral by rule one axis after
    the other, m times, each with the other axes' lengths or weights 2 r_l, gives
    Π r_i 2^(m-1) m times that; the lesser of all κ holds.
    """
    m = r.shape[1]
    q = np.array(ORDERS)
    w = np.abs(exponent.w)
    errors = []
    for kappa, rho, e in zip(DISCS, RHO, enclosure.disc_error, strict=True):
        s = kappa * r
        e = e + U * w
        linear = (np.abs(exponent.b) * s).sum(axis=1)
        quadratic = 0.5 * np.einsum("cil,ci,cl->c", np.abs(exponent.A), s, s)
        bend = ((w + kappa * exponent.spread + 0.5 * e) * e).sum(axis=1) / sigma2
        log_M = exponent.F0 + (linear + quadratic + bend) * GROW + kappa**2 * exponent.doubt
        rule = math.log(2.0 ** (m - 1) * m * 64.0 / 15.0 / (1.0 - rho**-2)) - 2.0 * q * math.log(rho)
        errors.append(log_M[:, None] + rule + 1e-12)  # rounding of rule
    best = np.fmin.reduce(errors)
    return np.where(np.isnan(best), np.inf, best) + np.log(r).sum(axis=1)[:, None]


def gauss_legendre(
    decoder: Decoder, theta: Array, sigma2: float, x: Array, c: Array, r: Array, q: int
) -> Array:
    """Return log Σ_j w_j exp F(z_j) over q^m nodes in each cell, (C,)."""
    m = c.shape[1]
    t, w = (np.stack(np.meshgrid(*[one] * m, indexing="ij"), axis=-1).reshape(-1, m) for one in RULES[q])
    weights = w.prod(axis=1)
    S = np.empty(len(c))
    for cells in row_blocks(len(c), max(1, NODES // len(t))):
        z = (c[cells, None, :] + r[cells, None, :] * t).reshape(-1, m)
        squared = squared_distances(x[None, :], decoder(theta, z))[0]
        F = (-0.5 * (squared / sigma2 + np.einsum("km,km->k", z, z))).reshape(-1, len(t))
        peak = F.max(axis=1)
        S[cells] = peak + np.log(np.exp(F - peak[:, None]) @ weights)
    return S + np.log(r).sum(axis=1)


def gauss_legendre_doubt(enclosure: Enclosure, x: Array, sigma2: float, c: Array, r: Array) -> Array:
    """Return what rounding may have done to `gauss_legendre`, (C,).

    The decoder's values are off by η, so F by (far·η + η²/2)/σ²; squares, sums and the prior by
    (n + 8) U far²/2σ² + (m + 8) U |z|²/2, and by |z| times how far a node is off; weights, exponentials
    and the sum of q^m terms by the rest.
    """
    m, n = c.shape[1], len(x)
    eta = enclosure.roundoff
    far = np.maximum(np.abs(x - enclosure.upper), np.abs(x - enclosure.lower))
    z = np.abs(c) + r
    decoded = ((far + 0.5 * eta) * eta).sum(axis=1) / sigma2
    moved = (z * node_roundoff(c, r)).sum(axis=1)
    arithmetic = 0.5 * U * ((n + 8) * _square(far) / sigma2 + (m + 8) * _square(z))
    return (
        (decoded + moved + arithmetic) * GROW + (128.0 + ORDERS[-1] ** m + 16.0 * _logs(r)) * U + m * WEIGHT
    )


def _axis(b: Array, a: Array, r: Array) -> tuple[Array, Array]:
    """Return log bounds of ∫_{-r}^{r} exp(b δ - a δ²/2) dδ for a > 0, elementwise.

    With δ = r t, β = |b| r, α = a r² it is r ∫_{-1}^{1} exp(β t - α t²/2) dt. The best of
    - Gauss-Legendre with its proved error, |exp(β t - α t²/2)| <= exp(β κ + α κ²/2) on |t| <= κ;
    - from below, Jensen: the mean of the exponent over [-1, 1] is -α/6;
    - from above, twice the greatest value, and the integral over the whole line.
    """
    q = ORDERS[-1]
    t, weights = RULES[q]
    beta, alpha = np.abs(b) * r, a * r * r
    with np.errstate(over="ignore", divide="ignore"):
        rule = np.exp(beta[..., None] * (t - 1.0) - 0.5 * alpha[..., None] * t**2) @ weights
        error = np.full(beta.shape, np.inf)  # both over exp(β)
        for kappa, rho in zip(DISCS, RHO, strict=True):
            constant = 64.0 / 15.0 / (1.0 - rho**-2) * rho ** (-2.0 * q) * GROW
            error = np.minimum(
                error, constant * np.exp((beta * (kappa - 1.0) + 0.5 * alpha * kappa**2) * GROW)
            )
        # Where most of the rule is error, the difference would be all rounding.
        low = beta + np.log(np.where(error < 0.5 * rule, rule - error, 0.0))
        high = beta + np.log(rule + error)
    line = 0.5 * beta**2 / alpha
    peak = np.where(beta >= alpha, beta - 0.5 * alpha, line)
    low = np.maximum(low, math.log(2.0) - alpha / 6.0)
    high = np.minimum(high, np.minimum(math.log(2.0) + peak, 0.5 * np.log(2.0 * math.pi / alpha) + line))
    return np.log(r) + low, np.log(r) + high


def _logs(r: Array) -> Array:
    """Σ |log r_i|, (C,): the logarithm of a volume is right to 16 U times this."""
    return np.abs(np.log(r)).sum(axis=1)


def _square(v: Array) -> Array:
    """‖v‖² over the last axis."""
    return np.einsum("...i,...i->...", v, v)
