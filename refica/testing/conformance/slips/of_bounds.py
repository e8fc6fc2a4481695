"""Slips in ELBO and IWAE."""

# notation: m latent, L draws; mu and log_s2 (N, m)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special

from refica.testing.conformance.formulas import LOG_2PI, Formulas, Q
from refica.testing.conformance.slips.slip import BOUNDS, Change, Slip, everywhere
from refica.validation import Array

__all__ = ["SLIPS"]


def _kl(wrong: Callable[[Array, Array], Array], slopes: Any = None) -> Change:
    """A wrong KL, with the derivatives of it or, by default, those of the right one."""

    def change(f: Formulas) -> Formulas:
        return replace(f, kl=wrong, **({"kl_slopes": slopes} if slopes else {}))

    return change


def _right_kl(mu: Array, log_s2: Array) -> Array:
    return np.asarray(0.5 * (mu * mu + np.exp(log_s2) - 1.0 - log_s2).sum(axis=1))


def _reversed(mu: Array, log_s2: Array) -> Array:
    return np.asarray(0.5 * ((1.0 + mu * mu) * np.exp(-log_s2) - 1.0 + log_s2).sum(axis=1))


def _reversed_slopes(mu: Array, log_s2: Array) -> tuple[Array, Array]:
    precision = np.exp(-log_s2)
    return mu * precision, 0.5 * (1.0 - (1.0 + mu * mu) * precision)


def _right_slopes(mu: Array, log_s2: Array) -> tuple[Array, Array]:
    return mu, 0.5 * np.expm1(log_s2)


def _times(factor: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    return lambda mu, log_s2: (factor * mu, factor * 0.5 * np.expm1(log_s2))


def _log_s(outputs: Array) -> tuple[Array, Array]:
    m = outputs.shape[1] // 2
    return outputs[:, :m], 2.0 * outputs[:, m:]


def _noise_log_q(q: Q) -> Array:
    """log of the density of the noise, without -log s."""
    epsilon2 = (q.z - q.mu[:, None]) ** 2 / np.exp(q.log_s2)[:, None]
    return np.asarray(-0.5 * (epsilon2 + LOG_2PI).sum(axis=2))


def _both(names: Sequence[tuple[str, str, Callable[[Array, Array], Array], Any]]) -> list[Slip]:
    """Each wrong KL twice: with its own derivatives and with the right ones."""
    own = [Slip(name, words, ELBO, _kl(wrong, slopes)) for name, words, wrong, slopes in names]
    return own + [Slip(name, words, ("elbo-gradient",), _kl(wrong)) for name, words, wrong, _ in names]


ELBO = ("elbo", "elbo-gradient")

SLIPS = (
    *_both(
        [
            (
                "kl-without-half",
                "KL(q ‖ N(0, I)) lacks its ½",
                lambda mu, log_s2: 2.0 * _right_kl(mu, log_s2),
                _times(2.0),
            ),
            (
                "kl-without-one",
                "KL(q ‖ N(0, I)) lacks the -1 of each axis, so that it is not 0 for q = N(0, I)",
                lambda mu, log_s2: _right_kl(mu, log_s2) + 0.5 * mu.shape[1],
                _right_slopes,
            ),
            (
                "kl-log-s",
                "KL(q ‖ N(0, I)) has log s for log s²",
                lambda mu, log_s2: _right_kl(mu, log_s2) + 0.25 * log_s2.sum(axis=1),
                lambda mu, log_s2: (mu, 0.5 * np.expm1(log_s2) + 0.25),
            ),
            ("kl-reversed", "KL(N(0, I) ‖ q) is given for KL(q ‖ N(0, I))", _reversed, _reversed_slopes),
            (
                "kl-added",
                "the KL is added to the expected log-likelihood in place of subtracted",
                lambda mu, log_s2: -_right_kl(mu, log_s2),
                _times(-1.0),
            ),
            (
                "forgotten-kl",
                "the KL is left out",
                lambda mu, log_s2: np.zeros(len(mu)),
                _times(0.0),
            ),
        ]
    ),
    Slip(
        "log-standard-deviation",
        "the encoder's outputs are read as log s in place of log s²",
        BOUNDS,
        everywhere(encode=_log_s),
    ),
    Slip(
        "variance-for-deviation",
        "z = μ + s² ε in place of z = μ + s ε",
        BOUNDS,
        everywhere(deviation=np.exp),
    ),
    Slip(
        "shared-noise",
        "every observation is given the noise of the first one",
        BOUNDS,
        everywhere(noise=lambda noise: np.broadcast_to(noise[:, :1], noise.shape)),
    ),
    Slip(
        "noise-axes",
        "the noise is read as (N, L, m) in place of (L, N, m)",
        BOUNDS,
        everywhere(noise=lambda e: e.reshape(e.shape[1], e.shape[0], -1).swapaxes(0, 1)),
    ),
    Slip(
        "summed-draws",
        "the ELBO sums log p(x | z) over the draws of noise in place of the mean",
        ELBO,
        everywhere(average=lambda terms: terms.sum(axis=1), share=lambda L: 1.0),
    ),
    Slip(
        "summed-draws",
        "the value sums log p(x | z) over the draws of noise in place of the mean, the gradient does not",
        ("elbo-gradient",),
        everywhere(average=lambda terms: terms.sum(axis=1)),
    ),
    Slip(
        "no-way-through-z",
        "the gradient in φ has the KL only: z = μ + s ε is taken as constant",
        ("elbo-gradient",),
        everywhere(through_z=False),
    ),
    Slip(
        "kl-gradient-without-half",
        "the gradient of the KL in log s² is s² - 1 in place of (s² - 1)/2",
        ("elbo-gradient",),
        everywhere(kl_slopes=lambda mu, log_s2: (mu, np.expm1(log_s2))),
    ),
    Slip(
        "mean-of-logs",
        "IWAE is the mean of the log weights in place of the log of their mean",
        ("iwae",),
        everywhere(log_mean=lambda log_w: log_w.mean(axis=1)),
    ),
    Slip(
        "iwae-forgotten-1/K",
        "IWAE sums the weights without dividing by their number",
        ("iwae",),
        everywhere(log_mean=lambda log_w: special.logsumexp(log_w, axis=1)),
    ),
    Slip(
        "weights-without-q",
        "the importance weights lack their denominator q(z | x)",
        ("iwae",),
        everywhere(log_q=lambda q: np.zeros(q.z.shape[:2])),
    ),
    Slip(
        "weights-without-log-s",
        "log q(z | x) lacks -log s: the density of the noise in place of that of z",
        ("iwae",),
        everywhere(log_q=_noise_log_q),
    ),
)
"""Slips in ELBO and IWAE."""
