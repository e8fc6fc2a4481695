"""Cases with an encoder, and Exercise 3's bound on them, as its formula has it."""

# notation: N observations, n data, m latent, L draws; mu, s (N, m); noise ε (L, N, m); phi (q,)

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refica.decoders import MLP
from refica.vae import VAE
from refica.validation import Array
from refica.verify import formulas
from refica.verify.cases import Case, Setting
from refica.verify.routes import takes_complex

__all__ = ["Variational", "bound_of", "encoded_cases", "log_weights_of"]


class Variational(NamedTuple):
    """A case with an encoder: q's means and standard deviations as formulas have them."""

    case: Case
    vae: VAE
    noise: Array
    analytic: bool

    @property
    def params(self) -> Array:
        """(θ, σ², φ) as one vector."""
        return np.concatenate([self.vae.model.theta, [self.vae.model.sigma2], self.vae.phi])

    def split(self, params: Array) -> tuple[Array, Array, Array]:
        """θ, σ² and φ of one vector."""
        p = len(self.vae.model.theta)
        return params[:p], params[p], params[p + 1 :]

    def q(self, phi: Array) -> tuple[Array, Array]:
        """μ and s, (N, m) each: the encoder's first m outputs, and exp of half the others."""
        outputs = self.vae.encoder(phi, self.case.x)
        m = self.vae.model.latent_dim
        return outputs[:, :m], np.exp(outputs[:, m:] / 2.0)


def encoded_cases(setting: Setting, number: int, draws: int = 3) -> Iterator[Variational]:
    """Yield the cases with an encoder of three tanh units and noise for some draws."""
    for index, case in enumerate(setting.cases):
        rng = setting.rng(100 * number + index)
        m, n = case.model.latent_dim, case.model.data_dim
        encoder = MLP((n, 3, 2 * m), "tanh")
        phi = 0.6 * encoder.init(rng) + 0.2 * rng.standard_normal(encoder.n_params)
        noise = rng.standard_normal((draws, len(case.x), m))
        yield Variational(case, VAE(case.model, encoder, phi), noise, takes_complex(case))


def bound_of(v: Variational, params: Array, noise: Array) -> Array:
    """ELBO(x_i) at some noise, (N,), as Exercise 3 has it: mean of log p(x | z) - KL, z = μ + s ε."""
    theta, sigma2, phi = v.split(params)
    mu, s = v.q(phi)
    each = [formulas.log_normal(v.case.x, v.vae.model.decoder(theta, mu + s * e), sigma2) for e in noise]
    return np.array(sum(each) / len(noise) - formulas.kl(mu, s))


def log_weights_of(v: Variational, params: Array, noise: Array) -> Array:
    """log p(x_i, z_il) - log q(z_il | x_i), (N, L)."""
    theta, sigma2, phi = v.split(params)
    mu, s = v.q(phi)
    columns = []
    for e in noise:
        z = mu + s * e
        log_q = (-0.5 * np.log(2.0 * math.pi) - np.log(s) - (z - mu) ** 2 / (2.0 * s**2)).sum(axis=1)
        log_x = formulas.log_normal(v.case.x, v.vae.model.decoder(theta, z), sigma2)
        columns.append(log_x + formulas.log_normal(z, 0.0, 1.0) - log_q)
    return np.stack(columns, axis=1)
