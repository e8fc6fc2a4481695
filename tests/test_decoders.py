"""Decoders: derivatives, the order of theta, shapes, initial values, descriptions."""

import pickle

import autograd_model
import checks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import KINDS, clear_of_kinks, examples, models

import refica as ri
from refica.activations import ACTIVATIONS
from refica.decoders import decoder_from_dict, decoder_to_dict


@pytest.mark.parametrize("kind", KINDS)
@examples(25)
@given(data=st.data())
def test_vjp_and_jvp(kind, data):
    model = data.draw(models(kind))
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40, model.latent_dim))
    z = z[clear_of_kinks(model.decoder, model.theta, z)][:6]
    checks.check_vjp(model.decoder, model.theta, z, rng)


@examples(50)
@given(data=st.data())
def test_vjp_sums_over_rows_unless_it_is_asked_for_each(data):
    model = data.draw(models())
    decoder, theta = model.decoder, model.theta
    rng = np.random.default_rng(0)
    z, cotangent = rng.standard_normal((5, decoder.latent_dim)), rng.standard_normal((5, decoder.data_dim))
    whole, z_bar = decoder.vjp(theta, z, cotangent)
    rows = [decoder.vjp(theta, z[k : k + 1], cotangent[k : k + 1]) for k in range(5)]
    each, _ = decoder.vjp(theta, z, cotangent, each=True)
    assert checks.relative_error(each, np.stack([theta_bar for theta_bar, _ in rows])) <= checks.SAME_SUM
    np.testing.assert_array_equal(decoder.vjp(theta, z, cotangent, each=True)[1], z_bar)
    size = np.sum([np.abs(theta_bar) for theta_bar, _ in rows], axis=0)
    assert checks.relative_error(sum(theta_bar for theta_bar, _ in rows), whole, size) <= checks.SAME_SUM
    assert checks.relative_error(np.concatenate([bar for _, bar in rows]), z_bar, 1.0) <= checks.SAME_SUM


def test_theta_is_in_the_order_of_pytorch():
    """``parameters_to_vector`` of Sequential(Linear(2, 3), Tanh(), Linear(3, 1)): weight (out, in) row by
    row, then bias, layer by layer; unpacked by hand."""
    theta = np.arange(1.0, 14.0) / 10.0
    W1 = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    b1 = np.array([0.7, 0.8, 0.9])
    W2, b2 = np.array([[1.0, 1.1, 1.2]]), np.array([1.3])
    decoder = ri.MLP((2, 3, 1), activation="tanh")
    assert decoder.n_params == 13
    z = np.array([[0.3, -0.7], [2.0, 0.1]])
    want = [W2 @ np.tanh(W1 @ row + b1) + b2 for row in z]
    np.testing.assert_allclose(decoder(theta, z), want, rtol=1e-15)
    for (W, b), (W_want, b_want) in zip(decoder.unpack(theta), [(W1, b1), (W2, b2)], strict=True):
        np.testing.assert_array_equal(W, W_want)
        np.testing.assert_array_equal(b, b_want)


def test_theta_in_two_hidden_layers_by_hand():
    theta = np.arange(1.0, 1.0 + 2 * 1 + 2 + 2 * 2 + 2 + 2 * 2 + 2) / 10.0
    decoder = ri.MLP((1, 2, 2, 2), activation="softplus", output_activation="sigmoid")
    assert decoder.n_params == len(theta)
    z = 0.4
    h = [np.log1p(np.exp(0.1 * z + 0.3)), np.log1p(np.exp(0.2 * z + 0.4))]
    h = [np.log1p(np.exp(0.5 * h[0] + 0.6 * h[1] + 0.9)), np.log1p(np.exp(0.7 * h[0] + 0.8 * h[1] + 1.0))]
    y = [1.1 * h[0] + 1.2 * h[1] + 1.5, 1.3 * h[0] + 1.4 * h[1] + 1.6]
    want = [1.0 / (1.0 + np.exp(-a)) for a in y]
    np.testing.assert_allclose(decoder(theta, [[z]])[0], want, rtol=1e-15)


def test_monomials_are_graded():
    """1, z1, z2, z1², z1 z2, z2², z1³, ...; theta is (n, monomials) in C order; by hand."""
    decoder = ri.Polynomial(latent_dim=2, data_dim=2, degree=3)
    assert decoder.n_params == 20
    first = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    second = [-1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]
    u, v = 0.7, -1.3
    powers = [1.0, u, v, u**2, u * v, v**2, u**3, u**2 * v, u * v**2, v**3]
    want = [np.dot(first, powers), np.dot(second, powers)]
    np.testing.assert_allclose(decoder(np.array(first + second), [[u, v]])[0], want, rtol=1e-14)


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("m", range(1, 5))
def test_exponents_by_their_definition(m, degree):
    decoder = ri.Polynomial(m, 3, degree)
    assert list(decoder.exponents) == autograd_model.monomials(m, degree)
    assert decoder.n_params == 3 * len(decoder.exponents)
    assert decoder.init(0).shape == (decoder.n_params,)


@examples(50)
@given(data=st.data())
def test_shapes(data):
    model = data.draw(models())
    decoder, theta = model.decoder, model.theta
    m, n, p = decoder.latent_dim, decoder.data_dim, decoder.n_params
    for K in (0, 1, 7):
        z = np.zeros((K, m))
        assert decoder(theta, z).shape == (K, n)
        theta_bar, z_bar = decoder.vjp(theta, z, np.zeros((K, n)))
        assert theta_bar.shape == (p,)
        assert z_bar.shape == (K, m)
        assert decoder.jvp(theta, z, theta, z).shape == (K, n)


@pytest.mark.parametrize("decoder", [ri.MLP((2, 3, 1)), ri.Polynomial(2, 1, 2)], ids=["MLP", "Polynomial"])
@pytest.mark.parametrize("wrong", ["theta", "z", "z of one row", "cotangent", "dtheta", "dz"])
def test_wrong_shapes(decoder, wrong):
    theta, z, cotangent = np.zeros(decoder.n_params), np.zeros((4, 2)), np.zeros((4, 1))
    arguments = {"theta": theta, "z": z, "cotangent": cotangent, "dtheta": theta, "dz": z}
    bad = {
        "theta": ("theta", np.zeros(decoder.n_params + 1)),
        "z": ("z", np.zeros((4, 3))),
        "z of one row": ("z", np.zeros(2)),
        "cotangent": ("cotangent", np.zeros((3, 1))),
        "dtheta": ("dtheta", np.zeros((1, decoder.n_params))),
        "dz": ("dz", np.zeros((1, 2))),
    }[wrong]
    arguments[bad[0]] = bad[1]
    call = {
        "theta": lambda a: decoder(a["theta"], a["z"]),
        "z": lambda a: decoder(a["theta"], a["z"]),
        "cotangent": lambda a: decoder.vjp(a["theta"], a["z"], a["cotangent"]),
        "dtheta": lambda a: decoder.jvp(a["theta"], a["z"], a["dtheta"], a["dz"]),
        "dz": lambda a: decoder.jvp(a["theta"], a["z"], a["dtheta"], a["dz"]),
    }[bad[0]]
    with pytest.raises(ValueError, match=rf"{bad[0]} must have shape .*, got \({bad[1].shape[0]},") as error:
        call(arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_initial_weights_keep_the_size_of_signals(name):
    """Layer by layer of a deep, wide net the outputs neither vanish nor explode."""
    decoder = ri.MLP((4, 64, 64, 64, 4), activation=name)
    z = np.random.default_rng(1).standard_normal((500, 4))
    y = decoder(decoder.init(0), z)
    assert 0.05 <= y.std(axis=0).mean() <= 20.0


def test_initial_values_are_repeatable_and_generators_advance():
    decoder = ri.MLP((2, 5, 3))
    np.testing.assert_array_equal(decoder.init(7), decoder.init(7))
    rng = np.random.default_rng(7)
    np.testing.assert_array_equal(decoder.init(rng), decoder.init(7))
    assert (decoder.init(rng) != decoder.init(7)).any()
    assert (decoder.init(7)[-3:] == 0.0).all()  # the output bias


def test_affine():
    assert ri.MLP((2, 3)).is_affine
    assert ri.MLP((2, 4, 3), activation="identity").is_affine
    assert ri.MLP((2, 4, 3), activation=ri.leaky_relu(1.0)).is_affine
    assert ri.Polynomial(2, 3, 1).is_affine
    assert not ri.MLP((2, 4, 3)).is_affine
    assert not ri.MLP((2, 3), output_activation="sigmoid").is_affine
    assert not ri.Polynomial(2, 3, 2).is_affine


@examples(50)
@given(data=st.data())
def test_descriptions_are_read_back(data):
    decoder = data.draw(models()).decoder
    again = decoder_from_dict(decoder_to_dict(decoder))
    assert again == decoder
    assert hash(again) == hash(decoder)
    assert pickle.loads(pickle.dumps(decoder)) == decoder


def test_what_cannot_be_described_is_refused():
    with pytest.raises(TypeError, match="only MLP and Polynomial can be described as JSON, got 'mlp'"):
        decoder_to_dict("mlp")
    with pytest.raises(ValueError, match=r"the description of a decoder must be a dict, got \[1\]"):
        decoder_from_dict([1])


def test_decoders_are_frozen():
    decoder = ri.MLP((1, 2))
    with pytest.raises(AttributeError):
        decoder.sizes = (2, 2)
