"""The model: sampling, the log joint, copies, descriptions."""

import math
import pickle

import autograd_model
import checks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import cases, examples, models

import refica as ri
from refica.model import log_likelihood_given, log_prior, squared_distances


@examples(50)
@given(data=st.data())
def test_log_joint_against_scipy(data):
    case = data.draw(cases())
    model, x = case.model, case.x
    sigma = math.sqrt(model.sigma2)
    for z in (case.shared.z, case.own.z):
        rows = np.broadcast_to(z, (len(x), *z.shape[-2:]))
        g = autograd_model.decode(model.decoder, model.theta, rows)
        want = stats.norm.logpdf(x[:, None, :], g, sigma).sum(axis=-1) + stats.norm.logpdf(rows).sum(axis=-1)
        got = model.log_joint(x, z)
        assert got.shape == want.shape
        assert checks.relative_error(got, want, 1.0) <= checks.AUTOGRAD


@examples(20)
@given(data=st.data())
def test_log_joint_of_shared_latents_is_that_of_copies(data):
    case = data.draw(cases())
    z = case.shared.z
    copies = np.repeat(z[None], len(case.x), axis=0)
    shared, own = case.model.log_joint(case.x, z), case.model.log_joint(case.x, copies)
    assert checks.relative_error(shared, own, 1.0) <= checks.AUTOGRAD


def test_the_parts_of_the_log_joint():
    assert log_prior(np.zeros((1, 3)))[0] == pytest.approx(-1.5 * math.log(2.0 * math.pi), rel=1e-15)
    assert log_prior(np.array([[3.0, 4.0]]))[0] == pytest.approx(-12.5 - math.log(2.0 * math.pi), rel=1e-15)
    # n/2 log(2πσ²) and ‖r‖²/2σ², with σ² = 4 a variance
    want = -25.0 / 8.0 - 1.5 * math.log(8.0 * math.pi)
    assert log_likelihood_given(np.array(25.0), 4.0, 3) == pytest.approx(want, rel=1e-15)
    x, g = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [4.0, 6.0], [1.0, 2.0]])
    np.testing.assert_array_equal(squared_distances(x, g), [[4.0, 25.0, 0.0], [1.0, 52.0, 5.0]])
    np.testing.assert_array_equal(
        squared_distances(x, np.stack([g, g])), [[4.0, 25.0, 0.0], [1.0, 52.0, 5.0]]
    )


def test_samples_follow_the_model():
    """Residuals have variance σ² (not σ), latents are standard normal, and the two independent."""
    decoder = ri.MLP((2, 5, 3))
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2=0.09)
    N = 40_000
    z, x = model.sample(N, rng=1)
    assert z.shape == (N, 2)
    assert x.shape == (N, 3)
    r = x - decoder(model.theta, z)
    for values, variance in ((z, 1.0), (r, 0.09)):
        limit = 4.5 * math.sqrt(2.0 / N) * variance  # 4.5 standard errors of a variance
        assert np.abs(values.var(axis=0) - variance).max() <= limit
        assert np.abs(values.mean(axis=0)).max() <= 4.5 * math.sqrt(variance / N)
    together = np.corrcoef(np.hstack([z, r]).T) - np.eye(5)
    assert np.abs(together).max() <= 4.5 / math.sqrt(N)


def test_a_seed_repeats_a_sample_and_a_generator_goes_on():
    model = ri.NonlinearICA(ri.MLP((1, 2)), [1.0, 0.5, 0.0, 0.0], sigma2=0.1)
    first, again = model.sample(5, rng=3), model.sample(5, rng=3)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    rng = np.random.default_rng(3)
    np.testing.assert_array_equal(model.sample(5, rng)[1], first[1])
    assert (model.sample(5, rng)[1] != first[1]).all()


def test_theta_is_a_read_only_copy():
    theta = np.array([1.0, 0.5, 0.0, 0.0])
    model = ri.NonlinearICA(ri.MLP((1, 2)), theta, sigma2=0.1)
    theta[0] = 7.0
    assert model.theta[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        model.theta[0] = 2.0
    with pytest.raises(AttributeError):
        model.sigma2 = 1.0


def test_replace():
    model = ri.NonlinearICA(ri.MLP((1, 2)), [1.0, 0.5, 0.0, 0.0], sigma2=0.1)
    other = model.replace(sigma2=0.2)
    assert (other.sigma2, model.sigma2) == (0.2, 0.1)
    np.testing.assert_array_equal(other.theta, model.theta)
    assert other.decoder is model.decoder
    np.testing.assert_array_equal(model.replace(theta=np.ones(4)).theta, np.ones(4))
    with pytest.raises(ValueError, match="sigma2 must be a finite number > 0, got 0"):
        model.replace(sigma2=0.0)


@examples(50)
@given(data=st.data())
def test_descriptions_are_read_back_bit_for_bit(data):
    import json

    model = data.draw(models())
    again = ri.NonlinearICA.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again.decoder == model.decoder
    assert again.sigma2 == model.sigma2
    np.testing.assert_array_equal(again.theta, model.theta)
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.theta, model.theta)
    assert (other.sigma2, other.decoder) == (model.sigma2, model.decoder)


def test_a_decoder_of_somebody_else():
    """Ten lines of a decoder are as good as refica's own: value and gradient agree with autograd."""

    class Circle:
        latent_dim, data_dim, n_params = 1, 2, 1

        def __call__(self, theta, z):
            return theta * np.hstack([np.cos(z), np.sin(z)])

        def vjp(self, theta, z, cotangent):
            c, s = np.cos(z[:, 0]), np.sin(z[:, 0])
            along = theta[0] * (cotangent[:, 1] * c - cotangent[:, 0] * s)
            return np.array([np.sum(cotangent[:, 0] * c + cotangent[:, 1] * s)]), along[:, None]

        def jvp(self, theta, z, dtheta, dz):
            return dtheta * np.hstack([np.cos(z), np.sin(z)]) + theta * dz * np.hstack(
                [-np.sin(z), np.cos(z)]
            )

    model = ri.NonlinearICA(Circle(), [1.5], sigma2=0.04)
    _, x = model.sample(30, rng=0)
    result = ri.log_likelihood(model, x)
    assert result.converged.all()
    h = 1e-4
    above, below = (ri.log_likelihood(model.replace(theta=[1.5 + t]), x).total for t in (h, -h))
    assert result.gradient.theta[0] == pytest.approx((above - below) / (2.0 * h), rel=1e-6)
