"""Small data and problems that the tests of fitting share."""

import numpy as np

import refica as ri
from refica.fit.problem import Problem, Settings
from refica.fit.watch import Watch

GRID = ri.Quadrature(ri.uniform_grid(61, 5.0))
"""Resolves σ² = .05 on `curve`: for tests of steps and states, not of integrals."""

SETTINGS = Settings(
    method="l-bfgs",
    objective="log-likelihood",
    n_starts=1,
    max_iter=50,
    tol=1e-6,
    fixed_sigma2=False,
    batch_size=10,
    learning_rate=0.01,
    schedule="plateau",
    fresh_nodes=None,
)


def curve(size=40, seed=0, sigma2=0.05):
    """A bent curve in the plane with known parameters, and a sample of it."""
    decoder = ri.MLP((1, 3, 2))
    truth = ri.NonlinearICA(decoder, decoder.init(3), sigma2)
    return truth, truth.sample(size, seed)[1]


def cloud(size, m, n, seed):
    """Observations (size, n) of m strong directions under weak noise."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((size, m)) @ rng.standard_normal((m, n)) + 0.3 * rng.standard_normal((size, n))


def problem_of(model, x, *, integrator=None, executor=None, watch=None, **settings):
    """What `fit_mle` makes of its arguments."""
    return Problem(model, x, integrator, SETTINGS._replace(**settings), watch or Watch(), executor)


def same_fit(one, other):
    """Whether two fits are the same bit for bit, but for the time they took."""
    return (
        one.model.theta.tobytes() == other.model.theta.tobytes()
        and one.model.sigma2 == other.model.sigma2
        and one.log_likelihood.per_observation.tobytes() == other.log_likelihood.per_observation.tobytes()
        and [step[:3] for step in one.history] == [step[:3] for step in other.history]
        and (one.status, one.message) == (other.status, other.message)
    )
