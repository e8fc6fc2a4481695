"""Gauss-Newton steps on the likelihood, with nodes that follow the posterior modes: how L-BFGS is opened.

About a mode z* the decoder is nearly affine, g(z) ≈ g(z*) + G (z - z*), so that X is about Gaussian with
covariance C = G Gᵀ + σ² I: noise across the decoder's surface, noise and prior along it. What the data say of
u = (v, log σ²) is then the information

    B = (1/N) Σ_i  J_iᵀ C_i⁻¹ J_i  for v,     ½ tr (σ² C_i⁻¹)²  for log σ²,     J_i = ∂g(z_i*)/∂v

and a step is (B + λ I)⁻¹ ∇_u with the gradient of the likelihood itself; λ falls after a step that did as
promised and rises after one that did not (Levenberg 1944, Marquardt 1963). JᵀJ/σ², for least squares at
frozen z*, would hold the decoder back from sliding along itself, which costs little: C⁻¹ does not.

Some twenty steps do the work of a thousand of L-BFGS where a decoder is badly scaled.
"""

# notation: N observations, R modes, n data, m latent, p parameters; u (p + 1,) as in refica.fit.problem

from __future__ import annotations

import inspect
import math

import numpy as np
from scipy import linalg

from refica.fit.followed_modes import FollowedModes, follow, latent_slopes, modes_within
from refica.fit.problem import Problem, Round
from refica.fit.result import Step
from refica.likelihood import DECODER_ROWS, Gradient, row_blocks
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

MOST_PARAMETERS = 1000
"""Of a decoder, for which B is made: it has p² numbers, and takes p³/3 operations for a step."""


def suits(problem: Problem) -> bool:
    """Whether the log-likelihood is fitted, on nodes of refica's choice, with a curved and small decoder."""
    decoder = problem.start.decoder
    return (
        problem.integrator is None
        and problem.settings.objective == "log-likelihood"
        and not getattr(decoder, "is_affine", False)
        and decoder.n_params <= MOST_PARAMETERS
    )


def run_round(problem: Problem, start: NonlinearICA, done: int, steps: int) -> Round:
    """Take up to ``steps`` steps from ``start``, then evaluate on nodes made for the result."""
    nodes = problem.nodes_for(start)
    assert isinstance(nodes, Neighbourhoods)
    modes = modes_within(nodes, start, problem.x)
    model, history, damping = start, list[Step](), FIRST
    value, gradient = _value_and_gradient(problem, model, modes)
    while len(history) < steps and damping < MOST and not problem.has_collapsed(model):
        u, B = problem.coordinates.to(model), information(problem, model, modes)
        by_u = problem.coordinates.pull_back(gradient, model.sigma2)
        step = linalg.solve(B + damping * np.eye(len(u)), by_u, assume_a="pos")
        step[-1] = max(np.clip(step[-1], -LONGEST, LONGEST), math.log(problem.floor) - u[-1])
        promised = float(by_u @ step - 0.5 * step @ B @ step)
        there = problem.coordinates.model_at(u + step)
        modes_there = follow(modes, there, problem.x)
        value_there, gradient_there = _value_and_gradient(problem, there, modes_there)
        gain = value_there - value
        if not gain > SUFFICIENT * max(promised, 0.0):  # True for nan
            damping *= UP
            continue
        if gain > WELL * promised:
            damping = max(damping / DOWN, LEAST)
        model, modes, value, gradient = there, modes_there, value_there, gradient_there
        history.append(Step(done + len(history) + 1, value, model.sigma2, problem.watch.seconds()))
        if problem.watch.sees(history[-1]) or gain < SMALL * problem.settings.tol:
            break
    return problem.judged(model, tuple(history))


def _value_and_gradient(
    problem: Problem, model: NonlinearICA, modes: FollowedModes
) -> tuple[float, Gradient]:
    m = model.latent_dim
    return problem.value_and_gradient(model, modes.nodes(gauss_hermite(ORDER.get(m, ORDER[0]))))


def information(problem: Problem, model: NonlinearICA, modes: FollowedModes) -> Array:
    """B (p + 1, p + 1), about what an observation says of u; see the module's first lines.

    Each mode counts by its share.
    """
    N, n = problem.x.shape
    p, units = model.decoder.n_params, problem.coordinates.units
    some = np.linspace(0, N - 1, min(N, SCORED)).astype(int)
    log_share = modes.log_share[some]
    present = log_share > -np.inf
    z, share = modes.z[some][present], np.exp(log_share[present]) / len(some)
    B = np.zeros((p + 1, p + 1))
    for rows in row_blocks(len(z), DECODER_ROWS):
        G, J = latent_slopes(model, z[rows]), parameter_slopes(model, z[rows]) * units
        C = G @ np.swapaxes(G, 1, 2) + model.sigma2 * np.eye(n)
        whitened = np.linalg.solve(np.linalg.cholesky(C), J) * np.sqrt(share[rows])[:, None, None]
        whitened = whitened.reshape(-1, p)
        B[:-1, :-1] += whitened.T @ whitened
        noise = model.sigma2 * np.linalg.inv(C)
        B[-1, -1] += 0.5 * float(share[rows] @ np.einsum("rij,rij->r", noise, noise))
    return B


def parameter_slopes(model: NonlinearICA, z: Array) -> Array:
    """J = ∂g/∂θ at z (R, m), (R, n, p).

    By vector-Jacobian products that leave rows unsummed, where the decoder offers them
    (`refica.decoders.Decoder`), else by a Jacobian-vector product for each parameter.
    """
    decoder, theta, n = model.decoder, model.theta, model.data_dim
    if "each" in inspect.signature(decoder.vjp).parameters:
        pulled = [
            decoder.vjp(theta, z, np.broadcast_to(e, (len(z), n)), each=True)[0]  # type: ignore[call-arg]
            for e in np.eye(n)
        ]
        return np.stack(pulled, axis=1)
    still = np.zeros_like(z)
    return np.stack([decoder.jvp(theta, z, e, still) for e in np.eye(decoder.n_params)], axis=2)
