"""Ascent of log p(x_r, z) in z to a local maximum, for many pairs of an observation and a start at once.

Damped Newton steps with backtracking,

    z <- z + α A⁻¹ ∇,      ∇ = Jᵀ r / σ² - z,      r = x - g(z),
    A = I + (JᵀJ - Σ_d r_d ∇²g_d) / σ²             minus the Hessian of log p(x, z), if positive definite,
    A = I + JᵀJ / σ²                               otherwise: Gauss-Newton's matrix, which always is.

So an indefinite Hessian never gives a direction of descent, and at a mode, where it is definite, the
convergence is quadratic. J takes m Jacobian-vector products. Σ_d r_d ∇²g_d is the derivative of
z ↦ J(z)ᵀ c at the fixed cotangent c = r: 2m vector-Jacobian products by central differences, whose
error (1e-11 relative) only touches how fast the search converges and the last digits of a scale. The
complex step would cost as much and ask more of a decoder than real arithmetic.

Where no step rises the search sits on a kink of the decoder (relu), which it then follows by gradient
sampling.
"""

# notation: R rows, each an observation and a start; m latent, n data; A (R, m, m) precision

from __future__ import annotations

import numpy as np

from refica.likelihood import decode
from refica.model import NonlinearICA, log_likelihood_given, log_prior
from refica.validation import Array

__all__ = ["climb", "regular"]

MAX_ITER = 100
"""Newton steps. Ordinary cases take 5 to 10; winding along a narrow curved ridge takes tens."""

LONGEST_STEP = 2.0
"""Farthest that one step moves a coordinate of z, in prior standard deviations."""

MAX_HALVINGS = 16
"""Halvings of a step before it is given up: where 1e-5 of a Newton step does not rise, there is a kink."""

SUFFICIENT = 1e-4
"""Part of the promised increase that a step must reach (Armijo's rule; Nocedal and Wright 2006, 3.1)."""

DECREMENT = 1e-12
"""∇ᵀA⁻¹∇ at which a search ends, with one more full step: the mode is then known to 1e-6 posterior
standard deviations before that step, and far better after it."""

WIDE_STEP = 2e-4
"""Step of the differences of order four that give a mode's final Hessian: the error of the formula is below
rounding, which is 1e-12 relative."""

LEAST_PRECISION = 1e-3
"""Smallest eigenvalue at which a Hessian counts as definite. The prior alone has 1; a posterior 30 times
wider than the prior is not a mode's but a shoulder's."""

WIDEST_SAMPLE, NARROWEST_SAMPLE = 0.5, 1e-3
"""First and last radius of gradient sampling on a kink, in posterior standard deviations."""

NEAR, LOOKED_AT, WORTH, LOOKS = 0.03, 64, 1e-3, 3
"""How far from an end beside a kink, in posterior standard deviations, at how many points it is looked for
something higher, by how many nats, and how often the search goes on from there."""

HULL_STEPS = 30
"""Steps towards the shortest vector of a hull; a vector a little too long still ascends."""


def climb(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array, Array, Array]:
    """Return where searches from z (R, m) end, log p(x, z) and A there, and whether that is a maximum.

    Newton's search first; rows that it leaves on a kink follow the kink, and then get another try: the
    kink may lead to a smooth mode. Where a kink is near an end, what lies beyond it is looked at as well.
    """
    z, value, stationary, on_kink = _ascend(model, x, z)
    rows = np.arange(len(z))
    for _ in range(LOOKS):
        _, newton, gauss_newton = _expand(model, x[rows], z[rows])
        _, smooth = _sharpen(model, x[rows], z[rows], newton, gauss_newton)
        rows, gauss_newton = rows[~smooth], gauss_newton[~smooth]
        if not len(rows):
            break
        better = _look_around(model, x[rows], z[rows], value[rows], gauss_newton)
        moved = (better != z[rows]).any(axis=1)
        rows = rows[moved]
        if not len(rows):
            break
        z[rows], value[rows], stationary[rows], on_kink[rows] = _ascend(model, x[rows], better[moved])
    _, newton, gauss_newton = _expand(model, x, z)
    newton, _ = _sharpen(model, x, z, newton, gauss_newton)
    smooth = stationary & _is_definite(newton)
    A = regular(np.where(smooth[:, None, None], newton, gauss_newton))
    return z, value, A, smooth | (on_kink & ~stationary)


def _ascend(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array, Array, Array]:
    """Return the ends of searches from z (R, m), log p(x, z) there, whether each is stationary and whether it
    followed a kink to its end."""
    z, value, stationary, stuck = _newton(model, x, z)
    on_kink = np.zeros(len(z), dtype=bool)
    rows = np.flatnonzero(stuck)
    if len(rows):
        followed, on_kink[rows] = _follow_kinks(model, x[rows], z[rows])
        z[rows], value[rows], stationary[rows], _ = _newton(model, x[rows], followed)
    return z, value, stationary, on_kink


def _look_around(model: NonlinearICA, x: Array, z: Array, value: Array, A: Array) -> Array:
    """Return z (R, m), or the best of some points `NEAR` standard deviations about it if it is well above.

    The gradient of one side of a kink may vanish where the other side rises.
    """
    R, m = z.shape
    cloud = np.random.default_rng(1).standard_normal((LOOKED_AT, m))
    cloud *= NEAR / np.linalg.norm(cloud, axis=1, keepdims=True)
    W = np.linalg.inv(np.linalg.cholesky(regular(A)))  # A⁻¹ = Wᵀ W
    near = z[:, None] + np.einsum("rji,kj->rki", W, cloud)
    there = _log_joint(model, np.repeat(x, LOOKED_AT, axis=0), near.reshape(-1, m)).reshape(R, LOOKED_AT)
    best = there.argmax(axis=1)
    rises = there[np.arange(R), best] > value + WORTH
    return np.where(rises[:, None], near[np.arange(R), best], z)


def _newton(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array, Array, Array]:
    """Return the ends z (R, m) of damped Newton searches, log p(x, z) there, whether each is stationary,
    and whether it was left where no step along the Newton direction rises: on a kink."""
    z = z.copy()
    value = _log_joint(model, x, z)
    stationary, stuck, active = np.zeros(len(z), dtype=bool), np.zeros(len(z), dtype=bool), np.arange(len(z))
    for _ in range(MAX_ITER):
        gradient, newton, gauss_newton = _expand(model, x[active], z[active])
        definite = _is_definite(newton)
        A = regular(np.where(definite[:, None, None], newton, gauss_newton))
        step = np.linalg.solve(A, gradient[..., None])[..., 0]
        decrement = np.einsum("rm,rm->r", gradient, step)
        flat = decrement <= DECREMENT
        # below what rounding lets the values tell apart, a definite Newton step is taken on trust
        blind = flat | (definite & (decrement <= 1e2 * np.finfo(float).eps * np.abs(value[active])))
        length = np.minimum(1.0, LONGEST_STEP / np.maximum(np.abs(step).max(axis=1), LONGEST_STEP))
        length = _line_search(model, x[active], z[active], value[active], step, length, decrement, ~blind)
        z[active] += length[:, None] * step
        value[active] = _log_joint(model, x[active], z[active])
        stationary[active[flat & definite]] = True
        stuck[active[length == 0.0]] = True
        active = active[~flat & (length > 0.0)]
        if not len(active):
            break
    return z, value, stationary, stuck


def _line_search(
    model: NonlinearICA,
    x: Array,
    z: Array,
    value: Array,
    step: Array,
    length: Array,
    decrement: Array,
    look: Array,
) -> Array:
    """Return the first of α, α/2, α/4, .. (R,) that rises enough, 0 if none does; α where not to look."""
    length = length.copy()
    rows = np.flatnonzero(look)
    for _ in range(MAX_HALVINGS):
        if not len(rows):
            return length
        there = _log_joint(model, x[rows], z[rows] + length[rows, None] * step[rows])
        short = ~(there >= value[rows] + SUFFICIENT * length[rows] * decrement[rows])  # True for nan
        rows = rows[short]
        length[rows] *= 0.5
    length[rows] = 0.0
    return length


def _follow_kinks(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array]:
    """Return the ends z (R, m) of searches that start on a kink, by gradient sampling, and whether each
    ended before the iteration limit, (R,).

    On a kink the gradient of one side points across it. The shortest vector v in the convex hull of the
    gradients nearby, in coordinates whitened by A, rises on all sides at once; where it is 0 to within
    the sampling radius there is a maximum (Burke, Lewis and Overton, SIAM J. Optim. 15, 2005).
    """
    z = z.copy()
    R, m = z.shape
    value = _log_joint(model, x, z)
    radius, active = np.full(R, WIDEST_SAMPLE), np.arange(R)
    clouds = np.random.default_rng(0).standard_normal((MAX_ITER, 2 * m + 2, m))
    clouds /= np.linalg.norm(clouds, axis=2, keepdims=True)
    for cloud in clouds:
        here = x[active]
        _, _, A = _expand(model, here, z[active])
        W = np.linalg.inv(np.linalg.cholesky(regular(A)))  # A⁻¹ = Wᵀ W
        near = z[active, None] + radius[active, None, None] * np.einsum("rij,ki->rkj", W, cloud)
        whitened = np.einsum("rij,rkj->rki", W, _gradients(model, here, near))
        v = _shortest_in_hull(whitened)
        square = np.einsum("ri,ri->r", v, v)
        step = np.einsum("rij,ri->rj", W, v)
        length = np.ones(len(active))
        look = square > radius[active] ** 2
        length = _line_search(model, here, z[active], value[active], step, length, square, look)
        length[~look] = 0.0
        z[active] += length[:, None] * step
        value[active] = _log_joint(model, here, z[active])
        radius[active[length == 0.0]] *= 0.25
        active = active[radius[active] >= NARROWEST_SAMPLE]
        if not len(active):
            break
    return z, radius < NARROWEST_SAMPLE


def _gradients(model: NonlinearICA, x: Array, z: Array) -> Array:
    """∇ log p(x_r, z_rk) at z (R, K, m), same shape: J(z)ᵀ (x - g(z)) / σ² - z."""
    R, K, m = z.shape
    flat = z.reshape(-1, m)
    r = np.repeat(x, K, axis=0) - decode(model.decoder, model.theta, flat)
    _, z_bar = model.decoder.vjp(model.theta, flat, r / model.sigma2)
    return np.asarray(z_bar.reshape(R, K, m) - z)


def _shortest_in_hull(points: Array) -> Array:
    """Return the shortest vector v (R, m) of the convex hull of points (R, K, m), nearly.

    v = Σ_k λ_k point_k; step after step, as much weight as shortens v most goes from the point that
    reaches farthest along v to the one that reaches least far (Mitchell, Demyanov and Malozemov 1974).
    """
    R, K, _ = points.shape
    weight, every = np.full((R, K), 1.0 / K), np.arange(R)
    v = points.mean(axis=1)
    for _ in range(HULL_STEPS):
        along = np.einsum("rki,ri->rk", points, v)
        farthest = np.where(weight > 0.0, along, -np.inf).argmax(axis=1)
        least = along.argmin(axis=1)
        d = points[every, farthest] - points[every, least]
        square = np.maximum(np.einsum("ri,ri->r", d, d), np.finfo(float).tiny)
        share = np.clip(np.einsum("ri,ri->r", v, d) / square, 0.0, weight[every, farthest])
        weight[every, farthest] -= share
        weight[every, least] += share
        v = v - share[:, None] * d
    return v


def _log_joint(model: NonlinearICA, x: Array, z: Array) -> Array:
    """log p(x_r, z_r), (R,), row by row."""
    r = x - decode(model.decoder, model.theta, z)
    return log_likelihood_given(np.einsum("rn,rn->r", r, r), model.sigma2, x.shape[1]) + log_prior(z)


def _expand(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array, Array]:
    """Return ∇ (R, m), minus the Hessian (R, m, m) of log p(x_r, z), and Gauss-Newton's matrix."""
    R, m = z.shape
    decoder, theta = model.decoder, model.theta
    still = np.zeros(decoder.n_params)
    r = x - decode(decoder, theta, z)
    J = np.empty((R, x.shape[1], m))
    for axis, e in enumerate(np.eye(m)):
        J[:, :, axis] = decoder.jvp(theta, z, still, np.broadcast_to(e, z.shape))
    gradient = np.einsum("rnm,rn->rm", J, r) / model.sigma2 - z
    gauss_newton = np.eye(m) + np.einsum("rnl,rnj->rlj", J, J) / model.sigma2
    curvature = _curvature(model, z, r, np.finfo(float).eps ** (1.0 / 3.0), (0.5,))
    return gradient, gauss_newton - curvature / model.sigma2, gauss_newton


def _sharpen(
    model: NonlinearICA, x: Array, z: Array, newton: Array, gauss_newton: Array
) -> tuple[Array, Array]:
    """Return minus the Hessian from differences of order four at a wider step, and where (R,) they agree with
    it; elsewhere it as it is.

    They hold a thirtieth of the rounding, so that a result that is placed by A does not depend on who is
    in a block with whom. Where they disagree there is a kink nearby.
    """
    r = x - decode(model.decoder, model.theta, z)
    sharp = gauss_newton - _curvature(model, z, r, WIDE_STEP, (8.0 / 12.0, -1.0 / 12.0)) / model.sigma2
    size = np.abs(newton).max(axis=(1, 2))
    agree = np.abs(sharp - newton).max(axis=(1, 2)) <= 1e-4 * size
    return np.where(agree[:, None, None], sharp, newton), agree


def _curvature(model: NonlinearICA, z: Array, r: Array, h: float, weights: tuple[float, ...]) -> Array:
    """Σ_d r_d ∇²g_d (R, m, m), from central differences of J(z)ᵀ r at steps h, 2h, .. with these weights."""
    R, m = z.shape
    curvature = np.zeros((R, m, m))
    for axis, e in enumerate(np.eye(m)):
        for times, weight in enumerate(weights, start=1):
            _, ahead = model.decoder.vjp(model.theta, z + times * h * e, r)
            _, behind = model.decoder.vjp(model.theta, z - times * h * e, r)
            curvature[:, axis] += (ahead - behind) * (weight / h)
    return np.asarray(0.5 * (curvature + np.swapaxes(curvature, 1, 2)))


def _is_definite(A: Array) -> Array:
    """Whether the smallest eigenvalue is above `LEAST_PRECISION`, (R,)."""
    return np.asarray(np.linalg.eigvalsh(A)[:, 0] > LEAST_PRECISION)


def regular(A: Array) -> Array:
    """A plus a few roundings of its largest entry on the diagonal, so that it can be factored whatever its
    condition: it exceeds 1e15 where σ² is tiny and fewer data than latents leave directions to the prior."""
    largest = np.abs(A).max(axis=(1, 2))[:, None, None]
    return np.asarray(A + 32.0 * np.finfo(float).eps * largest * np.eye(A.shape[1]))
