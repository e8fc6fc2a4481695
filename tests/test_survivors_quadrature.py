"""The error that `Quadrature` reports, term by term as described: untested until mutants showed it."""

import math

import numpy as np
import pytest
from scipy import special

import refica as ri
from refica import quadrature
from refica.lattices import Apart
from refica.likelihood import evaluate, rounding_error
from refica.proposals import PROPOSALS, defended, place_at_random

THETA = [1.5, -2.0, 0.7, 0.3, 0.1, -0.5, 1.0, -0.5, 0.8, 0.4, 1.2, -0.9, 0.1, -0.2]
NET = ri.NonlinearICA(ri.MLP((1, 3, 2)), THETA, sigma2=0.1)
X = np.array([[0.5, -0.25], [1.3, 0.4], [-0.2, 0.9]])


def on_the_prior(model, x, t, log_w, statistic):
    """log p (N,) and posterior means of a statistic of the nodes, from the definitions."""
    found = (
        model.log_joint(x, t) + log_w + 0.5 * (t**2).sum(axis=1) + 0.5 * t.shape[1] * math.log(2.0 * np.pi)
    )
    log_p = special.logsumexp(found, axis=1)
    return log_p, np.exp(found - log_p[:, None]) @ statistic


def tails(shares, limit):
    """Three times the geometric series that the shares of the last two layers begin, at each face."""
    total = np.zeros(len(shares))
    for outer, inner in zip(*np.split(shares.T, 2), strict=True):
        for i in range(len(total)):
            layers = outer[i] / (inner[i] - outer[i]) if inner[i] > outer[i] > 0 else limit
            total[i] += 3.0 * outer[i] * min(layers, limit)
    return total


def on_copies(model, x, grid, copies):
    pairs = [
        on_the_prior(model, x, *grid.another(j).points(model.latent_dim), grid.faces(model.latent_dim) * 1.0)
        for j in copies
    ]
    return np.array([p for p, _ in pairs]), np.max([tails(s, 1.0 / grid.step) for _, s in pairs], axis=0)


@pytest.mark.parametrize("order", [5, 9])
def test_the_error_of_a_gauss_rule_is_its_distance_to_copies_of_a_grid_and_their_range(order):
    rule = ri.gauss_hermite(order)
    log_p, _ = on_the_prior(NET, X, *rule.points(1), np.zeros((order, 1)))
    each, beyond = on_copies(NET, X, rule.companion(1), (0, 1, 2))
    mean = np.log(np.exp(each).mean(axis=0))
    want = np.abs(log_p - mean) + quadrature.MARGIN * (each.max(axis=0) - each.min(axis=0)) / 2.0 + beyond
    found = ri.log_likelihood(NET, X, ri.Quadrature(rule))
    np.testing.assert_allclose(found.per_observation, log_p, rtol=1e-12)
    np.testing.assert_allclose(found.error, want + rounding_error(X, 0.1, log_p), rtol=1e-9)


@pytest.mark.parametrize(("points", "radius"), [(9, 4.0), (15, 5.0), (31, 3.0), (12, 6.0)])
def test_the_error_of_a_grid_is_its_distance_to_copies_or_to_its_half_and_what_lies_outside(points, radius):
    grid = ri.uniform_grid(points, radius)
    watched = np.column_stack([grid.edge(1), grid.coarse(1)]) * 1.0
    log_p, means = on_the_prior(NET, X, *grid.points(1), watched)
    edge, coarse = means.T
    others, _ = on_copies(NET, X, grid, (1, 2))
    halving = np.abs(math.log(2.0) + np.log(coarse))
    error = np.maximum(quadrature.MARGIN * np.abs(others - log_p).max(axis=0), halving) + edge / grid.step
    # all the mass beyond, times the greatest value that N(x; g, σ² I) has anywhere
    greatest = 2.0 * special.ndtr(-radius) / (2.0 * math.pi * NET.sigma2)
    error += np.log1p(greatest / np.exp(log_p))
    found = ri.log_likelihood(NET, X, ri.Quadrature(grid))
    np.testing.assert_allclose(found.error, error + rounding_error(X, 0.1, log_p), rtol=1e-9)


def test_what_lies_beyond_a_border_is_a_series_that_does_not_go_on_for_ever():
    shares = np.array([[0.1, 0.2, 0.4, 0.2], [0.0, 0.3, 0.0, 0.1], [0.1, 0.1, 0.11, 0.4]])
    for limit in (1.0, 4.0, 100.0):
        want = tails(shares, limit)
        np.testing.assert_allclose(quadrature._tails(shares, limit), want, rtol=1e-12)
    limits = np.array([1.0, 4.0, 100.0])
    want = [tails(shares[i : i + 1], limit)[0] for i, limit in enumerate(limits)]
    np.testing.assert_allclose(quadrature._tails(shares, limits), want, rtol=1e-12)


def test_a_tail_reaches_as_far_as_the_narrowest_component_is_narrower_than_the_prior():
    q = PROPOSALS["laplace"].gaussians(NET, X)
    narrowest = np.array([np.diagonal(L, axis1=1, axis2=2).min() for L in q.scale])
    np.testing.assert_allclose(quadrature._stretch(q), np.maximum(1.0 / narrowest, 1.0), rtol=1e-13)
    assert quadrature._stretch(None) == 1.0


@pytest.mark.parametrize("rule", [ri.sobol(64, seed=0), ri.monte_carlo(32, seed=1)])
def test_random_rules_sample_a_defensive_mixture_on_named_proposals_and_what_a_users_says_on_others(rule):
    q = PROPOSALS["laplace"].gaussians(NET, X)

    class Mine:
        def gaussians(self, model, x):
            return q

    for proposal, mixture in (("laplace", defended(q)), (Mine(), q)):
        want = place_at_random(rule, mixture)
        z, log_weight = ri.Quadrature(rule, proposal).nodes(NET, X)
        np.testing.assert_array_equal(z, want.z)
        np.testing.assert_array_equal(log_weight, want.log_weight)


@pytest.mark.parametrize(("n", "slope"), [(1, 2.0), (2, 0.5)])
def test_nodes_are_coarse_if_the_decoder_moves_by_more_than_sigma_between_them(n, slope):
    """A line of known slope on a grid of known step."""
    grid = ri.uniform_grid(41, 5.0)
    move = slope * grid.step * math.sqrt(n)
    for sigma, coarse in ((0.9 * move, True), (1.1 * move, False)):
        model = ri.NonlinearICA(ri.MLP((1, n)), [slope] * n + [0.0] * n, sigma**2)
        found = ri.log_likelihood(model, np.zeros((1, n)), ri.Quadrature(grid))
        assert (quadrature.COARSE in found.message) == coarse


@pytest.mark.parametrize(("shape", "rows"), [((3, 4, 2), 3), ((2, 4, 1), 3), ((4, 2), 3)])
def test_fixed_nodes_fit_neither_another_dimension_nor_other_observations(shape, rows):
    nodes = ri.FixedNodes(np.zeros(shape), np.zeros(shape[:-1]))
    with pytest.raises(ValueError, match="do not fit 3 observations and latent_dim 1"):
        nodes.nodes(NET, X[:rows])
    with pytest.raises(ValueError, match="do not fit 3 observations and latent_dim 1"):
        ri.log_likelihood(NET, X[:rows], nodes)


def test_nodes_of_an_observation_are_counted_with_those_of_the_companion():
    rule = ri.gauss_hermite(3)
    most = max(3, rule.companion(1).count(1))
    assert ri.Quadrature(rule).nodes_per_observation(1) == 1
    assert ri.Quadrature(rule, "laplace").nodes_per_observation(1) == most
    assert ri.Quadrature(rule, "modes").nodes_per_observation(1) == most * quadrature.MANY_COMPONENTS
    draws = ri.monte_carlo(50, seed=0)
    assert ri.Quadrature(draws, "laplace").nodes_per_observation(1) == 50
    assert ri.Quadrature(draws, "modes").nodes_per_observation(1) == 50


def test_the_statistic_of_a_mixtures_nodes_is_repeated_for_each_component():
    """g(z) = z² at x = 1 has two modes: the posterior mean of 1 at the border is counted for both."""
    square = ri.NonlinearICA(ri.Polynomial(1, 1, 2), [0.0, 0.0, 1.0], 0.1)
    grid = ri.uniform_grid(9, 2.0)
    setting = ri.Quadrature(grid, "modes")._setting(square, np.ones((1, 1)))
    nodes = setting.nodes(grid)
    assert nodes.z.shape[1] == 2 * 9
    edge = np.tile(grid.edge(1) * 1.0, 2)[:, None]
    model, x = square, np.ones((1, 1))
    want = evaluate(model.decoder, model.theta, 0.1, x, nodes, statistic=lambda tile: tile.rho @ edge)
    found = setting.evaluate(grid, grid.edge(1)[:, None] * 1.0)
    np.testing.assert_allclose(found.means, want.means, rtol=1e-13)


class Undefended:
    def gaussians(self, model, x):
        return PROPOSALS["laplace"].gaussians(model, x)


@pytest.mark.parametrize("proposal", ["laplace", Undefended()])
@pytest.mark.parametrize("rule", [ri.sobol(256, seed=0), ri.monte_carlo(200, seed=1)])
def test_the_error_of_a_random_rule_is_its_interval_and_what_it_may_not_have_seen(rule, proposal):
    """And of balanced replicates, on a mixture that is not defended, the largest share of a node."""
    integrator = ri.Quadrature(rule, proposal)
    setting = integrator._setting(NET, X)
    result = setting.evaluate(rule, quadrature._watched(rule, setting))
    half_width, _, shape, largest = result.means.T
    want = half_width + rounding_error(X, 0.1, result.log_p)
    if rule.replicates == 8 and proposal != "laplace":
        assert (shape > -np.inf).all()
        want = want + largest
    unseen = np.exp(quadrature._unseen(rule, setting) - result.log_p)
    want = want + np.log1p(quadrature.UNSEEN * unseen)
    found = ri.log_likelihood(NET, X, integrator)
    np.testing.assert_allclose(found.error, want, rtol=1e-9)


def test_a_mode_that_no_node_covers_is_added_to_the_error():
    """g(z) = z² at x = 1: the mode on the other side holds half of the mass."""
    square = ri.NonlinearICA(ri.Polynomial(1, 1, 2), [0.0, 0.0, 1.0], 0.01)
    x = np.ones((1, 1))
    integrator = ri.Quadrature(ri.gauss_hermite(9), "laplace")
    q = PROPOSALS["laplace"].gaussians(square, x)
    found = ri.log_likelihood(square, x, integrator)
    missed = np.log1p(quadrature.UNSEEN * np.exp(q.uncovered - found.per_observation))
    assert missed[0] > 1.0
    assert missed[0] <= found.error[0] <= missed[0] + 0.1
    assert quadrature.MISSED in found.message


def test_mass_apart_counts_as_unseen_unless_a_defensive_mixture_draws_enough_there():
    q = PROPOSALS["laplace"].gaussians(NET, X)
    rule = ri.monte_carlo(1000, seed=0)
    expected = np.log(quadrature.RULE_OF_THREE / (quadrature.PRIOR_SHARE * 1000))  # so many draws, on average
    prior = np.array([expected - 0.1, expected + 0.1, -np.inf])
    seen = Apart(np.array([-1.0, -1.0, -np.inf]), prior)
    uncovered = np.full(3, -5.0)
    both = np.logaddexp(-5.0, -1.0)
    for of, defend, want in (
        (rule, True, [both, -5.0, -5.0]),
        (rule, False, [both, both, -5.0]),
        (ri.gauss_hermite(5), True, [both, both, -5.0]),
    ):
        setting = quadrature._Setting(NET, X, q._replace(uncovered=uncovered, apart=seen), defend)
        np.testing.assert_allclose(quadrature._unseen(of, setting), want, rtol=1e-12)
    none = quadrature._Setting(NET, X, q._replace(uncovered=uncovered, apart=None), True)
    np.testing.assert_array_equal(quadrature._unseen(rule, none), uncovered)


def test_the_travel_of_a_decoder_is_along_the_worst_axis_alone():
    model = ri.NonlinearICA(ri.MLP((2, 2)), [3.0, 1.0, 4.0, -1.0, 0.0, 0.0], 1.0)
    spacing = np.array([[1.0, 1.0], [0.1, 5.0], [np.inf, 2.0]])
    want = [5.0, 5.0 * np.sqrt(2.0), 2.0 * np.sqrt(2.0)]
    np.testing.assert_allclose(quadrature._travel(spacing, model, np.zeros((3, 2))), want, rtol=1e-13)


@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_what_lies_beyond_the_copies_of_a_grid_is_the_most_of_any_of_them(radius):
    grid = ri.uniform_grid(9, radius)
    setting = ri.Quadrature(grid)._setting(NET, X)
    each, beyond = quadrature._on_copies(grid, setting, (0, 1, 2))
    want, most = on_copies(NET, X, grid, (0, 1, 2))
    np.testing.assert_allclose(each, want, rtol=1e-12)
    np.testing.assert_allclose(beyond, most, rtol=1e-9)


def test_what_lies_beyond_the_companion_is_part_of_the_error_of_a_gauss_rule(monkeypatch):
    rule = ri.gauss_hermite(9)
    error = ri.log_likelihood(NET, X, ri.Quadrature(rule)).error
    real = quadrature._on_copies
    monkeypatch.setattr(quadrature, "_on_copies", lambda *a: (real(*a)[0], real(*a)[1] + 0.25))
    np.testing.assert_allclose(ri.log_likelihood(NET, X, ri.Quadrature(rule)).error, error + 0.25, rtol=1e-12)


def test_equal_weights_have_no_tail():
    """Nodes of the posterior itself: every one says the same, and there is nothing to add."""
    model = ri.NonlinearICA(ri.MLP((1, 2)), [1.0, -0.5, 0.0, 0.2], sigma2=0.1)
    found = ri.log_likelihood(model, X, ri.Quadrature(ri.sobol(64, seed=0), ri.ExactLinear()))
    np.testing.assert_allclose(found.per_observation, ri.log_likelihood(model, X).per_observation, rtol=1e-12)
    assert (found.error < 1e-6).all()
