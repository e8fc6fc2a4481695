"""The model once more, plain and slow, as a record of formulas any of which can be replaced by a wrong one.

A slip is such a replacement, and its answers to a case are what an implementation that made it would give:
`answer` with the formulas of the slip. This shares no code with refica's own likelihood, so that refica with
a fault planted in it can be diagnosed like anybody else's program.
"""

# notation: N observations, n data, m latent, K nodes, L draws, p parameters; per layer h input, a = W h + b

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from refica.testing.conformance.case import Case, Layer, Network, Power
from refica.validation import Array

__all__ = ["LOG_2PI", "MOST_POINTS", "RIGHT", "Answer", "Formulas", "Q", "answer", "coarse_grid"]

LOG_2PI = math.log(2.0 * math.pi)

MOST_POINTS = {1: 4001, 2: 121, 3: 41}
"""Points per axis of the grids used here, by m: only differences between two sums are of interest."""

FEWEST_POINTS = {1: 1601, 2: 41, 3: 21}
"""The same from below: what a slip cuts off ends between two points."""

WIDE = 8.0
"""Radius of those grids, at least."""

STEP = 1e-30
"""Of the complex step."""

Answer = dict[str, Any]


class Q(NamedTuple):
    """q(z | x) of each observation, ``mu`` and ``log_s2`` (N, m), and its draws ``z`` (N, L, m)."""

    mu: Array
    log_s2: Array
    z: Array


# -- the right formulas ----------------------------------------------------------------------------------


def _activate(layer: Layer, a: Array) -> Array:
    name = layer.activation
    if name == "gelu":
        return np.asarray(a * special.ndtr(a))
    if name == "softplus":
        return np.logaddexp(0.0, a)
    if name in ("relu", "leaky_relu"):
        return np.where(a > 0.0, a, layer.slope * a)
    simple = {"identity": np.asarray, "tanh": np.tanh, "sigmoid": special.expit, "sin": np.sin}
    return np.asarray(simple[name](a))


def _derivative(layer: Layer, a: Array) -> Array:
    name = layer.activation
    if name == "gelu":
        return np.asarray(special.ndtr(a) + a * np.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi))
    if name in ("relu", "leaky_relu"):
        return np.where(a > 0.0, 1.0, layer.slope)
    if name in ("sigmoid", "tanh"):
        scale = 1.0 if name == "sigmoid" else 2.0
        return np.asarray(scale**2 * special.expit(scale * a) * special.expit(-scale * a))
    if name == "softplus":
        return np.asarray(special.expit(a))
    return np.cos(a) if name == "sin" else np.ones_like(a)


def _power_slope(z: Array, e: int) -> Array:
    return np.asarray(e * z ** max(e - 1, 0))


def _squared(x: Array, g: Array) -> Array:
    """‖x_i - g_ik‖² as (N, K), for g (K, n) shared or (N, K, n)."""
    return np.asarray(((x[:, None, :] - g) ** 2).sum(axis=-1))


def _log_normal(squared: Array, sigma2: float, n: int) -> Array:
    return np.asarray(-squared / (2.0 * sigma2) - 0.5 * n * (LOG_2PI + np.log(sigma2)))


def _log_prior(z: Array) -> Array:
    return np.asarray(-0.5 * (z * z).sum(axis=-1) - 0.5 * z.shape[-1] * LOG_2PI)


def _log_sum(exponent: Array) -> Array:
    return np.asarray(special.logsumexp(exponent, axis=1))


def _kl(mu: Array, log_s2: Array) -> Array:
    return np.asarray(0.5 * (mu * mu + np.exp(log_s2) - 1.0 - log_s2).sum(axis=1))


def _kl_slopes(mu: Array, log_s2: Array) -> tuple[Array, Array]:
    """Derivatives of the KL in μ and log s²."""
    return mu, 0.5 * np.expm1(log_s2)


def _log_q(q: Q) -> Array:
    s2 = np.exp(q.log_s2)[:, None]
    return np.asarray(-0.5 * ((q.z - q.mu[:, None]) ** 2 / s2 + q.log_s2[:, None] + LOG_2PI).sum(axis=2))


def _encode(outputs: Array) -> tuple[Array, Array]:
    m = outputs.shape[1] // 2
    return outputs[:, :m], outputs[:, m:]


def _backward(f: Formulas, of: Network | Power, z: Array, cotangent: Array) -> tuple[Array, Array]:
    """Gradient of Σ_k c_k · g(z_k) in the parameters, (p,), and in each z_k, (K, m)."""
    if isinstance(of, Power):
        return _backward_power(f, of, z, cotangent)
    inputs, slopes, h = [], [], z
    for layer in of.layers:
        a = h @ layer.weight.T + layer.bias
        inputs.append(h)
        slopes.append(f.derivative(layer, a))
        h = f.activate(layer, a)
    parts: list[Array] = []
    h_bar = cotangent
    for layer, h, slope in zip(reversed(of.layers), reversed(inputs), reversed(slopes), strict=True):
        a_bar = h_bar * slope
        parts = [(a_bar.T @ h).ravel(), a_bar.sum(axis=0), *parts]
        h_bar = a_bar @ layer.weight
    return np.concatenate(parts), h_bar


def _backward_power(f: Formulas, of: Power, z: Array, cotangent: Array) -> tuple[Array, Array]:
    powers = z[:, None, :] ** of.exponents
    slopes = np.empty(powers.shape)
    for axis in range(z.shape[1]):
        own = np.stack([f.power_slope(z[:, axis], int(e)) for e in of.exponents[:, axis]], axis=1)
        slopes[:, :, axis] = own * np.prod(np.delete(powers, axis, axis=2), axis=2)
    theta_bar = cotangent.T @ np.prod(powers, axis=2)
    return theta_bar.ravel(), np.einsum("kj,kjl->kl", cotangent @ of.coefficients, slopes)


def _coefficients(level: str, log_p: Array) -> tuple[Array, Array]:
    """c_i of Σ_i c_i ∇log p(x_i), in θ and in σ²: 1, and p(x_i) where the sum of densities is wanted."""
    c = np.exp(log_p) if level == "density" else np.ones_like(log_p)
    return c, c


@dataclass(frozen=True, slots=True)
class Formulas:
    """Every formula of the model by its name; the defaults are right."""

    read: Callable[[Network], Network] = lambda of: of
    read_to_differentiate: Callable[[Network], Network] | None = None
    activate: Callable[[Layer, Array], Array] = _activate
    derivative: Callable[[Layer, Array], Array] = _derivative
    power_slope: Callable[[Array, int], Array] = _power_slope
    backward: Callable[[Formulas, Network | Power, Array, Array], tuple[Array, Array]] = _backward
    squared: Callable[[Array, Array], Array] = _squared
    log_normal: Callable[[Array, float, int], Array] = _log_normal
    by_hand: bool = False  # derivatives of the right log_normal, whatever its value
    log_prior: Callable[[Array], Array] = _log_prior
    log_draw: Callable[[Array], Array] = lambda z: np.full(len(z), -math.log(len(z)))
    log_weight: Callable[[Array], Array] = lambda z: np.zeros(len(z))  # beside the volume of a node
    log_sum: Callable[[Array], Array] = _log_sum
    log_p: Callable[[Array, Case], Array] = lambda log_p, case: log_p
    coefficients: Callable[[str, Array], tuple[Array, Array]] = _coefficients
    encode: Callable[[Array], tuple[Array, Array]] = _encode
    deviation: Callable[[Array], Array] = lambda log_s2: np.exp(0.5 * log_s2)
    noise: Callable[[Array], Array] = lambda noise: noise
    kl: Callable[[Array, Array], Array] = _kl
    kl_slopes: Callable[[Array, Array], tuple[Array, Array]] = _kl_slopes
    average: Callable[[Array], Array] = lambda terms: terms.mean(axis=1)
    share: Callable[[int], float] = lambda L: 1.0 / L  # of a draw, in gradients
    through_z: bool = True
    log_q: Callable[[Q], Array] = _log_q
    log_mean: Callable[[Array], Array] = lambda log_w: _log_sum(log_w) - math.log(log_w.shape[1])
    covariance: Callable[[Array, Array], Array] = lambda second, mean: (
        second - mean[:, :, None] * mean[:, None, :]
    )
    answer: Callable[[Case, Answer], Answer] = lambda case, found: found


RIGHT = Formulas()


# -- what they answer ------------------------------------------------------------------------------------


def answer(f: Formulas, case: Case) -> Answer:
    """Return the answer to a case by quantity, with integrals over a grid that may be coarse."""
    with np.errstate(all="ignore"):  # a slip may overflow, and take the logarithm of nothing
        return f.answer(case, _ANSWERS[case.level](f, case))


def _parts(case: Case) -> tuple[Network | Power, float, int]:
    if case.model is None:
        raise ValueError(f"{case} has no model")
    return case.model.decoder, case.model.sigma2, case.model.data_dim


def _read(f: Formulas, of: Network | Power, differentiate: bool = False) -> Network | Power:
    if isinstance(of, Power):
        return of
    return (f.read_to_differentiate if differentiate and f.read_to_differentiate else f.read)(of)


def forward(f: Formulas, of: Network | Power, z: Array) -> Array:
    """Return g(z), (..., m) -> (..., n)."""
    of = _read(f, of)
    if isinstance(of, Power):
        return np.asarray(np.prod(z[..., None, :] ** of.exponents, axis=-1) @ of.coefficients.T)
    h = z
    for layer in of.layers:
        h = f.activate(layer, h @ layer.weight.T + layer.bias)
    return h


def _pull(f: Formulas, of: Network | Power, z: Array, cotangent: Array) -> tuple[Array, Array]:
    return f.backward(f, _read(f, of, True), z, cotangent)


def _decoder(f: Formulas, case: Case) -> Answer:
    return {"g": forward(f, _parts(case)[0], np.asarray(case.z))}


def _decoder_gradient(f: Formulas, case: Case) -> Answer:
    theta, z = _pull(f, _parts(case)[0], np.asarray(case.z), np.asarray(case.cotangent))
    return {"theta": theta, "z": z}


def _log_given(f: Formulas, case: Case, z: Array) -> Array:
    """log p(x_i | z), (N, K)."""
    of, sigma2, n = _parts(case)
    return f.log_normal(f.squared(np.asarray(case.x), forward(f, of, z)), sigma2, n)


def _log_joint(f: Formulas, case: Case) -> Answer:
    z = np.asarray(case.z)
    return {"log_joint": _log_given(f, case, z) + f.log_prior(z)}


def _monte_carlo(f: Formulas, case: Case) -> Answer:
    z = np.asarray(case.z)
    return {"log_p": f.log_p(f.log_sum(_log_given(f, case, z) + f.log_draw(z)), case)}


def coarse_grid(case: Case) -> tuple[Array, float]:
    """Return the nodes (K, m) of a uniform grid and the logarithm of their volume."""
    if case.model is None:
        raise ValueError(f"{case} has no model")
    m, hint = case.model.latent_dim, case.hint
    step = 2.0 * hint["radius"] / (hint["points_per_axis"] - 1)
    radius = max(hint["radius"], WIDE)  # a slip may move the posterior
    points = min(max(math.ceil(2.0 * radius / step) + 1, FEWEST_POINTS[m]), MOST_POINTS[m])
    axis = np.linspace(-radius, radius, points)
    z = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    return z, m * math.log(2.0 * radius / (points - 1))


def _exponent(f: Formulas, case: Case, z: Array, volume: float) -> Array:
    return np.asarray(_log_given(f, case, z) + f.log_prior(z) + f.log_weight(z) + volume)


def _log_marginal(f: Formulas, case: Case) -> Answer:
    return {"log_p": f.log_p(f.log_sum(_exponent(f, case, *coarse_grid(case))), case)}


def _slopes_of_log_normal(f: Formulas, squared: Array, sigma2: float, n: int) -> tuple[Array, Array]:
    """Derivatives of log N in ‖x - g‖² and in σ², by the complex step."""
    log_normal = _log_normal if f.by_hand else f.log_normal
    by_squared = np.imag(log_normal(squared + 1j * STEP, sigma2, n)) / STEP
    by_sigma2 = np.imag(log_normal(squared, sigma2 + 1j * STEP, n)) / STEP  # type: ignore[arg-type]
    return by_squared, np.broadcast_to(by_sigma2, squared.shape)


def _gradient(f: Formulas, case: Case) -> Answer:
    return _with_weights(f, case, lambda log_p: log_p)


def _density(f: Formulas, case: Case) -> Answer:
    return _with_weights(f, case, np.exp)


def _with_weights(f: Formulas, case: Case, value: Callable[[Array], Array]) -> Answer:
    """Σ_i value(log p_i), and Σ_i c_i times the gradient of log p_i by Fisher's identity."""
    of, sigma2, n = _parts(case)
    x = np.asarray(case.x)
    z, volume = coarse_grid(case)
    exponent = _exponent(f, case, z, volume)
    log_p = f.log_sum(exponent)
    c_theta, c_sigma2 = f.coefficients(case.level, log_p)
    rho = np.exp(exponent - _log_sum(exponent)[:, None])
    g = forward(f, of, z)
    by_squared, by_sigma2 = _slopes_of_log_normal(f, f.squared(x, g), sigma2, n)
    share = -2.0 * c_theta[:, None] * rho * by_squared
    cotangent = share.T @ x - share.sum(axis=0)[:, None] * g
    return {
        "value": value(f.log_p(log_p, case)).sum(),
        "theta": _pull(f, of, z, cotangent)[0],
        "sigma2": (c_sigma2[:, None] * rho * by_sigma2).sum(),
    }


def _posterior(f: Formulas, case: Case) -> Answer:
    z, volume = coarse_grid(case)
    exponent = _exponent(f, case, z, volume)
    rho = np.exp(exponent - _log_sum(exponent)[:, None])
    mean = rho @ z
    return {"mean": mean, "covariance": f.covariance(np.einsum("ik,kl,km->ilm", rho, z, z), mean)}


def _drawn(f: Formulas, case: Case) -> Q:
    if case.encoder is None:
        raise ValueError(f"{case} has no encoder")
    mu, log_s2 = f.encode(forward(f, case.encoder, np.asarray(case.x)))
    epsilon = f.noise(np.asarray(case.noise)).swapaxes(0, 1)
    return Q(mu, log_s2, mu[:, None] + f.deviation(log_s2)[:, None] * epsilon)


def _elbo_values(f: Formulas, case: Case, q: Q) -> Array:
    return np.asarray(f.average(_log_given(f, case, q.z)) - f.kl(q.mu, q.log_s2))


def _elbo(f: Formulas, case: Case) -> Answer:
    return {"elbo": _elbo_values(f, case, _drawn(f, case))}


def _elbo_gradient(f: Formulas, case: Case) -> Answer:
    of, sigma2, n = _parts(case)
    x, q, encoder = np.asarray(case.x), _drawn(f, case), case.encoder
    assert encoder is not None  # `_drawn` has refused it
    N, L, m = q.z.shape
    share = f.share(L)
    g = forward(f, of, q.z)
    by_squared, by_sigma2 = _slopes_of_log_normal(f, f.squared(x, g), sigma2, n)
    g_bar = -2.0 * share * by_squared[:, :, None] * (x[:, None] - g)
    theta, z_bar = _pull(f, of, q.z.reshape(N * L, m), g_bar.reshape(N * L, n))
    z_bar = z_bar.reshape(N, L, m) * f.through_z
    kl_mu, kl_log_s2 = f.kl_slopes(q.mu, q.log_s2)
    s_bar = (z_bar * f.noise(np.asarray(case.noise)).swapaxes(0, 1)).sum(axis=1)
    step = 1e-7  # of a difference: s is a plain function of log s²
    s_slope = (f.deviation(q.log_s2 + step) - f.deviation(q.log_s2 - step)) / (2.0 * step)
    mu_bar, log_s2_bar = z_bar.sum(axis=1) - kl_mu, s_bar * s_slope - kl_log_s2
    twice = (f.encode(np.ones((1, 2 * m)))[1] / np.ones((1, m)))[0]  # log s² in units of the outputs
    phi, _ = _pull(f, encoder, x, np.concatenate([mu_bar, log_s2_bar * twice], axis=1))
    value = _elbo_values(f, case, q).sum()
    return {"value": value, "theta": theta, "sigma2": (share * by_sigma2).sum(), "phi": phi}


def _iwae(f: Formulas, case: Case) -> Answer:
    q = _drawn(f, case)
    return {"iwae": f.log_mean(_log_given(f, case, q.z) + f.log_prior(q.z) - f.log_q(q))}


def _optimum(f: Formulas, case: Case) -> Answer:
    """The optimum itself is given; what a slip makes of it is its change of the answer."""
    return {name: np.array(value) for name, value in case.expected.items()}


_ANSWERS: dict[str, Callable[[Formulas, Case], Answer]] = {
    "decoder": _decoder,
    "decoder-gradient": _decoder_gradient,
    "log-joint": _log_joint,
    "monte-carlo": _monte_carlo,
    "log-marginal": _log_marginal,
    "gradient": _gradient,
    "density": _density,
    "posterior": _posterior,
    "elbo": _elbo,
    "elbo-gradient": _elbo_gradient,
    "iwae": _iwae,
    "optimum": _optimum,
}
