"""Nodes of which each observation visits a few: the same sums as over all nodes, and never more."""

import checks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import decoders, examples

import refica as ri
from refica import marginal, neighbourhoods
from refica.fit.nodes import nodes_for_round
from refica.likelihood import Nodes
from refica.neighbourhoods import around_modes, near

EVERYTHING = 1e6
"""A depth in nats that leaves out no node."""

SAME = 1e-12
"""The same sums in another order; a gradient is a sum of terms that partly cancel."""


def a_case(m=2, n=3, N=60, sigma2=0.05, seed=0):
    decoder = ri.MLP((m, 6, n))
    model = ri.NonlinearICA(decoder, decoder.init(seed), sigma2)
    return model, model.sample(N, seed)[1]


def grid(model, x, points=40):
    return ri.Quadrature(ri.uniform_grid(points, 6.0)).nodes(model, x)


def check_same_sums(model, x, sparse, nodes, objective=ri.log_likelihood):
    """Value and gradient on the pairs listed are those on all nodes; what the pairs say is returned."""
    one = objective(model, x, sparse)
    other = objective(model, x, ri.FixedNodes(*nodes))
    scale = max(1.0, np.abs(other.per_observation).max())
    assert np.abs(one.per_observation - other.per_observation).max() <= SAME * scale
    assert checks.relative_error(one.gradient.theta, other.gradient.theta) <= SAME
    by_sigma2 = len(x) * scale * model.data_dim / model.sigma2  # of which what is left may be little
    assert abs(one.gradient.sigma2 - other.gradient.sigma2) <= SAME * by_sigma2
    return one


@examples(60)
@given(decoder=decoders(max_dim=2), seed=st.integers(0, 2**32 - 1), log_sigma2=st.floats(-7.0, 2.0))
def test_all_pairs_are_the_shared_nodes(decoder, seed, log_sigma2):
    rng = np.random.default_rng(seed)
    model = ri.NonlinearICA(decoder, decoder.init(rng), np.exp(log_sigma2))
    x = model.sample(5, rng)[1]
    nodes = grid(model, x, 9)
    everything = near(model, x, nodes, EVERYTHING)
    assert len(everything.node) == 5 * len(nodes.z)
    check_same_sums(model, x, everything, nodes)


@pytest.mark.parametrize("objective", [ri.log_likelihood, ri.density])
def test_value_and_gradient_of_both_objectives(objective):
    model, x = a_case()
    nodes = grid(model, x)
    check_same_sums(model, x, near(model, x, nodes, 60.0), nodes, objective)


def test_a_gradient_that_forgets_a_pair_is_noticed():
    """The planted fault: one pair of thousands points to the next node."""
    model, x = a_case()
    nodes = grid(model, x)
    good = near(model, x, nodes, 60.0)
    wrong = good.node.copy()
    largest = int(good.start[3]) + int(
        np.argmax(model.log_joint(x[3:4], good.z[wrong[good.start[3] : good.start[4]]]))
    )
    wrong[largest] = (wrong[largest] + 1) % len(good.z)
    with pytest.raises(AssertionError):
        check_same_sums(
            model, x, neighbourhoods.Neighbourhoods(good.z, wrong, good.log_weight, good.start), nodes
        )


def test_what_is_left_out_only_lowers():
    model, x = a_case(sigma2=0.01)
    nodes = grid(model, x)
    everything = ri.log_likelihood(model, x, ri.FixedNodes(*nodes)).per_observation
    before = np.full(len(x), -np.inf)
    for depth in (0.0, 3.0, 10.0, 30.0):
        some = near(model, x, nodes, depth)
        value = ri.log_likelihood(model, x, some).per_observation
        assert np.all(before <= value + 1e-13)
        assert np.all(value <= everything + 1e-13)
        before = value
    assert len(some.node) < 0.5 * len(x) * len(nodes.z)
    assert np.abs(before - everything).max() <= len(nodes.z) * np.exp(-30.0)


def test_far_from_the_origin_nothing_cancels():
    model, x = a_case(sigma2=1e-4)
    nodes = grid(model, x, 60)
    far = model.replace(theta=model.theta + 0.0)
    *_, (_, b) = model.decoder.unpack(theta := far.theta.copy())
    b += 1e4
    far, moved = model.replace(theta=theta), x + 1e4
    here, there = (
        ri.log_likelihood(each, data, near(each, data, nodes, 40.0))
        for each, data in ((model, x), (far, moved))
    )
    # u 1e4 in a residual of about σ = 0.01, of data that are rounded themselves
    assert checks.relative_error(there.gradient.theta, here.gradient.theta) <= 1e-8


def test_around_modes_leaves_out_absent_modes_only():
    decoder = ri.Polynomial(1, 1, 2)
    model = ri.NonlinearICA(decoder, [0.0, 0.0, 1.0], 0.01)  # z²: two modes for x > 0, one for x < 0
    x = np.array([[1.0], [-1.0], [2.0]])
    rule = ri.gauss_hermite(7)
    sparse = around_modes(model, x, rule)
    assert np.diff(sparse.start).tolist() == [14, 7, 14]
    check_same_sums(model, x, sparse, ri.Quadrature(rule, proposal="modes").nodes(model, x))


def test_as_an_integrator(monkeypatch):
    """Its nodes give the same; blocks change nothing; other data are refused."""
    model, x = a_case()
    sparse = near(model, x, grid(model, x), 30.0)
    one = check_same_sums(model, x, sparse, sparse.nodes(model, x))
    monkeypatch.setattr(marginal, "BLOCK", 7)
    blocks = ri.log_likelihood(model, x, sparse)
    assert np.abs(one.per_observation - blocks.per_observation).max() <= 1e-13
    assert checks.relative_error(blocks.gradient.theta, one.gradient.theta) <= SAME
    assert not one.converged.any()
    assert neighbourhoods.UNKNOWN in one.message
    assert len(str(sparse)) < 100
    with pytest.raises(ValueError, match="do not fit 59 observations"):
        ri.log_likelihood(model, x[1:], sparse)


def test_nodes_shared_by_none_need_no_decoder_twice():
    """Each node passes through the decoder once, however many observations visit it."""
    model, x = a_case()
    sparse = near(model, x, Nodes(*grid(model, x)), 30.0)
    assert len(sparse.z) == len(np.unique(sparse.node)) < len(sparse.node)


@pytest.mark.parametrize(
    ("m", "sigma2", "shared"), [(1, 0.01, True), (2, 0.05, True), (2, 1e-6, False), (3, 0.05, False)]
)
def test_nodes_for_a_round_of_a_fit(m, sigma2, shared):
    """A grid while one resolves σ, then nodes at the modes; near the reference where it can be trusted."""
    model, x = a_case(m, 3, 20, sigma2)
    nodes = nodes_for_round(model, x)
    assert (len(nodes.z) < len(nodes.node)) == shared
    if shared:
        mean = ri.log_likelihood(model, x, nodes).total / len(x)
        assert abs(mean - ri.log_likelihood(model, x, ri.Reference()).total / len(x)) <= 1e-2
