"""Parts of the ledger of gaps and of the search in it, one by one: untested until mutants showed it."""

import numpy as np
import pytest

import refica as ri
from refica.likelihood import rounding_error
from refica.vae import evidence, ledger, optimal
from refica.vae.draws import kl_to_prior

THETA = [1.5, -2.0, 0.7, 0.3, 0.1, -0.5, 1.0, -0.5, 0.8, 0.4, 1.2, -0.9, 0.1, -0.2]
NET = ri.NonlinearICA(ri.MLP((1, 3, 2)), THETA, sigma2=0.1)
X = np.array([[0.5, -0.25], [1.3, 0.4]])
MU, LOG_S2 = np.array([[0.2], [0.5]]), np.array([[-1.0], [-2.0]])


def test_the_reference_is_the_yardstick_of_decoders_that_it_knows_and_can_afford():
    wide = ri.MLP((5, 3))
    assert isinstance(ledger._yardstick(NET), ri.Reference)
    assert isinstance(ledger._yardstick(ri.NonlinearICA(wide, wide.init(0), 1.0)), ri.Reference)
    cube = ri.MLP((3, 4, 3))
    assert isinstance(ledger._yardstick(ri.NonlinearICA(cube, cube.init(0), 1.0)), ri.Reference)
    deep = ri.MLP((4, 4, 3))
    assert ledger._yardstick(ri.NonlinearICA(deep, deep.init(0), 1.0)) is None


@pytest.mark.parametrize(
    ("nodes", "m", "order"), [(1500, 4, 6), (10_000, 4, 10), (1500, 5, 4), (3, 5, 2), (10, 1, 10)]
)
def test_a_product_rule_has_the_largest_order_whose_nodes_can_be_had(nodes, m, order):
    assert ledger._order(nodes, m) == order


def test_an_integral_that_is_not_fine_goes_on_with_finer_rules_and_one_that_is_stops():
    coarse, fine, finest = (ri.uniform_grid(points, evidence.RADIUS) for points in (5, 57, 225))
    arguments = NET, X, MU, LOG_S2
    value, error = ledger._expected_with_error(*arguments, [coarse, fine, finest], evidence.log_likelihood_at)
    rough, off = ledger._expected_with_error(*arguments, [coarse], evidence.log_likelihood_at)
    good, _ = ledger._expected_with_error(*arguments, [fine], evidence.log_likelihood_at)
    np.testing.assert_array_equal(value, good)
    assert (np.abs(rough - good) > 1e-6).all()
    assert (off > 1e-6).all()
    assert (error <= 1e-10).all()


@pytest.mark.parametrize(("promised", "searches"), [(0.0, 2), (1.0, 3)])
def test_a_search_that_has_not_settled_goes_on_with_a_finer_rule(promised, searches, monkeypatch):
    orders = []

    def maximise(model, x, mu, log_s2, rule):
        orders.append(rule.count(1))
        found = optimal.maximise_elbo(model, x, mu, log_s2, rule)
        return found._replace(promised=np.full(len(x), promised))

    monkeypatch.setattr(ledger, "maximise_elbo", maximise)
    ledger._best_end(NET, X, MU, LOG_S2, ledger._rules(1))
    assert len(orders) == searches
    assert orders == sorted(orders)


def test_a_step_is_halved_until_the_elbo_rises_enough():
    nodes = evidence.nodes_of(ri.gauss_hermite(20), 1)
    u = np.column_stack([MU, 0.5 * LOG_S2])
    here = optimal._expand(NET, X, u, nodes)
    step = here.gradient * 0.9
    decrement = np.einsum("ri,ri->r", here.gradient, step)
    length = optimal._line_search(NET, X, u, here.value, step, decrement, nodes)
    assert (length > 0.0).all()
    rise = optimal._elbo(NET, X, u + length[:, None] * step, nodes) - here.value
    assert (rise >= optimal.SUFFICIENT * length * decrement).all()
    twice = optimal._elbo(NET, X, u + 2.0 * length[:, None] * step, nodes) - here.value
    longest = np.minimum(1.0, optimal.LONGEST / np.maximum(np.abs(step).max(axis=1), optimal.LONGEST))
    assert (length < longest).any()  # the example does need halving
    assert ((length == longest) | (twice < 2.0 * optimal.SUFFICIENT * length * decrement)).all()
    away = optimal._line_search(NET, X, u, here.value, -step, decrement, nodes)
    assert (away == 0.0).all()  # downhill: none does


def test_a_step_that_promises_less_than_rounding_is_taken_on_trust():
    nodes = evidence.nodes_of(ri.gauss_hermite(20), 1)
    u, step = np.column_stack([MU, 0.5 * LOG_S2]), np.full((2, 2), 1e-8)
    high = np.array([1e6, 1.0])  # as if the ELBO were so much: no step rises from there
    for promise, trusted in ((1e-9, [True, False]), (1e-15, [True, True]), (1e-6, [False, False])):
        length = optimal._line_search(NET, X, u, high, step, np.full(2, promise), nodes)
        assert length.tolist() == np.where(trusted, 1.0, 0.0).tolist()


def test_the_error_of_a_gauss_rule_in_many_dimensions_is_its_distance_to_another():
    decoder = ri.MLP((4, 2, 1))
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2=0.5)
    x, mu, log_s2 = np.ones((2, 1)), np.full((2, 4), 0.3), np.full((2, 4), -1.0)
    rule = ri.gauss_hermite(4)
    found, other = (
        evidence.expected(model, x, mu, log_s2, ri.gauss_hermite(order)) for order in (4, 4 + 4 // 4 + 1)
    )
    rounding = rounding_error(x, 0.5, found - kl_to_prior(mu, log_s2))
    error = evidence._quadrature_error(model, x, mu, log_s2, rule, found)
    np.testing.assert_allclose(error, np.abs(found - other) + rounding, rtol=1e-12)


def test_the_error_of_a_gauss_rule_on_a_line_is_its_distance_to_a_grid_and_that_ones_own():
    rule = ri.gauss_hermite(3)
    found = evidence.expected(NET, X, MU, LOG_S2, rule)
    rounding = rounding_error(X, 0.1, found - kl_to_prior(MU, LOG_S2))
    grid = ri.uniform_grid(evidence.POINTS[1][0], evidence.RADIUS)
    value, own = evidence.expected_by_copies(NET, X, MU, LOG_S2, grid, evidence.log_likelihood_at)
    assert (own < np.abs(found - value)).all()
    error = evidence._quadrature_error(NET, X, MU, LOG_S2, rule, found)
    np.testing.assert_allclose(error, np.abs(found - value) + own + rounding, rtol=1e-9)
