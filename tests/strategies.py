"""Hypothesis strategies for models, observations and nodes, shared by the tests.

Structure (sizes, activations, σ²) is drawn by Hypothesis, which shrinks it; the numbers come from one
drawn seed. Nodes whose pre-activations lie near a kink are left out: there finite differences and
autograd mean something else than refica does.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import assume, settings
from hypothesis import strategies as st

import refica as ri

SMOOTH = ("identity", "tanh", "sigmoid", "gelu", "softplus", "sin")
KINKED = ("relu", "leaky_relu")
KINDS = (*SMOOTH, *KINKED, "polynomial")

KINK_MARGIN = 1e-2
"""Least distance of a pre-activation from a kink: farther than any difference quotient here reaches."""


class Case(NamedTuple):
    """A model, observations x (N, n), and nodes: shared (K, m), and each observation's own (N, K, m)."""

    model: ri.NonlinearICA
    x: np.ndarray
    shared: ri.FixedNodes
    own: ri.FixedNodes


def examples(count):
    """Settings for ``count`` examples: the same ones each time, except in the profile that asks for more."""
    default = settings.default.max_examples
    return settings(
        max_examples=max(count, count * default // 100), derandomize=default <= 100, deadline=None
    )


@st.composite
def activations(draw, name=None):
    """An activation by name, or any of them; leaky relu with any slope."""
    name = draw(st.sampled_from(SMOOTH + KINKED)) if name is None else name
    if name == "leaky_relu":
        return ri.leaky_relu(draw(st.sampled_from([-0.5, 0.01, 0.1, 0.3, 1.5])))
    return name


@st.composite
def decoders(draw, kind=None, max_dim=4):
    """An MLP of 0 to 3 hidden layers, or a Polynomial of degree 0 to 3; ``kind`` is one of `KINDS`.

    With no hidden layer the kind is the output's; otherwise every second output is the identity.
    """
    kind = draw(st.sampled_from(KINDS)) if kind is None else kind
    m, n = draw(st.integers(1, max_dim)), draw(st.integers(1, max_dim))
    if kind == "polynomial":
        return ri.Polynomial(m, n, draw(st.integers(0, 3)))
    hidden = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(0, 3)))]
    output = draw(st.one_of(st.just("identity"), activations())) if hidden else draw(activations(kind))
    return ri.MLP((m, *hidden, n), activation=draw(activations(kind)), output_activation=output)


@st.composite
def models(draw, kind=None, max_dim=4):
    """A model with parameters near their initial scale and σ² from 1e-3 to 10."""
    decoder = draw(decoders(kind, max_dim))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    theta = decoder.init(rng) + 0.3 * rng.standard_normal(decoder.n_params)
    sigma2 = 10.0 ** (draw(st.integers(-12, 4)) / 4.0)
    return ri.NonlinearICA(decoder, theta, sigma2)


@st.composite
def cases(draw, kind=None):
    """A model, a few observations, and nodes among which several share each observation's mass."""
    model = draw(models(kind))
    N, K = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    near = min(1.0, model.sigma2**0.5)

    def nodes(count):
        """Nodes around a few centres, so close together that none takes all the mass. Not far out, where
        a polynomial is so large against σ that x - g(z) itself has few digits."""
        centres = rng.uniform(-1.5, 1.5, (16, 1, model.latent_dim))
        z = (centres + near * rng.standard_normal((16, 40, model.latent_dim))).reshape(-1, model.latent_dim)
        z = z[clear_of_kinks(model.decoder, model.theta, z)]
        return z[:count] if len(z) >= count else None

    z_shared, z_own = nodes(2 * K), nodes(N * K)
    assume(z_shared is not None and z_own is not None)  # no unit sits at its kink all over
    noise = model.sigma2**0.5 * rng.standard_normal((N, model.data_dim))
    own = z_own.reshape(N, K, -1)
    x = model.decoder(model.theta, own[:, 0]) + noise
    z_shared = np.concatenate([z_shared, own[:, 0]])
    return Case(
        model,
        x,
        ri.FixedNodes(z_shared, rng.standard_normal(len(z_shared))),
        ri.FixedNodes(own, rng.standard_normal((N, K))),
    )


def clear_of_kinks(decoder, theta, z):
    """Whether every relu and leaky relu met by z (K, m) is at least `KINK_MARGIN` from its kink, (K,)."""
    clear = np.ones(len(z), dtype=bool)
    if not isinstance(decoder, ri.MLP):
        return clear
    h = z
    for (W, b), act in zip(decoder.unpack(theta), decoder.activations, strict=True):
        a = h @ W.T + b
        if "relu" in act.name:
            clear &= (np.abs(a) > KINK_MARGIN).all(axis=1)
        h = act(a)
    return clear
