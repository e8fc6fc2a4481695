"""The strategies that refica lends: what they draw is sound, varied, and shrinks to what can be read."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from strategies import examples

import refica as ri
from refica import likelihood
from refica.activations import ACTIVATIONS
from refica.likelihood import Nodes
from refica.testing import strategies as rs

ROOT = Path(__file__).resolve().parent.parent
NODES = {m: Nodes(*ri.gauss_hermite(5).points(m)) for m in (1, 2, 3)}
ANYTHING = settings(database=None, deadline=None, derandomize=True, max_examples=300)


def smallest(strategy, condition=lambda _: True):
    """What Hypothesis shrinks to."""
    return find(strategy, condition, settings=ANYTHING)


def strict(count):
    """`examples`, but no health check is suppressed."""
    return settings(examples(count), suppress_health_check=[])


# 20 times as many in the thorough profile; 10 000 were drawn once, in a minute and a half.
@strict(200)
@given(rs.cases())
def test_every_drawn_model_has_a_finite_likelihood_and_gradient(case):
    model, x = case
    found = likelihood.evaluate(
        model.decoder, model.theta, model.sigma2, x, NODES[model.latent_dim], coefficient=np.ones_like
    )
    assert np.isfinite(found.log_p).all()
    assert np.isfinite(found.gradient.theta).all()
    assert np.isfinite(found.gradient.sigma2)
    assert rs.steepness_of(model.decoder, model.theta) <= rs.STEEPNESS
    assert 1 <= len(x) <= 6


@strict(20)
@given(st.data())
def test_every_integrator_that_is_drawn_fits_its_model(drawn):
    model = drawn.draw(rs.models(rs.decoders(max_dim=2)))
    x = drawn.draw(rs.data(model, max_size=2, kinds=("plain", "duplicates", "zeros")))
    integrator = drawn.draw(rs.integrators(model))
    result = ri.log_likelihood(model, x, integrator)
    assert np.isfinite(result.per_observation).all()
    assert result.integrator is integrator


@strict(15)
@given(st.data())
def test_bounds_of_a_drawn_vae_are_finite(drawn):
    vae = drawn.draw(rs.vaes())
    x = drawn.draw(rs.data(vae.model, kinds=("plain", "duplicates", "zeros")))
    noise = drawn.draw(rs.noise(len(x), vae.model.latent_dim))
    assert noise.shape[1:] == (len(x), vae.model.latent_dim)
    for bound in (ri.elbo(vae, x, noise), ri.iwae(vae, x, noise)):
        assert np.isfinite(bound.per_observation).all()
        assert np.isfinite(bound.gradient.phi).all()


def test_a_strategy_that_discards_nearly_all_is_noticed():
    """The health check that the tests above rely on."""
    from hypothesis.errors import FailedHealthCheck

    @settings(database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(rs.models().filter(lambda model: model.decoder.n_params > 60))
    def impossible(model):
        pass

    with pytest.raises(FailedHealthCheck):
        impossible()


def drawn(strategy, count=150):
    """Examples of a strategy, the same each time."""
    seen = []

    @settings(max_examples=count, database=None, deadline=None, derandomize=True)
    @given(strategy)
    def collect(value):
        seen.append(value)

    collect()
    return seen


def test_all_kinds_are_drawn():
    names = {act.name for act in drawn(rs.activations())}
    assert names >= set(ACTIVATIONS) - {"leaky_relu"}
    assert any(name.startswith("leaky_relu(") for name in names)
    decoders = drawn(rs.decoders(), 200)
    assert {type(d) for d in decoders} == {ri.MLP, ri.Polynomial}
    assert {len(d.sizes) for d in decoders if isinstance(d, ri.MLP)} == {2, 3, 4, 5}
    assert {d.degree for d in decoders if isinstance(d, ri.Polynomial)} == {0, 1, 2, 3}
    assert {(d.latent_dim, d.data_dim) for d in decoders} == {(m, n) for m in (1, 2, 3) for n in (1, 2, 3)}
    assert set(drawn(rs.variances())) == set(rs.VARIANCES)
    assert {type(rule).__name__ for rule in drawn(rs.rules())} == {
        "GaussHermite",
        "MonteCarlo",
        "Sobol",
        "UniformGrid",
    }
    affine = ri.NonlinearICA(ri.MLP((1, 2)), [1.0, 0.0, 0.0, 0.0], 1.0)
    kinds = {type(i).__name__ for i in drawn(rs.integrators(affine))}
    assert kinds == {"Quadrature", "FixedNodes", "ExactLinear", "ExactPiecewiseAffine", "Reference"}
    assert {type(i).__name__ for i in drawn(rs.integrators())} == {"Quadrature"}
    assert {i.proposal for i in drawn(rs.integrators())} == {"prior", "laplace", "modes"}


def test_awkward_data_are_drawn():
    model = ri.NonlinearICA(ri.MLP((1, 2)), [1.0, -1.0, 0.0, 0.0], 0.01)
    xs = drawn(rs.data(model), 300)
    assert {len(x) for x in xs} == {1, 2, 3, 4, 5, 6}
    assert any(len(x) > 1 and (x == x[0]).all() and x.any() for x in xs)  # duplicates
    assert any(len(x) > 1 and not x.any() for x in xs)
    for size in (1e3, 1e6):  # one far away among others that are not
        assert any(len(x) > 1 and ((np.abs(x) > 0.9 * size).all(axis=1)).sum() == 1 for x in xs)
    assert any(len(x) > 1 and (np.abs(x) > 900).all() for x in xs)  # offset
    plain = drawn(rs.data(model, kinds=("plain",)))
    assert np.max([np.abs(x).max() for x in plain]) < 10
    assert all((np.round(x, rs.DIGITS) == x).all() for x in xs if np.abs(x).max() < 10)
    doubled = drawn(rs.data(model, kinds=("duplicates",), max_size=4))
    assert all(len(x) in (2, 4) and (x[::2] == x[1::2]).all() for x in doubled)


def test_dimensions_can_be_given():
    assert {d.data_dim for d in drawn(rs.decoders(data_dim=5), 30)} == {5}
    assert {d.latent_dim for d in drawn(rs.decoders(latent_dim=2), 30)} == {2}
    decoder = ri.MLP((2, 4, 3), "relu")
    assert {m.decoder for m in drawn(rs.models(decoder), 20)} == {decoder}
    assert {m.sigma2 for m in drawn(rs.models(sigma2=st.just(0.3)), 20)} == {0.3}
    wide = drawn(rs.mlps(hidden=rs.activations("tanh"), max_layers=1, max_units=2), 50)
    assert {d.activation.name for d in wide if len(d.sizes) > 2} == {"tanh"}
    assert max(len(d.sizes) for d in wide) == 3
    model = ri.NonlinearICA(ri.MLP((1, 2)), np.zeros(4), 1.0)
    assert {id(vae.model) for vae in drawn(rs.vaes(model), 10)} == {id(model)}
    assert all(one is model and len(x) <= 2 for one, x in drawn(rs.cases(model, max_size=2), 20))


@pytest.mark.parametrize("decoder", [ri.MLP((2, 4, 3), "gelu"), ri.Polynomial(2, 2, 3)])
@pytest.mark.parametrize("bound", [0.5, 8.0])
def test_no_decoder_is_steeper_than_the_bound(decoder, bound):
    reached = 0.0
    for theta in drawn(rs.parameters(decoder, steepness=bound), 60):
        z = np.random.default_rng(0).uniform(-1.0, 1.0, (200, 2))
        still = np.zeros_like(theta)
        columns = [decoder.jvp(theta, z, still, np.broadcast_to(e, z.shape)) for e in np.eye(2)]
        J = np.stack(columns, axis=-1)
        norm = np.linalg.norm(J, 2, axis=(1, 2)).max() if isinstance(decoder, ri.MLP) else np.abs(J).max()
        assert norm <= rs.steepness_of(decoder, theta) * (1.0 + 1e-12)
        assert rs.steepness_of(decoder, theta) <= bound
        reached = max(reached, rs.steepness_of(decoder, theta) / bound)
    assert reached > 0.5  # halved no further than needed


def test_models_shrink_to_the_smallest():
    model = smallest(rs.models())
    assert model.decoder.n_params <= 2
    assert not model.theta.any()
    assert model.sigma2 == 1.0
    model = smallest(rs.models(rs.mlps()))
    assert model.decoder == ri.MLP((1, 1))
    assert model.theta.tolist() == [0.0, 0.0]


def test_a_failure_of_one_activation_shrinks_to_one_unit_with_weights_of_one():
    def fails(model):
        """As a test of a wrong tanh would: somewhere a hidden tanh sees its input and is seen."""
        decoder = model.decoder
        if not isinstance(decoder, ri.MLP) or len(decoder.sizes) == 2 or decoder.activation.name != "tanh":
            return False
        return (
            np.ptp(decoder(model.theta, np.array([[0.0] * decoder.latent_dim, [1.0] * decoder.latent_dim])))
            > 0
        )

    model = smallest(rs.models(), fails)
    assert model.decoder == ri.MLP((1, 1, 1), "tanh")
    assert model.theta.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert model.sigma2 == 1.0


def test_numbers_shrink_to_zeros_and_ones():
    assert smallest(rs.arrays(2, 3)).tolist() == [[0.0] * 3] * 2
    assert smallest(rs.arrays(2, 2), lambda a: a.all()).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert smallest(rs.variances(), lambda s: s < 0.05) == 0.01
    assert smallest(rs.activations()).name == "identity"


def test_data_and_noise_shrink_to_one_observation_at_zero():
    model = ri.NonlinearICA(ri.MLP((1, 2)), [1.0, -1.0, 0.0, 0.0], 0.01)
    assert smallest(rs.data(model)).tolist() == [[0.0, 0.0]]
    assert smallest(rs.data(model), lambda x: len(x) >= 2).tolist() == [[0.0, 0.0]] * 2
    outlier = smallest(rs.data(model), lambda x: np.abs(x).max() > 500)
    assert np.abs(outlier).tolist() == [[1e3, 1e3]]
    assert smallest(rs.noise(2, 1)).tolist() == [[[0.0], [0.0]]]
    assert smallest(rs.integrators()) == ri.Quadrature(ri.gauss_hermite(1))


def test_vaes_shrink_to_affine_maps():
    vae = smallest(rs.vaes())
    assert vae.encoder == ri.MLP((1, 2))
    assert not vae.phi.any()
    assert vae.model.sigma2 == 1.0


def test_numbers_and_variances_start_with_the_simplest_and_do_not_repeat():
    for listed in (rs.NUMBERS, rs.VARIANCES, rs.AWKWARD, rs.SLOPES):
        assert len(set(listed)) == len(listed)
    assert rs.NUMBERS[:2] == (0.0, 1.0)
    assert {-number for number in rs.NUMBERS} == set(rs.NUMBERS)
    assert rs.VARIANCES[0] == 1.0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        rs.activations("tan")
    with pytest.raises(ValueError, match="steepness must be a finite number > 0"):
        rs.parameters(ri.MLP((1, 1)), steepness=0.0)
    model = ri.NonlinearICA(ri.MLP((1, 1)), [0.0, 0.0], 1.0)
    with pytest.raises(ValueError, match="did you mean 'outlier'"):
        smallest(rs.data(model, kinds=("outliers",)))


@pytest.mark.parametrize("kind", [ri.NonlinearICA, ri.MLP, ri.Polynomial, ri.VAE, ri.Quadrature])
def test_types_are_known_to_hypothesis(kind):
    assert all(isinstance(value, kind) for value in drawn(st.from_type(kind), 5))


def test_annotated_functions_are_tested_by_their_types():
    @settings(max_examples=20, database=None)
    @given(...)
    def holds(model: ri.NonlinearICA, integrator: ri.Quadrature):
        x = np.zeros((1, model.data_dim))
        assert np.isfinite(ri.log_likelihood(model, x, integrator, gradient=False).total)

    holds()


def entry_point():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["hypothesis"]


def test_the_entry_point_resolves_and_does_not_import_hypothesis():
    ((_, target),) = entry_point().items()
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    code = f"import sys, {module}; sys.exit('hypothesis' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("first", ["hypothesis", "refica.testing.strategies"])
def test_hypothesis_finds_the_types_by_the_entry_point(first, tmp_path):
    """In whatever order the two are imported, with metadata as an installation leaves them."""
    info = tmp_path / "hooked-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hooked\nVersion: 0\n")
    ((name, target),) = entry_point().items()
    (info / "entry_points.txt").write_text(f"[hypothesis]\n{name} = {target}\n")
    code = (
        f"import {first}, refica as ri\nfrom hypothesis import find, settings, strategies as st\n"
        "few = settings(database=None, max_examples=1)\n"
        "print(find(st.from_type(ri.NonlinearICA), lambda m: True, settings=few).sigma2)"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert found.stdout.strip() == "1.0"
    assert found.stderr == ""
