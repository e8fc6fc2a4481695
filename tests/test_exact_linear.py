"""An affine decoder in closed form, against SciPy, autograd and scikit-learn."""

import autograd_model
import checks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import examples

import refica as ri
from refica.exact import affine_map

LINEAR = 1e-12
"""SciPy diagonalises the covariance where refica integrates: two routes of some hundred roundings."""

NOISE = (1e-3, 0.04, 1.0, 10.0)


def affine_model(m, n, sigma2, seed):
    rng = np.random.default_rng(seed)
    return ri.NonlinearICA(ri.MLP((m, n)), rng.standard_normal(n * (m + 1)), sigma2)


@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("m", range(1, 6))
def test_value_and_gradient(m, n):
    """n < m and n = m included."""
    for seed, sigma2 in enumerate(NOISE):
        model = affine_model(m, n, sigma2, seed)
        _, x = model.sample(7, rng=seed)
        result = checks.check_linear(model, x, ri.ExactLinear(), LINEAR)
        assert result.converged.all()
        assert (result.error <= 1e-10 * (1.0 + np.abs(result.per_observation))).all()


@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("m", range(1, 6))
def test_posterior(m, n):
    """N(M⁻¹Wᵀ(x - b), σ² M⁻¹) with M = WᵀW + σ² I."""
    for seed, sigma2 in enumerate(NOISE):
        model = affine_model(m, n, sigma2, seed)
        _, x = model.sample(5, rng=seed)
        W, b = model.theta[: m * n].reshape(n, m), model.theta[m * n :]
        M = W.T @ W + sigma2 * np.eye(m)
        post = ri.posterior(model, x, ri.ExactLinear())
        covariance = sigma2 * np.linalg.inv(M)
        # errors in units of the posterior's standard deviations, which the condition of M may amplify
        sd = np.sqrt(np.diag(covariance))
        tolerance = 1e-14 * np.linalg.cond(M) + 1e-12
        mean = np.linalg.solve(M, W.T @ (x - b).T).T
        assert (np.abs(post.mean - mean) <= tolerance * (sd + np.abs(mean))).all()
        assert (np.abs(post.covariance - covariance) <= tolerance * np.outer(sd, sd)).all()


@pytest.mark.parametrize("sigma2", [1e-6, 1e-8])
@pytest.mark.parametrize(("m", "n"), [(2, 1), (5, 2), (5, 4)])
def test_more_latents_than_data_at_small_noise(m, n, sigma2):
    """Solving with M = WᵀW + σ² I, of condition 1/σ², would cost the σ² gradient all its digits here, and
    the covariance half of them."""
    model = affine_model(m, n, sigma2, 0)
    _, x = model.sample(3, rng=0)
    W, _ = affine_map(model)
    U, S, Vt = np.linalg.svd(W)
    variances = np.ones(m)
    variances[:n] = sigma2 / (S**2 + sigma2)
    sd = np.sqrt(np.diag((Vt.T * variances) @ Vt))
    post = ri.posterior(model, x, ri.ExactLinear())
    assert (np.abs(post.covariance - (Vt.T * variances) @ Vt) <= 1e-10 * np.outer(sd, sd)).all()
    white = (x - model.theta[m * n :]) @ U
    by_sigma2 = 0.5 * ((white / (S**2 + sigma2)) ** 2 - 1.0 / (S**2 + sigma2)).sum()
    gradient = ri.log_likelihood(model, x, ri.ExactLinear()).gradient
    rounding = np.finfo(float).eps * np.abs(x).max() / np.sqrt(sigma2) * n / sigma2
    assert abs(gradient.sigma2 - by_sigma2) <= 100.0 * rounding


def test_errors_cover_what_scipy_finds():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        m, n = rng.integers(1, 5, size=2)
        model = affine_model(m, n, 10.0 ** rng.uniform(-4, 1), seed)
        x = model.sample(5, rng)[1] + 10.0 * rng.standard_normal((5, n))
        W, b = affine_map(model)
        covariance = W @ W.T + model.sigma2 * np.eye(n)
        # a route of its own, in extended precision where it matters: the whitened residual
        white = np.linalg.solve(np.linalg.cholesky(covariance), (x - b).T)
        log_det = np.linalg.slogdet(covariance)[1]
        want = -0.5 * (white**2).sum(axis=0) - 0.5 * log_det - 0.5 * n * np.log(2.0 * np.pi)
        result = ri.log_likelihood(model, x, ri.ExactLinear())
        slack = np.linalg.cond(covariance) * np.finfo(float).eps * (1.0 + np.abs(want))
        assert (np.abs(result.per_observation - want) <= result.error + slack).all()


@pytest.mark.parametrize(
    ("decoder", "theta"),
    [
        (ri.MLP((2, 3, 3), activation="identity"), np.linspace(-1.0, 1.0, 21)),
        (ri.MLP((2, 3, 3), activation=ri.leaky_relu(1.0)), np.linspace(-1.0, 1.0, 21)),
        (ri.Polynomial(2, 3, 1), np.linspace(-1.0, 1.0, 9)),
        (ri.Polynomial(2, 3, 0), np.linspace(-1.0, 1.0, 3)),
    ],
    ids=["deep identity", "slope one", "degree 1", "degree 0"],
)
def test_every_affine_decoder(decoder, theta):
    """The value against SciPy, the gradient against autograd through the decoder on the exact nodes."""
    model = ri.NonlinearICA(decoder, theta, sigma2=0.3)
    _, x = model.sample(6, rng=0)
    W, b = affine_map(model)
    want = stats.multivariate_normal(b, W @ W.T + 0.3 * np.eye(3)).logpdf(x)
    result = ri.log_likelihood(model, x)
    assert isinstance(result.integrator, ri.ExactLinear)
    assert checks.relative_error(result.per_observation, want, 1.0) <= LINEAR
    checks.check_gradient(model, x, ri.FixedNodes(*ri.ExactLinear().nodes(model, x)))
    h = 1e-5
    for j, e in enumerate(np.eye(len(theta))):
        above, below = (ri.log_likelihood(model.replace(theta=theta + t * e), x).total for t in (h, -h))
        assert result.gradient.theta[j] == pytest.approx((above - below) / (2.0 * h), abs=1e-6)


def test_scores_are_those_of_the_closed_form():
    model = affine_model(2, 3, 0.2, 0)
    _, x = model.sample(6, rng=1)
    want = autograd_model.linear_scores(2, 3, model.theta, model.sigma2, x)
    assert checks.relative_error(ri.scores(model, x, ri.ExactLinear()), want) <= LINEAR


def test_a_tiny_sigma_on_a_line():
    """g(z) = z, x = 1, σ² = 1e-6: `scipy.integrate.quad` over the line is off by 33.6 nats with a claimed
    error of 0 (mathematics, section 4, item 3)."""
    model = ri.NonlinearICA(ri.MLP((1, 1)), [1.0, 0.0], sigma2=1e-6)
    want = stats.norm(0.0, np.sqrt(1.0 + 1e-6)).logpdf(1.0)
    for integrator in (None, ri.ExactLinear()):
        assert ri.log_likelihood(model, [[1.0]], integrator).total == pytest.approx(want, abs=1e-11)


def test_a_decoder_that_is_not_affine_is_refused():
    model = ri.NonlinearICA(ri.MLP((1, 3, 2)), np.zeros(14), sigma2=0.1)
    with pytest.raises(ValueError, match=r"ExactLinear needs an affine decoder such as MLP\(\(m, n\)\), got"):
        ri.log_likelihood(model, [[0.0, 0.0]], ri.ExactLinear())


# -- probabilistic PCA -------------------------------------------------------------------------------


def anisotropic_data(N, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, n)) @ rng.standard_normal((n, n)) + 3.0 * rng.standard_normal(n)


@pytest.mark.parametrize(("m", "n"), [(1, 2), (1, 4), (2, 3), (3, 6), (5, 6)])
def test_probabilistic_pca_is_the_optimum(m, n):
    """The gradient is zero, σ² the mean discarded eigenvalue with divisor N, neighbours are worse."""
    x = anisotropic_data(60, n)
    fitted = ri.probabilistic_pca(x, m)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    assert fitted.sigma2 == pytest.approx(eigenvalues[m:].mean(), rel=1e-12)
    result = ri.log_likelihood(fitted, x)
    # the closed form of the optimal value (Tipping and Bishop 1999, equation 9's logarithm)
    best = -30.0 * (
        n * np.log(2.0 * np.pi) + np.log(eigenvalues[:m]).sum() + (n - m) * np.log(fitted.sigma2) + n
    )
    assert result.total == pytest.approx(best, rel=1e-12)
    size = np.abs(ri.scores(fitted, x)).sum(axis=0)
    assert (np.abs(result.gradient.theta) <= 1e-11 * size[:-1].max()).all()
    assert abs(result.gradient.sigma2) <= 1e-11 * size[-1]
    rng = np.random.default_rng(1)
    for _ in range(20):
        theta = fitted.theta + 1e-2 * rng.standard_normal(len(fitted.theta))
        sigma2 = fitted.sigma2 * np.exp(1e-2 * rng.standard_normal())
        assert ri.log_likelihood(fitted.replace(theta=theta, sigma2=sigma2), x).total < result.total


def test_probabilistic_pca_against_scikit_learn():
    """Its eigenvalues have the divisor N - 1, which is not the maximum-likelihood value."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = anisotropic_data(40, 5)
    N = len(x)
    fitted = ri.probabilistic_pca(x, 2)
    pca = decomposition.PCA(n_components=2, svd_solver="full").fit(x)
    assert fitted.sigma2 == pytest.approx(pca.noise_variance_ * (N - 1) / N, rel=1e-12)
    W, b = affine_map(fitted)
    covariance = W @ W.T + fitted.sigma2 * np.eye(5)
    np.testing.assert_allclose(covariance, pca.get_covariance() * (N - 1) / N, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(b, pca.mean_, rtol=1e-13)


@examples(30)
@given(st.integers(0, 10_000), st.sampled_from([(1, 2), (2, 4), (3, 4)]))
def test_probabilistic_pca_beats_the_truth_in_sample(seed, shape):
    m, n = shape
    truth = affine_model(m, n, 0.3, seed)
    _, x = truth.sample(25, rng=seed)
    assert ri.log_likelihood(ri.probabilistic_pca(x, m), x).total >= ri.log_likelihood(truth, x).total


def test_fewer_observations_than_dimensions():
    x = anisotropic_data(4, 6)
    fitted = ri.probabilistic_pca(x, 1)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    assert fitted.sigma2 == pytest.approx(eigenvalues[1:].mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("x", "m", "words"),
    [
        (anisotropic_data(9, 2), 2, "not defined for latent_dim 2 >= data_dim 2"),
        (anisotropic_data(9, 2), 3, "not defined for latent_dim 3 >= data_dim 2"),
        (anisotropic_data(1, 2), 1, "at least 2 observations"),
        (np.outer(np.arange(5.0), [1.0, 2.0, 3.0]), 1, "unbounded as sigma2 -> 0"),
        (np.ones((5, 3)), 1, "unbounded as sigma2 -> 0"),
        (np.zeros((5, 3)), 1, "unbounded as sigma2 -> 0"),
        (anisotropic_data(9, 3), 0, "latent_dim must be an integer >= 1, got 0"),
        ([[1.0, np.nan]], 1, "x must be finite"),
    ],
)
def test_probabilistic_pca_refuses(x, m, words):
    with pytest.raises(ValueError, match=r"x|latent_dim") as error:
        ri.probabilistic_pca(x, m)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
