"""What stays the same during a fit of a VAE: its settings, the coordinates of its steps, what judges it.

Steps are taken in coordinates in which Adam's equal steps make sense whatever the units of the data: θ's
output layer in units of the data, log σ² for σ², and φ's first layer as for standardised inputs.
"""

# notation: N observations, H of them held for evaluations, n data, m latent, p and q parameters of decoder
# and encoder; u (p + 1 + q,) the coordinates, a name with _bar the gradient with respect to what it is named
# after

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from refica.decoders import MLP, Decoder
from refica.fit.starts import output_units, sigma2_floor, standardisation
from refica.vae import VAE, BoundGradient, elbo_values
from refica.validation import Array

__all__ = ["Held", "Problem", "Settings", "best_sigma2", "fold", "held_elbo", "problem_of"]

HELD = 20_000
"""Most observations in an evaluation; of more, as many are drawn once."""

HELD_LATENTS = 10_000
"""Fewest latents in an evaluation: of fewer observations each has several draws of noise. A tenth of these
told rounds apart to .005 nats per observation only, and cost hardly less beside 500 steps."""


class Settings(NamedTuple):
    """The numbers and choices that `fit_vae` was called with; see there."""

    n_starts: int
    max_iter: int
    batch_size: int
    learning_rate: float
    schedule: str
    tol: float
    patience: int
    n_samples: int
    sigma2_update: str
    kl_warmup: int
    validation_fraction: float | None


class Held(NamedTuple):
    """Observations ``x`` (H, n) with ``noise`` (L, H, m) that stay the same for a whole fit."""

    x: Array
    noise: Array


class Problem(NamedTuple):
    """What stays the same during a fit.

    ``decoder``, ``encoder``; ``units`` (p,) of the coordinates of θ; ``shift`` and ``scale`` (n,) of the
    encoder's inputs; ``log_floor`` of σ²; ``x`` (N, n) to train on; ``training`` of it and ``judge``: what an
    evaluation sees, the same unless observations were set aside.
    """

    decoder: Decoder
    encoder: Decoder
    units: Array
    shift: Array
    scale: Array
    log_floor: float
    x: Array
    training: Held
    judge: Held

    @property
    def at_sigma2(self) -> int:
        """Where in u log σ² is."""
        return len(self.units)

    def to_coordinates(self, vae: VAE) -> Array:
        """u = (θ / units, log σ², φ for standardised inputs), (p + 1 + q,); σ² at least at its floor."""
        phi = _unfold(vae.encoder, vae.phi, self.shift, self.scale)
        log_sigma2 = max(math.log(vae.model.sigma2), self.log_floor)
        return np.concatenate([vae.model.theta / self.units, [log_sigma2], phi])

    def to_parameters(self, u: Array) -> tuple[Array, Any, Array]:
        """θ (p,), σ², φ (q,) of the coordinates u."""
        p = self.at_sigma2
        phi = fold(self.encoder, u[p + 1 :], self.shift, self.scale)
        return self.units * u[:p], np.exp(u[p]), phi

    def pull_back(self, by: BoundGradient, sigma2: float) -> Array:
        """u_bar from the gradient in (θ, σ², φ): units · θ_bar, σ² σ²_bar and folded φ_bar.

        d σ² / d log σ² = σ²; with W = U / scale and b = c - U (shift / scale) in the first layer,
        U_bar = (W_bar - b_bar shiftᵀ) / scale and c_bar = b_bar.
        """
        phi_bar = by.phi
        if isinstance(self.encoder, MLP):
            phi_bar = phi_bar.copy()
            W_bar, b_bar = next(self.encoder.unpack(phi_bar))
            W_bar[...] = (W_bar - np.outer(b_bar, self.shift)) / self.scale
        return np.concatenate([self.units * by.theta, [sigma2 * by.sigma2], phi_bar])


def problem_of(vae: VAE, x: Array, validation_fraction: float | None, rng: np.random.Generator) -> Problem:
    """Choose the coordinates, what is set aside, and the observations and the noise that judge the fit.

    Raises
    ------
    ValueError
        If fewer than two observations would be left to train on.
    """
    aside = None
    if validation_fraction is not None:
        count = max(1, round(validation_fraction * len(x)))
        if len(x) - count < 2:
            raise ValueError(
                f"validation_fraction must leave at least 2 of {len(x)} observations to train on, "
                f"got {validation_fraction:g}"
            )
        order = rng.permutation(len(x))
        aside, x = x[np.sort(order[:count])], x[np.sort(order[count:])]
    shift, scale = standardisation(x)
    # Data simulated from the seed of the fit must not meet the draws they were made of.
    rng = np.random.default_rng(rng.integers(2**63, size=2))
    training = _held(x, vae.model.latent_dim, rng)
    return Problem(
        vae.model.decoder,
        vae.encoder,
        output_units(vae.model.decoder, scale),
        shift,
        scale,
        math.log(sigma2_floor(x)),
        x,
        training,
        training if aside is None else _held(aside, vae.model.latent_dim, rng),
    )


def _held(x: Array, m: int, rng: np.random.Generator) -> Held:
    """Choose at most `HELD` observations and their noise, at least `HELD_LATENTS` draws in all.

    Its mean is made 0 and its variance 1 for each latent: what most of an ELBO's noise comes from.
    """
    held = x if len(x) <= HELD else x[np.sort(rng.choice(len(x), HELD, replace=False))]
    noise = rng.standard_normal((math.ceil(HELD_LATENTS / len(held)), len(held), m))
    return Held(held, (noise - noise.mean(axis=(0, 1))) / noise.std(axis=(0, 1)))


def held_elbo(u: Array, problem: Problem) -> float:
    """ELBO per observation of those that judge the fit, at their noise; -inf where it is not finite."""
    theta, sigma2, phi = problem.to_parameters(u)
    values = elbo_values(problem.decoder, problem.encoder, theta, sigma2, phi, *problem.judge)
    mean = float(values.mean())
    return mean if math.isfinite(mean) else -math.inf


def best_sigma2(sigma2: float, sigma2_bar: float, N: int, n: int) -> float:
    """The σ² that maximises the ELBO of N observations: the mean of ‖x_i - g(z_il)‖² / n over i and l.

    From the derivative ∂ELBO/∂σ² = Σ_i (mean_l ‖x_i - g(z_il)‖²/σ² - n) / 2σ² at any other σ²:

        σ² (1 + 2 σ² σ²_bar / (N n)).
    """
    return float(sigma2 * (1.0 + 2.0 * sigma2 * sigma2_bar / (N * n)))


def fold(encoder: Decoder, phi: Array, shift: Array, scale: Array) -> Array:
    """φ for inputs x from φ for inputs (x - shift) / scale: W = U / scale, b = c - U (shift / scale).

    An encoder that is no MLP has no first layer to fold into, and takes its inputs as they are.
    """
    if not isinstance(encoder, MLP):
        return phi
    phi = phi.copy()
    W, b = next(encoder.unpack(phi))
    W /= scale
    b -= W @ shift
    return phi


def _unfold(encoder: Decoder, phi: Array, shift: Array, scale: Array) -> Array:
    """Undo `fold`: U = W scale, c = b + W shift."""
    if not isinstance(encoder, MLP):
        return phi
    phi = phi.copy()
    W, b = next(encoder.unpack(phi))
    b += W @ shift
    W *= scale
    return phi
