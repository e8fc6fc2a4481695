"""Proved bounds on log p(x): they hold the truth with no allowance, and are as narrow as they should be.

The full run of 1000 cases, with widths and times, is ``python -m benchmarks certified``.
"""

import dataclasses
import itertools
import json
import math
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import refica as ri
from refica import certified
from refica.certified import certified_bounds

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_m1.json").read_text(encoding="utf-8"))


def model_of(case):
    decoder = ri.MLP(case["sizes"], case["activations"][0], case["activations"][-1])
    theta = np.concatenate([np.append(np.ravel(layer["W"]), layer["b"]) for layer in case["layers"]])
    return ri.NonlinearICA(decoder, theta, case["sigma2"])


def narrowest(log_p, sigma2):
    """The width that rounding leaves: `certified_bounds` promises about 1e-14 |log p| for outliers."""
    return max(1e-9, 1e-13 * abs(log_p))


# ----------------------------------------------------------------------------------- containment


def test_the_proved_cases_are_contained_and_narrow():
    assert len(GOLDEN) == 64
    for case in GOLDEN:
        result = certified_bounds(model_of(case), [case["x"]], width=1e-9)
        value, radius = case["log_p"]
        assert result.lower[0] <= value - radius
        assert value + radius <= result.upper[0]
        assert result.upper[0] - result.lower[0] <= narrowest(value, case["sigma2"])
        assert result.converged[0] == (result.upper[0] - result.lower[0] <= 1e-9)


ACTIVATIONS = ("tanh", "sigmoid", "softplus", "sin", "gelu", "relu", "leaky_relu", "leaky_relu(0.3)",
               "identity", "polynomial")  # fmt: skip
KINDS = ("model", "outlier", "dead", "large")
CASES = [
    *[(1, kind, activation) for kind in KINDS for activation in ACTIVATIONS],
    *[(2, "model", activation) for activation in ACTIVATIONS],
    *[(2, "dead", activation) for activation in ("tanh", "relu", "polynomial")],
    *[(2, "outlier", activation) for activation in ("identity", "polynomial")],
    *[(3, "model", activation) for activation in ("identity", "polynomial")],
]


@pytest.mark.parametrize(("m", "kind", "activation"), CASES)
def test_a_random_case_is_contained(m, kind, activation):
    pytest.importorskip("flint")
    import certified_oracle

    rng = np.random.default_rng([m, KINDS.index(kind), ACTIVATIONS.index(activation), 1])
    case = certified_oracle.random_case(rng, m, kind, activation)
    truth = case.log_p()
    assert certified_oracle.is_sharp(truth)
    result = certified_bounds(case.model, [case.x], {1: 1e-9, 2: 1e-4, 3: 1e-2}[m])
    assert certified_oracle.contains(result.lower[0], result.upper[0], truth)
    if m == 1:
        assert result.upper[0] - result.lower[0] <= narrowest(float(truth.mid()), case.model.sigma2)


@pytest.mark.parametrize(
    ("m", "kind", "activation", "seed"),
    [
        (2, "model", "gelu", 4),
        (2, "outlier", "sigmoid", 8),
        (2, "dead", "tanh", 14),
        (2, "large", "softplus", 23),
    ],
)
def test_a_dense_case_is_contained(m, kind, activation, seed):
    pytest.importorskip("flint")
    import certified_oracle

    case = certified_oracle.random_dense_case(np.random.default_rng([m, seed, 7]), m, kind, activation)
    truth = case.log_p()
    assert certified_oracle.is_sharp(truth)
    result = certified_bounds(case.model, [case.x], 1e-8)
    assert result.converged[0]
    assert certified_oracle.contains(result.lower[0], result.upper[0], truth)


def test_the_two_kinds_of_truth_agree():
    """Where a dense decoder is made of lines, Arb's integrals of these and the trapezoidal sum overlap."""
    pytest.importorskip("flint")
    import certified_oracle

    case = certified_oracle.random_case(np.random.default_rng(0), 2, "model", "softplus")
    proved, summed = case.log_p(), certified_oracle.log_p_by_trapezoid(case.model, case.x)
    assert certified_oracle.is_sharp(proved)
    assert certified_oracle.is_sharp(summed)
    assert proved.overlaps(summed)
    shifted = certified_oracle.log_p_by_trapezoid(case.model, case.x + 1e-12)
    assert not proved.overlaps(shifted)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_an_affine_decoder_is_a_gaussian(m):
    rng = np.random.default_rng(m)
    decoder = ri.MLP((m, 4))
    theta = decoder.init(rng)
    model = ri.NonlinearICA(decoder, theta, 0.3)
    x = model.sample(3, rng)[1]
    W, b = next(decoder.unpack(theta))
    exact = stats.multivariate_normal(b, W @ W.T + 0.3 * np.eye(4)).logpdf(x)
    width = {1: 1e-10, 2: 1e-10, 3: 1e-6}[m]
    result = certified_bounds(model, x, width)
    assert result.converged.all()
    assert (result.lower <= exact + 1e-13).all()
    assert (exact - 1e-13 <= result.upper).all()
    assert (result.upper - result.lower <= width).all()


# ----------------------------------------------------------------------- what makes them hold


def relu_cases():
    rng = np.random.default_rng(0)
    for _ in range(24):
        decoder = ri.MLP((1, int(rng.integers(2, 9)), int(rng.integers(1, 4))), "relu")
        model = ri.NonlinearICA(decoder, decoder.init(rng), 1e-6)
        yield model, model.sample(1, rng)[1][0]


def contained(log_p, model, x, width):
    from mpmath import mpf

    result = certified_bounds(model, [x], width)
    return mpf(result.lower[0]) <= log_p <= mpf(result.upper[0])


def truths():
    pytest.importorskip("flint")
    from certified_oracle import Line, log_p_of_line
    from mpmath import mp, mpf

    mp.dps = 40
    for model, x in relu_cases():
        names = [act.name for act in model.decoder.activations]
        weights = [
            (W, b, name) for (W, b), name in zip(model.decoder.unpack(model.theta), names, strict=True)
        ]
        truth = log_p_of_line(Line(weights), x, model.sigma2)
        yield mpf(truth.str(30, radius=False)), model, x


def test_with_rounding_slack_relu_at_a_small_sigma2_is_contained():
    assert all(contained(*case, 1e-10) for case in truths())


def test_without_rounding_slack_it_is_not():
    cases = list(truths())
    from certified_oracle import without_rounding_slack

    with without_rounding_slack():
        assert sum(contained(*case, 1e-12) for case in cases) < 24


def plant(monkeypatch, module, name, change):
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: change(original(*args)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gauss_legendre_error", lambda errors: errors - 25.0),
        ("gauss_legendre", lambda S: S + 1e-7),
        ("first_order", lambda bracket: (bracket[0], bracket[1] - 1.0)),
        ("second_order", lambda bracket: (bracket[0] + 1e-3, bracket[1])),
    ],
)
def test_a_planted_fault_is_not_contained(monkeypatch, name, change):
    """A proved error forgotten, a sum off by 1e-7, brackets moved inward: the proved cases find each."""
    plant(monkeypatch, certified, name, change)

    def holds(case):
        result = certified_bounds(model_of(case), [case["x"]], width=1e-9, max_cells=3000)
        return result.lower[0] <= case["log_p"][0] <= result.upper[0]

    assert not all(holds(case) for case in GOLDEN[::3])


def test_an_error_of_gauss_legendre_1000_times_too_small_is_not_contained(monkeypatch):
    """Its bounds are close enough to what they bound that three digits less are found out."""
    cases = GOLDEN[::2]

    def missed():
        results = [certified_bounds(model_of(case), [case["x"]], width=1e-4) for case in cases]
        values = [case["log_p"][0] for case in cases]
        return sum(not r.lower[0] <= v <= r.upper[0] for r, v in zip(results, values, strict=True))

    assert missed() == 0
    plant(monkeypatch, certified, "gauss_legendre_error", lambda errors: errors - math.log(1000.0))
    assert missed() >= 2


def test_mass_outside_of_the_box_is_counted(monkeypatch):
    """With far too small a box the bounds are wide, and still true."""
    case = GOLDEN[40]
    monkeypatch.setattr(certified._Integral, "radius", lambda self, width: 1.0)
    result = certified_bounds(model_of(case), [case["x"]])
    assert result.lower[0] < case["log_p"][0] < result.upper[0]
    assert not result.converged[0]
    monkeypatch.setattr(certified._Integral, "outside", lambda self, R: -math.inf)
    assert certified_bounds(model_of(case), [case["x"]]).upper[0] < case["log_p"][0]


def test_pieces_of_the_finest_cell_are_a_partition():
    """In exact arithmetic: cells that overlap, or leave a gap, would make the sums of bounds untrue."""
    R = 2.0**7
    r = 2.0 * certified.FINEST * R
    c = R - r  # the last cell, whose centre takes the most bits
    cells = certified._Cells(
        np.array([[c]]), np.array([[r]]), *np.zeros((4, 1)), np.zeros((1, 5)), np.zeros(1, dtype=int)
    )
    c, r = certified._cut(cells, np.array([True]))
    assert len(c) == certified.PIECES
    ends = sorted(
        (Fraction(a) - Fraction(h), Fraction(a) + Fraction(h)) for a, h in zip(c[:, 0], r[:, 0], strict=True)
    )
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ends))
    assert (ends[0][0], ends[-1][1]) == (Fraction(R) - Fraction(4 * certified.FINEST * R), R)


def test_an_axis_that_is_as_fine_as_can_be_is_not_cut():
    cells = certified._Cells(
        np.zeros((2, 2)), np.array([[1.0, certified.FINEST], [certified.FINEST, 1.0]]), np.full(2, -1.0),
        np.zeros(2), np.zeros(2), np.zeros(2), np.zeros((2, 5)), np.array([0, 0]),
    )  # fmt: skip
    gap, _ = certified._gaps(cells, 1.0, 1e-6)
    assert gap[0] == pytest.approx(math.log(-math.expm1(-1.0)))
    assert gap[1] == -math.inf


# ------------------------------------------------------------------------------ widths and times


def smooth_pair(seed, activation, sigma2):
    rng = np.random.default_rng(seed)
    decoder = ri.MLP((2, 8, 3), activation)
    model = ri.NonlinearICA(decoder, decoder.init(rng), sigma2)
    return model, model.sample(1, rng)[1]


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "gelu", "sin"])
@pytest.mark.parametrize("sigma2", [1.0, 1e-2, 1e-4])
def test_two_latents_smooth(activation, sigma2):
    result = certified_bounds(*smooth_pair(0, activation, sigma2), width=1e-8)
    assert result.converged.all()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_two_latents_with_kinks(activation):
    result = certified_bounds(*smooth_pair(1, activation, 1e-2), width=1e-3)
    assert result.converged.all()


def test_three_latents():
    rng = np.random.default_rng(2)
    decoder = ri.MLP((3, 6, 4), "tanh")
    model = ri.NonlinearICA(decoder, decoder.init(rng), 0.05)
    assert certified_bounds(model, model.sample(1, rng)[1], width=1e-2).converged.all()


@pytest.mark.parametrize("activation", ["tanh", "relu", "sin"])
def test_an_extreme_outlier_takes_less_than_a_second(activation):
    rng = np.random.default_rng(3)
    decoder = ri.MLP((1, 8, 2), activation)
    model = ri.NonlinearICA(decoder, decoder.init(rng), 1e-6)
    x = model.sample(1, rng)[1] + [[3.0, 4.0]]
    start = time.process_time()
    result = certified_bounds(model, x)
    assert time.process_time() - start < 1.0
    assert -2e7 < result.lower[0] < -1e6
    assert result.upper[0] - result.lower[0] < 1e-12 * abs(result.lower[0])


# --------------------------------------------------------------------------------- the interface


def test_each_observation_by_itself():
    model, _ = smooth_pair(0, "tanh", 0.1)
    x = model.sample(4, 7)[1]
    together = certified_bounds(model, x, 1e-4)
    for i, one in enumerate(x):
        alone = certified_bounds(model, [one], 1e-4)
        assert (alone.lower[0], alone.upper[0]) == (together.lower[i], together.upper[i])
    assert together.message == "proved bounds to within 0.0001 nats"


def test_a_small_budget_leaves_wide_and_true_bounds():
    model, x = smooth_pair(0, "tanh", 1e-2)
    narrow = certified_bounds(model, x, 1e-8)
    wide = certified_bounds(model, x, 1e-8, max_cells=300)
    assert not wide.converged[0]
    assert "not converged for 1 of 1 observations: max_cells were examined" in wide.message
    assert wide.lower[0] <= narrow.lower[0] <= narrow.upper[0] <= wide.upper[0]


def test_a_width_below_rounding_is_said_to_be():
    case = GOLDEN[0]
    result = certified_bounds(model_of(case), [case["x"]], width=1e-15)
    assert not result.converged[0]
    assert "rounding alone" in result.message
    assert result.upper[0] - result.lower[0] < 1e-10


def test_a_kink_in_the_posterior_of_an_outlier_is_cut_as_fine_as_it_takes():
    """g = -0.8 |z - 0.1|, from below x: F falls by 3e7 per unit on both sides, a nat within 3e-8."""
    decoder = ri.MLP((1, 2, 1), ri.leaky_relu(0.2))
    model = ri.NonlinearICA(decoder, [1.0, -1.0, -0.1, 0.1, -1.0, -1.0, 0.0], 1e-6)
    result = certified_bounds(model, [[40.0]])
    assert result.lower[0] < -7e8
    assert result.upper[0] - result.lower[0] < 1e-12 * abs(result.lower[0])


@pytest.mark.parametrize("sigma2", [1e-120, 1e-300])
@pytest.mark.parametrize("x", [0.0, 1.0, 1e10, 1e99])
@pytest.mark.parametrize(
    "decoder", [ri.MLP((1, 3, 1), "tanh"), ri.Polynomial(1, 1, 3), ri.MLP((1, 3, 1), "relu")]
)
def test_exponents_beyond_the_range_of_floats_claim_nothing(decoder, x, sigma2):
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2)
    result = certified_bounds(model, [[x]], max_cells=1000)
    assert -math.inf <= result.lower[0] <= result.upper[0] < math.inf
    # A dead relu is constant, and where it is x the integral is that of the prior.
    assert not result.converged[0] or (x == 0.0 and math.isfinite(result.lower[0]))


@pytest.mark.parametrize("x", [1e99, -1e60, 1e20])
@pytest.mark.parametrize(
    "decoder", [ri.MLP((1, 3, 1), "tanh"), ri.Polynomial(1, 1, 3), ri.MLP((1, 3, 1), "relu")]
)
def test_absurd_data_give_true_bounds_and_no_warnings(decoder, x):
    model = ri.NonlinearICA(decoder, decoder.init(0), 1e-6)
    result = certified_bounds(model, [[x]], max_cells=2000)
    assert result.lower[0] <= result.upper[0]
    assert not math.isnan(result.lower[0])
    assert math.isfinite(result.upper[0])
    assert result.lower[0] < -1e20


def test_constant_decoders_and_dead_units():
    model = ri.NonlinearICA(ri.MLP((2, 3, 2), "relu"), np.zeros(17), 0.5)
    exact = stats.multivariate_normal(np.zeros(2), 0.5 * np.eye(2)).logpdf([1.0, 2.0])
    result = certified_bounds(model, [[1.0, 2.0]], 1e-10)
    assert result.lower[0] <= exact <= result.upper[0]
    assert result.converged[0]
    model = ri.NonlinearICA(ri.Polynomial(1, 2, 0), [1.0, 2.0], 0.5)
    exact = stats.multivariate_normal([1.0, 2.0], 0.5 * np.eye(2)).logpdf([1.0, 1.0])
    result = certified_bounds(model, [[1.0, 1.0]], 1e-10)
    assert result.lower[0] <= exact <= result.upper[0]


def test_the_result_is_frozen():
    result = certified_bounds(model_of(GOLDEN[61]), [GOLDEN[61]["x"]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.lower = 0.0


def test_what_cannot_be_done_is_refused():
    model = ri.NonlinearICA(ri.MLP((4, 4)), np.zeros(20), 1.0)
    with pytest.raises(ValueError, match=r"latent_dim <= 3, got 4; for more, log_likelihood"):
        certified_bounds(model, np.zeros((1, 4)))
    model = model_of(GOLDEN[0])
    with pytest.raises(ValueError, match=r"width must be a finite number > 0"):
        certified_bounds(model, [GOLDEN[0]["x"]], width=0.0)
    with pytest.raises(ValueError, match="max_cells"):
        certified_bounds(model, [GOLDEN[0]["x"]], max_cells=0)
    with pytest.raises(ValueError, match="x must have shape"):
        certified_bounds(model, [[1.0, 2.0, 3.0]])


class Foreign:
    """A third party's decoder: all that the likelihood needs, and no layers."""

    latent_dim, data_dim, n_params = 1, 1, 1

    def __call__(self, theta, z):
        return theta * z


def test_a_foreign_decoder_is_refused():
    with pytest.raises(TypeError, match="need a Polynomial or a decoder made of layers"):
        certified_bounds(ri.NonlinearICA(Foreign(), [1.0], 1.0), [[0.5]])
