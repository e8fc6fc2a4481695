"""Hypothesis strategies for activations, decoders, parameters, models, data, integrators, noise and VAEs.

Every number comes from a short list in order of simplicity, one choice each, so that a failing case
shrinks to what can be read and typed: the fewest units, weights 0 and 1, σ² = 1, one observation at 0.
The list has enough plain decimals at its end that sums and products of them are generic.

Installed with refica, ``hypothesis.strategies.from_type`` knows these types too (`register`).
"""

# notation: N observations, n data, m latent, p parameters, L draws of noise

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

from refica.activations import ACTIVATIONS, Activation, LeakyReLU, leaky_relu
from refica.decoders import MLP, Decoder, Polynomial
from refica.exact import ExactLinear
from refica.model import NonlinearICA
from refica.piecewise import ExactPiecewiseAffine, is_piecewise_affine
from refica.quadrature import FixedNodes, Integrator, Quadrature
from refica.reference import Reference
from refica.rules import Rule, gauss_hermite, monte_carlo, sobol, uniform_grid
from refica.vae import VAE
from refica.validation import Array, check_choice, check_number

__all__ = [
    "AWKWARD",
    "NUMBERS",
    "STEEPNESS",
    "VARIANCES",
    "activations",
    "arrays",
    "cases",
    "data",
    "decoders",
    "integrators",
    "mlps",
    "models",
    "noise",
    "parameters",
    "polynomials",
    "register",
    "rules",
    "steepness_of",
    "vaes",
    "variances",
]

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[T]], T]

_SIZES = (1.0, 2.0, 0.5, 0.25, 1.5, 0.1, 0.7, 1.3, 0.137, 0.419, 0.683, 0.871, 1.171, 1.619, 1.931, 2.357)

NUMBERS = (0.0, *(sign * size for size in _SIZES for sign in (1.0, -1.0)))
"""Weights, latents and noise: simple ones first."""

_ENTRIES = st.sampled_from(NUMBERS)

VARIANCES = (1.0, 0.1, 2.0, 0.01, 0.5, 0.037, 1e-3, 10.0, 1e-4)
"""Noise variances σ²: simple ones first."""

STEEPNESS = 8.0
"""Bound on a decoder's Jacobian: with σ >= .01 it moves by at most 800 σ for a step of 1 in z."""

AWKWARD = ("plain", "duplicates", "zeros", "outlier", "far outlier", "offset")
"""Kinds of data: as the model makes them; every row twice; all at 0; one row 1e3 or 1e6 away; all of them
1e3 away."""

SLOPES = (0.0, 0.01, 0.5, 0.1, -0.5, 1.5)
"""Slopes of leaky relus: 0 is the relu, and one is steeper on the left than on the right."""

DIGITS = 4
"""Decimals that data keep, to be readable: with σ >= .01, the rounding is a hundredth of the noise."""


def arrays(*shape: int) -> st.SearchStrategy[Array]:
    """Arrays of the given shape with entries from `NUMBERS`; shrink to zeros, then towards ones."""
    count = int(np.prod(shape))
    return st.tuples(*[_ENTRIES] * count).map(lambda values: np.array(values).reshape(shape))


def variances() -> st.SearchStrategy[float]:
    """Noise variances from `VARIANCES`; shrink to 1."""
    return st.sampled_from(VARIANCES)


def activations(*names: str) -> st.SearchStrategy[Activation]:
    """Activations; shrink to the first.

    Parameters
    ----------
    *names : str
        Some of identity, tanh, sigmoid, relu, leaky_relu (which comes with any of `SLOPES`), gelu,
        softplus, sin; all of them if none are given.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    chosen = [check_choice("activation", name, ACTIVATIONS) for name in names] or list(ACTIVATIONS)
    each = [
        st.sampled_from(SLOPES[1:]).map(leaky_relu) if name == "leaky_relu" else st.just(ACTIVATIONS[name])
        for name in chosen
    ]
    return st.one_of(each)


_ANY = activations()
_OUTPUTS = st.one_of(activations("identity"), _ANY)


@st.composite
def mlps(
    draw: Draw[Any],
    *,
    latent_dim: int | None = None,
    data_dim: int | None = None,
    hidden: st.SearchStrategy[Activation] | None = None,
    max_dim: int = 3,
    max_layers: int = 3,
    max_units: int = 4,
) -> MLP:
    """MLPs of 0 to ``max_layers`` hidden layers; shrink to the affine ``MLP((1, 1))``.

    Parameters
    ----------
    latent_dim, data_dim : int, optional
        m and n; None draws them from 1 to ``max_dim``.
    hidden : strategy of Activation, optional
        For the hidden layers; None is any. The output's is the identity, in every other case or so another.
    max_dim, max_layers, max_units : int
        Bounds on dimensions, hidden layers and their widths.
    """
    m = draw(st.integers(1, max_dim)) if latent_dim is None else latent_dim
    n = draw(st.integers(1, max_dim)) if data_dim is None else data_dim
    widths = draw(st.lists(st.integers(1, max_units), max_size=max_layers))
    if not widths:
        return MLP((m, n))
    inner: Activation = draw(_ANY if hidden is None else hidden)
    return MLP((m, *widths, n), inner, draw(_OUTPUTS))


@st.composite
def polynomials(
    draw: Draw[Any],
    *,
    latent_dim: int | None = None,
    data_dim: int | None = None,
    max_dim: int = 3,
    max_degree: int = 3,
) -> Polynomial:
    """Polynomials; shrink to the constant ``Polynomial(1, 1, 0)``. Arguments as those of `mlps`."""
    m = draw(st.integers(1, max_dim)) if latent_dim is None else latent_dim
    n = draw(st.integers(1, max_dim)) if data_dim is None else data_dim
    return Polynomial(m, n, draw(st.integers(0, max_degree)))


def decoders(
    *, latent_dim: int | None = None, data_dim: int | None = None, max_dim: int = 3
) -> st.SearchStrategy[MLP | Polynomial]:
    """MLPs and polynomials; shrink to the smallest of either. Arguments as those of `mlps`."""
    return st.one_of(
        mlps(latent_dim=latent_dim, data_dim=data_dim, max_dim=max_dim),
        polynomials(latent_dim=latent_dim, data_dim=data_dim, max_dim=max_dim),
    )


def parameters(decoder: MLP | Polynomial, *, steepness: float = STEEPNESS) -> st.SearchStrategy[Array]:
    """Parameters theta (p,) of a decoder that is nowhere too steep; shrink to zeros, then towards ones.

    Weights are halved, the heaviest layer first, until `steepness_of` is at most the bound.

    Parameters
    ----------
    decoder : MLP or Polynomial
        An encoder too.
    steepness : float
        The bound, > 0.

    Raises
    ------
    TypeError, ValueError
        If the bound is not such a number.
    """
    steepness = check_number("steepness", steepness, above=0.0)
    return arrays(decoder.n_params).map(lambda theta: _flattened(decoder, theta, steepness))


def steepness_of(decoder: MLP | Polynomial, theta: Array) -> float:
    """Return a bound on the Jacobian in z: of an MLP everywhere, Π ‖W‖ sup |act'| over its layers; of a
    Polynomial in the box |z_l| <= 1, Σ_j |C_dj| |α_j| for the steepest coordinate d."""
    if isinstance(decoder, Polynomial):
        total_degrees = np.sum(decoder.exponents, axis=1)
        return float((np.abs(theta.reshape(decoder.data_dim, -1)) @ total_degrees).max())
    norms = [np.linalg.norm(W, 2) for W, _ in decoder.unpack(theta)]
    return float(np.prod(norms) * np.prod([_greatest_slope(act) for act in decoder.activations]))


@st.composite
def models(
    draw: Draw[Any],
    decoder: MLP | Polynomial | st.SearchStrategy[MLP | Polynomial] | None = None,
    *,
    sigma2: st.SearchStrategy[float] | None = None,
    steepness: float = STEEPNESS,
) -> NonlinearICA:
    """Models; shrink to a decoder of weights 0 with sigma2 = 1.

    Parameters
    ----------
    decoder : MLP, Polynomial or a strategy of them, optional
        None draws from `decoders`.
    sigma2 : strategy of float, optional
        None draws from `variances`.
    steepness : float
        As in `parameters`.
    """
    one: MLP | Polynomial = draw(_fixed(decoders() if decoder is None else decoder))
    theta = draw(parameters(one, steepness=steepness))
    return NonlinearICA(one, theta, draw(variances() if sigma2 is None else sigma2))


@st.composite
def data(
    draw: Draw[Any], model: NonlinearICA, *, max_size: int = 6, kinds: tuple[str, ...] = AWKWARD
) -> Array:
    """Observations x (N, n), 1 <= N <= max_size, awkward ones too; shrink to one at g(0).

    Parameters
    ----------
    model : NonlinearICA
        They are g(z) + σ ε with z and ε from `NUMBERS`, to four decimals.
    max_size : int
    kinds : tuple of str
        Some of `AWKWARD`; the first is what shrinking ends in.

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    kind = draw(st.sampled_from([check_choice("kind", kind, AWKWARD) for kind in kinds]))
    N = draw(st.integers(1, max_size))
    z, epsilon = draw(arrays(N, model.latent_dim)), draw(arrays(N, model.data_dim))
    x = np.round(model.decoder(model.theta, z) + np.sqrt(model.sigma2) * epsilon, DIGITS) + 0.0
    if kind == "zeros":
        return np.zeros_like(x)
    if kind == "duplicates":
        return np.repeat(x, 2, axis=0)[:max_size]
    if kind == "offset":
        return x + 1e3
    if kind != "plain":
        x[draw(st.integers(0, N - 1))] += 1e3 if kind == "outlier" else 1e6
    return x


def cases(
    model: NonlinearICA | st.SearchStrategy[NonlinearICA] | None = None, *, max_size: int = 6
) -> st.SearchStrategy[tuple[NonlinearICA, Array]]:
    """Pairs of a model and observations x (N, n). Arguments as those of `models` and `data`."""
    return _fixed(models() if model is None else model).flatmap(
        lambda one: st.tuples(st.just(one), data(one, max_size=max_size))
    )


def rules() -> st.SearchStrategy[Rule]:
    """Small rules, with up to 9 nodes per axis or 64 in all; shrink to one Gauss-Hermite node."""
    seeds = st.integers(0, 2**16)
    return st.one_of(
        st.integers(1, 9).map(gauss_hermite),
        st.builds(uniform_grid, st.integers(3, 9), st.sampled_from((4.0, 6.0))),
        st.builds(monte_carlo, st.sampled_from((8, 64)), seeds),
        st.builds(sobol, st.sampled_from((16, 64)), seeds),
    )


def integrators(model: NonlinearICA | None = None, *, max_nodes: int = 6) -> st.SearchStrategy[Integrator]:
    """Integrators, rough ones too; shrink to one Gauss-Hermite node on the prior, or an exact one that fits.

    Parameters
    ----------
    model : NonlinearICA, optional
        Adds those that fit it: fixed nodes, exact ones for an affine or piecewise-affine decoder, and
        `Reference`, the last two for m = 1 only, where they take milliseconds. None draws only those that
        fit every model.
    max_nodes : int
        Most fixed nodes.
    """
    proposals = st.sampled_from(("prior", "laplace", "modes"))
    kinds: list[st.SearchStrategy[Any]] = [st.builds(Quadrature, rules(), proposals)]
    if model is None:
        return kinds[0]
    counts = st.integers(1, max_nodes)
    kinds.append(counts.flatmap(lambda K: st.builds(FixedNodes, arrays(K, model.latent_dim), arrays(K))))
    if getattr(model.decoder, "is_affine", False):
        kinds.append(st.just(ExactLinear()))
    if model.latent_dim == 1 and is_piecewise_affine(model.decoder):
        kinds.append(st.just(ExactPiecewiseAffine()))
    if model.latent_dim == 1 and Reference.suits(model):
        kinds.append(st.just(Reference()))
    return st.one_of(kinds)


def noise(size: int, latent_dim: int, *, max_draws: int = 3) -> st.SearchStrategy[Array]:
    """Noise (L, N, m) for `refica.elbo` and `refica.iwae`, 1 <= L <= max_draws; shrinks to one draw of 0.

    Parameters
    ----------
    size, latent_dim : int
        N and m.
    max_draws : int
    """
    return st.integers(1, max_draws).flatmap(lambda L: arrays(L, size, latent_dim))


@st.composite
def vaes(
    draw: Draw[Any],
    model: NonlinearICA | st.SearchStrategy[NonlinearICA] | None = None,
    *,
    steepness: float = STEEPNESS,
) -> VAE:
    """VAEs with an MLP as encoder; shrink to two affine maps of weights 0. Arguments as those of `models`."""
    one: NonlinearICA = draw(_fixed(models(steepness=steepness) if model is None else model))
    m, n = one.latent_dim, one.data_dim
    encoder = draw(mlps(latent_dim=n, data_dim=2 * m, max_layers=2))
    return VAE(one, encoder, draw(parameters(encoder, steepness=steepness)))


def register() -> None:
    """Tell ``hypothesis.strategies.from_type`` how to draw refica's types: done on import of this module."""
    drawn: dict[Any, st.SearchStrategy[Any]] = {
        Activation: activations(),
        LeakyReLU: st.sampled_from(SLOPES).map(leaky_relu),
        MLP: mlps(),
        Polynomial: polynomials(),
        Decoder: decoders(),
        NonlinearICA: models(),
        Quadrature: integrators(),
        Rule: rules(),
        VAE: vaes(),
    }
    for kind, strategy in drawn.items():
        st.register_type_strategy(kind, strategy)


def _fixed(value: T | st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """The strategy itself, or the one that always draws the value."""
    return value if isinstance(value, st.SearchStrategy) else st.just(value)


def _greatest_slope(activation: Any) -> float:
    """sup |act'|: beyond |a| = 40 every activation here is straight, or repeats itself."""
    return float(np.max(np.abs(activation.slopes(np.array(-40.0), np.array(40.0)))))


def _flattened(decoder: MLP | Polynomial, theta: Array, steepness: float) -> Array:
    """theta with weights halved until the decoder is no steeper than the bound; biases stay."""
    theta = theta.copy()
    while steepness_of(decoder, theta) > steepness:
        if isinstance(decoder, Polynomial):
            theta.reshape(decoder.data_dim, -1)[:, 1:] *= 0.5
        else:
            heaviest = max((W for W, _ in decoder.unpack(theta)), key=lambda W: float(np.linalg.norm(W, 2)))
            heaviest *= 0.5
    return theta


register()
