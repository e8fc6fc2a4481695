"""`ExactPiecewiseAffine` for one latent dimension, against closed forms in 60 digits."""

import itertools
import time

import numpy as np
import oracles
import pytest

mp = pytest.importorskip("mpmath")

import piecewise_oracle as oracle  # noqa: E402 (it needs mpmath)

import refica as ri  # noqa: E402
from refica.exact import ExactLinear  # noqa: E402
from refica.likelihood import evaluate  # noqa: E402
from refica.piecewise import ExactPiecewiseAffine, is_piecewise_affine, line, network, truncated  # noqa: E402
from refica.piecewise.scattered import Scattered, pack  # noqa: E402

EXACT = ExactPiecewiseAffine()

VALUE = 1e-12
"""Relative error of log p(x), as promised."""

SHIFTED = 5e-16
"""Error of x - g(z) relative to x, two roundings: times ‖x‖/σ it is what log p(x) cannot be better than
where data of size 100 meet a small σ."""

GRADIENT, GRADIENT_AT_SMALL_NOISE = 1e-10, 1e-9
"""Relative error of a gradient, at σ² > 1e-5 and below: as promised."""

MOMENTS = 1e-8
"""Error of the posterior mean in standard deviations, relative error of the variance: as promised."""

SAME_SUM = 1e-13
"""One sum in another order."""

MAP = 1e-13
"""A decoder's value by its own forward pass and by an affine map: some hundred roundings of its terms."""

ACTIVATIONS = ("relu", ri.leaky_relu(0.1), ri.leaky_relu(-0.5), "leaky_relu")
NOISE = (10.0, 1.0, 1e-2, 1e-4, 1e-6)


def random_decoder(rng, m=1, widest=8):
    depth = int(rng.integers(0, 4))
    act = ACTIVATIONS[rng.integers(4)]
    sizes = (m, *(int(h) for h in rng.integers(1, widest + 1, size=depth)), int(rng.integers(1, 4)))
    return ri.MLP(sizes, activation=act, output_activation=("identity", act)[rng.integers(2)])


def cases():
    """(kind, model, x, truth): data from the model, outliers, data shifted by 100, dead units, twins."""
    rng = np.random.default_rng(7)
    kinds = ("model", "outlier", "shifted", "dead units")
    for sigma2, kind, _ in itertools.product(NOISE, kinds, range(2)):
        decoder = random_decoder(rng)
        theta = decoder.init(rng)
        if kind == "shifted":
            theta[-decoder.data_dim :] += 100.0
        if kind == "dead units" and len(decoder.sizes) > 2:
            W, b = next(decoder.unpack(theta))
            W[0], b[0] = 0.0, -1.0
            if len(b) > 2:
                W[1], b[1] = W[2], b[2]
        model = ri.NonlinearICA(decoder, theta, sigma2)
        x = model.sample(1, rng)[1]
        if kind == "outlier":
            x += rng.standard_normal(x.shape) * np.sqrt(2e5 * sigma2 / x.size)
        yield kind, model, x, oracle.line_truth(decoder, theta, sigma2, x[0])


@pytest.fixture(scope="module")
def found():
    return list(cases())


def check_value(kind, model, x, truth, log_p):
    """log p(x) is right to VALUE, relative, or to what the shift of the data allows."""
    want = float(truth["log_p"])
    allowed = VALUE * max(1.0, abs(want))
    if kind == "shifted":
        allowed += SHIFTED * 100.0 / np.sqrt(model.sigma2)
    assert abs(mp.mpf(float(log_p)) - truth["log_p"]) <= allowed


def check_gradient(model, truth, gradient):
    """∂/∂θ and ∂/∂σ² are right, relative to the contributions they are sums of."""
    tolerance = GRADIENT if model.sigma2 > 1e-5 else GRADIENT_AT_SMALL_NOISE
    scale = max(map(float, [abs(v) for v in truth["theta"]] + truth["size"]))
    off = max(abs(float(a - mp.mpf(float(b)))) for a, b in zip(truth["theta"], gradient.theta, strict=True))
    assert off <= tolerance * scale
    by_sigma2 = float(truth["sigma2"])
    scale = max(abs(by_sigma2), model.data_dim / (2.0 * model.sigma2))
    assert abs(gradient.sigma2 - by_sigma2) <= tolerance * scale


def test_values(found):
    for kind, model, x, truth in found:
        check_value(kind, model, x, truth, ri.log_likelihood(model, x, EXACT, gradient=False).total)


def test_gradients(found):
    for kind, model, x, truth in found:
        result = ri.log_likelihood(model, x, EXACT)
        check_value(kind, model, x, truth, result.total)
        check_gradient(model, truth, result.gradient)


def test_posteriors(found):
    for _, model, x, truth in found:
        post = ri.posterior(model, x, EXACT)
        assert abs(post.mean[0, 0] - truth["mean"]) <= MOMENTS * mp.sqrt(truth["var"])
        assert abs(post.covariance[0, 0, 0] / truth["var"] - 1) <= MOMENTS


def test_the_two_sets_of_nodes_agree(found):
    """Gauss-Legendre inside the parts, two-point Gauss rules of the parts: two routes to p(x)."""
    for kind, model, x, truth in found:
        nodes = EXACT.nodes(model, x)
        log_p = evaluate(model.decoder, model.theta, model.sigma2, x, nodes).log_p[0]
        check_value(kind, model, x, truth, log_p)


def test_the_error_covers_the_truth(found):
    """Not below the true error, and not absurdly above it where that is more than a rounding."""
    ratio = []
    for _, model, x, truth in found:
        result = ri.log_likelihood(model, x, EXACT, gradient=False)
        off = abs(float(result.per_observation[0] - truth["log_p"]))
        assert off <= result.error[0]
        ratio.append(off / result.error[0])
        assert result.converged.all()
    assert np.median(ratio) >= 1e-3


@pytest.mark.parametrize("sigma2", oracles.SIGMA2)
def test_the_worked_example(sigma2):
    model, x = oracles.worked_example("leaky relu", sigma2)
    want = dict(zip(oracles.SIGMA2, oracles.DIGITS["leaky relu"], strict=True))[sigma2]
    assert abs(ri.log_likelihood(model, x, EXACT).total - want) <= VALUE * max(1.0, abs(want))


def planted(monkeypatch, fault):
    """Put a fault into the integrator."""
    if fault == "a knot off by 1e-3":
        right = network.bends_on_lines
        monkeypatch.setattr(
            network, "bends_on_lines", lambda *a: right(*a)._replace(at=right(*a).at * (1 + 1e-3))
        )
    if fault == "a lost piece":
        right = line.pieces
        monkeypatch.setattr(line, "pieces", lambda *a: network.Pieces(*(part[1:] for part in right(*a))))
    if fault == "a weight off by 1e-9":
        monkeypatch.setattr(truncated, "MOMENTS", truncated.MOMENTS * (1 + 1e-9))
    if fault == "a side without its tail":
        monkeypatch.setattr(truncated, "DROP", 20.0)
    if fault == "a variance off by 1e-3":  # the mass is still right: only gradients tell
        monkeypatch.setattr(truncated, "MOMENTS", truncated.MOMENTS * [1, 1, 1 + 1e-3, 1])


@pytest.mark.parametrize(
    "fault",
    [
        "a knot off by 1e-3",
        "a lost piece",
        "a weight off by 1e-9",
        "a side without its tail",
        "a variance off by 1e-3",
    ],
)
def test_a_planted_fault_is_found(fault, found, monkeypatch):
    planted(monkeypatch, fault)
    with pytest.raises(AssertionError):
        test_gradients([case for case in found if case[0] == "model" and case[1].sigma2 > 1e-3])


def test_a_planted_error_estimate_is_found(found, monkeypatch):
    from refica.piecewise import integrator

    monkeypatch.setattr(integrator, "ROUNDINGS", integrator.ROUNDINGS / 100)
    with pytest.raises(AssertionError):
        test_the_error_covers_the_truth(found)


# --- the pieces of a network on a line -----------------------------------------------------------------


def value_on_pieces(along, t):
    """g(t) by the affine map of the piece that holds t."""
    piece = np.searchsorted(along.upper, t)
    return along.value[piece] + along.slope[piece] * (t - along.anchor[piece])[:, None]


def check_pieces(decoder, theta, t):
    """The pieces cover the line in order, and on each its affine map is the decoder."""
    along = network.pieces(decoder, theta)
    assert along.lower[0] == -np.inf
    assert along.upper[-1] == np.inf
    assert (along.upper[:-1] == along.lower[1:]).all()
    assert ((along.lower < along.anchor) & (along.anchor < along.upper)).all()
    knots = along.upper[:-1]
    near = np.concatenate([knots * (1 + s) + s for s in (-1e-9, 1e-9)])
    t = np.concatenate([t, knots, near, along.anchor])
    *_, signal = network.forward(network.layers_of(decoder, theta), t[:, None], np.ones((1, 1)))
    assert np.abs(signal.output - decoder(theta, t[:, None])).max() <= MAP * np.abs(signal.size).max()
    off = np.abs(value_on_pieces(along, t) - decoder(theta, t[:, None]))
    assert (off <= MAP * (1.0 + np.abs(signal.size).max(axis=1, keepdims=True))).all()


def test_pieces_are_the_decoder():
    rng = np.random.default_rng(0)
    for _ in range(200):
        decoder = random_decoder(rng)
        theta = decoder.init(rng) * 10.0 ** rng.uniform(-1, 1)
        check_pieces(decoder, theta, np.concatenate([3.0 * rng.standard_normal(50), [-1e4, 1e4, 0.0]]))


@pytest.mark.parametrize("spoilt", ["zero", "no bias", "twins", "integers", "all dead"])
def test_pieces_of_degenerate_networks(spoilt):
    """Bends at one place, everywhere or nowhere; relu output layers without bias bend where others do."""
    rng = np.random.default_rng(1)
    for depth, act, out in itertools.product((1, 2, 3), ACTIVATIONS, (True, False)):
        decoder = ri.MLP((1, *[5] * depth, 2), activation=act, output_activation=act if out else "identity")
        theta = decoder.init(rng)
        for W, b in decoder.unpack(theta):
            if spoilt == "zero":
                W[rng.random(W.shape) < 0.4] = 0.0
            if spoilt == "no bias":
                b[...] = 0.0
            if spoilt == "twins":
                W[1:], b[1:] = W[0], b[0]
            if spoilt == "integers":
                W[...], b[...] = np.round(W), np.round(b)
            if spoilt == "all dead":
                b[...] = -100.0
        check_pieces(decoder, theta, rng.standard_normal(50))


def test_a_planted_fault_in_the_pieces_is_found(monkeypatch):
    right = network.forward

    def wrong(layers, z, tangents):
        for i, signal in enumerate(right(layers, z, tangents)):
            yield signal._replace(da=signal.da * (1 + 1e-9)) if i == 0 else signal

    decoder = ri.MLP((1, 4, 2), activation="relu")
    monkeypatch.setattr(network, "forward", wrong)
    with pytest.raises(AssertionError):
        check_pieces(decoder, decoder.init(0), np.linspace(-3, 3, 50))


def test_a_bend_far_out_does_no_harm():
    """W = 1e-14 puts a bend at 1e14, whose neighbours must not be described from there."""
    decoder = ri.MLP((1, 2, 1), activation="relu")
    theta = np.array([1e-14, 1.0, -1.0, 0.0, 1.0, 1.0, 0.3])
    model = ri.NonlinearICA(decoder, theta, 1e-4)
    truth = oracle.line_truth(decoder, theta, 1e-4, [0.7])
    check_value("model", model, None, truth, ri.log_likelihood(model, [[0.7]], EXACT).total)


# --- a Gaussian on an interval ------------------------------------------------------------------------


def test_legendre_weights():
    for order in (12, 24):
        s, w = truncated.gauss_legendre(order)
        with mp.workdps(40):
            for node, weight in zip(s, w, strict=True):
                x = mp.findroot(lambda t, n=order: mp.legendre(n, t), mp.mpf(float(2 * node - 1)))
                slope = order * (mp.legendre(order - 1, x) - x * mp.legendre(order, x)) / (1 - x * x)
                assert abs(node - (1 + x) / 2) <= 2e-16
                assert abs(weight * (1 - x * x) * slope**2 - 1) <= 3e-14


DECAYS = (0.0, 1e-3, 0.3, 1.0, 3.0, 30.0, 1e4)
LENGTHS = (1e-9, 1e-3, 0.1, 1.0, 3.0, 9.0, np.inf)


def one_sided(decay, length):
    """exp(-α v - v²/2) on [0, length] as a `Truncated`, and its mass, mean and variance in mpmath."""
    part = truncated.truncate(*(np.array([float(v)]) for v in (decay, 1.0, 0.0, length)))
    with mp.workdps(80):
        m0, m1, m2 = oracle.truncated_moments(-mp.mpf(decay), mp.mpf(1), mp.mpf(0), mp.mpf(length))
        mean = m1 / m0
        total = m0 * mp.exp(mp.mpf(decay) ** 2 / 2)
        return part, total, mean - decay, m2 / m0 - mean**2


def test_masses_and_pairs():
    for decay, length in itertools.product(DECAYS, LENGTHS):
        part, total, mean, variance = one_sided(decay, length)
        assert abs(truncated.mass(part)[0] / total - 1) <= 1e-14
        v, log_weight = (field[0] for field in truncated.pair(part))
        share = np.exp(log_weight - decay * v - 0.5 * v * v)
        assert (v > 0.0).all()
        assert (v < length).all()
        assert abs(share.sum() / total - 1) <= 1e-14
        centre = share @ v / share.sum()
        assert abs(centre - mean) <= 1e-13 * mp.sqrt(variance)
        assert abs(share @ (v - centre) ** 2 / share.sum() / variance - 1) <= 1e-12


def test_two_sides():
    """Sides of different lengths are put together, and mirrored intervals give mirrored nodes."""
    fields = np.array([0.3, -0.3]), np.array([2.0, 2.0]), np.array([-0.7, -np.inf]), np.array([np.inf, 0.7])
    part = truncated.truncate(*fields)
    tau, _ = truncated.pair(part)
    assert np.allclose(np.sort(tau[0]), np.sort(-tau[1]), rtol=1e-13)
    want = mp.quad(lambda t: mp.exp(-2 * (t + 0.15) ** 2 / 2), [-0.7, -0.15, 3, mp.inf])
    assert np.abs(truncated.mass(part) / float(want) - 1.0).max() <= 1e-14
    fine, log_fine, owner = truncated.fine(part)
    for i in range(2):
        here = owner == i
        density = np.exp(-2.0 * (fine[here] - part.peak[i]) ** 2 / 2.0 + log_fine[here])
        assert abs(density.sum() / float(want) - 1.0) <= 1e-14


# --- as an integrator ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example():
    """A model with 16 relu units, and 1000 observations."""
    decoder = ri.MLP((1, 16, 2), activation="relu")
    model = ri.NonlinearICA(decoder, decoder.init(1), 0.01)
    return model, model.sample(1000, rng=3)[1]


def test_neither_order_nor_company_matters(example):
    model, x = example
    x = x[:60]
    together = EXACT.evaluate(model, x, True)
    order = np.random.default_rng(0).permutation(len(x))
    shuffled = EXACT.evaluate(model, x[order], True)
    alone = [EXACT.evaluate(model, row[None], True) for row in x]
    scale = np.maximum(1.0, np.abs(together.log_p))
    assert (np.abs(shuffled.log_p - together.log_p[order]) <= SAME_SUM * scale[order]).all()
    assert (np.abs(np.array([each.log_p[0] for each in alone]) - together.log_p) <= SAME_SUM * scale).all()
    size = sum(np.abs(each.gradient.theta) for each in alone)
    total = sum(each.gradient.theta for each in alone)
    assert (np.abs(total - together.gradient.theta) <= SAME_SUM * size.max()).all()


def test_everything_follows(example):
    """Density, scores and samples, from the same nodes."""
    model, x = example
    x = x[:20]
    result = ri.log_likelihood(model, x, EXACT)
    dense = ri.density(model, x, EXACT)
    assert np.allclose(dense.per_observation, np.exp(result.per_observation), rtol=1e-12)
    scores = ri.scores(model, x, EXACT)
    assert np.allclose(scores.sum(axis=0)[:-1], result.gradient.theta, rtol=1e-10, atol=1e-10)
    each = np.exp(result.per_observation)[:, None] * scores
    assert np.allclose(each.sum(axis=0)[:-1], dense.gradient.theta, rtol=1e-10, atol=1e-10)
    post = ri.posterior(model, x, EXACT)
    draws = post.sample(4000, rng=0)
    spread = np.sqrt(post.covariance[:, 0, 0] / 4000)
    assert (np.abs(draws.mean(axis=0)[:, 0] - post.mean[:, 0]) <= 6.0 * spread).all()


def test_an_affine_decoder():
    decoder = ri.MLP((1, 3, 2), activation="identity")
    model = ri.NonlinearICA(decoder, decoder.init(0), 0.1)
    x = model.sample(5, rng=0)[1]
    got, want = ri.log_likelihood(model, x, EXACT), ri.log_likelihood(model, x, ExactLinear())
    assert np.allclose(got.per_observation, want.per_observation, rtol=1e-13)
    assert np.allclose(got.gradient.theta, want.gradient.theta, rtol=1e-10)


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (ri.MLP((1, 3, 2), activation="tanh"), "identity, relu or leaky_relu.*use integrator=None"),
        (
            ri.MLP((1, 3, 2), activation="relu", output_activation="sigmoid"),
            "identity, relu or leaky_relu",
        ),
        (ri.Polynomial(1, 2, 2), "needs an MLP"),
        (ri.MLP((3, 3, 2), activation="relu"), "1 or 2 latent dimensions, got 3; use Quadrature"),
    ],
)
def test_what_it_cannot_do_is_refused(decoder, words):
    model = ri.NonlinearICA(decoder, decoder.init(0), 0.1)
    assert is_piecewise_affine(decoder) == (decoder.latent_dim == 3)
    for call in (ri.log_likelihood, ri.posterior):
        with pytest.raises(ValueError, match=words):
            call(model, np.zeros((1, 2)), EXACT)


def test_packing():
    z = np.arange(6.0)[:, None]
    packed = pack(Scattered(np.array([0, 0, 1, 2, 2, 2]), z, -z[:, 0]))
    assert packed.z[..., 0].tolist() == [[0, 1, 0], [2, 2, 2], [3, 4, 5]]
    assert packed.log_weight.tolist() == [[0, -1, -np.inf], [-2, -np.inf, -np.inf], [-3, -4, -5]]


def test_it_is_fast(example):
    """CPU time, so that a busy machine does not matter: 1 ms per observation, of which it needs a tenth."""
    model, x = example
    for call in (EXACT.evaluate, lambda *a: ri.posterior(model, x, EXACT)):
        start = time.process_time()
        call(model, x, True)
        assert time.process_time() - start <= 1e-3 * len(x)
