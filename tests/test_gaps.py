"""The ledger log p(x) = ELBO + amortisation + approximation: against closed forms, digits and panels."""

import dataclasses

import autograd_model
import numpy as np
import pytest
from oracles import panels_for, worked_example
from scipy import optimize, stats
from test_vae import elbo_by_panels, exact_posterior_vae, random_vae

import refica as ri
from refica.encoder import encode
from refica.model import NonlinearICA
from refica.vae import VAE, Gaps, elbo_quadrature, gaps, kl_to_prior, ledger, optimal
from refica.vae.evidence import nodes_of

BEST_ELBO = -2.019673119  # mathematics, section 7, tanh at σ² = .1
DIGITS = 1e-8  # of that number
AFFINE = 1e-10  # the ELBO of an affine decoder is quadratic under q: what is left is rounding and the search
DIRECT = 1e-8  # KL(q ‖ posterior) by panels that share nothing with refica
SEARCH = 1e-7  # what Nelder and Mead's search, the brute force here, is itself off by


def with_encoder(model, mean=0.0, log_s2=0.0):
    """The VAE whose encoder says the same of every observation."""
    m, n = model.latent_dim, model.data_dim
    phi = np.concatenate([np.zeros(2 * m * n), np.full(m, mean), np.full(m, log_s2)])
    return VAE(model, ri.MLP((n, 2 * m)), phi)


def holds(found):
    """What must hold of any ledger."""
    assert (found.approximation >= -found.error).all()
    assert (found.amortisation >= -found.error).all()
    total = found.elbo + found.amortisation + found.approximation
    assert (
        np.abs(total - found.log_p).max()
        <= 1e-13 * np.abs(found.log_p).max() + 1e-13 * np.abs(found.elbo).max()
    )
    apart = np.abs(found.kl - (found.log_p - found.elbo))
    assert (apart <= found.error + 1e-8 * np.maximum(1.0, np.abs(found.log_p)))[found.converged].all()


# -----------------------------------------------------------------------------------------------------
# Known numbers
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "log_s2"), [(0.0, 0.0), (-3.0, -8.0), (0.26, -3.0), (4.0, 3.0)])
def test_the_worked_example(mean, log_s2):
    model, x = worked_example("tanh", 0.1)
    found = gaps(with_encoder(model, mean, log_s2), x)
    assert found.converged.all()
    assert abs(found.best_elbo[0] - BEST_ELBO) <= DIGITS
    assert abs(found.log_p[0] - -2.0110450891291042) <= 1e-12
    holds(found)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("sigma2", [1e-3, 0.1, 10.0])
def test_the_approximation_gap_of_an_affine_decoder_is_the_closed_form(m, sigma2):
    rng = np.random.default_rng(m)
    W, b, x = rng.standard_normal((5, m)), rng.standard_normal(5), rng.standard_normal((4, 5))
    best, P = exact_posterior_vae(W, b, sigma2)
    expected = 0.5 * (np.log(np.diag(P)).sum() - np.linalg.slogdet(P)[1])
    for vae in (best, best.replace(phi=best.phi + 0.1 * rng.standard_normal(len(best.phi)))):
        found = gaps(vae, x)
        assert found.converged.all()
        assert np.abs(found.approximation - expected).max() <= AFFINE
        mean, _ = encode(best.encoder, best.phi, x)
        assert np.abs(found.best_mean - mean).max() <= 1e-5
        assert np.abs(found.best_sd * np.sqrt(np.diag(P)) - 1.0).max() <= 1e-5
        holds(found)
    assert np.abs(gaps(best, x).amortisation).max() <= AFFINE


@pytest.mark.parametrize("sigma2", [1e-3, 0.1, 10.0])
def test_orthogonal_columns_leave_no_approximation_gap(sigma2):
    rng = np.random.default_rng(0)
    W = np.linalg.qr(rng.standard_normal((5, 3)))[0] * [2.0, 1.0, 0.1]
    model = NonlinearICA(ri.MLP((3, 5)), np.append(W.ravel(), rng.standard_normal(5)), sigma2)
    x = model.sample(4, rng)[1]
    found = gaps(with_encoder(model), x)
    assert np.abs(found.approximation).max() <= AFFINE
    assert (found.amortisation > 1e-3).all()


def divergence_by_panels(vae, x):
    """KL(q ‖ posterior) of one observation, m = 1: q and the posterior on the same Gauss-Legendre panels, the
    log joint and p(x) from the autograd model. Shares with refica the encoder only."""
    model = vae.model
    mean, log_s2 = (part[0, 0] for part in encode(vae.encoder, vae.phi, x))
    q = stats.norm(mean, np.exp(0.5 * log_s2))
    z, log_w = panels_for(model, radius=14.0)
    joint = autograd_model.log_joint(model.decoder, model.theta, model.sigma2, x, z)[0]
    log_p = np.logaddexp.reduce(joint + log_w)
    log_q = q.logpdf(z[:, 0])
    return np.exp(log_w + log_q) @ (log_q - joint + log_p), log_p


@pytest.mark.parametrize("activation", ["tanh", "sin", "softplus", "gelu"])
def test_the_gap_is_the_divergence(activation):
    for seed in range(6):
        vae, rng = random_vae(seed, sigma2=10.0 ** (seed / 2 - 2), activation=activation)
        phi = vae.phi.copy()
        phi[-1] -= 2.0
        x = vae.model.sample(1, rng)[1]
        found = gaps(vae.replace(phi=phi), x)
        kl, log_p = divergence_by_panels(vae.replace(phi=phi), x)
        assert abs(found.log_p[0] - log_p) <= 1e-10 * max(1.0, abs(log_p))
        scale = max(1.0, abs(kl))
        assert abs(found.approximation[0] + found.amortisation[0] - kl) <= DIRECT * scale
        assert abs(found.kl[0] - kl) <= DIRECT * scale
        holds(found)


def test_a_divergence_with_a_lost_half_would_be_noticed():
    vae, rng = random_vae(2, sigma2=0.1)
    x = vae.model.sample(1, rng)[1]
    kl, _ = divergence_by_panels(vae, x)
    mu, log_s2 = encode(vae.encoder, vae.phi, x)
    found = gaps(vae, x)
    assert abs(found.log_p[0] - (found.elbo[0] - kl_to_prior(mu, log_s2)[0]) - kl) > 1e-3


# -----------------------------------------------------------------------------------------------------
# The best q
# -----------------------------------------------------------------------------------------------------


def best_by_brute_force(model, x, starts):
    """The largest ELBO that Nelder and Mead's simplex finds from several (μ, log s²), m = 1."""
    t, weight = nodes_of(ri.uniform_grid(401, 8.5), 1)

    def negative(u):
        z = u[0] + np.exp(0.5 * u[1]) * t
        log_p = autograd_model.log_joint(model.decoder, model.theta, model.sigma2, x, z)[0]
        log_prior = stats.norm.logpdf(z[:, 0])
        return -(weight @ (log_p - log_prior)) + 0.5 * (u[0] ** 2 + np.exp(u[1]) - 1.0 - u[1])

    options = {"xatol": 1e-7, "fatol": 1e-12, "maxiter": 2000}
    return -min(optimize.minimize(negative, u, method="Nelder-Mead", options=options).fun for u in starts)


@pytest.mark.parametrize("name", ["tanh", "square"])
@pytest.mark.parametrize("sigma2", [1.0, 0.1, 0.01])
def test_no_better_q_is_found_by_brute_force(name, sigma2):
    model, x = worked_example(name, sigma2)
    starts = [(mean, log_s2) for mean in (-1.0, 0.3, 1.0) for log_s2 in (0.0, -4.0)]
    best = best_by_brute_force(model, x, starts)
    for mean in (0.0, -2.0, 1.0):  # the square has two equal modes and a saddle between them
        found = gaps(with_encoder(model, mean, -3.0), x)
        assert abs(found.best_elbo[0] - best) <= SEARCH
        holds(found)


def test_two_equal_modes_cost_about_log_two():
    """As σ² -> 0 the posterior of z² = 1 is half at 1 and half at -1; a Gaussian has one of them: ln 2."""
    model, x = worked_example("square", 1e-4)
    found = gaps(with_encoder(model, 0.0, -4.0), x)
    assert found.approximation[0] == pytest.approx(np.log(2.0), abs=1e-3)
    assert abs(found.best_mean[0, 0]) == pytest.approx(1.0, abs=1e-3)


def test_a_search_that_stops_too_early_says_so(monkeypatch):
    model, x = worked_example("tanh", 1.0)
    monkeypatch.setattr(optimal, "MAX_ITER", 2)
    monkeypatch.setattr(optimal, "LONGEST", 1e-3)
    found = gaps(with_encoder(model), x)
    assert not found.converged.any()
    assert "the search for the best q ended where more than" in found.message
    assert found.error[0] > 1e-4
    holds(found)


def test_an_encoder_far_off_costs_only_amortisation():
    vae, rng = random_vae(1, sigma2=0.1)
    x = vae.model.sample(3, rng)[1]
    usual = gaps(vae, x)
    for mean, log_s2 in ((0.0, -39.0), (0.0, 12.0), (50.0, 0.0)):
        found = gaps(with_encoder(vae.model, mean, log_s2), x)
        assert np.abs(found.best_elbo - usual.best_elbo).max() <= 1e-9
        assert (found.amortisation > usual.amortisation).all()
        holds(found)


# -----------------------------------------------------------------------------------------------------
# Any model
# -----------------------------------------------------------------------------------------------------


def random_case(seed, m=1):
    """A model and an encoder that is the regression of its latents, disturbed."""
    rng = np.random.default_rng([seed, m])
    kind = ("tanh", "sin", "relu", "softplus", "leaky_relu", "gelu", "sigmoid", "polynomial")[seed % 8]
    n = int(rng.integers(1, 4))
    decoder = ri.Polynomial(m, n, 3) if kind == "polynomial" else ri.MLP((m, 5, n), kind)
    model = NonlinearICA(decoder, decoder.init(rng), 10.0 ** rng.uniform(-3, 1))
    _, x = model.sample(6, rng)
    vae = ri.initial_vae(model, x, hidden=4, rng=rng)
    return vae.replace(phi=vae.phi + 0.1 * rng.standard_normal(len(vae.phi))), x


@pytest.mark.parametrize("seed", range(24))
def test_no_gap_is_negative_beyond_the_error(seed):
    vae, x = random_case(seed)
    found = gaps(vae, x)
    holds(found)
    assert found.error.max() <= 1e-2 * max(1.0, np.abs(found.elbo).max())


@pytest.mark.parametrize("seed", range(4))
def test_two_latent_dimensions(seed):
    vae, x = random_case(seed, m=2)
    found = gaps(vae, x[:2])
    holds(found)
    direct = elbo_quadrature(vae, x[:2], 40)
    assert (np.abs(found.elbo - direct.per_observation) <= found.error + direct.error).all()


def test_three_latent_dimensions():
    rng = np.random.default_rng(0)
    decoder = ri.MLP((3, 3, 3), "tanh")
    model = NonlinearICA(decoder, decoder.init(rng), 0.5)
    x = model.sample(1, rng)[1]
    found = gaps(with_encoder(model, 0.0, -1.0), x, ri.Quadrature(ri.gauss_hermite(9), proposal="modes"))
    holds(found)
    assert 0.0 < found.approximation[0] < 0.5


def test_the_bound_holds_of_many_models():
    """By quadrature, beyond no error; the bulk of the 2000 cases is in benchmarks/estimators.py."""
    below = []
    for seed in range(60):
        vae, x = random_case(1000 + seed)
        bound = elbo_quadrature(vae, x, gradient=False)
        truth = ri.log_likelihood(vae.model, x, ri.Reference(), gradient=False)
        below.append(truth.per_observation + truth.error + bound.error - bound.per_observation)
    below = np.concatenate(below)
    assert len(below) == 360
    assert (below >= 0.0).all()


def test_a_bound_that_is_none_would_be_noticed():
    violations = 0
    for seed in range(20):
        vae, x = random_case(1000 + seed)
        bound = elbo_quadrature(vae, x, gradient=False, kl_weight=0.5)  # a lost half
        truth = ri.log_likelihood(vae.model, x, ri.Reference(), gradient=False)
        violations += (bound.per_observation - bound.error > truth.per_observation + truth.error).sum()
    assert violations > 10


def test_the_elbo_agrees_with_panels_cut_at_the_kinks():
    for seed in (2, 4, 10, 12):  # relu and leaky relu
        vae, x = random_case(seed)
        found = gaps(vae, x)
        for i in range(len(x)):
            assert abs(found.elbo[i] - elbo_by_panels(vae, x[i : i + 1])) <= found.error[i]


@pytest.mark.parametrize("wrong", [lambda mu, a: 2 * kl_to_prior(mu, a), lambda mu, a: -kl_to_prior(mu, a)])
def test_a_wrong_divergence_from_the_prior_is_seen_by_the_second_way(wrong, monkeypatch):
    vae, x = random_case(0)
    assert gaps(vae, x).converged.all()
    monkeypatch.setattr(ledger, "kl_to_prior", wrong)
    found = gaps(vae, x)
    assert not found.converged.any()
    assert "KL(q ‖ posterior), integrated directly, is not log p(x) - ELBO" in found.message


# -----------------------------------------------------------------------------------------------------
# Arguments and results
# -----------------------------------------------------------------------------------------------------


def test_observations_do_not_depend_on_their_company(monkeypatch):
    vae, x = random_case(0)
    whole = gaps(vae, x)
    monkeypatch.setattr(ledger, "BLOCK", 2)
    monkeypatch.setattr(optimal, "DECODER_ROWS", 64)
    parts = gaps(vae, x[::-1])
    for field in ("log_p", "elbo", "best_elbo", "kl"):
        one, other = getattr(whole, field), getattr(parts, field)[::-1]
        assert np.abs(one - other).max() <= 1e-11 * np.abs(one).max()


def test_the_integrator_may_be_chosen_and_its_failure_shows():
    vae, x = random_case(0)
    chosen = gaps(vae, x, ri.Quadrature(ri.gauss_hermite(9), proposal="modes"))
    assert "Quadrature" in chosen.message
    assert (np.abs(chosen.log_p - gaps(vae, x).log_p) <= chosen.error).all()
    poor = gaps(vae, x, ri.Quadrature(ri.monte_carlo(10, seed=0)))
    assert not poor.converged.any()
    assert "log p(x) itself has not converged" in poor.message
    holds(poor)


class Cube:
    """A third party's decoder, of which no reference knows how it bends: g(z) = θ z³."""

    latent_dim = data_dim = n_params = 1

    def __call__(self, theta, z):
        return theta * z**3

    def vjp(self, theta, z, cotangent):
        return np.array([(cotangent * z**3).sum()]), cotangent * theta * 3 * z**2

    def jvp(self, theta, z, dtheta, dz):
        return dtheta * z**3 + theta * 3 * z**2 * dz


def test_a_foreign_decoder_is_served_too():
    model = NonlinearICA(Cube(), [1.0], 0.1)
    found = gaps(with_encoder(model, 1.0, -3.0), [[1.0], [0.2]])
    same = NonlinearICA(ri.Polynomial(1, 1, 3), [0.0, 0.0, 0.0, 1.0], 0.1)
    known = gaps(with_encoder(same, 1.0, -3.0), [[1.0], [0.2]])
    assert (np.abs(found.log_p - known.log_p) <= found.error + known.error).all()
    assert np.abs(found.best_elbo - known.best_elbo).max() <= 1e-9
    holds(found)


def test_the_result_is_frozen_and_short_to_read():
    vae, x = random_case(0)
    found = gaps(vae, x.tolist())
    assert isinstance(found, Gaps)
    assert len(repr(found)) < 400
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.log_p = 0
    for field in dataclasses.fields(Gaps):
        value = getattr(found, field.name)
        assert field.name == "message" or len(value) == len(x)
    with pytest.raises(TypeError, match="vae must be a VAE"):
        gaps(vae.model, x)
    with pytest.raises(ValueError, match="x must be finite"):
        gaps(vae, x * np.nan)


def test_an_elbo_that_overflows_is_not_called_converged():
    model, x = worked_example("square", 0.1)
    with np.errstate(over="ignore", invalid="ignore"):
        found = gaps(with_encoder(model, 1e155, 0.0), x)
        bound = elbo_quadrature(with_encoder(model, 1e155, 0.0), x)
    assert not found.converged.any()
    assert not bound.converged.any()
    assert not found.elbo[0] > -1e300
    usual = gaps(with_encoder(model, 1.0, -4.0), x)
    assert abs(found.best_elbo[0] - usual.best_elbo[0]) <= 1e-9
