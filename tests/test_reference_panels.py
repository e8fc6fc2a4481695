"""Panels, the way out of `Reference` where no lattice serves: thousands of modes, ridges that bend.

Also what leads there and back: points taken some at a time, and modes that only a lattice's points see.
"""

import math

import autograd_model
import numpy as np
import pytest
from reference_oracle import ring, ring_log_p, separable

import refica as ri
from refica.likelihood import log_marginal
from refica.reference import Reference, grid, integrator, panels
from refica.reference.cells import Boxes
from refica.reference.grid import grid_for
from refica.reference.lines import lines_of
from refica.reference.panels import panels_for

VALUE = 1e-11
"""What is asked of log p(x), relative to max(1, |log p(x)|)."""


def steep(model, factor):
    """The model with the weights of its first layer times a factor."""
    theta = model.theta.copy()
    W, _ = next(model.decoder.unpack(theta))
    W *= factor
    return model.replace(theta=theta)


def many_modes():
    """Sines with large weights, one observation, and its log p as a sum of two, each for one latent."""
    model, singles = separable("sin", 2, 1e-2, np.random.default_rng(2))
    x = model.sample(1, 2)[1]
    truth = sum(log_p_by_trapezoid(steep(one, 8.0), x[0, j : j + 1]) for j, one in enumerate(singles))
    return steep(model, 8.0), x, truth


def log_p_by_trapezoid(model, x):
    """log p(x) of x (n,) for m = 1, by a grid that is far finer than all there is to see."""
    z, h = np.linspace(-10.0, 10.0, 2**19 + 1, retstep=True)
    r = x - autograd_model.decode(model.decoder, model.theta, z[:, None])
    F = 0.5 * (r**2).sum(axis=1) / model.sigma2 + 0.5 * z**2
    return -log_mass_of(model, 0.0) + math.log(h) + np.logaddexp.reduce(-F)


def on_panels(model, x, log_mass, tolerance):
    """Panels, and log p(x) on their points."""
    found = panels_for(model, lines_of(model), x, log_mass, tolerance)
    return found, log_marginal(model.decoder, model.theta, model.sigma2, x, found.points)[0]


def log_mass_of(model, log_p):
    """log ∫ exp(-F) from log p(x)."""
    m, n = model.latent_dim, model.data_dim
    return log_p + 0.5 * m * math.log(2 * math.pi) + 0.5 * n * math.log(2 * math.pi * model.sigma2)


def test_thousands_of_modes():
    model, x, truth = many_modes()
    assert not grid_for(model, lines_of(model), x, VALUE).converged.any()
    result = ri.log_likelihood(model, x, Reference())
    assert result.converged.all()
    assert abs(result.total - truth) <= VALUE * max(1.0, abs(truth))
    assert abs(result.total - truth) <= 10.0 * result.error[0]


def test_where_most_lies_far_down_a_slope_few_points_are_enough(monkeypatch):
    """A ring: the fixed order that does the peak takes half as many points again, to the same end."""
    model, x = ring(1e-3), np.array([[1.0]])
    truth = ring_log_p(1.0, 1e-3)
    few, log_p = on_panels(model, x, log_mass_of(model, truth), VALUE)
    assert abs(log_p - truth) <= VALUE
    assert few.error <= VALUE
    monkeypatch.setattr(panels, "LEAST_ORDER", panels.MOST_ORDER)
    many, same = on_panels(model, x, log_mass_of(model, truth), VALUE)
    assert abs(same - truth) <= VALUE
    assert len(many.points.log_weight) > 1.4 * len(few.points.log_weight)


@pytest.mark.parametrize("off", [-40.0, 40.0])
def test_the_mass_need_not_be_known(off):
    """What a search for modes says of the mass may be far off: the rough pass puts it right."""
    model, x, truth = ring(1e-2), np.array([[1.0]]), ring_log_p(1.0, 1e-2)
    found, log_p = on_panels(model, x, log_mass_of(model, truth) + off, VALUE)
    assert abs(log_p - truth) <= VALUE
    assert found.error <= VALUE


def test_without_a_rough_pass_a_mass_that_is_too_large_would_prune_too_much(monkeypatch):
    """The planted fault. What was dropped is part of the error that is reported."""
    monkeypatch.setattr(panels, "MOST_PASSES", 1)
    monkeypatch.setattr(panels, "ROUGH", VALUE)
    model, x, truth = ring(1e-2), np.array([[1.0]]), ring_log_p(1.0, 1e-2)
    found, log_p = on_panels(model, x, log_mass_of(model, truth) + 25.0, VALUE)
    assert 1e2 * VALUE < abs(log_p - truth) <= found.error


@pytest.mark.parametrize(("order", "rounds"), [(2, 0), (4, 0), (3, 3)])
def test_the_error_of_rules_that_are_too_poor_is_reported(monkeypatch, order, rounds):
    monkeypatch.setattr(panels, "MOST_ORDER", order)
    monkeypatch.setattr(panels, "MOST_ROUNDS", rounds)
    model, x, truth = ring(1e-2), np.array([[1.0]]), ring_log_p(1.0, 1e-2)
    found, log_p = on_panels(model, x, log_mass_of(model, truth), VALUE)
    assert VALUE < abs(log_p - truth) <= found.error < 0.5


def test_a_rough_answer_where_a_fine_one_is_not_affordable(monkeypatch):
    """Not converged, but right to what it says, which is a few per cent; bounds could do no better."""
    model, x, truth = many_modes()
    monkeypatch.setattr(panels, "MOST_POINTS", {2: 300_000})
    result = ri.log_likelihood(model, x, Reference(), gradient=False)
    assert not result.converged.any()
    assert integrator.UNREACHED in result.message
    assert 1e-9 < abs(result.total - truth) <= result.error[0] <= 2.0 * panels.ROUGH


def with_errors(monkeypatch, *errors):
    """Let the rules of one pass after the other have these relative errors, of the last ones the last."""
    refined, left = panels._refined, list(errors)

    def worse(*arguments):
        sums, e = refined(*arguments), left.pop(0) if len(left) > 1 else left[0]
        return sums._replace(log_error=sums.log_integral + math.log(e))

    monkeypatch.setattr(panels, "_refined", worse)


def test_the_error_is_that_of_the_log(monkeypatch):
    """An integral that is too large by e has a log that is too large by -log(1 - e); of one that may be all
    wrong nothing can be said."""
    model, x = ring(1e-2), np.array([[1.0]])
    log_mass = log_mass_of(model, ring_log_p(1.0, 1e-2))
    with_errors(monkeypatch, 0.5)
    found = panels_for(model, lines_of(model), x, log_mass, VALUE)
    assert math.isclose(found.error, math.log(2.0), rel_tol=1e-9)
    with_errors(monkeypatch, 3.0)
    assert panels_for(model, lines_of(model), x, log_mass, VALUE) is None


def test_of_all_passes_the_best_is_kept(monkeypatch):
    model, x = ring(1e-2), np.array([[1.0]])
    with_errors(monkeypatch, 1e-3, 0.2)
    found, _ = on_panels(model, x, log_mass_of(model, ring_log_p(1.0, 1e-2)), VALUE)
    assert found.error <= 1e-3 + 2.0 * panels.PRUNED * panels.ROUGH


def out_of_sight():
    """An observation so many σ off the curve that rtol |log p| is 5e5, and log p is rounded to eights."""
    decoder = ri.MLP((1, 3, 2))
    model = ri.NonlinearICA(decoder, decoder.init(0), 1e-18)
    return model, np.random.default_rng(0).standard_normal((1, 2))


def test_a_tolerance_of_thousands_leaves_points():
    """Points, not none, on which log p(x) is within certified bounds as wide as the tolerance."""
    model, x = out_of_sight()
    found = grid_for(model, lines_of(model), x, VALUE)
    assert not found.converged.any()
    assert found.tolerance[0] > 1e5
    points, error = panels_for(model, lines_of(model), x, found.log_mass[0], found.tolerance[0])
    assert len(points.log_weight)
    assert error <= panels.ROUGH
    bounds = ri.certified_bounds(model, x, found.tolerance[0])
    result = ri.log_likelihood(model, x, Reference())
    assert result.converged.all()
    assert bounds.lower[0] <= result.total + result.error[0]
    assert result.total - result.error[0] <= bounds.upper[0]


def test_the_fewest_boxes_that_are_worst():
    boxes = Boxes(np.zeros(4, dtype=int), np.zeros((4, 1)), np.ones((4, 1)))
    errors = np.array([1e-3, 1e-9, 2e-2, 1e-4])
    sums = panels._Sums(boxes, np.full(4, 2), np.log(np.full(4, 0.25)), np.log(errors))
    assert math.isclose(sums.error, errors.sum())
    assert sums.worst(2e-3).tolist() == [False, False, True, False]
    assert sums.worst(5e-4).tolist() == [True, False, True, False]
    assert sums.worst(0.1).tolist() == [False] * 4


@pytest.mark.parametrize("fault", [False, True])
def test_points_taken_some_at_a_time_are_one_sum(monkeypatch, fault):
    """Value and gradient; the planted fault adds up the gradients of the blocks as they are."""
    decoder = ri.MLP((2, 5, 3), "tanh")
    model = ri.NonlinearICA(decoder, decoder.init(1), 0.05)
    x = model.sample(3, 1)[1]
    wholes = [of(model, x, Reference()) for of in (ri.log_likelihood, ri.density)]
    monkeypatch.setattr(integrator, "POINTS_AT_A_TIME", 50)
    if fault:
        real = integrator._combined
        monkeypatch.setattr(integrator, "_combined", lambda g, shares: real(g, np.ones_like(shares)))
    for of, whole in zip((ri.log_likelihood, ri.density), wholes, strict=True):
        parts = of(model, x, Reference())
        assert np.allclose(parts.per_observation, whole.per_observation, rtol=1e-14)
        same = np.allclose(parts.gradient.theta, whole.gradient.theta, rtol=1e-11, atol=1e-12)
        same &= math.isclose(parts.gradient.sigma2, whole.gradient.sigma2, rel_tol=1e-11)
        assert same != fault


def needle():
    """Weights of thousands, as a fit that collapses has: the only mode that a search from the prior finds is
    at z = 0, nine million nats below the true one, which is 1e-6 wide."""
    theta = [5062.116280150887, -1169.0014628826489, 3625.577328149901, -2093.5641187766882,
             562.2910906191217, -1946.957084155077, -784.8921184601256, -631.8516427611557,
             -154.19089751776102, 1091.8538119772727, 215.6679809990895, -128.86725564812693,
             -305.9388849261806, 745.5405527145065]  # fmt: skip
    model = ri.NonlinearICA(ri.MLP((1, 3, 2)), theta, 8.890583364770363e-07)
    x = [[-0.9973844567847929, 1.5250479060020201], [1.025748466480384, -0.9190471762419352]]
    return model, np.array(x)


def test_a_mode_that_only_points_of_a_lattice_see():
    """F is so much lower there that exp(-F) would overflow against the mass that was known."""
    model, x = needle()
    result, bounds = ri.log_likelihood(model, x, Reference()), ri.certified_bounds(model, x, 1e-6)
    assert result.converged.all()
    assert np.all(bounds.lower <= result.per_observation)
    assert np.all(result.per_observation <= bounds.upper)


def test_sums_with_a_point_below_all_modes_are_void(monkeypatch):
    """Where no other attempt follows the lattice says that it knows nothing."""
    monkeypatch.setattr(grid, "MOST_ATTEMPTS", 1)
    model, x = needle()
    found = grid_for(model, lines_of(model), x, VALUE)
    assert np.isinf(found.error).all()
    assert np.isfinite(found.tolerance).all()


def test_the_lowest_point_of_each():
    rows, F = [np.array([2, 0, 2]), np.array([2])], [np.array([5.0, 1.0, 3.0]), np.array([4.0])]
    z = [np.array([[1.0], [2.0], [3.0]]), np.array([[4.0]])]
    lower, where = grid._lowest(list(zip(rows, F, z, strict=True)), 3, 1)
    assert lower.tolist() == [True, False, True]
    assert where[:, 0].tolist() == [2.0, 0.0, 3.0]
