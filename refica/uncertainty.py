"""How far an estimate can be trusted: information, standard errors, paired differences.

The score s_i = ∇ log p(x_i), in (θ, σ²) and of length q = p + 1, says all of it. Its mean is zero at the
model that the data come from, and its second moment is the Fisher information, so that

    I = Σ_i s_i s_iᵀ        estimates the information in N observations (Berndt, Hall, Hall, Hausman 1974),
    H = -∇² Σ_i log p(x_i)  is the observed information itself (Efron and Hinkley, Biometrika 65, 1978),

and both agree for large N where the model is right. A decoder's parameters are seldom all identified: a
rotation of the latents (m >= 2), spare hidden units, and where n = m the trade of noise for signal, leave
directions in which log p does not change. There the information is singular. It is therefore decomposed,
after scaling to unit diagonal so that the unit of a parameter does not matter; directions whose eigenvalue
is rounding are left out (the pseudo-inverse), and a parameter that leans on one of them is said not to be
identified. For one that does not, (I⁺)_jj is one over the Schur complement I_jj - I_jr I_rr⁺ I_rj: what is
left of its information once the others r are estimated along with it.
"""

# notation: N observations, p parameters, q = p + 1; S (N, q) scores; w, V eigenvalues and vectors

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refica.marginal import Likelihood, given_or_chosen, log_likelihood, scores
from refica.model import NonlinearICA, check_model
from refica.quadrature import Integrator
from refica.validation import Array, check_choice, check_number

__all__ = [
    "CUTOFF",
    "WEAK",
    "PairedDifference",
    "StandardErrors",
    "column_scale",
    "observed_information",
    "paired_difference",
    "standard_errors",
]

CUTOFF = {"scores": 1e-12, "hessian": 1e-6}
"""Eigenvalue of the scaled information, relative to the largest, below which a direction is left out.

To leave out a direction is to treat it as known, which would understate an error; to keep one that is
rounding costs each error a factor 1 + 1/2N or so. So the cutoff is as low as rounding allows: scores are
right to 1e-7 or better, and enter squared; differences of gradients are right to 1e-8 or so."""

WEAK = 1.0
"""A standard error of log σ² above this is large: two of it either way span a factor of 50 in σ²."""

STEP = float(np.cbrt(np.finfo(float).eps))
"""Step of central differences of a gradient, relative: truncation and rounding are then alike."""


@dataclass(frozen=True, slots=True, eq=False)
class StandardErrors:
    """The result of `standard_errors`.

    Attributes
    ----------
    theta : (p,)
        Standard error of each decoder parameter; inf where it is not identified.
    sigma2, log_sigma2 : float
        Of σ² and of log σ², the first being σ² times the second; inf where it is not identified.
    identified : (p + 1,) bool
        In the order (θ, σ²): whether the data determine it, given that all the others are unknown too.
    rank : int
        Number of directions that the data determine, at most p + 1.
    information : (p + 1, p + 1)
        What they come from, in (θ, σ²).
    kind : str
        "scores" or "hessian".
    converged : bool
        Whether the integrator vouches for every log p(x_i).
    message : str
        What is identified, and whether σ² is only weakly so; first of all what has not converged.
    """

    theta: Array
    sigma2: float
    log_sigma2: float
    identified: Array
    rank: int
    information: Array
    kind: str
    converged: bool
    message: str

    def __repr__(self) -> str:
        """Show the noise variance and the verdict, not arrays."""
        return (
            f"StandardErrors(log_sigma2={self.log_sigma2:.3g}, rank={self.rank} of {len(self.identified)}, "
            f"message={self.message!r})"
        )


class _Directions(NamedTuple):
    """Eigenvalues ``w`` (q,) descending and vectors ``V`` (q, q), by columns, of the information scaled by
    ``scale`` (q,): information = scale V diag(w) Vᵀ scale."""

    w: Array
    V: Array
    scale: Array


def observed_information(
    model: NonlinearICA, x: Any, integrator: Integrator | None = None, *, kind: str = "scores"
) -> Array:
    """Return the information of the observations in (θ, σ²), (p + 1, p + 1).

    Parameters
    ----------
    model : NonlinearICA
    x : array_like (N, n)
    integrator : Integrator, optional
        As in `log_likelihood`.
    kind : str
        "scores": the outer products Σ_i s_i s_iᵀ, never negative, the information in expectation if the
        model is right. "hessian": minus the second derivative of log p itself, by central differences of the
        exact gradient, 2 (p + 1) evaluations of it; it need not be positive away from a maximum.

    Raises
    ------
    TypeError, ValueError
        As `log_likelihood`, or for an unknown kind.
    """
    if check_choice("kind", kind, CUTOFF) == "scores":
        S = scores(model, x, integrator)
        return S.T @ S
    x = check_model(model).check_data(x)
    integrator, _ = given_or_chosen(model, x, integrator)  # one for all: its nodes must not jump
    columns = []
    for j, at in enumerate(np.append(model.theta, model.sigma2)):
        size = max(1.0, abs(at)) * min(1.0, math.sqrt(model.sigma2)) if j < len(model.theta) else at
        h = STEP * size
        ahead, behind = (_gradient_at(model, x, integrator, j, step) for step in (h, -h))
        columns.append((behind - ahead) / (2.0 * h))
    H = np.stack(columns, axis=1)
    return 0.5 * (H + H.T)


def standard_errors(
    model: NonlinearICA,
    x: Any,
    integrator: Integrator | None = None,
    *,
    kind: str = "scores",
    cutoff: float | None = None,
) -> StandardErrors:
    """Return standard errors of (θ, σ²) at a maximum of the likelihood, by the inverse information.

    Parameters
    ----------
    model : NonlinearICA
        The fitted model. Elsewhere than at a maximum the numbers mean nothing, and nothing here can tell,
        but that a "hessian" is negative in some directions is said.
    x : array_like (N, n)
        The data it was fitted to.
    integrator : Integrator, optional
        As in `log_likelihood`. A rough one is dangerous here, for its errors look like information: on a grid
        that does not resolve σ, 1.6 was reported for a standard error of log σ² of 10.
    kind : str
        As in `observed_information`.
    cutoff : float, optional
        Eigenvalue of the information, scaled to unit diagonal and relative to the largest, below which a
        direction counts as not identified; None takes `CUTOFF`. A parameter is not identified if, with the
        eigenvalues left out put at the cutoff, they would contribute more to its variance than the others.

    Raises
    ------
    TypeError, ValueError
        As `log_likelihood`, for an unknown kind or a cutoff outside (0, 1).

    Examples
    --------
    >>> from refica import MLP, probabilistic_pca
    >>> truth = NonlinearICA(MLP((1, 3)), [1.0, -1.0, 0.5, 0.0, 0.0, 0.0], sigma2=0.1)
    >>> _, x = truth.sample(1000, rng=0)
    >>> found = standard_errors(probabilistic_pca(x, latent_dim=1), x)
    >>> round(found.log_sigma2, 3), found.rank  # sqrt(2 / (N (n - m))) = 0.032 for N -> ∞
    (0.033, 7)
    """
    cutoff = CUTOFF[check_choice("kind", kind, CUTOFF)] if cutoff is None else cutoff
    cutoff = check_number("cutoff", cutoff, above=0.0, below=1.0)
    x = check_model(model).check_data(x)
    integrator, _ = given_or_chosen(model, x, integrator)
    doubtful = ~log_likelihood(model, x, integrator, gradient=False).converged
    if kind == "scores":
        S = scores(model, x, integrator)
        information, directions = S.T @ S, _directions_of_scores(S)
    else:
        information = observed_information(model, x, integrator, kind=kind)
        directions = _directions_of_information(information)
    w, V, scale = directions
    kept = w > cutoff * w[0]
    variance = (V[:, kept] ** 2 / w[kept]).sum(axis=1)
    identified = (V[:, ~kept] ** 2).sum(axis=1) / (cutoff * max(w[0], np.finfo(float).tiny)) <= variance
    error = np.where(identified, np.sqrt(variance) / scale, np.inf)
    sigma2 = float(error[-1])
    rank, negative = int(kept.sum()), int((w < -cutoff * w[0]).sum())
    message = _message(model, doubtful, identified, rank, negative, sigma2 / model.sigma2)
    return StandardErrors(
        error[:-1],
        sigma2,
        sigma2 / model.sigma2,
        identified,
        rank,
        information,
        kind,
        not bool(doubtful.any()),
        message,
    )


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The result of `paired_difference`, in nats.

    Attributes
    ----------
    mean : float
        Mean of log p_first(x_i) - log p_second(x_i).
    standard_error : float
        Of that mean, over observations: sqrt(sample variance / N).
    error : float
        Bound on what integration may have done to the mean: the mean of both estimates' errors (nan where
        an integrator gives none). It is no part of the standard error.
    observations : int
        N.
    """

    mean: float
    standard_error: float
    error: float
    observations: int

    @property
    def total(self) -> float:
        """The difference of the two log-likelihoods, N times the mean."""
        return self.observations * self.mean

    @property
    def total_standard_error(self) -> float:
        """N times the standard error of the mean."""
        return self.observations * self.standard_error


def paired_difference(first: Likelihood, second: Likelihood) -> PairedDifference:
    """Return how much better one model explains the same observations than another.

    The two log p(x_i) of an observation vary together, so that their difference is known far better than
    either mean. On held-out data, or for models neither of which contains the other (Vuong,
    Econometrica 57, 1989); on the data that a larger model was fitted to, its advantage is not normal.

    Parameters
    ----------
    first, second : Likelihood
        From `log_likelihood`, of the same x and in the same order.

    Raises
    ------
    TypeError, ValueError
        If one is no such result, their lengths differ, or there are fewer than two observations.

    Examples
    --------
    >>> from refica import MLP
    >>> model = NonlinearICA(MLP((1, 2)), [1.0, 0.5, 0.0, 0.0], sigma2=0.1)
    >>> _, x = model.sample(500, rng=0)
    >>> other = model.replace(sigma2=0.2)
    >>> found = paired_difference(log_likelihood(model, x), log_likelihood(other, x))
    >>> round(found.mean, 2), round(found.standard_error, 2)
    (0.1, 0.01)
    """
    for name, result in (("first", first), ("second", second)):
        if not isinstance(result, Likelihood):
            raise TypeError(f"{name} must be a result of log_likelihood, got {type(result).__name__}")
    N = len(first.per_observation)
    if len(second.per_observation) != N or N < 2:
        raise ValueError(
            "first and second must be of the same observations, at least 2, "
            f"got {N} and {len(second.per_observation)}"
        )
    d = first.per_observation - second.per_observation
    spread = float(d.std(ddof=1)) / math.sqrt(N)
    return PairedDifference(float(d.mean()), spread, float((first.error + second.error).mean()), N)


def _gradient_at(model: NonlinearICA, x: Array, integrator: Integrator, j: int, step: float) -> Array:
    """The gradient of the total in (θ, σ²), (q,), with the j-th of them moved."""
    at = np.append(model.theta, model.sigma2)
    at[j] += step
    moved = model.replace(theta=at[:-1], sigma2=float(at[-1]))
    gradient = log_likelihood(moved, x, integrator).gradient
    return np.empty(0) if gradient is None else np.append(gradient.theta, gradient.sigma2)


def column_scale(S: Array) -> Array:
    """Root of the sum of squares of each column (q,), 1 for a column of zeros."""
    largest = np.abs(S).max(axis=0)
    largest = np.where(largest > 0.0, largest, 1.0)  # taken out first, lest squares over- or underflow
    length = np.sqrt(((S / largest) ** 2).sum(axis=0))
    return np.asarray(largest * np.where(length > 0.0, length, 1.0))


def _directions_of_scores(S: Array) -> _Directions:
    """By the singular values of the scaled scores: squaring them first would lose half of the digits."""
    scale = column_scale(S)
    # All of V, also where there are fewer scores than parameters; never all of U, which is N by N.
    _, s, Vt = np.linalg.svd(S / scale, full_matrices=len(S) < S.shape[1])
    w = np.zeros(S.shape[1])
    w[: len(s)] = s**2
    return _Directions(w, Vt.T, scale)


def _directions_of_information(information: Array) -> _Directions:
    scale = np.sqrt(np.abs(np.diag(information)))
    scale = np.where(scale > 0.0, scale, 1.0)
    w, V = np.linalg.eigh(information / np.outer(scale, scale))
    return _Directions(w[::-1], V[:, ::-1], scale)


def _message(
    model: NonlinearICA, doubtful: Array, identified: Array, rank: int, negative: int, log_sigma2: float
) -> str:
    """Say what the data determine."""
    q, N = len(identified), len(doubtful)
    words = []
    if doubtful.any():
        words.append(
            f"NOT to be trusted: log p(x) has not converged for {doubtful.sum()} of {N} observations, and "
            "what is wrong with it looks like information"
        )
    words += [f"{rank} of {q} directions of (theta, sigma2) are determined by {N} observations"]
    if negative:
        words.append(f"log p curves upwards in {negative}: this is not a maximum")
    if q >= N:
        words.append("there are not more observations than parameters, so that errors by scores mean little")
    if not identified[:-1].all():
        words.append(
            f"{np.sum(~identified[:-1])} of {q - 1} entries of theta are not identified by themselves"
        )
    why = ", as is to be expected with as many latents as data dimensions"
    why = why if model.latent_dim >= model.data_dim else ""
    if not identified[-1]:
        words.append("sigma2 is not identified" + why)
    elif log_sigma2 > WEAK:
        words.append(f"sigma2 is weakly identified (standard error of its logarithm {log_sigma2:.2g}){why}")
    return "; ".join(words)
