"""Rules: nodes t_k and weights w_k with sum_k w_k f(t_k) ~ E f(T), T ~ N(0, I_m).

A rule is a small frozen value; ``points(m)`` gives its nodes and the logs of its weights in m
dimensions. Tensor rules have the m-fold product of their points per axis. All weights are positive.

Each rule also carries what an honest error estimate of it needs:

- ``companion(m)``: a rule of *another kind* (Gauss-Hermite; its own halving is worthless) or None;
- ``coarse(m)``: which nodes make the same rule at twice the spacing (the grid), or None;
- ``replicates``: how many independent, equally sized, consecutive parts the nodes fall into (Monte
  Carlo: every node is one; Sobol: every scrambling; None for deterministic rules). The spread of the
  parts' means is what the standard error comes from.
"""

# notation: m latent dimension, K number of nodes, t (K, m) nodes, w (K,) weights, h spacing

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special, stats

from refica.validation import Array, check_count, check_number, check_seed

__all__ = ["MAX_NODES", "Rule", "gauss_hermite", "monte_carlo", "sobol", "uniform_grid"]

MAX_NODES = 2**20
"""Largest number of nodes a rule hands out: 1M nodes of dimension 4 are 32 MiB, and the decoder's
values at them as much again."""

FEWEST_GRID_POINTS = {1: 35, 2: 21, 3: 11}
"""Fewest points per axis of the grid that a Gauss rule is compared with, by m."""
MOST_GRID_AXES = 3

TURN = math.pi / 6.0
"""Angle between copies of a grid: 30 degrees, so that of three copies no axis is near to one of another."""

LOG_2PI = math.log(2.0 * math.pi)


class Rule(Protocol):
    """Nodes and weights for the standard normal distribution; see the module's first lines."""

    @property
    def replicates(self) -> int | None:
        """Number of independent, equally sized, consecutive parts of the nodes, or None."""

    def count(self, m: int) -> int:
        """Return K, before anything is allocated."""

    def points(self, m: int) -> tuple[Array, Array]:
        """Return nodes t (K, m) and log weights (K,)."""

    def spacing(self, m: int) -> Array:
        """Return the distance of each node to its neighbours, (K, m), 0 where that means nothing."""

    def edge(self, m: int) -> Array:
        """Return which nodes (K,) lie on the border of the region the rule covers."""

    def coarse(self, m: int) -> Array | None:
        """Return which nodes (K,) make the rule of twice the spacing, or None."""

    def companion(self, m: int) -> Rule | None:
        """Return a rule of another kind to compare with, or None."""


@dataclass(frozen=True, slots=True)
class GaussHermite:
    """The Gauss rule of the standard normal weight: exact for polynomials of degree 2 order - 1."""

    order: int
    replicates = None

    def count(self, m: int) -> int:
        """Return order^m."""
        return _product_count(self, self.order, m)

    def points(self, m: int) -> tuple[Array, Array]:
        """Return nodes (K, m) and log weights (K,); the last axis varies fastest.

        The weights are 1 / sum_j he_j(t)² over the orthonormal Hermite polynomials of degree below
        ``order``, summed with the scale carried apart: they keep full relative accuracy where
        `scipy.special.roots_hermitenorm` underflows (orders above 360).
        """
        t = _hermite_roots(self.order)
        return _product(t, m, self.count(m)), _product_log(_hermite_log_weights(self.order, t), m)

    def spacing(self, m: int) -> Array:
        """Return the distance to the nearest neighbour per axis, (K, m)."""
        t = _hermite_roots(self.order)
        gaps = np.diff(t, prepend=-np.inf, append=np.inf)
        nearest = np.minimum(gaps[:-1], gaps[1:])
        return _product(nearest, m, self.count(m))

    def edge(self, m: int) -> Array:
        """Return which nodes hold a first or last point of an axis."""
        return _product_edge(self.order, m, self.count(m))

    def coarse(self, m: int) -> None:
        """Return None: Gauss rules are not nested, and a lower order is no honest yardstick."""
        return

    def companion(self, m: int) -> UniformGrid | Sobol:
        """Return a uniform grid over the same range, with at least as many points; Sobol's for m > 3.

        With at least 11 points per axis, 1.1 apart, it is right to 1e-6 on a standard normal integrand.
        In more than three dimensions that would be too many.
        """
        if m > MOST_GRID_AXES:
            return Sobol(8 * 2 ** max(8, (self.count(m) // 8).bit_length()), seed=0, replicates=8)
        radius = max({1: 6.5, 2: 6.0}.get(m, 5.5), float(_hermite_roots(self.order)[-1]))
        wanted = max(FEWEST_GRID_POINTS[m], self.order)
        return UniformGrid(min(wanted, int(MAX_NODES ** (1.0 / m) + 1e-9)), radius)


@dataclass(frozen=True, slots=True)
class UniformGrid:
    """The trapezoidal rule on [-radius, radius]^m: converges exponentially for smooth integrands
    once the spacing is below the width of the narrowest feature (Trefethen and Weideman 2014).

    ``copy`` numbers copies of the grid that are shifted by a third of a step along each axis and turned
    against each other, for comparison."""

    points_per_axis: int
    radius: float
    copy: int = 0
    replicates = None

    @property
    def step(self) -> float:
        """Return h = 2 radius / (points - 1)."""
        return 2.0 * self.radius / (self.points_per_axis - 1)

    def count(self, m: int) -> int:
        """Return points^m."""
        return _product_count(self, self.points_per_axis, m)

    def points(self, m: int) -> tuple[Array, Array]:
        """Return nodes (K, m) and log weights m log h + log φ(t)."""
        K = self.count(m)
        t = _product(self._axis() + self.copy * self.step / 3.0, m, K)
        if self.copy:
            t = t @ np.linalg.matrix_power(_rotation(m), self.copy)
        log_phi = -0.5 * np.einsum("km,km->k", t, t) - 0.5 * m * LOG_2PI
        return t, m * math.log(self.step) + log_phi

    def spacing(self, m: int) -> Array:
        """Return h for every node and axis, (K, m)."""
        return np.full((self.count(m), m), self.step)

    def edge(self, m: int) -> Array:
        """Return which nodes lie on the border of the box."""
        return _product_edge(self.points_per_axis, m, self.count(m))

    def coarse(self, m: int) -> Array:
        """Return which nodes make the grid of step 2h through the middle point."""
        middle = self.points_per_axis // 2
        even = (np.arange(self.points_per_axis) - middle) % 2 == 0
        keep = _product(even.astype(float), m, self.count(m))
        return np.asarray(keep.all(axis=1))

    def companion(self, m: int) -> None:
        """Return None: the halved grid serves."""
        return

    def faces(self, m: int) -> Array:
        """Return which nodes lie on each face of the box, then which on the next layer in, (K, 4m)."""
        index = _product(np.arange(float(self.points_per_axis)), m, self.count(m))
        last = self.points_per_axis - 1
        return np.concatenate([index == 0, index == last, index == 1, index == last - 1], axis=1)

    def another(self, copy: int) -> UniformGrid:
        """Return a copy of the grid by its number; 0 is the plain one."""
        return UniformGrid(self.points_per_axis, self.radius, copy)

    def _axis(self) -> Array:
        # symmetric to the last bit, with 0 a node when the number of points is odd
        half = np.arange(self.points_per_axis) - 0.5 * (self.points_per_axis - 1)
        return np.asarray(half * self.step)


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """Independent draws from N(0, I), each of weight 1/K."""

    size: int
    seed: int

    @property
    def replicates(self) -> int:
        """Return K: every node is an independent replicate."""
        return self.size

    def count(self, m: int) -> int:
        """Return K, whatever m."""
        return _within_limit(self, self.size)

    def points(self, m: int) -> tuple[Array, Array]:
        """Return the same draws (K, m) for the same seed, and log weights -log K."""
        K = self.count(m)
        t = np.random.default_rng(self.seed).standard_normal((K, m))
        return t, np.full(K, -math.log(K))

    def spacing(self, m: int) -> Array:
        """Return 0: independent draws have no spacing; the effective number of nodes judges them."""
        return np.zeros((self.count(m), m))

    def edge(self, m: int) -> Array:
        """Return no node: draws have no border."""
        return np.zeros(self.count(m), dtype=bool)

    def coarse(self, m: int) -> None:
        """Return None: the standard error serves."""
        return

    def companion(self, m: int) -> None:
        """Return None: the standard error serves."""
        return


@dataclass(frozen=True, slots=True)
class Sobol:
    """Independent scramblings of Sobol's points, mapped to N(0, I): each of ``size`` nodes has weight 1/K.

    A scrambling (Owen 1998; SciPy's random linear one, Matoušek 1998) makes each point uniform, so that
    every part is unbiased, and keeps the points of a part evenly spread: for smooth integrands the error
    falls like 1/K rather than 1/sqrt(K).
    """

    size: int
    seed: int
    replicates: int

    def count(self, m: int) -> int:
        """Return K, whatever m."""
        return _within_limit(self, self.size)

    def points(self, m: int) -> tuple[Array, Array]:
        """Return the same nodes (K, m) for the same seed, scrambling by scrambling; log weights -log K."""
        K = self.count(m)
        exponent = (K // self.replicates).bit_length() - 1
        seeds = np.random.SeedSequence(self.seed).spawn(self.replicates)
        parts = [
            stats.qmc.Sobol(m, scramble=True, seed=np.random.default_rng(seed)).random_base2(exponent)
            for seed in seeds
        ]
        # SciPy's points are multiples of 2^-30 in [0, 1): their cells' middles keep 0 away
        t = special.ndtri(np.concatenate(parts) + 2.0**-31)
        return np.asarray(t), np.full(K, -math.log(K))

    def spacing(self, m: int) -> Array:
        """Return 0: the effective number of nodes judges them."""
        return np.zeros((self.count(m), m))

    def edge(self, m: int) -> Array:
        """Return no node: there is no border."""
        return np.zeros(self.count(m), dtype=bool)

    def coarse(self, m: int) -> None:
        """Return None: the spread of the scramblings serves."""
        return

    def companion(self, m: int) -> None:
        """Return None: the spread of the scramblings serves."""
        return


def gauss_hermite(order: int) -> GaussHermite:
    """Return the Gauss-Hermite rule with ``order`` points per axis.

    Parameters
    ----------
    order : int
        Points per axis, >= 1; exact for polynomials of degree 2 order - 1 in each axis.

    Raises
    ------
    TypeError, ValueError
        If it is not an integer >= 1.

    Examples
    --------
    >>> t, log_w = gauss_hermite(3).points(1)
    >>> round(float(np.exp(log_w) @ t[:, 0] ** 4), 14)  # E T⁴ = 3
    3.0
    """
    return GaussHermite(check_count("order", order))


def uniform_grid(points: int, radius: float) -> UniformGrid:
    """Return the trapezoidal rule with ``points`` per axis on [-radius, radius].

    Parameters
    ----------
    points : int
        Points per axis, >= 3.
    radius : float
        Half-width of the box, > 0, in prior standard deviations.

    Raises
    ------
    TypeError, ValueError
        If ``points`` is not an integer >= 3 or ``radius`` not a finite number > 0.
    """
    return UniformGrid(check_count("points", points, minimum=3), check_number("radius", radius, above=0.0))


def monte_carlo(size: int, seed: int) -> MonteCarlo:
    """Return ``size`` independent draws from N(0, I), the same ones for the same seed.

    Parameters
    ----------
    size : int
        Number of draws K, >= 2.
    seed : int
        Seed >= 0: a rule is data and gives the same nodes each time.

    Raises
    ------
    TypeError, ValueError
        If either is not such an integer.
    """
    return MonteCarlo(check_count("size", size, minimum=2), check_seed("seed", seed))


def sobol(size: int, seed: int, replicates: int = 8) -> Sobol:
    """Return ``size`` scrambled Sobol points for N(0, I), in ``replicates`` independent scramblings.

    Parameters
    ----------
    size : int
        Number of nodes K in all: ``replicates`` times a power of two, which is where Sobol's points are
        balanced.
    seed : int
        Seed >= 0: a rule is data and gives the same nodes each time.
    replicates : int
        Number of scramblings, >= 2, whose spread gives the error. With 8 a 95 % interval is 1.21 times as
        wide as with infinitely many.

    Raises
    ------
    TypeError, ValueError
        If one is not such an integer.

    Examples
    --------
    >>> t, log_w = sobol(1024, seed=0).points(2)
    >>> t.shape, float(abs(np.exp(log_w) @ (t[:, 0] * t[:, 1]))) < 0.01
    ((1024, 2), True)
    """
    replicates = check_count("replicates", replicates, minimum=2)
    size = check_count("size", size, minimum=replicates)
    each = 2 ** ((size // replicates).bit_length() - 1)
    if size != replicates * each:
        raise ValueError(
            f"size must be replicates times a power of two, where Sobol's points are balanced, got {size} "
            f"with {replicates} replicates; the nearest are {replicates * each} and {2 * replicates * each}"
        )
    return Sobol(size, check_seed("seed", seed), replicates)


def _product_count(rule: Rule, per_axis: int, m: int) -> int:
    return _within_limit(rule, per_axis**m)


def _within_limit(rule: Rule, K: int) -> int:
    if K > MAX_NODES:
        count = str(K) if K < 10**12 else f"about 10^{len(str(K)) - 1}"
        raise ValueError(
            f"{rule} would have {count} nodes, more than the limit of {MAX_NODES}; take fewer points "
            "per axis, a rule centred on the posterior (proposal='laplace') or monte_carlo"
        )
    return K


def _product(axis: Array, m: int, K: int) -> Array:
    """All m-tuples of the values of one axis, (K, m), the last entry varying fastest."""
    grids = np.meshgrid(*[axis] * m, indexing="ij")
    return np.stack(grids, axis=-1).reshape(K, m)


def _rotation(m: int) -> Array:
    """A rotation of R^m by `TURN` in each plane of two consecutive axes, one after the other, (m, m)."""
    total = np.eye(m)
    for axis in range(m - 1):
        plane = np.eye(m)
        plane[axis : axis + 2, axis : axis + 2] = [
            [math.cos(TURN), -math.sin(TURN)],
            [math.sin(TURN), math.cos(TURN)],
        ]
        total = total @ plane
    return total


def _product_log(log_w: Array, m: int) -> Array:
    total = np.zeros(1)
    for _ in range(m):
        total = (total[:, None] + log_w[None, :]).ravel()
    return total


def _product_edge(per_axis: int, m: int, K: int) -> Array:
    edge = np.zeros(per_axis)
    edge[[0, -1]] = 1.0
    return np.asarray(_product(edge, m, K).any(axis=1))


def _hermite_roots(order: int) -> Array:
    return np.asarray(special.roots_hermitenorm(order)[0])


def _hermite_log_weights(order: int, t: Array) -> Array:
    """log w_k = -log sum_{j<order} he_j(t_k)² with he_j orthonormal for N(0, 1).

    he_{j+1} = (t he_j - sqrt(j) he_{j-1}) / sqrt(j+1); a common factor exp(scale) is split off.
    """
    before, now = np.zeros_like(t), np.ones_like(t)
    total, scale = np.ones_like(t), np.zeros_like(t)
    for j in range(order - 1):
        before, now = now, (t * now - math.sqrt(j) * before) / math.sqrt(j + 1.0)
        total += now * now
        size = np.where(total > 1e100, total, 1.0)
        shrink = 1.0 / np.sqrt(size)
        before, now, total, scale = before * shrink, now * shrink, total / size, scale + np.log(size)
    return -(np.log(total) + scale)
