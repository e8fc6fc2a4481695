"""log_likelihood, density, scores, posterior: blocks, executors, inputs, other people's integrators."""

import math
import multiprocessing
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import autograd_model
import checks
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases, examples

import refica as ri
from refica import likelihood, marginal


@pytest.fixture(scope="module")
def example():
    """A model with two latents, 300 observations, and integrators of every kind that the core has."""
    decoder = ri.MLP((2, 6, 3))
    rng = np.random.default_rng(0)
    model = ri.NonlinearICA(decoder, decoder.init(rng), sigma2=0.1)
    _, x = model.sample(300, rng)
    return model, x


def integrators(N):
    rng = np.random.default_rng(1)
    return {
        "gauss_hermite": ri.Quadrature(ri.gauss_hermite(12)),
        "uniform_grid": ri.Quadrature(ri.uniform_grid(15, 4.0)),
        "monte_carlo": ri.Quadrature(ri.monte_carlo(200, seed=0)),
        "fixed shared": ri.FixedNodes(rng.standard_normal((50, 2)), rng.standard_normal(50)),
        "fixed own": ri.FixedNodes(rng.standard_normal((N, 20, 2)), rng.standard_normal((N, 20))),
    }


NAMES = tuple(integrators(1))


def sizes(model, x, integrator):
    """Sizes of the summed contributions to the gradient, from each observation's own."""
    by = np.abs(ri.scores(model, x, integrator)).sum(axis=0)
    return by[:-1], by[-1]


def check_same(got, want, scale):
    """Up to the order of sums."""
    assert checks.relative_error(got.per_observation, want.per_observation, 1.0) <= checks.SAME_SUM
    size = np.abs(want.per_observation).sum()
    assert checks.relative_error(got.total, want.total, size) <= checks.SAME_SUM
    assert checks.relative_error(got.gradient.theta, want.gradient.theta, scale[0]) <= checks.SAME_SUM
    assert checks.relative_error(got.gradient.sigma2, want.gradient.sigma2, scale[1]) <= checks.SAME_SUM
    np.testing.assert_array_equal(got.converged, want.converged)


# -- what the results are ---------------------------------------------------------------------------


@examples(40)
@given(data=st.data())
def test_the_parts_of_a_result_belong_together(data):
    case = data.draw(cases())
    model, x, N = case.model, case.x, len(case.x)
    for nodes in (case.shared, case.own):
        result = ri.log_likelihood(model, x, nodes)
        assert result.per_observation.shape == result.error.shape == result.converged.shape == (N,)
        assert result.total == pytest.approx(result.per_observation.sum(), rel=1e-13, abs=1e-13)
        assert isinstance(result.total, float)
        assert isinstance(result.gradient.sigma2, float)
        assert result.gradient.theta.shape == (model.decoder.n_params,)
        assert np.isnan(result.error).all()  # fixed nodes say nothing of their error
        assert result.integrator is nodes
        without = ri.log_likelihood(model, x, nodes, gradient=False)
        assert without.gradient is None
        np.testing.assert_array_equal(without.per_observation, result.per_observation)


@examples(40)
@given(data=st.data())
def test_density_is_the_exponential(data):
    """Its gradient is Σ p(x_i) ∇ log p(x_i): the sum of densities that the documents write."""
    case = data.draw(cases())
    for nodes in (case.shared, case.own):
        log = ri.log_likelihood(case.model, case.x, nodes)
        literal = ri.density(case.model, case.x, nodes)
        p = np.exp(log.per_observation)
        np.testing.assert_allclose(literal.per_observation, p, rtol=1e-13)
        by_row = p[:, None] * ri.scores(case.model, case.x, nodes)
        size = np.abs(by_row).sum(axis=0)
        assert checks.relative_error(literal.gradient.theta, by_row.sum(axis=0)[:-1], size[:-1]) <= 1e-11
        assert checks.relative_error(literal.gradient.sigma2, by_row.sum(axis=0)[-1], size[-1]) <= 1e-11


@examples(40)
@given(data=st.data())
def test_scores_sum_to_the_gradient(data):
    case = data.draw(cases())
    for nodes in (case.shared, case.own):
        scores = ri.scores(case.model, case.x, nodes)
        assert scores.shape == (len(case.x), case.model.decoder.n_params + 1)
        total = ri.log_likelihood(case.model, case.x, nodes).gradient
        size = checks.contributions(case.model, case.x, nodes, density=False)
        assert checks.relative_error(scores[:, :-1].sum(axis=0), total.theta, size[0]) <= checks.AUTOGRAD
        assert checks.relative_error(scores[:, -1].sum(), total.sigma2, size[1]) <= checks.AUTOGRAD


def test_each_score_is_the_gradient_of_its_own_observation(example):
    model, x = example
    nodes = integrators(5)["fixed own"]
    scores = ri.scores(model, x[:5], nodes)
    for i in range(5):
        own = ri.FixedNodes(nodes.z[i : i + 1], nodes.log_weight[i : i + 1])
        want = autograd_model.objective_gradient(model, x[i : i + 1], own.z, own.log_weight, density=False)
        assert checks.relative_error(scores[i], np.append(*want)) <= 1e-11


def test_density_errors_are_those_of_p(example):
    model, x = example
    log = ri.log_likelihood(model, x, ri.Quadrature(ri.gauss_hermite(12)))
    literal = ri.density(model, x, ri.Quadrature(ri.gauss_hermite(12)))
    p = np.exp(log.per_observation)
    np.testing.assert_allclose(literal.error, p * np.expm1(log.error), rtol=1e-8)
    np.testing.assert_array_equal(literal.converged, log.converged)


@pytest.mark.parametrize("rule", [ri.gauss_hermite(20), ri.uniform_grid(20, 5.0)], ids=repr)
def test_a_density_below_the_smallest_float_is_zero_not_nan(rule):
    """log p is -1e6 and its error 1e5: neither 0 x inf nor a warning."""
    model, x = oracles.worked_example("tanh", 1e-4)
    result = ri.density(model, x + 30.0, ri.Quadrature(rule))
    assert result.total == 0.0
    assert not np.isnan(result.error).any()
    assert not result.converged.any()
    assert (result.gradient.theta == 0.0).all()


def test_the_sum_of_densities_has_no_maximum():
    """A constant decoder at one observation: Σ p >= (2πσ²)^(-n/2) (mathematics, section 2)."""
    x = np.random.default_rng(0).standard_normal((1000, 2))
    theta = np.concatenate([np.zeros(2), x[0]])
    for sigma2 in (1e-2, 1e-4, 1e-8):
        model = ri.NonlinearICA(ri.MLP((1, 2)), theta, sigma2)
        assert ri.density(model, x).total >= (1.0 - 1e-12) / (2.0 * math.pi * sigma2)


# -- row order, blocks, executors -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_row_order_changes_nothing(example, name):
    model, x = example
    integrator = integrators(len(x))[name]
    order = np.random.default_rng(2).permutation(len(x))
    moved = integrator
    if name == "fixed own":
        moved = ri.FixedNodes(integrator.z[order], integrator.log_weight[order])
    want, got = ri.log_likelihood(model, x, integrator), ri.log_likelihood(model, x[order], moved)
    assert checks.relative_error(got.per_observation, want.per_observation[order], 1.0) <= checks.SAME_SUM
    scale = sizes(model, x, integrator)
    assert checks.relative_error(got.gradient.theta, want.gradient.theta, scale[0]) <= checks.SAME_SUM
    assert checks.relative_error(got.gradient.sigma2, want.gradient.sigma2, scale[1]) <= checks.SAME_SUM
    mean = ri.posterior(model, x, integrator).mean
    assert checks.relative_error(ri.posterior(model, x[order], moved).mean, mean[order]) <= checks.SAME_SUM


@pytest.mark.parametrize(("tile", "block", "rows"), [(1, 5, 1), (2**10, 7, 3), (2**24, 10**6, 10**6)])
@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_tiles_and_blocks_changes_nothing(example, name, tile, block, rows, monkeypatch):
    model, x = example
    x = x[:40]
    integrator = integrators(len(x))[name]
    scale = sizes(model, x, integrator)
    want, post = ri.log_likelihood(model, x, integrator), ri.posterior(model, x, integrator)
    monkeypatch.setattr(likelihood, "TILE", tile)
    monkeypatch.setattr(likelihood, "DECODER_ROWS", rows)
    monkeypatch.setattr(marginal, "BLOCK", block)
    check_same(ri.log_likelihood(model, x, integrator), want, scale)
    again = ri.posterior(model, x, integrator)
    assert checks.relative_error(again.mean, post.mean) <= checks.SAME_SUM
    assert checks.relative_error(again.covariance, post.covariance) <= checks.SAME_SUM
    np.testing.assert_allclose(again.effective_nodes, post.effective_nodes, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_the_data_add_up(example, name):
    model, x = example
    integrator = integrators(len(x))[name]
    want = ri.log_likelihood(model, x, integrator)
    found, theta, sigma2 = [], 0.0, 0.0
    for rows in (slice(0, 1), slice(1, 100), slice(100, 300)):
        part = integrator.for_rows(rows) if name == "fixed own" else integrator
        result = ri.log_likelihood(model, x[rows], part)
        found.append(result.per_observation)
        theta, sigma2 = theta + result.gradient.theta, sigma2 + result.gradient.sigma2
    assert checks.relative_error(np.concatenate(found), want.per_observation, 1.0) <= checks.SAME_SUM
    scale = sizes(model, x, integrator)
    assert checks.relative_error(theta, want.gradient.theta, scale[0]) <= checks.SAME_SUM
    assert checks.relative_error(sigma2, want.gradient.sigma2, scale[1]) <= checks.SAME_SUM


def test_executors_give_the_same_bits(example, monkeypatch):
    model, x = example
    monkeypatch.setattr(marginal, "BLOCK", 32)
    chosen = [*integrators(len(x)).values(), None]
    want = [ri.log_likelihood(model, x[:64], _cut(integrator, 64)) for integrator in chosen]
    with (
        ThreadPoolExecutor(2) as threads,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes,
    ):
        for executor in (threads, processes):
            for integrator, expected in zip(chosen, want, strict=True):
                got = ri.log_likelihood(model, x[:64], _cut(integrator, 64), executor=executor)
                np.testing.assert_array_equal(got.per_observation, expected.per_observation)
                np.testing.assert_array_equal(got.error, expected.error)
                np.testing.assert_array_equal(got.gradient.theta, expected.gradient.theta)
                assert got.gradient.sigma2 == expected.gradient.sigma2
                assert got.message == expected.message
            literal = ri.density(model, x[:64], chosen[0], executor=executor)
            assert literal.total == ri.density(model, x[:64], chosen[0]).total


def _cut(integrator, N):
    return integrator.for_rows(slice(0, N)) if hasattr(integrator, "for_rows") else integrator


def test_nodes_of_their_own_for_more_observations_than_a_block():
    """Cut as the observations are, not refused and not shifted."""
    rng = np.random.default_rng(0)
    model, _ = oracles.worked_example("tanh", 0.1)
    N = marginal.BLOCK + 10
    x = model.sample(N, rng)[1]
    nodes = ri.FixedNodes(rng.standard_normal((N, 2, 1)), np.zeros((N, 2)))
    result = ri.log_likelihood(model, x, nodes)
    for i in (0, marginal.BLOCK - 1, marginal.BLOCK, N - 1):
        own = ri.FixedNodes(nodes.z[i], nodes.log_weight[i])
        alone = ri.log_likelihood(model, x[i : i + 1], own).total
        assert result.per_observation[i] == pytest.approx(alone, rel=1e-13)


def test_memory_stays_below_200_MB():
    """300 000 observations, 201 nodes: beyond the data and the results."""
    decoder = ri.MLP((1, 8, 2))
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2=0.1)
    _, x = model.sample(300_000, rng=0)
    tracemalloc.start()
    try:
        result = ri.log_likelihood(model, x, ri.Quadrature(ri.uniform_grid(201, 6.0)))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(result.per_observation) == 300_000
    assert kept <= 40e6  # the results: three arrays of 300 000
    assert peak - kept <= 200e6


# -- what goes in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.astype(np.float32),
        lambda a: a.tolist(),
        lambda a: [tuple(row) for row in a],
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.ma.array(a),
        lambda a: a.astype(">f8"),
        lambda a: a.astype(np.longdouble),
    ],
    ids=["float32", "list", "tuples", "fortran", "strided", "unmasked", "big-endian", "longdouble"],
)
def test_forms_of_data_that_are_accepted(example, change):
    model, x = example
    x = x[:20].astype(np.float32).astype(float)  # so that float32 holds it
    want = ri.log_likelihood(model, x, ri.Quadrature(ri.gauss_hermite(5)))
    got = ri.log_likelihood(model, change(x), ri.Quadrature(ri.gauss_hermite(5)))
    np.testing.assert_array_equal(got.per_observation, want.per_observation)
    np.testing.assert_array_equal(got.gradient.theta, want.gradient.theta)


def test_integers_are_accepted_and_nothing_is_written_to(example):
    model, _ = example
    x = np.arange(12).reshape(4, 3)
    theta = np.array(model.theta)
    nodes = [np.zeros((4, 5, 2)) + np.arange(5)[:, None], np.zeros((4, 5))]
    for array in (x, theta, *nodes):
        array.setflags(write=False)
    copies = [np.array(array) for array in (x, theta, *nodes)]
    model = ri.NonlinearICA(model.decoder, theta, sigma2=0.1)
    for integrator in (None, ri.FixedNodes(*nodes), ri.Quadrature(ri.uniform_grid(9, 3.0))):
        ri.log_likelihood(model, x, integrator)
        ri.density(model, x.astype(float), integrator)
        ri.scores(model, x, integrator)
        ri.posterior(model, x, integrator).sample(3, rng=0)
    model.log_joint(x, nodes[0])
    for array, copy in zip((x, theta, *nodes), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_one_observation_and_duplicates(example):
    model, x = example
    integrator = ri.Quadrature(ri.gauss_hermite(12))
    one = ri.log_likelihood(model, x[:1], integrator)
    many = ri.log_likelihood(model, np.repeat(x[:1], 7, axis=0), integrator)
    np.testing.assert_allclose(many.per_observation, one.total, rtol=1e-13)
    np.testing.assert_allclose(many.gradient.theta, 7.0 * one.gradient.theta, rtol=1e-11, atol=1e-11)


# -- other people's `evaluate` ------------------------------------------------------------------------


class Somebody:
    """An integrator that evaluates by itself and, as the documents ask, takes no coefficient."""

    def __init__(self, **changed):
        self.inner, self.changed = ri.Quadrature(ri.gauss_hermite(12)), changed

    def __repr__(self):
        return "Somebody"

    def nodes(self, model, x):
        return self.inner.nodes(model, x)

    def evaluate(self, model, x, gradient):
        return tuple(self.inner.evaluate(model, x, gradient)._replace(**self.changed))


def test_an_evaluate_without_coefficient_serves_for_densities_too(example):
    model, x = example
    x = x[:6]
    log, literal = ri.log_likelihood(model, x, Somebody()), ri.density(model, x, Somebody())
    want = ri.density(model, x, Somebody().inner)
    np.testing.assert_array_equal(log.error, ri.log_likelihood(model, x, Somebody().inner).error)
    np.testing.assert_array_equal(literal.per_observation, want.per_observation)
    np.testing.assert_array_equal(literal.error, want.error)
    np.testing.assert_array_equal(literal.converged, want.converged)
    np.testing.assert_allclose(literal.gradient.theta, want.gradient.theta, rtol=1e-10, atol=1e-14)
    assert literal.gradient.sigma2 == pytest.approx(want.gradient.sigma2, rel=1e-10)
    assert ri.density(model, x, Somebody(), gradient=False).total == literal.total


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"gradient": None}, TypeError, "was asked for a gradient and must return a pair.*got None"),
        ({"gradient": (np.zeros(2), 0.0)}, TypeError, r"theta of shape \(39,\)"),
        ({"gradient": (np.zeros(39), np.zeros(2))}, TypeError, "derivative in sigma2"),
        ({"log_p": np.zeros(3)}, ValueError, r"'log_p' of shape \(1,\), got \(3,\)"),
        ({"error": 0.0}, ValueError, r"'error' of shape \(1,\), got \(\)"),
        ({"problems": {"lost": [True, False]}}, ValueError, r"'lost' of shape \(1,\), got \(2,\)"),
    ],
)
def test_what_somebody_else_s_evaluate_returns_is_checked(example, changed, error, words):
    model, x = example
    for call in (ri.log_likelihood, ri.density, ri.scores):
        with pytest.raises(error, match=f"^Somebody.evaluate .*{words}"):
            call(model, x[:1], Somebody(**changed))


def test_an_evaluate_that_returns_something_else_is_refused(example):
    model, x = example
    integrator = Somebody()
    integrator.evaluate = lambda model, x, gradient: np.zeros(len(x))
    with pytest.raises(TypeError, match="must return \\(log_p, error, problems, gradient\\), got array"):
        ri.log_likelihood(model, x, integrator)


# -- densities above the largest float ----------------------------------------------------------------


def narrow(n=20):
    """p(x) is (2πσ²)^(-n/2) at its peak: 1e342 for n = 20."""
    return ri.NonlinearICA(ri.MLP((1, n)), np.zeros(2 * n), sigma2=1e-35)


@pytest.mark.parametrize("integrator", [None, ri.FixedNodes(np.zeros((1, 1)), np.zeros(1)), Somebody()])
def test_a_density_above_the_largest_float_is_infinite_and_said_so(integrator):
    model = narrow()
    x = np.array([np.zeros(20), np.full(20, 1e-18), np.full(20, 1.0)])
    result = ri.density(model, x, integrator)
    np.testing.assert_array_equal(result.per_observation, [np.inf, np.inf, 0.0])
    assert result.total == np.inf
    assert not result.converged[:2].any()
    assert "2 of 3 observations: p(x) is above the largest float; log_likelihood" in result.message
    assert np.isnan(result.gradient.theta).any()
    assert np.isnan(result.gradient.sigma2)
    assert np.isnan(ri.density(model, x, integrator, executor=ThreadPoolExecutor(1)).gradient.sigma2)
    assert "largest float" not in ri.log_likelihood(model, x, integrator).message
    assert "largest float" not in ri.density(model, x[2:], integrator).message


def test_a_sum_of_densities_above_the_largest_float_is_infinite():
    """Each of them below it."""
    model = ri.NonlinearICA(ri.MLP((1, 20)), np.zeros(40), sigma2=10.0**-31.55)
    result = ri.density(model, np.zeros((40, 20)))
    assert np.isfinite(result.per_observation).all()
    assert result.total == np.inf
    assert result.converged.all()
    assert result.gradient.sigma2 == -np.inf


# -- the choice of an integrator --------------------------------------------------------------------


def test_without_an_integrator_the_result_says_what_was_picked():
    model, x = oracles.worked_example("tanh", 0.1)
    result = ri.log_likelihood(model, x)
    assert result.converged.all()
    assert result.total == pytest.approx(oracles.DIGITS["tanh"][1], abs=1e-11)
    assert type(result.integrator).__name__ in result.message
    affine = ri.NonlinearICA(ri.MLP((3, 4)), np.ones(16), sigma2=0.1)
    chosen = ri.log_likelihood(affine, np.zeros((1, 4)))
    assert isinstance(chosen.integrator, ri.ExactLinear)
    assert "affine" in chosen.message
