"""Proved lower and upper bounds on log p(x).

The integral of exp F, F(z) = -‖x - g(z)‖²/2σ² - ‖z‖²/2, over the latent space is the sum of its integrals
over the cells of a box [-R, R]^m, each of which `refica.bounds` brackets, and of what lies outside. Cells
whose bracket is wide are summed by Gauss-Legendre where the error of that is provably small enough, and cut
in pieces where it is not, until the two totals are as close as asked for. Both totals are true at every
moment, so the bounds hold whenever one stops.

What is taken on trust: that +, -, *, / round correctly and to nearest; that elementary functions of NumPy
and SciPy (exp, log, tanh, sin, Φ, powers, ...) are right to 4 units in the last place; that matrix products
are sums of products, in some order. The rounding of everything that is computed is then part of the bounds.
"""

# notation: N observations, C cells c ± r (C, m), m latent, n data; integrals are given by their logarithms

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refica.bounds import (
    ORDERS,
    Enclose,
    U,
    encloser,
    exponent,
    first_order,
    gauss_legendre,
    gauss_legendre_doubt,
    gauss_legendre_error,
    image_of_boxes,
    second_order,
)
from refica.model import LOG_2PI, NonlinearICA
from refica.validation import Array, check_count, check_number

__all__ = ["CertifiedBounds", "certified_bounds"]

MAX_CELLS = 2**18
"""Cells examined for one observation before it is given up: some seconds, and 100 MB."""

MAX_LATENT = 3
"""Beyond three latent dimensions a box of a few cells per axis is already too many."""

FIRST = {1: 64, 2: 16, 3: 8}
"""Cells per axis to begin with, by latent dimension: powers of two."""

PROBES = {1: 512, 2: 32, 3: 16}
"""Points per axis of [-8, 8] from which the size of the integral is guessed."""

ROUND = 200
"""Cells refined in a round if that many matter: with fewer, an outlier's peak is searched for one cell at a
time, and NumPy's overhead dominates."""

PIECES = 16
"""Most pieces that a cell is cut into at once; a power of two."""

MAX_NODES = 1000
"""Most Gauss-Legendre nodes in a cell: beyond, cutting the cell is cheaper."""

BLOCK = 1024
"""Cells examined at a time, so that their arrays stay in cache."""

FINEST = 2.0**-48
"""Half-width over R at which an axis is cut no more. R and r are powers of two and c an odd multiple of r, so
that with at most PIECES pieces more c / r has 53 bits: all is exact, and the cells partition the box."""

SUM = 800.0 * U
"""What rounding may do to the logarithm of a sum of exponentials, beside U for every term added: each term is
exp of a rounded difference no less than -745, below which it is 0."""

STEADY = 1e-4
"""Doubt below which a cell's rounding slack is taken to be what it will be for its pieces too."""


@dataclass(frozen=True, slots=True, eq=False)
class CertifiedBounds:
    """The result of `certified_bounds`.

    Attributes
    ----------
    lower, upper : (N,)
        Proved: lower <= log p(x_i) <= upper, whatever ``converged`` says.
    converged : (N,) bool
        Whether upper - lower is at most the width asked for.
    message : str
        What was asked for, and what each False in ``converged`` means.
    """

    lower: Array
    upper: Array
    converged: Array
    message: str


def certified_bounds(
    model: NonlinearICA, x: Any, width: float = 1e-6, max_cells: int = MAX_CELLS
) -> CertifiedBounds:
    """Return proved lower and upper bounds on log p(x_i), E(3), for one to three latent dimensions.

    The bounds are rigorous, rounding errors included, provided that elementary functions of NumPy and SciPy
    are right to 4 units in the last place. The method is branch and bound over cells of the latent space,
    with interval arithmetic and Gauss-Legendre quadrature whose error is bounded by the integrand's modulus
    on a Bernstein ellipse (Trefethen, SIAM Review 50, 2008). What it finds within the budget it returns: if
    upper - lower is more than ``width``, `CertifiedBounds.converged` is False and ``message`` says why.

    Parameters
    ----------
    model : NonlinearICA
        With a `Polynomial`, or a decoder made of layers as `MLP` is: one that has ``unpack(theta)`` and
        ``activations`` and computes ``activation(h @ W.T + b)`` layer by layer.
    x : array_like (N, n)
    width : float
        Upper - lower, in nats, to stop at. Rounding sets a limit: 1e-12 for a σ² that is not small, 1e-10
        at 1e-6 (1e-9 if weights are large too), and from 1e-14 to 1e-12 |log p| for outliers.
    max_cells : int
        Cells of latent space after which no more are cut, for each observation. One dimension takes
        hundreds (10 ms), two thousands (.1 s), three tens of thousands (1 s) or more.

    Returns
    -------
    CertifiedBounds

    Raises
    ------
    TypeError
        For a decoder, or an activation, that offers no bounds of its own.
    ValueError
        For bad data, or more than three latent dimensions.

    Examples
    --------
    >>> from refica import MLP
    >>> model = NonlinearICA(MLP((1, 2)), [1.0, 0.5, 0.0, 0.0], sigma2=0.1)
    >>> bounds = certified_bounds(model, [[0.3, 0.2]], width=1e-9)
    >>> bool(bounds.lower[0] < -0.89404422354489 < bounds.upper[0]), bool(bounds.converged[0])
    (True, True)
    """
    x = model.check_data(x)
    width = check_number("width", width, above=0.0)
    max_cells = check_count("max_cells", max_cells)
    if model.latent_dim > MAX_LATENT:
        raise ValueError(
            f"certified_bounds needs latent_dim <= {MAX_LATENT}, got {model.latent_dim}; "
            "for more, log_likelihood gives an estimate with an error, without proof"
        )
    enclose = encloser(model.decoder, model.theta)
    each = [_bounds(_Integral(model, enclose, one), width, max_cells) for one in x]
    lower, upper = np.array([bounds[:2] for bounds in each]).T
    converged = upper - lower <= width
    message = f"proved bounds to within {width:g} nats"
    for reason in sorted({reason for *_, reason in each} - {""}):
        count = sum(reason == given for *_, given in each)
        message += f"; not converged for {count} of {len(x)} observations: {reason}"
    return CertifiedBounds(lower, upper, converged, message)


class _Cells(NamedTuple):
    """C cells c ± r (C, m): lower, upper bounds and an estimate of the log integral (C,); doubt (C,), what
    rounding may do to its Gauss-Legendre sum; errors (C, orders), proved logs of that sum's error, inf for
    orders that were tried; axis (C,), the one to cut."""

    c: Array
    r: Array
    lower: Array
    upper: Array
    estimate: Array
    doubt: Array
    errors: Array
    axis: Array


@dataclass(frozen=True, slots=True, eq=False)
class _Integral:
    """∫ exp F for one observation x (n,): what can be done with cells of it."""

    model: NonlinearICA
    enclose: Enclose
    x: Array

    def examine(self, c: Array, r: Array) -> _Cells:
        """Return the cells c ± r with the better of the first- and second-order brackets."""
        blocks = [self._examine(c[i : i + BLOCK], r[i : i + BLOCK]) for i in range(0, len(c), BLOCK)]
        return _Cells(*map(np.concatenate, zip(*blocks, strict=True)))

    @np.errstate(all="ignore")  # inf and nan are bounds that say nothing
    def _examine(self, c: Array, r: Array) -> _Cells:
        x, sigma2 = self.x, self.model.sigma2
        enclosure = self.enclose(c, r)
        F = exponent(enclosure, x, sigma2, c, r)
        low1, high1 = first_order(enclosure, x, sigma2, c, r)
        low2, high2 = second_order(F, enclosure, sigma2, r)
        lower = np.nan_to_num(np.fmax(low1, low2), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        upper = np.nan_to_num(np.fmin(high1, high2), nan=np.inf, posinf=np.inf, neginf=-np.inf)
        # How much each axis moves F on the cell: slope, curvature, and what it has to do with the error.
        bend = np.einsum("cn,cnm->cm", np.abs(F.w) + F.spread, enclosure.bend) / sigma2
        moves = np.abs(F.b) * r + np.einsum("cii->ci", F.A) * r * r + bend
        return _Cells(
            c,
            r,
            lower,
            upper,
            np.fmin(np.fmax(F.F0 + np.log(2.0 * r).sum(axis=1), lower), upper),
            gauss_legendre_doubt(enclosure, x, sigma2, c, r),
            gauss_legendre_error(F, enclosure, sigma2, r),
            np.nan_to_num(moves).argmax(axis=1),
        )

    @np.errstate(over="ignore", invalid="ignore")
    def sum(self, cells: _Cells, order: Array) -> _Cells:
        """Return the cells with Gauss-Legendre of the given order (C,) added to their brackets; -1 for none.

        The sum S over floats is within ± doubt (in logs) of the exact rule, and that within its error of
        the integral: log(exp(S - doubt) - error) <= log integral <= log(exp(S + doubt) + error).
        """
        model = self.model
        lower, upper, errors = cells.lower.copy(), cells.upper.copy(), cells.errors.copy()
        for k, q in enumerate(ORDERS):
            rows = np.flatnonzero(order == k)
            if not len(rows):
                continue
            c, r = cells.c[rows], cells.r[rows]
            S = gauss_legendre(model.decoder, model.theta, model.sigma2, self.x, c, r, q)
            low, high, error = S - cells.doubt[rows], S + cells.doubt[rows], errors[rows, k]
            # Where the error is as large as the sum, the difference would be all rounding.
            low = np.where(error < low - 1.0, low + np.log1p(-np.exp(np.minimum(error - low, -1.0))), -np.inf)
            lower[rows] = np.fmax(lower[rows], low)
            upper[rows] = np.fmin(upper[rows], np.logaddexp(high, error))
            errors[rows, : k + 1] = np.inf
        return cells._replace(lower=lower, upper=upper, errors=errors)

    def outside(self, R: float) -> float:
        """Return an upper bound on the log integral outside of [-R, R]^m.

        It is covered by 2m half-spaces ±z_i > R. In each, F <= -near²/2σ² - ‖z‖²/2 with near from the
        decoder's image of it, and ∫ exp(-‖z‖²/2) = (2π)^(m/2) Φ(-R) < (2π)^((m-1)/2) exp(-R²/2) / R.
        """
        m = self.model.latent_dim
        lower, upper = np.full((2 * m, m), -np.inf), np.full((2 * m, m), np.inf)
        lower[range(m), range(m)] = R
        upper[range(m, 2 * m), range(m)] = -R
        lower, upper = image_of_boxes(self.model.decoder, self.model.theta, lower, upper)
        near = np.maximum(np.maximum(self.x - upper, lower - self.x), 0.0)
        with np.errstate(over="ignore"):
            exponents = -0.5 * (near * near).sum(axis=1) / self.model.sigma2
        total = max(float(np.logaddexp.reduce(exponents)), -sys.float_info.max)
        slack = 1e-12 * (1.0 + abs(total))  # far more than rounding: this is never the term that matters
        return total + 0.5 * (m - 1) * LOG_2PI - 0.5 * R * R * (1.0 - 1e-12) - math.log(R) + slack

    @np.errstate(over="ignore", invalid="ignore")
    def radius(self, width: float) -> float:
        """Return a power of two R, such that the outside should not stand in the way of the width.

        A guess at the integral, by Laplace's formula at the best of some points, is enough: were it too
        high, the bounds would be true and not converge.
        """
        m, model = self.model.latent_dim, self.model
        z, _ = _grid(8.0, PROBES[m], m)
        residual = self.x - model.decoder(model.theta, z)
        F = -0.5 * ((residual**2).sum(axis=1) / model.sigma2 + (z**2).sum(axis=1))
        best = z[[F.argmax()]]
        point = np.full((1, m), FINEST)
        A = exponent(self.enclose(best, point), self.x, model.sigma2, best, point).A[0]
        guess = float(F.max()) - 0.5 * float(np.linalg.slogdet(A)[1]) + math.log(width) - 10.0
        R = 8.0
        while self.outside(R) > guess and R < 2.0**40:
            R *= 2.0
        return R


def _bounds(integral: _Integral, width: float, max_cells: int) -> tuple[float, float, str]:
    """Return lower, upper and the reason why they are farther apart than the width, or ""."""
    model = integral.model
    R = integral.radius(width)
    outside = integral.outside(R)
    cells = integral.examine(*_grid(R, FIRST[model.latent_dim], model.latent_dim))
    examined = len(cells.c)
    constant = -0.5 * model.data_dim * (LOG_2PI + math.log(model.sigma2)) - 0.5 * model.latent_dim * LOG_2PI
    while True:
        lower = _log_sum(cells.lower)
        upper = max(float(np.logaddexp(_log_sum(cells.upper), outside)), -sys.float_info.max)
        slack = SUM + len(cells.c) * U + 16.0 * U * (abs(constant) + 8.0 * model.data_dim)
        lower, upper = lower - slack - 16.0 * U * abs(lower), upper + slack + 16.0 * U * abs(upper)
        reason = ""
        if upper - lower <= width:
            break
        gap, least = _gaps(cells, R, width)
        if gap.max() < least:
            reason = "rounding alone leaves more than the width open"
            break
        if examined >= max_cells:
            reason = "max_cells were examined"
            break
        chosen = gap >= max(least, _round(gap))
        order = _orders(cells, chosen, width)
        cells = integral.sum(cells, order)
        split = chosen & (order < 0)
        if split.any():
            pieces = integral.examine(*_cut(cells, split))
            examined += len(pieces.c)
            cells = _Cells(
                *(np.concatenate([old[~split], new]) for old, new in zip(cells, pieces, strict=True))
            )
    return lower + constant, upper + constant, reason


def _gaps(cells: _Cells, R: float, width: float) -> tuple[Array, float]:
    """Return the log of upper - lower of each cell, (C,), and the one below which cells do not matter.

    Rounding does not count, being there to stay, nor do cells too fine to be cut. If all gaps are below the
    second number they sum to a quarter of what the width allows.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        rounding = np.where(cells.doubt < STEADY, 4.0 * cells.doubt, 0.0)
        below = np.where(cells.upper > cells.lower, cells.lower - cells.upper, 0.0)
        gap = cells.upper + np.log(np.maximum(-np.expm1(below) - rounding, 0.0))
    gap[cells.r[np.arange(len(gap)), cells.axis] <= FINEST * R] = -np.inf
    return gap, _log_sum(cells.estimate) + math.log(0.25 * width / len(gap))


def _round(gap: Array) -> float:
    """Return the least gap to refine now: a 16th of the largest, or the smallest of the ROUND largest."""
    if len(gap) <= ROUND:
        return -math.inf
    return min(float(gap.max()) - math.log(16.0), float(np.partition(gap, -ROUND)[-ROUND]))


def _orders(cells: _Cells, chosen: Array, width: float) -> Array:
    """Return for each cell the index of the least Gauss-Legendre order that is good enough, or -1, (C,).

    Good enough is an error of an eighth of the width relative to the cell's own integral or, for lesser
    cells, a 1000th of that relative to the whole one: if the estimates were right and no more than 1000
    cells made use of the latter, all errors together would be a quarter of the width.
    """
    share = np.maximum(cells.estimate, _log_sum(cells.estimate) - math.log(1000.0))
    affordable = np.array(ORDERS) ** cells.c.shape[1] <= MAX_NODES
    good = chosen[:, None] & affordable & (cells.errors <= share[:, None] + math.log(0.125 * width))
    return np.where(good.any(axis=1), good.argmax(axis=1), -1)


def _cut(cells: _Cells, split: Array) -> tuple[Array, Array]:
    """Return the pieces c, r of the cells to split, cut across their axes in 2, or more if they are few."""
    c, r, axis = cells.c[split], cells.r[split].copy(), cells.axis[split]
    pieces = 2
    while pieces < PIECES and pieces * len(c) < ROUND:
        pieces *= 2
    rows = np.arange(len(c))
    r[rows, axis] /= pieces
    c, r = np.tile(c, (pieces, 1, 1)), np.tile(r, (pieces, 1, 1))
    c[:, rows, axis] += np.arange(1 - pieces, pieces, 2)[:, None] * r[:, rows, axis]
    return c.reshape(-1, c.shape[-1]), r.reshape(-1, r.shape[-1])


def _grid(R: float, per_axis: int, m: int) -> tuple[Array, Array]:
    """Return the cells c, r (per_axis^m, m) that [-R, R]^m is cut into to begin with."""
    r = R / per_axis
    axis = r * np.arange(1 - per_axis, per_axis, 2)
    c = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    return c, np.full_like(c, r)


def _log_sum(logs: Array) -> float:
    """log Σ exp, -inf if all are; right to SUM + U times the number of terms."""
    peak = float(logs.max())
    return peak + math.log(float(np.exp(logs - peak).sum())) if peak > -math.inf else peak
