"""Modes of the log joint: against closed forms, dense lattices and differences; kinks, saddles, outliers."""

import math

import numpy as np
import pytest
from scipy import ndimage

import refica as ri
from refica import ascent, modes
from refica.modes import Modes, find_modes, laplace_mass

FLAT = 1e-8
"""Largest gradient at a mode, in units of the posterior's own (A^½): the search ends at 1e-6 and then makes
one more step, which squares it; what is left is rounding."""

SAME_MODE = 1e-9
"""Distance of a mode from its closed form, in posterior standard deviations."""

SHARE = 1e-6
"""Share of the mass below which a mode may be missed."""


class Protocol:
    """A decoder from elsewhere: nothing but the protocol, real arithmetic only."""

    def __init__(self, decoder):
        self._decoder = decoder
        self.latent_dim, self.data_dim, self.n_params = decoder.latent_dim, decoder.data_dim, decoder.n_params

    def init(self, rng):
        return self._decoder.init(rng)

    def __call__(self, theta, z):
        assert z.dtype == np.float64
        return self._decoder(theta, z)

    def vjp(self, theta, z, cotangent):
        assert z.dtype == cotangent.dtype == np.float64
        return self._decoder.vjp(theta, z, cotangent)

    def jvp(self, theta, z, dtheta, dz):
        assert z.dtype == dz.dtype == np.float64
        return self._decoder.jvp(theta, z, dtheta, dz)


def square(sigma2):
    return ri.NonlinearICA(ri.Polynomial(1, 1, 2), [0.0, 0.0, 1.0], sigma2)


def smooth_model(seed, m):
    """A random model with smooth activations, and 4 observations of its own."""
    rng = np.random.default_rng([seed, m])
    kind = ("tanh", "sigmoid", "gelu", "softplus", "sin", "polynomial")[seed % 6]
    n = int(rng.integers(m, m + 3))
    decoder = (
        ri.Polynomial(m, n, 2)
        if kind == "polynomial"
        else ri.MLP((m, int(rng.integers(3, 9)), n), activation=kind)
    )
    model = ri.NonlinearICA(decoder, decoder.init(rng), 10.0 ** rng.uniform(-4.0, 1.0))
    return model, model.sample(4, rng)[1]


def gradient(model, x, z):
    """∇ log p(x_i, z_i) by central differences of order four of the public log joint, row by row."""

    def value(point):
        return np.array([model.log_joint(x[i : i + 1], point[i : i + 1])[0, 0] for i in range(len(x))])

    h = 1e-3 * math.sqrt(model.sigma2)
    columns = [
        (8.0 * (value(z + h * e) - value(z - h * e)) - (value(z + 2 * h * e) - value(z - 2 * h * e)))
        / (12 * h)
        for e in np.eye(z.shape[1])
    ]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("sigma2", [1e-6, 1e-4, 1e-2, 1.0, 10.0])
def test_the_modes_of_a_square(sigma2):
    """g(z) = z²: z² = x - σ²/2 where that is positive, else 0; A = 1 + (6 z² - 2 x)/σ²."""
    model = square(sigma2)
    x = np.array([1.0, 7.3, 100.0, 1e4, -1.0, -50.0])[:, None]
    found = find_modes(model, x)
    for i, (value,) in enumerate(x):
        square_of_mode = max(value - sigma2 / 2.0, 0.0)
        want = [-math.sqrt(square_of_mode), math.sqrt(square_of_mode)] if square_of_mode > 0.0 else [0.0]
        present = np.isfinite(found.log_joint[i])
        precision = 1.0 + (6.0 * square_of_mode - 2.0 * value) / sigma2
        got = np.sort(found.modes[i, present, 0])
        assert len(got) == len(want)
        assert (
            np.abs(got - want).max() * math.sqrt(precision)
            <= SAME_MODE * max(1.0, abs(want[0])) / sigma2**0.5
        )
        np.testing.assert_allclose(found.hessian[i, present, 0, 0], precision, rtol=1e-6)
        assert found.converged[i].all()
        joint = model.log_joint(x[i : i + 1], found.modes[i])[0]
        np.testing.assert_allclose(found.log_joint[i, present], joint[present], rtol=1e-13)
        # absent modes repeat the first one
        assert (found.modes[i, ~present] == found.modes[i, 0]).all()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7])
def test_an_affine_decoder_has_one_mode(m):
    """The posterior's mean, and its precision (WᵀW + σ² I)/σ²."""
    rng = np.random.default_rng(m)
    n = m + 1
    W, b = rng.standard_normal((n, m)), rng.standard_normal(n)
    model = ri.NonlinearICA(ri.MLP((m, n)), np.concatenate([W.ravel(), b]), 1e-3)
    _, x = model.sample(6, rng)
    x[0] += 30.0
    found = find_modes(model, x)
    assert found.modes.shape == (6, 1, m)
    assert found.converged.all()
    assert found.complete.all()
    M = W.T @ W + 1e-3 * np.eye(m)
    want = np.linalg.solve(M, W.T @ (x - b).T).T
    np.testing.assert_allclose(found.modes[:, 0], want, rtol=0.0, atol=1e-11)
    np.testing.assert_allclose(found.hessian[:, 0], np.broadcast_to(M / 1e-3, (6, m, m)), rtol=0.0, atol=1e-4)
    exact = ri.log_likelihood(model, x, ri.ExactLinear()).per_observation
    np.testing.assert_allclose(laplace_mass(found)[:, 0], exact, rtol=1e-9)


@pytest.mark.parametrize("seed", range(15))
def test_smooth_modes_are_maxima_with_their_hessian(seed):
    m = 1 + seed % 3
    model, x = smooth_model(seed, m)
    found = find_modes(model, x)
    i, c = np.nonzero(np.isfinite(found.log_joint) & found.converged)
    assert set(i) == set(range(len(x)))
    z, A = found.modes[i, c], found.hessian[i, c]
    g = gradient(model, x[i], z)
    decrement = np.einsum("rm,rm->r", g, np.linalg.solve(A, g[..., None])[..., 0])
    # the differences' own rounding: u |log p| / h against A^½ >= 1
    noise = 1e-15 * np.abs(found.log_joint[i, c]) / (1e-3 * math.sqrt(model.sigma2))
    assert (np.sqrt(np.abs(decrement)) <= FLAT + 10.0 * noise).all()
    # A is minus the derivative of the gradient
    scale = np.sqrt(np.einsum("rll->rl", A))
    for axis, e in enumerate(np.eye(m)):
        h = 1e-4 * e / scale[:, axis : axis + 1]
        column = -(gradient(model, x[i], z + h) - gradient(model, x[i], z - h)) / (
            2.0 * h[:, axis : axis + 1]
        )
        size = scale * scale[:, axis : axis + 1]
        assert (np.abs(column - A[:, axis]) <= 1e-4 * size + noise[:, None] * 1e4 * size).all()


def missed(model, x, found, per_axis, radius):
    """The largest share of mass of a local maximum on a dense lattice that is not near a mode found.

    Of a maximum only its own point's share is counted: a lower bound.
    """
    m = model.latent_dim
    axis = np.linspace(-radius, radius, per_axis)
    z = np.stack(np.meshgrid(*[axis] * m, indexing="ij"), axis=-1).reshape(-1, m)
    worst = 0.0
    for i in range(len(x)):
        height = model.log_joint(x[i : i + 1], z)[0].reshape([per_axis] * m)
        top = (height == ndimage.maximum_filter(height, size=3, mode="nearest")).ravel()
        total = np.logaddexp.reduce(height.ravel())
        for point, value in zip(z[top], height.ravel()[top], strict=True):
            here = found.modes[i][np.isfinite(found.log_joint[i])]
            # a mode found within two steps of the lattice accounts for the point
            if np.abs(here - point).max(axis=1).min() > 2.0 * (axis[1] - axis[0]):
                worst = max(worst, math.exp(value - total))
    return worst


def wavy_models():
    for seed in range(20):
        model, x = smooth_model(seed, 1)
        yield model.replace(sigma2=max(model.sigma2, 1e-3)), x, 40_001, 8.0
    for seed in range(10):
        model, x = smooth_model(seed, 2)
        # wide enough that a narrow diagonal ridge does not make up maxima on the dense lattice
        yield model.replace(sigma2=max(model.sigma2, 0.3)), x[:2], 401, 6.0


def test_no_local_maximum_that_matters_is_missed():
    for model, x, per_axis, radius in wavy_models():
        assert missed(model, x, find_modes(model, x), per_axis, radius) <= SHARE


def test_a_lost_mode_is_noticed():
    """The checker above fails for a search that follows one start only."""
    lost = [
        missed(model, x, find_modes(model, x, most_starts=1), per_axis, radius)
        for model, x, per_axis, radius in wavy_models()
    ]
    assert max(lost) > SHARE


def test_modes_are_distinct_and_sorted():
    for seed in range(12):
        model, x = smooth_model(seed, 1 + seed % 2)
        found = find_modes(model, x)
        mass = laplace_mass(found)
        present = np.isfinite(found.log_joint)
        assert (np.diff(np.where(present, mass, -1e300), axis=1) <= 0.0).all()
        assert (np.diff(present.astype(int), axis=1) <= 0).all()  # absent ones last
        for i, a, b in np.argwhere(present[:, :, None] & present[:, None, :]):
            d = found.modes[i, a] - found.modes[i, b]
            assert a == b or d @ found.hessian[i, a] @ d > 0.05


def test_an_observation_s_modes_do_not_depend_on_the_others():
    model, _ = smooth_model(0, 2)
    x = model.sample(1500, 3)[1]  # more than a block
    together = find_modes(model, x)
    order = np.random.default_rng(0).permutation(len(x))[:200]
    apart = find_modes(model, x[order])
    C = apart.log_joint.shape[1]
    np.testing.assert_allclose(apart.log_joint, together.log_joint[order, :C], rtol=1e-13)
    np.testing.assert_allclose(apart.modes, together.modes[order, :C], rtol=0.0, atol=1e-12)
    assert not np.isfinite(together.log_joint[order, C:]).any()


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_protocol_is_enough(activation):
    decoder = ri.MLP((2, 5, 3), activation=activation)
    theta = decoder.init(0)
    model = ri.NonlinearICA(decoder, theta, 0.01)
    _, x = model.sample(20, 1)
    own, foreign = find_modes(model, x), find_modes(ri.NonlinearICA(Protocol(decoder), theta, 0.01), x)
    for a, b in zip(own, foreign, strict=True):
        np.testing.assert_array_equal(a, b)


# -- where Newton's method alone fails ---------------------------------------------------------------


def test_where_the_hessian_is_indefinite_gauss_newton_leads_uphill():
    """At z = 0.1, g = z², x = 1, minus the Hessian is 1 + (6 z² - 2)/σ² < 0: Newton's step goes downhill."""
    model = square(1e-2)
    x, z = np.array([[1.0]]), np.array([[0.1]])
    slope, newton, gauss_newton = ascent._expand(model, x, z)
    assert newton[0, 0, 0] == pytest.approx(1.0 + (6.0 * 0.01 - 2.0) / 1e-2, rel=1e-8)
    assert gauss_newton[0, 0, 0] == pytest.approx(1.0 + 4.0 * 0.01 / 1e-2, rel=1e-12)
    assert slope[0, 0] / newton[0, 0, 0] < 0.0 < slope[0, 0] / gauss_newton[0, 0, 0]
    end, _, _, converged = ascent.climb(model, x, z)
    assert end[0, 0] == pytest.approx(math.sqrt(1.0 - 0.005), abs=1e-12)
    assert converged[0]


def test_a_saddle_is_no_mode():
    """A search that starts exactly between two modes stays there, and says that it has not converged."""
    model = square(1e-2)
    end, _, A, converged = ascent.climb(model, np.array([[1.0]]), np.zeros((1, 1)))
    assert end[0, 0] == 0.0
    assert not converged[0]
    assert A[0, 0, 0] > 0.0


def test_an_iteration_limit_is_not_convergence(monkeypatch):
    monkeypatch.setattr(ascent, "MAX_ITER", 2)
    model, x = smooth_model(0, 2)
    found = find_modes(model.replace(sigma2=1e-4), x)
    assert not found.converged[:, 0].all()
    assert np.isfinite(found.modes).all()


def bent(m, n, seed, activation, sigma2):
    decoder = ri.MLP((m, 8, n), activation=activation)
    model = ri.NonlinearICA(decoder, decoder.init(seed), sigma2)
    return model, model.sample(60, seed + 1)[1]


@pytest.mark.parametrize("sigma2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("m", [1, 2])
def test_a_mode_on_a_kink(m, sigma2):
    """g(z) = Σ_l |z_l| made of relu pairs, x = -1: the mode is the tip, a kink all around."""
    W1 = np.concatenate([np.eye(m), -np.eye(m)])
    theta = np.concatenate([W1.ravel(), np.zeros(2 * m), np.ones(2 * m), [0.0]])
    model = ri.NonlinearICA(ri.MLP((m, 2 * m, 1), activation="relu"), theta, sigma2)
    found = find_modes(model, np.array([[-1.0]]))
    width = 1.0 / math.sqrt(1.0 + m / sigma2)
    assert np.isfinite(found.log_joint[0]).sum() == 1
    assert np.abs(found.modes[0, 0]).max() <= 0.01 * width
    assert found.converged[0, 0]
    assert (np.linalg.eigvalsh(found.hessian[0, 0]) > 0.0).all()


@pytest.mark.parametrize("activation", ["relu", ri.leaky_relu(0.1)], ids=str)
@pytest.mark.parametrize(
    ("m", "n", "sigma2"), [(1, 2, 0.1), (2, 3, 1.0), (2, 3, 0.01), (2, 2, 1e-4), (3, 4, 0.01)]
)
def test_piecewise_modes_end_cleanly_at_maxima(m, n, sigma2, activation):
    """Where converged, no point within 3 % of a posterior width is higher by more than 0.01 nats.

    Of the modes within 46 nats of the best, that is: what is 1e-20 of the mass may end in a corner.
    """
    model, x = bent(m, n, 2, activation, sigma2)
    found = find_modes(model, x)
    assert found.converged[:, 0].mean() >= 0.95
    rng = np.random.default_rng(0)
    i, c = np.nonzero((found.log_joint > found.log_joint.max(axis=1, keepdims=True) - 46.0) & found.converged)
    root = np.linalg.inv(np.linalg.cholesky(found.hessian[i, c]))  # A⁻¹ = rootᵀ root
    directions = rng.standard_normal((len(i), 300, m))
    directions *= 0.03 * rng.random((300, 1)) / np.linalg.norm(directions, axis=2, keepdims=True)
    near = found.modes[i, c][:, None] + np.einsum("rij,rki->rkj", root, directions)
    higher = model.log_joint(x[i], near).max(axis=1) - found.log_joint[i, c]
    assert (higher <= 1e-2).all()


def test_the_shortest_vector_of_a_hull():
    points = np.array([[[1.0, 1.0], [1.0, -1.0], [3.0, 0.0]], [[2.0, 1.0], [-2.0, -1.0], [5.0, 5.0]]])
    v = ascent._shortest_in_hull(points)
    np.testing.assert_allclose(v, [[1.0, 0.0], [0.0, 0.0]], atol=0.02)


@pytest.mark.parametrize("sigma2", [1e-6, 1e-2, 10.0])
def test_outliers(sigma2):
    """A hundred away from the manifold: finite, a maximum, and far beyond the lattice where it has to be."""
    decoder = ri.MLP((2, 6, 3), activation="softplus")
    model = ri.NonlinearICA(decoder, decoder.init(4), sigma2)
    x = np.array([[100.0, 0.0, 0.0], [0.0, -100.0, 30.0], [-60.0, 60.0, 60.0]])
    found = find_modes(model, x)
    assert np.isfinite(found.modes).all()
    assert found.converged[:, 0].all()
    lattice = np.random.default_rng(0).standard_normal((2000, 2)) * 5.0
    assert (model.log_joint(x, lattice).max(axis=1) <= found.log_joint.max(axis=1)).all()


def test_a_condition_beyond_rounding():
    """σ² = 1e-16 with fewer data than latents: eigenvalues 1 and 1e19, and nothing breaks."""
    model = ri.NonlinearICA(ri.MLP((2, 1)), [30.0, 10.0, 0.0], 1e-16)
    found = find_modes(model, np.array([[1.0], [-70.0]]))
    assert np.isfinite(found.modes).all()
    np.linalg.cholesky(found.hessian)
    result = ri.log_likelihood(model, [[1.0]], ri.Quadrature(ri.gauss_hermite(3), "modes"))
    assert np.isfinite(result.total)


def test_the_shapes_are_those_documented():
    model, x = smooth_model(1, 3)
    found = find_modes(model, x)
    C = found.log_joint.shape[1]
    assert isinstance(found, Modes)
    assert [part.shape for part in found] == [(4, C, 3), (4, C), (4, C, 3, 3), (4, C), (4,)]


@pytest.mark.parametrize("far", [True, False])
def test_a_mode_far_beyond_the_lattice(far):
    """An outlier that a sine explains best at z = -104: found, or by the planted fault said to be lacking."""
    rng = np.random.default_rng(1027)
    decoder = ri.MLP((1, 8, 1), "sin")
    model = ri.NonlinearICA(decoder, decoder.init(rng), 1e-4)
    x = model.sample(1, rng)[1] + 5.0
    found = find_modes(model, x, far=far)
    assert (found.modes[0, 0, 0] < -100.0) == far
    log_p = ri.log_likelihood(model, x, ri.Reference()).total
    result = ri.log_likelihood(model, x, ri.Quadrature(ri.gauss_hermite(9), proposal="modes"))
    assert abs(result.total - log_p) <= result.error[0]


def test_where_nothing_can_be_beyond_the_lattice_it_is_searched_once(monkeypatch):
    """Data of the model are not outliers: the doubled lattice would cost as much again."""
    decoder = ri.MLP((2, 8, 3))
    model = ri.NonlinearICA(decoder, decoder.init(0), 0.01)
    x = model.sample(50, 0)[1]
    scales = []
    search = modes._search
    monkeypatch.setattr(modes, "_search", lambda *args: scales.append(args[3:]) or search(*args))
    find_modes(model, x)
    assert scales == [()]


@pytest.mark.parametrize("m", [2, 3])
def test_several_modes_on_many_pieces_are_never_said_to_be_all(m):
    """g(z) = |z| + |z - 3|/9, in each coordinate, from 4m relu units: x = 1 has 2^m modes, x = -1 one."""
    W = np.zeros((4 * m, m))
    W[np.arange(4 * m), np.repeat(np.arange(m), 4)] = np.tile([1.0, -1.0, 1.0, -1.0], m)
    b = np.tile([0.0, 0.0, -3.0, 3.0], m)
    V = np.zeros((m, 4 * m))
    V[np.repeat(np.arange(m), 4), np.arange(4 * m)] = np.tile([1.0, 1.0, 1 / 9, 1 / 9], m)
    theta = np.concatenate([W.ravel(), b, V.ravel(), np.zeros(m)])
    model = ri.NonlinearICA(ri.MLP((m, 4 * m, m), "relu"), theta, 1e-2)
    found = find_modes(model, np.array([np.ones(m), -np.ones(m)]))
    np.testing.assert_array_equal((found.log_joint > -np.inf).sum(axis=1), [2**m, 1])
    np.testing.assert_array_equal(found.complete, [m < 3, True])
