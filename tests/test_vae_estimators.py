"""The importance-weighted bound, and whether stochastic gradients are unbiased for what they claim."""

import itertools
import tracemalloc
from dataclasses import replace

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from autograd.scipy.special import logsumexp
from autograd_model import decode
from hypothesis import assume, given, settings
from scipy.special import erf
from test_vae import (
    ACTIVATIONS,
    AUTOGRAD,
    COMPLEX_STEP,
    KINK,
    PER_ACTIVATION,
    Case,
    Net,
    cases,
    distance_to_kinks,
    exact_posterior_vae,
    random_vae,
)

from refica.activations import as_activation
from refica.decoders import MLP
from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.rules import gauss_hermite
from refica.vae import VAE, draws, elbo, elbo_and_gradient, elbo_quadrature, evidence, importance, iwae
from refica.vae.importance import ESTIMATORS, iwae_and_gradient, iwae_values

STANDARD_ERRORS = 4.0  # of a mean of 1e5 draws: 1 in 16 000 for each number compared
DRAWS = 100_000
LOG_WEIGHT = 1e-3  # of AUTOGRAD for each unit of |log w|: nine times 2^-53 of it, see sizes


# -----------------------------------------------------------------------------------------------------
# The bound a second time, for autograd: log weights draw by draw, densities by their definition. Networks
# are those of autograd_model, which keep all digits of an activation's tails: all of theta's gradient goes
# through the slope of the output, so that with one output no larger term hides what a tail has lost.
# -----------------------------------------------------------------------------------------------------


def log_normal(z, mean, sd):
    return anp.sum(-0.5 * ((z - mean) / sd) ** 2 - anp.log(sd) - 0.5 * anp.log(2 * anp.pi))


def log_weight(case, theta, sigma2, phi, i, draw, phi_of_density=None):
    """log p(x_i, z) - log q(z | x_i), with z from the encoder at phi and the density q from another phi."""
    m, encoder = case.decoder.sizes[0], case.encoder.build()
    out = decode(encoder, phi, case.x[i])
    z = out[:m] + anp.exp(out[m:] / 2) * case.noise[draw, i]
    q = out if phi_of_density is None else decode(encoder, phi_of_density, case.x[i])
    g = decode(case.decoder.build(), theta, z)
    log_joint = log_normal(case.x[i], g, anp.sqrt(sigma2)) + log_normal(z, 0 * z, 1 + 0 * z)
    return log_joint - log_normal(z, q[:m], anp.exp(q[m:] / 2))


def log_weights(case, theta, sigma2, phi, i):
    return anp.stack([log_weight(case, theta, sigma2, phi, i, draw) for draw in range(len(case.noise))])


def bound(case, theta, sigma2, phi, i):
    return logsumexp(log_weights(case, theta, sigma2, phi, i)) - anp.log(len(case.noise))


def surrogate(case, phi, i, stopped):
    """Σ_l v_l² log w_l, with v and the φ in the density q stopped: its derivative is the estimator."""
    parameters = case.theta, case.sigma2
    log_w = log_weights(case, *parameters, stopped, i)
    v = anp.exp(log_w - logsumexp(log_w))
    return sum(
        v[draw] ** 2 * log_weight(case, *parameters, phi, i, draw, stopped) for draw in range(len(case.noise))
    )


def by_autograd(case, estimator):
    """Value and gradients: dicts of arrays with the observations along the first axis."""
    terms = {"value": [], "theta": [], "sigma2": [], "phi": []}
    for i in range(len(case.x)):
        arguments = case, case.theta, case.sigma2, case.phi, i
        for name, term in zip(terms, (bound(*arguments), *GRADIENTS(*arguments)), strict=True):
            terms[name].append(np.atleast_1d(term))
        if estimator == "doubly-reparameterised":
            terms["phi"][-1] = grad(surrogate, 1)(case, case.phi, i, case.phi.copy())
    return {name: np.array(each) for name, each in terms.items()}


GRADIENTS = grad(bound, (1, 2, 3))


def sizes(case, estimator):
    """The size of what is summed over observations and draws, |v_il ∇ log w_il| and |v_il² (∂ log w_il/∂z)|,
    from refica itself, a draw at a time (the comparison with autograd covers it).

    Rounding moves log w by units of 2^-53 |log w|, and so the weights: dv_l = v_l (dlog w_l - Σ v dlog w),
    at most 2 v_l (1 - v_l) max |dlog w|. At σ² = 1e-3 log w may be -1e4 and less: there no order of summing
    gives twelve digits of the gradient, unless one draw has all the weight. What is summed counts for more.
    """
    *model, x, noise = case.arguments
    found = {"value": 1.0, "theta": 0.0, "sigma2": 0.0, "phi": 0.0}
    for i in range(len(x)):
        log_w = log_weights(case, case.theta, case.sigma2, case.phi, i)
        largest = np.abs(log_w).max()
        found["value"] += largest
        for draw, v in enumerate(np.exp(log_w - logsumexp(log_w))):
            one = x[i : i + 1], noise[draw : draw + 1, i : i + 1]
            for kind in dict.fromkeys(("plain", estimator)):
                by = iwae_and_gradient(*model, *one, kind)[1]
                factor = (v if kind == "plain" else v * v) * (1.0 + LOG_WEIGHT * largest * (1.0 - v))
                for name, term in by._asdict().items():
                    found[name] = found[name] + factor * np.abs(term)
    return {name: np.max(size) for name, size in found.items()}


def relative_errors(case, estimator):
    values, by = iwae_and_gradient(*case.arguments, estimator)
    found = {"value": values.sum(), "theta": by.theta, "sigma2": by.sigma2, "phi": by.phi}
    expected, scale = by_autograd(case, estimator), sizes(case, estimator)
    errors = {}
    for name, each in expected.items():
        difference = np.abs(found[name] - each.sum(axis=0)).max()
        errors[name] = difference / scale[name] if difference else 0.0
    return errors


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_value_and_gradients_against_autograd(activation):
    @settings(max_examples=PER_ACTIVATION)
    @given(cases(activation))
    def check(case):
        assume(distance_to_kinks(case) > KINK)
        estimator = ESTIMATORS[len(case.x) % 2]
        errors = relative_errors(case, estimator)
        assert max(errors.values()) <= AUTOGRAD, errors

    check()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_plain_gradient_against_the_complex_step(activation):
    step = 1e-30

    @settings(max_examples=PER_ACTIVATION // 4)
    @given(cases(activation))
    def check(case):
        assume(distance_to_kinks(case) > KINK)
        decoder, encoder, theta, sigma2, phi, x, noise = case.arguments
        _, by = iwae_and_gradient(*case.arguments)
        scale = sizes(case, "plain")

        def slope(dtheta, dsigma2, dphi):
            values = iwae_values(decoder, encoder, theta + dtheta, sigma2 + dsigma2, phi + dphi, x, noise)
            return values.sum().imag / step

        found = np.array([slope(e, 0.0, 0.0) for e in 1j * step * np.eye(len(theta))])
        assert np.abs(found - by.theta).max() <= COMPLEX_STEP * scale["theta"]
        found = np.array([slope(0.0, 0.0, e) for e in 1j * step * np.eye(len(phi))])
        assert np.abs(found - by.phi).max() <= COMPLEX_STEP * scale["phi"]
        assert abs(slope(0.0, 1j * step, 0.0) - by.sigma2) <= COMPLEX_STEP * scale["sigma2"]

    check()


# -----------------------------------------------------------------------------------------------------
# Planted faults
# -----------------------------------------------------------------------------------------------------


def unnormalised(log_w):
    return np.exp(log_w)


def mean_for_sum(log_w, right=importance._normalised):
    return right(log_w) / log_w.shape[1]


def squared(log_w, right=importance._normalised):
    return right(log_w) ** 2


def same_noise_for_all(decoder, theta, mu, log_s2, x, noise, right=draws.draw):
    return right(decoder, theta, mu, log_s2, x, np.broadcast_to(noise[:, :1], noise.shape))


def lost_half(sigma2, q, drawn, right=importance._log_weights):
    return right(sigma2, q, drawn) - 0.5 * q.log_s2.sum(axis=1)[:, None]


def wrong_sign(sigma2, q, drawn, right=importance._log_weights):
    return right(sigma2, q, drawn) - 2.0 * importance.log_prior(drawn.z)


def sum_for_mean(log_w, right=importance._log_mean):
    return right(log_w) + np.log(log_w.shape[1])


def other_estimator(*arguments, right=importance._tile_gradient):
    estimator = ESTIMATORS[1 - ESTIMATORS.index(arguments[-1])]
    return right(*arguments[:-1], estimator)


FAULTS = {
    "unnormalised weights": ("_normalised", unnormalised),
    "a mean over draws of what their weights sum already": ("_normalised", mean_for_sum),
    "squared weights": ("_normalised", squared),
    "noise reused for all observations": ("draw", same_noise_for_all),
    "a lost half in log q": ("_log_weights", lost_half),
    "the log prior with its sign changed": ("_log_weights", wrong_sign),
    "a sum of weights for their mean": ("_log_mean", sum_for_mean),
    "the weights of the other estimator": ("_tile_gradient", other_estimator),
}


@pytest.fixture
def case():
    rng = np.random.default_rng(5)
    decoder, encoder = Net((2, 4, 3), "tanh"), Net((3, 4, 4), "tanh")
    return Case(
        decoder, encoder, decoder.build().init(rng), 0.3, 0.5 * encoder.build().init(rng),
        rng.standard_normal((4, 3)), rng.standard_normal((3, 4, 2)),
    )  # fmt: skip


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_the_comparison(fault, estimator, case, monkeypatch):
    assert max(relative_errors(case, estimator).values()) <= AUTOGRAD
    name, wrong = FAULTS[fault]
    monkeypatch.setattr(importance, name, wrong)
    assert max(relative_errors(case, estimator).values()) > 1e-3


def gelu_slope(a):
    return 0.5 * (1 + erf(a / np.sqrt(2))) + a * np.exp(-0.5 * a * a) / np.sqrt(2 * np.pi)


def sigmoid_slope(a):
    value = 1 / (1 + np.exp(-a))
    return value * (1 - value)


def tanh_slope(a):
    return 1 - np.tanh(a) ** 2


# slopes right to 1e-16 but not to 1e-16 of themselves, and a pre-activation out there
LOST_TAILS = {"gelu": (gelu_slope, -6.0), "sigmoid": (sigmoid_slope, 16.0), "tanh": (tanh_slope, -9.0)}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("output", LOST_TAILS)
def test_a_slope_without_its_tail_is_caught_by_the_comparison(output, estimator, monkeypatch):
    """A case of Hypothesis had one gelu as its output, at -5.1, and 1 + erf in the comparison: 4e-12 off."""
    slope, bias = LOST_TAILS[output]
    rng = np.random.default_rng(5)
    decoder, encoder = Net((2, 3, 1), "tanh", output), Net((1, 4), "identity")
    theta = 0.3 * decoder.build().init(rng)
    theta[-1] = bias
    phi, x, noise = 0.3 * rng.standard_normal(8), np.array([[0.5]]), rng.standard_normal((1, 1, 2))
    case = Case(decoder, encoder, theta, 0.5, phi, x, noise)
    assert max(relative_errors(case, estimator).values()) <= AUTOGRAD
    monkeypatch.setattr(type(as_activation("output", output)), "derivative", lambda self, a: slope(a))
    assert relative_errors(case, estimator)["theta"] > 10 * AUTOGRAD


# -----------------------------------------------------------------------------------------------------
# Unbiased: the mean over 1e5 draws against a gradient without noise
# -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting():
    """One observation, m = 1, and an encoder that is neither the best nor far off. Its q is narrow: of a wide
    one Gauss-Hermite quadrature is off by more than the noise of these means (they noticed, at order 60)."""
    rng = np.random.default_rng(11)
    decoder, encoder = MLP((1, 3, 2)), MLP((2, 3, 2))
    model = NonlinearICA(decoder, decoder.init(rng), 0.5)
    phi = 0.4 * encoder.init(rng)
    phi[-1] -= 2.0  # the bias of log s²
    return VAE(model, encoder, phi), model.sample(1, rng)[1]


def plain_arguments(vae):
    return vae.model.decoder, vae.encoder, vae.model.theta, vae.model.sigma2, vae.phi


def flat(by):
    return np.concatenate([by.theta, [by.sigma2], by.phi])


def largest_deviation(estimate, vae, x, L, truth, seed=0):
    """Of a mean of DRAWS gradients from L samples each, in standard errors of it.

    A call evaluates some copies of the observation, each with noise of its own, and sums.
    """
    rng, each, copies = np.random.default_rng(seed), [], 500
    for _ in range(DRAWS // copies):
        noise = rng.standard_normal((L, copies, vae.model.latent_dim))
        each.append(flat(estimate(*plain_arguments(vae), np.repeat(x, copies, axis=0), noise)[1]) / copies)
    each = np.array(each)
    error = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    return np.abs((each.mean(axis=0) - truth) / error).max()


def expected_iwae_gradient(vae, x, L, order):
    """Gradient of E IWAE_L(x), expected over all L noises by a product of Gauss-Hermite rules, m = 1."""
    t, weight = evidence.nodes_of(gauss_hermite(order), 1)
    total = 0.0
    for ks in itertools.product(range(order), repeat=L):
        noise = t[list(ks)][:, None]
        total = total + weight[list(ks)].prod() * flat(iwae_and_gradient(*plain_arguments(vae), x, noise)[1])
    return total


@pytest.fixture(scope="module")
def iwae_truth(setting):
    truth = expected_iwae_gradient(*setting, 2, 40)
    assert np.abs(truth - expected_iwae_gradient(*setting, 2, 30)).max() <= 1e-4 * np.abs(truth).max()
    return truth


@pytest.mark.parametrize("L", [1, 5])
def test_the_gradient_of_the_elbo_is_unbiased(setting, L):
    truth = flat(elbo_quadrature(*setting, 60).gradient)
    assert largest_deviation(elbo_and_gradient, *setting, L, truth) <= STANDARD_ERRORS


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradients_of_iwae_are_unbiased(setting, iwae_truth, estimator):
    def estimate(*arguments):
        return iwae_and_gradient(*arguments, estimator)

    assert largest_deviation(estimate, *setting, 2, iwae_truth) <= STANDARD_ERRORS


def biased_elbo(*arguments):
    """The KL's gradient forgotten in the variance: too small a step of log s² by (s² - 1)/2."""
    values, by = elbo_and_gradient(*arguments, kl_weight=0.95)
    return values, by


def of_fewer_draws(*arguments):
    """The gradient of the bound with one draw less, which is not the one it claims."""
    return iwae_and_gradient(*arguments[:-1], arguments[-1][:1])


def test_a_biased_gradient_of_the_elbo_is_rejected(setting):
    truth = flat(elbo_quadrature(*setting, 60).gradient)
    assert largest_deviation(biased_elbo, *setting, 1, truth) > STANDARD_ERRORS


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("fault", ["unnormalised weights", "squared weights", None])
def test_a_biased_gradient_of_iwae_is_rejected(setting, iwae_truth, estimator, fault, monkeypatch):
    def estimate(*arguments):
        return iwae_and_gradient(*arguments, estimator)

    if fault is None:
        estimate = of_fewer_draws
    else:
        monkeypatch.setattr(importance, *FAULTS[fault])
    assert largest_deviation(estimate, *setting, 2, iwae_truth) > STANDARD_ERRORS


# -----------------------------------------------------------------------------------------------------
# The bound itself
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_more_draws_tighten_the_bound_up_to_log_p(seed):
    vae, rng = random_vae(seed, m=1 + seed % 2, sigma2=10.0 ** (seed - 2))
    x = vae.model.sample(3, rng)[1]
    truth = log_likelihood(vae.model, x, gradient=False)
    means, errors = [], []
    for L in (1, 2, 5, 20, 100):
        each = np.array(
            [
                iwae(
                    vae, x, rng.standard_normal((L, 3, vae.model.latent_dim)), gradient=False
                ).per_observation
                for _ in range(300)
            ]
        )
        means.append(each.mean(axis=0))
        errors.append(each.std(axis=0, ddof=1) / np.sqrt(len(each)))
    means, errors = np.array(means), np.array(errors)
    assert (np.diff(means, axis=0) >= -STANDARD_ERRORS * np.hypot(errors[1:], errors[:-1])).all()
    assert (means[-1] > means[0]).all()
    assert (means <= truth.per_observation + STANDARD_ERRORS * errors + truth.error).all()


def test_one_draw_is_an_estimate_of_the_elbo():
    vae, rng = random_vae(1)
    x = rng.standard_normal((1, 2))
    t, weight = evidence.nodes_of(gauss_hermite(60), 1)
    values = [iwae(vae, x, node[None, None], gradient=False).total for node in t]
    assert weight @ values == pytest.approx(elbo_quadrature(vae, x, 60).total, rel=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_where_q_is_the_posterior_all_weights_are_equal(estimator):
    rng = np.random.default_rng(3)
    W, b, x = rng.standard_normal((4, 1)), rng.standard_normal(4), rng.standard_normal((5, 4))
    vae, _ = exact_posterior_vae(W, b, 0.1)
    found = iwae(vae, x, rng.standard_normal((7, 5, 1)), estimator=estimator)
    truth = log_likelihood(vae.model, x)
    assert np.abs(found.per_observation - truth.per_observation).max() <= 1e-11 * np.abs(truth.total)
    if estimator != "plain":  # and there the noise of this gradient vanishes, for each draw
        assert np.abs(found.gradient.phi).max() <= 1e-9 * np.abs(truth.gradient.theta).max()


def test_weights_of_any_size_lose_nothing():
    """log w of some -1e5: exponentials of it are 0 in float64."""
    vae, rng = random_vae(0, sigma2=1e-6)
    x, noise = 10.0 + rng.standard_normal((2, 2)), rng.standard_normal((4, 2, 1))
    found = iwae(vae, x, noise)
    each = np.array(
        [iwae(vae, x, noise[draw : draw + 1], gradient=False).per_observation for draw in range(4)]
    )
    assert each.max() < -1e5
    expected = np.logaddexp.reduce(each, axis=0) - np.log(4)
    assert np.abs(found.per_observation / expected - 1).max() <= 1e-14
    assert np.isfinite(found.gradient.phi).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_blocks_change_nothing(estimator, monkeypatch):
    vae, rng = random_vae(3, m=2, n=3)
    for N, L in ((700, 5), (2, 2500)):
        x, noise = rng.standard_normal((N, 3)), rng.standard_normal((L, N, 2))
        monkeypatch.undo()
        blocked = iwae(vae, x, noise, estimator=estimator)
        without = iwae(vae, x, noise, gradient=False)
        assert np.array_equal(blocked.per_observation, without.per_observation)
        for module in (importance, draws):
            monkeypatch.setattr(module, "DECODER_ROWS", 10**9)
        whole = iwae(vae, x, noise, estimator=estimator)
        assert np.abs(blocked.per_observation / whole.per_observation - 1).max() <= 1e-13
        for one, other in zip(blocked.gradient, whole.gradient, strict=True):
            assert np.abs(one - other).max() <= 1e-12 * np.abs(other).max()


def test_memory_is_bounded_whatever_the_number_of_observations():
    vae, rng = random_vae(1)
    x, noise = rng.standard_normal((50_000, 2)), rng.standard_normal((2, 50_000, 1))
    tracemalloc.start()
    try:
        iwae(vae, x, noise)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 4e6  # a hidden layer of all latents would be 4.8 MB, the result is 0.4


def test_bad_arguments_are_refused(case):
    with pytest.raises(
        ValueError, match="estimator must be one of doubly-reparameterised, plain, got 'dreg'"
    ):
        iwae(case.vae, case.x, case.noise, estimator="dreg")
    with pytest.raises(ValueError, match=r"noise must have shape \(L, 4, 2\)"):
        iwae(case.vae, case.x, case.noise[:, :2])
    with pytest.raises(TypeError, match="vae must be a VAE"):
        iwae(case.vae.model, case.x, case.noise)
    assert repr(iwae(case.vae, case.x, case.noise)).startswith("Bound(total=")
    assert repr(elbo(case.vae, case.x, case.noise)).endswith("of 4 observations)")
    assert iwae(case.vae, case.x, case.noise, gradient=False).gradient is None
    one = replace(case, noise=case.noise[:1])
    assert len(iwae(one.vae, one.x, one.noise).per_observation) == 4
