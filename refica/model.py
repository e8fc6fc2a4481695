"""The model, E(1): Z ~ N(0, I_m), X | Z ~ N(g_θ(Z), σ² I_n), and its log joint density, E(2)."""

# notation: x (N, n) observations, z (K, m) or (N, K, m) nodes, g the decoder's values at them

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refica.decoders import Decoder, decoder_from_dict, decoder_to_dict
from refica.validation import Array, check_array, check_count, check_generator, check_number, shown

__all__ = ["NonlinearICA", "check_model", "log_likelihood_given", "log_prior", "squared_distances"]

LOG_2PI = math.log(2.0 * math.pi)

LARGEST = 1e100
"""Observations beyond this would overflow in ‖x - g‖²/σ² for σ² down to 1e-100."""


@dataclass(frozen=True, slots=True, init=False, eq=False)
class NonlinearICA:
    """The nonlinear ICA model with Gaussian noise: a decoder, its parameters, a noise variance.

    Parameters
    ----------
    decoder : Decoder
        g_θ: R^m -> R^n.
    theta : array_like (p,)
        Its parameters; a read-only copy is kept.
    sigma2 : float
        Noise variance σ² > 0 of each coordinate (a variance, not a standard deviation).

    Raises
    ------
    TypeError, ValueError
        If theta has not the decoder's length or is not finite, or sigma2 is not a finite number > 0.

    Examples
    --------
    >>> from refica import MLP
    >>> decoder = MLP((1, 8, 2))
    >>> model = NonlinearICA(decoder, decoder.init(0), sigma2=0.01)
    >>> z, x = model.sample(1000, rng=0)
    >>> z.shape, x.shape
    ((1000, 1), (1000, 2))
    """

    decoder: Decoder
    theta: Array
    sigma2: float

    def __init__(self, decoder: Decoder, theta: Any, sigma2: float) -> None:
        if not hasattr(decoder, "n_params"):
            raise TypeError(f"decoder must be one such as MLP((1, 8, 2)), got {shown(decoder)}")
        theta = check_array("theta", theta, (decoder.n_params,)).copy()
        theta.setflags(write=False)
        object.__setattr__(self, "decoder", decoder)
        object.__setattr__(self, "theta", theta)
        object.__setattr__(self, "sigma2", check_number("sigma2", sigma2, above=0.0))

    def __repr__(self) -> str:
        """Show the length of theta only: the array would fill pages."""
        return f"NonlinearICA({self.decoder}, theta of shape {self.theta.shape}, sigma2={self.sigma2!r})"

    @property
    def latent_dim(self) -> int:
        """Dimension m of Z."""
        return self.decoder.latent_dim

    @property
    def data_dim(self) -> int:
        """Dimension n of X."""
        return self.decoder.data_dim

    def replace(self, *, theta: Any = None, sigma2: float | None = None) -> NonlinearICA:
        """Return the model with other parameters; what is None stays.

        Parameters
        ----------
        theta : array_like (p,), optional
        sigma2 : float, optional

        Raises
        ------
        TypeError, ValueError
            As the constructor.
        """
        return NonlinearICA(
            self.decoder,
            self.theta if theta is None else theta,
            self.sigma2 if sigma2 is None else sigma2,
        )

    def check_data(self, x: Any) -> Array:
        """Return ``x`` as a finite float64 array (N, n), of a size whose squares do not overflow.

        Raises
        ------
        TypeError, ValueError
            As `refica.validation.check_array`.
        """
        x = check_array("x", x, ("N", self.data_dim))
        if np.abs(x).max() > LARGEST:
            raise ValueError(
                f"x must not be larger than {LARGEST:g}, got {np.abs(x).max():g}: its squares would overflow"
            )
        return x

    def sample(self, size: int, rng: Any) -> tuple[Array, Array]:
        """Draw latents and observations, E(1).

        Parameters
        ----------
        size : int
            Number of observations N >= 1.
        rng : int or numpy.random.Generator

        Returns
        -------
        z : (N, m)
        x : (N, n)

        Raises
        ------
        TypeError, ValueError
            If ``size`` is not an integer >= 1 or ``rng`` neither a seed nor a generator.
        """
        rng = check_generator(rng)
        z = rng.standard_normal((check_count("size", size), self.latent_dim))
        g = self.decoder(self.theta, z)
        return z, g + math.sqrt(self.sigma2) * rng.standard_normal(g.shape)

    def log_joint(self, x: Any, z: Any) -> Array:
        """Return log p(x_i, z_k), E(2), as (N, K).

        Parameters
        ----------
        x : array_like (N, n)
        z : array_like (K, m) shared by all observations, or (N, K, m)

        Raises
        ------
        TypeError, ValueError
            For arrays that are not finite or of another shape.
        """
        x = self.check_data(x)
        shape = ("K", self.latent_dim) if np.ndim(z) == 2 else (len(x), "K", self.latent_dim)
        z = check_array("z", z, shape)
        g = self.decoder(self.theta, z.reshape(-1, self.latent_dim)).reshape(*z.shape[:-1], self.data_dim)
        squared = squared_distances(x, g)
        return log_likelihood_given(squared, self.sigma2, self.data_dim) + log_prior(z)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain description that `from_dict` reads back bit for bit.

        Raises
        ------
        TypeError
            If the decoder is neither an MLP nor a Polynomial.
        """
        return {
            "decoder": decoder_to_dict(self.decoder),
            "theta": self.theta.tolist(),
            "sigma2": self.sigma2,
        }

    @staticmethod
    def from_dict(description: dict[str, Any]) -> NonlinearICA:
        """Return the model that `to_dict` described.

        Raises
        ------
        TypeError, ValueError
            If an entry is missing or does not fit.
        """
        if not isinstance(description, dict):
            raise ValueError(f"the description of a model must be a dict, got {shown(description)}")
        missing = {"decoder", "theta", "sigma2"} - set(description)
        if missing:
            raise ValueError(f"the description of a model lacks {', '.join(sorted(missing))}")
        return NonlinearICA(
            decoder_from_dict(description["decoder"]), description["theta"], description["sigma2"]
        )


def check_model(model: Any) -> NonlinearICA:
    """Return ``model`` if it is a NonlinearICA.

    Raises
    ------
    TypeError
        If it is anything else, such as a decoder.
    """
    if not isinstance(model, NonlinearICA):
        raise TypeError(f"model must be a NonlinearICA(decoder, theta, sigma2), got {shown(model)}")
    return model


def squared_distances(x: Array, g: Array) -> Array:
    """‖x_i - g_k‖² as (N, K), for g (K, n) shared or (N, K, n).

    By differences, coordinate by coordinate: the form ‖x‖² - 2 x·g + ‖g‖² would cancel where σ² is
    small against ‖x‖² (7e-8 nats at an offset of 10 and σ² = 1e-6), and no N x K x n array is formed
    for shared nodes. Sums of squares, not of moduli, so that the complex step sees an analytic function.
    """
    total = x[:, 0, None] - g[..., 0]
    total *= total
    for d in range(1, x.shape[1]):
        difference = x[:, d, None] - g[..., d]
        difference *= difference
        total += difference
    return total


def log_likelihood_given(squared: Array, sigma2: float, n: int) -> Array:
    """log N(x; g(z), σ² I_n) = -n/2 log(2πσ²) - ‖x - g(z)‖² / 2σ², same shape as ``squared``."""
    return squared * (-0.5 / sigma2) - 0.5 * n * (LOG_2PI + np.log(sigma2))


def log_prior(z: Array) -> Array:
    """log N(z; 0, I_m) = -m/2 log 2π - ‖z‖²/2, (..., m) -> (...)."""
    return -0.5 * np.einsum("...m,...m->...", z, z) - 0.5 * z.shape[-1] * LOG_2PI
