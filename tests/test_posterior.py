"""posterior: moments with their error and verdict, samples, and that samples are calibrated."""

import functools
import math

import checks
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from strategies import examples

import refica as ri
from refica import exact, marginal, quantiles
from refica.likelihood import Nodes

CDF = 1e-5
"""What `Posterior.sample` promises of the distribution function that it inverts."""

UNLIKELY = 1e-3
"""A p-value below this rejects calibration: with other seeds, one run in a thousand of a right sampler."""

MOMENTS = 1e-8
"""Error of a posterior's mean in standard deviations, and of its variance, against the proved digits."""


def affine(m, n, sigma2=0.5, N=3):
    rng = np.random.default_rng(m)
    model = ri.NonlinearICA(ri.MLP((m, n)), rng.standard_normal(n * (m + 1)), sigma2)
    return model, model.sample(N, rng)[1]


def tanh_net(sigma2=0.3, N=50):
    model, _ = oracles.worked_example("tanh", sigma2)
    return model, model.sample(N, rng=0)[1]


def in_units(post, truth):
    """The largest error of a moment in units of the true standard deviations, (N,), as ``error`` has it."""
    sd = np.sqrt(np.einsum("iaa->ia", truth.covariance))
    mean = np.abs(post.mean - truth.mean) / sd
    covariance = np.abs(post.covariance - truth.covariance) / (sd[:, :, None] * sd[:, None, :])
    return np.maximum(mean.max(axis=1), covariance.max(axis=(1, 2)))


# -- the result --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "integrator",
    [
        None,
        ri.ExactLinear(),
        ri.Quadrature(ri.gauss_hermite(30)),
        ri.Quadrature(ri.uniform_grid(61, 7.0), "laplace"),
        ri.Quadrature(ri.monte_carlo(500, seed=0), "modes"),
    ],
    ids=str,
)
def test_what_the_result_offers(integrator):
    model, x = affine(2, 3)
    post, log = ri.posterior(model, x, integrator), ri.log_likelihood(model, x, integrator, gradient=False)
    assert post.mean.shape == (3, 2)
    assert post.covariance.shape == (3, 2, 2)
    assert post.effective_nodes.shape == post.error.shape == post.converged.shape == (3,)
    assert post.converged.dtype == bool
    assert (post.error > 0.0).all()
    assert (post.converged <= log.converged).all()
    assert post.message.startswith(log.message.partition(";")[0])  # what was integrated with, and why
    assert str(post.integrator) == str(log.integrator)
    for result in (post, log, model):
        assert len(repr(result)) < 600
        assert "array" not in repr(result)


def test_all_golden_cases_without_an_integrator():
    """To 1e-8, and the reported error is never below a tenth of the true one."""
    found = oracles.golden()
    assert len(found) == 64
    for model, x, case in found:
        post = ri.posterior(model, x)
        mean, variance = case["post_mean"][0], case["post_var"][0]
        off = abs(post.mean[0, 0] - mean) / math.sqrt(variance)
        relative = abs(post.covariance[0, 0, 0] / variance - 1.0)
        assert max(off, relative) <= MOMENTS
        assert max(off, relative) <= 10.0 * post.error[0]
        assert post.error[0] <= 1e-5
        assert post.converged.all(), post.message


def test_covariances_are_symmetric_and_positive():
    decoder = ri.MLP((2, 6, 3))
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2=0.1)
    post = ri.posterior(model, model.sample(300, rng=0)[1], ri.Quadrature(ri.gauss_hermite(20)))
    np.testing.assert_array_equal(post.covariance, np.swapaxes(post.covariance, 1, 2))
    assert (np.linalg.eigvalsh(post.covariance) >= -1e-14).all()
    assert (post.effective_nodes >= 1.0).all()


# -- the error ---------------------------------------------------------------------------------------

DETERMINISTIC = (
    ri.Quadrature(ri.gauss_hermite(80)),
    ri.Quadrature(ri.uniform_grid(61, 6.0)),
    ri.Quadrature(ri.gauss_hermite(7), "laplace"),
    ri.Quadrature(ri.gauss_hermite(9), "modes"),
    ri.Quadrature(ri.uniform_grid(21, 6.0), "modes"),
)


def errors(integrator):
    """True errors, reported errors and verdicts for 400 posteriors, on and off the model."""
    decoder, parts = ri.MLP((1, 4, 2)), []
    for seed, sigma2 in ((0, 2.0), (1, 1.0), (2, 0.5), (3, 0.2)):
        model = ri.NonlinearICA(decoder, 0.7 * decoder.init(seed), sigma2)
        x = model.sample(100, seed)[1]
        x[::5] += math.sqrt(sigma2)
        truth = ri.posterior(model, x, ri.Quadrature(ri.uniform_grid(4001, 10.0)))
        post = ri.posterior(model, x, integrator)
        parts.append((in_units(post, truth), post.error, post.converged))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("integrator", DETERMINISTIC, ids=str)
def test_the_error_covers_the_true_one(integrator):
    true, reported, converged = errors(integrator)
    checks.check_honesty(true, reported, converged, 1e-12)
    assert np.median(reported[converged]) <= 5e-3  # and says something


def test_an_error_divided_by_a_hundred_is_caught():
    true, reported, converged = errors(DETERMINISTIC[3])
    checks.check_honesty(true, reported, converged, 1e-12)
    with pytest.raises(AssertionError):
        checks.check_honesty(true, reported / 100.0, converged, 1e-12)


@pytest.mark.parametrize("rule", [ri.monte_carlo, ri.sobol], ids=["monte_carlo", "sobol"])
def test_intervals_of_random_rules_cover(rule):
    """95 % for each moment, so nearly that for the worse of two; Sobol's, with what replicates may all
    lack added, more. Over 200 seeds, with 4.5 standard errors."""
    model, x = affine(1, 2)
    truth = ri.posterior(model, x[:1])
    covers, says = [], []
    for seed in range(200):
        post = ri.posterior(model, x[:1], ri.Quadrature(rule(512, seed=seed)))
        covers.append(in_units(post, truth)[0] <= post.error[0])
        says.append(post.error[0])
    assert np.mean(covers) >= 0.93 - 4.5 * math.sqrt(0.07 * 0.93 / 200)
    assert np.median(says) <= 0.3


def test_a_lost_mode_is_said():
    """g(z) = z², x = 1: mean 0, variance 1, but "laplace" sees one of two modes."""
    model, x = oracles.worked_example("square", 1e-4)
    lost = ri.posterior(model, x, ri.Quadrature(ri.gauss_hermite(7), "laplace"))
    assert not lost.converged[0]
    assert "mode" in lost.message
    assert lost.error[0] > 1.0
    both = ri.posterior(model, x, ri.Quadrature(ri.gauss_hermite(15), "modes"))
    assert both.converged[0]
    assert abs(both.mean[0, 0]) <= 1e-10


def test_a_small_mode_far_away_counts_by_its_distance():
    """Its share of 1e-3 hardly matters to log p(x), but much to the variance: 0.02² against 1e-3."""
    model = ri.NonlinearICA(ri.Polynomial(1, 1, 2), [0.0, 0.35, 1.0], 1e-3)
    x = np.array([[0.6]])
    truth = ri.posterior(model, x)
    for integrator in (DETERMINISTIC[2], ri.Quadrature(ri.uniform_grid(21, 6.0), "laplace")):
        post = ri.posterior(model, x, integrator)
        assert post.error[0] >= in_units(post, truth)[0] > 0.1
        assert not post.converged[0]


def test_one_node_says_that_it_has_no_variance():
    model, x = tanh_net()
    post = ri.posterior(model, x, ri.Quadrature(ri.gauss_hermite(1), "laplace"))
    assert (post.covariance == 0.0).all()
    assert (post.error >= 1.0).all()
    assert not post.converged.any()
    alone = ri.posterior(model, x, ri.Quadrature(ri.monte_carlo(2, seed=0)))
    assert not alone.converged.any()


def test_nodes_alone_give_no_error():
    model, x = tanh_net()
    post = ri.posterior(model, x, ri.FixedNodes(np.linspace(-6.0, 6.0, 200)[:, None], np.zeros(200)))
    assert np.isnan(post.error).all()
    assert not post.converged.any()
    assert "gives no error estimate" in post.message


# -- samples of an affine decoder --------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(1, 2), (2, 3), (3, 2), (4, 4)])
@pytest.mark.parametrize("integrator", [None, ri.ExactLinear()], ids=str)
def test_samples_of_an_affine_decoder_are_draws_of_its_gaussian(m, n, integrator):
    """Whitened by N(M⁻¹Wᵀ(x - b), σ² M⁻¹) they are standard normal in every direction."""
    model, x = affine(m, n, sigma2=0.1)
    W, b = exact.affine_map(model)
    M = W.T @ W + model.sigma2 * np.eye(m)
    mean = np.linalg.solve(M, W.T @ (x - b).T).T
    whiten = np.linalg.cholesky(M / model.sigma2)  # of the precision
    draws = ri.posterior(model, x, integrator).sample(4000, rng=0)
    t = (draws - mean) @ whiten
    assert len(np.unique(draws)) == draws.size
    for i in range(len(x)):
        for a in range(m):
            assert stats.kstest(t[:, i, a], "norm").pvalue > UNLIKELY
        assert np.abs(np.cov(t[:, i].T).reshape(m, m) - np.eye(m)).max() <= 4.5 * math.sqrt(2.0 / 4000)
    sd = 1.0 / math.sqrt(4000)
    assert abs(np.corrcoef(t[:, 0, 0], t[:, 1, 0])[0, 1]) <= 4.5 * sd  # each observation by itself


# -- samples for one latent dimension ----------------------------------------------------------------

NODES = (
    ri.Quadrature(ri.gauss_hermite(1), "laplace"),
    ri.Quadrature(ri.gauss_hermite(8), "modes"),
    ri.Quadrature(ri.uniform_grid(2001, 8.0)),
    ri.Quadrature(ri.monte_carlo(300, seed=0)),
)


def quantiles_at(model, x, integrator, u):
    return quantiles.quantiles(quantiles.tabulate(model, x, Nodes(*integrator.nodes(model, x))), u)


@pytest.mark.parametrize("integrator", NODES, ids=str)
@examples(15)
@given(data=st.data())
def test_the_distribution_function_is_inverted(integrator, data):
    """Of an affine decoder, whose posterior is normal; also where few nodes or none are near."""
    theta = [data.draw(st.floats(-3.0, 3.0)), data.draw(st.floats(-3.0, 3.0)), 0.1, -0.2]
    model = ri.NonlinearICA(ri.MLP((1, 2)), theta, 10.0 ** data.draw(st.integers(-6, 1)))
    x = model.sample(4, data.draw(st.integers(0, 99)))[1]
    x[1] += 3.0 * math.sqrt(model.sigma2)
    _, mean, scale, *_ = exact.ExactLinear().gaussians(model, x)
    u = np.random.default_rng(0).random((50, 4))
    u[0], u[1] = 0.0, np.nextafter(1.0, 0.0)
    z = quantiles_at(model, x, integrator, u)
    assert np.isfinite(z).all()
    assert np.abs(stats.norm(mean[:, 0, 0], scale[:, 0, 0, 0]).cdf(z) - u).max() <= CDF


@pytest.mark.parametrize("name", ["tanh", "leaky relu", "square"])
@pytest.mark.parametrize("sigma2", [1.0, 0.01])
def test_the_distribution_function_of_a_posterior_with_bends_and_modes(name, sigma2):
    """Against the cumulative sum of the density on 400 000 points."""
    model, x = oracles.worked_example(name, sigma2)
    z = np.linspace(-9.0, 9.0, 400_001)
    log_joint = model.log_joint(x, z[:, None])[0]
    cdf = integrate.cumulative_simpson(np.exp(log_joint - log_joint.max()), x=z, initial=0.0)
    u = np.linspace(0.0, 1.0, 300, endpoint=False)[1:, None]
    post = ri.posterior(model, x)
    found = quantiles_at(model, x, post.integrator, u)
    assert np.abs(np.interp(found[:, 0], z, cdf / cdf[-1]) - u[:, 0]).max() <= CDF
    assert (np.diff(found[:, 0]) > 0.0).all()


def test_a_density_taken_to_be_linear_between_nodes_is_caught():
    """Planted: the parabola's middle is the mean of its ends, on panels as long as the nodes are apart."""
    model, x = affine(1, 2)
    _, mean, scale, *_ = exact.ExactLinear().gaussians(model, x)
    integrator = ri.Quadrature(ri.uniform_grid(33, 8.0))
    row, a, b = quantiles._first_panels(model, x, Nodes(*integrator.nodes(model, x)))
    F = np.stack([quantiles._log_joint(model, x, row, z) for z in (a, b)], axis=1)
    density = np.exp(F - F.max())
    density = np.stack([density[:, 0], density.mean(axis=1), density[:, 1]], axis=1)
    mass = quantiles._simpson(b - a, density)
    total = np.bincount(row, mass)
    before = np.concatenate([np.cumsum(mass[row == i]) - mass[row == i] for i in range(3)]) / total[row]
    u = np.random.default_rng(0).random((50, 3))
    z = quantiles.quantiles(quantiles.Panels(row, a, b, density, before, total), u)
    assert np.abs(stats.norm(mean[:, 0, 0], scale[:, 0, 0, 0]).cdf(z) - u).max() > 100.0 * CDF


def test_samples_follow_the_moments_and_the_seed_repeats_them():
    model, x = tanh_net()
    for integrator in (None, *NODES):
        draws = ri.posterior(model, x, integrator).sample(3000, rng=1)
        assert draws.shape == (3000, 50, 1)
        assert len(np.unique(draws)) == draws.size
        np.testing.assert_array_equal(draws, ri.posterior(model, x, integrator).sample(3000, rng=1))
        truth = ri.posterior(model, x)
        sd = np.sqrt(truth.covariance[:, 0, 0])
        off = (draws.mean(axis=0)[:, 0] - truth.mean[:, 0]) / sd
        assert (np.abs(off) <= 4.5 / math.sqrt(3000)).all()
        assert np.abs((draws.var(axis=0)[:, 0] / sd**2 - 1.0).mean()) <= 0.02


def test_blocks_do_not_change_samples(monkeypatch):
    model, x = tanh_net()
    post = ri.posterior(model, x)
    want = post.sample(5, rng=0)
    monkeypatch.setattr(marginal, "BLOCK", 7)
    assert checks.relative_error(post.sample(5, rng=0), want, 1.0) <= 1e-11


# -- samples for more latents ------------------------------------------------------------------------


def test_otherwise_samples_are_nodes_of_their_own(monkeypatch):
    """Each observation draws from its own nodes, across blocks."""
    monkeypatch.setattr(marginal, "BLOCK", 2)
    decoder = ri.MLP((2, 4, 3))
    model = ri.NonlinearICA(decoder, decoder.init(0), 0.5)
    x = model.sample(5, rng=0)[1]
    z = np.arange(5.0)[:, None, None] + np.array([0.0, 0.25])[:, None] + np.zeros(2)
    draws = ri.posterior(model, x, ri.FixedNodes(z, np.zeros((5, 2)))).sample(50, rng=0)
    assert draws.shape == (50, 5, 2)
    assert (np.floor(draws) == np.arange(5)[:, None]).all()
    assert set(np.unique(draws % 1.0)) <= {0.0, 0.25}


def test_resampled_nodes_follow_the_moments():
    decoder = ri.MLP((2, 4, 3))
    model = ri.NonlinearICA(decoder, decoder.init(0), 0.5)
    x = model.sample(3, rng=0)[1]
    post = ri.posterior(model, x, ri.Quadrature(ri.uniform_grid(61, 6.0)))
    draws = post.sample(20_000, rng=0)
    sd = np.sqrt(np.einsum("iaa->ia", post.covariance))
    assert (np.abs(draws.mean(axis=0) - post.mean) <= 4.5 * sd / math.sqrt(20_000)).all()
    for i in range(3):
        assert np.abs(np.cov(draws[:, i].T) - post.covariance[i]).max() <= 0.04 * sd[i].max() ** 2


# -- calibration -------------------------------------------------------------------------------------

DRAWS = 99
BINS = 10


def nets(name):
    if name == "affine":
        return affine(2, 3)[0]
    model, _ = oracles.worked_example("tanh", 0.3)
    decoder = ri.MLP((1, 3, 2), activation="relu") if name == "relu" else model.decoder
    return ri.NonlinearICA(decoder, model.theta, 0.3)


@functools.cache
def drawn(name, N=10_000):
    """Latents from the prior (N, m), the posterior means given x from the model, and `DRAWS` samples."""
    model = nets(name)
    z, x = model.sample(N, rng=0)
    post = ri.posterior(model, x)
    return z, post.mean, post.sample(DRAWS, rng=1)


def calibration(z, draws):
    """The p-values of simulation-based calibration (Talts et al. 2018), one for each latent.

    If z comes from the prior, x from the model at z and the samples from the posterior of x, the rank of z
    among them is uniform on 0..`DRAWS`: a chi-square test on `BINS` equal bins.
    """
    bins = (draws < z).sum(axis=0) * BINS // (DRAWS + 1)
    return [stats.chisquare(np.bincount(each, minlength=BINS)).pvalue for each in bins.T]


@pytest.mark.parametrize("name", ["smooth", "relu", "affine"])
def test_samples_are_calibrated(name):
    z, _, draws = drawn(name)
    assert min(calibration(z, draws)) > UNLIKELY


@pytest.mark.parametrize("name", ["smooth", "relu", "affine"])
def test_a_variance_inflated_by_a_tenth_is_rejected(name):
    z, mean, draws = drawn(name)
    assert min(calibration(z, mean + math.sqrt(1.1) * (draws - mean))) < UNLIKELY


def test_a_forgotten_prior_is_rejected(monkeypatch):
    monkeypatch.setattr(quantiles, "log_prior", lambda z: np.zeros(z.shape[:-1]))
    z, _, draws = drawn("smooth", 2000)
    assert min(calibration(z, draws)) < UNLIKELY
