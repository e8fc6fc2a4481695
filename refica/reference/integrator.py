"""The yardstick for small latent dimension: `Reference`."""

# notation: N observations, n data, m latent, K nodes

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refica.activations import Identity, LeakyReLU
from refica.certified import certified_bounds
from refica.decoders import MLP
from refica.exact import ExactLinear
from refica.likelihood import (
    Coefficient,
    Estimate,
    Gradient,
    Nodes,
    evaluate,
    rounding_error,
    row_blocks,
    scores_on,
)
from refica.model import NonlinearICA
from refica.piecewise import ExactPiecewiseAffine
from refica.piecewise.scattered import Scattered, pack
from refica.reference.grid import Grid, grid_for
from refica.reference.lines import Lines, lines_of
from refica.reference.panels import panels_for
from refica.validation import Array, check_number

__all__ = ["Reference"]

ROWS_AT_A_TIME = {1: 512, 2: 32, 3: 1}
"""Observations whose grids are made together, by m: enough to share the cost of a call."""

TYPICAL_NODES = {1: 256, 2: 8192, 3: 2**18}
"""Nodes that an observation may have, by m; a few have ten times as many."""

CERTIFIABLE = 2
"""Largest m for which certified bounds take seconds, not minutes."""

MOST_CERTIFIED_CELLS = 2**16
"""Cells examined for certified bounds of one observation: a few seconds."""

POINTS_AT_A_TIME = 2**17
"""Of one observation that are evaluated together: the memory for all of an outlier's would be gigabytes."""

UNREACHED = "the error is above rtol: neither a lattice nor panels that could be afforded bring it down"
BOUNDED = (
    "log p(x) and its error are from certified bounds; gradient and posterior are from a grid that is "
    "too coarse"
)


class _Outcome(NamedTuple):
    """Grids for some ``rows`` of the data, and certified bounds ``lower`` and ``upper`` (R,) of log p(x_i),
    infinite where they were not asked for."""

    rows: slice
    grid: Grid
    lower: Array
    upper: Array


@dataclass(frozen=True, slots=True, init=False)
class Reference:
    """log p(x) to near machine precision for one to three latent dimensions, with an error to rely on.

    Affine decoders are handed to `ExactLinear`, piecewise-affine ones of one or two latent dimensions to
    `ExactPiecewiseAffine`. All others are summed over lattices around the modes of each posterior, with
    all that matters found by branch and bound, refined until the error is below ``rtol``; where that would
    take too many points, by Gauss-Legendre on boxes; and where that does too (m <= 2), the value is checked
    against, or replaced by, `certified_bounds`.

    Parameters
    ----------
    rtol : float
        Error of log p(x) to be met, relative to max(1, |log p(x)|), between 1e-13 and 1e-2. What rounding
        may do is reported in the error, but no grid can remove it: it does not count against convergence.

    Raises
    ------
    TypeError, ValueError
        For another ``rtol``.

    Notes
    -----
    The error reported is that of the sum on every second point of each axis, or of a Gauss rule of one
    order less: usually the square root of the true one.

    Examples
    --------
    >>> from refica import NonlinearICA, Polynomial, log_likelihood
    >>> model = NonlinearICA(Polynomial(1, 1, 2), [0.0, 0.0, 1.0], sigma2=1e-4)  # g(z) = z²
    >>> res = log_likelihood(model, [[1.0]], Reference())
    >>> round(res.total, 12), bool(res.converged.all())
    (-1.418863521325, True)
    """

    rtol: float

    def __init__(self, rtol: float = 1e-11) -> None:
        object.__setattr__(self, "rtol", check_number("rtol", rtol, minimum=1e-13, maximum=1e-2))

    @staticmethod
    def suits(model: NonlinearICA) -> bool:
        """Whether the model has a decoder and a latent dimension that `Reference` can do."""
        few = model.latent_dim in ROWS_AT_A_TIME and lines_of(model) is not None
        return few or _exact_for(model) is not None

    def nodes(self, model: NonlinearICA, x: Array) -> Nodes:
        """Return nodes z (N, K, m) and log weights (N, K), whether or not they reach ``rtol``.

        Raises
        ------
        ValueError
            For more than three latent dimensions (unless the decoder is affine), or a decoder of which it
            is not known how it bends.
        """
        exact = _exact_for(model)
        if exact is not None:
            return exact.nodes(model, x)
        return _packed(list(self._points(model, x)))

    def evaluate(
        self, model: NonlinearICA, x: Array, gradient: bool, coefficient: Coefficient = np.ones_like
    ) -> Estimate:
        """Return log p(x_i) with its error, problems, and the gradient of Σ_i c_i log p(x_i).

        Raises
        ------
        ValueError
            As `nodes`.
        """
        exact = _exact_for(model)
        if exact is not None:
            return exact.evaluate(model, x, gradient, coefficient)
        wanted = coefficient if gradient else None
        parts = [
            self._evaluate_some(model, x[outcome.rows], outcome, wanted)
            for outcome in self._outcomes(model, x)
        ]
        log_p, error = (np.concatenate([part[i] for part in parts]) for i in range(2))
        problems = {
            sentence: np.concatenate([part.problems[sentence] for part in parts])
            for sentence in (UNREACHED, BOUNDED)
        }
        return Estimate(
            log_p, error, problems, _combined([part.gradient for part in parts], np.ones(len(parts)))
        )

    def scores(self, model: NonlinearICA, x: Array) -> Array:
        """Return the gradient of each log p(x_i) in (θ, σ²), (N, p + 1), on its own points: packed like
        `nodes`, an outlier's would be so many for all.

        Raises
        ------
        ValueError
            As `nodes`.
        """
        exact = _exact_for(model)
        if exact is not None:
            return scores_on(model.decoder, model.theta, model.sigma2, x, exact.nodes(model, x))
        each = [
            _on_many_points(model, x[i : i + 1], points, np.ones_like)[1]
            for i, points in enumerate(self._points(model, x))
        ]
        return np.stack([np.append(gradient.theta, gradient.sigma2) for gradient in each if gradient])

    def nodes_per_observation(self, m: int) -> int:
        """Return about how many nodes each observation has of its own."""
        return TYPICAL_NODES.get(m, 1)

    def _points(self, model: NonlinearICA, x: Array) -> Iterator[Nodes]:
        """Yield the points of one observation after the other, from grids that are made some at a time."""
        lines = _lines(model)
        for rows in row_blocks(len(x), ROWS_AT_A_TIME[model.latent_dim]):
            yield from self._grid(model, lines, x[rows]).points

    def _outcomes(self, model: NonlinearICA, x: Array) -> Iterator[_Outcome]:
        """Yield the grids of consecutive observations, and bounds where grids are of little use."""
        lines = _lines(model)
        for rows in row_blocks(len(x), ROWS_AT_A_TIME[model.latent_dim]):
            grid = self._grid(model, lines, x[rows])
            lower, upper = np.full(len(grid.error), -np.inf), np.full(len(grid.error), np.inf)
            if model.latent_dim <= CERTIFIABLE:
                for i in np.flatnonzero(~grid.converged):
                    one, width = x[rows][i : i + 1], float(grid.tolerance[i])
                    bounds = certified_bounds(model, one, width, MOST_CERTIFIED_CELLS)
                    lower[i], upper[i] = bounds.lower[0], bounds.upper[0]
            yield _Outcome(rows, grid, lower, upper)

    def _grid(self, model: NonlinearICA, lines: Lines, x: Array) -> Grid:
        """Return a grid for each observation: a lattice, or panels where these are better."""
        grid = grid_for(model, lines, x, self.rtol)
        for i in np.flatnonzero(~grid.converged):
            panels = panels_for(model, lines, x[i : i + 1], grid.log_mass[i], grid.tolerance[i])
            if panels is not None and panels.error < grid.error[i]:
                grid.points[i], grid.error[i] = panels.points, panels.error
        return grid

    def _evaluate_some(
        self, model: NonlinearICA, x: Array, outcome: _Outcome, coefficient: Coefficient | None
    ) -> Estimate:
        """Evaluate some observations on their grids; bounds overrule the value that they refute."""
        log_p, total = _on_own_points(model, x, outcome.grid.points, coefficient)
        lower, upper = outcome.lower, outcome.upper
        bounded = np.isfinite(upper - lower)
        refuted = bounded & ~((lower <= log_p) & (log_p <= upper))
        middle = np.where(bounded, 0.5 * (np.where(bounded, lower, 0.0) + np.where(bounded, upper, 0.0)), 0.0)
        log_p = np.where(refuted, middle, log_p)
        by_bounds = np.where(bounded, np.maximum(upper - log_p, log_p - lower), np.inf)
        error = np.where(refuted, by_bounds, np.minimum(by_bounds, outcome.grid.error))
        problems = {
            UNREACHED: error > outcome.grid.tolerance,
            BOUNDED: refuted,
        }
        return Estimate(log_p, error + rounding_error(x, model.sigma2, log_p), problems, total)


def _exact_for(model: NonlinearICA) -> ExactLinear | ExactPiecewiseAffine | None:
    """Return the exact integrator for the model's decoder, if there is one."""
    decoder = model.decoder
    if getattr(decoder, "is_affine", False):
        return ExactLinear()
    affine_pieces = isinstance(decoder, MLP) and all(
        isinstance(f, (Identity, LeakyReLU)) for f in decoder.activations
    )
    return ExactPiecewiseAffine() if affine_pieces and model.latent_dim <= 2 else None


def _lines(model: NonlinearICA) -> Lines:
    """Return the lines of the model's decoder, or say what to use instead."""
    instead = "use Quadrature(gauss_hermite(7), proposal='modes')"
    if model.latent_dim not in ROWS_AT_A_TIME:
        raise ValueError(
            f"Reference integrates over at most 3 latent dimensions, got {model.latent_dim}; {instead}, or "
            "Quadrature(sobol(1024, seed=0), proposal='laplace') for many dimensions"
        )
    lines = lines_of(model)
    if lines is None:
        raise ValueError(
            "Reference must know how a decoder bends, and does for MLP (with activations that have `image` "
            f"and `slopes`) and Polynomial, got {model.decoder}; {instead}"
        )
    return lines


def _on_own_points(
    model: NonlinearICA, x: Array, points: list[Nodes], coefficient: Coefficient | None
) -> tuple[Array, Gradient | None]:
    """Return log p(x_i) on each observation's own points, and the gradient of Σ_i c_i log p(x_i).

    For m = 1 observations with about as many points are taken together, else each by itself.
    """
    size = np.array([len(each.log_weight) for each in points])
    if model.latent_dim == 1:
        group = np.ceil(2.0 * np.log2(size)).astype(int)
        together = [np.flatnonzero(group == g) for g in np.unique(group)]
    else:
        together = [np.array([i]) for i in range(len(x))]
    log_p, gradients = np.empty(len(x)), []
    for rows in together:
        if len(rows) == 1:
            log_p[rows], gradient = _on_many_points(model, x[rows], points[rows[0]], coefficient)
        else:
            nodes = _packed([points[i] for i in rows])
            result = evaluate(
                model.decoder, model.theta, model.sigma2, x[rows], nodes, coefficient=coefficient
            )
            log_p[rows], gradient = result.log_p, result.gradient
        gradients.append(gradient)
    return log_p, _combined(gradients, np.ones(len(gradients)))


def _on_many_points(
    model: NonlinearICA, x: Array, points: Nodes, coefficient: Coefficient | None
) -> tuple[Array, Gradient | None]:
    """Return log p(x) (1,) of x (1, n), and the gradient of c log p(x), some points at a time.

    With p_b the sum over block b of the points, p = Σ_b p_b and ∇ log p = Σ_b (p_b / p) ∇ log p_b.
    """
    parts = [
        evaluate(
            model.decoder,
            model.theta,
            model.sigma2,
            x,
            Nodes(points.z[block], points.log_weight[block]),
            coefficient=coefficient and np.ones_like,
        )
        for block in row_blocks(len(points.log_weight), POINTS_AT_A_TIME)
    ]
    log_parts = np.concatenate([part.log_p for part in parts])
    log_p = np.logaddexp.reduce(log_parts, keepdims=True)
    shares = np.exp(log_parts - log_p) * (coefficient(log_p) if coefficient else 1.0)
    return log_p, _combined([part.gradient for part in parts], shares)


def _combined(gradients: list[Gradient | None], shares: Array) -> Gradient | None:
    """Return Σ_b s_b ∇_b, or None if there are no gradients."""
    found = [g for g in gradients if g is not None]
    if not found:
        return None
    theta, sigma2 = (np.tensordot(shares, np.stack(part), 1) for part in zip(*found, strict=True))
    return Gradient(theta, float(sigma2))


def _packed(points: list[Nodes]) -> Nodes:
    """Return the points of each observation as z (N, K, m) and log weights (N, K)."""
    row = np.repeat(np.arange(len(points)), [len(each.log_weight) for each in points])
    z, log_weight = (np.concatenate([each[part] for each in points]) for part in range(2))
    return pack(Scattered(row, z, log_weight))
