"""Remarks on the two documents, each with a demonstration in numbers where there is one."""

# notation: N observations, n data, m latent; D the derivation, E the exercises

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from refica.decoders import MLP, Decoder, Polynomial
from refica.likelihood import Nodes
from refica.marginal import density, log_likelihood
from refica.model import NonlinearICA
from refica.quadrature import FixedNodes, Quadrature
from refica.rules import uniform_grid
from refica.validation import Array
from refica.verify import formulas
from refica.verify.cases import grid_nodes, worked_example
from refica.verify.findings import Remark
from refica.verify.routes import along

__all__ = ["remarks"]

SAME = 1e-9
"""Relative difference of two values of log p(x), summed over different nodes, that are the same number."""


def remarks() -> Iterator[Remark]:
    """Yield the remarks."""
    yield _unbounded()
    yield _another_maximiser()
    yield _descent()
    yield _sigma()
    yield _clash()
    yield _exchange()
    yield _orthogonal()
    yield _nonlinear()
    yield Remark(
        "distributions",
        "g_θ is a family of functions",
        "E, before (4); D, Marginal Density and Inference",
        "The documents call g_θ a family of deep neural network distributions. It is a family of functions "
        "from R^m to R^n; a distribution arises only with N(0, I) for Z and the noise around g_θ(Z).",
        (),
        (),
        True,
    )


def _unbounded() -> Remark:
    rng = np.random.default_rng(40)
    x = rng.standard_normal((1000, 2))
    decoder = MLP((1, 2), "identity")
    theta = np.concatenate([np.zeros(2), x[0]])
    rows, confirmed = [], True
    for sigma2 in (1e-2, 1e-4, 1e-8):
        total = density(NonlinearICA(decoder, theta, sigma2), x, gradient=False).total
        least = (2.0 * math.pi * sigma2) ** -1.0
        rows.append((f"{sigma2:g}", f"{total:.4g}", f"{least:.4g}"))
        confirmed &= total >= least * (1.0 - 1e-12)
    return Remark(
        "unbounded",
        "The sum of densities has no maximum",
        "E(4); D, Marginal Density and Inference",
        "The objective is written as a sum of densities, Σ p(x_i), not as the likelihood Π p(x_i) or its "
        "logarithm. Over (θ, σ²) that sum is unbounded: with weights 0 and the output bias at x_1 it is at "
        'least (2πσ²)^(-n/2), which grows without end as σ² falls. "Maximum likelihood" needs Σ log p(x_i).',
        ("σ²", "Σ p(x_i), N = 1000, n = 2", "(2πσ²)^(-n/2)"),
        tuple(rows),
        confirmed,
    )


def _another_maximiser() -> Remark:
    x, sigma2 = np.array([[0.0], [0.2], [3.0]]), 0.25
    decoder = Polynomial(1, 1, 0)
    mean = float(x.mean())
    grid = np.linspace(-1.0, 4.0, 50_001)
    sums = np.exp(-((x[:, 0] - grid[:, None]) ** 2) / (2.0 * sigma2)).sum(axis=1)
    best = float(grid[sums.argmax()])
    rows, by = [], {}
    for words, b in (("its mean, the MLE", mean), ("the maximiser of Σ p", best)):
        model = NonlinearICA(decoder, [b], sigma2)
        log_p = log_likelihood(model, x).gradient
        p = density(model, x)
        assert log_p is not None  # it was asked for
        assert p.gradient is not None
        by[words] = float(log_p.theta[0]), float(p.gradient.theta[0])
        rows.append((f"{b:.4f}, {words}", f"{p.total:.4f}", f"{by[words][1]:.3g}", f"{by[words][0]:.3g}"))
    at_mean, at_best = by.values()
    confirmed = abs(at_mean[0]) < 1e-9 < 0.01 < abs(at_mean[1]) and abs(at_best[1]) < 1e-3 < 1.0 < abs(
        at_best[0]
    )
    return Remark(
        "another-maximiser",
        "At a fixed σ² it has a maximum, but not at the MLE",
        "E(4); D, Marginal Density and Inference",
        "For a constant decoder g = b and observations 0, 0.2, 3 with σ² = 0.25 the MLE of b is their mean. "
        "The sum of densities is largest near the two observations that lie together, and the third hardly "
        "counts: where one of the gradients is 0 the other is not.",
        ("b", "Σ p(x_i)", "∂ Σ p / ∂b", "∂ Σ log p / ∂b"),
        tuple(rows),
        confirmed,
    )


def _descent() -> Remark:
    model, x = worked_example("tanh", 0.1)
    here = log_likelihood(model, x, _nodes())
    assert here.gradient is not None  # it was asked for
    rows, moved = [], {}
    for words, sign in (("ascent, + gradient", 1.0), ("descent, - gradient", -1.0)):
        there = model.replace(theta=model.theta + sign * 1e-3 * here.gradient.theta)
        moved[sign] = log_likelihood(there, x, _nodes(), gradient=False).total - here.total
        rows.append((words, f"{moved[sign]:+.4g}"))
    return Remark(
        "descent",
        '"Gradient descent" must be ascent',
        "D, last paragraph",
        "The objective is maximised, so each step goes along +∇ℓ (or the sign of the objective is changed): "
        "a step of length 0.001 |∇ℓ| against the gradient lowers ℓ.",
        ("step", "change of ℓ"),
        tuple(rows),
        moved[1.0] > 0.0 > moved[-1.0],
    )


def _sigma() -> Remark:
    model, x = worked_example("tanh", 0.1)
    gradient = log_likelihood(model, x, _nodes()).gradient
    assert gradient is not None  # it was asked for
    sigma = math.sqrt(model.sigma2)
    by_sigma, _ = along(
        lambda s: (
            log_likelihood(
                model.replace(sigma2=float(s[0]) ** 2 * model.sigma2), x, _nodes(), gradient=False
            ).total
        ),
        np.ones(1),
        np.ones(1) / sigma,
    )
    rows = (
        ("∂ℓ/∂σ², as D derives it", f"{gradient.sigma2:.6f}"),
        ("2σ ∂ℓ/∂σ²", f"{2.0 * sigma * gradient.sigma2:.6f}"),
        ("∂ℓ/∂σ by differences", f"{by_sigma:.6f}"),
    )
    confirmed = abs(by_sigma / (2.0 * sigma * gradient.sigma2) - 1.0) < 1e-6
    return Remark(
        "sigma",
        "The maximum is over σ, the gradient in σ²",
        "E(4); D, Gradient w.r.t. σ²",
        "ℓ(θ, σ) is maximised over σ while ∇_σ² ℓ is derived. The stationary points are the same, but not "
        "the numbers, nor the steps of an ascent: ∂ℓ/∂σ = 2σ ∂ℓ/∂σ². refica's parameter is σ² everywhere.",
        ("derivative", "worked example, σ² = 0.1"),
        rows,
        confirmed,
    )


def _clash() -> Remark:
    model, _ = worked_example("tanh", 0.1)
    x = model.sample(5, 41)[1]
    z, log_weight = grid_nodes(1)
    squared = formulas.squared_norm(formulas.residuals(x, model.decoder(model.theta, z)))
    log_joint = formulas.log_joint(x, z, model.decoder(model.theta, z), model.sigma2) + log_weight
    rho = np.exp(log_joint - np.log(np.exp(log_joint).sum(axis=1, keepdims=True)))

    def gradient(n: int) -> float:
        return float((rho * (-n + squared / model.sigma2)).sum()) / (2.0 * model.sigma2)

    found = log_likelihood(model, x, _nodes()).gradient
    assert found is not None  # it was asked for
    rows = (
        ("n = 2, the dimension of X", f"{gradient(2):.6f}"),
        ("n = 5, the number of observations", f"{gradient(5):.6f}"),
        ("refica", f"{found.sigma2:.6f}"),
    )
    confirmed = abs(found.sigma2 - gradient(2)) < 1e-8 * abs(gradient(2)) < abs(found.sigma2 - gradient(5))
    return Remark(
        "clash-of-n",
        "n counts two things",
        "E(4), the sum to n; D writes k for the observations",
        "In E, X is in R^n and the observations are x_1 to x_n. In the gradient in σ², -n + ‖x - g‖²/σ² has "
        "the dimension of X. Whoever reads E's n there gets another gradient unless both are equal.",
        ("n in ∂ℓ/∂σ², five observations", "value"),
        rows,
        confirmed,
    )


def _exchange() -> Remark:
    model, x = worked_example("tanh", 0.1)
    decoder, theta, sigma = model.decoder, model.theta, math.sqrt(model.sigma2)
    bound = (2.0 * math.pi * model.sigma2) ** (-x.shape[1] / 2.0) * math.exp(-0.5) / sigma
    rows, values = [], []
    for radius in (2.0, 4.0, 6.0, 8.0):
        z = np.arange(-radius, radius, 0.04) + 0.02
        norm = np.array([_jacobian_norm(decoder, theta, each) for each in z[:, None]])
        values.append(bound * float((norm * np.exp(-0.5 * z * z)).sum()) * 0.04 / math.sqrt(2.0 * math.pi))
        rows.append((f"{radius:g}", f"{values[-1]:.10f}"))
    return Remark(
        "exchange",
        "∇ and ∫ are exchanged without a word",
        "D, line 1 of both gradients",
        "Dominated convergence allows it. Since r exp(-r²/2σ²) <= σ exp(-½), |∇_θ φ(x; g_θ(z), σ²I)| is at "
        "most (2πσ²)^(-n/2) exp(-½) ‖J_θ(z)‖/σ, whatever x; so it is enough that E sup ‖J_θ'(Z)‖ over a "
        "neighbourhood of θ is finite. J grows like a polynomial in z for the networks and polynomials here, "
        "so it is; a decoder such as exp(z²) would not do. In σ² the derivative of φ is bounded by itself.",
        ("R", "integral of the bound over |z| <= R"),
        tuple(rows),
        abs(values[-1] - values[-2]) < 1e-6 * values[-1],
    )


def _jacobian_norm(decoder: Decoder, theta: Array, z: Array) -> float:
    rows = [decoder.vjp(theta, z[None], c[None])[0] for c in np.eye(decoder.data_dim)]
    return float(np.linalg.norm(rows))


def _nodes() -> FixedNodes:
    nodes = grid_nodes(1)
    return FixedNodes(nodes.z, nodes.log_weight)


def _plane() -> tuple[NonlinearICA, Array, Nodes]:
    rng = np.random.default_rng(42)
    decoder = MLP((2, 3, 3), "tanh")
    model = NonlinearICA(decoder, 0.5 * decoder.init(rng), 0.5)
    return (
        model,
        model.sample(3, rng)[1],
        Nodes(*Quadrature(uniform_grid(121, 8.0)).nodes(model, np.zeros((1, 3)))),
    )


def _log_p_of(g: Array, model: NonlinearICA, x: Array, nodes: Nodes) -> Array:
    """log p(x_i) (N,) of a decoder with the values g (K, n) at the nodes, by the formulas."""
    terms = formulas.log_joint(x, nodes.z, g, model.sigma2) + nodes.log_weight
    return np.log(np.exp(terms).sum(axis=1))


def _orthogonal() -> Remark:
    model, x, nodes = _plane()
    turn = np.array([[math.cos(0.8), -math.sin(0.8)], [math.sin(0.8), math.cos(0.8)]])
    theta = model.theta.copy()
    theta[:6] = (theta[:6].reshape(3, 2) @ turn).ravel()
    plain = log_likelihood(model, x, FixedNodes(*nodes), gradient=False).per_observation
    turned = log_likelihood(model.replace(theta=theta), x, FixedNodes(*nodes), gradient=False).per_observation
    off = float(np.abs(plain - turned).max())
    moved = float(np.linalg.norm(theta - model.theta))
    rows = tuple((f"{a:.12f}", f"{b:.12f}") for a, b in zip(plain, turned, strict=True))
    return Remark(
        "orthogonal",
        "Latents are determined up to a rotation at best",
        'E(1): "independent marginals"; D, Problem Setup',
        "Z and Q Z have the same law for every orthogonal Q, so g(z) and g(Q z) give X the same law: with "
        f"other weights (at distance {moved:.2f} in θ) log p(x) is the same. This is why recovered latents "
        "are compared after the best orthogonal map.",
        ("log p(x) of g(z)", "log p(x) of g(Q z)"),
        rows,
        off <= SAME * float(np.abs(plain).max()) and moved > 0.1,
    )


def _nonlinear() -> Remark:
    model, x, nodes = _plane()
    # the twisted integrand bends faster: a finer grid sees it through
    fine = Nodes(*Quadrature(uniform_grid(321, 8.0)).nodes(model, np.zeros((1, 3))))
    squared = (fine.z**2).sum(axis=1)
    c, s = np.cos(0.4 * squared), np.sin(0.4 * squared)
    twisted_z = np.stack([c * fine.z[:, 0] - s * fine.z[:, 1], s * fine.z[:, 0] + c * fine.z[:, 1]], axis=1)
    plain = _log_p_of(model.decoder(model.theta, nodes.z), model, x, nodes)
    twisted = _log_p_of(model.decoder(model.theta, twisted_z), model, x, fine)
    mass = np.exp(fine.log_weight) * formulas.normal(fine.z, 0.0, 1.0)
    spread = float(mass @ twisted_z[:, 0] ** 2)
    bent = float(mass @ np.abs(twisted_z - fine.z).max(axis=1))
    off = float(np.abs(plain - twisted).max())
    rows = tuple((f"{a:.12f}", f"{b:.12f}") for a, b in zip(plain, twisted, strict=True))
    confirmed = off <= SAME * float(np.abs(plain).max()) and abs(spread - 1.0) < 1e-9 and bent > 0.1
    return Remark(
        "nonlinear",
        "and not even that far: nonlinear maps preserve N(0, I) too",
        'E(1); D, "nonlinear ICA model"',
        "T turns the plane by the angle 0.4 ‖z‖²: it keeps ‖z‖ and areas, and so N(0, I), but is no linear "
        "map. g and g∘T give the same law of X. So nothing in the data speaks for the latents of one rather "
        "than the other; what singles out a solution is the family g_θ.",
        ("log p(x) of g(z)", "log p(x) of g(T(z))"),
        rows,
        confirmed,
    )
