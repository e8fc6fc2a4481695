"""Proposals: where, for each observation, a rule's N(0, I) nodes are placed.

A proposal names, per observation, a mixture of Gaussians q_i(z) = Σ_c α_ic N(z; μ_ic, L_ic L_icᵀ). A
rule's nodes t_k, weights w_k go to z_ick = μ_ic + L_ic t_k with

    log_weight_ick = log w_k + log α_ic - log q_i(z_ick),

which for one component is log w_k - log φ(t_k) + log|det L|. With several components it is the rule
applied to each component's share of the integrand, the shares being the smooth partition of unity
α_ic N(z; μ_ic, ..) / q_i(z).
"""

# notation: N observations, C components, m latent, K nodes of the rule

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import special

from refica.decoders import Decoder
from refica.encoder import encode
from refica.lattices import Apart
from refica.likelihood import Nodes
from refica.model import LOG_2PI, NonlinearICA
from refica.modes import Modes, find_modes, laplace_mass, log_volume, mass_apart
from refica.rules import Rule
from refica.validation import Array, check_array

__all__ = [
    "PROPOSALS",
    "AllModes",
    "EncoderProposal",
    "Gaussians",
    "LaplaceProposal",
    "Proposal",
    "mixture_at",
    "place",
]

COVERED = 0.01
"""Least share of q's mass that must lie about a mode for q to cover it. A rule of a few hundred nodes has
some of them there then, so that its own error estimate sees the mode; for Gaussians of one width it is a
distance of 3 standard deviations."""

WIDER = 2.5
"""Factor on the scale of the wider components of a defensive mixture."""

PRIOR_SHARE = 0.25
"""Share of the prior in a defensive mixture."""

NEGLIGIBLE = 1e-12
"""Share of the mass below which "modes" leaves a mode out. What is left out counts as uncovered."""

MOST_COMPONENTS = 32
"""Largest number of components of "modes"; the modes with the least mass are left out beyond it."""


class Gaussians(NamedTuple):
    """A mixture per observation: ``log_share`` (N, C) = log α, -inf for an absent component; ``mean``
    (N, C, m); ``scale`` (N, C, m, m) = L, triangular with a positive diagonal; ``problems`` as in
    `refica.likelihood.Estimate`; ``uncovered`` (N,), the log of the part of p(x_i) that the proposal knows
    to lie where the mixture has next to nothing, by Laplace's approximation; ``apart`` what the lattice of
    starts saw apart from all modes, None if nothing."""

    log_share: Array
    mean: Array
    scale: Array
    problems: dict[str, Array]
    uncovered: Array | float = -np.inf
    apart: Apart | None = None


class Proposal(Protocol):
    """Anything that returns Gaussians for a model and observations."""

    def gaussians(self, model: NonlinearICA, x: Array) -> Gaussians:
        """Return the mixtures for observations x (N, n)."""


def place(t: Array, log_w: Array, gaussians: Gaussians) -> Nodes:
    """Return nodes z (N, C K, m) and log weights (N, C K) of a rule t (K, m), log w (K,) on mixtures.

    Absent components keep their (finite) nodes with log weight -inf. q is evaluated at the nodes as they
    are after rounding, not at the t they came from: where q is close to the posterior, the errors that
    rounding a node makes in both cancel.
    """
    N, C, m = gaussians.mean.shape
    z = gaussians.mean[:, :, None, :] + np.einsum("ncij,kj->ncki", gaussians.scale, t)
    z = z.reshape(N, C * len(t), m)
    log_q = _log_mixture(z, gaussians)
    log_weight = (gaussians.log_share[:, :, None] + log_w).reshape(N, -1) - log_q
    return Nodes(z, log_weight)


def place_at_random(rule: Rule, gaussians: Gaussians) -> Nodes:
    """Return nodes z (N, K, m) and log weights (N, K) of a random rule on mixtures: importance sampling.

    Each node goes to one component, picked by one more coordinate of the rule's points, so that the nodes
    are a sample of q_i, with weights log w - log q_i(z).
    """
    N, C, m = gaussians.mean.shape
    if C == 1:
        return place(*rule.points(m), gaussians)
    t, log_w = rule.points(m + 1)
    upto = np.cumsum(np.exp(gaussians.log_share), axis=1)
    c = (special.ndtr(t[:, -1])[None, :, None] > upto[:, None, :-1]).sum(axis=2)
    i = np.arange(N)[:, None]
    z = gaussians.mean[i, c] + np.einsum("nkij,kj->nki", gaussians.scale[i, c], t[:, :-1])
    return Nodes(z, log_w - _log_mixture(z, gaussians))


def defended(q: Gaussians) -> Gaussians:
    """Return the mixture that a random rule samples instead: half of it q, a quarter q with its components
    `WIDER` times as wide, and a quarter the prior.

    A Gaussian fitted at a mode has lighter tails than many a posterior; the weights of the draws that do
    fall there are then so unequal that neither the mean nor its standard error can be trusted. The wider
    copy takes care of moderate tails; with the prior the weights are bounded, by p(x|z) / (p(x)/4)
    (a defensive mixture: Hesterberg, Technometrics 37, 1995).
    """
    N, _, m = q.mean.shape
    half, quarter = np.log(0.5), np.log(PRIOR_SHARE)
    return q._replace(
        log_share=np.concatenate(
            [q.log_share + half, q.log_share + quarter, np.full((N, 1), quarter)], axis=1
        ),
        mean=np.concatenate([q.mean, q.mean, np.zeros((N, 1, m))], axis=1),
        scale=np.concatenate([q.scale, WIDER * q.scale, np.broadcast_to(np.eye(m), (N, 1, m, m))], axis=1),
    )


def _log_mixture(z: Array, gaussians: Gaussians) -> Array:
    """log q_i(z_ik) for z (N, K, m), (N, K)."""
    _, C, m = gaussians.mean.shape
    log_q = np.full(z.shape[:2], -np.inf)
    for c in range(C):
        rows = np.flatnonzero(gaussians.log_share[:, c] > -np.inf)
        L = gaussians.scale[rows, c]
        offset = np.swapaxes(z[rows] - gaussians.mean[rows, c, None, :], 1, 2)
        u = np.linalg.solve(L, offset)
        log_det = np.log(np.einsum("nii->ni", L)).sum(axis=1)
        constant = gaussians.log_share[rows, c] - log_det - 0.5 * m * LOG_2PI
        term = -0.5 * np.einsum("nmk,nmk->nk", u, u) + constant[:, None]
        log_q[rows] = np.logaddexp(log_q[rows], term)
    return log_q


@dataclass(frozen=True, slots=True)
class LaplaceProposal:
    """The Gaussian at the best mode, that of the largest `laplace_mass`: N(z*, A⁻¹)."""

    def gaussians(self, model: NonlinearICA, x: Array) -> Gaussians:
        """Return one component per observation; the other modes found are uncovered if it misses them."""
        found = find_modes(model, x)
        return _diagnosed(model, x, found, _gaussians_at(found, np.zeros((len(x), 1))))


@dataclass(frozen=True, slots=True)
class AllModes:
    """A mixture of Gaussians at all modes found, with Laplace's approximation of their masses as shares."""

    def gaussians(self, model: NonlinearICA, x: Array) -> Gaussians:
        """Return as many components as the observation with the most modes needs."""
        found = find_modes(model, x)
        return _diagnosed(model, x, found, mixture_at(found))


@dataclass(frozen=True, slots=True, init=False, eq=False)
class EncoderProposal:
    """The diagonal Gaussian of an encoder: q(z | x) = N(μ(x), diag s(x)²).

    Parameters
    ----------
    encoder : MLP
        n inputs, 2m outputs: m means, then m log variances (`refica.encoder.encode`).
    phi : array_like
        Its parameters; a read-only copy is kept.

    Raises
    ------
    TypeError, ValueError
        If phi has not the encoder's length; `gaussians` raises if the encoder does not fit the model.
    """

    encoder: Decoder
    phi: Array

    def __init__(self, encoder: Decoder, phi: Any) -> None:
        if not hasattr(encoder, "n_params"):
            raise TypeError(f"encoder must be an MLP such as MLP((n, 16, 2 * m)), got {encoder!r}")
        phi = check_array("phi", phi, (encoder.n_params,)).copy()
        phi.setflags(write=False)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "phi", phi)

    def gaussians(self, model: NonlinearICA, x: Array) -> Gaussians:
        """Return the encoder's Gaussians; modes of the posterior that they miss are uncovered.

        Raises
        ------
        ValueError
            If the encoder's dimensions do not fit the model's.
        """
        n, m = model.data_dim, model.latent_dim
        if (self.encoder.latent_dim, self.encoder.data_dim) != (n, 2 * m):
            raise ValueError(
                f"encoder must have {n} inputs (data_dim) and {2 * m} outputs (latent_dim means, then as "
                f"many log variances), got {self.encoder.latent_dim} and {self.encoder.data_dim}"
            )
        mean, log_s2 = encode(self.encoder, self.phi, x)
        scale = np.exp(0.5 * log_s2)[:, None, :, None] * np.eye(m)
        q = Gaussians(np.zeros((len(x), 1)), mean[:, None, :], scale, {})
        found = find_modes(model, x)
        return _diagnosed(model, x, found, q)._replace(problems=_problems(found, 0))


def mixture_at(found: Modes) -> Gaussians:
    """Return Gaussians at all modes, with Laplace's approximation of their masses as shares."""
    mass = laplace_mass(found)
    log_share = mass - np.logaddexp.reduce(mass, axis=1, keepdims=True)
    log_share[log_share < np.log(NEGLIGIBLE)] = -np.inf
    C = min(int((log_share > -np.inf).sum(axis=1).max()), MOST_COMPONENTS)  # they are sorted by mass
    log_share = log_share[:, :C]
    return _gaussians_at(found, log_share - np.logaddexp.reduce(log_share, axis=1, keepdims=True))


def _gaussians_at(found: Modes, log_share: Array) -> Gaussians:
    """The mixture of N(z_c, A_c⁻¹) over the first modes, with L = chol(A)⁻ᵀ."""
    C = log_share.shape[1]
    scale = np.swapaxes(np.linalg.inv(np.linalg.cholesky(found.hessian[:, :C])), 2, 3)
    return Gaussians(log_share, found.modes[:, :C], scale, {})


def _diagnosed(model: NonlinearICA, x: Array, found: Modes, q: Gaussians) -> Gaussians:
    """Return q, of the first modes, with what it may miss."""
    return q._replace(
        problems=_problems(found, q.mean.shape[1]),
        uncovered=_uncovered(found, q),
        apart=mass_apart(model, x, found),
    )


def _uncovered(found: Modes, q: Gaussians) -> Array:
    """log of the Laplace mass of the modes about which q has less than `COVERED` of its mass, (N,).

    About a mode z_c, q has the mass ∫ q(z_c) exp(-½ (z - z_c)ᵀ A_c (z - z_c)) dz = q(z_c) sqrt((2π)^m/|A_c|).
    """
    missed = _log_mixture(found.modes, q) + log_volume(found) < np.log(COVERED)
    return np.asarray(np.logaddexp.reduce(np.where(missed, laplace_mass(found), -np.inf), axis=1))


def _problems(found: Modes, C: int) -> dict[str, Array]:
    """What is wrong with the search for modes, of which the first C are used."""
    lost = (found.log_joint > -np.inf) & ~found.converged
    return {
        "Newton's search did not end at a maximum": np.asarray(lost[:, :C].any(axis=1)),
        "more local maxima than could be searched, so that a mode may be missing": ~found.complete,
    }


PROPOSALS: dict[str, Proposal] = {"laplace": LaplaceProposal(), "modes": AllModes()}
"""Proposals by name."""
