"""Rules: moments, weights, the order of a product's nodes, spacing, and the limit on their number."""

import math
import time
import tracemalloc

import checks
import numpy as np
import pytest
from digits import mpmath, needs_mpmath
from scipy import special

import refica as ri
from refica.rules import MAX_NODES


@pytest.mark.parametrize(
    ("order", "m"), [(1, 1), (2, 1), (5, 1), (20, 1), (64, 1), (3, 2), (7, 2), (4, 3), (3, 4)]
)
def test_gauss_hermite_is_exact_to_degree_2_order_minus_1(order, m):
    checks.check_rule(ri.gauss_hermite(order), m, min(2 * order - 1, 9), 1e-13)
    checks.check_product_order(ri.gauss_hermite(order), m)


@pytest.mark.parametrize("order", [2, 3, 5, 20])
def test_gauss_hermite_is_not_exact_beyond(order):
    """E T^(2 order) is missed by order! (the leading coefficient of the remainder)."""
    t, log_w = ri.gauss_hermite(order).points(1)
    missed = special.factorial2(2 * order - 1) - np.exp(log_w) @ t[:, 0] ** (2 * order)
    assert missed == pytest.approx(math.factorial(order), rel=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 10, 50, 100])
def test_gauss_hermite_against_scipy(order):
    t, log_w = ri.gauss_hermite(order).points(1)
    nodes, weights = special.roots_hermitenorm(order)
    np.testing.assert_allclose(t[:, 0], nodes, rtol=0.0, atol=1e-13)
    np.testing.assert_allclose(np.exp(log_w), weights / math.sqrt(2.0 * math.pi), rtol=1e-10)


@needs_mpmath
def test_gauss_hermite_weights_far_out_against_sixty_digits():
    """Order 400: the outermost weights are below the smallest float, their logs still have 10 digits."""
    order = 400
    t, log_w = ri.gauss_hermite(order).points(1)
    assert abs(np.exp(log_w).sum() - 1.0) <= 1e-12
    assert log_w.min() < -745.0
    with mpmath.workdps(60):
        for k in (0, 1, 7, 100, 200):
            # Newton's step of a root of the Hermite polynomial, then w = 1 / Σ_j he_j(t)²
            root = mpmath.mpf(float(t[k, 0]))
            for _ in range(4):
                values = _orthonormal_hermite(root, order)
                root -= values[order] / (mpmath.sqrt(order) * values[order - 1])
            assert abs(root - float(t[k, 0])) <= 1e-12
            want = -mpmath.log(sum(v * v for v in _orthonormal_hermite(root, order)[:order]))
            assert abs(want - float(log_w[k])) <= 1e-10 * abs(want)


def _orthonormal_hermite(t, order):
    values = [mpmath.mpf(1), t]
    for j in range(1, order):
        values.append((t * values[j] - mpmath.sqrt(j) * values[j - 1]) / mpmath.sqrt(j + 1))
    return values


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_uniform_grid_has_the_moments_of_the_prior(m):
    checks.check_rule(ri.uniform_grid(41, 9.0), m, 4, 1e-12)
    checks.check_product_order(ri.uniform_grid(5, 2.0), m)


@pytest.mark.parametrize(("points", "radius"), [(3, 1.0), (10, 5.5), (41, 8.0), (1001, 0.37)])
def test_the_step_of_the_grid_is_its_width_over_its_intervals(points, radius):
    """2 radius / (points - 1), and both ends are nodes (mathematics, section 4, item 8)."""
    rule = ri.uniform_grid(points, radius)
    t, log_w = rule.points(1)
    np.testing.assert_allclose(t[:, 0], np.linspace(-radius, radius, points), rtol=0.0, atol=1e-13 * radius)
    np.testing.assert_array_equal(t, -t[::-1])
    log_step = math.log(2.0 * radius / (points - 1))
    np.testing.assert_allclose(
        log_w, log_step - t[:, 0] ** 2 / 2.0 - 0.5 * math.log(2.0 * math.pi), rtol=1e-14
    )
    np.testing.assert_allclose(rule.spacing(1), 2.0 * radius / (points - 1), rtol=1e-15)


def test_coarse_nodes_are_the_grid_of_twice_the_step():
    for points in (5, 6, 9, 10):
        rule = ri.uniform_grid(points, 4.0)
        for m in (1, 2):
            t = rule.points(m)[0]
            axis = rule.points(1)[0][:, 0]
            kept = np.unique(t[rule.coarse(m)][:, 0])
            np.testing.assert_allclose(np.diff(kept), 2.0 * rule.step)
            assert len(t[rule.coarse(m)]) == len(kept) ** m
            assert axis[points // 2] in kept


def test_edges():
    rule = ri.uniform_grid(4, 1.0)
    t = rule.points(2)[0]
    np.testing.assert_array_equal(rule.edge(2), (np.abs(t) == 1.0).any(axis=1))
    assert ri.gauss_hermite(3).edge(2).sum() == 8
    assert not ri.monte_carlo(5, seed=0).edge(2).any()


def test_spacing_of_gauss_hermite_is_the_nearest_gap():
    rule = ri.gauss_hermite(5)
    t = rule.points(1)[0][:, 0]
    want = [min(abs(a - b) for b in t if a != b) for a in t]
    np.testing.assert_allclose(rule.spacing(1)[:, 0], want)


@pytest.mark.parametrize(("order", "m"), [(1, 1), (2, 1), (20, 1), (20, 2), (7, 3), (3, 8)])
def test_the_companion_is_another_rule_that_covers_as_much(order, m):
    rule = ri.gauss_hermite(order)
    other = rule.companion(m)
    assert type(other) is not type(rule)
    assert other.count(m) <= MAX_NODES
    if m <= 3:
        assert other.radius >= np.abs(rule.points(1)[0]).max()


def test_monte_carlo_repeats_and_weighs_by_one_over_K():
    rule = ri.monte_carlo(1000, seed=4)
    t, log_w = rule.points(3)
    np.testing.assert_array_equal(rule.points(3)[0], t)
    assert (ri.monte_carlo(1000, seed=5).points(3)[0] != t).all()
    assert np.exp(log_w).sum() == pytest.approx(1.0, abs=1e-13)
    assert (log_w == -math.log(1000.0)).all()
    checks.check_rule(ri.monte_carlo(100_000, seed=0), 2, 2, 0.02)


def test_rules_are_values():
    assert ri.gauss_hermite(5) == ri.gauss_hermite(5) != ri.gauss_hermite(6)
    assert len({ri.uniform_grid(5, 1.0), ri.uniform_grid(5, 1.0), ri.monte_carlo(5, 0)}) == 2
    with pytest.raises(AttributeError):
        ri.gauss_hermite(5).order = 6


@pytest.mark.parametrize(
    ("rule", "m", "count"),
    [
        (ri.uniform_grid(1000, 8.0), 4, "about 10^12"),
        (ri.uniform_grid(1000, 8.0), 200, "about 10^600"),
        (ri.gauss_hermite(64), 4, "16777216"),
        (ri.monte_carlo(10**9, seed=0), 1, "1000000000"),
    ],
    ids=repr,
)
def test_too_many_nodes_are_refused_before_anything_is_allocated(rule, m, count):
    decoder = ri.MLP((m, 2))
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2=0.1)
    began = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"would have .* nodes, more than the limit") as error:
            ri.log_likelihood(model, [[0.0, 0.0]], ri.Quadrature(rule))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - began < 1.0
    assert peak < 2**20
    assert count in str(error.value)
    assert str(MAX_NODES) in str(error.value)
    assert "monte_carlo" in str(error.value)  # an alternative
    assert "\n" not in str(error.value)


def test_just_below_the_limit_is_accepted():
    assert ri.uniform_grid(1024, 8.0).count(2) == MAX_NODES
    assert ri.gauss_hermite(32).count(4) == MAX_NODES
