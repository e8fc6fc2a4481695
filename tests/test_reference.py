"""`Reference`: right to rounding, honest where it is not, and blind to nothing."""

import dataclasses
import math

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_oracle import log_p_by_boxes, ring, ring_log_p, separable, straight
from strategies import decoders, examples

import refica as ri
from refica.likelihood import log_marginal, rounding_error
from refica.reference import Reference, cells, grid, integrator, panels, patches
from refica.reference.cells import Boxes, Lattices
from refica.reference.grid import grid_for
from refica.reference.lines import lines_of
from refica.reference.patches import posteriors

VALUE = 1e-11
"""What is asked of log p(x), relative to max(1, |log p(x)|)."""

DERIVED = 1e-8
"""What is asked of gradients, posterior means (in posterior standard deviations) and variances."""

SAME = 1e-13
"""How far the company of other observations may move a result, relative."""


def off(estimate, truth):
    """The error relative to max(1, |log p|), the largest over observations."""
    return np.max(np.abs(estimate - truth) / np.maximum(1.0, np.abs(truth)))


def relative(got, wanted):
    return np.max(np.abs(got - wanted)) / np.max(np.abs(wanted))


def check_honest(result, truth, x, sigma2):
    """The reported error is at least a tenth of the true one, which may be rounding."""
    wrong = np.abs(result.per_observation - truth) - rounding_error(x, sigma2, truth)
    assert np.all(wrong <= 10.0 * result.error)


def converged(model, x, integrator=None):
    """log_likelihood by Reference, which must have converged."""
    result = ri.log_likelihood(model, x, integrator or Reference())
    assert result.converged.all(), result.message
    assert np.all(result.error <= VALUE * np.maximum(1.0, np.abs(result.per_observation)) * 10.0)
    return result


# the proved cases


@pytest.mark.parametrize("entry", oracles.golden(), ids=lambda e: f"{e[2]['activations'][0]}-{e[0].sigma2:g}")
def test_proved_cases(entry):
    model, x, case = entry
    result, posterior = converged(model, x), ri.posterior(model, x, Reference())
    truth, spread = np.array([case["log_p"][0]]), case["post_var"][0]
    assert off(result.per_observation, truth) <= VALUE
    check_honest(result, truth, x, model.sigma2)
    assert relative(result.gradient.theta, np.array(case["grad_theta"])) <= DERIVED
    assert abs(result.gradient.sigma2 / case["grad_sigma2"][0] - 1.0) <= DERIVED
    assert abs(posterior.mean[0, 0] - case["post_mean"][0]) <= DERIVED * math.sqrt(spread)
    assert abs(posterior.covariance[0, 0, 0] / spread - 1.0) <= DERIVED


@pytest.mark.parametrize("name", oracles.DIGITS)
def test_worked_example(name):
    """The leaky relu is handed over to the exact integrator, the others are not."""
    for sigma2, digits in zip(oracles.SIGMA2, oracles.DIGITS[name], strict=True):
        model, x = oracles.worked_example(name, sigma2)
        assert off(converged(model, x).per_observation, digits) <= 1e-14


# two and three dimensions, by other routes


@pytest.mark.parametrize("sigma2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(("m", "n", "activation"), [(2, 3, "tanh"), (2, 2, "softplus")])
def test_brute_force(m, n, activation, sigma2):
    decoder = ri.MLP((m, 5, n), activation)
    model = ri.NonlinearICA(decoder, decoder.init(m), sigma2)
    _, x = model.sample(1, m)
    truth = np.array([log_p_by_boxes(model, one) for one in x])
    result = converged(model, x)
    assert off(result.per_observation, truth) <= VALUE
    check_honest(result, truth, x, sigma2)


@pytest.mark.parametrize("sigma2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(("m", "activation"), [(2, "sin"), (2, "sigmoid"), (3, "softplus")])
def test_a_product_of_integrals_on_the_line(m, activation, sigma2):
    model, singles = separable(activation, m, sigma2, np.random.default_rng(m))
    _, x = model.sample(1, m)
    truth = sum(log_p_by_boxes(one, x[0, j : j + 1], order=28) for j, one in enumerate(singles))
    result = converged(model, x)
    assert off(result.per_observation, truth) <= VALUE
    check_honest(result, truth, x, sigma2)


@pytest.mark.parametrize("sigma2", [10.0, 1e-2, 1e-6])
@pytest.mark.parametrize(
    ("m", "n", "rank"), [(1, 2, 1), (2, 3, 2), (2, 3, 1), (3, 4, 2), (2, 1, 1), (3, 2, 2)]
)
def test_affine_in_disguise(m, n, rank, sigma2):
    """Value, gradient and moments against the closed form; rank-deficient Jacobians, n < m, an outlier."""
    model, affine = straight(m, n, sigma2, np.random.default_rng(m), rank)
    _, x = model.sample(2, m)
    x[1] += 300.0 * math.sqrt(sigma2)
    exact, result = ri.log_likelihood(affine, x, ri.ExactLinear()), converged(model, x)
    assert off(result.per_observation, exact.per_observation) <= VALUE
    check_honest(result, exact.per_observation, x, sigma2)
    W = result.gradient.theta.reshape(n, -1)[:, 1 : 1 + m]
    assert relative(W, exact.gradient.theta[: m * n].reshape(n, m)) <= DERIVED
    contributions = len(x) * n / (2.0 * sigma2)  # of which what is left may be a millionth
    assert abs(result.gradient.sigma2 - exact.gradient.sigma2) <= DERIVED * contributions
    mine, right = ri.posterior(model, x, Reference()), ri.posterior(affine, x, ri.ExactLinear())
    L = np.linalg.cholesky(right.covariance)
    error = np.linalg.solve(L, (mine.mean - right.mean)[..., None])
    assert np.abs(error).max() <= DERIVED
    whitened = np.linalg.solve(L, np.linalg.solve(L, mine.covariance).swapaxes(1, 2))
    assert np.abs(whitened - np.eye(m)).max() <= DERIVED


@pytest.mark.parametrize("sigma2", [1.0, 1e-2, 1e-4])
def test_a_ridge_bent_into_a_circle(sigma2):
    model, x = ring(sigma2), np.array([[1.0], [-1.0], [4.0]])[: 3 if sigma2 > 1e-3 else 1]
    result = converged(model, x)
    assert off(result.per_observation, ring_log_p(x[:, 0], sigma2)) <= VALUE
    mean = ri.posterior(model, x[:1], Reference()).mean
    assert np.abs(mean).max() <= 1e-9  # by symmetry


# nothing is passed over


CUBIC = -5.252771418845774
"""log p(x) of the cubic below by `log_p_by_boxes`, which takes twenty seconds; certified_bounds agrees."""


def test_a_lattice_refined_four_times_loses_nothing():
    """Branches of a bent ridge end between the points of the first lattices; panels are not needed."""
    rng = np.random.default_rng(2004)
    decoder = ri.Polynomial(2, 1, 3)
    model = ri.NonlinearICA(decoder, decoder.init(rng), 1e-2)
    x = model.sample(1, rng)[1]
    found = grid_for(model, lines_of(model), x, 1e-12)
    assert found.converged.all()
    log_p = log_marginal(decoder, model.theta, 1e-2, x, found.points[0])
    assert off(log_p, CUBIC) <= 1e-12


def steep_step():
    """g = 2 tanh(z/2) - 3 tanh(200 (z - 2)), x = 3.5: 2e-4 of the mass is on a step 2e-4 wide at z = 2, and
    the posterior's other part, 0.2 wide at z = 0.5, sets the lattice."""
    theta = [0.5, 200.0, 0.0, -400.0, 2.0, -3.0, 0.0]
    return ri.NonlinearICA(ri.MLP((1, 2, 1)), theta, 1e-2), np.array([[3.5]])


def test_a_bump_between_the_points_of_a_lattice(monkeypatch):
    only_one_mode(monkeypatch, keep=0)
    model, x = steep_step()
    assert off(converged(model, x).per_observation, log_p_by_boxes(model, x[0], order=28)) <= VALUE


def test_without_the_search_for_what_is_unresolved_the_bump_is_missed(monkeypatch):
    """The planted fault: alias terms alone say that all is well."""
    only_one_mode(monkeypatch, keep=0)
    monkeypatch.setattr(grid, "unresolved", lambda *args: np.zeros(args[3].centre.shape))
    model, x = steep_step()
    result = ri.log_likelihood(model, x, Reference())
    assert result.converged.all()
    with pytest.raises(AssertionError):
        check_honest(result, log_p_by_boxes(model, x[0], order=28), x, model.sigma2)


def only_one_mode(monkeypatch, keep):
    """Let the search for modes find one: the best (keep = 0) or the least that there is (keep = -1)."""

    def find(model, x, **options):
        found = real(model, x)
        last = (found.log_joint > -np.inf).sum(axis=1) - 1
        one = np.arange(len(x))[:, None], (last if keep else 0 * last)[:, None]
        return found._replace(**{part: getattr(found, part)[one] for part in found._fields[:4]})

    real = patches.find_modes
    monkeypatch.setattr(patches, "find_modes", find)


@pytest.mark.parametrize(("m", "sigma2"), [(1, 1e-6), (2, 1e-2)])
def test_a_mode_that_the_search_loses_is_found_by_branch_and_bound(monkeypatch, m, sigma2):
    """Both modes of z², or all of a folded plane's: the lattice of one of them reaches the others."""
    decoder = ri.Polynomial(1, 1, 2) if m == 1 else ri.MLP((2, 5, 2), "sin")
    theta = [0.0, 0.0, 1.0] if m == 1 else decoder.init(1)
    model = ri.NonlinearICA(decoder, theta, sigma2)
    x = np.array([[1.0]]) if m == 1 else model.sample(2, 1)[1]
    before = converged(model, x).per_observation
    assert (posteriors(model, x).F < 1e300).sum() > len(x)
    only_one_mode(monkeypatch, keep=-1)
    assert (posteriors(model, x).F < 1e300).sum() == len(x)
    assert off(converged(model, x).per_observation, before) <= VALUE


def test_a_mode_far_beyond_the_prior_is_found():
    """An outlier whose best latent is z = -104, where no search for modes starts."""
    rng = np.random.default_rng(1027)
    decoder = ri.MLP((1, 8, 1), "sin")
    model = ri.NonlinearICA(decoder, decoder.init(rng), 1e-4)
    x = model.sample(1, rng)[1] + 5.0
    assert ri.posterior(model, x, Reference()).mean[0, 0] < -100.0
    assert off(converged(model, x).per_observation, log_p_by_boxes(model, x[0], order=28)) <= VALUE


@examples(60)
@given(decoder=decoders(max_dim=3), seed=st.integers(0, 2**32 - 1), size=st.floats(-3.0, 1.0))
def test_lines_and_bounds_hold(decoder, seed, size):
    check_lines_and_bounds(decoder, seed, size, allowance=1.0)


def check_lines_and_bounds(decoder, seed, size, allowance):
    """|g(c + G s) - g - J s| <= e and low <= F <= high, at random points of a random cell."""
    rng = np.random.default_rng(seed)
    m = decoder.latent_dim
    model = ri.NonlinearICA(decoder, decoder.init(rng), 0.01)
    step = 10.0**size * rng.standard_normal((1, m, m))
    lattices = Lattices(np.zeros(1, dtype=int), rng.standard_normal((1, m)), step, np.zeros((1, 0, m)))
    box = Boxes(np.zeros(1, dtype=int), np.full((1, m), -1.5), np.full((1, m), 1.5))
    s = rng.uniform(-1.0, 1.0, (100, m))
    s[: 2**m] = np.sign(s[: 2**m])
    z = lattices.centre + 1.5 * s @ step[0].T
    lines = lines_of(model)
    line = lines(lattices.centre, 1.5 * step)
    g = decoder(model.theta, z)
    remainder = np.abs(g - line.g - s @ line.J[0])
    slack = 1e-12 * (1.0 + np.abs(g).max() + np.abs(line.J).sum())
    assert np.all(remainder <= allowance * line.error + slack)
    x = g[:1] + 0.1 * rng.standard_normal((1, decoder.data_dim))
    F = 0.5 * (((x - g) ** 2).sum(axis=1) / model.sigma2 + (z**2).sum(axis=1))
    on = cells.bounds(model, lines, x, lattices, box)
    slack = 1e-12 * (1.0 + F)
    assert np.all(on.low <= F + slack)
    assert np.all(on.high + slack >= F)


def test_a_remainder_that_is_too_small_is_noticed():
    """The planted fault: nine tenths of the remainder, on a square that reaches its bound."""
    check_lines_and_bounds(ri.Polynomial(1, 1, 2), 3, 0.0, allowance=1.0)
    with pytest.raises(AssertionError):
        check_lines_and_bounds(ri.Polynomial(1, 1, 2), 3, 0.0, allowance=0.9)


# honesty and status


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("name", ["tanh", "square"])
def test_reported_error_at_every_rtol(name, rtol):
    for sigma2, digits in zip(oracles.SIGMA2, oracles.DIGITS[name], strict=True):
        model, x = oracles.worked_example(name, sigma2)
        result = ri.log_likelihood(model, x, Reference(rtol))
        assert result.converged.all()
        assert off(result.per_observation, digits) <= rtol
        check_honest(result, np.array([digits]), x, sigma2)


def test_the_error_is_that_of_every_second_point():
    """At the first step a normal posterior has 2 m exp(-π²/2h²): the estimate is no more and no less."""
    m = 2
    model, _ = straight(m, 3, 1e-2, np.random.default_rng(0), m)
    found = grid_for(model, lines_of(model), model.sample(5, 0)[1], 1e-11)
    h = grid._first_step(m, 1e-11)
    assert np.allclose(found.error, 2 * m * math.exp(-(math.pi**2) / (2 * h * h)), rtol=0.1)


def test_the_mode_is_a_node():
    model, x = oracles.worked_example("tanh", 0.1)
    mode = posteriors(model, x).modes[0, 0]
    z, _ = Reference().nodes(model, x)
    assert np.abs(z[0] - mode).min() <= 1e-14


def few_points(monkeypatch):
    """Allow so little that a ring cannot be done."""
    monkeypatch.setattr(grid, "MOST_POINTS", {2: 200})
    monkeypatch.setattr(panels, "MOST_POINTS", {2: 2000})


def test_giving_up_with_a_reason(monkeypatch):
    few_points(monkeypatch)
    monkeypatch.setattr(integrator, "CERTIFIABLE", 0)
    result = ri.log_likelihood(ring(1e-3), [[1.0]], Reference())
    assert not result.converged.any()
    assert integrator.UNREACHED in result.message
    check_honest(result, ring_log_p(1.0, 1e-3), np.ones((1, 1)), 1e-3)


def test_certified_bounds_overrule_a_poor_grid(monkeypatch):
    """Where no grid can be afforded the value is that of the bounds, and so is the error."""
    few_points(monkeypatch)
    result = ri.log_likelihood(ring(1e-2), [[1.0]], Reference())
    assert integrator.BOUNDED in result.message
    assert not result.converged.any()
    assert abs(result.per_observation[0] - ring_log_p(1.0, 1e-2)) <= result.error[0] <= 1e-10
    # they say nothing of the moments, which are those of a poor grid
    posterior = ri.posterior(ring(1e-2), [[1.0]], Reference())
    assert posterior.error[0] == math.inf
    assert not posterior.converged.any()


def relu_in_a_sigmoid():
    """A decoder that has kinks but no affine pieces, two observations, and their log p."""
    decoder = ri.MLP((1, 5, 2), "relu", output_activation="sigmoid")
    model = ri.NonlinearICA(decoder, decoder.init(3), 1e-2)
    _, x = model.sample(2, 3)
    return model, x, oracles.log_p_by_panels(model, x, oracles.kinks_of(model))


def test_kinks_that_are_not_piecewise_affine():
    """Panels close in on each kink."""
    model, x, truth = relu_in_a_sigmoid()
    assert off(converged(model, x).per_observation, truth) <= VALUE


@pytest.mark.parametrize("honest", [True, False])
def test_two_rules_that_agree_beyond_a_kink_are_not_believed(monkeypatch, honest):
    """A kink between the end of a panel and the outermost points of both rules: they agree, and are wrong.

    The planted fault is to ask them alone.
    """
    if not honest:
        monkeypatch.setattr(cells.Bounds, "roughness", property(lambda self: np.zeros_like(self.F)))
    decoder = ri.MLP((1, 1, 1), "relu")
    model, x = ri.NonlinearICA(decoder, [1.0, 0.499, 1.0, 0.0], 1.0), np.array([[1.0]])  # relu(z + 0.499)
    line = Lattices(np.zeros(1, dtype=int), np.zeros((1, 1)), np.eye(1)[None], np.zeros((1, 0, 1)))
    panel = Boxes(np.zeros(1, dtype=int), np.array([[-0.5]]), np.array([[0.5]]))
    f = panels._Integrand(model, lines_of(model), x, line)
    sums = panels._sums(f, panel, math.log(1e-11))
    z, log_weight = oracles.panels(np.array([-0.5, -0.499, 0.5]))
    g = np.maximum(z[:, 0] + 0.499, 0.0)
    truth = np.exp(log_weight - 0.5 * (1.0 - g) ** 2 - 0.5 * z[:, 0] ** 2).sum()
    wrong = abs(math.exp(sums.log_total) / truth - 1.0)
    assert wrong > 1e-8
    assert (sums.error >= wrong) == honest


def test_kinks_in_three_dimensions_are_reported(monkeypatch):
    monkeypatch.setattr(grid, "MOST_POINTS", {3: 2**17})
    monkeypatch.setattr(panels, "MOST_POINTS", {3: 2**15})
    singles = ri.MLP((1, 3, 1), "relu")
    theta = singles.init(0)
    decoder = ri.MLP((3, 9, 3), "relu")
    (W1, b1), (W2, b2) = decoder.unpack(both := np.zeros(decoder.n_params))
    (V1, c1), (V2, c2) = singles.unpack(theta)
    for j in range(3):
        rows = slice(3 * j, 3 * j + 3)
        W1[rows, j], b1[rows], W2[j, rows], b2[j] = V1[:, 0], c1, V2[0], c2[0]
    x = np.array([[0.5, -0.2, 0.1]])
    result = ri.log_likelihood(ri.NonlinearICA(decoder, both, 1.0), x, Reference())
    assert not result.converged.any()
    one = ri.NonlinearICA(singles, theta, 1.0)
    truth = ri.log_likelihood(one, x.T, integrator.ExactPiecewiseAffine()).total
    assert abs(result.total - truth) <= 10.0 * result.error[0] <= 0.1


# who is handed over, and who is refused


def test_exact_decoders_are_handed_over():
    rng = np.random.default_rng(0)
    for sizes, activation, exact in [
        ((5, 6), "tanh", ri.ExactLinear()),
        ((1, 4, 2), "relu", integrator.ExactPiecewiseAffine()),
    ]:
        decoder = ri.MLP(sizes, activation)
        model = ri.NonlinearICA(decoder, decoder.init(rng), 0.1)
        _, x = model.sample(3, rng)
        mine, other = (ri.log_likelihood(model, x, each) for each in (Reference(), exact))
        assert np.array_equal(mine.per_observation, other.per_observation)
        assert np.array_equal(mine.gradient.theta, other.gradient.theta)
        for a, b in zip(Reference().nodes(model, x), exact.nodes(model, x), strict=True):
            assert np.array_equal(a, b)


def test_refusals_say_what_to_use():
    model = ri.NonlinearICA(ri.MLP((4, 3, 4)), np.zeros(31), 1.0)
    with pytest.raises(ValueError, match=r"at most 3 latent dimensions, got 4; use Quadrature\("):
        ri.log_likelihood(model, np.zeros((1, 4)), Reference())

    class Mine:
        name, gain = "mine", 1.0

        def __call__(self, a):
            return a**3

        def derivative(self, a):
            return 3.0 * a * a

    model = ri.NonlinearICA(ri.MLP((1, 3, 1), Mine()), np.zeros(10), 1.0)
    with pytest.raises(ValueError, match=r"must know how a decoder bends.*use Quadrature\("):
        ri.posterior(model, np.zeros((1, 1)), Reference())
    for rtol in (0.0, 1e-14, 0.1, math.nan):
        with pytest.raises(ValueError, match="rtol must be"):
            Reference(rtol)
    with pytest.raises(TypeError):
        Reference("fine")


def test_it_is_a_frozen_value():
    assert Reference() == Reference(1e-11)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Reference().rtol = 1.0


# company changes nothing


@pytest.mark.parametrize(("m", "n", "N"), [(1, 2, 40), (2, 2, 9)])
def test_order_and_blocks_change_nothing(m, n, N):
    decoder = ri.MLP((m, 6, n), "sin")
    model = ri.NonlinearICA(decoder, decoder.init(1), 1e-2)
    _, x = model.sample(N, 1)
    x[::7] += 3.0
    together = converged(model, x)
    shuffled = np.random.default_rng(0).permutation(N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrator, "ROWS_AT_A_TIME", {1: 3, 2: 2})
        apart = converged(model, x[shuffled])
    assert off(apart.per_observation, together.per_observation[shuffled]) <= SAME
    assert relative(apart.gradient.theta, together.gradient.theta) <= SAME * 10.0  # sums in another order
    assert np.allclose(apart.error, together.error[shuffled], rtol=1e-3, atol=1e-14)


def test_nodes_give_what_evaluate_gives():
    for m in (1, 2):
        decoder = ri.MLP((m, 4, m + 1))
        model = ri.NonlinearICA(decoder, decoder.init(m), 0.05)
        _, x = model.sample(5, m)
        nodes = Reference().nodes(model, x)
        assert nodes.z.shape[:2] == nodes.log_weight.shape
        assert nodes.z.shape[0] == len(x)
        log_p = log_marginal(model.decoder, model.theta, model.sigma2, x, nodes)
        assert off(log_p, converged(model, x).per_observation) <= SAME


def test_density_and_scores():
    model, x = oracles.worked_example("tanh", 0.1)
    result = ri.density(model, x, Reference())
    assert abs(result.total / math.exp(oracles.DIGITS["tanh"][1]) - 1.0) <= 1e-13
    score = ri.scores(model, x, Reference())[0]
    assert abs(score[-1] * 0.1 + 0.3343574268841401) <= 1e-12  # mathematics, section 7
    assert abs(score[0] + 0.3230903496488192) <= 1e-12
