"""refica as an implementation under test: the adapter that the kit is tried on, and a model for others."""

# notation: N observations, n data, m latent, K nodes

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

from refica.activations import Activation, leaky_relu
from refica.decoders import MLP, Polynomial
from refica.exact import affine_map, probabilistic_pca
from refica.marginal import density, log_likelihood
from refica.model import NonlinearICA, log_prior
from refica.posterior import posterior
from refica.quadrature import FixedNodes
from refica.reference import Reference
from refica.testing.conformance.case import Case, Layer, Network, Power
from refica.vae import VAE, elbo, iwae
from refica.validation import Array

__all__ = ["Refica", "model_of"]

SIGMA2_RANGE = 1e4
"""The best σ² is sought within this factor of the one that a case gives."""

REFERENCE = Reference()

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refica:
    """What refica itself answers.

    Parameters
    ----------
    integrator : Integrator or None
        For every integral over the latents; by default `Reference`.
    """

    integrator: Any = REFERENCE

    def decoder(self, case: Case) -> Array:
        """Return g(z_k)."""
        model = model_of(case)
        return model.decoder(model.theta, case.z)

    def decoder_gradient(self, case: Case) -> Answer:
        """Return the gradient of Σ_k c_k · g(z_k)."""
        model = model_of(case)
        theta, z = model.decoder.vjp(model.theta, case.z, case.cotangent)
        return {"theta": theta, "z": z}

    def log_joint(self, case: Case) -> Array:
        """Return log p(x_i, z_k)."""
        return model_of(case).log_joint(case.x, case.z)

    def monte_carlo(self, case: Case) -> Array:
        """Return log 1/K Σ_k p(x_i | z_k) at the draws that are given."""
        z = np.asarray(case.z)
        drawn = FixedNodes(z, -math.log(len(z)) - log_prior(z))
        return log_likelihood(model_of(case), case.x, drawn, gradient=False).per_observation

    def log_marginal(self, case: Case) -> Array:
        """Return log p(x_i)."""
        return log_likelihood(model_of(case), case.x, self.integrator, gradient=False).per_observation

    def gradient(self, case: Case) -> Answer:
        """Return Σ_i log p(x_i) and its gradient in the parameters and σ²."""
        return _value_and_gradient(log_likelihood(model_of(case), case.x, self.integrator))

    def density(self, case: Case) -> Answer:
        """Return Σ_i p(x_i), the objective as the source documents write it, and its gradient."""
        return _value_and_gradient(density(model_of(case), case.x, self.integrator))

    def posterior(self, case: Case) -> Answer:
        """Return mean and covariance of p(z | x_i)."""
        found = posterior(model_of(case), case.x, self.integrator)
        return {"mean": found.mean, "covariance": found.covariance}

    def elbo(self, case: Case) -> Array:
        """Return the evidence lower bound of each observation at the noise that is given."""
        return elbo(_vae(case), case.x, case.noise, gradient=False).per_observation

    def elbo_gradient(self, case: Case) -> Answer:
        """Return the sum of the bounds and its gradient in both networks' parameters and σ²."""
        return _value_and_gradient(elbo(_vae(case), case.x, case.noise))

    def iwae(self, case: Case) -> Array:
        """Return the importance-weighted bound of each observation at the noise that is given."""
        return iwae(_vae(case), case.x, case.noise, gradient=False).per_observation

    def optimum(self, case: Case) -> Answer:
        """Return the best affine model in closed form or, where a decoder is given, the best σ² for it."""
        if case.model is not None:
            return self._best_sigma2(case)
        best = probabilistic_pca(case.x, case.latent_dim)
        W, b = affine_map(best)
        value = log_likelihood(best, case.x, gradient=False).total
        covariance = W @ W.T + best.sigma2 * np.eye(len(b))
        return {"value": value, "sigma2": best.sigma2, "mean": b, "covariance": covariance}

    def _best_sigma2(self, case: Case) -> Answer:
        model = model_of(case)

        def slope(log_sigma2: float) -> float:
            changed = model.replace(sigma2=math.exp(log_sigma2))
            found = _value_and_gradient(log_likelihood(changed, case.x, self.integrator))
            return float(found["sigma2"]) * changed.sigma2

        start, width = math.log(model.sigma2), math.log(SIGMA2_RANGE)
        best = math.exp(optimize.brentq(slope, start - width, start + width, xtol=1e-13, rtol=1e-14))
        value = log_likelihood(model.replace(sigma2=best), case.x, self.integrator, gradient=False).total
        return {"value": value, "sigma2": best}


def _value_and_gradient(found: Any) -> Answer:
    return {"value": found.total, **found.gradient._asdict()}


def model_of(case: Case) -> NonlinearICA:
    """Return the model of a case.

    Raises
    ------
    ValueError
        If it has none.
    """
    if case.model is None:
        raise ValueError(f"{case} has no model")
    return NonlinearICA(_decoder(case.model.decoder), case.model.decoder.theta, case.model.sigma2)


def _vae(case: Case) -> VAE:
    if case.encoder is None:
        raise ValueError(f"{case} has no encoder")
    return VAE(model_of(case), _decoder(case.encoder), case.encoder.theta)


def _decoder(of: Network | Power) -> MLP | Polynomial:
    """The refica decoder of a map, whose parameters are flat in the same order."""
    if isinstance(of, Power):
        degree = int(of.exponents.sum(axis=1).max())
        decoder = Polynomial(of.exponents.shape[1], len(of.coefficients), degree)
        if decoder.exponents != tuple(map(tuple, of.exponents.tolist())):
            raise ValueError("refica's polynomials have all monomials up to a degree, in graded order")
        return decoder
    sizes = [of.layers[0].weight.shape[1], *(len(layer.bias) for layer in of.layers)]
    *hidden, output = [_activation(layer) for layer in of.layers]
    if len(set(hidden)) > 1:
        raise ValueError("refica's networks have one activation in all hidden layers")
    return MLP(sizes, hidden[0] if hidden else "identity", output)


def _activation(layer: Layer) -> Activation | str:
    return leaky_relu(layer.slope) if layer.activation == "leaky_relu" else layer.activation
