"""Two latent dimensions: nodes for each observation, on the cells of the plane that matter to it.

On a cell g is affine, so that the log joint density is a concave parabola: about its peak on the cell, at
(τ, η) = 0, it is log_peak - h with

    h(τ, η) = κ_t τ + κ_y η + ½ (τ, η) Λ (τ, η)ᵀ >= 0,      Λ = I + JᵀJ/σ².

Along a line η = const that is a Gaussian on an interval, which `truncated` integrates. What is left is a
function G(η) of one variable, analytic on the cell and log-concave (as a marginal of a log-concave function,
Prékopa 1973): it has one hump, and what 12-point Gauss-Legendre panels from its peak outwards could still
miss are steps much shorter than the hump. Panels therefore begin and end where these do (`_cuts`), and are
bisected until each agrees with its halves.
"""

# notation: N observations, C cells; S (observation, cell) pairs that matter; Q panels; λ = Λ_tt

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refica.likelihood import row_blocks
from refica.model import LOG_2PI, NonlinearICA
from refica.piecewise.arrangement import FRAME, Cells, cells
from refica.piecewise.scattered import Scattered
from refica.piecewise.truncated import Truncated, gauss_legendre, mass, pair, truncate
from refica.validation import Array

__all__ = ["Placed", "nodes_in_the_plane"]

NODES, WEIGHTS = gauss_legendre(12)

NEGLIGIBLE = 60.0
"""A cell is left out if a bound on its mass is below exp(-60) of the largest bound. The bounds may be large
by a few e^10 where a cell has its peak in a sharp corner; what is left out is part of the error."""

DEPTH = 60.0
"""How far h may rise along η before G is cut off: G falls at least as exp(-h) does, but for its width."""

AGREEMENT = 1e-13
"""A panel is accepted if it differs from its halves by less than this share of the whole integral: some
hundred roundings, as panels can have."""

BISECTIONS = 40
"""Most bisections of a panel; 40 resolve a step of 1e-12 of the panel."""

LIGHT = 1e-18
"""Lines with less than this share of the integral get no nodes."""

PAIRS = 2**17
"""(observation, cell) pairs looked at in one go, which bounds memory."""

PANELS = 512
"""Panels integrated in one go: 24 x 12 x 512 numbers stay in cache."""


class Placed(NamedTuple):
    """The ``nodes``; ``log_p`` (N,) by the cells' affine maps alone; the ``error`` (N,) of the sums over the
    nodes, relative to p(x); whether every panel was ``resolved`` (N,); and the ``peak`` (N, 2) of the
    density on the largest part of the plane."""

    nodes: Scattered
    log_p: Array
    error: Array
    resolved: Array
    peak: Array


class _Matter(NamedTuple):
    """For observations (N,): the log of the largest bound on the mass of a cell, ``scale``; a bound on the
    mass ``left_out`` and the ``peak`` (N, 2) on the cell of the largest bound; and the pairs (S,) that are
    left in: ``row``, ``cell``, and the peak's offset from the cell's anchor (S, 2)."""

    scale: Array
    left_out: Array
    peak: Array
    row: Array
    cell: Array
    offset: Array


class _Local(NamedTuple):
    """S cells seen from the peaks of the densities on them: whose (``row``), where (``peak`` (S, 2)), how
    high (``height``, over exp(scale)); κ (S, 2), λ, Λ_ty/λ and Λ_yy - Λ_ty²/λ; the trapezium's sides."""

    row: Array
    peak: Array
    height: Array
    kappa: Array
    precision: Array
    ratio: Array
    schur: Array
    bottom: Array
    top: Array
    left: Array
    right: Array


class _Panels(NamedTuple):
    """Q intervals [lower, upper] of η, each with the pair that ``owner`` numbers, and their ``integral``."""

    owner: Array
    lower: Array
    upper: Array
    integral: Array


def nodes_in_the_plane(model: NonlinearICA, x: Array) -> Placed:
    """Return the nodes for observations x (N, n): on the lines of all panels, the two-point Gauss rule of
    each piece, exact for integrands such as those of p(x) and its gradient.

    Raises
    ------
    ValueError
        If the decoder is not piecewise affine.
    """
    plane = cells(model.decoder, model.theta)
    found = [
        _what_matters(plane, x[rows], model.sigma2)
        for rows in row_blocks(len(x), max(1, PAIRS // len(plane.top)))
    ]
    starts = np.cumsum([0, *(len(part.scale) for part in found[:-1])])
    found = [part._replace(row=part.row + start) for part, start in zip(found, starts, strict=True)]
    matter = _Matter(*(np.concatenate(field) for field in zip(*found, strict=True)))
    local = _localise(plane, x, model.sigma2, matter)
    panels, total, disagreement, resolved = _refine(local, len(x))
    constant = 0.5 * model.data_dim * (LOG_2PI + math.log(model.sigma2)) + LOG_2PI
    return Placed(
        _place(local, panels, total),
        matter.scale + np.log(total) - constant,
        (disagreement + matter.left_out) / total,
        resolved,
        matter.peak @ FRAME.T,
    )


def _factors(a: Array, b: Array, sigma2: float) -> tuple[Array, Array, Array]:
    """Return λ = Λ_tt, Λ_ty/λ and Λ_yy - Λ_ty²/λ, all (C,), of Λ = I + [a b]ᵀ[a b]/σ² for a, b (C, n).

    The last is 1 + (‖b - βa‖² + β²‖a‖² σ²/(σ² + ‖a‖²))/σ² with β = a·b/‖a‖², where nothing cancels: the
    difference itself loses all digits on a ridge (n = 1, or parallel a and b) at small σ².
    """
    aa, ab = np.einsum("cn,cn->c", a, a), np.einsum("cn,cn->c", a, b)
    beta = ab / np.where(aa > 0.0, aa, 1.0)
    rest = b - beta[:, None] * a
    schur = 1.0 + np.einsum("cn,cn->c", rest, rest) / sigma2 + beta * beta * aa / (sigma2 + aa)
    return 1.0 + aa / sigma2, ab / (sigma2 + aa), schur


def _what_matters(plane: Cells, x: Array, sigma2: float) -> _Matter:
    """Maximise the joint density on every cell for observations x (N, n), and leave out small cells."""
    a, b = plane.jacobian[..., 0], plane.jacobian[..., 1]
    precision, ratio, schur = _factors(a, b, sigma2)
    residual = x[:, None, :] - plane.value
    by_t = np.einsum("icn,cn->ic", residual, a) / sigma2 - plane.anchor[:, 0]
    by_y = np.einsum("icn,cn->ic", residual, b) / sigma2 - plane.anchor[:, 1]
    log_peak, best_tau, best_eta = np.full(by_t.shape, -np.inf), np.zeros_like(by_t), np.zeros_like(by_t)
    for eta in _stationary(plane, by_t, by_y, precision, ratio, schur):
        eta = np.minimum(np.maximum(eta, plane.bottom), plane.top)
        lower, upper = (side[:, 0] + side[:, 1] * eta for side in (plane.left, plane.right))
        tau = np.minimum(np.maximum(by_t / precision - ratio * eta, lower), upper)
        r = residual - tau[..., None] * a - eta[..., None] * b
        prior = (plane.anchor[:, 0] + tau) ** 2 + (plane.anchor[:, 1] + eta) ** 2
        height = -0.5 * (np.einsum("icn,icn->ic", r, r) / sigma2 + prior)
        better = height > log_peak
        log_peak = np.where(better, height, log_peak)
        best_tau, best_eta = np.where(better, tau, best_tau), np.where(better, eta, best_eta)
    bound = log_peak + np.log(np.minimum(2.0 * math.pi / np.sqrt(precision * schur), _areas(plane)))
    best = bound.argmax(axis=1)
    scale = bound.max(axis=1)
    kept = bound > scale[:, None] - NEGLIGIBLE
    left_out = np.where(kept, 0.0, np.exp(np.maximum(bound - scale[:, None], -700.0))).sum(axis=1)
    row, cell = np.nonzero(kept)
    offset = np.stack([best_tau, best_eta], axis=-1)
    peak = plane.anchor[best] + offset[np.arange(len(x)), best]
    return _Matter(scale, left_out, peak, row, cell, offset[row, cell])


def _stationary(
    plane: Cells, by_t: Array, by_y: Array, precision: Array, ratio: Array, schur: Array
) -> Iterator[Array]:
    """Yield η (N, C) of the points among which the peak of a parabola on a trapezium is, once they are
    moved into it: its peak in the plane, on the line of either side, and at the two ends.

    Where a side or an end is missing, some other point stands in for it.
    """
    free = (by_y - ratio * by_t) / schur
    yield free
    for side in (plane.left, plane.right):
        at, rate = np.where(np.isfinite(side[:, :1]), side, 0.0).T
        along = (by_t - precision * at) * rate + by_y - precision * ratio * at
        yield along / (precision * (rate + ratio) ** 2 + schur)
    for end in (plane.bottom, plane.top):
        yield np.where(np.isfinite(end), end, free)


def _areas(plane: Cells) -> Array:
    """Areas (C,) of the trapezia, inf for those without end; with a floor that keeps their log finite."""
    height = plane.top - plane.bottom
    with np.errstate(invalid="ignore"):  # inf - inf, 0 inf
        at, rate = (plane.right - plane.left).T  # sides by themselves cancel if parallel up to 1e18
        widths = [np.maximum(at + rate * eta, 0.0) for eta in (plane.bottom, plane.top)]
        area = 0.5 * height * (widths[0] + widths[1])
    return np.where(np.isfinite(area), np.maximum(area, np.finfo(float).tiny), np.inf)


def _localise(plane: Cells, x: Array, sigma2: float, matter: _Matter) -> _Local:
    """Describe the pairs from their peaks; what is exactly zero there is exactly zero."""
    cell, (tau, eta) = matter.cell, matter.offset.T
    a, b = plane.jacobian[cell, :, 0], plane.jacobian[cell, :, 1]
    residual = x[matter.row] - plane.value[cell] - tau[:, None] * a - eta[:, None] * b
    peak = plane.anchor[cell] + matter.offset
    squared = np.einsum("sn,sn->s", residual, residual) / sigma2 + np.einsum("sq,sq->s", peak, peak)
    slopes = np.stack([np.einsum("sn,sn->s", residual, column) for column in (a, b)], axis=1) / sigma2
    sides = [
        np.stack([side[cell, 0] + side[cell, 1] * eta - tau, side[cell, 1]], axis=1)
        for side in (plane.left, plane.right)
    ]
    return _Local(
        matter.row,
        peak,
        np.exp(-0.5 * squared - matter.scale[matter.row]),
        peak - slopes,
        *_factors(a, b, sigma2),
        plane.bottom[cell] - eta,
        plane.top[cell] - eta,
        *sides,
    )


def _along(local: _Local, side: Array) -> tuple[Array, Array, Array]:
    """The parabola h = c + k η + ½ C η² along a side τ = at + rate η, coefficients (S,); of a missing side
    they are those along τ = 0, which nobody asks for."""
    at, rate = np.where(np.isfinite(side[:, :1]), side, 0.0).T
    turn = rate + local.ratio
    return (
        at * (local.kappa[:, 0] + 0.5 * local.precision * at),
        local.kappa[:, 1] + rate * local.kappa[:, 0] + local.precision * at * turn,
        local.precision * turn * turn + local.schur,
    )


def _lines(local: _Local, eta: Array) -> Truncated:
    """Return the Gaussians along the lines η (S, q), flat (S q,)."""
    slope = local.kappa[:, :1] + (local.precision * local.ratio)[:, None] * eta
    lower, upper = (side[:, :1] + side[:, 1:] * eta for side in (local.left, local.right))
    fields = slope, local.precision[:, None], lower, np.maximum(lower, upper)
    return truncate(*(np.broadcast_to(field, eta.shape).ravel() for field in fields))


def _depth(local: _Local, eta: Array) -> Array:
    """h at the peaks of the lines η (S, q): where ∂h/∂τ = 0, or on a side if h rises from it inwards.

    There h is that of the side: the parabola of the free peak plus a square would be a small difference.
    """
    kappa_t, kappa_y = local.kappa[:, :1], local.kappa[:, 1:]
    precision, ratio = local.precision[:, None], local.ratio[:, None]
    h = eta * (kappa_y - ratio * kappa_t + 0.5 * local.schur[:, None] * eta)
    h -= 0.5 * kappa_t * kappa_t / precision
    for side, inwards in ((local.left, 1.0), (local.right, -1.0)):
        slope = kappa_t + precision * (ratio * eta + side[:, :1] + side[:, 1:] * eta)
        c, k, C = (coefficient[:, None] for coefficient in _along(local, side))
        h = np.where(inwards * slope > 0.0, c + eta * (k + 0.5 * C * eta), h)
    return h


def _cuts(local: _Local) -> Array:
    """Return where η is cut into panels, (S, 9), ascending, with repeats.

    G is the mass of whole lines less what lies beyond either side, or the difference of what lies beyond
    the two. Beyond a side lies about exp(-h) with h along that side, which counts only where that is below
    `DEPTH`, and is 1/sqrt(C) wide: G steps where its hump runs into a side, and saturates in a wedge, in no
    time, and no bisection would notice. So panels begin and end where the sides count, and at the middle of
    that, besides the peak and the ends of G.
    """
    first, last = _reach(local, local.bottom), _reach(local, local.top)
    cuts = [first, np.zeros_like(first), last]
    for side in (local.left, local.right):
        c, k, C = _along(local, side)
        middle = -k / C
        depth = np.where(np.isfinite(side[:, 0]), DEPTH - (c + 0.5 * k * middle), 0.0)
        half = np.sqrt(2.0 * np.maximum(depth, 0.0) / C)
        cuts += [np.where(half > 0.0, middle + step * half, 0.0) for step in (-1.0, 0.0, 1.0)]
    return np.sort(np.clip(np.stack(cuts, axis=1), first[:, None], last[:, None]), axis=1)


def _reach(local: _Local, end: Array) -> Array:
    """How far towards an end (S,), at most to it, h stays below `DEPTH`; h is at least ½ schur η²."""
    farthest = np.sqrt(2.0 * DEPTH / local.schur)
    farthest = np.minimum(np.maximum(end, -farthest), farthest)
    near, far = np.zeros_like(farthest), farthest
    inside = _depth(local, far[:, None])[:, 0] <= DEPTH
    for _ in range(BISECTIONS):
        middle = 0.5 * (near + far)
        low = _depth(local, middle[:, None])[:, 0] <= DEPTH
        near, far = np.where(low, middle, near), np.where(low, far, middle)
    return np.where(inside, farthest, far)


def _outer(local: _Local, eta: Array) -> tuple[Array, Truncated]:
    """Return G(η) over exp(scale) (S, q), and the Gaussians that it is the mass of, flat (S q,)."""
    lines = _lines(local, eta)
    return local.height[:, None] * np.exp(-_depth(local, eta)) * mass(lines).reshape(eta.shape), lines


def _integrate(local: _Local, owner: Array, lower: Array, upper: Array) -> _Panels:
    """∫ G over each interval, by 12 points."""
    integral = np.empty(len(owner))
    for rows in row_blocks(len(owner), PANELS):
        width = upper[rows] - lower[rows]
        here = _Local(*(field[owner[rows]] for field in local))
        G, _ = _outer(here, lower[rows, None] + width[:, None] * NODES)
        integral[rows] = width * (G @ WEIGHTS)
    return _Panels(owner, lower, upper, integral)


def _refine(local: _Local, N: int) -> tuple[_Panels, Array, Array, Array]:
    """Bisect panels until each agrees with its halves. Return the halves, the integrals (N,) and the sum of
    the disagreements (N,), both over exp(scale), and whether all panels came to agree (N,)."""
    cuts = _cuts(local)
    owner, panel = np.nonzero(cuts[:, 1:] > cuts[:, :-1])
    panels = _integrate(local, owner, cuts[owner, panel], cuts[owner, panel + 1])
    accepted, total, disagreement = [], np.zeros(N), np.zeros(N)
    for _ in range(BISECTIONS):
        middle = 0.5 * (panels.lower + panels.upper)
        ends = np.concatenate([panels.lower, middle]), np.concatenate([middle, panels.upper])
        halves = _integrate(local, np.tile(panels.owner, 2), *ends)
        finer = halves.integral.reshape(2, -1).sum(axis=0)
        gap, row = np.abs(finer - panels.integral), local.row[panels.owner]
        agree = gap <= AGREEMENT * (total + np.bincount(row, finer, N))[row]
        total += np.bincount(row[agree], finer[agree], N)
        disagreement += np.bincount(row[agree], gap[agree], N)
        accepted.append(_Panels(*(field[np.tile(agree, 2)] for field in halves)))
        panels = _Panels(*(field[~np.tile(agree, 2)] for field in halves))
        if not len(panels.owner):
            break
    row = local.row[panels.owner]
    total += np.bincount(row, panels.integral, N)
    disagreement += np.bincount(row, panels.integral, N)
    accepted.append(panels)
    panels = _Panels(*(np.concatenate(field) for field in zip(*accepted, strict=True)))
    return panels, total, disagreement, np.bincount(row, minlength=N) == 0


def _place(local: _Local, panels: _Panels, total: Array) -> Scattered:
    """Return the two-point Gauss rule on every line of every panel that is not `LIGHT`."""
    panels = _Panels(*(field[np.argsort(local.row[panels.owner], kind="stable")] for field in panels))
    rows, zs, log_weights = [], [], []
    for block in row_blocks(len(panels.owner), PANELS):
        owner = panels.owner[block]
        width = (panels.upper - panels.lower)[block, None]
        here = _Local(*(field[owner] for field in local))
        eta = panels.lower[block, None] + width * NODES
        weight = width * WEIGHTS
        G, lines = _outer(here, eta)
        heavy = np.flatnonzero(weight * G > LIGHT * total[here.row][:, None])
        of = heavy // eta.shape[1]
        tau, log_weight = pair(Truncated(*(field[heavy] for field in lines)))
        t, y = here.peak[of, :1] + tau, here.peak[of, 1:] + eta.ravel()[heavy, None]
        rows.append(np.repeat(here.row[of], 2))
        zs.append((np.stack([t, np.broadcast_to(y, t.shape)], axis=-1) @ FRAME.T).reshape(-1, 2))
        log_weights.append((log_weight + np.log(weight.ravel()[heavy, None])).ravel())
    return Scattered(np.concatenate(rows), np.concatenate(zs), np.concatenate(log_weights))
