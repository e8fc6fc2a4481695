"""An integrator is anything with ``nodes(model, x)``: ten lines of somebody else's get everything."""

import autograd_model
import checks
import numpy as np
import pytest

import refica as ri


@pytest.fixture(scope="module")
def example():
    """A model with two latents and 300 observations."""
    decoder = ri.MLP((2, 6, 3))
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2=0.1)
    return model, model.sample(300, rng=0)[1]


class Trapezoid:
    """Ten lines that import nothing from refica: a trapezoidal rule on a cube, for Lebesgue measure."""

    def __init__(self, points, radius):
        self.axis = np.linspace(-radius, radius, points)

    def nodes(self, model, x):
        m = model.latent_dim
        grid = np.meshgrid(*[self.axis] * m, indexing="ij")
        z = np.stack([axis.ravel() for axis in grid], axis=1)
        return z, np.full(len(z), m * np.log(self.axis[1] - self.axis[0]))


class OwnTrapezoid(Trapezoid):
    """The same with nodes for each observation."""

    def nodes(self, model, x):
        z, log_weight = super().nodes(model, x)
        return np.repeat(z[None], len(x), axis=0), np.repeat(log_weight[None], len(x), axis=0).tolist()


@pytest.mark.parametrize("kind", [Trapezoid, OwnTrapezoid])
def test_ten_lines_of_somebody_else_get_everything(kind):
    rng = np.random.default_rng(0)
    theta = rng.standard_normal(9)
    model = ri.NonlinearICA(ri.MLP((2, 3)), theta, sigma2=0.5)  # affine, so that the truth is known
    _, x = model.sample(5, rng)
    integrator = kind(41, 7.0)
    result = checks.check_linear(model, x, integrator, 1e-11)
    assert np.isnan(result.error).all()
    exact = ri.posterior(model, x, ri.ExactLinear())
    post = ri.posterior(model, x, integrator)
    np.testing.assert_allclose(post.mean, exact.mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(post.covariance, exact.covariance, rtol=1e-9, atol=1e-10)
    want = autograd_model.linear_scores(2, 3, theta, 0.5, x)
    np.testing.assert_allclose(ri.scores(model, x, integrator), want, rtol=1e-9, atol=1e-9)
    p = ri.density(model, x, integrator)
    np.testing.assert_allclose(p.per_observation, np.exp(result.per_observation), rtol=1e-13)


class Says:
    """An integrator that answers with whatever it was told."""

    def __init__(self, *answer):
        self.answer = answer[0] if len(answer) == 1 else answer

    def __repr__(self):
        return "Says"

    def nodes(self, model, x):
        return self.answer


Z, LOG_W = np.zeros((4, 2)), np.zeros(4)


@pytest.mark.parametrize("call", [ri.log_likelihood, ri.density, ri.scores, ri.posterior])
@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((Z[:, :1], LOG_W), ValueError, "must return z of shape (K, 2) or (300, K, 2), got (4, 1)"),
        ((Z[0], LOG_W), ValueError, "must return z of shape (K, 2) or (300, K, 2), got (2,)"),
        ((Z[:0], LOG_W[:0]), ValueError, "must return z of shape (K, 2) or (300, K, 2), got (0, 2)"),
        ((np.zeros((7, 4, 2)), np.zeros((7, 4))), ValueError, "got (7, 4, 2)"),
        ((Z, LOG_W[:3]), ValueError, "must return log_weight of shape (4,), got (3,)"),
        ((Z, LOG_W[:, None]), ValueError, "must return log_weight of shape (4,), got (4, 1)"),
        ((Z + np.nan, LOG_W), ValueError, "nan or infinite"),
        ((Z, LOG_W + np.nan), ValueError, "nan or infinite"),
        ((Z, LOG_W + np.inf), ValueError, "nan or infinite"),
        ((Z, LOG_W - np.inf), ValueError, "-inf only"),
        ((Z * 1j, LOG_W), TypeError, "must return real numbers, got complex128"),
        ((Z, LOG_W.astype(object)), TypeError, "must return real numbers, got float64 and object"),
        (Z, TypeError, "must return a pair (z, log_weight), got array"),
        (None, TypeError, "must return a pair (z, log_weight), got None"),
        ((Z, LOG_W, LOG_W), TypeError, "must return a pair (z, log_weight)"),
    ],
)
def test_what_somebody_else_returns_is_checked(example, call, answer, error, words):
    model, x = example
    with pytest.raises(error) as raised:
        call(model, x, Says(answer))
    assert words in str(raised.value)
    assert str(raised.value).startswith("Says ")
    assert "\n" not in str(raised.value)


def test_fixed_nodes_of_other_observations_are_refused(example):
    """Even where a block of them would fit."""
    model, x = example
    nodes = ri.FixedNodes(np.zeros((300, 4, 2)), np.zeros((300, 4)))
    for call in (ri.log_likelihood, ri.density, ri.scores, ri.posterior):
        with pytest.raises(ValueError, match="do not fit 50 observations and latent_dim 2"):
            call(model, x[:50], nodes)
    with pytest.raises(ValueError, match="do not fit 300 observations and latent_dim 2"):
        ri.log_likelihood(model, x, ri.FixedNodes(np.zeros((4, 1)), np.zeros(4)))
