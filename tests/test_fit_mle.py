"""Direct maximum likelihood: optima that are known, statuses, honesty of the value at the end."""

import dataclasses
import warnings

import numpy as np
import pytest

import refica as ri
from refica.fit import lbfgs
from refica.fit.mle import METHODS
from refica.fit.starts import FLOOR, principal_start, sigma2_floor

PPCA_AGREEMENT = 1e-6
"""Mean log-likelihood against the closed form: the fit stops when a round gains less than `tol`, and the
optimum is quadratic, so that it ends far nearer than tol = 1e-9 times the rounds left."""


def curve(size=300, seed=0, sigma2=0.01):
    """A bent curve in the plane with known parameters, and a sample of it."""
    decoder = ri.MLP((1, 4, 2))
    truth = ri.NonlinearICA(decoder, decoder.init(3), sigma2)
    return truth, truth.sample(size, seed)[1]


def test_an_affine_decoder_reaches_the_closed_form_optimum():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 2)) @ rng.standard_normal((2, 4)) + 0.3 * rng.standard_normal((200, 4))
    best = ri.log_likelihood(ri.probabilistic_pca(x, 2), x).total / 200
    start = ri.NonlinearICA(ri.MLP((2, 4)), ri.MLP((2, 4)).init(0), 1.0)
    fit = ri.fit_mle(start, x, n_starts=2, tol=1e-9)
    assert fit.status == "converged"
    assert abs(fit.log_likelihood.total / 200 - best) < PPCA_AGREEMENT
    assert abs(fit.model.sigma2 / ri.probabilistic_pca(x, 2).sigma2 - 1) < 1e-3


def test_a_curve_is_fitted_at_least_as_well_as_the_truth_explains_it():
    truth, x = curve(120)
    start = ri.NonlinearICA(truth.decoder, truth.decoder.init(0), 1.0)
    fit = ri.fit_mle(start, x, n_starts=3, tol=3e-3)
    assert fit.log_likelihood.total >= ri.log_likelihood(truth, x).total
    assert fit.converged, fit.message
    assert fit.log_likelihood.converged.all()
    assert 0.005 < fit.model.sigma2 < 0.02


def test_the_value_reported_is_the_likelihood_on_nodes_the_optimiser_did_not_use():
    truth, x = curve(100)
    fit = ri.fit_mle(truth, x, n_starts=1, max_iter=5)
    anew = ri.log_likelihood(fit.model, x, ri.Quadrature(ri.uniform_grid(4001, 9.0)))
    np.testing.assert_allclose(fit.log_likelihood.total, anew.total, atol=anew.error.sum() + 1e-9)


def test_the_same_seed_gives_the_same_bits_and_data_are_not_written_to():
    truth, x = curve(60)
    x.setflags(write=False)
    first, second = (ri.fit_mle(truth, x, n_starts=2, max_iter=10, rng=5) for _ in range(2))
    assert first.model.theta.tobytes() == second.model.theta.tobytes()
    assert first.model.sigma2 == second.model.sigma2


def test_a_coarse_integrator_is_used_as_given_and_found_out():
    """Twenty prior-centred Gauss-Hermite nodes do not see sigma = 0.03; the re-evaluation says so."""
    truth, x = curve(100, sigma2=1e-3)
    coarse = ri.Quadrature(ri.gauss_hermite(20))
    fit = ri.fit_mle(truth, x, coarse, n_starts=1, tol=1e-3)
    claimed = ri.log_likelihood(fit.model, x, coarse).total
    assert abs(claimed - fit.log_likelihood.total) > 0.1 * len(x)
    assert fit.status == "integrator not converged"
    assert "re-evaluation" in fit.message


def test_the_iteration_limit_is_a_status():
    truth, x = curve(50)
    start = ri.NonlinearICA(truth.decoder, truth.decoder.init(0), 1.0)
    fit = ri.fit_mle(start, x, n_starts=1, max_iter=3)
    assert (fit.status, fit.converged) == ("iteration limit", False)
    assert len(fit.history) <= 3


def test_a_callback_sees_every_step_and_can_stop():
    truth, x = curve(50)
    seen = []
    fit = ri.fit_mle(truth, x, n_starts=2, callback=lambda step: seen.append(step) or len(seen) == 4)
    assert fit.status == "stopped by callback"
    assert [step.iteration for step in seen] == [1, 2, 3, 4]
    assert fit.history == tuple(seen)


def test_a_decoder_that_passes_through_all_the_data_collapses_with_a_status():
    """Three points and a cubic through them: the likelihood is unbounded as sigma2 -> 0."""
    x = np.array([[-1.0, 0.3], [0.2, -0.4], [1.1, 0.9]])
    decoder = ri.Polynomial(1, 2, 2)
    start = ri.NonlinearICA(decoder, decoder.init(0), 1.0)
    fit = ri.fit_mle(start, x, n_starts=2)
    assert fit.status == "collapsed"
    assert fit.model.sigma2 == pytest.approx(sigma2_floor(x), rel=0.02)
    assert "unbounded" in fit.message


def test_principal_start_runs_through_the_data():
    truth, x = curve(400)
    start = principal_start(truth.decoder, x, np.random.default_rng(0), rotate=False)
    assert start.sigma2 < 0.5 * x.var(axis=0).mean()
    assert sigma2_floor(x) == FLOOR * x.var(axis=0).mean()


@pytest.mark.parametrize("decoder", [ri.MLP((1, 4, 2)), ri.Polynomial(1, 2, 3)])
def test_units_and_origin_of_the_data_do_not_matter(decoder):
    """The same curve in other units and from far away: the start is the same, in those units.

    A power of two scales without rounding, up to what the sums in BLAS do with it. An offset rounds the
    data, and 200 steps of L-BFGS towards a flat optimum amplify that to a percent of σ².
    """
    _, x = curve(100)
    here, large, far = (
        principal_start(decoder, data, np.random.default_rng(0), rotate=False)
        for data in (x, 1024.0 * x, 1000.0 + x)
    )
    assert large.sigma2 == pytest.approx(1024.0**2 * here.sigma2, rel=1e-9)
    assert far.sigma2 == pytest.approx(here.sigma2, rel=0.02)


def test_principal_start_has_latents_where_components_are_missing():
    x = np.random.default_rng(0).standard_normal((30, 1))
    decoder = ri.MLP((2, 3, 1))
    assert np.isfinite(principal_start(decoder, x, np.random.default_rng(0), rotate=True).theta).all()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((1, 2)), "at least 2 observations"),
        (np.ones((5, 2)), "must not be constant"),
        (np.zeros((5, 3)), "shape"),
        (np.full((5, 2), np.nan), "finite"),
    ],
)
def test_data_that_cannot_be_fitted_are_refused(x, words):
    truth, _ = curve(2)
    with pytest.raises(ValueError, match=words):
        ri.fit_mle(truth, x)


def test_unknown_methods_are_named_with_the_nearest():
    truth, x = curve(5)
    with pytest.raises(ValueError, match="did you mean 'l-bfgs'"):
        ri.fit_mle(truth, x, method="lbfgs")


def test_duplicates_and_constant_columns_warn():
    truth, x = curve(20)
    twice = np.concatenate([x, x[:3]])
    with pytest.warns(UserWarning, match="3 duplicate rows of 23"):
        ri.fit_mle(truth, twice, n_starts=1, max_iter=1)
    flat = np.column_stack([x[:, 0], np.ones(20)])
    with pytest.warns(UserWarning, match=r"constant columns \[1\]"):
        ri.fit_mle(truth, flat, n_starts=1, max_iter=1)


def test_a_round_that_lowers_the_value_is_not_accepted_and_not_called_converged(monkeypatch):
    """Plant a re-evaluation that always falls: parameters and history stay those of the first round."""
    truth, x = curve(40)
    honest = lbfgs.METHOD.inner
    rounds = []

    def falling(problem, start, done, steps):
        rounds.append(
            (honest(problem, start, done, min(steps, 3))._replace(value=-float(len(rounds))), steps)
        )
        return rounds[-1][0]

    monkeypatch.setitem(METHODS, "l-bfgs", dataclasses.replace(lbfgs.METHOD, inner=falling, opening=False))
    fit = ri.fit_mle(truth, x, n_starts=1)
    assert fit.model is rounds[0][0].model
    assert fit.history == rounds[0][0].steps
    assert [steps for _, steps in rounds] == [60, 100, 50, 25, 12, 6, 3, 1]
    assert fit.status == "integrator not converged"


def test_nodes_of_a_given_quadrature_are_frozen_within_a_round():
    """With moving nodes the gradient would not be that of the value, and L-BFGS would stall."""
    truth, x = curve(100)
    given = ri.Quadrature(ri.gauss_hermite(7), "laplace")
    fit = ri.fit_mle(truth, x, given, n_starts=1, max_iter=120)
    default = ri.fit_mle(truth, x, n_starts=1, max_iter=120)
    assert fit.log_likelihood.total > default.log_likelihood.total - 0.05 * len(x)


def test_a_model_is_expected():
    with pytest.raises(TypeError, match="model must be a NonlinearICA"):
        ri.fit_mle(ri.MLP((1, 2)), np.zeros((3, 2)))


def test_no_warning_is_raised_by_a_clean_fit():
    truth, x = curve(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = ri.fit_mle(truth, x, n_starts=2, max_iter=20)
    assert fit.status in ("converged", "iteration limit")


@pytest.mark.parametrize("sigma2", [10.0, 1000.0])
def test_a_variance_that_starts_far_too_large(sigma2):
    """A line search must not take exp(log σ²) beyond the largest float."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((100, 1)) @ [[0.7, -0.5]] + 0.2 * rng.standard_normal((100, 2))
    decoder = ri.MLP((1, 4, 2))
    for seed in (1, 13):
        start = ri.NonlinearICA(decoder, decoder.init(seed), sigma2=sigma2)
        fit = ri.fit_mle(start, x, n_starts=1, max_iter=70)
        assert fit.model.sigma2 < 1.0


def test_a_round_that_the_limit_cut_short_is_no_sign_of_convergence():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((100, 1)) @ [[0.7, -0.5]] + 0.2 * rng.standard_normal((100, 2))
    decoder = ri.MLP((1, 4, 2))
    start = ri.NonlinearICA(decoder, decoder.init(0), sigma2=1.0)
    for limit in (60, 61, 65):
        fit = ri.fit_mle(start, x, n_starts=1, max_iter=limit)
        assert fit.status == "iteration limit"
        assert fit.history[-1].iteration == limit
    assert len(repr(fit)) < 2000


@pytest.mark.parametrize("method", ["l-bfgs", "adam"])
def test_a_fit_that_is_not_evaluated_is_the_same_fit(method):
    """Its value is the optimiser's, near the other one and without an error."""
    truth, x = curve(100)
    quick, full = (
        ri.fit_mle(truth, x, method=method, n_starts=1, max_iter=400, evaluate=evaluate)
        for evaluate in (False, True)
    )
    assert quick.model.theta.tobytes() == full.model.theta.tobytes()
    assert (quick.status, quick.message) == (full.status, full.message)
    assert np.isnan(quick.log_likelihood.error).all()
    assert not quick.log_likelihood.converged.any()
    assert quick.log_likelihood.total == pytest.approx(full.log_likelihood.total, abs=1e-3 * len(x))
