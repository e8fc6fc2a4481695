"""Cells of the lattice of starts: their masses, modes they save from being lost, mass apart from modes."""

import numpy as np
import pytest
from scipy import stats

import refica as ri
from refica import lattices, modes, proposals
from refica.model import log_prior
from refica.modes import Modes, find_modes, laplace_mass

RIPPLE = 0.1
"""Relative ripple of the sum of Gaussians that stands for the prior: 3 percent per axis, and some for g."""

LOST = 0.03
"""Nats of log p(x): a loss that the cells are there to prevent."""


def bent(seed, m=2, sigma2=1e-6, N=20):
    """A model whose posteriors are hundreds of times narrower than the lattice's step, and observations."""
    rng = np.random.default_rng(seed)
    decoder = ri.MLP((m, 4, m))
    model = ri.NonlinearICA(decoder, 2.5 * decoder.init(rng), sigma2)
    return model, model.sample(N, rng)[1]


def one_mode_only(found, keep):
    """Return the modes without all but one."""
    return Modes._make([*(part[:, keep : keep + 1] for part in found[:4]), found.complete])


@pytest.mark.parametrize("m", [2, 3])
def test_the_mass_of_a_cell_is_that_of_its_tangent(m):
    rng = np.random.default_rng(m)
    decoder = ri.MLP((m, 3, 4))
    model = ri.NonlinearICA(decoder, decoder.init(rng), 1e-3)
    h = lattices.step(m)
    tangents = lattices._tangents(model, h)
    x = model.sample(3, rng)[1]
    mass = lattices._masses(model, tangents, h)(x)
    for k in rng.integers(0, len(tangents.z), 20):
        z, J = tangents.z[k], tangents.J[k]
        d = 1e-6 * rng.standard_normal(m)
        moved = decoder(model.theta, (z + d)[None])[0] - decoder(model.theta, (z - d)[None])[0]
        np.testing.assert_allclose(moved, 2.0 * J @ d, rtol=1e-5, atol=1e-12)
        law = stats.multivariate_normal(
            decoder(model.theta, z[None])[0], 1e-3 * np.eye(4) + (lattices.CELL * h) ** 2 * J @ J.T
        )
        want = m * np.log(h) + log_prior(z[None])[0] + law.logpdf(x)
        np.testing.assert_allclose(mass[:, k], want, rtol=1e-9)


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("sigma2", [1e-8, 1e-4, 1.0])
def test_all_cells_together_hold_p_of_x(m, sigma2):
    """Of an affine decoder, whose tangents do not mislead, however narrow the posterior is."""
    rng = np.random.default_rng(m)
    decoder = ri.MLP((m, m + 1))
    model = ri.NonlinearICA(decoder, decoder.init(rng), sigma2)
    x, h = model.sample(5, rng)[1], lattices.step(m)
    total = np.logaddexp.reduce(lattices._masses(model, lattices._tangents(model, h), h)(x), axis=1)
    exact = ri.log_likelihood(model, x, ri.ExactLinear()).per_observation
    assert np.abs(total - exact).max() <= RIPPLE


@pytest.mark.parametrize(("seed", "rows"), [(1, [1, 9, 17]), (16, [8, 13]), (23, [5, 6])])
def test_no_mode_is_lost_between_the_points_of_the_lattice(seed, rows, monkeypatch):
    model, x = bent(seed)
    x = x[rows]
    yardstick = ri.log_likelihood(model, x, ri.Reference(), gradient=False)
    on_modes = ri.Quadrature(ri.gauss_hermite(7), "modes")
    result = ri.log_likelihood(model, x, on_modes, gradient=False)
    claimed = result.converged & yardstick.converged
    assert claimed.any()
    off = np.abs(result.per_observation - yardstick.per_observation)
    assert (off <= 10.0 * (result.error + yardstick.error))[claimed].all()
    # without the cells some are: the test can fail
    monkeypatch.setattr(modes, "_search_cells", lambda model, x, found, most_starts: found)
    monkeypatch.setattr(proposals, "mass_apart", lambda model, x, found: None)
    result = ri.log_likelihood(model, x, on_modes, gradient=False)
    off = np.abs(result.per_observation - yardstick.per_observation)
    assert ((off > LOST) & (off > 10.0 * result.error) & result.converged).any()


def test_a_cell_is_not_searched_twice(monkeypatch):
    """An affine decoder has one mode, which explains all cells."""
    rng = np.random.default_rng(0)
    decoder = ri.MLP((2, 3))
    model = ri.NonlinearICA(decoder, decoder.init(rng), 1e-4)
    x = model.sample(30, rng)[1]
    searched = []
    real = modes._from_starts

    def counted(model, x, starts, present):
        searched.append(int(present.sum()))
        return real(model, x, starts, present)

    monkeypatch.setattr(modes, "_from_starts", counted)
    found = find_modes(model, x)
    with_cells = sum(searched)
    monkeypatch.setattr(modes, "_search_cells", lambda model, x, found, most_starts: found)
    searched.clear()
    find_modes(model, x)
    assert with_cells == sum(searched)
    assert found.complete.all()


def two_modes(m=2, sigma2=1e-2):
    """g(z) = (z_1², z_2, ..): modes near ±1 in z_1 for x = (1, 0, ..)."""
    decoder = ri.Polynomial(m, m, 2)
    C = np.zeros((m, len(decoder.exponents)))
    for d in range(m):
        C[d, list(map(tuple, decoder.exponents)).index(tuple((2 if d == 0 else 1) * (np.arange(m) == d)))] = (
            1.0
        )
    return ri.NonlinearICA(decoder, C.ravel(), sigma2), np.eye(1, m)


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("keep", [0, 1])
def test_the_mass_of_a_lost_mode_lies_apart(m, keep):
    model, x = two_modes(m)
    found = find_modes(model, x)
    mass = laplace_mass(found)[0]
    assert (found.log_joint > -np.inf).sum() == 2
    apart = modes.mass_apart(model, x, one_mode_only(found, keep)).mass[0]
    assert abs(apart - mass[1 - keep]) <= RIPPLE * m
    assert modes.mass_apart(model, x, found).mass[0] < np.logaddexp(*mass) - 9.0


def test_a_lost_mode_is_in_the_error(monkeypatch):
    """A planted fault: the search forgets a mode. The lattice, the second witness, has seen it."""
    model, x = two_modes()
    monkeypatch.setattr(proposals, "find_modes", lambda model, x: one_mode_only(find_modes(model, x), 0))
    for rule in (ri.gauss_hermite(7), ri.uniform_grid(21, 6.0), ri.sobol(1024, seed=0)):
        result = ri.log_likelihood(model, x, ri.Quadrature(rule, "modes"), gradient=False)
        assert result.error[0] >= np.log(2.0) - 0.1
        assert not result.converged[0]
        assert "another mode" in result.message
    monkeypatch.setattr(proposals, "mass_apart", lambda model, x, found: None)
    result = ri.log_likelihood(model, x, ri.Quadrature(ri.gauss_hermite(7), "modes"), gradient=False)
    assert result.error[0] < 0.1  # without the second witness nobody would know


def test_what_draws_from_the_prior_have_seen_is_not_missed(monkeypatch):
    """Half of p(x) lies apart from the one mode left, but is so broad that draws from the prior see it."""
    model, x = two_modes(m=1, sigma2=0.2)
    monkeypatch.setattr(proposals, "find_modes", lambda model, x: one_mode_only(find_modes(model, x), 0))
    exact = ri.log_likelihood(model, x, ri.Reference(), gradient=False).total
    left = one_mode_only(find_modes(model, x), 0)
    assert modes.mass_apart(model, x, left).mass[0] > exact - 1.2
    result = ri.log_likelihood(model, x, ri.Quadrature(ri.monte_carlo(4000, seed=0), "modes"), gradient=False)
    assert result.converged[0]
    assert abs(result.total - exact) <= result.error[0] < 0.2
    few = ri.log_likelihood(model, x, ri.Quadrature(ri.monte_carlo(60, seed=0), "modes"), gradient=False)
    assert not few.converged[0]


def test_tangents_that_mislead_are_found_out(monkeypatch):
    """Far from a manifold that bends back a tangent promises mass that is not there."""
    decoder = ri.MLP((2, 6, 3), activation="sin")
    model = ri.NonlinearICA(decoder, 2.0 * decoder.init(3), 1e-4)
    x = np.array([[6.0, -5.0, 4.0]])
    found = find_modes(model, x)
    mass = np.logaddexp.reduce(laplace_mass(found)[0])
    assert modes.mass_apart(model, x, found).mass[0] < mass - 5.0
    real = lattices._visited

    def trusting(model, x, tangents):
        """As if the tangents were right."""
        z, height, less = real(model, x, tangents)
        return z, height + less, np.zeros_like(less)

    monkeypatch.setattr(lattices, "_visited", trusting)
    assert modes.mass_apart(model, x, found).mass[0] > mass + 5.0
