"""Where a fit of a VAE starts: encoders that invert a model roughly, models from principal components."""

# notation: N observations, n data, m latent, q parameters of the encoder

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refica.activations import Activation
from refica.decoders import MLP
from refica.encoder import LINEAR_LOG_VARIANCE
from refica.fit.elbo_problem import fold
from refica.fit.starts import principal_start, standardisation
from refica.model import NonlinearICA
from refica.vae import VAE
from refica.validation import Array, check_generator

__all__ = ["initial_vae", "starts"]

SIMULATED = 2000
"""Pairs (z, x) drawn from the model to start an encoder from."""


def initial_vae(
    model: NonlinearICA,
    x: Any,
    hidden: int | Sequence[int] = 16,
    activation: Activation | str = "tanh",
    rng: Any = 0,
) -> VAE:
    """Return a VAE to start from: the model with an MLP encoder that inverts it roughly.

    Pairs (z, x) are simulated from the model and z regressed on the encoder's random last hidden layer:
    that gives the means, and the log of the mean squared residual each log variance. The inputs are
    standardised, folded into the first layer: so the units of the data do not matter.

    Parameters
    ----------
    model : NonlinearICA
    x : array_like (N, n)
        The data, for their mean and standard deviation.
    hidden : int or sequence of int
        Widths of the encoder's hidden layers; () for an affine encoder.
    activation : Activation or str
        Of its hidden layers.
    rng : int or numpy.random.Generator

    Raises
    ------
    TypeError, ValueError
        For bad data, widths, activation or rng.
    """
    x, rng = model.check_data(x), check_generator(rng)
    widths = tuple(np.atleast_1d(np.asarray(hidden, dtype=object)))  # of a wrong type: MLP says so
    encoder = MLP((model.data_dim, *widths, 2 * model.latent_dim), activation)
    return VAE(model, encoder, _regressed(encoder, model, x, rng))


def starts(vae: VAE, x: Array, count: int, rng: np.random.Generator) -> Iterator[VAE]:
    """Yield the VAE given, then models from principal components, each with the same encoder regressed anew.

    Of an encoder that is no MLP with outputs as they are there is only the first.
    """
    yield vae
    encoder = vae.encoder
    if not (isinstance(encoder, MLP) and encoder.output_activation.name == "identity"):
        return
    for number in range(count - 1):
        model = principal_start(vae.model.decoder, x, rng, rotate=number > 0)
        yield VAE(model, encoder, _regressed(encoder, model, x, rng))


def _regressed(encoder: MLP, model: NonlinearICA, x: Array, rng: np.random.Generator) -> Array:
    """Return φ (q,): a random network but for its last layer, which is regressed on pairs from the model."""
    phi = encoder.init(rng)
    z, simulated = model.sample(SIMULATED, rng)
    # standardised by their own moments: a model far from the data still gives a usable start
    shift, scale = standardisation(simulated)
    h = (simulated - shift) / scale
    if len(encoder.sizes) > 2:
        features = MLP(encoder.sizes[:-1], encoder.activation, encoder.activation)
        h = features(phi[: features.n_params], h)
    h1 = np.column_stack([h, np.ones(len(h))])
    coefficients = np.linalg.lstsq(h1, z)[0]
    residual = np.mean((z - h1 @ coefficients) ** 2, axis=0)
    *_, (W, b) = encoder.unpack(phi)
    W[...], b[...] = 0.0, 0.0
    m = model.latent_dim
    W[:m], b[:m] = coefficients[:-1].T, coefficients[-1]
    b[m:] = np.log(np.maximum(residual, math.exp(-LINEAR_LOG_VARIANCE)))
    return fold(encoder, phi, *standardisation(x))
