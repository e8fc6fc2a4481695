"""EM: never down on frozen nodes, its M-step against the minimum, its optimum where that is known."""

import math

import fitting
import numpy as np
import pytest
import strategies
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize

import refica as ri
from refica.fit import em
from refica.fit.problem import OBJECTIVES
from refica.model import squared_distances

DESCENT = 1e-11
"""How far a step of EM may fall, against the size of log p: the rounding of a log-sum-exp and of its mean,
some hundred units, of which each term is as large as the exponents at nodes that do not count."""

CLOSED_FORM = 1e-9
"""A least-squares solution against a generic optimiser's, relative."""

STAYS = 1e-12
"""A step from the closed-form optimum, where the posterior nodes make EM exact: rounding."""

PPCA = 1e-8
"""Mean log-likelihood against the closed form (issue 4); EM's steps shrink geometrically here."""


def steps(problem, model, nodes, count):
    """The objective before each of ``count`` steps of EM, and after the last."""
    values = []
    for _ in range(count):
        value, model = em.em_step(problem, model, nodes)
        values.append(value)
    return [*values, problem.value(model, nodes)]


def lowest_rise(case, own, objective, count=1):
    """The smallest change of the objective in some steps of EM, against its size."""
    nodes = case.own if own else case.shared
    problem = fitting.problem_of(case.model, case.x, integrator=nodes, objective=objective)
    values = np.array(steps(problem, case.model, nodes, count))
    return (np.diff(values) / (1.0 + np.abs(values[:-1]))).min()


@strategies.examples(1000)
@given(strategies.cases(), st.booleans(), st.sampled_from(OBJECTIVES))
def test_on_frozen_nodes_the_objective_never_decreases(case, own, objective):
    assume(len(case.x) > 1 and np.ptp(case.x, axis=0).any())
    assert lowest_rise(case, own, objective) >= -DESCENT


@pytest.mark.parametrize("fault", ["variance", "weights", "targets"])
@pytest.mark.parametrize("own", [False, True])
def test_a_planted_fault_of_the_m_step_decreases_it(fault, own, monkeypatch):
    truth, x = fitting.curve()
    rng = np.random.default_rng(0)
    z = rng.standard_normal((len(x), 20, 1) if own else (40, 1))
    nodes = ri.FixedNodes(z, np.zeros(z.shape[:-1]))
    problem = fitting.problem_of(truth, x, integrator=nodes)
    near = truth  # near the optimum: far from it even a wrong step goes uphill
    for _ in range(60):
        _, near = em.em_step(problem, near, nodes)
    case = strategies.Case(near, x, nodes, nodes)
    assert lowest_rise(case, own, "log-likelihood", 20) >= -DESCENT
    honest = em._expect

    def wrong(model, block):
        found = honest(model, block)
        return {
            "variance": found._replace(within=found.within + 0.05 * float(found.weight.sum())),
            "weights": found._replace(weight=found.weight * np.linspace(0.8, 1.2, len(found.z))),
            "targets": found._replace(target=found.target * 1.02),
        }[fault]

    monkeypatch.setattr(em, "_expect", wrong)
    assert lowest_rise(case, own, "log-likelihood", 20) < -DESCENT


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("decoder", [ri.MLP((2, 3)), ri.Polynomial(2, 3, 2)], ids=str)
def test_the_m_step_is_the_minimum_written_out(decoder, own, objective):
    """Σ_ik c_i ρ_ik ‖x_i - g(z_ik)‖², from arrays of every pair, minimised by a generic optimiser."""
    rng = np.random.default_rng(1)
    model = ri.NonlinearICA(decoder, decoder.init(rng), 0.3)
    x = model.sample(12, rng)[1]
    z = rng.standard_normal((12, 15, 2) if own else (15, 2))
    nodes = ri.FixedNodes(z, rng.standard_normal(z.shape[:-1]))
    problem = fitting.problem_of(model, x, integrator=nodes, objective=objective)
    _, after = em.em_step(problem, model, nodes)

    exponent = model.log_joint(x, z) + nodes.log_weight
    rho = np.exp(exponent - np.logaddexp.reduce(exponent, axis=1, keepdims=True))
    if objective == "density-sum":
        p = np.exp(np.logaddexp.reduce(exponent, axis=1))
        rho *= len(x) * (p / p.sum())[:, None]

    def total(theta):
        g = decoder(theta, z.reshape(-1, 2)).reshape(*z.shape[:-1], 3)
        return (rho * squared_distances(x, g)).sum()

    found = optimize.minimize(total, model.theta, method="BFGS", options={"gtol": 1e-9})
    assert total(after.theta) == pytest.approx(found.fun, rel=CLOSED_FORM)
    assert after.sigma2 == pytest.approx(found.fun / (12 * 3), rel=CLOSED_FORM)


def test_a_step_goes_uphill_and_stays_where_it_is_flat():
    truth, x = fitting.curve()
    z = np.linspace(-3.0, 3.0, 31)[:, None]
    nodes = ri.FixedNodes(z, np.full(31, math.log(0.2)))
    problem = fitting.problem_of(truth, x, integrator=nodes)
    _, after = em.em_step(problem, truth, nodes)
    by = problem.value_and_gradient(truth, nodes)[1]
    assert (after.theta - truth.theta) @ by.theta > 0.0
    assert (after.sigma2 - truth.sigma2) * by.sigma2 > 0.0
    x = fitting.cloud(50, 1, 3, seed=0)
    best = ri.probabilistic_pca(x, 1)
    nodes = ri.FixedNodes(*ri.ExactLinear().nodes(best, x))
    _, after = em.em_step(fitting.problem_of(best, x), best, nodes)
    assert after.theta == pytest.approx(best.theta, abs=STAYS)
    assert after.sigma2 == pytest.approx(best.sigma2, abs=STAYS)


def test_a_fixed_variance_stays_and_a_floor_holds():
    truth, x = fitting.curve()
    nodes = ri.FixedNodes(np.linspace(-3.0, 3.0, 31)[:, None], np.zeros(31))
    fixed = fitting.problem_of(truth, x, integrator=nodes, fixed_sigma2=True)
    assert em.em_step(fixed, truth, nodes)[1].sigma2 == truth.sigma2
    parabola = ri.Polynomial(1, 2, 2)  # passes through any three points
    model = ri.NonlinearICA(parabola, parabola.init(0), 1.0)
    free = fitting.problem_of(model, x[:3])
    nodes = ri.FixedNodes(np.linspace(-1.0, 1.0, 3)[:, None], np.zeros(3))
    for _ in range(60):
        _, model = em.em_step(free, model, nodes)
    assert model.sigma2 == free.floor


@pytest.mark.parametrize(("m", "n"), [(1, 3), (2, 4)])
@pytest.mark.parametrize("method", ["em", "l-bfgs"])
def test_an_affine_decoder_reaches_the_closed_form_optimum(method, m, n):
    x = fitting.cloud(200, m, n, seed=m)
    best = ri.log_likelihood(ri.probabilistic_pca(x, m), x, gradient=False).total / 200
    decoder = ri.MLP((m, n))
    start = ri.NonlinearICA(decoder, decoder.init(0), 1.0)
    fit = ri.fit_mle(start, x, method=method, n_starts=1, tol=1e-12)
    assert fit.status == "converged", fit.message
    assert abs(fit.log_likelihood.total / 200 - best) <= PPCA


def test_a_nonlinear_fit_ends_where_l_bfgs_does():
    truth, x = fitting.curve(80)
    fits = [ri.fit_mle(truth, x, method=method, n_starts=1, tol=1e-3) for method in ("em", "l-bfgs")]
    assert fits[0].log_likelihood.total > ri.log_likelihood(truth, x).total
    for fit in fits:
        assert fit.converged, fit.message
    assert fits[0].log_likelihood.total == pytest.approx(fits[1].log_likelihood.total, abs=0.03 * len(x))


def test_an_affine_fit_is_not_pinned_to_the_nodes_of_its_start():
    """The exact integrator's nodes are made anew for every step: this is EM for probabilistic PCA."""
    x = np.random.default_rng(0).standard_normal((150, 1)) @ [[0.7, -0.5]]
    x = x + 0.2 * np.random.default_rng(1).standard_normal((150, 2))
    start = ri.NonlinearICA(ri.MLP((1, 2)), [1.0, 1.0, 0.0, 0.0], sigma2=1.0)
    fit = ri.fit_mle(start, x, method="em", n_starts=1, tol=1e-9)
    best = ri.log_likelihood(ri.probabilistic_pca(x, 1), x).total
    assert fit.status == "converged"
    assert fit.log_likelihood.total >= best - 1e-4
    assert fit.history[-1].iteration <= 500
