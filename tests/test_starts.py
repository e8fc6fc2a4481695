"""Where a fit starts, and how far its noise may fall."""

import math

import numpy as np
import pytest
from fitting import problem_of

import refica as ri
from refica.examples import example
from refica.fit import nodes as fit_nodes
from refica.fit import problem as fit_problem
from refica.fit import starts
from refica.fit.nodes import ORDER, nodes_for_round
from refica.fit.starts import LEAST_NOISE, _whitened_components, principal_start
from refica.marginal import choose_integrator


def share_told(z, of):
    """R² of a linear regression."""
    of = of - of.mean(axis=0)
    left = of - z @ np.linalg.lstsq(z, of, rcond=None)[0]
    return 1.0 - np.square(left).sum() / np.square(of).sum()


def test_random_features_find_latents_that_the_strongest_components_hide():
    """Quadratic surfaces: most variance is of squares and products, and latents are in what is weak."""
    truth = example("polynomial-2-4").model
    z, x = truth.sample(500, 1)
    strongest = _whitened_components(x, 2, np.random.default_rng(0), rotate=False)
    assert share_told(strongest, z) < 0.6
    for seed in range(3):
        mixed = _whitened_components(x, 2, np.random.default_rng(seed), rotate=True)
        assert mixed.shape == (500, 2)
        assert share_told(mixed, z) > 0.75
        np.testing.assert_allclose(mixed.T @ mixed / 500, np.eye(2), atol=1e-10)


@pytest.mark.parametrize(("N", "n", "m"), [(5, 3, 1), (5, 3, 2), (40, 2, 2), (40, 1, 3), (300, 5, 3)])
def test_any_number_of_components_can_be_mixed(N, n, m):
    x = np.random.default_rng(0).standard_normal((N, n))
    z = _whitened_components(x, m, np.random.default_rng(1), rotate=True)
    assert z.shape == (N, m)
    assert np.isfinite(z).all()


def test_where_latents_tell_the_data_exactly_a_start_has_noise_nevertheless():
    truth = example("polynomial-1-1").model
    x = truth.sample(200, 0)[1]
    start = principal_start(ri.MLP((1, 8, 1)), x, np.random.default_rng(0), rotate=False)
    assert start.sigma2 == pytest.approx(LEAST_NOISE * x.var())


def test_noise_that_gains_nothing_does_not_fall_where_n_is_m():
    """The rule in numbers: a slope -s promises s log 4 for a quarter of the noise."""
    x = np.random.default_rng(0).standard_normal((50, 2))
    decoder = ri.MLP((2, 3, 2))
    square = problem_of(ri.NonlinearICA(decoder, decoder.init(0), 0.1), x, tol=1e-3)
    just = fit_problem.WORTH * 1e-3 / math.log(4.0)
    here, most = math.log(0.1), math.log(2.0)
    assert square.lowest(here, -0.99 * just, most) == here
    assert square.lowest(here, -1.01 * just, most) == here - most
    assert square.lowest(math.log(1.5 * square.floor), -1.0, most) == math.log(square.floor)
    tall = problem_of(ri.NonlinearICA(ri.MLP((1, 3, 2)), np.zeros(14), 0.1), x, tol=1e-3)
    assert tall.lowest(here, 0.0, most) == here - most
    literal = problem_of(square.start, x, tol=1e-3, objective="density-sum")
    assert literal.lowest(here, 0.0, most) == here - most


@pytest.mark.parametrize("kept", [True, False])
def test_a_fit_with_as_many_latents_as_data_keeps_its_noise(kept, monkeypatch):
    """Without a start that has noise, and the rule, it falls for next to nothing, and far fresh data pay."""
    truth = example("polynomial-1-1").model
    x = truth.sample(500, 2)[1]
    if not kept:
        monkeypatch.setattr(fit_problem, "WORTH", 0.0)
        monkeypatch.setattr(starts, "LEAST_NOISE", 1e-8)
    start = principal_start(ri.MLP((1, 8, 1)), x, np.random.default_rng(0), rotate=False)
    fit = ri.fit_mle(start, x, n_starts=2)
    train = (fit.log_likelihood.total - ri.log_likelihood(truth, x, gradient=False).total) / len(x)
    assert train > -0.01
    assert (fit.model.sigma2 > 1e-3) == kept


@pytest.mark.parametrize("m", range(2, 9))
def test_the_value_at_the_end_comes_from_more_nodes_at_the_modes(m):
    """More than the optimiser has, where both go to the modes: with posteriors so narrow, and so many."""
    decoder = ri.MLP((m, 3, m + 1))
    model = ri.NonlinearICA(decoder, 3.0 * decoder.init(0), 1e-8)
    x = model.sample(1200, 0)[1]
    chosen = choose_integrator(model, x)[0]
    assert ORDER.get(m, 2) < chosen.rule.order


@pytest.mark.parametrize(("turned", "shared"), [(None, True), (1.0, False)])
def test_an_outlier_in_a_corner_does_not_turn_a_grid_down(turned, shared, monkeypatch):
    """The copy that a grid is compared with is turned: it must be wide enough for corners."""
    if turned:
        monkeypatch.setattr(fit_nodes, "TURNED", turned)
    truth = example("tanh-2-3").model
    x = truth.sample(60, 0)[1]
    x[0] = truth.decoder(truth.theta, np.array([[3.2, 3.2]]))[0]
    nodes = nodes_for_round(truth, x)
    assert (len(nodes.z) < len(nodes.node)) == shared
