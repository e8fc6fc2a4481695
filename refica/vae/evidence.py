"""The evidence lower bound (Exercise 3), at given noise and by quadrature, with its gradients.

The encoder gives a diagonal Gaussian q(z | x) = N(μ(x), diag s(x)²) for each observation. With noise ε
of weights w_l, Σ_l w_l = 1, handed in as an argument and z = μ + s ε (Kingma and Welling 2014),

    ELBO(x) = Σ_l w_l log p(x | z_l) - KL(q ‖ N(0, I)),    the KL in closed form,

every constant kept, so that ELBO(x) <= log p(x) in expectation over draws ε ~ N(0, I), w_l = 1/L, in the
same nats; the nodes and weights of a Gauss-Hermite rule in their place give that expectation itself. All
gradients are by hand, and exact derivatives of the computed sum: noise and weights are data.

The formulas accept complex theta, sigma2 and phi, for differentiation by the complex step.
"""

# notation: N observations, n data, m latent, p and q parameters of decoder and encoder, L draws or nodes;
# x (N, n), mu and log_s2 (N, m), noise ε (L, N, m) of weights w (L,), z (N, L, m), g (N, L, n)

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refica.decoders import Decoder
from refica.encoder import encode
from refica.likelihood import DECODER_ROWS, rounding_error, row_blocks
from refica.marginal import verdict
from refica.model import NonlinearICA, log_likelihood_given
from refica.rules import GaussHermite, Rule, UniformGrid, gauss_hermite, uniform_grid
from refica.vae.draws import (
    Draws,
    Encoded,
    draw,
    encode_with_slope,
    kl_to_prior,
    pull_back,
    pull_back_to_phi,
)
from refica.vae.model import Bound, BoundGradient, QuadratureBound, bound_at, check_vae
from refica.validation import Array, check_array, check_count, check_number

__all__ = [
    "DISAGREEMENT",
    "FINE",
    "RADIUS",
    "UNCERTAIN",
    "Integrand",
    "elbo",
    "elbo_and_gradient",
    "elbo_gradient_in_q",
    "elbo_quadrature",
    "elbo_values",
    "expected",
    "expected_by_copies",
    "log_likelihood_at",
    "nodes_of",
    "row_and_draw_blocks",
]

RADIUS = 8.5
"""Half-width of the grids that a Gauss rule is compared with: outside is 1.4e-15 of E t² under N(0, 1),
and log p(x | z) of networks grows no faster."""

POINTS = {1: (57, 225), 2: (33, 65), 3: (21, 33)}
"""Points per axis of such grids, by m; even the widest step, .85, integrates a Gaussian to 3e-12 and one
times t² to 1.5e-10. The second is for observations of which the first says no more than the Gauss rule does.
In more dimensions grids are not affordable."""

RANGES = 3.0
"""Error of a mean over three copies of a grid, in ranges of the copies: Student's t with two degrees of
freedom puts 1 % of errors beyond. With one range, 3 of 293 integrals over two latents (q up to as wide as the
prior) that were called converged were farther off than they said: copies may be off to the same side."""

FINE = 1e-11
"""Error relative to max(1, |value|) that needs no finer grid."""

Integrand: TypeAlias = Callable[[NonlinearICA, Draws, Array], Array]
"""f (R, L) of a model at some draws, given log s² (R, m)."""

DISAGREEMENT = 1e-2
"""Largest error estimate (nats) that still counts as one, as for `refica.Quadrature`: where rules differ by
more, none of them is in its range of convergence."""

UNCERTAIN = f"the error estimate is above {DISAGREEMENT:g} nats, so it is itself a guess"


def elbo(vae: Any, x: Any, noise: Any, gradient: bool = True, *, kl_weight: float = 1.0) -> Bound:
    """Return the evidence lower bound at given noise, and its gradient in (θ, σ², φ).

    Parameters
    ----------
    vae : VAE
    x : array_like (N, n)
    noise : array_like (L, N, m)
        ε: L draws from N(0, I_m) for each observation, over whose log p(x | z) the mean is taken.
    gradient : bool
        Whether to compute the gradient, of the total and at this noise.
    kl_weight : float
        Factor >= 0 on the KL term, the β of Higgins et al. (ICLR 2017) and of KL warm-up. Only at 1 is the
        result the ELBO; above 1 it is a looser lower bound on log p(x), below 1 it is no bound.

    Raises
    ------
    TypeError, ValueError
        For arrays that are not finite or of another shape, or a weight out of range.

    Examples
    --------
    >>> from refica import MLP, VAE, NonlinearICA
    >>> decoder, encoder = MLP((1, 8, 2)), MLP((2, 16, 2 * 1))
    >>> model = NonlinearICA(decoder, decoder.init(0), sigma2=0.1)
    >>> vae = VAE(model, encoder, encoder.init(1))
    >>> elbo(vae, np.zeros((5, 2)), np.zeros((1, 5, 1))).per_observation.shape
    (5,)
    """
    model = check_vae(vae).model
    x = model.check_data(x)
    noise = check_array("noise", noise, ("L", len(x), model.latent_dim))
    kl_weight = check_number("kl_weight", kl_weight, minimum=0.0)
    arguments = (model.decoder, vae.encoder, model.theta, model.sigma2, vae.phi, x, noise)
    if not gradient:
        return bound_at(elbo_values(*arguments, kl_weight=kl_weight), None)
    return bound_at(*elbo_and_gradient(*arguments, kl_weight=kl_weight))


def elbo_quadrature(
    vae: Any, x: Any, order: int = 20, gradient: bool = True, *, kl_weight: float = 1.0
) -> QuadratureBound:
    """Return the evidence lower bound with no noise: E_q by Gauss-Hermite quadrature about each μ(x_i).

    Parameters
    ----------
    vae : VAE
    x : array_like (N, n)
    order : int
        Nodes per latent axis, >= 1; order^m for each observation, in blocks of bounded memory.
    gradient : bool
        Whether to compute the gradient in (θ, σ², φ), of the total: the exact derivative of the sum over the
        nodes, which move with φ.
    kl_weight : float
        As in `elbo`, whose mean over the noise this is.

    Raises
    ------
    TypeError, ValueError
        For arrays that are not finite or of another shape, or numbers out of range.

    Notes
    -----
    The rule converges fast where q is narrow against the bends of the decoder, slowly where it is as wide as
    the prior (an encoder that is not trained), and slower still across kinks: mind the error.

    The error is the distance to the mean over three copies of a uniform grid of at least as many points,
    shifted and turned, plus three times what these differ by, plus what rounding may do; in more than three
    latent dimensions the distance to a Gauss rule of a quarter more nodes per axis.

    Examples
    --------
    >>> from refica import MLP, VAE, NonlinearICA
    >>> model = NonlinearICA(MLP((1, 1)), [1.0, 0.0], sigma2=1.0)
    >>> vae = VAE(model, MLP((1, 2)), [0.5, 0.0, 0.0, np.log(0.5)])  # q is the posterior N(x/2, 1/2)
    >>> bound = elbo_quadrature(vae, [[1.0]])
    >>> round(bound.total, 12), bool(bound.converged.all())  # log N(1; 0, 2)
    (-1.515512123485, True)
    """
    model = check_vae(vae).model
    x, rule = model.check_data(x), gauss_hermite(check_count("order", order))
    kl_weight = check_number("kl_weight", kl_weight, minimum=0.0)
    t, weight = nodes_of(rule, model.latent_dim)
    noise = np.broadcast_to(t[:, None], (len(t), len(x), model.latent_dim))
    arguments = (model.decoder, vae.encoder, model.theta, model.sigma2, vae.phi, x, noise, weight, kl_weight)
    values, by = elbo_and_gradient(*arguments) if gradient else (elbo_values(*arguments), None)
    mu, log_s2 = encode(vae.encoder, vae.phi, x)
    reconstruction = values + kl_weight * kl_to_prior(mu, log_s2)
    error = _quadrature_error(model, x, mu, log_s2, rule, reconstruction)
    converged, words = verdict([{UNCERTAIN: ~(error <= DISAGREEMENT)}], [len(x)])  # True for nan
    bound = bound_at(values, by)
    message = f"gauss_hermite({rule.order}) over q{words}"
    return QuadratureBound(values, bound.total, bound.gradient, error, converged, message)


def elbo_values(
    decoder: Decoder,
    encoder: Decoder,
    theta: Array,
    sigma2: float,
    phi: Array,
    x: Array,
    noise: Array,
    weight: Array | None = None,
    kl_weight: float = 1.0,
) -> Array:
    """Return ELBO(x_i) (N,) at noise (L, N, m) of weights (L,), None for 1/L: the plain formula behind `elbo`
    and `elbo_quadrature`, which checks nothing."""
    values = np.zeros(len(x), dtype=np.result_type(x, theta, sigma2, phi))
    for tile in _tiles(decoder, encoder, theta, phi, x, noise, weight):
        values[tile.rows] += _tile_values(sigma2, tile, kl_weight)
    return values


def elbo_and_gradient(
    decoder: Decoder,
    encoder: Decoder,
    theta: Array,
    sigma2: float,
    phi: Array,
    x: Array,
    noise: Array,
    weight: Array | None = None,
    kl_weight: float = 1.0,
) -> tuple[Array, BoundGradient]:
    """Return ELBO(x_i) (N,) and the gradient of their sum, otherwise as `elbo_values`."""
    values = np.zeros(len(x), dtype=np.result_type(x, theta, sigma2, phi))
    theta_bar, sigma2_bar, phi_bar = np.zeros_like(theta), 0.0, np.zeros_like(phi)
    for tile in _tiles(decoder, encoder, theta, phi, x, noise, weight):
        values[tile.rows] += _tile_values(sigma2, tile, kl_weight)
        by = _tile_gradient(decoder, encoder, theta, sigma2, phi, x[tile.rows], tile, kl_weight)
        theta_bar, sigma2_bar, phi_bar = theta_bar + by.theta, sigma2_bar + by.sigma2, phi_bar + by.phi
    return values, BoundGradient(theta_bar, sigma2_bar, phi_bar)


class _Tile(NamedTuple):
    """R observations, their ``rows``, with some of their draws and the ``weight`` (L,) of these: the ELBO is
    the sum over tiles, in each of which the KL counts by the sum of its weights."""

    rows: slice
    q: Encoded
    draws: Draws
    weight: Array


def _tiles(
    decoder: Decoder,
    encoder: Decoder,
    theta: Array,
    phi: Array,
    x: Array,
    noise: Array,
    weight: Array | None,
) -> Iterator[_Tile]:
    """Yield tiles of at most DECODER_ROWS latents, whatever N and L."""
    L = len(noise)
    weight = np.full(L, 1.0 / L) if weight is None else weight
    for rows, some in row_and_draw_blocks(len(x), L):
        q = encode_with_slope(encoder, phi, x[rows])
        draws = draw(decoder, theta, q.mu, q.log_s2, x[rows], noise[some, rows])
        yield _Tile(rows, q, draws, weight[some])


def row_and_draw_blocks(N: int, L: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows of observations, and of draws, that make at most DECODER_ROWS latents."""
    for rows in row_blocks(N, max(1, DECODER_ROWS // L)):
        for some in row_blocks(L, DECODER_ROWS):
            yield rows, some


def _tile_values(sigma2: float, tile: _Tile, kl_weight: float) -> Array:
    """Σ_l w_l (log N(x_i; g_il, σ² I) - β KL(q_i ‖ N(0, I))), (R,)."""
    reconstruction = log_likelihood_given(tile.draws.squared, sigma2, tile.draws.g.shape[2]) @ tile.weight
    kl = kl_to_prior(tile.q.mu, tile.q.log_s2)
    return np.asarray(reconstruction - kl_weight * tile.weight.sum() * kl)


def _tile_gradient(
    decoder: Decoder,
    encoder: Decoder,
    theta: Array,
    sigma2: float,
    phi: Array,
    x: Array,
    tile: _Tile,
    kl_weight: float,
) -> BoundGradient:
    """Gradient of Σ_i ELBO(x_i) over a tile: of θ, σ², and through `elbo_gradient_in_q` and the encoder φ."""
    n, weight, q = tile.draws.g.shape[2], tile.weight, tile.q
    by_sigma2 = ((tile.draws.squared @ weight) / sigma2 - n * weight.sum()).sum() / (2.0 * sigma2)
    by_theta, mu_bar, log_s2_bar = elbo_gradient_in_q(
        decoder, theta, sigma2, x, q.mu, q.log_s2, tile.draws, weight, kl_weight
    )
    by_phi = pull_back_to_phi(encoder, phi, x, q.slope, mu_bar, log_s2_bar)
    return BoundGradient(by_theta, by_sigma2, by_phi)


def elbo_gradient_in_q(
    decoder: Decoder,
    theta: Array,
    sigma2: float,
    x: Array,
    mu: Array,
    log_s2: Array,
    draws: Draws,
    weight: Array,
    kl_weight: float = 1.0,
) -> tuple[Array, Array, Array]:
    """Derivatives of Σ_i ELBO(x_i) in θ (p,), and of each in its μ_i and log s_i² (R, m), back through g and
    z = μ + s ε:

    ∂/∂g_il = w_l (x_i - g_il) / σ²,        ∂/∂μ_i = Σ_l z_bar_il - β μ_i,
    ∂/∂log s_i² = Σ_l z_bar_il ε_il s_i / 2 - β (s_i² - 1) / 2,        where β counts by Σ_l w_l.
    """
    g_bar = (x[:, None] - draws.g) * (weight / sigma2)[:, None]
    theta_bar, z_bar = pull_back(decoder, theta, draws.z, g_bar)
    beta = kl_weight * weight.sum()
    mu_bar = z_bar.sum(axis=1) - beta * mu
    moved = np.einsum("ilm,ilm->im", z_bar, draws.epsilon)
    log_s2_bar = 0.5 * np.exp(0.5 * log_s2) * moved - 0.5 * beta * np.expm1(log_s2)
    return theta_bar, mu_bar, log_s2_bar


def log_likelihood_at(model: NonlinearICA, draws: Draws, log_s2: Array) -> Array:
    """log p(x_i | z_il), (R, L)."""
    return log_likelihood_given(draws.squared, model.sigma2, draws.g.shape[2])


def expected(
    model: NonlinearICA,
    x: Array,
    mu: Array,
    log_s2: Array,
    rule: Rule,
    integrand: Integrand = log_likelihood_at,
) -> Array:
    """E_q f over q_i = N(μ_i, diag s_i²) by a rule, (N,); ``integrand`` gives f (R, L) at some draws."""
    t, weight = nodes_of(rule, model.latent_dim)
    values = np.zeros(len(x))
    for rows, some in row_and_draw_blocks(len(x), len(t)):
        noise = np.broadcast_to(t[some, None], (some.stop - some.start, rows.stop - rows.start, t.shape[1]))
        draws = draw(model.decoder, model.theta, mu[rows], log_s2[rows], x[rows], noise)
        values[rows] += integrand(model, draws, log_s2[rows]) @ weight[some]
    return values


def _quadrature_error(
    model: NonlinearICA, x: Array, mu: Array, log_s2: Array, rule: GaussHermite, found: Array
) -> Array:
    """Estimated error (N,) of E_q log p(x_i | z) as a Gauss rule gives it, (N,).

    Another Gauss rule is a poor yardstick where the decoder has kinks; grids that are shifted and turned
    against each other are not. Where they are off by as much as their distance to what was found, a finer one
    decides.
    """
    m = model.latent_dim
    rounding = rounding_error(x, model.sigma2, found - kl_to_prior(mu, log_s2))
    if m not in POINTS:
        other = expected(model, x, mu, log_s2, gauss_hermite(rule.order + rule.order // 4 + 1))
        return np.asarray(np.abs(found - other) + rounding)
    error, rows = np.empty(len(x)), np.arange(len(x))
    for points in POINTS[m]:
        grid = uniform_grid(max(rule.order, points), RADIUS)
        value, own = expected_by_copies(model, x[rows], mu[rows], log_s2[rows], grid, log_likelihood_at)
        distance = np.abs(found[rows] - value)
        error[rows] = distance + own
        rows = rows[(own > distance) & (error[rows] > FINE * np.maximum(1.0, np.abs(found[rows])))]
        if not len(rows):
            break
    return np.asarray(error + rounding)


def expected_by_copies(
    model: NonlinearICA, x: Array, mu: Array, log_s2: Array, grid: UniformGrid, integrand: Integrand
) -> tuple[Array, Array]:
    """Return E_q f, the mean over three copies of a grid, and its estimated error from their range, (N,)."""
    each = np.array([expected(model, x, mu, log_s2, grid.another(copy), integrand) for copy in range(3)])
    return each.mean(axis=0), RANGES * (each.max(axis=0) - each.min(axis=0))


def nodes_of(rule: Rule, m: int) -> tuple[Array, Array]:
    """Return nodes (K, m) of a rule for N(0, I) and its weights (K,), which sum to one."""
    t, log_w = rule.points(m)
    weight = np.exp(log_w)
    return t, weight / weight.sum()
