"""The answers of conformance cases by two routes that share nothing: 60 digits and refica in float64."""

# notation: N observations, n data, m latent, K nodes

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mpmath
import numpy as np
from flint import arb

import refica as ri
from benchmarks import _conformance_oracle as oracle
from refica.testing.conformance.case import Case, case_from
from refica.testing.conformance.own import Refica, model_of
from refica.validation import Array

__all__ = ["OWN", "TRUTHS", "Truth", "is_kinked", "rough_log_joint", "widths"]

OWN = Refica(ri.Reference(rtol=1e-13))
"""Route two."""

NODES = {1: "Gauss-Legendre panels, 60 digits", 2: "lattice, 60 digits"}

FINER = {1: (1.4, 1.8), 2: (1.2, 1.5), 3: (0.8, 1.0)}
"""How much finer the nodes of log p(x) are than those of gradients, twice, by m: both must agree to 1e-16."""


class Truth(NamedTuple):
    """Answers by quantity, and the size of the terms that each sums."""

    value: dict[str, Array]
    scale: dict[str, float]
    route: str


def is_kinked(case: Case) -> bool:
    """Whether the decoder has kinks."""
    layers = getattr(case.model.decoder, "layers", ()) if case.model else ()
    return any(layer.activation in ("relu", "leaky_relu") for layer in layers)


def is_affine(case: Case) -> bool:
    """Whether the decoder is a network without any activation."""
    layers = getattr(case.model.decoder, "layers", ()) if case.model else ()
    return bool(layers) and all(layer.activation == "identity" for layer in layers)


def exact(case: Case) -> tuple[oracle.Exact, arb]:
    """Return decoder and σ² in balls: the float64 numbers as they are."""
    return exact_map(case.document["model"]["decoder"], case.model.decoder.theta), arb(case.model.sigma2)


def exact_map(shape: dict[str, Any], theta: Array) -> oracle.Exact:
    """Return a map in balls."""
    return oracle.Exact(shape, list(map(arb, theta.tolist())))


def balls(array: Any) -> Any:
    """Return nested lists of floats as balls."""
    return [balls(entry) for entry in array] if np.ndim(array) else arb(float(array))


def numbers(nested_balls: Any) -> Array:
    """Return nested lists of balls as float64."""
    if isinstance(nested_balls, list):
        return np.array([numbers(entry) for entry in nested_balls])
    return np.float64(oracle.number(nested_balls))


def decoder_truth(case: Case) -> Truth:
    """g(z_k)."""
    g, _ = exact(case)
    return Truth({"g": numbers([g(z) for z in balls(case.z)])}, {}, "60 digits")


def decoder_gradient_truth(case: Case) -> Truth:
    """Gradient of Σ_k c_k · g(z_k), by differences."""
    g, _ = exact(case)
    z, c = balls(case.z), balls(case.cotangent)

    def product(theta: list[arb], points: list[list[arb]]) -> arb:
        pairs = zip(points, c, strict=True)
        return sum((oracle._dot(row, g._replace(theta=theta)(u)) for u, row in pairs), arb(0))

    by_theta = oracle.derivatives(lambda theta: product(theta, z), g.theta)
    m = len(z[0])
    flat = list(itertools.chain(*z))
    by_z = oracle.derivatives(lambda u: product(g.theta, [u[i : i + m] for i in range(0, len(u), m)]), flat)
    value = {"theta": numbers(by_theta), "z": numbers(by_z).reshape(-1, m)}
    return Truth(value, {}, "differences in 80 digits")


def log_joint_truth(case: Case) -> Truth:
    """log p(x_i, z_k)."""
    g, sigma2 = exact(case)
    rows = [[oracle.log_joint(g, sigma2, x, z) for z in balls(case.z)] for x in balls(case.x)]
    scale = {"log_joint": 1e5} if case.kind == "offset" else {}
    return Truth({"log_joint": numbers(rows)}, scale, "60 digits")


def monte_carlo_truth(case: Case) -> Truth:
    """log 1/K Σ_k p(x_i | z_k)."""
    g, sigma2 = exact(case)
    values = [oracle.monte_carlo(g, sigma2, x, balls(case.z)) for x in balls(case.x)]
    return Truth({"log_p": numbers(values)}, {}, "60 digits")


def log_p_of(case: Case, i: int) -> tuple[Callable[[list[arb], arb], arb], oracle.Nodes | None, str]:
    """Return log p(x_i) as a function of θ and σ², its nodes if it is not a closed form, and its name."""
    g, _ = exact(case)
    x, m = balls(case.x[i]), case.model.latent_dim
    if is_affine(case):
        return lambda t, s: oracle.affine_log_p(g._replace(theta=t), s, x, m), None, "closed form, 60 digits"
    nodes = nodes_for(case, i)
    return lambda t, s: oracle.log_p(g._replace(theta=t), s, x, nodes), nodes, NODES[min(m, 2)]


def nodes_for(case: Case, i: int, finer: float = 1.0) -> oracle.Nodes:
    """Return nodes that resolve the posterior of x_i."""
    model = model_of(case)
    rough = rough_log_joint(case, i)
    if model.latent_dim == 1:
        pieces = 1 + round(2.5 * (finer - 1.0))  # 2 and 3 with `FINER`
        return oracle.panels(rough, lambda z: widths(model, z), kinks(case), pieces)
    z = np.random.default_rng(0).standard_normal((4000, model.latent_dim)) * 2.0
    return oracle.lattice(rough, model.latent_dim, oracle.SMOOTH / finer * widths(model, z).min())


def rough_log_joint(case: Case, i: int) -> oracle.LogJoint:
    """log p(x_i, z) in float64, in blocks."""
    model, x = model_of(case), case.x[i : i + 1]
    return lambda z: np.concatenate(
        [model.log_joint(x, part)[0] for part in np.array_split(z, 1 + len(z) // 2**16)]
    )


def widths(model: ri.NonlinearICA, z: Array) -> Array:
    """1/sqrt(1 + max_l |∂g/∂z_l|² m / σ²) at z (K, m)."""
    still, m = np.zeros(len(model.theta)), z.shape[1]
    squares = [
        (model.decoder.jvp(model.theta, z, still, np.broadcast_to(np.eye(m)[axis], z.shape)) ** 2).sum(axis=1)
        for axis in range(m)
    ]
    return 1.0 / np.sqrt(1.0 + m * np.max(squares, axis=0) / model.sigma2)


def kinks(case: Case) -> list[float]:
    """Where the hidden units of a relu net with one hidden layer and one latent have their kinks."""
    if not is_kinked(case):
        return []
    first, _ = case.model.decoder.layers
    return (-first.bias / first.weight[:, 0]).tolist()


def log_marginal_truth(case: Case) -> Truth:
    """log p(x_i), on fine nodes and again on finer ones."""
    g, sigma2 = exact(case)
    values = []
    for i in range(len(case.x)):
        if is_affine(case):
            values.append(log_p_of(case, i)[0](g.theta, sigma2))
            route = "closed form, 60 digits"
            continue
        x, route = balls(case.x[i]), NODES[min(case.model.latent_dim, 2)]
        finer = [nodes_for(case, i, by) for by in FINER[case.model.latent_dim]]
        once, again = (oracle.log_p(g, sigma2, x, nodes) for nodes in finer)
        values.append(again)
        if not abs(again - once) < 1e-16 * (1 + abs(again)):
            raise ArithmeticError(f"{case}: finer nodes differ by {abs(again - once)}")
    return Truth({"log_p": numbers(values)}, {}, route)


def gradient_truth(case: Case) -> Truth:
    """Σ_i log p(x_i) and its gradient."""
    log_p, by, scale, route = _log_p_and_gradients(case)
    value = {"value": np.sum(log_p), "theta": by[:, :-1].sum(axis=0), "sigma2": by[:, -1].sum()}
    return Truth(value, {"theta": scale[:, 0].sum(), "sigma2": scale[:, 1].sum()}, route)


def density_truth(case: Case) -> Truth:
    """Σ_i p(x_i) and its gradient."""
    log_p, by, scale, route = _log_p_and_gradients(case)
    p = np.exp(log_p)
    value = {"value": np.sum(p), "theta": p @ by[:, :-1], "sigma2": p @ by[:, -1]}
    return Truth(value, {"theta": p @ scale[:, 0], "sigma2": p @ scale[:, 1]}, route)


def _log_p_and_gradients(case: Case) -> tuple[Array, Array, Array, str]:
    """log p(x_i) (N,), its gradient (N, p + 1), and the size of what θ's and σ²'s sum (N, 2)."""
    g, sigma2 = exact(case)
    rows = []
    for i in range(len(case.x)):
        log_p, nodes, route = log_p_of(case, i)
        value = log_p(g.theta, sigma2)
        if nodes is None:
            by = oracle.derivatives(lambda a, f=log_p: f(a[:-1], a[-1]), [*g.theta, sigma2])
        else:
            by = oracle.score(g, sigma2, balls(case.x[i]), nodes)
        rows.append((oracle.number(value), numbers(by), sizes(case, i)))
    return *(np.array(column) for column in zip(*rows, strict=True)), route


def sizes(case: Case, i: int) -> Array:
    """E ‖J_θᵀ (x - g)‖_∞ / σ² and E(‖x - g‖²/σ² + n) / 2σ² over the posterior, roughly: (2,)."""
    model, x = model_of(case), case.x[i]
    z = ri.posterior(model, x[None], OWN.integrator).sample(200, 0)[:, 0]
    by_theta, by_sigma2 = [], []
    for point in z:
        r = x - model.decoder(model.theta, point[None])[0]
        by_theta.append(np.abs(model.decoder.vjp(model.theta, point[None], r[None])[0]).max() / model.sigma2)
        by_sigma2.append((r @ r / model.sigma2 + len(x)) / (2.0 * model.sigma2))
    return np.array([np.mean(by_theta), np.mean(by_sigma2)])


def posterior_truth(case: Case) -> Truth:
    """Mean and covariance of p(z | x_i): moments on nodes."""
    g, sigma2 = exact(case)
    means, covariances = [], []
    for i in range(len(case.x)):
        nodes = nodes_for(case, i)
        mean, covariance = oracle.moments(g, sigma2, balls(case.x[i]), nodes)
        means.append(mean)
        covariances.append(covariance)
    value = {"mean": numbers(means), "covariance": numbers(covariances)}
    variance = max(float(np.trace(each)) for each in value["covariance"])
    scale = {"mean": math.sqrt(variance), "covariance": variance}
    return Truth(value, scale, "Gauss-Legendre panels or lattice, 60 digits")


def elbo_truth(case: Case) -> Truth:
    """ELBO(x_i)."""
    return Truth({"elbo": numbers(_each_bound(case, oracle.elbo))}, {}, "60 digits")


def iwae_truth(case: Case) -> Truth:
    """IWAE(x_i)."""
    return Truth({"iwae": numbers(_each_bound(case, oracle.iwae))}, {}, "60 digits")


def _each_bound(case: Case, bound: Callable[..., arb], at: Sequence[arb] | None = None) -> list[arb]:
    g, sigma2 = exact(case)
    encoder = exact_map(case.document["encoder"], case.encoder.theta)
    if at is not None:
        p = len(g.theta)
        g, sigma2, encoder = g._replace(theta=at[:p]), at[p], encoder._replace(theta=at[p + 1 :])
    return [bound(g, encoder, sigma2, balls(x), balls(case.noise[:, i])) for i, x in enumerate(case.x)]


def elbo_gradient_truth(case: Case) -> Truth:
    """Σ_i ELBO(x_i) and its gradient, by differences."""
    g, sigma2 = exact(case)
    phi = exact_map(case.document["encoder"], case.encoder.theta).theta

    def total(at: Sequence[arb]) -> arb:
        return sum(_each_bound(case, oracle.elbo, at), arb(0))

    at = [*g.theta, sigma2, *phi]
    by, p = numbers(oracle.derivatives(total, at)), len(g.theta)
    value = {"value": numbers(total(at)), "theta": by[:p], "sigma2": by[p], "phi": by[p + 1 :]}
    return Truth(value, {}, "differences in 80 digits")


def optimum_truth(case: Case) -> Truth:
    """The best affine model by eigenvalues, or the best σ² as a root of the derivative."""
    return _best_sigma2(case) if case.model is not None else _best_affine(case)


def _best_affine(case: Case) -> Truth:
    """Tipping and Bishop (1999): σ² is the mean of the discarded eigenvalues of the covariance."""
    with mpmath.workdps(60):
        x = mpmath.matrix(case.x.tolist())
        N, n, m = *case.x.shape, case.latent_dim
        b = [mpmath.fsum(x[i, d] for i in range(N)) / N for d in range(n)]
        S = mpmath.matrix(n)
        for d, e in itertools.product(range(n), repeat=2):
            S[d, e] = mpmath.fsum((x[i, d] - b[d]) * (x[i, e] - b[e]) for i in range(N)) / N
        eigenvalues, vectors = mpmath.eigsy(S)
        order = sorted(range(n), key=lambda j: -eigenvalues[j])
        kept, discarded = order[:m], order[m:]
        sigma2 = mpmath.fsum(eigenvalues[j] for j in discarded) / (n - m)
        C = sigma2 * mpmath.eye(n)
        for j, d, e in itertools.product(kept, range(n), range(n)):
            C[d, e] += (eigenvalues[j] - sigma2) * vectors[d, j] * vectors[e, j]
        log_det = mpmath.fsum(mpmath.log(eigenvalues[j]) for j in kept) + (n - m) * mpmath.log(sigma2)
        value = -mpmath.mpf(N) / 2 * (n * mpmath.log(2 * mpmath.pi) + log_det + n)
        found = {
            "value": np.float64(value),
            "sigma2": np.float64(sigma2),
            "mean": np.array(b, dtype=float),
            "covariance": np.array(C.tolist(), dtype=float),
        }
    return Truth(found, {}, "mpmath.eigsy, 60 digits")


def _best_sigma2(case: Case) -> Truth:
    """Where Σ_i ∂ log p(x_i) / ∂σ² is 0: the secant method in many digits, from refica's answer."""
    g, _ = exact(case)
    start = OWN._best_sigma2(case)["sigma2"]
    near = case_from({**case.document, "expected": {}, "tolerance": {}})
    each = [log_p_of(near, i) for i in range(len(case.x))]

    def total(s: arb) -> arb:
        return sum((log_p(g.theta, s) for log_p, _, _ in each), arb(0))

    def slope(s: arb) -> arb:
        return oracle.derivatives(lambda a: total(a[0]), [s])[0]

    a, b = arb(start * (1 + 1e-3)), arb(start * (1 - 1e-3))
    fa, fb = slope(a), slope(b)
    if not (fa < 0 < fb):
        raise ArithmeticError(f"{case}: the slope does not change its sign about {start}")
    for _ in range(6):
        c = (b - fb * (b - a) / (fb - fa)).mid()
        a, fa, b, fb = b, fb, c, slope(c)
        if abs(b - a) < 1e-20:
            break
    value = {"value": numbers(total(b)), "sigma2": np.float64(float(b.mid()))}
    return Truth(value, {}, "root of a difference in 80 digits")


TRUTHS: dict[str, Callable[[Case], Truth]] = {
    "decoder": decoder_truth,
    "decoder-gradient": decoder_gradient_truth,
    "log-joint": log_joint_truth,
    "monte-carlo": monte_carlo_truth,
    "log-marginal": log_marginal_truth,
    "gradient": gradient_truth,
    "density": density_truth,
    "posterior": posterior_truth,
    "elbo": elbo_truth,
    "elbo-gradient": elbo_gradient_truth,
    "iwae": iwae_truth,
    "optimum": optimum_truth,
}
