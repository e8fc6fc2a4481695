"""The modes of log p(x_i, z) over z: where, for each observation, the posterior has its mass.

From several starts per observation, all of them at once, by damped Newton steps

    z <- z + α A⁻¹ ∇,      ∇ = Jᵀ r / σ² - z,      r = x - g(z),
    A = I + (JᵀJ - Σ_d r_d ∇²g_d) / σ²             minus the Hessian of log p(x, z), if positive definite,
    A = I + JᵀJ / σ²                               otherwise: Gauss-Newton's matrix, which always is.

So an indefinite Hessian never gives a direction of descent, and at a mode, where it is definite, the
convergence is quadratic. J takes m Jacobian-vector products. Σ_d r_d ∇²g_d is the derivative of
z ↦ J(z)ᵀ c at the fixed cotangent c = r: 2m vector-Jacobian products by central differences, whose
error (1e-10 relative) only touches how fast the search converges and the last digits of a scale. The
complex step would cost as much and ask more of a decoder than its protocol does.

The starts are the best local maxima of log p(x_i, z) on a lattice that all observations share.
"""

# notation: N observations, S starts, C modes, m latent, n data, K points of the lattice, R rows: pairs of
# an observation and a start; A (R, m, m) precision

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import spatial, special, stats

from refica.likelihood import decode, row_blocks
from refica.model import NonlinearICA, log_likelihood_given, log_prior
from refica.validation import Array

__all__ = ["Modes", "find_modes", "laplace_mass", "log_volume"]

LATTICE = {1: (1601, 8.0), 2: (101, 6.0), 3: (25, 5.25), 4: (9, 4.0)}
"""Points per axis and radius of the lattice of starts, by m: as fine as some thousand points allow."""

SCATTERED = 4096
"""Number of points that stand for a lattice where m is above those of `LATTICE`."""

BATCH = 8
"""Starts that are followed at a time. Most observations need no second batch."""

NEWS = 1e-6
"""Relative growth of the mass found (nats) below which a batch of starts counts as having brought nothing
new, so that the search ends."""

BLOCK = 1024
"""Observations searched at a time: bounds the memory for their searches to some tens of MB."""

LATTICE_TILE = 2**17
"""Bound on (observations x points of the lattice) looked at in one go: 1 MiB an array, so in cache."""

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

HULL_STEPS = 30
"""Steps towards the shortest vector of a hull; a vector a little too long still ascends."""

SAME = 0.3
"""Distance, in posterior standard deviations, within which two ends of a search are one mode."""


class Modes(NamedTuple):
    """The modes found, those of an observation sorted by `laplace_mass`, largest first.

    ``modes`` (N, C, m); ``log_joint`` (N, C) = log p(x_i, z), -inf for an absent mode, whose other entries
    repeat the first one's; ``hessian`` (N, C, m, m) positive definite: minus the Hessian of the log joint,
    or Gauss-Newton's matrix where that is indefinite or the mode sits on a kink; ``converged`` (N, C)
    whether it is a maximum: the gradient vanishes to rounding, or on a kink no direction rises (False: the
    iteration limit, or a saddle);
    ``complete`` (N,) whether all local maxima on the lattice served as starts, or the last ones that did
    brought nothing new and there are few modes for so many starts.
    """

    modes: Array
    log_joint: Array
    hessian: Array
    converged: Array
    complete: Array


def find_modes(model: NonlinearICA, x: Array, most_starts: int = 64) -> Modes:
    """Return the modes of log p(x_i, z) for observations x (N, n), from at most ``most_starts`` starts each.

    Needs of the decoder no more than its protocol. Every observation is searched by itself: what is found
    for it does not depend on the others, only the number C of columns does.
    """
    blocks = [_search(model, x[rows], most_starts) for rows in row_blocks(len(x), BLOCK)]
    C = max(block.log_joint.shape[1] for block in blocks)
    return Modes._make(map(np.concatenate, zip(*(_widen(block, C) for block in blocks), strict=True)))


def modes_from(model: NonlinearICA, x: Array, starts: Array) -> Modes:
    """Return the modes that searches from given starts (N, S, m) end at."""
    return _distinct(_from_starts(model, x, starts, np.ones(starts.shape[:2], dtype=bool)))


def _search(model: NonlinearICA, x: Array, most_starts: int) -> Modes:
    """Search from the highest starts, then from the next ones while they bring something new."""
    starts, present, complete = _starts(model, x, most_starts)
    found = _distinct(_from_starts(model, x, starts[:, :BATCH], present[:, :BATCH]))
    exhausted, rows = complete & ~present[:, BATCH:].any(axis=1), np.arange(len(x))
    found = found._replace(complete=exhausted)
    for first in range(BATCH, starts.shape[1], BATCH):
        rows = rows[~found.complete[rows]]
        if not len(rows):
            break
        batch = slice(first, first + BATCH)
        more = _from_starts(model, x[rows], starts[rows, batch], present[rows, batch])
        before = Modes._make(part[rows] for part in found)
        both = [np.concatenate(pair, axis=1) for pair in zip(before[:4], more[:4], strict=True)]
        after = _distinct(Modes._make([*both, before.complete]))
        news = _total_mass(after) - _total_mass(before)
        # many modes for the starts so far: it is likely that there are more
        many = 2 * (after.log_joint > -np.inf).sum(axis=1) > first + BATCH
        exhausted = complete[rows] & ~present[rows, first + BATCH :].any(axis=1)
        C = max(found.log_joint.shape[1], after.log_joint.shape[1])
        found = _widen(found, C)
        after = _widen(after._replace(complete=exhausted | ((news < NEWS) & ~many)), C)
        for part, update in zip(found, after, strict=True):
            part[rows] = update
    return found


def _from_starts(model: NonlinearICA, x: Array, starts: Array, present: Array) -> Modes:
    """Return the ends of the searches from starts (N, S, m), where present (N, S), as they come."""
    N, S, m = starts.shape
    i, _ = np.nonzero(present)
    ends = _climb(model, x[i], starts[present])
    found = Modes(
        np.zeros((N, S, m)),
        np.full((N, S), -np.inf),
        np.broadcast_to(np.eye(m), (N, S, m, m)).copy(),
        np.zeros((N, S), dtype=bool),
        np.zeros(N, dtype=bool),
    )
    for part, end in zip(found, ends, strict=False):
        part[present] = end
    return found


def _widen(found: Modes, C: int) -> Modes:
    """Return the modes with C columns, the new ones absent."""
    old = found.log_joint.shape[1]
    columns = np.where(np.arange(C) < old, np.arange(C), 0)
    wider = Modes._make([*(part[:, columns] for part in found[:4]), found.complete.copy()])
    wider.log_joint[:, old:] = -np.inf
    return wider


def _total_mass(modes: Modes) -> Array:
    """log of the summed masses, (N,)."""
    return np.asarray(np.logaddexp.reduce(laplace_mass(modes), axis=1))


def laplace_mass(modes: Modes) -> Array:
    """log of the mass of the Gaussian that osculates the joint density at each mode, (N, C).

    log p(x, z*) + m/2 log 2π - ½ log det A: Laplace's approximation of the mode's share of p(x).
    """
    return modes.log_joint + log_volume(modes)


def log_volume(modes: Modes) -> Array:
    """log ∫ exp(-½ zᵀ A z) dz = m/2 log 2π - ½ log det A at each mode, (N, C)."""
    m = modes.modes.shape[-1]
    _, log_det = np.linalg.slogdet(modes.hessian)
    return np.asarray(0.5 * m * math.log(2.0 * math.pi) - 0.5 * log_det)


def _distinct(found: Modes) -> Modes:
    """Sort by mass, drop repetitions, and let absent ones repeat the first."""
    order = np.argsort(-laplace_mass(found), axis=1, kind="stable")
    z, log_joint, A, converged = (_take(part, order) for part in found[:4])
    S = z.shape[1]
    keep = log_joint > -np.inf
    for c in range(1, S):
        d = z[:, c, None] - z[:, :c]
        near = np.einsum("ncl,nclj,ncj->nc", d, A[:, :c], d) < SAME**2
        keep[:, c] &= ~(near & keep[:, :c]).any(axis=1)
    C = int(keep.sum(axis=1).max())
    first = np.argsort(~keep, axis=1, kind="stable")[:, :C]
    absent = ~_take(keep, first)
    first[absent] = 0
    distinct = Modes._make([*(_take(part, first) for part in (z, log_joint, A, converged)), found.complete])
    distinct.log_joint[absent] = -np.inf
    return distinct


def _take(values: Array, order: Array) -> Array:
    """values[i, order[i, c]] for values (N, S, ...)."""
    return np.asarray(values[np.arange(len(values))[:, None], order])


def _starts(model: NonlinearICA, x: Array, S: int) -> tuple[Array, Array, Array]:
    """Return starts (N, S, m), highest first, which are present (N, S), and whether these are all (N,)."""
    points, neighbours = _lattice(model.latent_dim)
    g = decode(model.decoder, model.theta, points)
    # up to a constant for each x, log p(x, z) = (x - c)ᵀ(g - c)/σ² - ‖g - c‖²/2σ² + log p(z): one matrix
    # product. It cancels at small σ², which a start does not mind
    centre = g.mean(axis=0)
    g = (g - centre) / model.sigma2
    offset = log_prior(points) - 0.5 * model.sigma2 * np.einsum("kn,kn->k", g, g)
    starts, present = np.zeros((len(x), S, points.shape[1])), np.zeros((len(x), S), dtype=bool)
    complete = np.zeros(len(x), dtype=bool)
    for rows in row_blocks(len(x), max(1, LATTICE_TILE // len(points))):
        height = (x[rows] - centre) @ g.T
        height += offset
        i, k = np.nonzero(height >= _highest_near(height, neighbours))
        order = np.lexsort((-height[i, k], i))
        i, k = i[order], k[order]
        rank = np.arange(len(i)) - np.searchsorted(i, i)  # of each summit among those of its observation
        complete[rows] = np.bincount(i) <= S
        i, k, rank = i[rank < S], k[rank < S], rank[rank < S]
        starts[rows.start + i, rank] = points[k]
        present[rows.start + i, rank] = True
    return starts, present, complete


def _lattice(m: int) -> tuple[Array, int | Array]:
    """Return points (K, m) and who is whose neighbour: points per axis of a lattice, or indices (K, k).

    A lattice is shifted off the origin by an irrational part of its step, so that no start lies on an
    axis of symmetry of a decoder, where a search could end on a saddle.
    """
    if m in LATTICE:
        per_axis, radius = LATTICE[m]
        axis = np.linspace(-radius, radius, per_axis) + 0.1 * math.sqrt(2.0) * radius / per_axis
        return np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m), per_axis
    uniform = stats.qmc.Sobol(m, seed=0).random(SCATTERED)
    points = 1.25 * special.ndtri(np.clip(uniform, 1e-9, 1.0 - 1e-9))
    _, neighbours = spatial.cKDTree(points).query(points, 2 * m + 1)
    return points, np.asarray(neighbours)[:, 1:]


def _highest_near(height: Array, neighbours: int | Array) -> Array:
    """Return the largest of each point's and its neighbours' heights, (N, K)."""
    N, K = height.shape
    if not isinstance(neighbours, int):
        highest = height.copy()
        for column in neighbours.T:
            np.maximum(highest, height[:, column], out=highest)
        return highest
    m = round(math.log(K, neighbours))
    grid = height.reshape(N, *[neighbours] * m)
    for axis in range(1, m + 1):  # the largest over a box is the largest over its axes in turn
        wider = grid.copy()
        narrow, wide = np.moveaxis(grid, axis, 0), np.moveaxis(wider, axis, 0)
        np.maximum(wide[1:], narrow[:-1], out=wide[1:])
        np.maximum(wide[:-1], narrow[1:], out=wide[:-1])
        grid = wider
    return grid.reshape(N, K)


def _climb(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array, Array, Array]:
    """Return where searches from z (R, m) end, log p(x, z) and A there, and whether that is a maximum.

    Newton's search first; rows that it leaves on a kink follow the kink, and then get another try: the
    kink may lead to a smooth mode.
    """
    z, value, stationary, stuck = _newton(model, x, z)
    on_kink = np.zeros(len(z), dtype=bool)
    rows = np.flatnonzero(stuck)
    if len(rows):
        followed, on_kink[rows] = _follow_kinks(model, x[rows], z[rows])
        z[rows], value[rows], stationary[rows], _ = _newton(model, x[rows], followed)
    _, newton, gauss_newton = _expand(model, x, z)
    newton = _sharpen(model, x, z, newton, gauss_newton)
    smooth = stationary & _is_definite(newton)
    A = np.where(smooth[:, None, None], newton, gauss_newton)
    return z, value, A, smooth | (on_kink & ~stationary)


def _newton(model: NonlinearICA, x: Array, z: Array) -> tuple[Array, Array, Array, Array]:
    """Return the ends z (R, m) of damped Newton searches, log p(x, z) there, whether each is stationary,
    and whether it was left where no step along the Newton direction rises: on a kink."""
    z = z.copy()
    value = _log_joint(model, x, z)
    stationary, stuck, active = np.zeros(len(z), dtype=bool), np.zeros(len(z), dtype=bool), np.arange(len(z))
    for _ in range(MAX_ITER):
        gradient, newton, gauss_newton = _expand(model, x[active], z[active])
        definite = _is_definite(newton)
        A = np.where(definite[:, None, None], newton, gauss_newton)
        step = _solve(A, gradient)
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
        W = np.linalg.inv(np.linalg.cholesky(A))  # A⁻¹ = Wᵀ W
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


def _solve(A: Array, b: Array) -> Array:
    """A⁻¹ b for A (R, m, m), b (R, m)."""
    return np.asarray(np.linalg.solve(A, b[..., None])[..., 0])


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


def _sharpen(model: NonlinearICA, x: Array, z: Array, newton: Array, gauss_newton: Array) -> Array:
    """Return minus the Hessian from differences of order four at a wider step, where they agree with it.

    They hold a thirtieth of the rounding, so that a result that is placed by A does not depend on who is
    in a block with whom. Where they disagree there is a kink nearby.
    """
    r = x - decode(model.decoder, model.theta, z)
    sharp = gauss_newton - _curvature(model, z, r, WIDE_STEP, (8.0 / 12.0, -1.0 / 12.0)) / model.sigma2
    size = np.abs(newton).max(axis=(1, 2))
    agree = np.abs(sharp - newton).max(axis=(1, 2)) <= 1e-4 * size
    return np.where(agree[:, None, None], sharp, newton)


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
