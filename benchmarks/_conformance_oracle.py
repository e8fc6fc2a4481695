"""The answers of conformance cases to 60 digits: the model written a second time, in ball arithmetic.

Nothing here is refica's: the formulas are written from the definition of the model on python-flint's `arb`,
integrals are sums over Gauss-Legendre panels (m = 1) or a lattice (m = 2, 3) that were found in float64, and
derivatives are differences with a step of 1e-20, which 80 digits make exact to 1e-30: of values or, for
log p(x), of the activations, carried back through the layers and averaged over the posterior.
"""

# notation: m latent, n data, K nodes, p parameters; lists of arb in place of arrays

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flint import arb, arb_mat, ctx

__all__ = [
    "Exact",
    "Nodes",
    "affine_log_p",
    "derivatives",
    "elbo",
    "iwae",
    "lattice",
    "log_joint",
    "log_p",
    "moments",
    "monte_carlo",
    "number",
    "panels",
    "score",
]

ctx.prec = 260
STEP = arb(10) ** -20
"""Of differences: their error is of the order of its square."""

ORDER = 30
"""Of the Gauss-Legendre rule on each panel: with panels of one posterior width it is right to 1e-25."""

FORGOTTEN = 60.0
"""Nodes whose integrand is below exp(-60) of the largest are left out: 1e-26."""

RADIUS = 14.0
"""No latent beyond it matters: N(0, 1) has 1e-43 of its density there."""

SMOOTH = 0.42
"""Step of a lattice in units of the narrowest posterior width: a Gaussian is summed to exp(-110)."""

Numbers = list[arb]


class Exact(NamedTuple):
    """A network or polynomial whose parameters are a flat list of arb; ``shape`` is its description."""

    shape: dict[str, Any]
    theta: Numbers

    def __call__(self, z: Sequence[arb]) -> Numbers:
        """Return g(z)."""
        if self.shape["type"] == "polynomial":
            powers = [
                _product(u**e for u, e in zip(z, each, strict=True)) for each in self.shape["exponents"]
            ]
            count = len(powers)
            rows = [self.theta[i : i + count] for i in range(0, len(self.theta), count)]
            return [_dot(row, powers) for row in rows]
        h, start = list(z), 0
        for layer in self.shape["layers"]:
            fan_out, fan_in = np.shape(layer["weight"])
            bias = start + fan_out * fan_in
            h = [
                _activate(layer, _dot(self.theta[start + i * fan_in : start + (i + 1) * fan_in], h) + b)
                for i, b in enumerate(self.theta[bias : bias + fan_out])
            ]
            start = bias + fan_out
        return h

    def pulled_back(self, z: Sequence[arb], cotangent: Sequence[arb]) -> Numbers:
        """Return the gradient of cotangent · g(z) in the parameters."""
        if self.shape["type"] == "polynomial":
            powers = [
                _product(u**e for u, e in zip(z, each, strict=True)) for each in self.shape["exponents"]
            ]
            return [c * power for c in cotangent for power in powers]
        inputs, slopes, weights, h, start = [], [], [], list(z), 0
        for layer in self.shape["layers"]:
            fan_out, fan_in = np.shape(layer["weight"])
            bias = start + fan_out * fan_in
            rows = [self.theta[start + i * fan_in : start + (i + 1) * fan_in] for i in range(fan_out)]
            a = [_dot(row, h) + b for row, b in zip(rows, self.theta[bias : bias + fan_out], strict=True)]
            inputs.append(h)
            weights.append(rows)
            slopes.append([(_activate(layer, u + STEP) - _activate(layer, u - STEP)) / (2 * STEP) for u in a])
            h, start = [_activate(layer, u) for u in a], bias + fan_out
        found: Numbers = []
        h_bar = list(cotangent)
        for h, slope, rows in zip(reversed(inputs), reversed(slopes), reversed(weights), strict=True):
            a_bar = [u * v for u, v in zip(h_bar, slope, strict=True)]
            found = [*(u * v for u in a_bar for v in h), *a_bar, *found]
            h_bar = [_dot(a_bar, [row[j] for row in rows]) for j in range(len(h))]
        return found


def _dot(a: Sequence[arb], b: Sequence[arb]) -> arb:
    return sum((u * v for u, v in zip(a, b, strict=True)), arb(0))


def _product(factors: Any) -> arb:
    return math.prod(factors, start=arb(1))


def _activate(layer: dict[str, Any], a: arb) -> arb:
    name = layer["activation"]
    if name in ("relu", "leaky_relu"):
        return a if a > 0 else arb(layer.get("slope", 0.0)) * a
    return ACTIVATIONS[name](a)


ACTIVATIONS: dict[str, Callable[[arb], arb]] = {
    "identity": lambda a: a,
    "tanh": lambda a: a.tanh(),
    "sigmoid": lambda a: 1 / (1 + (-a).exp()),
    "softplus": lambda a: (1 + (-abs(a)).exp()).log() + max(a, arb(0)),
    "sin": lambda a: a.sin(),
    "gelu": lambda a: a * (-a / arb(2).sqrt()).erfc() / 2,
}


def number(ball: arb) -> float:
    """Return the nearest float64 of a ball, which must be narrow."""
    if not ball.rad() <= arb(10) ** -25 * (1 + abs(ball)):
        raise ArithmeticError(f"the enclosure is too wide: {ball}")
    return float(ball.mid())


def log_normal(x: Sequence[arb], mean: Sequence[arb], variance: arb) -> arb:
    """log N(x; mean, variance I)."""
    squared = sum(((u - v) ** 2 for u, v in zip(x, mean, strict=True)), arb(0))
    return -squared / (2 * variance) - len(x) * (2 * arb.pi() * variance).log() / 2


def log_joint(g: Exact, sigma2: arb, x: Sequence[arb], z: Sequence[arb]) -> arb:
    """E(2): log N(x; g(z), σ² I) + log N(z; 0, I)."""
    return log_normal(x, g(z), sigma2) + log_normal(z, [arb(0)] * len(z), arb(1))


def _log_sum(exponents: Sequence[arb], weights: Sequence[arb]) -> arb:
    top = max(float(e.mid()) for e in exponents)
    terms = (w * (e - top).exp() for e, w in zip(exponents, weights, strict=True))
    return sum(terms, arb(0)).log() + top


def monte_carlo(g: Exact, sigma2: arb, x: Sequence[arb], draws: Sequence[Sequence[arb]]) -> arb:
    """log 1/K Σ_k p(x | z_k)."""
    return _log_sum([log_normal(x, g(z), sigma2) for z in draws], [arb(1) / len(draws)] * len(draws))


# -- integrals over the latents --------------------------------------------------------------------------


class Nodes(NamedTuple):
    """Latents with weights for Lebesgue measure."""

    z: list[Numbers]
    weight: Numbers


def log_p(g: Exact, sigma2: arb, x: Sequence[arb], nodes: Nodes) -> arb:
    """E(3): log of the integral of p(x, z)."""
    return _log_sum([log_joint(g, sigma2, x, z) for z in nodes.z], nodes.weight)


def score(g: Exact, sigma2: arb, x: Sequence[arb], nodes: Nodes) -> Numbers:
    """Gradient of log p(x) in θ and σ²: that of log p(x | z), averaged over the posterior."""
    exponents = [log_joint(g, sigma2, x, z) for z in nodes.z]
    total = _log_sum(exponents, nodes.weight)
    by_theta, by_sigma2 = [arb(0)] * len(g.theta), arb(0)
    for e, w, z in zip(exponents, nodes.weight, nodes.z, strict=True):
        share = w * (e - total).exp()
        r = [u - v for u, v in zip(x, g(z), strict=True)]
        pulled = g.pulled_back(z, [share * u / sigma2 for u in r])
        by_theta = [u + v for u, v in zip(by_theta, pulled, strict=True)]
        by_sigma2 += share * (_dot(r, r) / sigma2 - len(x)) / (2 * sigma2)
    return [*by_theta, by_sigma2]


def moments(g: Exact, sigma2: arb, x: Sequence[arb], nodes: Nodes) -> tuple[Numbers, list[Numbers]]:
    """Mean and covariance of p(z | x)."""
    exponents = [log_joint(g, sigma2, x, z) for z in nodes.z]
    total = _log_sum(exponents, nodes.weight)
    share = [w * (e - total).exp() for e, w in zip(exponents, nodes.weight, strict=True)]
    m = len(nodes.z[0])
    mean = [_dot(share, [z[i] for z in nodes.z]) for i in range(m)]

    def centred(i: int, j: int) -> arb:
        return _dot(share, [(z[i] - mean[i]) * (z[j] - mean[j]) for z in nodes.z])

    return mean, [[centred(i, j) for j in range(m)] for i in range(m)]


LogJoint = Callable[[np.ndarray], np.ndarray]
"""log p(x, z) of one observation in float64, (K, m) -> (K,): finds where the nodes are needed, no more."""


def panels(rough: LogJoint, width: LogJoint, kinks: Sequence[float], pieces: int = 1) -> Nodes:
    """Gauss-Legendre panels where the integrand matters, cut at kinks, for m = 1.

    ``width`` is the width 1/sqrt(1 + |J|²/σ²) of the posterior at z, ``pieces`` the panels for each such.
    """
    z = np.linspace(-RADIUS, RADIUS, 2**17 + 1)
    value = rough(z[:, None])
    active = value > value.max() - FORGOTTEN
    passed = np.concatenate([[0.0], np.cumsum(pieces / width(z[:, None])[1:] * np.diff(z))])
    passed += 1e-9 * np.arange(len(z))  # strictly increasing, to be inverted
    edges: list[tuple[float, float]] = []
    starts = np.flatnonzero(active & ~np.append(False, active[:-1]))
    ends = np.flatnonzero(active & ~np.append(active[1:], False))
    for first, last in zip(np.maximum(starts - 1, 0), np.minimum(ends + 1, len(z) - 1), strict=True):
        count = 1 + math.ceil(passed[last] - passed[first])
        cuts = np.interp(np.linspace(passed[first], passed[last], count + 1), passed, z)
        inside = [kink for kink in kinks if z[first] < kink < z[last]]
        edges += itertools.pairwise(sorted({*map(float, cuts), *inside}))
    rule = [arb.legendre_p_root(ORDER, i, weight=True) for i in range(ORDER)]
    found = Nodes([], [])
    for a, b in edges:
        half, middle = (arb(b) - arb(a)) / 2, (arb(a) + arb(b)) / 2
        found.z.extend([middle + half * t] for t, _ in rule)
        found.weight.extend(half * w for _, w in rule)
    return found


def lattice(rough: LogJoint, m: int, step: float) -> Nodes:
    """Those points of a lattice about 0 at which the integrand matters."""
    axis = step * np.arange(-math.ceil(RADIUS / step), math.ceil(RADIUS / step) + 1)
    z = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    value = rough(z)
    keep = z[value > value.max() - FORGOTTEN]
    return Nodes([[arb(u) for u in row] for row in keep.tolist()], [arb(step) ** m] * len(keep))


def affine_log_p(g: Exact, sigma2: arb, x: Sequence[arb], m: int) -> arb:
    """log N(x; b, W Wᵀ + σ² I), the closed form of an affine decoder's marginal."""
    n = len(x)
    b = g([arb(0)] * m)
    columns = [[v - c for v, c in zip(g(_unit(j, m)), b, strict=True)] for j in range(m)]
    rows = [[_dot([w[i] for w in columns], [w[j] for w in columns]) for j in range(n)] for i in range(n)]
    C = arb_mat([[rows[i][j] + (sigma2 if i == j else 0) for j in range(n)] for i in range(n)])
    r = arb_mat([[u - v] for u, v in zip(x, b, strict=True)])
    quadratic = (r.transpose() * C.solve(r))[0, 0]
    return -(quadratic + C.det().log() + n * (2 * arb.pi()).log()) / 2


def _unit(j: int, m: int) -> Numbers:
    return [arb(int(i == j)) for i in range(m)]


# -- the variational side ---------------------------------------------------------------------------------


class _Drawn(NamedTuple):
    mu: Numbers
    log_s2: Numbers
    z: list[Numbers]


def _drawn(encoder: Exact, x: Sequence[arb], noise: Sequence[Sequence[arb]]) -> _Drawn:
    outputs = encoder(x)
    m = len(outputs) // 2
    mu, log_s2 = outputs[:m], outputs[m:]
    z = [[u + (v / 2).exp() * e for u, v, e in zip(mu, log_s2, epsilon, strict=True)] for epsilon in noise]
    return _Drawn(mu, log_s2, z)


def elbo(g: Exact, encoder: Exact, sigma2: arb, x: Sequence[arb], noise: Sequence[Sequence[arb]]) -> arb:
    """Mean over the draws of log p(x | z), less KL(q ‖ N(0, I)); ``noise`` (L, m) is that of x."""
    mu, log_s2, z = _drawn(encoder, x, noise)
    reconstruction = sum((log_normal(x, g(each), sigma2) for each in z), arb(0)) / len(z)
    kl = sum((u**2 + v.exp() - 1 - v for u, v in zip(mu, log_s2, strict=True)), arb(0)) / 2
    return reconstruction - kl


def iwae(g: Exact, encoder: Exact, sigma2: arb, x: Sequence[arb], noise: Sequence[Sequence[arb]]) -> arb:
    """log of the mean over the draws of p(x, z) / q(z | x)."""
    mu, log_s2, z = _drawn(encoder, x, noise)

    def log_q(each: Numbers) -> arb:
        axes = zip(each, mu, log_s2, strict=True)
        return sum((log_normal([u], [c], v.exp()) for u, c, v in axes), arb(0))

    log_w = [log_joint(g, sigma2, x, each) - log_q(each) for each in z]
    return _log_sum(log_w, [arb(1) / len(z)] * len(z))


def derivatives(f: Callable[[Numbers], arb], at: Sequence[arb]) -> Numbers:
    """∂f/∂a_j by central differences, which the digits make as good as exact."""

    def shifted(j: int, by: arb) -> arb:
        return f([a + by if i == j else a for i, a in enumerate(at)])

    return [(shifted(j, STEP) - shifted(j, -STEP)) / (2 * STEP) for j in range(len(at))]
