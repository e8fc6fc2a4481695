"""Where a fit starts: decoder parameters from principal components, for any decoder.

Probabilistic PCA gives each observation a latent position; regressing the observations on these
positions gives a decoder that already runs through the data, and its mean squared residual a noise
variance that is too large rather than too small: the fit then anneals σ² from above.

Where the data are bent, the components with the most variance need not be those that tell where on the
surface an observation lies. Another start looks among mixtures of more of them for positions from which a
regression on random features (Rahimi and Recht 2008) finds the data best.
"""

# notation: N observations, n data, m latent, p parameters, K random features

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy import optimize

from refica.decoders import MLP, Decoder, Polynomial
from refica.likelihood import DECODER_ROWS, decode, row_blocks
from refica.model import NonlinearICA
from refica.validation import Array

__all__ = [
    "check_training_data",
    "output_shift",
    "output_units",
    "principal_start",
    "sigma2_floor",
    "standardisation",
]

FLOOR = 1e-8
"""σ² below this share of the data's mean variance counts as collapsed: the noise would then be a
ten-thousandth of the spread of the data, and the likelihood is on its way to infinity."""

RIDGE = 1e-4
"""Weight of ‖v‖² against the mean squared residual, θ = shift + units v, both in units of the data's
variance: it only keeps parameters of no use from running away."""

REGRESSION_STEPS = 200

LEAST_NOISE = 0.02
"""Least σ² of a start, as a share of the data's mean variance, for any n: with n <= m latents can tell the
data exactly, and a residual of zero is no noise variance to anneal from."""

CANDIDATES = 100
"""Mixtures of components that are looked at, of m + 1 and m + 2 of them in turn."""

BEST, STEPS = 8, (0.5, 0.02, 40)
"""How many of them are improved, and by what: standard deviations of each entry of a move, the first and the
last, and the number of moves."""

FEATURES, STEEPNESS = 60, 1.5
"""Random features tanh(aᵀz + b), a ~ N(0, STEEPNESS² I), b ~ N(0, 1), of z with unit variance; fewer where
there are less than ten observations for each."""

SMOOTHING = 1e-6
"""Weight of squared coefficients in that regression, against a mean squared residual."""

LOOKED_AT = 2000
"""Observations, evenly spread, that they are fitted to."""


def check_training_data(x: Array) -> None:
    """Refuse data that cannot be fitted and warn of data that should not.

    Raises
    ------
    ValueError
        If there are fewer than 2 observations or all are equal.
    """
    if len(x) < 2:
        raise ValueError("x must have at least 2 observations to fit a model, got 1")
    spread = x.max(axis=0) - x.min(axis=0)
    if not spread.any():
        raise ValueError(f"x must not be constant, got {len(x)} equal observations; there is nothing to fit")
    if not spread.all():
        columns = np.flatnonzero(spread == 0).tolist()
        warnings.warn(f"x has constant columns {columns}; leave them out", UserWarning, stacklevel=3)
    repeated = len(x) - len(np.unique(x, axis=0))
    if repeated:
        warnings.warn(
            f"x has {repeated} duplicate rows of {len(x)}: if the decoder can pass through them the "
            "likelihood grows without bound as sigma2 -> 0",
            UserWarning,
            stacklevel=3,
        )


def sigma2_floor(x: Array) -> float:
    """Return the σ² at which a fit is called collapsed: `FLOOR` times the mean variance of x."""
    return FLOOR * float(x.var(axis=0).mean())


def standardisation(x: Array) -> tuple[Array, Array]:
    """Mean (n,) and standard deviation (n,) of the columns; 1 for a column that is constant."""
    constant = x.max(axis=0) == x.min(axis=0)
    return x.mean(axis=0), np.where(constant, 1.0, x.std(axis=0))


def output_units(decoder: Decoder, scale: Array) -> Array:
    """Units (p,) of θ: those of the data (n,) where a parameter is proportional to an output, else 1."""
    units = np.ones(decoder.n_params)
    if isinstance(decoder, Polynomial):
        units.reshape(len(scale), -1)[...] = scale[:, None]
    elif isinstance(decoder, MLP) and decoder.output_activation.name == "identity":
        *_, (W, b) = decoder.unpack(units)
        W[...], b[...] = scale[:, None], scale
    return units


def output_shift(decoder: Decoder, shift: Array) -> Array:
    """The θ (p,) that adds ``shift`` (n,) to every output: 0 but for biases or constant terms."""
    theta = np.zeros(decoder.n_params)
    if isinstance(decoder, Polynomial):
        theta.reshape(len(shift), -1)[:, 0] = shift
    elif isinstance(decoder, MLP) and decoder.output_activation.name == "identity":
        *_, (_, b) = decoder.unpack(theta)
        b[...] = shift
    return theta


def principal_start(decoder: Decoder, x: Array, rng: np.random.Generator, *, rotate: bool) -> NonlinearICA:
    """Return a model whose decoder regresses x on its whitened principal components, or on mixtures of them.

    Parameters
    ----------
    decoder : Decoder
    x : (N, n)
    rng : numpy.random.Generator
        For the decoder's initial parameters and the rotation.
    rotate : bool
        Whether to mix in more components: of `CANDIDATES` random mixtures the `BEST`, improved by small
        moves, and of these the one from which random features find x best (any rotation, where there are no
        more components). A start that differs from the others in more than the seed.
    """
    z = _whitened_components(x, decoder.latent_dim, rng, rotate=rotate)
    mean, sd = standardisation(x)
    shift, units = output_shift(decoder, mean), output_units(decoder, sd)
    per_value = 1.0 / (float(x.var(axis=0).mean()) * x.size)

    def loss(v: Array) -> tuple[float, Array]:
        theta = shift + units * v
        value, gradient = RIDGE * float(v @ v), 2.0 * RIDGE * v
        for rows in row_blocks(len(x), DECODER_ROWS):
            residual = decoder(theta, z[rows]) - x[rows]
            value += float(np.einsum("kn,kn->", residual, residual)) * per_value
            gradient += units * decoder.vjp(theta, z[rows], residual * (2.0 * per_value))[0]
        return value, gradient

    found = optimize.minimize(
        loss, decoder.init(rng), jac=True, method="L-BFGS-B", options={"maxiter": REGRESSION_STEPS}
    )
    theta = shift + units * found.x
    residual = decode(decoder, theta, z) - x
    least = LEAST_NOISE * float(x.var(axis=0).mean())
    return NonlinearICA(decoder, theta, max(float((residual**2).mean()), least))


def _whitened_components(x: Array, m: int, rng: np.random.Generator, *, rotate: bool) -> Array:
    """Return the m leading principal components scaled to unit variance, (N, m); noise where x has fewer."""
    centred = x - x.mean(axis=0)
    U, singular, _ = np.linalg.svd(centred, full_matrices=False)
    rank = int((singular > singular[0] * 1e-10).sum())
    components = U[:, :rank] * np.sqrt(len(x))
    if rotate:
        components = _mixed(components, centred, m, rng)
    missing = max(m - components.shape[1], 0)
    return np.hstack([components[:, :m], rng.standard_normal((len(x), missing))])


def _mixed(components: Array, x: Array, m: int, rng: np.random.Generator) -> Array:
    """Return rotated components (N, m), or all (N, rank) if there are fewer, which tell x (N, n) best."""
    N, rank = components.shape
    if rank <= m:
        return components @ _columns(rank, rank, rank, rng)
    some = np.linspace(0, N - 1, min(N, LOOKED_AT)).astype(int)
    K = min(FEATURES, len(some) // 10)
    A, b = STEEPNESS * rng.standard_normal((m, K)), rng.standard_normal(K)
    widest = min(m + 2, rank)
    mixtures = [_columns(m, min(m + 1 + number % 2, rank), widest, rng) for number in range(CANDIDATES)]

    def untold(Q: Array) -> float:
        """What the penalised regression leaves of the sum of squares, less that of x."""
        z = components[some, :widest] @ Q
        features = np.column_stack([np.ones(len(z)), z, np.tanh(z @ A + b)])
        normal = features.T @ features + SMOOTHING * len(z) * np.eye(1 + m + K)
        told = features.T @ x[some]
        return -float(np.sum(told * np.linalg.solve(normal, told)))

    best = min((_improved(Q, untold, rng) for Q in sorted(mixtures, key=untold)[:BEST]), key=untold)
    return np.asarray(components[:, :widest] @ best)


def _improved(Q: Array, loss: Callable[[Array], float], rng: np.random.Generator) -> Array:
    """Return orthonormal columns like Q with less loss, after small random moves; signs may change."""
    least = loss(Q)
    for step in np.geomspace(*STEPS):
        nearby, _ = np.linalg.qr(Q + step * rng.standard_normal(Q.shape))
        if (there := loss(nearby)) < least:
            Q, least = nearby, there
    return Q


def _columns(m: int, wide: int, widest: int, rng: np.random.Generator) -> Array:
    """Return random orthonormal columns (widest, m) that are 0 below the row ``wide``."""
    Q = np.zeros((widest, m))
    Q[:wide] = np.linalg.qr(rng.standard_normal((wide, m)))[0]
    return Q
