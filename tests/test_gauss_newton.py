"""The opening of a fit: modes that are followed, the information about parameters, the steps it gives."""

import dataclasses

import numpy as np
import pytest
from fitting import GRID, curve, problem_of

import refica as ri
from refica.fit import gauss_newton, lbfgs
from refica.fit.followed_modes import FollowedModes, follow, modes_within
from refica.fit.mle import METHODS
from refica.fit.nodes import nodes_for_round
from refica.fit.starts import principal_start
from refica.modes import find_modes
from refica.rules import gauss_hermite

SQUARE = ri.NonlinearICA(ri.Polynomial(1, 1, 2), [0.0, 0.0, 1.0], sigma2=1e-2)  # g(z) = z²


def plane(size=60, seed=0, sigma2=0.01):
    """A bent plane in space with known parameters, and a sample of it."""
    decoder = ri.MLP((2, 4, 3))
    truth = ri.NonlinearICA(decoder, decoder.init(5), sigma2)
    return truth, truth.sample(size, seed)[1]


def test_both_modes_of_a_square_are_followed_with_half_the_mass_each():
    x = np.array([[1.0], [4.0]])
    modes = modes_within(nodes_for_round(SQUARE, x), SQUARE, x)
    assert modes.z.shape[1] == 2
    np.testing.assert_allclose(np.sort(modes.z[..., 0], axis=1), [[-1, 1], [-2, 2]], atol=0.01)
    np.testing.assert_allclose(modes.log_share, np.log(0.5), atol=1e-6)
    value = ri.log_likelihood(SQUARE, x, modes.nodes(gauss_hermite(9))).per_observation
    np.testing.assert_allclose(value, ri.log_likelihood(SQUARE, x, ri.Reference()).per_observation, atol=1e-4)


def test_a_mode_far_below_another_is_left_out():
    """About x = -.5 the parabola is nearest at 0 alone."""
    modes = modes_within(nodes_for_round(SQUARE, np.array([[-0.5]])), SQUARE, np.array([[-0.5]]))
    assert modes.z.shape == (1, 1, 1)


@pytest.mark.parametrize("make", [curve, plane])
def test_modes_are_found_again_after_parameters_moved(make):
    """Against a search that starts from nothing."""
    truth, x = make()
    modes = modes_within(nodes_for_round(truth, x), truth, x)
    rng = np.random.default_rng(1)
    moved = truth.replace(theta=truth.theta + 0.02 * rng.standard_normal(len(truth.theta)))
    found, again = find_modes(moved, x), follow(modes, moved, x)
    best = np.arange(len(x)), again.mass.argmax(axis=1)
    off = again.z[best][:, None] - found.modes
    distance = np.sqrt(np.einsum("ncm,nml,ncl->nc", off, again.A[best], off)).min(axis=1)
    assert np.quantile(distance, 0.95) < 0.05  # posterior standard deviations


def test_information_of_an_affine_decoder_is_that_of_its_scores():
    """For x ~ N(b, W Wᵀ + σ² I) it is known for b and log σ²; and scores of a large sample say the same."""
    decoder = ri.MLP((1, 2), "identity")
    truth = ri.NonlinearICA(decoder, [1.0, -0.5, 0.3, 0.2], sigma2=0.4)
    x = truth.sample(20_000, 0)[1]
    problem = problem_of(truth, x)
    only = np.zeros((len(x), 1, 1))
    modes = FollowedModes(only, np.ones((len(x), 1, 1, 1)), only[..., 0])
    B = gauss_newton.information(problem, truth, modes)
    free = [2, 3, 4]  # b and log σ²: at z = 0 nothing is said of W
    scores = ri.scores(truth, x) * np.append(problem.coordinates.units, truth.sigma2)
    sampled = scores.T @ scores / len(x)
    np.testing.assert_allclose(B[np.ix_(free, free)], sampled[np.ix_(free, free)], atol=0.02)
    W = np.array([[1.0], [-0.5]])
    precision = np.linalg.inv(W @ W.T + 0.4 * np.eye(2))
    units = problem.coordinates.units[2:4]
    np.testing.assert_allclose(B[2:4, 2:4], units[:, None] * precision * units, rtol=1e-12)
    assert B[4, 4] == pytest.approx(0.5 * 0.4**2 * np.sum(precision**2), rel=1e-12)


def test_slopes_are_the_same_whether_or_not_rows_are_told_apart():
    truth, _ = plane()
    z = np.random.default_rng(0).standard_normal((7, 2))

    class Plain(ri.MLP):
        """A decoder that offers the protocol and no more."""

        def vjp(self, theta, z, cotangent):
            raise AssertionError("not needed")

    foreign = truth.replace()
    object.__setattr__(foreign, "decoder", Plain((2, 4, 3)))
    found = [gauss_newton.parameter_slopes(model, z) for model in (truth, foreign)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-13, atol=1e-15)
    h = 1e-6
    for j, e in enumerate(np.eye(len(truth.theta))):
        ahead, behind = (truth.decoder(truth.theta + s * h * e, z) for s in (1, -1))
        np.testing.assert_allclose(found[0][:, :, j], (ahead - behind) / (2 * h), atol=1e-8)


def test_a_few_steps_reach_what_takes_l_bfgs_hundreds():
    """Quadratic surfaces, to which tanh units must be scaled badly, from principal components."""
    surfaces = ri.Polynomial(2, 4, 2)
    x = ri.NonlinearICA(surfaces, surfaces.init(2), 0.01).sample(200, 0)[1]
    start = principal_start(ri.MLP((2, 8, 4)), x, np.random.default_rng(0), rotate=False)
    problem = problem_of(start, x, tol=1e-4)
    opened = gauss_newton.run_round(problem, start, 0, 40)
    plain = lbfgs.METHOD.inner(problem, start, 0, 40)
    assert len(opened.steps) <= 40
    assert opened.value > plain.value + 0.5
    objectives = [step.objective for step in opened.steps]
    assert objectives == sorted(objectives)


def test_a_step_against_the_gradient_is_not_taken(monkeypatch):
    """Plant a gradient of the wrong sign: no length of step does as promised, and the round ends at once, but
    for a step too small to matter that followed modes may feign."""
    truth, x = plane()
    honest = gauss_newton._expand

    def turned(problem, model, modes):
        point = honest(problem, model, modes)
        return point._replace(gradient=-point.gradient)

    start = truth.replace(sigma2=0.05)
    monkeypatch.setattr(gauss_newton, "_expand", turned)
    found = gauss_newton.run_round(problem_of(start, x), start, 0, 10)
    assert len(found.steps) <= 1
    np.testing.assert_allclose(found.model.theta, start.theta, atol=1e-4)


def test_a_fixed_sigma2_stays_and_a_free_one_does_not_pass_its_floor():
    truth, x = plane()
    fixed = gauss_newton.run_round(problem_of(truth, x, fixed_sigma2=True), truth, 0, 5)
    assert fixed.steps
    assert fixed.model.sigma2 == truth.sigma2
    flat = np.column_stack([x[:, :2], x[:, :1] - x[:, 1:2]])  # in a plane, which the decoder can contain
    fit = ri.fit_mle(truth, flat, n_starts=1, max_iter=60)
    assert fit.model.sigma2 >= 1e-8 * flat.var(axis=0).mean() * (1 - 1e-12)


def test_a_broad_posterior_on_a_fine_grid_keeps_its_mode():
    """Its mass is spread over so many nodes that none of them has a thousandth."""
    steep = ri.NonlinearICA(ri.MLP((1, 1, 1)), [50.0, 0.0, 1.0, 0.0], 0.0025)
    x = steep.sample(32, 0)[1]
    nodes = nodes_for_round(steep, x)
    assert np.diff(nodes.start).max() > 1000
    modes = modes_within(nodes, steep, x)
    assert np.isfinite(modes.mass[:, 0]).all()
    assert np.isfinite(ri.fit_mle(steep, x, n_starts=1, max_iter=10).log_likelihood.total)


def test_a_start_below_the_floor_of_sigma2_is_raised():
    """Data in large units: their floor is above the start's σ², which says nothing of a collapse."""
    truth, x = curve()
    fit = ri.fit_mle(truth.replace(sigma2=1e-3), 1e5 * x, n_starts=2)
    assert fit.status == "converged"
    again = ri.fit_mle(truth, x, n_starts=2)
    shift = 2 * np.log(1e5)
    assert fit.log_likelihood.total / len(x) == pytest.approx(
        again.log_likelihood.total / len(x) - shift, abs=0.01
    )


@pytest.mark.parametrize("n_starts", [1, 3])
def test_with_kinks_a_start_is_tried_by_both(n_starts, monkeypatch):
    decoder = ri.MLP((1, 4, 2), "relu")
    truth = ri.NonlinearICA(decoder, decoder.init(1), 0.05)
    x = truth.sample(60, 0)[1]
    order = []

    def spy(name, honest):
        def spied(problem, start, done, steps):
            order.append(name)
            return honest(problem, start, done, steps)

        return spied

    plain = spy("plain", lbfgs.METHOD.inner)
    monkeypatch.setattr(gauss_newton, "run_round", spy("opening", gauss_newton.run_round))
    monkeypatch.setitem(METHODS, "l-bfgs", dataclasses.replace(lbfgs.METHOD, inner=plain))
    ri.fit_mle(truth, x, n_starts=n_starts)
    assert order[: 2 * n_starts + 1] == ["plain", "opening"] * n_starts + ["opening"]


def test_where_it_suits():
    truth, x = curve()
    assert gauss_newton.suits(problem_of(truth, x))
    assert not gauss_newton.suits(problem_of(truth, x, integrator=GRID))
    assert not gauss_newton.suits(problem_of(truth, x, objective="density-sum"))
    affine = ri.NonlinearICA(ri.MLP((1, 2), "identity"), np.ones(4), 1.0)
    assert not gauss_newton.suits(problem_of(affine, x))
    decoder = ri.MLP((1, 3000, 2))
    assert not gauss_newton.suits(problem_of(ri.NonlinearICA(decoder, decoder.init(0), 1.0), x))


def test_a_fit_is_opened_and_then_ends_with_its_own_method(monkeypatch):
    truth, x = curve()
    rounds = []

    def spied(problem, start, done, steps):
        rounds.append(steps)
        return honest(problem, start, done, steps)

    honest = lbfgs.METHOD.inner
    monkeypatch.setitem(METHODS, "l-bfgs", dataclasses.replace(lbfgs.METHOD, inner=spied))
    fit = ri.fit_mle(truth, x, n_starts=2)
    assert fit.status == "converged"
    assert rounds
    assert len(rounds) <= 3
