"""`ExactPiecewiseAffine` for two latent dimensions: polygons in 40 digits, rotations, the certificate."""

import time

import numpy as np
import pytest

mp = pytest.importorskip("mpmath")

import piecewise_oracle as oracle  # noqa: E402 (it needs mpmath)

import refica as ri  # noqa: E402
from refica.exact import ExactLinear  # noqa: E402
from refica.piecewise import ExactPiecewiseAffine, arrangement, plane  # noqa: E402
from refica.piecewise.arrangement import FRAME, cells  # noqa: E402

EXACT = ExactPiecewiseAffine()

VALUE = 1e-11
"""Relative error of log p(x), as promised."""

TRUTH = 1e-13
"""What is met against 40 digits where σ² is not tiny; rounding of g(z) adds 1e-16/σ."""

SAME_SUM = 1e-13
"""One sum in another order."""

MAP = 1e-13
"""A decoder's value by its own forward pass and by an affine map: some hundred roundings of its terms."""

DIFFERENCES = 1e-8
"""Central differences of order four at steps of 1e-3 σ, of values right to 1e-14: truncation is 1e-11."""

ACTIVATIONS = ("relu", ri.leaky_relu(0.1), ri.leaky_relu(-0.5), "leaky_relu")


def rotated(model, angle):
    """The same model with its latent plane turned: W1 Q, under which log p(x) stays."""
    theta = model.theta.copy()
    W, _ = next(model.decoder.unpack(theta))
    c, s = np.cos(angle), np.sin(angle)
    W[...] = W @ np.array([[c, -s], [s, c]])
    return model.replace(theta=theta)


def random_model(rng, sigma2):
    depth = int(rng.integers(0, 4))
    widest = (1, 17, 8, 6)[depth]
    act = ACTIVATIONS[rng.integers(4)]
    sizes = (2, *(int(h) for h in rng.integers(1, widest + 1, size=depth)), int(rng.integers(1, 5)))
    decoder = ri.MLP(sizes, activation=act, output_activation=("identity", act)[rng.integers(2)])
    return ri.NonlinearICA(decoder, decoder.init(rng), sigma2)


# --- the cells ----------------------------------------------------------------------------------------


def check_cells(decoder, theta, spread=3.0, points=2000):
    """Every point lies in one cell, on which the decoder is the cell's affine map."""
    found = cells(decoder, theta)
    w = spread * np.random.default_rng(0).standard_normal((points, 2))
    tau, eta = np.moveaxis(w[:, None, :] - found.anchor, 2, 0)
    inside = (found.bottom <= eta) & (eta <= found.top)
    inside &= (found.left[:, 0] + found.left[:, 1] * eta <= tau) & (
        tau <= found.right[:, 0] + found.right[:, 1] * eta
    )
    assert (inside.sum(axis=1) == 1).all()
    cell = inside.argmax(axis=1)
    offset = np.stack([tau, eta], axis=2)[np.arange(points), cell]
    affine = found.value[cell] + np.einsum("knq,kq->kn", found.jacobian[cell], offset)
    off = np.abs(affine - decoder(theta, w @ FRAME.T))
    assert (off <= MAP * (1.0 + np.abs(decoder(theta, w @ FRAME.T)).max() + spread**2)).all()
    return len(found.top)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 1, 1), (2, 5, 2), (2, 16, 3), (2, 5, 5, 2), (2, 4, 4, 4, 1)])
def test_cells_are_the_decoder(sizes):
    rng = np.random.default_rng(0)
    for act in ACTIVATIONS:
        for out in ("identity", act):
            decoder = ri.MLP(sizes, activation=act, output_activation=out)
            check_cells(decoder, decoder.init(rng))


def test_the_number_of_cells():
    """h lines in general position cut the plane in 1 + h + h (h - 1)/2 regions, here cut up further at the
    heights of the vertices of each: at most one trapezium more for each vertex and region at it."""
    decoder = ri.MLP((2, 7, 1), activation="relu")
    regions, vertices = 1 + 7 + 21, 21
    assert regions <= check_cells(decoder, decoder.init(0)) <= regions + 2 * vertices


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("spoilt", ["no bias", "integers", "twins", "zeros", "dead", "along the lines"])
def test_cells_of_degenerate_networks(spoilt, depth):
    """Many bends through one point, parallel, on top of each other, along the lines of the sweep."""
    rng = np.random.default_rng(1)
    for act in ACTIVATIONS:
        for out in ("identity", act):
            decoder = ri.MLP((2, *[4] * depth, 2), activation=act, output_activation=out)
            theta = decoder.init(rng)
            for i, (W, b) in enumerate(decoder.unpack(theta)):
                if spoilt == "no bias":
                    b[...] = 0.0
                if spoilt == "integers":
                    W[...], b[...] = np.round(W), np.round(b)
                if spoilt == "twins":
                    W[1:], b[1:] = -2.0 * W[0], -2.0 * b[0]
                if spoilt == "zeros":
                    W[rng.random(W.shape) < 0.4] = 0.0
                if spoilt == "dead":
                    b[...] = -100.0
                if spoilt == "along the lines" and i == 0:
                    W[...] = np.outer(rng.standard_normal(4), FRAME[:, 1])
            check_cells(decoder, theta)


@pytest.mark.parametrize(
    "fault", ["events too far", "a cell joined across others", "a bend that stands still"]
)
def test_a_planted_fault_in_the_cells_is_found(fault, monkeypatch):
    decoder = ri.MLP((2, 5, 5, 2), activation="relu")
    if fault == "events too far":
        right = arrangement._events
        monkeypatch.setattr(arrangement, "_events", lambda *a: 2.0 * right(*a))
    if fault == "a cell joined across others":  # as one was before cells were joined level by level
        right_join = arrangement._join
        monkeypatch.setattr(arrangement, "_join", lambda key, level: right_join(key[:, :1], level))
    if fault == "a bend that stands still":
        monkeypatch.setattr(arrangement, "_rates", lambda by_t, by_y, unit: np.zeros(unit.shape))
    with pytest.raises(AssertionError):
        check_cells(decoder, decoder.init(0))


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma2", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("sizes", [(2, 3, 2), (2, 4, 1), (2, 2, 2, 2)])
def test_against_polygons_in_40_digits(sizes, sigma2):
    decoder = ri.MLP(sizes, activation=ri.leaky_relu(0.2))
    model = ri.NonlinearICA(decoder, decoder.init(3), sigma2)
    _, x = model.sample(1, rng=1)
    result = ri.log_likelihood(model, x, EXACT, gradient=False)
    off = abs(float(mp.mpf(float(result.total)) - oracle.plane_truth(decoder, model.theta, sigma2, x[0])))
    assert off <= TRUTH + 1e-15 / np.sqrt(sigma2)
    assert off <= result.error[0] <= VALUE * 10.0
    assert result.converged.all()


def check_rotation(model, x, angle):
    """The value is that of the rotated model, within VALUE; what is reported covers the difference."""
    one, other = (EXACT.evaluate(each, x, False) for each in (model, rotated(model, angle)))
    off = np.abs(one.log_p - other.log_p)
    assert (off <= VALUE * np.maximum(1.0, np.abs(one.log_p))).all()
    assert (off <= one.error + other.error).all()
    assert not any(concerned.any() for result in (one, other) for concerned in result.problems.values())


def test_turning_the_plane():
    """Random networks of depth 0 to 3, σ² from 1e-6 to 10, outliers and shifted data included."""
    rng = np.random.default_rng(5)
    for trial in range(60):
        model = random_model(rng, 10.0 ** rng.uniform(-6.0, 1.0))
        if trial % 4 == 0:
            theta = model.theta.copy()
            theta[rng.integers(len(theta), size=len(theta) // 4)] = 0.0
            model = model.replace(theta=theta)
        _, x = model.sample(2, rng)
        x[1] += rng.standard_normal(x.shape[1]) * np.sqrt(model.sigma2 * 10.0 ** rng.uniform(0.0, 5.3))
        check_rotation(model, x, rng.uniform(0.0, 6.0))


def test_deep_at_small_noise():
    """Where panels without cuts at the modes were once wrong by 36 %."""
    for seed in range(3):
        decoder = ri.MLP((2, 12, 12, 3), activation="relu")
        model = ri.NonlinearICA(decoder, decoder.init(seed), 1e-6)
        check_rotation(model, model.sample(4, rng=seed)[1], 0.7)


RIDGES = ri.MLP((2, 8, 1), activation="relu")
"""With n < m the posterior is a ridge from side to side of its cells."""


def test_ridges():
    model = ri.NonlinearICA(RIDGES, RIDGES.init(1), 1e-6)
    x = model.sample(8, rng=2)[1]
    for angle in (0.3, 1.1):
        check_rotation(model, x, angle)


@pytest.mark.parametrize("fault", ["no cuts where the sides count", "a lost mode"])
def test_a_planted_fault_is_found(fault, monkeypatch):
    """Without those cuts some ridges are wrong by 1e-4, while panels agree with their halves to 1e-13."""
    if fault == "no cuts where the sides count":
        right = plane._cuts
        monkeypatch.setattr(plane, "_cuts", lambda local: _only_ends(right(local)))
    if fault == "a lost mode":
        right_matter = plane._what_matters
        monkeypatch.setattr(plane, "_what_matters", lambda *a: _without_the_first(right_matter(*a)))
    with pytest.raises(AssertionError):
        test_ridges()


def _only_ends(cuts):
    kept = np.sort(np.where(cuts == 0.0, 0.0, np.where(np.isin(cuts, cuts[:, [0, -1]]), cuts, 0.0)), axis=1)
    return np.where((kept == cuts[:, :1]) | (kept == cuts[:, -1:]), kept, 0.0)


def _without_the_first(matter):
    kept = np.append(False, np.diff(matter.row) == 0)
    return matter._replace(row=matter.row[kept], cell=matter.cell[kept], offset=matter.offset[kept])


def test_panels_that_do_not_agree_are_reported(monkeypatch):
    model = ri.NonlinearICA(RIDGES, RIDGES.init(1), 1e-2)
    x = model.sample(2, rng=2)[1]
    right = ri.log_likelihood(model, x, EXACT, gradient=False)
    monkeypatch.setattr(plane, "BISECTIONS", 1)
    monkeypatch.setattr(plane, "AGREEMENT", 0.0)
    result = ri.log_likelihood(model, x, EXACT, gradient=False)
    assert not result.converged.any()
    assert "still differs from its halves" in result.message
    assert (np.abs(result.per_observation - right.per_observation) <= result.error).all()


def test_a_lost_cell_shows_in_the_error(monkeypatch):
    """Cells whose affine map is not the decoder's part the two sums that the error compares."""
    model = ri.NonlinearICA(RIDGES, RIDGES.init(1), 1e-2)
    x = model.sample(2, rng=2)[1]
    right = ri.log_likelihood(model, x, EXACT, gradient=False)
    assert (right.error <= 1e-10).all()
    monkeypatch.setattr(arrangement, "_rates", lambda by_t, by_y, unit: np.zeros(unit.shape))
    wrong = ri.log_likelihood(model, x, EXACT, gradient=False)
    assert (wrong.error >= 1e-3).all()


def test_the_certificate_contains_it():
    certified = pytest.importorskip("refica.certified")
    rng = np.random.default_rng(0)
    for sizes in ((2, 3, 2), (2, 5, 1), (2, 3, 3, 2)):
        for sigma2 in (1.0, 1e-2, 1e-4, 1e-6):
            decoder = ri.MLP(sizes, activation="relu")
            model = ri.NonlinearICA(decoder, decoder.init(rng), sigma2)
            _, x = model.sample(1, rng)
            value = ri.log_likelihood(model, x, EXACT, gradient=False)
            bounds = certified.certified_bounds(model, x, width=1e-4, max_cells=2**14)
            assert bounds.lower[0] - value.error[0] <= value.total <= bounds.upper[0] + value.error[0]


def test_affine_decoders():
    for sizes in ((2, 3), (2, 1), (2, 4, 3)):
        decoder = ri.MLP(sizes, activation="identity")
        model = ri.NonlinearICA(decoder, decoder.init(2), 1e-3)
        x = model.sample(3, rng=0)[1]
        got, want = EXACT.evaluate(model, x, True), ExactLinear().evaluate(model, x, True)
        assert np.allclose(got.log_p, want.log_p, rtol=1e-13)
        assert np.allclose(got.gradient.theta, want.gradient.theta, rtol=1e-9, atol=1e-9)


# --- gradients and posteriors -------------------------------------------------------------------------


def central(f, step):
    """f'(0) by differences of order four."""
    return (8.0 * (f(step) - f(-step)) - (f(2.0 * step) - f(-2.0 * step))) / (12.0 * step)


@pytest.mark.parametrize(("sizes", "sigma2"), [((2, 6, 3), 0.1), ((2, 6, 1), 0.01), ((2, 4, 4, 2), 1e-3)])
def test_gradients_against_differences(sizes, sigma2):
    """log p(x) has no kinks in θ, whatever the decoder has."""
    decoder = ri.MLP(sizes, activation="relu")
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2)
    x = model.sample(2, rng=0)[1]
    gradient = EXACT.evaluate(model, x, True).gradient
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = rng.standard_normal(decoder.n_params)
        got = central(
            lambda s, d=direction: EXACT.evaluate(
                model.replace(theta=model.theta + s * d), x, False
            ).log_p.sum(),
            1e-3 * np.sqrt(sigma2),
        )
        assert abs(got - gradient.theta @ direction) <= DIFFERENCES * np.abs(gradient.theta * direction).sum()
    by_sigma2 = central(
        lambda s: EXACT.evaluate(model.replace(sigma2=sigma2 * (1.0 + s)), x, False).log_p.sum(), 1e-3
    )
    assert abs(by_sigma2 / sigma2 - gradient.sigma2) <= DIFFERENCES * len(x) * sizes[-1] / sigma2


@pytest.mark.parametrize("sigma2", [1.0, 1e-2, 1e-4])
def test_posteriors_turn_with_the_plane(sigma2):
    decoder = ri.MLP((2, 6, 2), activation=ri.leaky_relu(0.1))
    model = ri.NonlinearICA(decoder, decoder.init(0), sigma2)
    x = model.sample(4, rng=0)[1]
    angle = 0.7
    c, s = np.cos(angle), np.sin(angle)
    Q = np.array([[c, -s], [s, c]])
    one, other = ri.posterior(model, x, EXACT), ri.posterior(rotated(model, angle), x, EXACT)
    sd = np.sqrt(np.trace(one.covariance, axis1=1, axis2=2))
    assert (np.abs(other.mean @ Q.T - one.mean).max(axis=1) <= 1e-10 * sd).all()
    turned = Q @ other.covariance @ Q.T
    assert (np.abs(turned - one.covariance).max(axis=(1, 2)) <= 1e-9 * sd**2).all()


def test_posterior_means_against_differences():
    """E[g(Z) | x] = x + σ² ∇_x log p(x): differences in x against the nodes' average of g."""
    decoder = ri.MLP((2, 6, 2), activation="relu")
    model = ri.NonlinearICA(decoder, decoder.init(4), 0.05)
    x = model.sample(1, rng=0)[1]
    z, log_weight = EXACT.nodes(model, x)
    rho = np.exp(model.log_joint(x, z) + log_weight - EXACT.evaluate(model, x, False).log_p[:, None])
    for axis, unit in enumerate(np.eye(2)):
        slope = central(lambda s, u=unit: EXACT.evaluate(model, x + s * u, False).log_p[0], 1e-4)
        mean = rho[0] @ decoder(model.theta, z[0])[:, axis]
        assert abs(x[0, axis] + model.sigma2 * slope - mean) <= DIFFERENCES


# --- as an integrator ---------------------------------------------------------------------------------


def test_neither_order_nor_company_matters():
    decoder = ri.MLP((2, 8, 2), activation="relu")
    model = ri.NonlinearICA(decoder, decoder.init(0), 1e-2)
    x = model.sample(6, rng=0)[1]
    together = EXACT.evaluate(model, x, True)
    order = [3, 1, 5, 0, 2, 4]
    shuffled = EXACT.evaluate(model, x[order], True)
    alone = [EXACT.evaluate(model, row[None], True) for row in x]
    assert (np.abs(shuffled.log_p - together.log_p[order]) <= SAME_SUM).all()
    assert (np.abs([each.log_p[0] for each in alone] - together.log_p) <= SAME_SUM).all()
    size = max(np.abs(each.gradient.theta).max() for each in alone)
    for other in (shuffled.gradient.theta, sum(each.gradient.theta for each in alone)):
        assert np.abs(other - together.gradient.theta).max() <= SAME_SUM * 6 * size


def test_the_area_of_a_cell_far_from_its_anchor():
    """Between parallel sides that rise by 1e3 per unit, 1e18 units long: their places there are 1e21 and
    round to 1e5, which would swallow the width, 1."""
    sides = np.array([[0.0, 1e3]]), np.array([[1.0, 1e3]])
    ends = np.array([-1e18]), np.array([1e18])
    strip = plane.Cells(*ends, np.zeros((1, 2)), *sides, np.zeros((1, 2)), np.zeros((1, 2, 2)))
    np.testing.assert_allclose(plane._areas(strip), 2e18, rtol=1e-15)


def test_the_public_functions():
    decoder = ri.MLP((2, 5, 2), activation="relu")
    model = ri.NonlinearICA(decoder, decoder.init(0), 0.1)
    x = model.sample(40, rng=0)[1]
    result = ri.log_likelihood(model, x, EXACT)
    assert result.converged.all()
    assert (result.error <= 1e-11).all()
    assert np.allclose(
        ri.density(model, x, EXACT).per_observation, np.exp(result.per_observation), rtol=1e-12
    )
    assert np.allclose(ri.scores(model, x[:3], EXACT)[:, -1].shape, (3,))
    draws = ri.posterior(model, x[:3], EXACT).sample(500, rng=0)
    assert draws.shape == (500, 3, 2)


def test_it_is_fast():
    """CPU time per observation in the median, gradient included: 0.3 s, of which it needs a tenth."""
    spent = []
    for sizes, sigma2 in (((2, 16, 3), 1e-2), ((2, 16, 3), 1.0), ((2, 8, 8, 2), 1e-2), ((2, 8, 8, 2), 1e-6)):
        decoder = ri.MLP(sizes, activation="relu")
        model = ri.NonlinearICA(decoder, decoder.init(0), sigma2)
        x = model.sample(4, rng=0)[1]
        start = time.process_time()
        EXACT.evaluate(model, x, True)
        spent.append((time.process_time() - start) / len(x))
    assert np.median(spent) <= 0.3
