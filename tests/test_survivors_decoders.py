"""Initial values and the sizes of networks: what mutants of the decoders showed to be untested."""

import math

import numpy as np
import pytest

import refica as ri

DRAWS = 2000


def test_initial_coefficients_of_a_polynomial_have_the_variance_of_their_monomial():
    """N(0, 1/α!): under Z ~ N(0, I) no degree dominates."""
    decoder = ri.Polynomial(2, 1, 3)
    rng = np.random.default_rng(0)
    theta = np.array([decoder.init(rng) for _ in range(DRAWS)])
    want = [1.0 / math.sqrt(math.prod(map(math.factorial, alpha))) for alpha in decoder.exponents]
    # a standard deviation from 2000 draws is known to 1.6 %
    np.testing.assert_allclose(theta.std(axis=0), want, rtol=4.0 * 0.016)
    assert np.abs(theta.mean(axis=0) / want).max() < 4.0 / math.sqrt(DRAWS)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_initial_weights_have_the_gain_of_their_activation_and_only_hidden_biases_are_drawn(activation):
    decoder = ri.MLP((3, 5, 4, 2), activation)
    rng = np.random.default_rng(0)
    layers = [list(decoder.unpack(decoder.init(rng))) for _ in range(DRAWS)]
    for i, act in enumerate(decoder.activations):
        W, b = (np.array([draw[i][part] for draw in layers]) for part in (0, 1))
        assert W.std() == pytest.approx(act.gain / math.sqrt(W.shape[2]), rel=0.05)
        assert b.std() == (0.0 if i == 2 else pytest.approx(1.0, rel=0.05))


@pytest.mark.parametrize("sizes", [(3,), [2], (), 5, "12", {1: 2, 3: 4}])
def test_sizes_are_a_sequence_of_at_least_two_widths(sizes):
    with pytest.raises(ValueError, match="sizes must be at least two widths"):
        ri.MLP(sizes)
