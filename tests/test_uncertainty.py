"""Standard errors against closed forms and simulation; differences; the centrality of scores, with faults."""

# notation: N observations, p parameters, q = p + 1; C (n, n) covariance of X for an affine decoder

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

import refica as ri
from refica import likelihood
from refica.centrality import CENTRALITY_CUTOFF, SLOPE
from refica.uncertainty import WEAK, _directions_of_scores

HESSIAN = 1e-7
"""Central differences of a gradient with a relative step of 6e-6: rounding leaves 1e-8 or so."""

AFFINE = ri.NonlinearICA(ri.MLP((1, 3)), [1.0, -1.0, 0.5, 0.3, 0.0, -0.2], sigma2=0.1)
TURNED = ri.NonlinearICA(ri.MLP((2, 3)), [1.0, 0.2, -0.4, 0.8, 0.3, 0.9, 0.1, 0.2, 0.3], sigma2=0.05)
NET = ri.NonlinearICA(
    ri.MLP((1, 3, 2)), [1.5, -2, 0.7, 0.3, 0.1, -0.5, 1, -0.5, 0.8, 0.4, 1.2, -0.9, 0.1, -0.2], 0.1
)


def fisher_information(model):
    """½ tr(C⁻¹ ∂C C⁻¹ ∂C) + ∂bᵀ C⁻¹ ∂b for one observation of X ~ N(b, W Wᵀ + σ² I), (q, q)."""
    m, n = model.latent_dim, model.data_dim
    W = model.theta[: m * n].reshape(n, m)
    inverse = np.linalg.inv(W @ W.T + model.sigma2 * np.eye(n))
    slopes = []
    for d, a in np.ndindex(n, m):
        dW = np.zeros((n, m))
        dW[d, a] = 1.0
        slopes.append((dW @ W.T + W @ dW.T, np.zeros(n)))
    slopes += [(np.zeros((n, n)), e) for e in np.eye(n)] + [(np.eye(n), np.zeros(n))]
    return np.array(
        [
            [0.5 * np.trace(inverse @ dC @ inverse @ eC) + db @ inverse @ eb for eC, eb in slopes]
            for dC, db in slopes
        ]
    )


def data_with_the_moments_of(model, N):
    """Observations whose mean and covariance (divisor N) are the model's own: it is then at its maximum, and
    the observed information is the expected one."""
    m, n = model.latent_dim, model.data_dim
    W, b = model.theta[: m * n].reshape(n, m), model.theta[m * n :]
    x = np.random.default_rng(0).standard_normal((N, n))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / N)).T
    return b + white @ np.linalg.cholesky(W @ W.T + model.sigma2 * np.eye(n)).T


def scores_on_a_grid(model, x):
    """The scores for m = 1 by a grid that resolves these models, without a search for it."""
    return ri.scores(model, x, ri.Quadrature(ri.uniform_grid(200, 7.0)))


@pytest.mark.parametrize("model", [AFFINE, TURNED])
def test_the_hessian_of_an_affine_model_is_the_closed_form_of_the_fisher_information(model):
    N = 50
    x = data_with_the_moments_of(model, N)
    want = N * fisher_information(model)
    found = ri.observed_information(model, x, kind="hessian")
    assert np.max(np.abs(found - want)) <= HESSIAN * np.max(want)
    assert np.array_equal(found, found.T)


def test_outer_products_of_scores_are_the_fisher_information_within_sampling():
    N = 800
    _, x = AFFINE.sample(N, rng=1)
    S = ri.scores(AFFINE, x)
    products = S[:, :, None] * S[:, None, :]
    spread = products.std(axis=0) * math.sqrt(N)
    found = ri.observed_information(AFFINE, x)
    np.testing.assert_allclose(found, S.T @ S, rtol=1e-12)
    assert np.max(np.abs(found - N * fisher_information(AFFINE)) / spread) < 4.0


@pytest.mark.parametrize("kind", ["scores", "hessian"])
def test_standard_errors_of_an_affine_model_are_those_of_the_closed_form(kind):
    N = 1000
    _, x = AFFINE.sample(N, rng=0)
    fitted = ri.probabilistic_pca(x, 1)
    found = ri.standard_errors(fitted, x, kind=kind)
    want = np.sqrt(np.diag(np.linalg.inv(N * fisher_information(fitted))))
    assert found.rank == 7
    assert found.identified.all()
    assert found.kind == kind
    # outer products of 1000 scores, which are not normal, give an information to ten percent or so
    rtol = {"scores": 0.15, "hessian": 0.03}[kind]
    np.testing.assert_allclose(np.append(found.theta, found.sigma2), want, rtol=rtol)
    # n - m eigenvalues are discarded, each of which has N/2 as the information on its logarithm
    assert found.log_sigma2 == pytest.approx(math.sqrt(2.0 / (N * 2)), rel=rtol)
    assert "weakly" not in found.message
    assert f"log_sigma2={found.log_sigma2:.3g}, rank=7 of 7" in repr(found)


def test_the_error_of_log_sigma2_is_the_spread_of_its_estimates():
    N, replicates = 400, 400
    rng = np.random.default_rng(5)
    fits = [ri.probabilistic_pca(AFFINE.sample(N, rng)[1], 1).sigma2 for _ in range(replicates)]
    _, x = AFFINE.sample(N, rng)
    found = ri.standard_errors(ri.probabilistic_pca(x, 1), x, kind="hessian")
    # the spread of 400 numbers is known to 1/sqrt(800) = 3.5 %
    assert np.log(fits).std() == pytest.approx(found.log_sigma2, rel=4.0 * 0.035)


def test_a_rotation_of_the_latents_is_left_out_and_the_rest_keeps_its_errors():
    N = 400
    _, x = TURNED.sample(N, rng=0)
    fitted = ri.probabilistic_pca(x, 2)
    want = math.sqrt(2.0 / N)  # one eigenvalue is discarded
    for kind in ("scores", "hessian"):
        found = ri.standard_errors(fitted, x, kind=kind)
        assert found.rank == 9  # of 10
        assert not found.identified[:6].any()
        assert np.isinf(found.theta[:6]).all()
        assert found.identified[6:].all()
        assert found.log_sigma2 == pytest.approx(want, rel=0.15)
        C = np.cov(x.T, bias=True)
        np.testing.assert_allclose(found.theta[6:], np.sqrt(np.diag(C) / N), rtol=0.15)
        assert "6 of 9 entries of theta are not identified by themselves" in found.message
        # one over the Schur complement, by the pseudo-inverse
        others, own = found.information[:-1, :-1], found.information[-1, :-1]
        left = found.information[-1, -1] - own @ np.linalg.pinv(others, rcond=1e-7, hermitian=True) @ own
        assert found.sigma2 == pytest.approx(1.0 / math.sqrt(left), rel=1e-5)


def test_as_many_latents_as_data_dimensions_leave_sigma2_hardly_identified():
    cubic = ri.NonlinearICA(ri.Polynomial(1, 1, 3), [0.0, 1.0, 0.3, 0.2], sigma2=0.01)
    _, x = cubic.sample(400, rng=0)
    found = ri.standard_errors(cubic, x)
    assert found.log_sigma2 > 10.0  # mathematics, section 4, item 10, though there for N = 1000
    assert "sigma2 is weakly identified (standard error of its logarithm " in found.message
    assert found.message.endswith("as many latents as data dimensions")
    line = ri.NonlinearICA(ri.MLP((1, 1)), [1.0, 0.3], sigma2=0.1)  # X ~ N(b, w² + σ²): no σ² to see
    _, x = line.sample(200, rng=0)
    found = ri.standard_errors(line, x)
    assert (found.rank, found.log_sigma2, found.sigma2) == (2, math.inf, math.inf)
    assert found.identified.tolist() == [False, True, False]
    assert "sigma2 is not identified, as is to be expected with as many latents" in found.message


def test_units_that_do_nothing_change_nothing_else():
    """A unit that never fires has scores of exactly 0; a twin of another unit has its scores."""
    x = NET.sample(100, rng=0)[1]
    plain = ri.standard_errors(NET, x, kind="scores")
    w, b, W, c = np.split(NET.theta, [3, 6, 12])
    spare = np.append(w, 0.0), np.append(b, -1.0), np.column_stack([W.reshape(2, 3), [0.0, 0.0]]), c
    theta = np.concatenate([part.ravel() for part in spare])
    wide = ri.NonlinearICA(ri.MLP((1, 4, 2)), theta, NET.sigma2)
    S = ri.scores(wide, x)
    found = ri.standard_errors(wide, x)
    # its output weights act as a second bias, its input is cut off: rank is not raised
    assert found.rank == plain.rank
    assert not found.identified[[3, 7]].any()  # input weight and bias: columns of zeros
    assert (S[:, [3, 7]] == 0.0).all()
    assert found.log_sigma2 == pytest.approx(plain.log_sigma2, rel=1e-6)
    assert found.identified[-1]


def test_an_error_does_not_depend_on_the_unit_of_other_parameters():
    """Data in metres or millimetres: log σ² keeps its error, decoder parameters scale with theirs."""
    _, x = AFFINE.sample(200, rng=0)
    big = ri.NonlinearICA(AFFINE.decoder, 1e3 * AFFINE.theta, 1e6 * AFFINE.sigma2)
    one, other = ri.standard_errors(AFFINE, x), ri.standard_errors(big, 1e3 * x)
    assert other.log_sigma2 == pytest.approx(one.log_sigma2, rel=1e-9)
    np.testing.assert_allclose(other.theta, 1e3 * one.theta, rtol=1e-9)


def test_few_observations_and_a_saddle_are_said():
    _, x = AFFINE.sample(5, rng=0)
    assert "there are not more observations than parameters" in ri.standard_errors(AFFINE, x).message
    _, x = AFFINE.sample(100, rng=0)
    saddle = AFFINE.replace(theta=np.append(np.zeros(3), x.mean(axis=0)), sigma2=float(x.var()))
    found = ri.standard_errors(saddle, x, kind="hessian")
    assert "log p curves upwards in" in found.message
    assert "this is not a maximum" in found.message
    assert "curves upwards" not in ri.standard_errors(saddle, x).message  # scores cannot tell


def test_a_higher_cutoff_leaves_out_more():
    _, x = NET.sample(60, rng=0)
    ranks = [ri.standard_errors(NET, x, cutoff=cutoff).rank for cutoff in (1e-14, 1e-6, 1e-2, 0.9)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[2] > ranks[3] == 1


def test_bad_arguments_of_standard_errors_are_refused():
    _, x = AFFINE.sample(5, rng=0)
    with pytest.raises(ValueError, match="kind must be one of hessian, scores"):
        ri.standard_errors(AFFINE, x, kind="score")
    with pytest.raises(ValueError, match="kind must be one of hessian, scores"):
        ri.observed_information(AFFINE, x, kind="fisher")
    for cutoff in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="cutoff must be a finite number > 0 and < 1"):
            ri.standard_errors(AFFINE, x, cutoff=cutoff)
    for call in (ri.standard_errors, ri.observed_information):
        with pytest.raises(TypeError, match="model must be a NonlinearICA"):
            call(AFFINE.decoder, x)
    with pytest.raises(TypeError, match="model must be a NonlinearICA"):
        ri.score_centrality(AFFINE.decoder)


def test_a_paired_difference_is_that_of_the_observations():
    _, x = AFFINE.sample(300, rng=0)
    one, other = ri.log_likelihood(AFFINE, x), ri.log_likelihood(AFFINE.replace(sigma2=0.2), x)
    found = ri.paired_difference(one, other)
    d = one.per_observation - other.per_observation
    assert found.observations == 300
    assert found.mean == pytest.approx(d.mean(), rel=1e-14)
    assert found.standard_error == pytest.approx(stats.sem(d), rel=1e-12)
    assert found.total == pytest.approx(one.total - other.total, rel=1e-12)
    assert found.total_standard_error == pytest.approx(math.sqrt(300) * d.std(ddof=1), rel=1e-12)
    assert found.error == pytest.approx(one.error.mean() + other.error.mean(), rel=1e-12)
    back = ri.paired_difference(other, one)
    assert (back.mean, back.standard_error) == (-found.mean, found.standard_error)
    same = ri.paired_difference(one, one)
    assert (same.mean, same.standard_error) == (0.0, 0.0)
    nodes = ri.Quadrature(ri.gauss_hermite(5))
    unknown = ri.log_likelihood(AFFINE, x, ri.FixedNodes(*nodes.nodes(AFFINE, x)))
    assert math.isnan(ri.paired_difference(one, unknown).error)  # a bound that nobody knows


def test_the_error_of_a_difference_is_its_spread_over_samples():
    rng = np.random.default_rng(3)
    other = AFFINE.replace(sigma2=0.15)

    def difference():
        _, x = AFFINE.sample(200, rng)
        return ri.paired_difference(ri.log_likelihood(AFFINE, x), ri.log_likelihood(other, x))

    found = [difference() for _ in range(200)]
    said = np.mean([f.standard_error for f in found])
    assert np.std([f.mean for f in found]) == pytest.approx(said, rel=4.0 / math.sqrt(400))


def test_what_is_no_pair_is_refused():
    _, x = AFFINE.sample(5, rng=0)
    result = ri.log_likelihood(AFFINE, x)
    with pytest.raises(TypeError, match="second must be a result of log_likelihood, got ndarray"):
        ri.paired_difference(result, result.per_observation)
    with pytest.raises(ValueError, match="of the same observations, at least 2, got 5 and 4"):
        ri.paired_difference(result, ri.log_likelihood(AFFINE, x[:4]))
    with pytest.raises(ValueError, match="at least 2, got 1 and 1"):
        ri.paired_difference(ri.log_likelihood(AFFINE, x[:1]), ri.log_likelihood(AFFINE, x[:1]))


def test_the_joint_statistic_is_hotellings():
    rng = np.random.default_rng(0)
    S = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 3)) + 0.2
    mean, C = S.mean(axis=0), np.cov(S.T)
    found = ri.mean_score_test(S, cutoff=1e-12)
    want = 40 * mean @ np.linalg.solve(C, mean)
    assert found.statistic == pytest.approx(want, rel=1e-10)
    assert found.rank == 3
    assert found.p_joint == pytest.approx(stats.f(3, 37).sf(37 / (3 * 39) * want), rel=1e-9)
    np.testing.assert_allclose(found.z, stats.ttest_1samp(S, 0.0).statistic, rtol=1e-12)
    assert found.component == np.abs(found.z).argmax()
    worst = stats.ttest_1samp(S, 0.0).pvalue.min()
    assert found.p_component == pytest.approx(min(1.0, 3 * worst), rel=1e-9)
    assert found.p_value == min(1.0, 2 * min(found.p_joint, found.p_component))
    # a repeated column, a column of zeros and another unit add nothing
    more = ri.mean_score_test(np.column_stack([S, S[:, 0], 0.0 * S[:, 0]]), cutoff=1e-12)
    assert (more.statistic, more.rank) == (pytest.approx(want, rel=1e-10), 3)
    assert more.z[4] == 0.0
    assert ri.mean_score_test(S * [1e-9, 1.0, 1e6], cutoff=1e-12).statistic == pytest.approx(want, rel=1e-9)


def test_scores_that_say_nothing_are_not_refused():
    assert ri.mean_score_test(np.zeros((10, 2))).p_value == 1.0
    few = ri.mean_score_test(np.random.default_rng(0).standard_normal((3, 5)) + 100.0, cutoff=1e-9)
    assert few.p_joint == 1.0  # three directions fit any mean of three
    with pytest.raises(ValueError, match="scores must have at least 3 rows, got 2"):
        ri.mean_score_test(np.ones((2, 2)))
    with pytest.raises(ValueError, match="scores must be finite"):
        ri.mean_score_test([[1.0], [np.nan], [2.0]])
    with pytest.raises(ValueError, match="cutoff must be a finite number > 0 and < 1"):
        ri.mean_score_test(np.ones((5, 2)), cutoff=1.0)


@pytest.mark.parametrize(
    ("model", "N", "replicates"),
    [
        (AFFINE, 200, 300),
        (NET, 300, 150),
        (ri.NonlinearICA(ri.MLP((1, 16, 3)), ri.MLP((1, 16, 3)).init(0), 0.05), 500, 40),
    ],
)
def test_right_programs_are_refused_as_often_as_said(model, N, replicates):
    """The rates at the levels 1 in 2 and 1 in 20 lie within four binomial standard deviations of, or, for the
    bounds by Bonferroni, below the level and a half: scores are not normal at a few hundred observations."""
    rng = np.random.default_rng(11)
    tests = [ri.mean_score_test(scores_on_a_grid(model, model.sample(N, rng)[1])) for _ in range(replicates)]
    for level in (0.5, 0.05):
        slack = 4.0 * math.sqrt(level * (1.0 - level) / replicates)
        assert abs(np.mean([t.p_joint < level for t in tests]) - level) <= slack + 0.5 * level
        for p in ("p_component", "p_value"):
            assert np.mean([getattr(t, p) < level for t in tests]) <= 1.5 * level + slack
    assert np.mean([t.p_value < 0.001 for t in tests]) <= 0.02


CENTRE = {"affine": AFFINE, "turned": TURNED, "net": NET}


@pytest.mark.parametrize("name", CENTRE)
def test_refica_passes_its_own_centrality_test(name):
    found = ri.score_centrality(CENTRE[name], size=300, rng=0)
    assert found.passed(), found.message
    assert found.passed(level=0.01)
    assert found.size == 300
    assert found.slope_error < 0.1 * SLOPE
    assert f"on {found.test.rank} directions" in found.message
    assert found.test.rank >= 0.3 * (CENTRE[name].decoder.n_params + 1)


@pytest.mark.parametrize(
    "simulate",
    [
        lambda z, g, s2, noise: g + 1.2 * math.sqrt(s2) * noise,  # variance 44 % too large
        lambda z, g, s2, noise: g + s2 * noise,  # σ² for σ
        lambda z, g, s2, noise: g + 0.06 + math.sqrt(s2) * noise,  # off by a fifth of the noise
        lambda z, g, s2, noise: 1.15 * g + math.sqrt(s2) * noise,
        lambda z, g, s2, noise: g,  # no noise
    ],
)
def test_a_wrong_simulator_is_refused(simulate):
    rng = np.random.default_rng(2)
    z = rng.standard_normal((1000, 1))
    g = NET.decoder(NET.theta, z)
    noise = rng.standard_normal(g.shape)
    right = g + math.sqrt(NET.sigma2) * noise
    assert ri.mean_score_test(scores_on_a_grid(NET, right)).p_value > 0.05
    wrong = simulate(z, g, NET.sigma2, noise)
    assert ri.mean_score_test(scores_on_a_grid(NET, wrong)).p_value < 1e-3


def _by_sigma2(change):
    """The σ² derivative with its three factors changed: c (ρ‖r‖²/σ² - n) / 2σ²."""

    def derivative(tile, c, sigma2):
        n = tile.g.shape[-1]
        fitted = np.einsum("ik,ik->i", tile.rho, tile.squared) / sigma2
        return c * change(fitted, n, sigma2)

    return derivative


SCORES = {  # name -> (the derivative in σ², whether a mean of zero betrays it)
    "half lost in the first term": (lambda fitted, n, s2: (fitted - n / 2) / s2, True),
    "half lost in the second term": (lambda fitted, n, s2: (fitted / 2 - n) / s2, True),
    "half lost in both": (lambda fitted, n, s2: (fitted - n) / s2, False),
    "one dimension less": (lambda fitted, n, s2: (fitted - (n - 1)) / (2 * s2), True),
    "derivative in sigma": (lambda fitted, n, s2: (fitted - n) / math.sqrt(s2), False),
    "derivative in log sigma2": (lambda fitted, n, s2: (fitted - n) / 2, False),
    "sign": (lambda fitted, n, s2: (n - fitted) / (2 * s2), False),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_wrong_score_of_sigma2_is_refused(name, monkeypatch):
    change, uncentred = SCORES[name]
    monkeypatch.setattr(likelihood, "_sigma2_derivative", _by_sigma2(change))
    found = ri.score_centrality(AFFINE, size=400, rng=0)
    assert not found.passed()
    assert found.slope_error > 10 * SLOPE
    assert (found.test.p_value < 1e-3) == uncentred  # of a wrong scale the mean is zero all the same
    if uncentred:
        assert "in sigma2" in found.message


def test_the_planted_derivative_is_right_before_it_is_changed(monkeypatch):
    monkeypatch.setattr(
        likelihood, "_sigma2_derivative", _by_sigma2(lambda fitted, n, s2: (fitted - n) / (2 * s2))
    )
    assert ri.score_centrality(AFFINE, size=400, rng=0).passed()


@pytest.mark.parametrize("name", ["_by_products", "_one_by_one"])
def test_a_wrong_score_of_theta_is_refused(name, monkeypatch):
    true = getattr(likelihood, name)
    model = {"_by_products": NET, "_one_by_one": AFFINE}[name]
    assert ri.score_centrality(model, size=200, rng=0).passed()
    monkeypatch.setattr(likelihood, name, lambda *a: 1.1 * np.ones_like(true(*a)))
    found = ri.score_centrality(model, size=200, rng=0)
    assert not found.passed()
    assert found.slope_error > SLOPE


def test_a_wrong_integrator_is_refused():
    """Three prior-centred nodes: neither value nor gradient is the integral's, though they fit each other."""
    rough = ri.Quadrature(ri.gauss_hermite(3))
    found = ri.score_centrality(NET, size=200, rng=0, integrator=rough)
    assert found.test.p_value < 1e-3
    assert found.slope_error < 10 * SLOPE
    assert not found.passed()


def test_sizes_and_generators_are_checked():
    with pytest.raises(ValueError, match="size must be an integer >= 3, got 2"):
        ri.score_centrality(AFFINE, size=2)
    with pytest.raises(TypeError, match="rng must be an int seed"):
        ri.score_centrality(AFFINE, rng=None)
    one = ri.score_centrality(AFFINE, size=50, rng=np.random.default_rng(4))
    assert one.message == ri.score_centrality(AFFINE, size=50, rng=4).message
    assert one.message != ri.score_centrality(AFFINE, size=50, rng=5).message


def test_the_constants_mean_what_they_say():
    assert 1.0 - math.exp(-4.0 * WEAK) > 0.98  # two errors either way: a factor above 50
    assert 0.0 < CENTRALITY_CUTOFF < 1.0


def test_errors_by_an_integrator_that_has_not_converged_are_said_to_be_worthless():
    """Twenty nodes of the prior do not resolve σ = 0.1: their standard error is far too small."""
    _, x = ri.example("tanh").simulate(200)
    model = ri.example("tanh").model
    rough = ri.standard_errors(model, x, ri.Quadrature(ri.gauss_hermite(20)))
    right = ri.standard_errors(model, x)
    assert not rough.converged
    assert rough.message.startswith("NOT to be trusted: log p(x) has not converged for")
    assert rough.log_sigma2 < 0.1 * right.log_sigma2
    assert right.converged
    assert "NOT" not in right.message
    central = ri.score_centrality(model, 200, integrator=ri.Quadrature(ri.gauss_hermite(20)))
    assert "has not converged for" in central.message


def test_no_square_of_the_number_of_observations():
    """The left singular vectors of 20 000 scores would take 3.2 GB if all were asked for."""
    tracemalloc.start()
    _directions_of_scores(np.random.default_rng(0).standard_normal((20_000, 3)))
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()
