"""The variational autoencoder (Exercise 3): encoder and model, its bounds, the gaps below log p(x)."""

from refica.vae.draws import kl_per_latent, kl_to_prior
from refica.vae.evidence import elbo, elbo_and_gradient, elbo_quadrature, elbo_values
from refica.vae.importance import iwae
from refica.vae.ledger import Gaps, gaps
from refica.vae.model import VAE, Bound, BoundGradient, QuadratureBound

__all__ = [
    "VAE",
    "Bound",
    "BoundGradient",
    "Gaps",
    "QuadratureBound",
    "elbo",
    "elbo_and_gradient",
    "elbo_quadrature",
    "elbo_values",
    "gaps",
    "iwae",
    "kl_per_latent",
    "kl_to_prior",
]
