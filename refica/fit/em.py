"""EM on frozen nodes (mathematics section 6; Dempster, Laird and Rubin, JRSS B 39, 1977).

E-step: the responsibilities ρ_ik of the nodes. M-step, with weights c_i of the observations (1 for the
log-likelihood; N softmax_i log p(x_i) for the documents' sum of densities, which has the same bound):

    θ  <- argmin Q(θ),   Q(θ) = Σ_ik c_i ρ_ik ‖x_i - g_θ(z_ik)‖²
    σ² <- Q(θ) / (n Σ_i c_i)

Where g is linear in θ the first is a weighted least-squares problem, solved as one; otherwise a few steps of
L-BFGS lower Q (generalised EM). On frozen nodes the objective never decreases, by Jensen's inequality, up to
the rounding of its sum.

Nodes of each observation's own make a regression of N K rows, n + m + 1 numbers each, held in memory.
"""

# notation: N observations, n data, m latent, K nodes, p parameters, q features; rho (N, K); c (N,); the
# regression's rows: z (R, m), weight (R,), target (R, n), with R = K for shared nodes and N K for own ones

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from refica.decoders import MLP, Decoder, Polynomial
from refica.fit.problem import Problem, Round
from refica.fit.result import Step
from refica.fit.rounds import Rounds
from refica.likelihood import DECODER_ROWS, Nodes, decode, row_blocks, tiles
from refica.model import NonlinearICA
from refica.neighbourhoods import Neighbourhoods
from refica.quadrature import FixedNodes
from refica.validation import Array

__all__ = ["METHOD", "em_step"]

TRIAL_STEPS = 20

ROUND_STEPS = {1: 50, 0: 10}
"""Steps on one set of frozen nodes, by latent dimension."""

M_STEPS = 10
"""Steps of L-BFGS in a generalised M-step: more cost as much as the E-steps they save."""

EVERY_DIRECTION = 1e-13
"""Directions of the features with a singular value below this part of the largest are left out."""


class _Expected(NamedTuple):
    """What an E-step says of a block: ``log_p`` (N,); the rows of the regression, ``z`` (R, m), ``weight``
    (R,) = Σ_i c_i ρ_ik and ``target`` (R, n) = Σ_i c_i ρ_ik x_i / weight; and ``within`` = Σ_ik c_i ρ_ik
    ‖x_i - target_k‖², what no g explains: Q(θ) = Σ_k weight_k ‖target_k - g(z_k)‖² + within."""

    log_p: Array
    z: Array
    weight: Array
    target: Array
    within: float


def em_step(
    problem: Problem, model: NonlinearICA, nodes: FixedNodes | Neighbourhoods
) -> tuple[float, NonlinearICA]:
    """Return the mean objective of the model on frozen nodes, and the model after one step of EM."""
    c = np.ones(len(problem.x))
    if problem.settings.objective == "density-sum":
        log_p = problem.evaluate(model, nodes, gradient=False).per_observation
        c = len(log_p) * special.softmax(log_p)
    rows = np.cumsum([0] + [len(x) for x, _ in problem.blocks(model, nodes)])
    blocks = [
        (x, part, c[start : start + len(x)])
        for (x, part), start in zip(problem.blocks(model, nodes), rows, strict=False)
    ]
    shared = isinstance(nodes, FixedNodes) and nodes.z.ndim == 2
    found = _joined(problem.mapped(partial(_expect, model), blocks), shared)
    theta, squared = _maximise(problem, model, found)
    sigma2 = max((squared + found.within) / (model.data_dim * float(c.sum())), problem.floor)
    after = model.replace(theta=theta, sigma2=None if problem.settings.fixed_sigma2 else sigma2)
    return problem.mean_objective(found.log_p), after


def _expect(model: NonlinearICA, block: tuple[Array, Any, Array]) -> _Expected:
    """The E-step of a block: observations x (N, n), their nodes, their weights c (N,)."""
    x, frozen, c = block
    if isinstance(frozen, Neighbourhoods):
        return _expect_of_pairs(model, x, frozen, c)
    nodes = Nodes(*frozen.nodes(model, x))
    shared, n = nodes.z.ndim == 2, x.shape[1]
    log_p, weights = np.empty(len(x)), []
    sums, squared = np.zeros((nodes.z.shape[-2], n)), np.zeros(nodes.z.shape[-2])
    centre = x.mean(axis=0)
    for tile in tiles(model.decoder, model.theta, model.sigma2, x, nodes):
        weight = tile.rho * c[tile.rows, None]
        log_p[tile.rows] = tile.log_p
        weights.append(weight.sum(axis=0) if shared else weight)
        if shared:
            sums += weight.T @ (x[tile.rows] - centre)
            squared += np.einsum("ik,ik->k", weight, tile.squared)
    if not shared:
        target = np.repeat(x, nodes.z.shape[1], axis=0)
        return _Expected(
            log_p, nodes.z.reshape(len(target), -1), np.concatenate(weights).ravel(), target, 0.0
        )
    g = decode(model.decoder, model.theta, nodes.z)
    return _at_nodes(log_p, nodes.z, g, np.sum(weights, axis=0), sums, centre, float(squared.sum()))


def _expect_of_pairs(model: NonlinearICA, x: Array, frozen: Neighbourhoods, c: Array) -> _Expected:
    """The same where each observation visits its neighbourhood."""
    g = decode(model.decoder, model.theta, frozen.z)
    log_p, rho, squared = frozen.shares(model, x, g)
    rho *= np.repeat(c, np.diff(frozen.start))
    sums, weight = frozen.sums_at_nodes(rho, x)
    return _at_nodes(log_p, frozen.z, g, weight, sums, x.mean(axis=0), float(rho @ squared))


def _at_nodes(
    log_p: Array, z: Array, g: Array, weight: Array, sums: Array, centre: Array, squared: float
) -> _Expected:
    """The regression at nodes z (K, m) from weight (K,) = Σ_i c_i ρ_ik and sums (K, n) = Σ_i c_i ρ_ik
    (x_i - centre); squared = Σ_ik c_i ρ_ik ‖x_i - g_k‖² splits into within and Σ_k weight ‖target - g_k‖²."""
    target = centre + sums / np.maximum(weight, np.finfo(float).tiny)[:, None]
    r = target - g
    return _Expected(log_p, z, weight, target, squared - float(weight @ np.einsum("kn,kn->k", r, r)))


def _joined(parts: list[_Expected], shared: bool) -> _Expected:
    """Put the blocks together: nodes that are shared add up, others stand one after the other."""
    log_p = np.concatenate([part.log_p for part in parts])
    within = math.fsum(part.within for part in parts)
    if not shared:
        z, weight, target = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
        return _Expected(log_p, z, weight, target, within)
    weight = np.sum([part.weight for part in parts], axis=0)
    floor = np.maximum(weight, np.finfo(float).tiny)[:, None]
    target = np.sum([part.weight[:, None] * part.target for part in parts], axis=0) / floor
    for part in parts:  # the spread of the blocks' targets about the joint ones
        r = part.target - target
        within += float(part.weight @ np.einsum("kn,kn->k", r, r))
    return _Expected(log_p, parts[0].z, weight, target, within)


def _maximise(problem: Problem, model: NonlinearICA, found: _Expected) -> tuple[Array, float]:
    """Return θ (p,) that lowers Σ_k weight_k ‖target_k - g(z_k)‖², and that sum; the same θ if none does."""
    before = _squared(model.decoder, model.theta, found)
    if isinstance(model.decoder, Polynomial) or (
        isinstance(model.decoder, MLP) and model.decoder.is_affine and len(model.decoder.sizes) == 2
    ):
        theta = _least_squares(model.decoder, found)
    else:
        theta = _descend(problem, model, found)
    after = _squared(model.decoder, theta, found)
    return (theta, after) if after < before else (model.theta, before)


def _least_squares(decoder: MLP | Polynomial, found: _Expected) -> Array:
    """Return θ (p,) of the minimum for a decoder g(z) = C f(z) that is linear in θ, by the triangular factor
    of the weighted features beside the targets, a block of rows at a time."""
    n, q = decoder.data_dim, decoder.n_params // decoder.data_dim
    factor: Array = np.zeros((0, q + n))
    for rows in row_blocks(len(found.z), 4 * DECODER_ROWS):
        beside = np.hstack([_features(decoder, found.z[rows]), found.target[rows]])
        beside = np.vstack([factor, np.sqrt(found.weight[rows])[:, None] * beside])
        factor = np.asarray(np.linalg.qr(beside, mode="r"))
    C = np.linalg.lstsq(factor[:q, :q], factor[:q, q:], rcond=EVERY_DIRECTION)[0].T
    if isinstance(decoder, Polynomial):
        return np.ascontiguousarray(C).ravel()
    return np.concatenate([C[:, :-1].ravel(), C[:, -1]])


def _features(decoder: MLP | Polynomial, z: Array) -> Array:
    """f(z), (R, q): the monomials, or z and 1."""
    if isinstance(decoder, Polynomial):
        q = decoder.n_params // decoder.data_dim
        return Polynomial(decoder.latent_dim, q, decoder.degree)(np.eye(q).ravel(), z)
    return np.column_stack([z, np.ones(len(z))])


def _descend(problem: Problem, model: NonlinearICA, found: _Expected) -> Array:
    """Return θ (p,) after a few steps of L-BFGS on the mean weighted squared residual."""
    coordinates = problem.coordinates
    scale = 1.0 / (float(found.weight.sum()) * float(problem.x.var(axis=0).mean()))

    def loss(v: Array) -> tuple[float, Array]:
        theta = coordinates.shift + coordinates.units * v
        value, gradient = 0.0, np.zeros_like(v)
        for rows in row_blocks(len(found.z), DECODER_ROWS):
            r = model.decoder(theta, found.z[rows]) - found.target[rows]
            weighted = scale * found.weight[rows, None] * r
            value += float(np.einsum("kn,kn->", weighted, r))
            gradient += coordinates.units * model.decoder.vjp(theta, found.z[rows], 2.0 * weighted)[0]
        return value, gradient

    v = coordinates.to(model)[:-1]
    options = {"maxiter": M_STEPS, "maxcor": M_STEPS, "ftol": 0.0, "gtol": 0.0}
    found_v = optimize.minimize(loss, v, jac=True, method="L-BFGS-B", options=options).x
    return coordinates.shift + coordinates.units * found_v


def _squared(decoder: Decoder, theta: Array, found: _Expected) -> float:
    """Σ_k weight_k ‖target_k - g(z_k)‖²."""
    total = 0.0
    for rows in row_blocks(len(found.z), DECODER_ROWS):
        r = found.target[rows] - decoder(theta, found.z[rows])
        total += float(found.weight[rows] @ np.einsum("kn,kn->k", r, r))
    return total


def _run_round(problem: Problem, start: NonlinearICA, done: int, steps: int) -> Round:
    """Take steps of EM on nodes made for ``start`` and frozen; the objective of a step is that before it."""
    made = problem.nodes_for(start)
    model = start
    history: list[Step] = []
    for iteration in range(done + 1, done + steps + 1):
        nodes = made
        if not isinstance(nodes, (FixedNodes, Neighbourhoods)):  # exact ones, made anew for every step
            nodes = FixedNodes(*made.nodes(model, problem.x))
        value, model = em_step(problem, model, nodes)
        history.append(Step(iteration, value, model.sigma2, problem.watch.seconds()))
        if problem.watch.sees(history[-1]) or problem.has_collapsed(model):
            break
    return problem.judged(model, tuple(history))


METHOD = Rounds(_run_round, TRIAL_STEPS, ROUND_STEPS)
