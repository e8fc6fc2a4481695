"""The score-centrality test: simulator, likelihood and gradient checked against each other.

At observations that a model itself simulates, the score s_i = ∇ log p(x_i) has mean zero, whatever the
parameters. A simulator with the wrong variance, a lost ½ or a rough integrator moves that mean.
"""

# notation: N observations, q parameters (p of the decoder and σ²); S (N, q) scores

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from refica.marginal import given_or_chosen, log_likelihood, scores
from refica.model import NonlinearICA, check_model
from refica.quadrature import Integrator
from refica.uncertainty import column_scale
from refica.validation import Array, check_array, check_count, check_generator, check_number

__all__ = [
    "CENTRALITY_CUTOFF",
    "SLOPE",
    "MeanScoreTest",
    "ScoreCentrality",
    "mean_score_test",
    "score_centrality",
]

CENTRALITY_CUTOFF = 0.03
"""Eigenvalue of the scaled second moment of the scores, relative to the largest, below which a direction is
left out of the joint test: that only loses power. Along those of small eigenvalue a few far observations
make up the score, and its mean is far from normal: with 16 tanh units and N = 1000 a right program would be
refused in 3 % of cases at the level .001 with a cutoff of 1e-4, in 57 % with 1e-8; with this one, one in 540
was, of three models."""

SLOPE = 0.02
"""Largest relative disagreement (root mean square) of a score and the difference quotient of log p that
`score_centrality` lets pass: with the integrators chosen for m <= 2 it was .006 or less,
and a factor of two makes 0.5."""

SLOPE_STEP = 0.02
"""Step of the difference quotients of log p, in units that change a log p(x_i) by one (root mean square)."""


@dataclass(frozen=True, slots=True, eq=False)
class MeanScoreTest:
    """The result of `mean_score_test`.

    Attributes
    ----------
    z : (q,)
        Mean of each component over its standard error; 0 for a component that is 0 throughout.
    component : int
        The one whose \\|z\\| is largest.
    p_component : float
        Probability of a \\|z\\| as large in any of the q components, by Bonferroni and Student's law.
    statistic : float
        Hotelling's T² = N s̄ᵀ C⁺ s̄, which is χ² with ``rank`` degrees of freedom for N -> ∞.
    rank : int
        Directions in which the scores vary.
    p_joint : float
        Probability of a T² as large, by the F law that it has for normal scores.
    """

    z: Array
    component: int
    p_component: float
    statistic: float
    rank: int
    p_joint: float

    @property
    def p_value(self) -> float:
        """Of both tests together: twice the smaller one, at most 1."""
        return min(1.0, 2.0 * min(self.p_component, self.p_joint))


def mean_score_test(scores: Any, *, cutoff: float = CENTRALITY_CUTOFF) -> MeanScoreTest:
    """Test whether scores have mean zero: anyone's simulator against anyone's gradient.

    With the singular value decomposition S = U diag(s) Vᵀ, columns scaled, W = ‖Uᵀ 1‖² over the directions
    kept, and T² = (N - 1) W / (N - W): no inverse is formed.

    Parameters
    ----------
    scores : array_like (N, q)
        Score s_i of each of N >= 3 independent observations.
    cutoff : float
        As in `standard_errors`.

    Raises
    ------
    TypeError, ValueError
        For scores that are not finite, or too few of them.

    Examples
    --------
    >>> s = np.random.default_rng(0).standard_normal((500, 3))
    >>> mean_score_test(s).p_value > 0.01, mean_score_test(s + 0.3).p_value < 1e-6
    (True, True)
    """
    S = check_array("scores", scores, ("N", "q"))
    cutoff = check_number("cutoff", cutoff, above=0.0, below=1.0)
    N, q = S.shape
    if N < 3:
        raise ValueError(f"scores must have at least 3 rows, got {N}")
    S = S / column_scale(S)
    spread = S.std(axis=0, ddof=1) / math.sqrt(N)
    z = np.divide(S.mean(axis=0), spread, out=np.zeros(q), where=spread > 0.0)
    component = int(np.abs(z).argmax())
    U, s, _ = np.linalg.svd(S, full_matrices=False)
    kept = s**2 > cutoff * s[0] ** 2
    rank = int(kept.sum())
    W = min(float((U[:, kept].sum(axis=0) ** 2).sum()), N * (1.0 - np.finfo(float).eps))
    return MeanScoreTest(
        z=z,
        component=component,
        p_component=min(1.0, 2.0 * q * float(special.stdtr(N - 1.0, -abs(z[component])))),
        statistic=float((N - 1.0) * W / (N - W)),
        rank=rank,
        p_joint=_f_tail(W, rank, N),
    )


@dataclass(frozen=True, slots=True, eq=False)
class ScoreCentrality:
    """The result of `score_centrality`.

    Attributes
    ----------
    test : MeanScoreTest
        Of the scores at simulated observations, in (θ, σ²).
    slope_error : float
        Largest relative disagreement of a score with the difference quotient of log p, root mean square
        over observations, along σ² and along a random direction of θ.
    size : int
        Number of simulated observations.
    message : str
        A sentence with the numbers.
    """

    test: MeanScoreTest
    slope_error: float
    size: int
    message: str

    def passed(self, level: float = 0.001) -> bool:
        """Whether neither half speaks against the program; a right one fails with about
        probability ``level`` (scores have heavy tails: one of 540 did at .001)."""
        return self.test.p_value > level and self.slope_error <= SLOPE


def score_centrality(
    model: NonlinearICA, size: int = 1000, rng: Any = 0, integrator: Integrator | None = None
) -> ScoreCentrality:
    """Test simulator, likelihood and gradient against each other, at a model such as a fitted one.

    At observations that the model itself simulates the mean score is zero, whatever the parameters. That
    ties simulator and gradient together, but a score of the wrong scale has mean zero too (a derivative
    in σ given for that in σ²); so each score is also compared with the difference quotient of log p.

    Parameters
    ----------
    model : NonlinearICA
    size : int
        Number of observations to simulate, >= 3; more than p + 1 for the joint test to say anything.
    rng : int or numpy.random.Generator
    integrator : Integrator, optional
        As in `log_likelihood`.

    Raises
    ------
    TypeError, ValueError
        As `log_likelihood`, or for a bad size or generator.

    Examples
    --------
    >>> from refica import MLP
    >>> found = score_centrality(NonlinearICA(MLP((1, 2)), [1.0, 0.5, 0.0, 0.0], sigma2=0.1), rng=1)
    >>> found.passed(), found.test.rank
    (True, 5)
    """
    check_model(model)
    size, rng = check_count("size", size, minimum=3), check_generator(rng)
    _, x = model.sample(size, rng)
    integrator, _ = given_or_chosen(model, x, integrator)
    S = scores(model, x, integrator)
    doubtful = int((~log_likelihood(model, x, integrator, gradient=False).converged).sum())
    test = mean_score_test(S)
    theta_only, sigma2_only = np.append(rng.standard_normal(S.shape[1] - 1), 0.0), np.zeros(S.shape[1])
    theta_only /= np.append(column_scale(S[:, :-1]), 1.0)
    sigma2_only[-1] = 1.0
    slopes = [_slope_error(model, x, integrator, S, d) for d in (theta_only, sigma2_only)]
    name = "sigma2" if test.component == S.shape[1] - 1 else f"theta[{test.component}]"
    message = (
        f"mean score of {size} simulated observations: T² = {test.statistic:.1f} on {test.rank} directions "
        f"(p = {test.p_joint:.2g}), largest z = {test.z[test.component]:.2f} in {name} "
        f"(p = {test.p_component:.2g}); scores against differences of log p: off by {max(slopes):.1e}"
    )
    if doubtful:
        message += f"; log p(x) has not converged for {doubtful} of them, to which a failure may be due"
    return ScoreCentrality(test, max(slopes), size, message)


def _f_tail(W: float, rank: int, N: int) -> float:
    """Probability of a larger W, of which (N - r) W / (r (N - W)) has the F law with r and N - r degrees.

    As many directions as observations fit any mean: then W = N says nothing.
    """
    if not 0 < rank < N:
        return 1.0
    return float(special.fdtrc(rank, N - rank, (N - rank) / rank * W / (N - W)))


def _slope_error(model: NonlinearICA, x: Array, integrator: Integrator, S: Array, direction: Array) -> float:
    """How far S d is from (log p at +h d - log p at -h d) / 2h, in the norm over observations, relative."""
    want = S @ direction
    size = float(np.sqrt(np.mean(want**2)))
    if size == 0.0:  # a decoder with no effect along d: nothing to compare in units of
        return 0.0
    # Not so far that σ² would halve.
    h = min(SLOPE_STEP / size, 0.5 * model.sigma2 / max(abs(direction[-1]), np.finfo(float).tiny))

    def log_p(step: float) -> Array:
        moved = model.replace(
            theta=model.theta + step * direction[:-1], sigma2=model.sigma2 + step * direction[-1]
        )
        return log_likelihood(moved, x, integrator, gradient=False).per_observation

    quotient = (log_p(h) - log_p(-h)) / (2.0 * h)
    return float(np.sqrt(np.mean((quotient - want) ** 2))) / size
