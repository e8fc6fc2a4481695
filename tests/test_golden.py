"""The proved cases of data/golden_m1.json with σ² >= 0.01, by a uniform grid that fits.

Provenance: every number in that file was enclosed by rigorous ball arithmetic (Arb's integrator),
independently of refica; `oracles.golden` says more. The file is a copy, compacted, every digit kept.
"""

import math

import checks
import numpy as np
import oracles
import pytest

import refica as ri

CASES = [entry for entry in oracles.golden() if entry[0].sigma2 >= 0.01 and entry[2]["kind"] == "model"]

STEPS_PER_WIDTH = 2.0
"""A step of half the narrowest posterior width: below machine precision for a Gaussian posterior, and
enough where curvature narrows it further."""


def name(entry):
    model, _, case = entry
    return f"{model.sigma2:g}-{'-'.join(map(str, case['sizes']))}-{case['activations'][0]}"


def fitting_grid(model):
    """A grid on [-9, 9] (beyond is 1e-18 of the prior), its step from σ and the largest |J| there.

    Where σ is large the decoder's own scale rules: tanh(w z) has a pole at distance π/2w, so that a step h
    leaves exp(-π²/wh), which is 1e-20 for the steepest w here, 5, at h = 0.04.
    """
    z = np.linspace(-9.0, 9.0, 2001)[:, None]
    J = model.decoder.jvp(model.theta, z, np.zeros(len(model.theta)), np.ones_like(z))
    width = 1.0 / math.sqrt(1.0 + np.linalg.norm(J, axis=1).max() ** 2 / model.sigma2)
    step = min(width / STEPS_PER_WIDTH, 0.04)
    return ri.Quadrature(ri.uniform_grid(2 * math.ceil(9.0 / step) + 1, 9.0))


@pytest.fixture(params=CASES, ids=map(name, CASES))
def proved(request):
    return request.param


def test_there_are_thirty_two_cases():
    assert len(CASES) == 32


def test_value_and_error(proved):
    model, x, case = proved
    result = ri.log_likelihood(model, x, fitting_grid(model))
    off = abs(result.total - case["log_p"][0])
    assert off <= 1e-10
    assert result.error[0] >= off - case["log_p"][1]
    assert result.error[0] <= 1e-3  # and says something
    assert result.converged.all(), result.message


def test_gradient(proved):
    model, x, case = proved
    result = ri.log_likelihood(model, x, fitting_grid(model))
    assert checks.relative_error(result.gradient.theta, np.array(case["grad_theta"])) <= 1e-8
    assert checks.relative_error(result.gradient.sigma2, case["grad_sigma2"][0]) <= 1e-8


def test_density_and_its_gradient(proved):
    """p = exp(log p), and its gradient is p times that of log p."""
    model, x, case = proved
    p = math.exp(case["log_p"][0])
    result = ri.density(model, x, fitting_grid(model))
    assert result.total == pytest.approx(p, rel=1e-10)
    assert result.error[0] >= abs(result.total - p) - p * case["log_p"][1]
    assert checks.relative_error(result.gradient.theta / p, np.array(case["grad_theta"])) <= 1e-8
    assert checks.relative_error(result.gradient.sigma2 / p, case["grad_sigma2"][0]) <= 1e-8


def test_posterior(proved):
    model, x, case = proved
    post = ri.posterior(model, x, fitting_grid(model))
    variance = case["post_var"][0]
    assert abs(post.mean[0, 0] - case["post_mean"][0]) <= 1e-8 * math.sqrt(variance)
    assert post.covariance[0, 0, 0] == pytest.approx(variance, rel=1e-8)


def test_scores(proved):
    model, x, case = proved
    want = np.append(case["grad_theta"], case["grad_sigma2"][0])
    assert checks.relative_error(ri.scores(model, x, fitting_grid(model))[0], want) <= 1e-8
