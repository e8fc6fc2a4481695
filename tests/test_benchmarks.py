"""The measurements are measured: what they count, what they call a miss, and that their truths are true.

The long runs themselves are ``python -m benchmarks NAME``; here are a few of their cases.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refica as ri
from refica.likelihood import Estimate

pytest.importorskip("flint")  # the truth of most coverage cases is from ball arithmetic

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the benchmarks are not installed

from benchmarks import _cases, _integrals, _methods, accuracy, coverage  # noqa: E402  found and usable only now

AGREE = 1e-9
"""What Reference may be off by on the cases here, generously."""


@dataclasses.dataclass(frozen=True)
class Shifted:
    """An integrator whose log p is off by ``off`` and which reports the error ``reported``."""

    off: float
    reported: float

    def nodes(self, model, x):
        raise NotImplementedError

    def evaluate(self, model, x, gradient):
        right = coverage.Reference().evaluate(model, x, gradient)
        return Estimate(right.log_p + self.off, np.full(len(x), self.reported), {}, None)


def judged(off, reported, m=1, index=0):
    entry = coverage.Contender("planted", lambda model, seed: Shifted(off, reported))
    return coverage.judge(entry, _cases.case(m, index), index)


# -- coverage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "index"), [(1, 0), (1, 3), (1, 11), (2, 0), (2, 351), (3, 0)])
def test_a_case_is_made_again_and_its_truth_is_true(m, index):
    case, again = _cases.case(m, index), _cases.case(m, index)
    assert case.truth == again.truth
    np.testing.assert_array_equal(case.x, again.x)
    assert case.model.latent_dim == m
    found = ri.log_likelihood(case.model, case.x[None], coverage.Reference(), gradient=False)
    least, greatest = case.truth.error(found.total)
    assert least <= greatest
    assert least <= AGREE * max(1.0, abs(found.total))


def test_consecutive_cases_are_spread_over_all_strata():
    cells = [index * _cases.STRIDE % _cases.CELLS_OF_CASES for index in range(_cases.CELLS_OF_CASES)]
    assert sorted(cells) == list(range(_cases.CELLS_OF_CASES))
    first = cells[:70]
    assert {cell % 10 for cell in first} == set(range(10))
    assert {cell // 10 % 5 for cell in first} == set(range(5))
    assert {cell // 50 for cell in first} == set(range(7))
    assert sum(coverage.CASES.values()) >= 2000


def test_the_turned_plane_is_the_same_model():
    model = ri.NonlinearICA(ri.MLP((2, 5, 3), "relu"), ri.MLP((2, 5, 3)).init(1), 0.1)
    z = np.random.default_rng(0).standard_normal((4, 2))
    turned = _cases.turn(model)
    (W, _), *_ = model.decoder.unpack(model.theta)
    (V, _), *_ = turned.decoder.unpack(turned.theta)
    R = np.linalg.lstsq(W, V, rcond=None)[0]
    np.testing.assert_allclose(R @ R.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(
        turned.decoder(turned.theta, z), model.decoder(model.theta, z @ R.T), atol=1e-12
    )


def test_an_error_estimate_that_is_too_small_is_a_miss():
    assert judged(1e-3, 2e-3).covered
    missed = judged(1e-3, 5e-4)
    assert missed.missed
    assert not missed.gross
    gross = judged(1e-3, 5e-5)
    assert gross.missed
    assert gross.gross
    nan = judged(float("nan"), 1.0)
    assert nan.gross
    row = coverage.counts([judged(1e-3, 2e-3), missed, gross])
    assert (row["covered"], row["missed"], row["gross"], row["open"]) == (1, 2, 1, 0)


def test_what_the_truth_cannot_tell_is_open():
    truth = _cases.Truth(-1.0, -1e-3, 1e-3, "test")
    least, greatest = truth.error(-1.0)
    assert (least, greatest) == (0.0, 1e-3)
    outcome = coverage.Outcome(1, 0, -1.0, 1e-6, True, least, greatest, 0.1, "")
    assert not outcome.covered
    assert not outcome.missed
    assert coverage.counts([outcome])["open"] == 1


def test_an_integrator_that_raises_is_a_violation():
    def fail(model, seed):
        class Fails:
            def nodes(self, model, x):
                raise ArithmeticError("planted")

        return Fails()

    case = _cases.case(1, 0)
    outcome = coverage.judge(coverage.Contender("fails", fail), case, 0)
    assert outcome.gross
    found = coverage.summary({"fails": [outcome]})["violations"]["fails"]
    assert found[0]["command"] == "python -m benchmarks coverage --case 1-0"
    assert "planted" in found[0]["words"]


# -- accuracy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "modes", "m"), [("tanh", 2, 1), ("relu", 1, 2), ("tanh", 1, 3), ("relu", 2, 3)]
)
def test_the_routes_to_the_truth_agree(activation, modes, m):
    case = _integrals.integral(activation, modes, m, 1e-2)
    assert all(abs(off) <= AGREE for off in case.routes.values())


def test_evaluations_are_counted():
    decoder = _methods.Counted(ri.MLP((1, 3, 2)))
    model = ri.NonlinearICA(decoder, decoder.init(0), 0.1)
    x = np.zeros(2)
    ri.log_likelihood(model, x[None], ri.Quadrature(ri.monte_carlo(100, seed=0)), gradient=False)
    assert decoder.evaluations == 100
    decoder.reset()
    assert decoder.evaluations == 0


def test_a_method_arrives_where_no_larger_size_is_worse():
    curve = {"error": [1e-9, 1e-2, 1e-7, 1e-9], "evaluations": [1, 2, 30, 40], "ms": [0.1, 0.2, 5.0, 4.0]}
    assert accuracy._least(curve, 1e-6) == (30, 4.0)
    curve["error"][-1] = 1e-3
    assert accuracy._least(curve, 1e-6) is None


def test_every_method_runs_at_its_smallest_size():
    case = _integrals.integral("relu", 1, 1, 1.0)
    seen = {}
    for method in _methods.methods(case.model):
        seen.setdefault(method.name, method.run(case.model, case.x, 0))
    assert len(seen) == 17
    for name, found in seen.items():
        assert np.isfinite(found.value), name


# -- the command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["_cases"], ["blas", "--case", "1-0"]])
def test_a_wrong_command_is_refused(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "python -m benchmarks" in done.stderr
