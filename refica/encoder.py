"""What the outputs of an encoder mean: the mean and log variance of a diagonal Gaussian q(z | x)."""

# notation: N observations, n data, m latent; mu and log_s2 (N, m)

from __future__ import annotations

import numpy as np

from refica.decoders import Decoder
from refica.validation import Array

__all__ = ["encode", "soft_clamp"]

LINEAR_LOG_VARIANCE = 30.0
"""Up to this modulus the encoder's output *is* the log variance: s from 3e-7 to 3e6."""

LOG_VARIANCE_MARGIN = 10.0
"""Beyond that it approaches ±(30 + 10) smoothly: exp(±40) is far from overflow and underflow, also
when squared and pushed through a polynomial decoder."""


def encode(encoder: Decoder, phi: Array, x: Array) -> tuple[Array, Array]:
    """Return mean μ (N, m) and log variance log s² (N, m) of q(z | x).

    The encoder's first m outputs are the means, its last m the log variances; those beyond ±30, which no
    sensible posterior has, are bent smoothly (twice continuously differentiable) to stay within ±40.

    Parameters
    ----------
    encoder : MLP
        n inputs, 2m outputs.
    phi : (q,)
    x : (N, n)

    Raises
    ------
    ValueError
        For shapes that do not fit the encoder.
    """
    outputs = encoder(phi, x)
    m = outputs.shape[1] // 2
    return outputs[:, :m], soft_clamp(outputs[:, m:])[0]


def soft_clamp(a: Array) -> tuple[Array, Array]:
    """c + 10 tanh((a - c)/10) with c = a clipped to ±30, and its derivative 1 - tanh².

    For |a| <= 30 that is a itself, exactly. tanh has no second derivative at 0, so neither is there one
    at the joints: twice continuously differentiable. Branches by the real part.
    """
    edge = np.where(np.abs(np.real(a)) <= LINEAR_LOG_VARIANCE, a, np.sign(np.real(a)) * LINEAR_LOG_VARIANCE)
    t = np.tanh((a - edge) / LOG_VARIANCE_MARGIN)
    return edge + LOG_VARIANCE_MARGIN * t, (1.0 - t) * (1.0 + t)
