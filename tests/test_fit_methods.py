"""The methods of direct maximum likelihood: their steps, the two objectives, their ends."""

import itertools
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import fitting
import numpy as np
import pytest
from fitting import GRID
from scipy import optimize

import refica as ri
from refica import marginal
from refica.fit import gradient_ascent, stochastic
from refica.fit.problem import OBJECTIVES
from refica.fit.schedules import Plateau, rate_of

DIFFERENCE = 1e-7
"""A gradient against central differences, relative: the square of their step 1e-4 times the curvature."""

STANDARD_ERRORS = 4.0
"""How far the mean of draws (always the same ones) may be off in any of a dozen coordinates."""


# -----------------------------------------------------------------------------------------------------
# Objectives
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_of_the_mean_objective_against_differences(objective):
    truth, x = fitting.curve(10)
    problem = fitting.problem_of(truth, x, objective=objective)
    nodes = problem.nodes_for(truth)
    value, gradient = problem.value_and_gradient(truth, nodes)
    assert value == problem.value(truth, nodes)
    coordinates = problem.coordinates
    u = coordinates.to(truth)
    expected = optimize.approx_fprime(u, lambda u: problem.value(coordinates.model_at(u), nodes), 1e-7)
    central = [
        (
            problem.value(coordinates.model_at(u + e), nodes)
            - problem.value(coordinates.model_at(u - e), nodes)
        )
        / 2e-4
        for e in 1e-4 * np.eye(len(u))
    ]
    pulled = coordinates.pull_back(gradient, truth.sigma2)
    assert np.abs(pulled - central).max() <= DIFFERENCE * max(1.0, np.abs(pulled).max())
    assert pulled == pytest.approx(expected, abs=1e-4)  # another formula, in case the loop is wrong


def test_the_density_sum_is_worked_with_as_its_logarithm_and_cannot_underflow():
    truth, x = fitting.curve(10)
    problem = fitting.problem_of(truth, x, objective="density-sum")
    literal = ri.density(truth, x)
    value, gradient = problem.value_and_gradient(truth, literal.integrator)
    assert value == pytest.approx(math.log(literal.total / 10), rel=1e-13)
    # ∇ log F = ∇F / F
    assert gradient.theta == pytest.approx(literal.gradient.theta / literal.total, rel=1e-11, abs=1e-12)
    assert gradient.sigma2 == pytest.approx(literal.gradient.sigma2 / literal.total, rel=1e-11)
    far = fitting.problem_of(truth, x + 100.0, objective="density-sum")
    assert ri.density(truth, x + 100.0).total == 0.0
    value, gradient = far.value_and_gradient(truth, far.nodes_for(truth))
    assert value < -1e5
    assert np.isfinite(gradient.theta).all()
    assert np.abs(gradient.theta).max() > 1.0


@pytest.mark.parametrize("method", ["gradient-ascent", "l-bfgs", "em"])
def test_ascent_on_the_density_sum_with_a_free_variance_collapses(method):
    """The documents' E(4) has no maximiser: with g through an observation and σ² -> 0 it grows for ever."""
    truth, x = fitting.curve()
    fit = ri.fit_mle(truth, x, method=method, objective="density-sum", n_starts=1, tol=1e-4)
    assert fit.status == "collapsed"
    assert not fit.converged
    assert fit.model.sigma2 < 1e-7
    begun, ended = (ri.density(model, x, gradient=False).total for model in (truth, fit.model))
    assert ended > 30.0 * begun
    assert fit.history[-1].sigma2 < 1e-5 * fit.history[0].sigma2
    if method != "gradient-ascent":  # which steps in θ and σ² by turns, and ends with θ one step behind
        # it would go on: where a curve passes through an observation of the plane, p(x) grows as 1/σ
        narrower = fit.model.replace(sigma2=fit.model.sigma2 / 100.0)
        assert ri.density(narrower, x, gradient=False).total > 3.0 * ended
    # the likelihood is not what rose
    assert fit.log_likelihood.total < ri.log_likelihood(truth, x, gradient=False).total - 1000.0
    assert "of 40 observations (rows" in fit.message
    assert "fixed_sigma2=True" in fit.message


def test_the_collapse_names_the_observations_that_pull_the_variance_down():
    truth, x = fitting.curve()
    fit = ri.fit_mle(truth, x, method="gradient-ascent", objective="density-sum", n_starts=1, tol=1e-4)
    on_it = np.flatnonzero(fit.log_likelihood.per_observation > 0.0)  # p(x_i) > 1: g passes through x_i
    assert f"{len(on_it)} of 40 observations (rows {', '.join(map(str, on_it))})" in fit.message


def test_at_a_fixed_variance_the_two_objectives_have_different_maximisers():
    truth, x = fitting.curve()
    fits = {
        objective: ri.fit_mle(
            truth, x, objective=objective, n_starts=1, fixed_sigma2=True, tol=1e-5, max_iter=400
        )
        for objective in OBJECTIVES
    }
    mle, other = fits["log-likelihood"], fits["density-sum"]
    assert mle.model.sigma2 == other.model.sigma2 == truth.sigma2
    assert mle.log_likelihood.total > other.log_likelihood.total + 10.0
    densities = [ri.density(fit.model, x, gradient=False).total for fit in (mle, other)]
    assert densities[1] > 1.1 * densities[0]


@pytest.mark.parametrize("method", ["l-bfgs", "em", "gradient-ascent", "adam", "sgd"])
def test_a_fixed_variance_is_that_of_the_model_to_the_last_bit(method):
    truth, x = fitting.curve(20)
    sigma2 = 0.1 / 3.0
    fit = ri.fit_mle(
        truth.replace(sigma2=sigma2), x, GRID, method=method, n_starts=2, max_iter=30, fixed_sigma2=True
    )
    assert fit.model.sigma2 == sigma2
    assert {step.sigma2 for step in fit.history} == {sigma2}
    assert fit.status != "collapsed"


# -----------------------------------------------------------------------------------------------------
# The documents' algorithm
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_of_gradient_ascent_is_one_in_theta_then_one_in_sigma2(objective):
    truth, x = fitting.curve()
    problem = fitting.problem_of(truth, x, integrator=GRID, objective=objective)
    coordinates, nodes = problem.coordinates, problem.nodes_for(truth)
    after = gradient_ascent._run_round(problem, truth, 0, 1).model
    u, v = coordinates.to(truth), coordinates.to(after)
    by = coordinates.pull_back(problem.value_and_gradient(truth, nodes)[1], truth.sigma2)
    moved = v[:-1] - u[:-1]
    assert moved / np.linalg.norm(moved) == pytest.approx(by[:-1] / np.linalg.norm(by[:-1]), abs=1e-9)
    half_way = truth.replace(theta=after.theta)
    there = problem.value_and_gradient(half_way, nodes)[1]
    assert (v[-1] - u[-1]) * there.sigma2 > 0.0
    assert problem.value(truth, nodes) < problem.value(half_way, nodes) < problem.value(after, nodes)


def test_gradient_ascent_rises_with_every_step_of_a_round():
    truth, x = fitting.curve()
    problem = fitting.problem_of(truth.replace(sigma2=0.5), x, integrator=GRID)
    steps = gradient_ascent._run_round(problem, problem.start, 0, 40).steps
    values = [step.objective for step in steps]
    assert len(values) == 40
    assert all(later > earlier for earlier, later in itertools.pairwise(values))


def test_gradient_ascent_rests_where_the_gradient_is_zero():
    x = fitting.cloud(50, 1, 3, seed=0)
    best = ri.probabilistic_pca(x, 1)
    problem = fitting.problem_of(best, x)
    after = gradient_ascent._run_round(problem, best, 0, 50)
    assert len(after.steps) < 10
    assert after.value == pytest.approx(problem.value(best, ri.ExactLinear()), abs=1e-12)


# -----------------------------------------------------------------------------------------------------
# Stochastic ascent
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_stochastic_ascent_comes_near_the_truth(method):
    truth, x = fitting.curve(60)
    fit = ri.fit_mle(
        truth.replace(theta=truth.decoder.init(0), sigma2=0.5),
        x,
        GRID,
        method=method,
        n_starts=2,
        max_iter=3000,
        batch_size=20,
        tol=0.01,
    )
    assert fit.log_likelihood.total >= ri.log_likelihood(truth, x, gradient=False).total - 0.05 * len(x)
    assert fit.history[-1].iteration % stochastic.ROUND == 0
    assert len(fit.history) == fit.history[-1].iteration // stochastic.ROUND


def noisy_gradients(objective, draws=1500):
    """Gradients (draws, p + 1) of a batch of two of five observations on eight fresh nodes, and the truth."""
    truth, x = fitting.curve(5, sigma2=0.3)
    problem = fitting.problem_of(truth, x, objective=objective, fresh_nodes=8)
    rng = np.random.default_rng(0)
    log_scale = -2.0
    found = np.empty((draws, truth.decoder.n_params + 1))
    for row in found:
        rows = rng.permutation(5)[:2]
        nodes = stochastic._fresh(truth, problem, rng)
        row[:-1], row[-1] = stochastic._gradient(problem, truth, rows, nodes, log_scale)
    if objective == "density-sum":
        exact = ri.density(truth, x).gradient
        scale = 5.0 * math.exp(log_scale)
    else:
        exact, scale = ri.log_likelihood(truth, x).gradient, 5.0
    return found, np.append(exact.theta, exact.sigma2) / scale


@pytest.mark.parametrize(("objective", "unbiased"), [("density-sum", True), ("log-likelihood", False)])
def test_which_gradients_on_fresh_nodes_are_unbiased(objective, unbiased):
    found, exact = noisy_gradients(objective)
    error = np.abs(found.mean(axis=0) - exact) / (found.std(axis=0, ddof=1) / math.sqrt(len(found)))
    assert (error.max() <= STANDARD_ERRORS) == unbiased


def test_fresh_nodes_are_new_in_every_step_and_repeat_with_the_seed():
    truth, x = fitting.curve(10)
    problem = fitting.problem_of(truth, x, fresh_nodes=5)
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    first, second = (stochastic._fresh(truth, problem, one).z for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, stochastic._fresh(truth, problem, other).z)


def test_nodes_of_their_own_go_with_the_observations_of_a_batch():
    truth, x = fitting.curve(10)
    problem = fitting.problem_of(truth, x, integrator=ri.Quadrature(ri.gauss_hermite(5), "laplace"))
    rows = np.array([7, 2, 9])
    nodes = problem.nodes_for(truth)
    one = stochastic._gradient(problem, truth, rows, stochastic._of_rows(nodes, rows), 0.0)
    other = ri.log_likelihood(truth, x[rows], ri.FixedNodes(nodes.z[rows], nodes.log_weight[rows])).gradient
    assert one.theta == pytest.approx(other.theta / 3.0, rel=1e-12)


def test_rates():
    plateau = Plateau(0.0, 0, 2)
    assert rate_of("plateau", 0.9, plateau, 7) == pytest.approx(0.1)
    assert rate_of("constant", 0.9, plateau, 7) == 0.9
    assert rate_of("inverse-time", 0.9, plateau, 7) == pytest.approx(0.9 / 8)


def test_a_constant_rate_ends_at_the_first_plateau():
    truth, x = fitting.curve(20)
    fit = ri.fit_mle(truth, x, method="adam", n_starts=1, schedule="constant", learning_rate=1e-4, tol=10.0)
    assert fit.converged, fit.message
    assert len(fit.history) == 3
    assert "rounds at the last rate raised" in fit.message


def test_a_rate_far_too_large_is_called_divergence():
    truth, x = fitting.curve(20)
    fit = ri.fit_mle(truth, x, GRID, method="sgd", n_starts=1, learning_rate=1e308)
    assert fit.status == "diverged"
    assert "take a smaller learning_rate than 1e+308" in fit.message
    assert fit.model.theta.tobytes() == truth.theta.tobytes()  # the best that was seen


# -----------------------------------------------------------------------------------------------------
# All of them
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["l-bfgs", "em", "gradient-ascent", "adam", "sgd"])
def test_a_callback_stops_any_method_and_history_is_what_it_saw(method):
    truth, x = fitting.curve(20)
    seen = []
    fit = ri.fit_mle(
        truth, x, GRID, method=method, n_starts=1, callback=lambda step: seen.append(step) or len(seen) == 3
    )
    assert fit.status == "stopped by callback"
    assert fit.history == tuple(seen)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("l-bfgs", "log-likelihood"),
        ("l-bfgs", "density-sum"),
        ("em", "density-sum"),
        ("em", "log-likelihood"),
    ],
)
def test_the_executor_does_not_matter(method, objective, monkeypatch, processes):
    monkeypatch.setattr(marginal, "BLOCK", 16)  # of 40 observations: three blocks
    truth, x = fitting.curve()
    arguments = {"method": method, "objective": objective, "n_starts": 1, "max_iter": 6}
    with ThreadPoolExecutor(2) as threads:
        fits = [
            ri.fit_mle(truth, x, GRID, executor=executor, **arguments)
            for executor in (None, threads, processes)
        ]
    assert fitting.same_fit(fits[0], fits[1])
    assert fitting.same_fit(fits[0], fits[2])
    in_one = fitting.problem_of(truth, x)
    assert len(in_one.blocks(truth, GRID)) == 3


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


class Trapezoid:
    """Nodes of somebody else's that move with σ²; it counts how often they are asked for."""

    def __init__(self):
        self.models = []

    def nodes(self, model, x):
        self.models.append(model)
        z = np.linspace(-5.0, 5.0, 41 + int(10.0 * model.sigma2))
        return z[:, None], np.full(len(z), math.log(z[1] - z[0]))


@pytest.mark.parametrize("method", ["l-bfgs", "em", "gradient-ascent"])
def test_nodes_of_somebody_else_are_frozen_within_a_round_too(method):
    truth, x = fitting.curve(20)
    integrator = Trapezoid()
    fit = ri.fit_mle(truth, x, integrator, method=method, n_starts=1, max_iter=10)
    assert len(fit.history) == 10
    assert len(integrator.models) <= 4  # at the start and the end of one round


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"objective": "likelihood"}, ValueError, "did you mean 'log-likelihood'"),
        ({"schedule": "plateaus"}, ValueError, "did you mean 'plateau'"),
        ({"method": "Adam"}, ValueError, "did you mean 'adam'"),
        ({"fresh_nodes": 10}, ValueError, "fresh_nodes is for the methods adam and sgd, got method='l-bfgs'"),
        ({"method": "sgd", "fresh_nodes": 1}, ValueError, "fresh_nodes must be an integer >= 2, got 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1, got 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be a finite number > 0"),
        ({"executor": 3}, TypeError, "executor must be a concurrent.futures.Executor, got 3"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error, words):
    truth, x = fitting.curve(5)
    with pytest.raises(error, match=words):
        ri.fit_mle(truth, x, n_starts=1, max_iter=1, **arguments)
