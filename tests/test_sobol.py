"""Scrambled Sobol points: a rule with independent replicates, its error from their spread, and the tail
diagnostic of weights."""

import math

import numpy as np
import pytest
from scipy import special, stats

import refica as ri
from refica.likelihood import Nodes, Tile
from refica.rules import MAX_NODES, sobol
from refica.spread import Spread, pareto_shape, spread


def affine(sigma2=0.5):
    rng = np.random.default_rng(0)
    model = ri.NonlinearICA(ri.MLP((2, 2)), 0.7 * rng.standard_normal(6), sigma2=sigma2)
    return model, model.sample(4, rng)[1]


# -- the rule ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_nodes():
    t, log_w = sobol(512, seed=3).points(2)
    np.testing.assert_array_equal(sobol(512, seed=3).points(2)[0], t)
    assert not (sobol(512, seed=4).points(2)[0] == t).any()
    assert t.shape == (512, 2)
    np.testing.assert_array_equal(log_w, -math.log(512))


def test_points_do_not_touch_global_state():
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - it is the legacy state that is looked at
    sobol(64, seed=0).points(3)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("m", [1, 2, 5])
def test_each_replicate_is_balanced(m):
    """Of 2^k points of a part, one is in each of 2^k equal intervals of every axis; no two are alike."""
    rule = sobol(8 * 64, seed=1)
    parts = special.ndtr(rule.points(m)[0]).reshape(8, 64, m)
    for part in parts:
        cells = np.sort(np.floor(part * 64).astype(int), axis=0)
        np.testing.assert_array_equal(cells, np.broadcast_to(np.arange(64)[:, None], (64, m)))
    assert len({part.tobytes() for part in parts}) == 8


def test_no_node_is_infinite():
    t = sobol(2**17, seed=0, replicates=2).points(1)[0]
    assert np.isfinite(t).all()
    assert 4.0 < np.abs(t).max() < 6.5


def test_moments_are_far_better_than_monte_carlo_s():
    off = [
        max(abs(np.mean(t**p) - want) for p, want in ((1, 0.0), (2, 1.0), (4, 3.0)))
        for t in (sobol(4096, seed=s).points(1)[0] for s in range(5))
    ]
    assert np.median(off) < 0.03  # Monte Carlo: standard error of the fourth moment 0.15


@pytest.mark.parametrize(
    ("size", "replicates", "nearest"),
    [(1000, 8, "512 and 1024"), (96, 8, "64 and 128"), (100, 3, "96 and 192")],
)
def test_a_size_that_is_not_balanced_is_refused(size, replicates, nearest):
    with pytest.raises(ValueError, match=f"times a power of two.*got {size}.*{nearest}"):
        sobol(size, seed=0, replicates=replicates)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="replicates must be an integer >= 2, got 1"):
        sobol(64, seed=0, replicates=1)
    with pytest.raises(ValueError, match="size must be an integer >= 8, got 4"):
        sobol(4, seed=0)
    with pytest.raises(TypeError, match="seed"):
        sobol(64, seed=True)
    with pytest.raises(TypeError, match="size"):
        sobol(64.0, seed=0)
    with pytest.raises(ValueError, match="more than the limit"):
        sobol(4 * MAX_NODES, seed=0).count(1)


def test_it_is_a_rule_like_the_others():
    rule = sobol(64, seed=0)
    assert rule == sobol(64, seed=0)
    assert hash(rule) == hash(sobol(64, seed=0))
    assert (rule.replicates, rule.count(3), rule.companion(2), rule.coarse(2)) == (8, 64, None, None)
    assert not rule.spacing(2).any()
    assert not rule.edge(2).any()


# -- the error ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicates", [2, 8, 64, 512])
def test_the_half_width_is_student_s_for_the_means_of_the_parts(replicates):
    """For 512 replicates of one node each it is the delta method of Monte Carlo, Σ (K ρ - 1)² / K (K - 1)."""
    rng = np.random.default_rng(0)
    log_weights = rng.standard_normal((3, 512))
    rho = special.softmax(log_weights, axis=1)
    tile = Tile(slice(0, 3), np.zeros(3), rho, rho, np.zeros((512, 1)), np.zeros((512, 1)))
    found = Spread(*spread(tile, replicates).T)
    for i in range(3):
        means = np.exp(log_weights[i]).reshape(replicates, -1).mean(axis=1)
        low, high = stats.t(replicates - 1, means.mean(), stats.sem(means)).interval(0.95)
        assert found.half_width[i] == pytest.approx((high - low) / 2.0 / means.mean(), rel=1e-10)
        assert found.effective[i] == pytest.approx(1.0 / (rho[i] ** 2).sum(), rel=1e-12)


@pytest.fixture(scope="module")
def repeated():
    """An affine model, exact log p, and 250 estimates of it with errors, each with its own seed."""
    model, x = affine()
    exact = ri.log_likelihood(model, x, ri.ExactLinear()).per_observation
    found = [
        ri.log_likelihood(model, x, ri.Quadrature(sobol(256, seed)), gradient=False) for seed in range(250)
    ]
    assert all(result.converged.all() for result in found)
    return exact, np.stack([r.per_observation for r in found]), np.stack([r.error for r in found])


def test_intervals_cover_95_percent(repeated):
    exact, log_p, error = repeated
    covered = (np.abs(log_p - exact) <= error).mean()
    # 1000 trials, of which those with one seed are alike: a standard error of about 1 %
    assert 0.925 <= covered <= 0.98


def test_a_normal_quantile_would_cover_less(repeated):
    """8 replicates: t_7 = 2.36 where the normal quantile is 1.96, which covers some 91 % (mathematics 5)."""
    exact, log_p, error = repeated
    narrow = error * 1.96 / special.stdtrit(7.0, 0.975)
    assert (np.abs(log_p - exact) <= narrow).mean() <= (np.abs(log_p - exact) <= error).mean() - 0.02


def test_errors_fall_faster_than_monte_carlo_s():
    """A smooth integrand: from 1024 nodes to 16384 by far more than the factor 4 of independent draws."""
    model, x = affine(sigma2=2.0)
    small, large = (
        np.mean([ri.log_likelihood(model, x, ri.Quadrature(sobol(K, s))).error for s in range(5)])
        for K in (1024, 16384)
    )
    assert small / large > 8.0


def test_few_effective_nodes_are_flagged():
    model, _ = affine(sigma2=1e-5)
    result = ri.log_likelihood(model, model.sample(3, 0)[1], ri.Quadrature(sobol(1024, seed=0)))
    assert not result.converged.any()
    assert "effective nodes" in result.message


# -- the tail of the weights -------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-0.4, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_the_shape_of_a_generalised_pareto_tail(k):
    """Within sampling error, and the pull to ½ that the estimator has on purpose."""
    weights = 0.1 + stats.genpareto(k).rvs(size=(200, 4000), random_state=1)
    found = pareto_shape(weights)
    M = math.ceil(3.0 * math.sqrt(4000))
    pulled = (M * k + 5.0) / (M + 10.0)
    assert np.median(found) == pytest.approx(pulled, abs=0.05)
    assert found.std() < 2.0 * (1.0 + abs(k)) / math.sqrt(M)


def test_the_shape_depends_on_ratios_of_weights_only():
    weights = np.exp(np.random.default_rng(0).standard_normal((4, 1000)))
    np.testing.assert_allclose(pareto_shape(1e-9 * weights), pareto_shape(weights), rtol=1e-6)
    permuted = np.random.default_rng(1).permuted(weights, axis=1)
    np.testing.assert_allclose(pareto_shape(permuted), pareto_shape(weights), rtol=1e-12)


def test_weights_without_a_tail():
    assert (pareto_shape(np.full((2, 100), 0.01)) == -np.inf).all()
    assert np.isfinite(pareto_shape(np.repeat([np.arange(20.0)], 10, axis=1))).all()  # ties
    assert (pareto_shape(np.random.default_rng(0).random((2, 20))) == np.inf).all()  # too few to say


class TooNarrow:
    """A proposal with half the width that it should have: weights of infinite variance."""

    def __init__(self, mean, scale):
        self.mean, self.scale = mean, scale

    def gaussians(self, model, x):
        from refica.proposals import Gaussians

        N, m = self.mean.shape
        return Gaussians(np.zeros((N, 1)), self.mean[:, None], np.broadcast_to(self.scale, (N, 1, m, m)), {})


@pytest.mark.parametrize("rule", [ri.monte_carlo(2000, seed=0), sobol(2048, seed=0)], ids=repr)
def test_a_proposal_that_is_too_narrow_is_flagged(rule):
    model = ri.NonlinearICA(ri.MLP((1, 1)), [1.0, 0.0], sigma2=1.0)
    x = np.linspace(-2.0, 2.0, 20)[:, None]  # posterior N(x/2, 1/2)
    right = ri.log_likelihood(model, x, ri.Quadrature(rule, TooNarrow(x / 2.0, np.sqrt(0.5) * np.eye(1))))
    narrow = ri.log_likelihood(
        model, x, ri.Quadrature(rule, TooNarrow(x / 2.0, 0.5 * np.sqrt(0.5) * np.eye(1)))
    )
    assert right.converged.all()
    assert right.error.max() < 1e-12
    assert not narrow.converged.any()
    assert "heavy a tail" in narrow.message


def test_nodes_are_for_lebesgue_measure():
    model, x = affine()
    z, log_weight = Nodes(*ri.Quadrature(sobol(64, seed=0)).nodes(model, x))
    log_phi = stats.norm.logpdf(z).sum(axis=1)
    assert special.logsumexp(log_weight + log_phi) == pytest.approx(0.0, abs=1e-12)
