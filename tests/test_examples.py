"""The named examples are what they say, the same each time, and worth looking at."""

import dataclasses

import numpy as np
import pytest

from refica.decoders import MLP, Polynomial
from refica.examples import DEFAULT, EXAMPLES, example, held_out

# A product of matrices may be summed in another order by another BLAS, nothing else may change.
ROUNDING = 1e-12

# name: m, n, decoder; and of the sample: mean of x, of x², of z³
EXPECTED = {
    "tanh": (1, 2, MLP, 1.065993864202204, 4.8946612725464895, -0.08825314851490523),
    "relu": (1, 2, MLP, 3.2789623628770106, 12.738303466675504, -0.02142304600115522),
    "polynomial": (1, 2, Polynomial, -0.7685300651339121, 2.5266941226369015, 0.25234381614110907),
    "polynomial-1-1": (1, 1, Polynomial, 0.7199824421441603, 1.8821437507713579, 0.039051249567742106),
    "sigmoid-1-1": (1, 1, MLP, 0.43438451465824224, 0.33753190802525046, 0.013576364620168648),
    "sigmoid": (2, 3, MLP, 0.4662253754821366, 0.3705930749691801, -0.017867356344011483),
    "tanh-2-3": (2, 3, MLP, 0.20075009129497626, 5.388680702559413, -0.06555268581633725),
    "polynomial-2-4": (2, 4, Polynomial, -0.24595623566373828, 4.621584662733218, 0.030775863360679265),
}

CURVES = [name for name, (m, n, *_) in EXPECTED.items() if (m, n) == (1, 2)]


def curve_of(model):
    """g on 501 latents in [-2.5, 2.5], where 99 % of them lie."""
    return model.decoder(model.theta, np.linspace(-2.5, 2.5, 501)[:, None])


def turning(curve):
    """Sum of the moduli of the changes of direction along a curve, in radians."""
    steps = np.diff(curve, axis=0)
    angle = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
    return np.abs(np.diff(angle)).sum()


def closest_approach(curve, apart):
    """Least distance of two points of a curve that lie at least so far apart along it."""
    arc = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1)))
    distance = np.linalg.norm(curve[:, None] - curve, axis=-1)
    return distance[np.abs(arc[:, None] - arc) >= apart].min()


def is_interesting(model):
    """Whether a curve in the plane is bent, some units wide in both directions and clear of itself."""
    curve, sigma = curve_of(model), np.sqrt(model.sigma2)
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(curve.T)))
    return (
        turning(curve) > np.pi
        and spread.min() > 5.0 * sigma
        and 2.0 < np.ptp(curve, axis=0).max() < 30.0
        and closest_approach(curve, apart=1.2) > 5.0 * sigma
    )


def test_every_example_is_expected_and_the_default_comes_first():
    assert set(EXAMPLES) == set(EXPECTED)
    assert DEFAULT == EXAMPLES[0] == "tanh"
    assert example().name == DEFAULT


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_is_what_its_name_says(name):
    m, n, decoder, *_ = EXPECTED[name]
    setting = example(name)
    assert setting.name == name
    assert (setting.model.latent_dim, setting.model.data_dim) == (m, n)
    assert isinstance(setting.model.decoder, decoder)
    assert setting.model.sigma2 == 0.01
    assert setting.size == 1000
    assert ("m = n = 1" if m == n == 1 else f"m = {m}, n = {n}") in setting.sentence
    assert np.isfinite(setting.model.theta).all()


def test_the_decoders_are_those_of_the_exercise():
    tanh, relu = example("tanh").model.decoder, example("relu").model.decoder
    assert (tanh, relu) == (MLP((1, 8, 2), "tanh"), MLP((1, 8, 2), "relu"))
    assert example("tanh-2-3").model.decoder == MLP((2, 8, 3), "tanh")
    assert example("sigmoid").model.decoder == MLP((2, 3), output_activation="sigmoid")
    assert example("sigmoid-1-1").model.decoder == MLP((1, 1), output_activation="sigmoid")
    degrees = {name: example(name).model.decoder.degree for name in EXAMPLES if "polynomial" in name}
    assert degrees == {"polynomial": 3, "polynomial-1-1": 3, "polynomial-2-4": 2}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_sample_is_the_same_each_time_and_everywhere(name):
    setting = example(name)
    z, x = setting.simulate()
    for again in (setting, example(name)):
        assert np.array_equal(again.model.theta, setting.model.theta)
        assert all(np.array_equal(a, b) for a, b in zip(again.simulate(), (z, x), strict=True))
    assert np.isfinite(x).all()
    summary = x.mean(), (x**2).mean(), (z**3).mean()
    assert summary == pytest.approx(EXPECTED[name][3:], rel=ROUNDING, abs=ROUNDING)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_sample_follows_the_model(name):
    setting = example(name)
    z, x = held_out(setting)
    N, m = z.shape
    noise = (x - setting.model.decoder(setting.model.theta, z)) / np.sqrt(setting.model.sigma2)
    for normal in (z, noise):
        # Five standard errors of a mean and of a variance of N standard normal numbers.
        assert np.abs(normal.mean(axis=0)).max() < 5.0 / np.sqrt(N)
        assert np.abs(np.cov(normal.T) - np.eye(normal.shape[1])).max() < 5.0 * np.sqrt(2.0 / N)
    assert np.abs(z.T @ noise / N).max() < 5.0 / np.sqrt(N)
    assert (N, m) == ({1: 10_000, 2: 1000}[m], setting.model.latent_dim)


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_sample_and_held_out_sample_are_different_draws(name):
    setting = example(name)
    seeded = np.random.default_rng(setting.seed)
    draws = [
        setting.simulate()[0].ravel(),
        held_out(setting)[0].ravel(),
        setting.model.theta / setting.model.theta[0],  # of any scale
        setting.simulate(rng=setting.seed)[0].ravel(),
        seeded.standard_normal(1000),
    ]
    first = [draw[1] / draw[0] for draw in draws]
    assert first[3] == first[4]  # a caller's seed is taken as it is ...
    assert len(set(first)) == 4  # ... and is none of the example's own streams


def test_size_and_generator_can_be_given():
    setting = example()
    z, x = setting.simulate(7, 3)
    assert (z.shape, x.shape) == ((7, 1), (7, 2))
    same = setting.simulate(7, np.random.default_rng(3))
    assert np.array_equal(same[1], x)
    assert not np.array_equal(setting.simulate(7)[1], x)
    assert held_out(setting, 5)[1].shape == (5, 2)


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "10"])
def test_a_bad_size_is_refused(size):
    with pytest.raises((TypeError, ValueError), match="size must be an integer >= 1"):
        example().simulate(size)
    with pytest.raises((TypeError, ValueError), match="size must be an integer >= 1"):
        held_out(example(), size)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'polynomial'"):
        example("polynomal")
    with pytest.raises(ValueError, match="example must be one of"):
        example(3)


def test_an_example_cannot_be_changed():
    setting = example()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setting.seed = 1
    with pytest.raises(ValueError, match="read-only"):
        setting.model.theta[0] = 1.0


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_interesting(name):
    assert is_interesting(example(name).model)


def test_a_line_a_crossing_a_dot_and_a_giant_are_not_interesting():
    model = example("polynomial").model  # coefficients of 1, z, z², z³ in x1, then in x2
    for coefficients in (
        [0, 1, 0, 0, 0, 2, 0, 0],  # a straight line
        [0, 0, 1, 0, 0, -1, 0, 0.7],  # a loop: z = -1.2 and 1.2 meet
        [0, 0.01, 0.01, 0, 0, 0, 0, 0.01],  # narrower than the noise
        [0, 10, 0, 0, 0, 0, 10, 0],  # hundreds of σ wide
    ):
        assert not is_interesting(model.replace(theta=coefficients))
    assert is_interesting(model.replace(theta=[0, 1.5, 0, 0, 0, -2, 0, 0.7]))  # an N


def test_no_point_of_the_default_curve_stands_still():
    speed = np.linalg.norm(np.diff(curve_of(example().model), axis=0), axis=1) * 100.0
    assert speed.min() > 0.3
    assert speed.max() < 10.0
