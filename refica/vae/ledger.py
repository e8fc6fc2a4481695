"""The gaps below log p(x): what the variational family costs, and what the encoder loses on top.

    log p(x) - ELBO(q) = KL(q ‖ p(z | x)) >= 0,

for the best diagonal Gaussian the *approximation gap*, and for the encoder's what that has, and the
*amortisation gap* (Cremer, Li and Duvenaud, ICML 2018). With log p(x) at hand both are numbers, not bounds.
"""

# notation: N observations, R of them, C candidates each, m latent; mu and log_s2 (.., m)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refica.encoder import encode
from refica.likelihood import moments, rounding_error, row_blocks
from refica.marginal import log_likelihood, verdict
from refica.model import LOG_2PI, NonlinearICA, log_prior
from refica.proposals import AllModes, place
from refica.quadrature import Integrator
from refica.reference import Reference
from refica.reference.lines import lines_of
from refica.rules import GaussHermite, UniformGrid, gauss_hermite, uniform_grid
from refica.vae.draws import Draws, kl_to_prior
from refica.vae.evidence import (
    DISAGREEMENT,
    FINE,
    RADIUS,
    UNCERTAIN,
    Integrand,
    expected,
    expected_by_copies,
    log_likelihood_at,
)
from refica.vae.model import VAE, check_vae
from refica.vae.optimal import Optimum, maximise_elbo
from refica.validation import Array

__all__ = ["Gaps", "gaps"]

MOST_REFERENCE_AXES = 3
"""Latent dimensions up to which the `Reference` is affordable."""

MOST_MODES = 4
"""Modes of a posterior, those of the largest mass, at each of which a search starts."""

MOMENT_ORDERS = {1: 9, 2: 7, 3: 5}
"""Order of the rule on these modes that gives the posterior moments to start from, by m; 2 for more."""

SEARCH_ORDERS = {1: 20, 2: 14, 3: 9}
"""Order of the Gauss-Hermite rule over q that the searches see, by m; for more as many as make `SEARCH_NODES`
nodes. The one whose end is best then goes on with the finer rules below."""

SEARCH_NODES = 1500

POINTS = {1: (57, 225, 1025), 2: (33, 65, 129), 3: (21, 33)}
"""Points per axis of the grids over q, by m: where the error of one is not `FINE` the next is tried. Of
smooth decoders a grid is right to 1e-14 as soon as its step is some tenths of the distance to their nearest
pole, where a Gauss-Hermite rule of as many nodes may have four digits; for more axes, Gauss-Hermite rules of
`MANY_NODES` nodes."""

MANY_NODES = (1500, 10_000)

DIRECT_RADIUS = 9.25
"""Half-width of the grids for the divergence by direct integration: with none of their nodes on those for the
ELBO, no error of these is hidden by their having it too."""

WIDEST = 4.0
"""Largest log variance that a search starts from: the best q is hardly wider than the prior, with 0."""

AT_MAXIMUM = 1e-4
"""Increase (nats) promised by the last step of a search up to which its end counts as a maximum: at a smooth
one it is below 1e-12, on the kinks that a rule of few nodes has for relu it is not."""

AGREE = 1e-8
"""Difference, relative to max(1, |log p(x)|), that two ways to the divergence may have beyond the errors."""

BLOCK, MOMENT_NODES = 256, 2**16
"""Most observations whose starts are made together, and most nodes per mode of theirs if m > 3."""

Rules: TypeAlias = list[UniformGrid] | list[GaussHermite]
"""Rules over q, ever finer."""

NO_TRUTH = "log p(x) itself has not converged"
NO_MAXIMUM = f"the search for the best q ended where more than {AT_MAXIMUM:g} nats seem to be left"
TWO_WAYS = "KL(q ‖ posterior), integrated directly, is not log p(x) - ELBO to within the error"


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """The result of `gaps`: log p(x) = elbo + amortisation + approximation, in nats, for each observation.

    Attributes
    ----------
    log_p : (N,)
        log p(x_i).
    elbo : (N,)
        ELBO with the encoder's q.
    best_elbo : (N,)
        ELBO with the best diagonal Gaussian found for this x_i alone.
    approximation : (N,)
        log_p - best_elbo: what a diagonal Gaussian costs.
    amortisation : (N,)
        best_elbo - elbo: what the encoder loses on top.
    kl : (N,)
        KL(q ‖ posterior) of the encoder's q by direct integration of q log(q / posterior): a second way to
        approximation + amortisation, which shares only log p(x) with the first.
    error : (N,)
        Estimated absolute error of any of these six: that of log_p, of both ELBOs and of kl, and what the
        last step of the search for the best q still promised. That the search missed a better maximum is not
        in it: ``best_elbo`` is that of a diagonal Gaussian in any case.
    best_mean, best_sd : (N, m)
        Of that best diagonal Gaussian.
    converged : (N,) bool
        Whether all parts are to be trusted.
    message : str
        What gave log_p, and what each False in ``converged`` means.
    """

    log_p: Array
    elbo: Array
    best_elbo: Array
    approximation: Array
    amortisation: Array
    kl: Array
    error: Array
    best_mean: Array
    best_sd: Array
    converged: Array
    message: str

    def __repr__(self) -> str:
        """Show means, not arrays."""
        return (
            f"Gaps(means over {len(self.log_p)} observations: log_p={self.log_p.mean():.6g}, "
            f"elbo={self.elbo.mean():.6g}, approximation={self.approximation.mean():.3g}, "
            f"amortisation={self.amortisation.mean():.3g}; largest error={self.error.max():.2g}, "
            f"{self.converged.sum()} converged, message={self.message!r})"
        )


def gaps(vae: VAE, x: Any, integrator: Integrator | None = None) -> Gaps:
    """Return log p(x_i), the ELBO, the best ELBO of a diagonal Gaussian, and the gaps between them.

    Parameters
    ----------
    vae : VAE
    x : array_like (N, n)
    integrator : Integrator, optional
        For log p(x); None takes the `Reference` where it is affordable (m <= 3, and affine decoders),
        otherwise what `log_likelihood` picks.

    Raises
    ------
    TypeError, ValueError
        For bad data, or so many latent dimensions that no product rule over q is affordable (m > 12).

    Notes
    -----
    The best q is searched from the encoder's q, from Gaussians at the modes of the posterior and from its
    moments. ELBOs are means over three copies of a grid over q, shifted and turned, and their errors three
    times what the copies differ by; for m > 3 two Gauss-Hermite rules serve. Milliseconds per observation for
    m = 1, a tenth of a second for m = 2, seconds for m = 3, most of it for log p(x).

    Examples
    --------
    >>> from refica import MLP, VAE, NonlinearICA
    >>> model = NonlinearICA(MLP((1, 1)), [1.0, 0.0], sigma2=1.0)
    >>> vae = VAE(model, MLP((1, 2)), [0.0, 0.0, 0.0, 0.0])  # q is the prior, the posterior N(x/2, 1/2)
    >>> found = gaps(vae, [[1.0]])
    >>> abs(found.approximation.round(9)), found.amortisation.round(9)  # KL(N(0, 1) ‖ N(1/2, 1/2))
    (array([0.]), array([0.40342641]))
    """
    model = check_vae(vae).model
    x = model.check_data(x)
    integrator = _yardstick(model) if integrator is None else integrator
    likelihood = log_likelihood(model, x, integrator, gradient=False)
    log_p = likelihood.per_observation
    mu, log_s2 = encode(vae.encoder, vae.phi, x)
    block = max(1, min(BLOCK, MOMENT_NODES >> model.latent_dim))
    parts = [_elbos(model, x[rows], mu[rows], log_s2[rows]) for rows in row_blocks(len(x), block)]
    found = _Elbos(*map(np.concatenate, zip(*parts, strict=True)))
    rules = _rules(model.latent_dim, DIRECT_RADIUS)
    kl, kl_error = _expected_with_error(model, x, mu, log_s2, rules, _log_ratio)
    kl = kl + log_p
    error = likelihood.error + found.elbo_error + found.best_error + found.promised + kl_error
    apart = np.abs(kl - (log_p - found.elbo)) > error + AGREE * np.maximum(1.0, np.abs(log_p))
    problems = {
        NO_TRUTH: ~likelihood.converged,
        UNCERTAIN: ~(found.elbo_error + found.best_error + kl_error <= DISAGREEMENT),  # True for nan
        NO_MAXIMUM: found.promised > AT_MAXIMUM,
        TWO_WAYS: apart,
    }
    converged, words = verdict([problems], [len(x)])
    return Gaps(
        log_p=log_p,
        elbo=found.elbo,
        best_elbo=found.best,
        approximation=log_p - found.best,
        amortisation=found.best - found.elbo,
        kl=kl,
        error=error,
        best_mean=found.mu,
        best_sd=np.exp(0.5 * found.log_s2),
        converged=converged,
        message=f"log p(x) by {likelihood.integrator}{words}",
    )


class _Elbos(NamedTuple):
    """The encoder's ``elbo`` and the ``best`` one with their errors, (R,); the q of the best one, ``mu`` and
    ``log_s2`` (R, m), and the increase ``promised`` (R,) where the search for it ended."""

    elbo: Array
    elbo_error: Array
    best: Array
    best_error: Array
    mu: Array
    log_s2: Array
    promised: Array


def _yardstick(model: NonlinearICA) -> Integrator | None:
    """Return the `Reference` if it knows the decoder and can afford it."""
    affine = getattr(model.decoder, "is_affine", False)
    known = model.latent_dim <= MOST_REFERENCE_AXES and lines_of(model) is not None
    return Reference() if affine or known else None


def _elbos(model: NonlinearICA, x: Array, mu: Array, log_s2: Array) -> _Elbos:
    """Evaluate the encoder's q, mu and log_s2 (R, m), search for the best one and evaluate that.

    The encoder's q itself is a candidate, so that the amortisation gap cannot be negative.
    """
    rules = _rules(model.latent_dim)
    elbo, elbo_error = _elbo_with_error(model, x, mu, log_s2, rules)
    end = _best_end(model, x, mu, log_s2, rules)
    best, best_error = _elbo_with_error(model, x, end.mu, end.log_s2, rules)
    worse = best < elbo
    return _Elbos(
        elbo,
        elbo_error,
        np.where(worse, elbo, best),
        np.where(worse, elbo_error, best_error),
        np.where(worse[:, None], mu, end.mu),
        np.where(worse[:, None], log_s2, end.log_s2),
        end.promised,
    )


def _best_end(model: NonlinearICA, x: Array, mu: Array, log_s2: Array, rules: Rules) -> Optimum:
    """Return the best of the maxima (R, ·) that searches from all starts end at.

    They are compared by what is left of each ELBO after its error, and the best goes on with finer rules:
    all of them with the first, those that do not settle, because of kinks, with the next.
    """
    start_mu, start_log_s2, present = _starts(model, x, mu, log_s2)
    row, _ = np.nonzero(present)
    m = model.latent_dim
    search = gauss_hermite(SEARCH_ORDERS.get(m, _order(SEARCH_NODES, m)))
    ends = maximise_elbo(model, x[row], start_mu[present], start_log_s2[present], search)
    value, error = _elbo_with_error(model, x[row], ends.mu, ends.log_s2, rules[:1])
    left = np.nan_to_num(value - error, nan=-np.inf)
    order = np.lexsort((left, row))
    last = np.searchsorted(row[order], np.arange(len(x)), side="right") - 1
    best = Optimum._make(part[order[last]] for part in ends)
    rows = np.arange(len(x))
    for rule in rules[:2]:
        on = maximise_elbo(model, x[rows], best.mu[rows], best.log_s2[rows], rule)
        for old, new in zip(best, on, strict=True):
            old[rows] = new
        rows = np.flatnonzero(best.promised > AT_MAXIMUM)
        if not len(rows):
            break
    return best


def _starts(model: NonlinearICA, x: Array, mu: Array, log_s2: Array) -> tuple[Array, Array, Array]:
    """Return where searches start, means and log variances (R, C, m), and which are present (R, C): the
    encoder's q, the Gaussians at the modes, of the variances 1/A_jj that are best for a Gaussian posterior
    of precision A, and the posterior's moments."""
    m = model.latent_dim
    modes = AllModes().gaussians(model, x)
    modes = modes._replace(
        log_share=modes.log_share[:, :MOST_MODES],
        mean=modes.mean[:, :MOST_MODES],
        scale=modes.scale[:, :MOST_MODES],
    )
    precision = np.einsum("rcij->rcj", np.linalg.inv(modes.scale) ** 2)  # diag (L Lᵀ)⁻¹
    nodes = place(*gauss_hermite(MOMENT_ORDERS.get(m, 2)).points(m), modes)
    mean, covariance, _ = moments(model.decoder, model.theta, model.sigma2, x, nodes)
    variance = np.maximum(np.einsum("rjj->rj", covariance), 1.0 / precision.max(axis=1))
    starts_mu = np.concatenate([mu[:, None], modes.mean, mean[:, None]], axis=1)
    starts_log_s2 = np.concatenate(
        [np.minimum(log_s2, WIDEST)[:, None], -np.log(precision), np.log(variance)[:, None]], axis=1
    )
    always = np.ones((len(x), 1), dtype=bool)
    return starts_mu, starts_log_s2, np.concatenate([always, modes.log_share > -np.inf, always], axis=1)


def _elbo_with_error(
    model: NonlinearICA, x: Array, mu: Array, log_s2: Array, rules: Rules
) -> tuple[Array, Array]:
    """Return the ELBO of each q and its estimated error, (R,)."""
    reconstruction, error = _expected_with_error(model, x, mu, log_s2, rules, log_likelihood_at)
    value = reconstruction - kl_to_prior(mu, log_s2)
    return value, error + rounding_error(x, model.sigma2, value)


def _expected_with_error(
    model: NonlinearICA,
    x: Array,
    mu: Array,
    log_s2: Array,
    rules: Rules,
    integrand: Integrand,
) -> tuple[Array, Array]:
    """Return E_q of an integrand and its estimated error, (R,), by the first rule that is fine enough."""
    value, error, rows = np.empty(len(x)), np.empty(len(x)), np.arange(len(x))
    for rule in rules:
        q = x[rows], mu[rows], log_s2[rows]
        if isinstance(rule, UniformGrid):
            value[rows], error[rows] = expected_by_copies(model, *q, rule, integrand)
        else:
            finer = gauss_hermite(rule.order + rule.order // 2)
            one, other = (expected(model, *q, each, integrand) for each in (rule, finer))
            value[rows], error[rows] = 0.5 * (one + other), np.abs(one - other)
        rows = rows[error[rows] > FINE * np.maximum(1.0, np.abs(value[rows]))]
        if not len(rows):
            break
    return value, error


def _rules(m: int, radius: float = RADIUS) -> Rules:
    """Return the rules over q, ever finer."""
    if m in POINTS:
        return [uniform_grid(points, radius) for points in POINTS[m]]
    return [gauss_hermite(_order(nodes, m)) for nodes in MANY_NODES]


def _order(nodes: int, m: int) -> int:
    """Return the order of which a product rule has about so many nodes, at least 2."""
    return max(2, int(nodes ** (1.0 / m) + 1e-9))


def _log_ratio(model: NonlinearICA, draws: Draws, log_s2: Array) -> Array:
    """log q(z) - log p(x, z), (R, L): its mean under q is KL(q ‖ posterior) - log p(x)."""
    log_q = -0.5 * (draws.epsilon**2 + log_s2[:, None] + LOG_2PI).sum(axis=2)
    return log_q - log_likelihood_at(model, draws, log_s2) - log_prior(draws.z)
