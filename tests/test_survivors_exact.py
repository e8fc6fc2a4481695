"""The edges of the closed forms: what mutants of the exact module showed to be untested."""

import numpy as np
import pytest
from scipy import special

import refica as ri


def test_the_posterior_of_an_affine_decoder_is_one_component_of_mass_one():
    model = ri.NonlinearICA(ri.MLP((2, 3)), np.arange(9.0) / 9.0, sigma2=0.1)
    found = ri.ExactLinear().gaussians(model, model.sample(4, rng=0)[1])
    np.testing.assert_array_equal(special.logsumexp(found[0], axis=1), np.zeros(4))


def test_two_observations_are_enough_to_be_counted_but_lie_on_a_line():
    with pytest.raises(ValueError, match="x lies in a subspace of dimension 1"):
        ri.probabilistic_pca([[0.0, 1.0, 2.0], [1.0, 0.0, 5.0]], latent_dim=1)


def test_discarded_variance_of_the_size_of_rounding_is_none():
    """Rounding of n columns leaves up to n u times the largest eigenvalue; u / n would let it pass."""
    t = np.random.default_rng(0).standard_normal(200)
    n = 6
    x = np.outer(t, np.ones(n))
    for share, refused in ((1.0, True), (100.0 * n, False)):
        noise = np.random.default_rng(1).standard_normal(x.shape)
        y = x + np.sqrt(share * np.finfo(float).eps * n) * noise
        if refused:
            with pytest.raises(ValueError, match="x lies in a subspace of dimension 1"):
                ri.probabilistic_pca(y, latent_dim=1)
        else:
            assert ri.probabilistic_pca(y, latent_dim=1).sigma2 > 0.0
