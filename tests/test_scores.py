"""scores: the gradient of each log p(x_i) by itself, whatever is shared on the way to it."""

# notation: N observations, n data, m latent, K nodes, p parameters

import autograd_model
import checks
import numpy as np
import pytest

import refica as ri
from refica import likelihood, marginal
from refica.likelihood import Nodes
from refica.reference import integrator as reference

EXACT = 1e-13
"""The same sums in another order, relative to the largest score of the observation."""

SEARCHED = 1e-11
"""Of nodes at modes that are searched for many observations at a time: the searches round differently, and
leave a mode where it is to 1e-12 or so."""


def model(decoder, sigma2, seed=0):
    return ri.NonlinearICA(decoder, decoder.init(seed), sigma2)


LINE, PLANE = model(ri.MLP((1, 5, 4, 2), "gelu"), 0.02), model(ri.MLP((2, 6, 3)), 0.1)
BENT, LINEAR = model(ri.MLP((1, 6, 2), "relu"), 0.01), model(ri.MLP((2, 3)), 0.3)
AT_MODES = ri.Quadrature(ri.gauss_hermite(5), "modes")

CASES = {
    "a grid": (LINE, 40, None),
    "a grid in the plane": (PLANE, 20, ri.Quadrature(ri.uniform_grid(45, 6.0))),
    "a polynomial": (model(ri.Polynomial(2, 3, 2), 0.5), 20, ri.Quadrature(ri.uniform_grid(40, 5.0))),
    "Reference": (LINE, 20, ri.Reference()),
    "Reference in the plane": (PLANE, 2, ri.Reference()),
    "pieces": (BENT, 40, None),
    "pieces in the plane": (model(ri.MLP((2, 4, 3), "leaky_relu"), 0.1), 5, None),
    "pieces by Reference": (BENT, 20, ri.Reference()),
    "closed form": (LINEAR, 30, None),
    "modes": (PLANE, 8, AT_MODES),
    "random": (PLANE, 20, ri.Quadrature(ri.monte_carlo(100, seed=0))),
}


def one_by_one(model, x, integrator):
    """The gradient of log_likelihood of each observation alone, (N, p + 1)."""
    each = [ri.log_likelihood(model, row[None], integrator).gradient for row in x]
    return np.array([[*gradient.theta, gradient.sigma2] for gradient in each])


def off(got, want):
    """The largest error of an observation's score, relative to its largest entry."""
    return np.max(np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1))


def drawn(name):
    """The model of a case, observations, and the integrator, chosen for all of them if none is given."""
    model, N, integrator = CASES[name]
    _, x = model.sample(N, rng=1)
    return model, x, integrator or marginal.choose_integrator(model, x)[0]


@pytest.mark.parametrize("name", CASES)
def test_a_score_is_the_gradient_for_its_observation_alone(name):
    model, x, integrator = drawn(name)
    tolerance = SEARCHED if integrator is AT_MODES else EXACT
    assert off(ri.scores(model, x, integrator), one_by_one(model, x, integrator)) <= tolerance


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("decoder", [ri.MLP((2, 3, 2, 3), "softplus"), ri.Polynomial(2, 3, 3)], ids=repr)
def test_scores_by_autograd_and_the_complex_step(decoder, shared):
    rng = np.random.default_rng(0)
    case = model(decoder, 0.2)
    _, x = case.sample(4, rng)
    shape = (7, 2) if shared else (4, 7, 2)
    nodes = ri.FixedNodes(rng.standard_normal(shape), rng.standard_normal(shape[:-1]))
    found = ri.scores(case, x, nodes)
    pair = Nodes(nodes.z, nodes.log_weight)
    moved = [*np.eye(decoder.n_params), np.zeros(decoder.n_params)]
    for j, e in enumerate(moved):
        sigma2 = case.sigma2 + (0.0 if e.any() else 1j * checks.STEP)
        log_p = likelihood.log_marginal(decoder, case.theta + 1j * checks.STEP * e, sigma2, x, pair)
        size = np.abs(found).max(axis=1)
        assert np.max(np.abs(log_p.imag / checks.STEP - found[:, j]) / size) <= checks.COMPLEX_STEP
    for i in range(4):
        z, log_weight = (nodes.z, nodes.log_weight) if shared else (nodes.z[i], nodes.log_weight[i])
        want = autograd_model.objective_gradient(case, x[i : i + 1], z, log_weight, density=False)
        assert checks.relative_error(found[i], np.append(*want)) <= checks.COMPLEX_STEP


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_row_order_change_nothing(name, monkeypatch):
    model, x, integrator = drawn(name)
    want = ri.scores(model, x, integrator)
    tolerance = SEARCHED if integrator is AT_MODES else EXACT
    order = np.random.default_rng(2).permutation(len(x))
    assert off(ri.scores(model, x[order], integrator), want[order]) <= tolerance
    for tile, block, rows in ((1, 5, 40), (2**10, 7, 300)):
        monkeypatch.setattr(likelihood, "JACOBIANS_TILE", tile)
        monkeypatch.setattr(likelihood, "TILE", tile)
        monkeypatch.setattr(likelihood, "DECODER_ROWS", rows)
        monkeypatch.setattr(marginal, "BLOCK", block)
        assert off(ri.scores(model, x, integrator), want) <= tolerance


class Foreign:
    """Somebody's decoder that offers a value and a vjp, and no more: one that counts its calls."""

    def __init__(self, decoder):
        self.decoder, self.calls = decoder, 0
        self.latent_dim, self.data_dim, self.n_params = decoder.latent_dim, decoder.data_dim, decoder.n_params

    def init(self, rng):
        return self.decoder.init(rng)

    def __call__(self, theta, z):
        return self.decoder(theta, z)

    def vjp(self, theta, z, cotangent):
        self.calls += 1
        return self.decoder.vjp(theta, z, cotangent)


class NoSignature:
    """A function of another language, of which Python does not know the arguments."""

    __signature__ = "unknown"

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


class Obliging(Foreign):
    """The same, with a vjp that can leave its rows unsummed."""

    def vjp(self, theta, z, cotangent, each=False):
        self.calls += 1
        return self.decoder.vjp(theta, z, cotangent, each=each)


@pytest.mark.parametrize("name", ["a grid", "a polynomial", "random"])
def test_a_decoder_that_has_nothing_but_a_vjp(name):
    """One call for each observation; for one that can tell its rows apart, one for each output; one without
    a signature is as good as the first."""
    model, x, integrator = drawn(name)
    nodes = ri.FixedNodes(*integrator.nodes(model, x))
    want = ri.scores(model, x, nodes)
    plain, obliging = Foreign(model.decoder), Obliging(model.decoder)
    blocks = -(-len(nodes.z) // likelihood.DECODER_ROWS)
    assert off(ri.scores(ri.NonlinearICA(plain, model.theta, model.sigma2), x, nodes), want) <= EXACT
    assert len(x) <= plain.calls <= len(x) * blocks
    assert off(ri.scores(ri.NonlinearICA(obliging, model.theta, model.sigma2), x, nodes), want) <= EXACT
    assert obliging.calls == model.data_dim * blocks
    plain.vjp = NoSignature(plain.vjp)
    assert off(ri.scores(ri.NonlinearICA(plain, model.theta, model.sigma2), x, nodes), want) <= EXACT


@pytest.mark.parametrize("name", ["a grid", "a grid in the plane"])
def test_jacobians_too_large_for_memory_are_not_formed(name, monkeypatch):
    model, x, integrator = drawn(name)
    want = ri.scores(model, x, integrator)
    monkeypatch.setattr(likelihood, "JACOBIANS", 1)
    monkeypatch.delattr(likelihood, "_by_products")
    assert off(ri.scores(model, x, integrator), want) <= EXACT


@pytest.mark.parametrize("name", ["Reference", "Reference in the plane"])
def test_an_observation_of_reference_is_taken_on_its_own_points_some_at_a_time(name, monkeypatch):
    """Packed with others it would take the memory of the largest for each."""
    model, x, given = drawn(name)
    want = ri.scores(model, x, given)
    sizes, tiles = [], likelihood.tiles

    def watched(decoder, theta, sigma2, x, nodes, *others):
        sizes.append(nodes.z.shape[:-1])
        return tiles(decoder, theta, sigma2, x, nodes, *others)

    monkeypatch.setattr(likelihood, "tiles", watched)
    monkeypatch.setattr(reference, "POINTS_AT_A_TIME", 50)
    assert off(ri.scores(model, x, given), want) <= EXACT
    assert len(sizes) > len(x)
    assert all(len(size) == 1 and size[0] <= 50 for size in sizes)


def test_grids_of_reference_are_made_for_some_observations_at_a_time(monkeypatch):
    model, x, given = drawn("Reference")
    made, grid_for = [], reference.grid_for
    monkeypatch.setattr(reference, "grid_for", lambda *of: made.append(len(of[2])) or grid_for(*of))
    ri.scores(model, x, given)
    assert made == [len(x)]


def halved(true):
    return lambda *arguments, **named: 0.5 * true(*arguments, **named)


def slightly_more(true):
    return lambda *arguments, **named: 1.0005 * true(*arguments, **named)


def each_of_the_first(true):
    """Every row gets the derivative of the first one."""

    def vjp(self, theta, z, cotangent, each=False):
        theta_bar, z_bar = true(self, theta, z, cotangent, each=each)
        return (np.tile(theta_bar[:1], (len(z), 1)) if each else theta_bar), z_bar

    return vjp


def first_column_lost(true):
    return lambda *arguments: [(columns[1:], J_d[:, 1:]) for columns, J_d in true(*arguments)]


def reversed_points(true):
    return lambda self, model, x: reversed(list(true(self, model, x)))


@pytest.mark.parametrize(
    ("name", "place", "attribute", "fault"),
    [
        ("a grid", likelihood, "_by_products", slightly_more),
        ("modes", likelihood, "_one_by_one", slightly_more),
        ("closed form", likelihood, "_one_by_one", halved),
        ("a grid", likelihood, "_slopes", first_column_lost),
        ("a grid", ri.MLP, "vjp", each_of_the_first),
        ("a polynomial", ri.Polynomial, "vjp", each_of_the_first),
        ("pieces in the plane", likelihood, "FAINT", lambda true: 1e-9),
        ("Reference", ri.Reference, "_points", reversed_points),
    ],
)
def test_planted_faults_are_found(name, place, attribute, fault, monkeypatch):
    test_a_score_is_the_gradient_for_its_observation_alone(name)
    monkeypatch.setattr(place, attribute, fault(getattr(place, attribute)))
    with pytest.raises(AssertionError):
        test_a_score_is_the_gradient_for_its_observation_alone(name)
