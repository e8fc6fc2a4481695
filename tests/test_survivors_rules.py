"""Companions and copies of rules, what random ones say of themselves: untested until mutants showed it."""

import math

import numpy as np
import pytest

import refica as ri
from refica.rules import TURN


@pytest.mark.parametrize(("m", "radius"), [(1, 6.5), (2, 6.0), (3, 5.5)])
def test_the_companion_of_a_small_gauss_rule_is_a_grid_that_resolves_a_standard_normal(m, radius):
    grid = ri.gauss_hermite(3).companion(m)
    assert grid.radius == radius
    assert grid.step == pytest.approx({1: 13.0 / 34, 2: 12.0 / 20, 3: 1.1}[m])
    t, log_w = grid.points(m)
    w = np.exp(log_w)
    assert w.sum() == pytest.approx(1.0, abs=1e-6)
    assert w @ t[:, 0] ** 2 == pytest.approx(1.0, abs=1e-4)
    assert grid.count(m) >= ri.gauss_hermite(3).count(m)


def test_the_companion_of_a_large_gauss_rule_has_as_many_points_and_reaches_as_far():
    rule = ri.gauss_hermite(60)
    grid = rule.companion(1)
    assert grid.points_per_axis == 60
    assert grid.radius == rule.points(1)[0].max()


@pytest.mark.parametrize(("order", "m", "size"), [(3, 4, 2048), (7, 4, 4096), (4, 6, 8192)])
def test_in_more_than_three_dimensions_the_companion_is_sobols_with_at_least_as_many_points(order, m, size):
    companion = ri.gauss_hermite(order).companion(m)
    assert (companion.size, companion.replicates) == (size, 8)
    assert companion.size >= order**m
    assert companion.size // 8 >= 256


def test_copies_of_a_grid_are_a_third_of_a_step_aside():
    grid = ri.uniform_grid(9, 3.0)
    for copy in (1, 2):
        aside = grid.another(copy).points(1)[0] - grid.points(1)[0]
        np.testing.assert_allclose(aside, copy * grid.step / 3.0, rtol=1e-13)
        assert grid.another(copy).copy == copy


@pytest.mark.parametrize("m", [2, 3])
def test_copies_of_a_grid_are_turned_in_every_plane_of_two_consecutive_axes(m):
    grid = ri.uniform_grid(5, 4.0)
    plain, _ = grid.points(m)
    turned, _ = grid.another(1).points(m)
    Q, *_ = np.linalg.lstsq(plain + grid.step / 3.0, turned, rcond=None)
    cos, sin = math.cos(TURN), math.sin(TURN)
    first = np.eye(m)
    first[:2, :2] = [[cos, -sin], [sin, cos]]
    second = np.eye(m)
    if m == 3:
        second[1:, 1:] = [[cos, -sin], [sin, cos]]
    np.testing.assert_allclose(Q, first @ second, atol=1e-13)


@pytest.mark.parametrize("rule", [ri.monte_carlo(8, seed=0), ri.sobol(16, seed=0)])
def test_random_rules_have_neither_spacing_nor_border(rule):
    K = rule.count(2)
    np.testing.assert_array_equal(rule.spacing(2), np.zeros((K, 2)))
    np.testing.assert_array_equal(rule.edge(2), np.zeros(K, dtype=bool))
    assert rule.coarse(2) is None
    assert rule.companion(2) is None


def test_faces_of_a_grid_are_its_ends_along_each_axis_and_the_next_layers_are_one_step_in():
    grid = ri.uniform_grid(5, 2.0)
    t, _ = grid.points(2)
    want = np.column_stack([t == -2.0, t == 2.0, t == -1.0, t == 1.0])
    np.testing.assert_array_equal(grid.faces(2), want)


def test_the_largest_companion_has_as_many_points_as_nodes_can_be_had():
    assert ri.gauss_hermite(1024).companion(2).points_per_axis == 1024
