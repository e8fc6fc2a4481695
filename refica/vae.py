"""The variational autoencoder: an encoder beside the model, and the evidence lower bound (Exercise 3).

The encoder gives a diagonal Gaussian q(z | x) = N(μ(x), diag s(x)²) for each observation. With noise
ε ~ N(0, I) handed in as an argument and z = μ + s ε (Kingma and Welling 2014),

    ELBO(x) = E_q[log p(x | z)] - KL(q ‖ N(0, I)),    E_q over the given draws, the KL in closed form,

every constant kept, so that ELBO(x) <= log p(x) in expectation over the noise, in the same nats. All
gradients are by hand, and exact derivatives of the computed value: the noise is data.

The formulas accept complex theta, sigma2 and phi, for differentiation by the complex step.
"""

# notation: N observations, n data, m latent, p and q parameters of decoder and encoder, L draws;
# x (N, n), mu and log_s2 (N, m), noise ε (L, N, m), z (N, L, m), g (N, L, n) the decoder's values at z

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refica.decoders import Decoder, decoder_from_dict, decoder_to_dict
from refica.encoder import soft_clamp
from refica.likelihood import DECODER_ROWS, row_blocks
from refica.model import NonlinearICA, log_likelihood_given, squared_distances
from refica.validation import Array, check_array

__all__ = [
    "VAE",
    "Bound",
    "BoundGradient",
    "elbo",
    "elbo_and_gradient",
    "elbo_values",
    "kl_to_prior",
]


class BoundGradient(NamedTuple):
    """Derivatives of a total: ``theta`` (p,), ``sigma2`` with respect to σ² itself, ``phi`` (q,)."""

    theta: Array
    sigma2: float
    phi: Array


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """The result of `elbo`: a lower bound on log p(x_i), at the noise that was given.

    Attributes
    ----------
    per_observation : (N,)
        The bound on each log p(x_i), in nats.
    total : float
        Their sum.
    gradient : BoundGradient or None
        Of the total: ``theta`` (p,), ``sigma2`` (float, with respect to σ² itself), ``phi`` (q,).
    """

    per_observation: Array
    total: float
    gradient: BoundGradient | None


@dataclass(frozen=True, slots=True, init=False, eq=False)
class VAE:
    """A nonlinear ICA model with an encoder for approximate posteriors.

    Parameters
    ----------
    model : NonlinearICA
        m latent, n data dimensions.
    encoder : MLP
        From n inputs to 2m outputs: m means, then m log variances (see `refica.encoder.encode`).
    phi : array_like (q,)
        The encoder's parameters, flat as theta; a read-only copy is kept.

    Raises
    ------
    TypeError, ValueError
        If the encoder's dimensions do not fit the model's, or phi not the encoder.

    Notes
    -----
    The encoder sees the data as they are, so that (encoder, phi) say everything about q. Data of any
    scale are served by `refica.fit.vae.initial_vae` and `fit_vae`, which start and step in the
    coordinates of standardised inputs and then fold shift and scale into the first layer of phi.

    Examples
    --------
    >>> from refica import MLP
    >>> decoder, encoder = MLP((1, 8, 2)), MLP((2, 16, 2 * 1))
    >>> model = NonlinearICA(decoder, decoder.init(0), sigma2=0.1)
    >>> vae = VAE(model, encoder, encoder.init(1))
    >>> z, x = model.sample(5, rng=0)
    >>> elbo(vae, x, np.zeros((1, 5, 1))).per_observation.shape
    (5,)
    """

    model: NonlinearICA
    encoder: Decoder
    phi: Array

    def __init__(self, model: NonlinearICA, encoder: Decoder, phi: Any) -> None:
        if not isinstance(model, NonlinearICA):
            raise TypeError(f"model must be a NonlinearICA, got {model!r}")
        n, m = model.data_dim, model.latent_dim
        if not callable(getattr(encoder, "vjp", None)):
            raise TypeError(f"encoder must be an MLP such as MLP(({n}, 16, {2 * m})), got {encoder!r}")
        if (encoder.latent_dim, encoder.data_dim) != (n, 2 * m):
            raise ValueError(
                f"encoder must have {n} inputs (data_dim) and {2 * m} outputs (latent_dim means, then as "
                f"many log variances), got {encoder.latent_dim} and {encoder.data_dim}; "
                f"use for instance MLP(({n}, 16, {2 * m}))"
            )
        phi = check_array("phi", phi, (encoder.n_params,)).copy()
        phi.setflags(write=False)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "phi", phi)

    def replace(self, *, model: NonlinearICA | None = None, phi: Any = None) -> VAE:
        """Return the VAE with another model or other encoder parameters; what is None stays.

        Parameters
        ----------
        model : NonlinearICA, optional
        phi : array_like (q,), optional

        Raises
        ------
        TypeError, ValueError
            As the constructor.
        """
        return VAE(self.model if model is None else model, self.encoder, self.phi if phi is None else phi)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain description that `from_dict` reads back bit for bit.

        Raises
        ------
        TypeError
            If decoder or encoder is neither an MLP nor a Polynomial.
        """
        return {
            "model": self.model.to_dict(),
            "encoder": decoder_to_dict(self.encoder),
            "phi": self.phi.tolist(),
        }

    @staticmethod
    def from_dict(description: dict[str, Any]) -> VAE:
        """Return the VAE that `to_dict` described.

        Raises
        ------
        TypeError, ValueError
            If an entry is missing or does not fit.
        """
        missing = {"model", "encoder", "phi"} - set(description)
        if missing:
            raise ValueError(f"the description of a VAE lacks {', '.join(sorted(missing))}")
        return VAE(
            NonlinearICA.from_dict(description["model"]),
            decoder_from_dict(description["encoder"]),
            description["phi"],
        )


def elbo(vae: VAE, x: Any, noise: Any, gradient: bool = True) -> Bound:
    """Return the evidence lower bound at given noise, and its gradient in (θ, σ², φ).

    Parameters
    ----------
    vae : VAE
    x : array_like (N, n)
    noise : array_like (L, N, m)
        ε: L draws from N(0, I_m) for each observation, over whose log p(x | z) the mean is taken.
    gradient : bool
        Whether to compute the gradient, of the total and at this noise.

    Raises
    ------
    TypeError, ValueError
        For arrays that are not finite or of another shape.
    """
    model = vae.model
    x = model.check_data(x)
    noise = check_array("noise", noise, ("L", len(x), model.latent_dim))
    arguments = (model.decoder, vae.encoder, model.theta, model.sigma2, vae.phi, x, noise)
    if not gradient:
        values = elbo_values(*arguments)
        return Bound(values, math.fsum(values), None)
    values, by = elbo_and_gradient(*arguments)
    return Bound(values, math.fsum(values), by._replace(sigma2=float(by.sigma2)))


def kl_to_prior(mu: Array, log_s2: Array) -> Array:
    """KL(N(μ, diag s²) ‖ N(0, I)) = ½ Σ_j (μ_j² + s_j² - 1 - log s_j²), (N, m) -> (N,)."""
    return np.asarray(0.5 * (mu * mu + np.expm1(log_s2) - log_s2).sum(axis=1))


def elbo_values(
    decoder: Decoder, encoder: Decoder, theta: Array, sigma2: float, phi: Array, x: Array, noise: Array
) -> Array:
    """Return ELBO(x_i) (N,) at noise (L, N, m): the plain formula behind `elbo`, which checks nothing."""
    values = np.zeros(len(x), dtype=np.result_type(x, theta, sigma2, phi))
    for rows, share, tile in _tiles(decoder, encoder, theta, phi, x, noise):
        values[rows] += share * _tile_values(sigma2, tile)
    return values


def elbo_and_gradient(
    decoder: Decoder, encoder: Decoder, theta: Array, sigma2: float, phi: Array, x: Array, noise: Array
) -> tuple[Array, BoundGradient]:
    """Return ELBO(x_i) (N,) and the gradient of their sum, otherwise as `elbo_values`."""
    values = np.zeros(len(x), dtype=np.result_type(x, theta, sigma2, phi))
    theta_bar, sigma2_bar, phi_bar = np.zeros_like(theta), 0.0, np.zeros_like(phi)
    for rows, share, tile in _tiles(decoder, encoder, theta, phi, x, noise):
        values[rows] += share * _tile_values(sigma2, tile)
        by = _tile_gradient(decoder, encoder, theta, sigma2, phi, x[rows], tile)
        theta_bar = theta_bar + share * by.theta
        sigma2_bar += share * by.sigma2
        phi_bar = phi_bar + share * by.phi
    return values, BoundGradient(theta_bar, sigma2_bar, phi_bar)


class _Tile(NamedTuple):
    """R observations with L draws each: ``mu``, ``log_s2`` and its slope in the encoder's output (R, m),
    noise ``epsilon`` and latents ``z`` (R, L, m), ``g`` (R, L, n), ``squared`` = ‖x_i - g_il‖² (R, L)."""

    mu: Array
    log_s2: Array
    slope: Array
    epsilon: Array
    z: Array
    g: Array
    squared: Array


def _tiles(
    decoder: Decoder, encoder: Decoder, theta: Array, phi: Array, x: Array, noise: Array
) -> Iterator[tuple[slice, float, _Tile]]:
    """Yield rows, share and tile for at most DECODER_ROWS latents at a time, whatever N and L.

    The ELBO is a mean over draws: where the draws of one observation do not fit into one tile it has
    several, each with its ``share`` of them, by which its values and gradients are weighted.
    """
    L = len(noise)
    for rows in row_blocks(len(x), max(1, DECODER_ROWS // L)):
        for draws in row_blocks(L, DECODER_ROWS):
            share = (draws.stop - draws.start) / L
            yield rows, share, _draw(decoder, encoder, theta, phi, x[rows], noise[draws, rows])


def _draw(decoder: Decoder, encoder: Decoder, theta: Array, phi: Array, x: Array, noise: Array) -> _Tile:
    """Encode x (R, n), draw z_il = μ_i + s_i ε_li with noise (L, R, m), decode."""
    mu, log_s2, slope = _encode(encoder, phi, x)
    epsilon = noise.swapaxes(0, 1)
    z = mu[:, None] + np.exp(0.5 * log_s2)[:, None] * epsilon
    g = decoder(theta, z.reshape(-1, z.shape[2])).reshape(*z.shape[:2], x.shape[1])
    return _Tile(mu, log_s2, slope, epsilon, z, g, squared_distances(x, g))


def _tile_values(sigma2: float, tile: _Tile) -> Array:
    """mean_l log N(x_i; g_il, σ² I) - KL(q_i ‖ N(0, I)), (R,)."""
    reconstruction = log_likelihood_given(tile.squared, sigma2, tile.g.shape[2]).mean(axis=1)
    return np.asarray(reconstruction - kl_to_prior(tile.mu, tile.log_s2))


def _tile_gradient(
    decoder: Decoder, encoder: Decoder, theta: Array, sigma2: float, phi: Array, x: Array, tile: _Tile
) -> BoundGradient:
    """Gradient of Σ_i ELBO(x_i) over a tile, backwards through g, z = μ + s ε and the encoder:

    ∂/∂g_il = (x_i - g_il) / (L σ²),       ∂/∂σ²    = Σ_i mean_l (‖x_i - g_il‖²/σ² - n) / 2σ²,
    ∂/∂μ_i  = Σ_l z_bar_il - μ_i,           ∂/∂log s_i² = Σ_l z_bar_il ε_il s_i / 2 - (s_i² - 1) / 2.
    """
    R, L, n = tile.g.shape
    g_bar = (x[:, None] - tile.g) / (L * sigma2)
    theta_bar, z_bar = decoder.vjp(theta, tile.z.reshape(R * L, -1), g_bar.reshape(R * L, n))
    z_bar = z_bar.reshape(tile.z.shape)
    sigma2_bar = (tile.squared.mean(axis=1) / sigma2 - n).sum() / (2.0 * sigma2)
    s = np.exp(0.5 * tile.log_s2)
    mu_bar = z_bar.sum(axis=1) - tile.mu
    log_s2_bar = 0.5 * s * np.einsum("ilm,ilm->im", z_bar, tile.epsilon) - 0.5 * np.expm1(tile.log_s2)
    outputs_bar = np.concatenate([mu_bar, log_s2_bar * tile.slope], axis=1)
    return BoundGradient(theta_bar, sigma2_bar, encoder.vjp(phi, x, outputs_bar)[0])


def _encode(encoder: Decoder, phi: Array, x: Array) -> tuple[Array, Array, Array]:
    """μ, log s² and the slope of log s² in the encoder's output, each (R, m)."""
    outputs = encoder(phi, x)
    m = outputs.shape[1] // 2
    return outputs[:, :m], *soft_clamp(outputs[:, m:])
