"""Gauss-Newton steps on the likelihood, with nodes that follow the posterior modes: how L-BFGS is opened.

About a mode z* the decoder is nearly affine, g(z) ≈ g(z*) + G (z - z*), so that X is about Gaussian with
covariance C = G Gᵀ + σ² I: noise across the decoder's surface, noise and prior along it. With G taken as
fixed, what the data say of v and of log σ² is then, about,

    B_v = (1/N) Σ_i  J_iᵀ C_i⁻¹ J_i,     B_σ = (1/N) Σ_i  ½ tr (σ² C_i⁻¹)²,     J_i = ∂g(z_i*)/∂v

and a step is (B + λ I)⁻¹ ∇_u with the gradient of the likelihood itself; λ falls after a step that did as
promised and rises after one that did not (Levenberg 1944, Marquardt 1963). JᵀJ/σ², for least squares at
frozen z*, would hold the decoder back from sliding along itself, which costs little: C⁻¹ does not.

Where a decoder is badly scaled, a few such steps reach what L-BFGS needs very many for.
"""

# notation: N observations, R modes, n data, m latent, p parameters; u (p + 1,) as in refica.fit.problem

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import linalg

from refica.ascent import regular
from refica.fit.followed_modes import FollowedModes, follow, latent_slopes, modes_within
from refica.fit.problem import Problem, Round
from refica.fit.result import Step
from refica.likelihood import row_blocks, tells_rows_apart
from refica.model import NonlinearICA
from refica.neighbourhoods import Neighbourhoods
from refica.rules import gauss_hermite
from refica.validation import Array

__all__ = ["information", "run_round", "suits"]

ORDER = {1: 5, 2: 5, 0: 3}
"""Of Gauss-Hermite at the modes, by m, 0 for any other. The gradient is that on frozen nodes: what is lost
when nodes move with the modes is the error of the rule, which ends the ascent early if it is a coarse one."""

FIRST, LEAST, MOST = 1e-2, 1e-9, 1e6
"""λ at the start, at least, and at most: there steps are too short to be worth while."""

UP, DOWN = 4.0, 3.0
"""Factors on λ after a step that failed, and after one that did more than `WELL` of what it promised."""

WELL, SUFFICIENT = 0.5, 0.1
"""Parts of the promised gain at which λ falls, and below which a step does not count."""

SMALL = 0.02
"""Part of the fit's tolerance below which the gain of a step ends a round."""

LONGEST = math.log(2.0)
"""Most by which log σ² moves in a step."""

SCORED = 2000
"""Observations, evenly spread, from which B is made."""

MOST_WORK = 2**32
"""Products that B may take, observations x n p²: about a second."""

SLOPES = 2**22
"""Bound on (modes x n x p) for which slopes are held at a time: 32 MiB."""


def suits(problem: Problem) -> bool:
    """Whether the log-likelihood is fitted, on nodes of refica's choice, with a curved and small decoder."""
    decoder, (N, n) = problem.start.decoder, problem.x.shape
    return (
        problem.integrator is None
        and problem.settings.objective == "log-likelihood"
        and not getattr(decoder, "is_affine", False)
        and min(N, SCORED) * n * decoder.n_params**2 <= MOST_WORK
    )


def run_round(problem: Problem, start: NonlinearICA, done: int, steps: int) -> Round:
    """Take up to ``steps`` steps from ``start``, then evaluate on nodes made for the result."""
    nodes = problem.nodes_for(start)
    assert isinstance(nodes, Neighbourhoods)
    here = _expand(problem, start, modes_within(nodes, start, problem.x))
    history: list[Step] = []
    B, damping = information(problem, here.model, here.modes), FIRST
    while len(history) < steps and damping < MOST:
        step = linalg.solve(B + damping * np.eye(len(B)), here.gradient, assume_a="pos")
        u = problem.coordinates.to(here.model)
        step[-1] = np.clip(step[-1], problem.lowest(u[-1], here.gradient[-1], LONGEST) - u[-1], LONGEST)
        promised = float(here.gradient @ step - 0.5 * step @ B @ step)
        model = problem.coordinates.model_at(u + step)
        there = _expand(problem, model, follow(here.modes, model, problem.x))
        gain = there.value - here.value
        if not gain > SUFFICIENT * max(promised, 0.0):  # True for nan
            damping *= UP
            continue
        if gain > WELL * promised:
            damping = max(damping / DOWN, LEAST)
        here = there
        history.append(Step(done + len(history) + 1, here.value, model.sigma2, problem.watch.seconds()))
        small = gain < SMALL * problem.settings.tol
        if problem.watch.sees(history[-1]) or small or problem.has_collapsed(model):
            break
        B = information(problem, here.model, here.modes)
    return problem.judged(here.model, tuple(history))


class _Point(NamedTuple):
    """A model, the modes of its posteriors, its mean objective on nodes there, and ∇_u of that (p + 1,)."""

    model: NonlinearICA
    modes: FollowedModes
    value: float
    gradient: Array


def _expand(problem: Problem, model: NonlinearICA, modes: FollowedModes) -> _Point:
    rule = gauss_hermite(ORDER.get(model.latent_dim, ORDER[0]))
    value, gradient = problem.value_and_gradient(model, modes.nodes(rule))
    return _Point(model, modes, value, problem.coordinates.pull_back(gradient, model.sigma2))


def information(problem: Problem, model: NonlinearICA, modes: FollowedModes) -> Array:
    """B (p + 1, p + 1), about what an observation says of u; see the module's first lines.

    Each mode counts by its share; between v and log σ² there is nothing.
    """
    N, n = problem.x.shape
    p, units = model.decoder.n_params, problem.coordinates.units
    some = np.linspace(0, N - 1, min(N, SCORED)).astype(int)
    log_share = modes.log_share[some]
    present = log_share > -np.inf
    z, share = modes.z[some][present], np.exp(log_share[present]) / len(some)
    B = np.zeros((p + 1, p + 1))
    for rows in row_blocks(len(z), max(1, SLOPES // (n * p))):
        G, J = latent_slopes(model, z[rows]), parameter_slopes(model, z[rows]) * units
        C = regular(G @ np.swapaxes(G, 1, 2) + model.sigma2 * np.eye(n))
        root = np.sqrt(share[rows])[:, None, None] * np.linalg.inv(np.linalg.cholesky(C))
        whitened = (root @ J).reshape(-1, p)
        B[:-1, :-1] += whitened.T @ whitened
        noise = model.sigma2 * np.linalg.inv(C)
        B[-1, -1] += 0.5 * float(share[rows] @ np.einsum("rij,rij->r", noise, noise))
    return np.asarray(regular(B[None])[0])


def parameter_slopes(model: NonlinearICA, z: Array) -> Array:
    """J = ∂g/∂θ at z (R, m), (R, n, p).

    By vector-Jacobian products that leave rows unsummed, where the decoder offers them
    (`refica.decoders.Decoder`), else by a Jacobian-vector product for each parameter.
    """
    decoder, theta, n = model.decoder, model.theta, model.data_dim
    if tells_rows_apart(decoder):
        pulled = [
            decoder.vjp(theta, z, np.broadcast_to(e, (len(z), n)), each=True)[0]  # type: ignore[call-arg]
            for e in np.eye(n)
        ]
        return np.stack(pulled, axis=1)
    still = np.zeros_like(z)
    return np.stack([decoder.jvp(theta, z, e, still) for e in np.eye(decoder.n_params)], axis=2)
