"""The integrals of `benchmarks.accuracy`, and what they are in truth, by routes of their own.

Every decoder is separable in disguise: with orthogonal R and Q, g(z) = Q (g_1(y_1), .., g_m(y_m)), y = R z,
so that log p(x) is the sum of m integrals over a line, for any m. No rule knows of R.
"""

# notation: y = R z are the coordinates that separate the decoder; w, c, v the weights of its units

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import refica as ri

# Units (w, c, v) of g_j(y) = Σ v f(w y + c): rising for one mode, nearly even for two.
UNITS = {
    ("tanh", 1): ((0.8, 0.2, 1.5), (1.6, -0.8, 0.6), (1.0, 0.9, 0.5), (0.5, -0.3, 0.8)),
    ("tanh", 2): ((1.5, -1.5, 3.0), (-1.5, -1.5, 2.9), (0.7, -0.4, 0.5), (-0.7, -0.4, 0.5)),
    ("relu", 1): ((1.0, 0.6, 1.2), (-1.0, 0.1, -0.8), (1.3, -0.7, -0.5), (-0.7, -0.5, -0.6)),
    ("relu", 2): ((1.0, -0.3, 4.0), (-1.0, -0.3, 3.9), (1.0, -1.1, 0.8), (-1.0, -1.1, 0.8)),
}
SIGMA2 = (1.0, 1e-2, 1e-4)
DIMENSIONS = (1, 2, 3, 4)

HEIGHT = (0.45, -0.4, 0.3, 0.7)
"""y at the observation; HEIGHT_OF_TWO on the axis with two modes. The kinks of relu are near."""
HEIGHT_OF_TWO = 1.2
NOISE = (0.5, -0.8, 0.3, -0.4)
"""The observation less g, in σ."""

STEP = {1: 0.1, 2: 0.1, 3: 0.12, 4: 0.25}
"""Longest step of the brute-force trapezoidal rule for tanh, by m; and at most half a posterior sd."""
ORDER = {1: 20, 2: 20, 3: 12, 4: 10}
"""Gauss-Legendre nodes per panel of the brute-force rule for relu, by m."""
DEPTH = {1: 40.0, 2: 40.0, 3: 40.0, 4: 28.0}
"""It leaves out, on each axis, what is exp(-DEPTH) of the peak."""
PANEL = 5.0
"""Its panels are no longer than so many posterior standard deviations."""
SEPARATE = math.log(10.0)
"""Nats below the highest mode at which another one no longer counts."""
WIDTH = {1: 1e-11, 2: 1e-4}
"""Width asked of proved bounds on the whole integral, by m."""


class Integral(NamedTuple):
    """A model, one observation x (n,), log p(x), and what other routes say of it: differences to it."""

    name: str
    model: ri.NonlinearICA
    x: np.ndarray
    activation: str
    modes: int
    log_p: float
    routes: dict[str, float]


def integrals() -> Iterator[Integral]:
    """Yield all 48."""
    for case in itertools.product(("tanh", "relu"), (1, 2), DIMENSIONS, SIGMA2):
        yield integral(*case)


def integral(activation: str, modes: int, m: int, sigma2: float) -> Integral:
    """Return one of them. The truth is the sum over the lines, each exact (relu) or proved (tanh)."""
    rng = np.random.default_rng([m, modes])
    R, Q = (np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(2))
    lines = [_line(activation, modes if j == 0 else 1, j, sigma2) for j in range(m)]
    heights = np.array([HEIGHT_OF_TWO if modes == 2 else HEIGHT[0], *HEIGHT[1:m]])
    x = np.array(
        [line.decoder(line.theta, y[None, None])[0, 0] for line, y in zip(lines, heights, strict=True)]
    )
    x = x + math.sqrt(sigma2) * np.array(NOISE[:m])
    decoder = ri.MLP((m, 4 * m, m), activation)
    theta = np.zeros(decoder.n_params)
    (W1, b1), (W2, _) = decoder.unpack(theta)
    for j, line in enumerate(lines):
        (w, c), (v, _) = line.decoder.unpack(line.theta)
        rows = slice(4 * j, 4 * j + 4)
        W1[rows], b1[rows], W2[:, rows] = w * R[j], c, np.outer(Q[:, j], v)
    model = ri.NonlinearICA(decoder, theta, sigma2)
    log_p, proved = _sum_of_lines(lines, x)
    routes = {
        "sum of lines": proved,
        "product rule": _by_product(model, lines, x, Q @ x, R) - log_p,
        **_whole(model, Q @ x, log_p),
    }
    _check_modes(lines[0], x[0], modes)
    name = f"{activation}, {modes} mode{'s' * (modes > 1)}, m = {m}, sigma2 = {sigma2:g}"
    return Integral(name, model, Q @ x, activation, modes, log_p, routes)


def _line(activation: str, modes: int, j: int, sigma2: float) -> ri.NonlinearICA:
    """The decoder of axis j, a little steeper with each."""
    w, c, v = np.array(UNITS[activation, modes]).T
    decoder = ri.MLP((1, 4, 1), activation)
    return ri.NonlinearICA(decoder, np.concatenate([w * (1.0 + 0.1 * j), c, v, [0.0]]), sigma2)


def _sum_of_lines(lines: list[ri.NonlinearICA], x: np.ndarray) -> tuple[float, float]:
    """log p(x), and how far it may be off: by half the width of the bounds, or by rounding, which for
    relu the bounds have to agree with."""
    value = doubt = 0.0
    for line, one in zip(lines, x[:, None], strict=True):
        bounds = ri.certified_bounds(line, [one], 1e-12)
        low, high = float(bounds.lower[0]), float(bounds.upper[0])
        if "relu" in line.decoder.activation.name:
            exact = ri.log_likelihood(line, [one], ri.ExactPiecewiseAffine(), gradient=False)
            if not low - exact.error[0] <= exact.total <= high + exact.error[0]:
                raise ArithmeticError(f"exact {exact.total} is not in [{low}, {high}]")
            value, doubt = value + exact.total, doubt + float(exact.error[0])
        else:
            value, doubt = value + 0.5 * (low + high), doubt + 0.5 * (high - low)
    return value, doubt


def _by_product(
    model: ri.NonlinearICA, lines: list[ri.NonlinearICA], x: np.ndarray, turned: np.ndarray, R: np.ndarray
) -> float:
    """log p(x) by a product rule along the y_j, through the whole decoder."""
    axes = [_axis(line, one, model.latent_dim) for line, one in zip(lines, x, strict=True)]
    (first, log_w), rest = axes[0], axes[1:]
    parts, others, log_others = [], np.zeros((1, 0)), np.zeros(1)
    for y, log_weight in rest:
        others = np.column_stack([np.repeat(others, len(y), axis=0), np.tile(y, len(others))])
        log_others = (log_others[:, None] + log_weight).ravel()
    for y, log_weight in zip(first, log_w, strict=True):
        z = np.column_stack([np.full(len(others), y), others]) @ R
        parts.append(np.logaddexp.reduce(model.log_joint(turned[None], z)[0] + log_others) + log_weight)
    return float(np.logaddexp.reduce(parts))


def _axis(line: ri.NonlinearICA, x: float, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and log weights on the parts of the axis where the posterior is: a trapezoidal rule for tanh,
    Gauss-Legendre on panels cut at the kinks for relu."""
    y, height = _heights(line, x)
    active = np.diff((height > height.max() - DEPTH[m]).astype(int), prepend=0, append=0)
    (w, c), _ = line.decoder.unpack(line.theta)
    t, weight = np.polynomial.legendre.leggauss(ORDER[m])
    nodes, log_weights = [], []
    for a, b in zip(y[np.flatnonzero(active == 1)], y[np.flatnonzero(active == -1) - 1], strict=True):
        sd = (b - a) / (2.0 * math.sqrt(2.0 * DEPTH[m]))
        if line.decoder.activation.name == "tanh":
            count = math.ceil((b - a) / min(0.5 * sd, STEP[m]))
            nodes.append(np.linspace(a, b, count + 1))
            log_weights.append(np.full(count + 1, math.log((b - a) / count)))
            continue
        cuts = [a, *sorted(kink for kink in -c / w[:, 0] if a < kink < b), b]
        for left, right in itertools.pairwise(cuts):
            edges = np.linspace(left, right, 1 + math.ceil((right - left) / (PANEL * sd)))
            for low, high in itertools.pairwise(edges):
                nodes.append(0.5 * (low + high) + 0.5 * (high - low) * t)
                log_weights.append(np.log(0.5 * (high - low) * weight))
    return np.concatenate(nodes), np.concatenate(log_weights)


def _heights(line: ri.NonlinearICA, x: float) -> tuple[np.ndarray, np.ndarray]:
    """log p(x, y) on a fine grid of y."""
    y = np.linspace(-9.0, 9.0, 200_001)
    return y, line.log_joint([[x]], y[:, None])[0]


def _whole(model: ri.NonlinearICA, x: np.ndarray, log_p: float) -> dict[str, float]:
    """How far log p lies outside of proved bounds on the whole integral (0: inside), where they are quick."""
    if model.latent_dim not in WIDTH:
        return {}
    bounds = ri.certified_bounds(model, x[None], WIDTH[model.latent_dim])
    slack = 1e-13 * (1.0 + abs(log_p))
    return {
        "outside proved bounds": max(float(bounds.lower[0]) - log_p, log_p - float(bounds.upper[0]), slack)
        - slack
    }


def _check_modes(line: ri.NonlinearICA, x: float, modes: int) -> None:
    """Raise unless the posterior on the first axis has as many modes as it should."""
    _, height = _heights(line, x)
    top = (
        (height[1:-1] > height[:-2]) & (height[1:-1] >= height[2:]) & (height[1:-1] > height.max() - SEPARATE)
    )
    if top.sum() != modes:
        raise ArithmeticError(f"{top.sum()} modes instead of {modes} at sigma2 = {line.sigma2}")
