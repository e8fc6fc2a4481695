"""Pieces of the reference integrator, one by one: untested until mutants showed it."""

import numpy as np
import pytest

import refica as ri
from refica.likelihood import Nodes
from refica.reference import cells, grid, integrator, panels, patches
from refica.reference.lines import lines_of
from refica.reference.panels import Panels

RNG = 7


@pytest.mark.parametrize("activation", ["gelu", "sigmoid", "tanh", ri.leaky_relu(4.0), ri.leaky_relu(-2.0)])
@pytest.mark.parametrize("m", [1, 2])
def test_a_decoder_strays_from_its_line_by_no_more_than_the_bound(activation, m):
    """Also where activations are steeper than 1, so that the error of a layer grows in the next."""
    rng = np.random.default_rng(RNG)
    decoder = ri.MLP((m, 4, 4, 2), activation)
    for _ in range(30):
        model = ri.NonlinearICA(decoder, 0.7 * decoder.init(rng), 1.0)
        c, G = rng.standard_normal((1, m)), 0.4 * np.abs(rng.standard_normal()) * np.eye(m)[None]
        line = lines_of(model)(c, G)
        s = rng.uniform(-1.0, 1.0, (400, m))
        off = decoder(model.theta, c + s @ G[0].T) - (line.g + s @ line.J[0])
        assert (np.abs(off) <= line.error * (1.0 + 1e-12) + 1e-12).all()


def test_a_leaky_relu_of_slope_one_has_no_kink():
    for slope, kinked in ((1.0, False), (0.5, True)):
        model = ri.NonlinearICA(ri.MLP((1, 1, 1), ri.leaky_relu(slope)), [1.0, 0.0, 1.0, 0.0], 1.0)
        line = lines_of(model)(np.zeros((1, 1)), np.ones((1, 1, 1)))
        assert line.kinked.tolist() == [kinked]
        assert line.error.max() == (0.0 if not kinked else pytest.approx(0.25))


def test_the_points_of_a_box_are_the_integers_from_low_to_below_high():
    low, high = (
        np.array([[0.5, -1.0], [0.0, 2.0], [-0.2, 0.1]]),
        np.array([[3.2, 1.0], [2.0, 2.5], [0.3, 0.9]]),
    )
    boxes = cells.Boxes(np.zeros(3, dtype=int), low, high)
    integers = np.arange(-5, 6)
    want = [
        np.prod([((a <= integers) & (integers < b)).sum() for a, b in zip(one, other, strict=True)])
        for one, other in zip(low, high, strict=True)
    ]
    assert boxes.points.tolist() == want


def test_the_roughness_of_a_kinked_cell_is_what_straying_does_to_the_exponent():
    """|‖q + ε‖² - ‖q‖²|/2 <= ‖q‖ ‖ε‖ + ‖ε‖²/2 with ‖q‖² = 2F."""
    nothing = np.zeros((2, 1))
    found = cells.Bounds(
        nothing,
        np.array([2.0, 2.0]),
        nothing[:, 0],
        nothing[:, 0],
        nothing,
        nothing[:, :, None],
        np.array([0.5, 0.5]),
        np.array([True, False]),
    )
    assert found.roughness.tolist() == [0.5 * (2.0 + 0.25), 0.0]


def test_two_precisions_are_joined_to_the_least_above_both():
    rng = np.random.default_rng(RNG)
    A = np.array([np.diag([1.0, 4.0]), np.eye(2)])
    B = np.array([np.diag([3.0, 2.0]), np.diag([0.5, 9.0])])
    np.testing.assert_allclose(patches._join(A, B), [np.diag([3.0, 4.0]), np.diag([1.0, 9.0])], atol=1e-13)
    for _ in range(20):
        A, B = ((L @ L.T + 0.1 * np.eye(3))[None] for L in rng.standard_normal((2, 3, 3)))
        joined = patches._join(A, B)
        least = [np.linalg.eigvalsh(joined - one).min() / np.abs(joined).max() for one in (A, B)]
        assert -1e-10 <= min(least) <= 1e-8  # above both, and no further than needed


def test_the_box_of_the_prior_lies_around_the_origin_and_leaves_no_more_outside_than_it_says():
    step = np.array([[[0.5, 0.2], [-0.1, 0.4]]])
    lattices = cells.Lattices(np.zeros(1, dtype=int), np.array([[2.0, -3.0]]), step, np.zeros((1, 0, 2)))
    for log_least in (-10.0, -40.0):
        boxes = patches.prior_boxes(lattices, np.array([log_least]))
        np.testing.assert_allclose(boxes.placed(lattices)[0], np.zeros((1, 2)), atol=1e-12)
        # the nearest side is at the distance R, and outside of that are 2π exp(-R²/2)
        G = boxes.placed(lattices)[1][0]
        R = 1.0 / np.linalg.norm(np.linalg.inv(G), axis=1)
        np.testing.assert_array_less(np.log(2.0 * np.pi) - 0.5 * R**2, log_least)
        assert (np.log(2.0 * np.pi) - 0.5 * R**2 > log_least - 8.0).all()


def test_a_box_of_more_points_than_are_taken_at_a_time_is_taken_alone():
    boxes = cells.Boxes(np.zeros(3, dtype=int), np.zeros((3, 2)), np.ones((3, 2)))
    assert [len(part.low) for part in panels._parts(boxes, panels.POINTS_AT_A_TIME)] == [1, 1, 1]
    assert [len(part.low) for part in panels._parts(boxes, 2)] == [3]


@pytest.mark.parametrize(("error", "taken"), [(1e-3, True), (np.inf, False), (0.02, False)])
def test_panels_replace_a_grid_only_where_they_are_better(error, taken, monkeypatch):
    model = ri.NonlinearICA(ri.MLP((1, 2, 1)), np.ones(7), 0.1)
    x = np.array([[0.5], [0.7]])
    real = integrator.grid_for

    def unsure(*arguments):
        found = real(*arguments)
        return found._replace(error=np.array([0.01, 0.0]))

    own = Nodes(np.zeros((1, 1)), np.zeros(1))
    monkeypatch.setattr(integrator, "grid_for", unsure)
    monkeypatch.setattr(integrator, "panels_for", lambda *arguments: Panels(own, error))
    found = ri.Reference()._grid(model, lines_of(model), x)
    assert (found.points[0] is own) == taken
    assert found.points[1] is not own
    assert found.error.tolist() == [error if taken else 0.01, 0.0]


def test_a_bound_that_is_infinite_on_one_side_is_none():
    model = ri.NonlinearICA(ri.MLP((1, 2, 1)), np.ones(7), 0.1)
    x = np.array([[0.5]])
    own = ri.Reference()._grid(model, lines_of(model), x)
    right = ri.log_likelihood(model, x, ri.Reference(), gradient=False)
    for lower, upper in ((-np.inf, 5.0), (-50.0, np.inf), (-np.inf, np.inf)):
        outcome = integrator._Outcome(slice(0, 1), own, np.array([lower]), np.array([upper]))
        found = ri.Reference()._evaluate_some(model, x, outcome, None)
        np.testing.assert_array_equal(found.log_p, right.per_observation)
        assert found.error[0] < 1e-9


@pytest.mark.parametrize(
    ("character", "refined"), [(0, [True, False]), (1, [False, True]), (2, [True, True])]
)
def test_only_the_axes_that_alias_get_a_finer_step(character, refined):
    """The three characters of the plane's lattice modulo 2 are along the first axis, the second, and both."""
    lattices = cells.Lattices(np.zeros(1, dtype=int), np.zeros((1, 2)), np.eye(2)[None], np.zeros((1, 0, 2)))
    boxes = cells.Boxes(np.zeros(1, dtype=int), np.full((1, 2), -4.0), np.full((1, 2), 4.0))
    alias = np.zeros((1, 3))
    alias[0, character] = 1e-3
    verdict = grid._Verdict(
        np.ones(1), np.full(1, 1e-10), np.zeros(1, bool), np.zeros(1), alias, np.zeros((1, 2), bool)
    )
    finer, same = grid._finer(lattices, boxes, verdict)
    steps = np.diagonal(finer.step[0])
    assert (steps < 1.0).tolist() == refined
    np.testing.assert_allclose(same.high[0] * steps, [4.0, 4.0])
