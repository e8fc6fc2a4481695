"""Bounds of activations and decoders on intervals, discs and cells; brackets of integrals over cells.

Each bound is tried on points of the set it speaks of, against high precision where rounding is part of the
claim. A bound could be true and useless, so each is also compared with what the points attain.
"""

import itertools
import math

import numpy as np
import pytest
from digits import mpmath, needs_mpmath
from hypothesis import given
from hypothesis import strategies as st
from strategies import decoders, examples

import refica as ri
from refica.activations import ACTIVATIONS, LeakyReLU, as_activation
from refica.bounds import brackets, encloser, image_of_boxes
from refica.bounds.enclosure import DISCS, Enclosure, U
from refica.bounds.layers import SLOPE

ALL = [*ACTIVATIONS.values(), LeakyReLU(-0.5), LeakyReLU(0.3), LeakyReLU(2.5)]
by_name = pytest.mark.parametrize("f", ALL, ids=lambda f: f.name)

# Points are compared in floats: a value may pass an exact bound by its own rounding.
ROUNDING = 1e-13


def some_intervals(size, seed=0):
    """Intervals of all widths and places, some of them points."""
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal(size) * 10.0 ** rng.uniform(-2, 1.3, size)
    half = 10.0 ** rng.uniform(-6, 1.3, size) * (rng.random(size) > 0.05)
    return middle - half, middle + half


def on_intervals(lower, upper, points=400):
    return lower + (upper - lower) * np.linspace(0, 1, points)[:, None]


# ------------------------------------------------------------------------------------ activations


@by_name
def test_the_image_of_an_interval_holds_its_values_and_is_the_smallest(f):
    lower, upper = some_intervals(500)
    values = f(on_intervals(lower, upper))
    least, greatest = f.image(lower, upper)
    scale = 1.0 + np.abs(values).max(axis=0)
    assert (values >= least - ROUNDING * scale).all()
    assert (values <= greatest + ROUNDING * scale).all()
    # What 400 points miss of an extremum is of second order in their distance, |f''| <= 1.2.
    missed = 0.15 * ((upper - lower) / 399) ** 2 + (upper - lower) / 399 * (f.name[:5] == "leaky")
    assert (values.min(axis=0) - least <= missed + ROUNDING * scale).all()
    assert (greatest - values.max(axis=0) <= missed + ROUNDING * scale).all()


@by_name
def test_the_image_of_slopes_holds_them_and_is_the_smallest(f):
    lower, upper = some_intervals(500)
    inside = on_intervals(lower, upper)[1:-1]  # at a kink that is an end, either slope may be the one
    slopes = f.derivative(inside)
    least, greatest = f.slopes(lower, upper)
    wide = upper > lower
    assert (slopes >= least - ROUNDING)[:, wide].all()
    assert (slopes <= greatest + ROUNDING)[:, wide].all()
    missed = 2.0 * (upper - lower) / 399 + ROUNDING
    has_kink = isinstance(f, LeakyReLU)
    assert has_kink or (slopes.min(axis=0) - least <= missed).all()
    assert has_kink or (greatest - slopes.max(axis=0) <= missed).all()


@by_name
def test_images_of_infinite_intervals(f):
    lower, upper = np.array([-np.inf, -np.inf, 1.0, 50.0]), np.array([np.inf, -50.0, np.inf, np.inf])
    least, greatest = f.image(lower, upper)
    low, high = f.slopes(lower, upper)
    points = on_intervals(np.maximum(lower, -1e4), np.minimum(upper, 1e4), 10_001)
    with np.errstate(under="ignore"):
        assert (least <= f(points) + ROUNDING).all()
        assert (f(points) - ROUNDING <= greatest).all()
        assert (low <= f.derivative(points) + ROUNDING).all()
        assert (f.derivative(points) - ROUNDING <= high).all()
    if f.name in ("tanh", "sigmoid", "sin"):
        assert (np.abs([least, greatest]) <= 1).all()
    if f.name in ("tanh", "sigmoid", "softplus", "gelu"):  # saturated on the left
        assert greatest[1] <= -1 + 1e-15 or abs(greatest[1]) < 1e-20


def discs(size, seed=1):
    """Centres and radii of discs."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(size) * 10.0 ** rng.uniform(-2, 1, size), 10.0 ** rng.uniform(-5, 0.7, size)


def strayed(f, a, radius, angles=181):
    """max |f(a + w) - f(a) - f'(a) w| on the circle |w| = radius, where a modulus is greatest; 50 digits
    would be needed for radii whose square is below rounding, so those count as 0."""
    w = radius * np.exp(1j * np.linspace(0, 2 * math.pi, angles))[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.abs(on_one_branch(f, a, a + w) - f(a) - f.derivative(a) * w).max(axis=0)
    return np.where(radius**2 > 1e-6, distance, 0.0)


def on_one_branch(f, a, z):
    """f(z) as one analytic function on a disc about the real a, whatever side of 0 z lies on."""
    if f.name == "softplus":
        side = np.sign(a)
        return np.where(side > 0, z, 0.0) + np.log1p(np.exp(-side * z))
    if f.name == "sigmoid":
        return 1.0 / (1.0 + np.exp(-z))
    return f(z)


@by_name
def test_the_remainder_bounds_how_far_f_strays_from_its_tangent_on_a_disc(f):
    a, radius = discs(3000)
    bound = f.remainder(a, radius)
    distance = strayed(f, a, radius)
    finite = np.isfinite(bound)
    slack = 1e-12 * (1.0 + np.abs(a) + radius)
    assert (distance <= bound + slack)[finite].all()
    if isinstance(f, LeakyReLU):
        assert (finite == (radius < np.abs(a))).all()
    else:
        assert finite.mean() > 0.7
        small = finite & (radius < 0.3) & (distance > 1e-5)
        loose = bound[small] / distance[small]
        assert not small.any() or np.median(loose) < (3.0 if f.name == "gelu" else 1.5)
    # The checker can fail: a bound less by a factor of 3 is found out.
    assert f.name == "identity" or isinstance(f, LeakyReLU) or (distance > bound / 3 + slack)[finite].any()


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus"])
def test_the_remainder_holds_where_cosh_overflows(name):
    """cosh 711 is inf, but the disc of radius 700 about 711 comes as near as 11 to where tanh is not flat."""
    f = as_activation("activation", name)
    a, radius = (2.0 if name != "tanh" else 1.0) * np.array([711.0, 700.0])
    exact = {"tanh": 2.0 * math.exp(-22.0), "sigmoid": math.exp(-22.0), "softplus": math.exp(-22.0)}[name]
    assert f.remainder(np.array(a), np.array(radius)) >= 0.99 * exact  # at w = -radius


@by_name
def test_the_remainder_rises_with_the_radius_and_is_infinite_at_infinity(f):
    a, _ = discs(200)
    radius = np.linspace(0, 3, 301)[:, None] * np.ones_like(a)
    with np.errstate(over="ignore"):
        bound = f.remainder(np.broadcast_to(a, radius.shape), radius)
    assert (bound[0] == 0).all()
    rising = bound[1:] >= bound[:-1] * (1 - 1e-12)
    assert rising.all()
    if f.name != "identity":
        with np.errstate(all="ignore"):
            assert not np.isfinite(f.remainder(a, np.full_like(a, np.inf))).any()


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3, -0.5, 2.5, 1.0])
def test_the_secant_of_a_kink_is_within_its_error(slope):
    f = LeakyReLU(slope)
    lower, upper = some_intervals(500)
    t = on_intervals(lower, upper)
    line, offset, error = f.secant(lower, upper)
    distance = np.abs(f(t) - line * t - offset)
    assert (distance <= error + ROUNDING * (1 + np.abs(t))).all()
    crossed = (lower < 0) & (upper > 0) & (slope != 1.0)
    assert (distance.max(axis=0) >= 0.98 * error)[
        crossed & (lower > -30 * upper) & (upper > -30 * lower)
    ].all()


MP = (
    {}
    if mpmath is None
    else {
        "tanh": (mpmath.tanh, lambda a: mpmath.sech(a) ** 2),
        "sigmoid": (lambda a: 1 / (1 + mpmath.exp(-a)), lambda a: mpmath.sech(a / 2) ** 2 / 4),
        "softplus": (lambda a: mpmath.log1p(mpmath.exp(a)), lambda a: 1 / (1 + mpmath.exp(-a))),
        "sin": (mpmath.sin, mpmath.cos),
        "gelu": (lambda a: a * mpmath.ncdf(a), lambda a: mpmath.ncdf(a) + a * mpmath.npdf(a)),
        "leaky_relu(0.3)": (
            lambda a: max(a, mpmath.mpf(0.3) * a),
            lambda a: mpmath.mpf(1.0 if a > 0 else 0.3),
        ),
    }
)


@needs_mpmath
@pytest.mark.parametrize("name", MP)
def test_values_and_slopes_are_as_right_as_they_are_taken_to_be(name):
    f = as_activation("activation", name)
    value, slope = MP[name]
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.standard_normal(200) * s for s in (0.01, 1.0, 5.0, 40.0)])
    with mpmath.workdps(40):
        for a, computed, computed_slope in zip(points, f(points), f.derivative(points), strict=True):
            exact, exact_slope = value(mpmath.mpf(a)), slope(mpmath.mpf(a))
            assert abs(mpmath.mpf(computed) - exact) <= f.roundoff * U * (1 + abs(exact))
            assert abs(mpmath.mpf(computed_slope) - exact_slope) <= SLOPE * (1 + abs(exact_slope))


def test_gauss_legendre_rules_are_as_right_as_they_are_taken_to_be():
    flint = pytest.importorskip("flint")
    flint.ctx.prec = 120
    for q, (t, w) in brackets.RULES.items():
        for k in range(q):
            node, weight = flint.arb.legendre_p_root(q, q - 1 - k, weight=True)
            assert abs(float(node - flint.arb(t[k]))) <= 2 * U
            assert abs(float((weight - flint.arb(w[k])) / weight)) <= brackets.WEIGHT


# --------------------------------------------------------------------------------------- decoders


def some_cells(rng, m, size):
    c = rng.standard_normal((size, m)) * 2.0
    return c, 10.0 ** rng.uniform(-4, 0.5, (size, 1)) * rng.uniform(0.3, 1.0, (size, m))


def assert_encloses(decoder, theta, enclosure, c, r, rng):
    """Points of the cells and polydiscs satisfy every claim of the enclosure."""
    C, m = c.shape
    g, J = enclosure.g, enclosure.J
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=m)))
    t = np.concatenate([corners, rng.uniform(-1, 1, (30, m))])
    z = c + r * t[:, None, :]
    value = decoder(theta, z.reshape(-1, m)).reshape(len(t), C, -1)
    assert (value >= enclosure.lower).all()
    assert (value <= enclosure.upper).all()
    line = g + np.einsum("cnm,tcm->tcn", J, z - c)
    slack = 1e-13 * (1.0 + np.abs(value) + np.abs(line))
    assert (np.abs(value - line) <= enclosure.error + slack).all()
    for kappa, error in zip(DISCS, enclosure.disc_error, strict=True):
        w = kappa * np.exp(2j * math.pi * rng.random((40, 1, m))) * r
        with np.errstate(all="ignore"):
            value = decoder(theta, (c + w).reshape(-1, m)).reshape(40, C, -1)
        distance = np.abs(value - g - np.einsum("cnm,tcm->tcn", J, w))
        assert (distance <= error + 1e-12 * (1.0 + np.abs(value)))[:, np.isfinite(error)].all()


@examples(150)
@given(decoders(max_dim=3), st.integers(0, 2**32 - 1))
def test_an_enclosure_holds_what_it_encloses(decoder, seed):
    rng = np.random.default_rng(seed)
    theta = decoder.init(rng) * 10.0 ** rng.uniform(-1, 0.7)
    c, r = some_cells(rng, decoder.latent_dim, 20)
    assert_encloses(decoder, theta, encloser(decoder, theta)(c, r), c, r, rng)


def with_tighter(enclosure: Enclosure, name: str) -> Enclosure:
    return enclosure._replace(**{name: getattr(enclosure, name) * 0.3})


@pytest.mark.parametrize("fault", ["error", "disc_error"])
def test_a_bound_that_is_too_tight_is_found_out(fault):
    rng = np.random.default_rng(0)
    decoder = ri.MLP((2, 4, 2), "tanh")
    theta = decoder.init(rng)
    c, r = some_cells(rng, 2, 50)
    enclosure = encloser(decoder, theta)(c, r)
    assert_encloses(decoder, theta, enclosure, c, r, rng)
    with pytest.raises(AssertionError):
        assert_encloses(decoder, theta, with_tighter(enclosure, fault), c, r, rng)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sin", "gelu", "softplus", "sigmoid"])
def test_errors_are_of_second_order_and_close(activation):
    """On small cells e falls with r² and is a few times what points attain."""
    rng = np.random.default_rng(3)
    decoder = ri.MLP((2, 5, 3), activation)
    theta = decoder.init(rng)
    c = rng.standard_normal((30, 2))
    r = np.full_like(c, 1e-2)
    enclose = encloser(decoder, theta)
    wide, narrow = enclose(c, r), enclose(c, r / 16)
    if activation == "relu":
        assert np.median(wide.error) < 1e-13  # affine on a cell that meets no kink
        return
    assert 0.8 * 256 < np.median(wide.error / narrow.error) < 1.3 * 256
    t = rng.uniform(-1, 1, (200, 1, 2))
    value = decoder(theta, (c + r * t).reshape(-1, 2)).reshape(200, 30, 3)
    attained = np.abs(value - wide.g - np.einsum("cnm,tcm->tcn", wide.J, r * t)).max(axis=0)
    assert np.median(wide.error / attained) < 8


@needs_mpmath
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "sin", "softplus", "gelu", "relu", "polynomial"])
def test_roundoff_covers_the_decoder_s_rounding_at_computed_nodes(activation):
    """Floats at a float point against 40 digits at the exact one."""
    rng = np.random.default_rng(4)
    polynomial = activation == "polynomial"
    decoder = ri.Polynomial(2, 2, 3) if polynomial else ri.MLP((2, 6, 5, 2), activation)
    theta = decoder.init(rng) * 3.0
    c, r = rng.standard_normal((25, 2)) * 4.0, np.full((25, 2), 2.0**-4)
    enclosure = encloser(decoder, theta)(c, r)
    t = brackets.RULES[7][0][1]
    with mpmath.workdps(40):
        t_exact = mpmath.findroot(lambda s: mpmath.legendre(7, s), mpmath.mpf(t))
        worst = 0.0
        for i in range(len(c)):
            z = [mpmath.mpf(c[i, k]) + mpmath.mpf(r[i, k]) * t_exact for k in range(2)]
            exact = mp_decoder(decoder, theta, activation, z)
            computed = decoder(theta, (c[i] + r[i] * t)[None])[0]
            for d in range(2):
                off = abs(mpmath.mpf(computed[d]) - exact[d])
                assert off <= enclosure.roundoff[i, d]
                worst = max(worst, float(off / enclosure.roundoff[i, d]))
    assert worst > 1e-3  # a bound a thousand times too large would be of little use


def mp_decoder(decoder, theta, activation, z):
    if activation == "polynomial":
        C = theta.reshape(2, -1)
        monomials = [z[0] ** a * z[1] ** b for a, b in decoder.exponents]
        return [sum(mpmath.mpf(v) * mono for v, mono in zip(row, monomials, strict=True)) for row in C]
    h = z
    layers = list(decoder.unpack(theta))
    for k, (W, b) in enumerate(layers):
        h = [sum(mpmath.mpf(w) * v for w, v in zip(row, h, strict=True)) + mpmath.mpf(c)
             for row, c in zip(W, b, strict=True)]  # fmt: skip
        if k < len(layers) - 1:
            h = [max(v, mpmath.mpf(0)) if activation == "relu" else MP[activation][0](v) for v in h]
    return h


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "leaky_relu(-0.5)", "gelu", "sin"])
def test_images_of_infinite_boxes_hold_the_decoder(activation):
    rng = np.random.default_rng(5)
    decoder = ri.MLP((2, 5, 4, 3), activation, "tanh")
    theta = decoder.init(rng)
    theta[0] = 0.0  # 0 times inf
    lower = np.array([[8.0, -np.inf], [-np.inf, -np.inf], [-np.inf, 3.0]])
    upper = np.array([[np.inf, np.inf], [-8.0, np.inf], [np.inf, np.inf]])
    low, high = image_of_boxes(decoder, theta, lower, upper)
    z = np.clip(rng.standard_cauchy((2000, 1, 2)) * 10, np.maximum(lower, -1e6), np.minimum(upper, 1e6))
    value = decoder(theta, z.reshape(-1, 2)).reshape(2000, 3, 3)
    assert ((low <= value) & (value <= high)).all()
    assert (np.abs([low, high]) <= 1 + 1e-14).all()


def test_a_polynomial_s_image_of_an_infinite_box_is_everything():
    low, high = image_of_boxes(ri.Polynomial(1, 2, 2), np.ones(6), np.array([[1.0]]), np.array([[np.inf]]))
    assert (low == -np.inf).all()
    assert (high == np.inf).all()


def test_a_decoder_without_layers_is_refused():
    class Foreign:
        latent_dim, data_dim, n_params = 1, 1, 1

    with pytest.raises(TypeError, match=r"need a Polynomial or a decoder made of layers.*Foreign"):
        encloser(Foreign(), np.zeros(1))


def test_an_activation_without_bounds_is_refused():
    class Cube:
        name, gain = "cube", 1.0

        def __call__(self, a):
            return a**3

        def derivative(self, a):
            return 3 * a**2

    decoder = ri.MLP((1, 2, 1), Cube())
    assert decoder(np.ones(decoder.n_params), np.ones((1, 1))).shape == (1, 1)
    with pytest.raises(TypeError, match=r"an activation with 'roundoff'.*Cube"):
        encloser(decoder, np.ones(decoder.n_params))


# --------------------------------------------------------------------------------------- brackets


def integral_over(model, x, c, r, q=60):
    """log ∫ exp F over one cell, by so many nodes that only rounding is left."""
    m = len(c)
    t, w = np.polynomial.legendre.leggauss(q)
    z = c + r * np.stack(np.meshgrid(*[t] * m, indexing="ij"), axis=-1).reshape(-1, m)
    weight = np.prod(np.stack(np.meshgrid(*[w] * m, indexing="ij"), axis=-1).reshape(-1, m), axis=1)
    F = -0.5 * (((x - model.decoder(model.theta, z)) ** 2).sum(axis=1) / model.sigma2 + (z**2).sum(axis=1))
    return F.max() + math.log((weight * np.exp(F - F.max())).sum()) + np.log(r).sum()


@pytest.mark.parametrize("activation", ["tanh", "gelu", "sin", "softplus", "polynomial"])
@pytest.mark.parametrize("m", [1, 2])
def test_every_bracket_holds_the_integral_over_a_cell(activation, m):
    rng = np.random.default_rng(6 + m)
    decoder = ri.Polynomial(m, 2, 3) if activation == "polynomial" else ri.MLP((m, 4, 2), activation)
    model = ri.NonlinearICA(decoder, decoder.init(rng), 0.05)
    x = model.sample(1, rng)[1][0]
    c = rng.standard_normal((60, m))
    r = 10.0 ** rng.uniform(-3, -0.7, (60, 1)) * rng.uniform(0.5, 1, (60, m))
    enclosure = encloser(decoder, model.theta)(c, r)
    F = brackets.exponent(enclosure, x, model.sigma2, c, r)
    truth = np.array([integral_over(model, x, c_i, r_i) for c_i, r_i in zip(c, r, strict=True)])
    slack = 1e-12 * (1.0 + np.abs(truth))  # of the sum above
    first = brackets.first_order(enclosure, x, model.sigma2, c, r)
    second = brackets.second_order(F, enclosure, model.sigma2, r)
    for lower, upper in (first, second):
        assert (lower <= truth + slack).all()
        assert (truth - slack <= upper).all()
    small = r.max(axis=1) < 0.02
    assert (second[1] - second[0] < first[1] - first[0])[small].all()
    errors = brackets.gauss_legendre_error(F, enclosure, model.sigma2, r)
    assert np.isfinite(errors).all(axis=1).mean() > 0.5
    for k, q in enumerate(brackets.ORDERS):
        S = brackets.gauss_legendre(decoder, model.theta, model.sigma2, x, c, r, q)
        off = np.log(np.abs(np.expm1(S - truth)) + 1e-300) + truth
        assert (off <= np.logaddexp(errors[:, k], np.log(slack) + truth)).all()
    assert np.median(errors[:, 0][small] - truth[small]) < math.log(1e-3)


def test_the_error_of_gauss_legendre_is_close_enough_to_fail():
    """Bounds 1e-4 times as large would be wrong: they are within a few digits of the true error."""
    rng = np.random.default_rng(9)
    decoder = ri.MLP((1, 4, 2), "tanh")
    model = ri.NonlinearICA(decoder, decoder.init(rng), 0.05)
    x = model.sample(1, rng)[1][0]
    c, r = rng.standard_normal((60, 1)), np.full((60, 1), 0.2)
    enclosure = encloser(decoder, model.theta)(c, r)
    F = brackets.exponent(enclosure, x, model.sigma2, c, r)
    error = brackets.gauss_legendre_error(F, enclosure, model.sigma2, r)[:, 1]
    truth = np.array([integral_over(model, x, c_i, r_i) for c_i, r_i in zip(c, r, strict=True)])
    S = brackets.gauss_legendre(decoder, model.theta, model.sigma2, x, c, r, brackets.ORDERS[1])
    off = np.log(np.abs(np.expm1(S - truth))) + truth
    assert (off > error + math.log(1e-4)).any()


@needs_mpmath
@given(st.floats(-200, 200), st.floats(1.0, 1e8), st.floats(-14, 7))
@examples(200)
def test_the_gaussian_integral_along_an_axis(b, a, log_r):
    r = 2.0**log_r
    low, high = brackets._axis(np.array([b]), np.array([a]), np.array([r]))
    with mpmath.workdps(40):
        B, A, R = mpmath.mpf(b), mpmath.mpf(a), mpmath.mpf(r)
        root = mpmath.sqrt(A / 2)
        ends = [(R - B / A) * root, (-R - B / A) * root]
        mass = mpmath.erf(ends[0]) - mpmath.erf(ends[1])
        if ends[0] * ends[1] > 0:  # both on one side, where erfc keeps its digits
            mass = abs(mpmath.erfc(abs(ends[1])) - mpmath.erfc(abs(ends[0])))
        truth = mpmath.log(mpmath.sqrt(mpmath.pi / (2 * A)) * mass) + B * B / (2 * A)
    slack = 1e-12 * (1.0 + abs(b) * r)  # the callers' part: `Exponent.doubt`
    assert low[0] - slack <= truth <= high[0] + slack
    if abs(b) * r < 3 and a * r * r < 2:
        assert high[0] - low[0] < 1e-4
