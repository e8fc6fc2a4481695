"""Training of the VAE: Adam, the coordinates of its steps, ends, and what the fit reaches."""

import math

import numpy as np
import pytest

from refica.decoders import MLP, Polynomial
from refica.encoder import encode
from refica.exact import affine_map, probabilistic_pca
from refica.fit import elbo_ascent, elbo_problem, fit_vae, initial_vae, schedules
from refica.fit.adam import adam_start, adam_step
from refica.fit.elbo_problem import Problem, problem_of
from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.vae import VAE, elbo, elbo_and_gradient, elbo_values, kl_per_latent, kl_to_prior

PPCA_GAP = 0.01  # nats per observation, the acceptance line for an affine decoder
COMPLEX_STEP = 1e-11
UNSCALED = 0.15  # nats per observation below the truth after 1500 steps: training has not ended
EQUIVARIANCE = 1e-8  # a thousand steps amplify what shift and scale round differently


def start(decoder, x, seed=0, hidden=8):
    """A start that knows of the data only their variance."""
    rng = np.random.default_rng(seed)
    model = NonlinearICA(decoder, decoder.init(rng), float(x.var(axis=0).mean()))
    return initial_vae(model, x, hidden, rng=rng)


@pytest.fixture(scope="module")
def affine_data():
    rng = np.random.default_rng(0)
    truth = NonlinearICA(MLP((1, 2)), [1.0, -0.6, 0.5, 2.0], 0.2)
    return truth.sample(500, rng)[1]


@pytest.fixture(scope="module")
def curved_data():
    rng = np.random.default_rng(1)
    decoder = MLP((1, 8, 2))
    truth = NonlinearICA(decoder, decoder.init(rng), 0.01)
    return truth, truth.sample(400, rng)[1]


# -----------------------------------------------------------------------------------------------------
# Adam
# -----------------------------------------------------------------------------------------------------


def adam_by_hand(gradients, rate):
    """The paper's Algorithm 1 for one parameter, with the sums of the running means written out."""
    value = 0.0
    for t in range(1, len(gradients) + 1):
        ages = range(t - 1, -1, -1)
        m = sum(0.1 * 0.9**age * g for age, g in zip(ages, gradients, strict=False)) / (1 - 0.9**t)
        v = sum(0.001 * 0.999**age * g * g for age, g in zip(ages, gradients, strict=False)) / (1 - 0.999**t)
        value += rate * m / (math.sqrt(v) + 1e-8)
    return value


def adam_path(gradients, rate):
    u, state = np.zeros(gradients.shape[1]), adam_start(gradients.shape[1])
    for gradient in gradients:
        change, state = adam_step(state, gradient, rate)
        u = u + change
    return u


def test_adam_takes_the_paper_s_steps(monkeypatch):
    gradients = np.random.default_rng(0).standard_normal((30, 3)) * [1.0, 1e-3, 1e3] + [0.0, 1.0, -1.0]
    expected = [adam_by_hand(list(column), 0.1) for column in gradients.T]
    assert np.abs(adam_path(gradients, 0.1) / expected - 1).max() <= 1e-12
    monkeypatch.setattr("refica.fit.adam.SQUARE_DECAY", 0.99)
    assert np.abs(adam_path(gradients, 0.1) / expected - 1).max() > 1e-3


def test_adam_ascends_by_the_rate_at_first_and_rests_where_the_gradient_is_zero():
    gradient = np.array([3.0, -1e-3, 0.0])
    state = adam_start(3)
    change, after = adam_step(state, gradient, 0.25)
    assert change == pytest.approx([0.25, -0.25, 0.0], rel=1e-4)
    assert after.steps == 1
    assert state.steps == 0
    assert not state.mean.any()  # the state before is what it was
    assert not state.square.any()


# -----------------------------------------------------------------------------------------------------
# The coordinates of the steps
# -----------------------------------------------------------------------------------------------------

DECODERS = [MLP((2, 3, 3)), MLP((2, 3)), MLP((2, 4, 3), "tanh", "sigmoid"), Polynomial(2, 3, 2)]


@pytest.fixture(params=DECODERS, ids=str)
def problem_and_vae(request):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20, 3)) * [1.0, 10.0, 0.1] + [5.0, -100.0, 0.0]
    model = NonlinearICA(request.param, request.param.init(rng), 0.3)
    vae = initial_vae(model, x, 5, rng=rng)
    return problem_of(vae, x, None, rng), vae, x


def test_coordinates_and_parameters_say_the_same(problem_and_vae):
    problem, vae, x = problem_and_vae
    u = problem.to_coordinates(vae)
    theta, sigma2, phi = problem.to_parameters(u)
    assert theta == pytest.approx(vae.model.theta, rel=1e-14)
    assert sigma2 == pytest.approx(vae.model.sigma2, rel=1e-14)
    assert phi == pytest.approx(vae.phi, rel=1e-12, abs=1e-12)
    # in coordinates the encoder is one for standardised inputs
    shift, scale = x.mean(axis=0), x.std(axis=0)
    plain = encode(vae.encoder, u[len(theta) + 1 :], (x - shift) / scale)
    for one, other in zip(plain, encode(vae.encoder, vae.phi, x), strict=True):
        assert one == pytest.approx(other, rel=1e-10, abs=1e-10)


def gradient_error(problem, vae, x, pull_back):
    """Of the gradient in coordinates, against the complex step through the coordinates."""
    rng = np.random.default_rng(0)
    u = problem.to_coordinates(vae)
    noise = rng.standard_normal((2, len(x), vae.model.latent_dim))
    step = 1e-30

    def total(u):
        theta, sigma2, phi = problem.to_parameters(u)
        return elbo_values(vae.model.decoder, vae.encoder, theta, sigma2, phi, x, noise).sum()

    expected = np.array([total(u + 1j * step * e).imag / step for e in np.eye(len(u))])
    theta, sigma2, phi = problem.to_parameters(u)
    _, by = elbo_and_gradient(vae.model.decoder, vae.encoder, theta, sigma2, phi, x, noise)
    return np.abs(pull_back(problem, by, sigma2) - expected).max() / np.abs(expected).max()


def test_the_gradient_in_coordinates_against_the_complex_step(problem_and_vae):
    assert gradient_error(*problem_and_vae, Problem.pull_back) <= COMPLEX_STEP


@pytest.mark.parametrize(
    "wrong",
    [
        lambda problem, by, sigma2: problem.pull_back(by, 1.0),  # σ² for log σ²
        lambda problem, by, sigma2: problem._replace(shift=0 * problem.shift).pull_back(by, sigma2),
        lambda problem, by, sigma2: problem._replace(scale=problem.scale**2).pull_back(by, sigma2),
    ],
)
def test_a_wrong_chain_rule_is_caught(wrong, problem_and_vae):
    assert gradient_error(*problem_and_vae, wrong) > 1e-6


def test_an_encoder_that_is_no_mlp_takes_its_inputs_as_they_are():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 2))
    decoder, encoder = MLP((1, 2)), Polynomial(2, 2, 2)
    vae = VAE(NonlinearICA(decoder, decoder.init(rng), 1.0), encoder, 0.1 * encoder.init(rng))
    problem = problem_of(vae, x, None, rng)
    u = problem.to_coordinates(vae)
    assert np.array_equal(problem.to_parameters(u)[2], vae.phi)
    assert gradient_error(problem, vae, x, Problem.pull_back) <= COMPLEX_STEP
    fit = fit_vae(vae, x, max_iter=500)
    assert fit.history[-1].objective > fit.history[0].objective


@pytest.mark.parametrize(("shift", "scale"), [(1e4, 1e3), (5.0, 1e-3)])
def test_the_units_of_the_data_do_not_matter(shift, scale, curved_data):
    x = curved_data[1]
    decoder = MLP((1, 8, 2))
    theta = decoder.init(0)
    other = theta.copy()
    *_, (W, b) = decoder.unpack(other)
    W *= scale
    b[...] = scale * b + shift
    one = fit_vae(initial_vae(NonlinearICA(decoder, theta, 1.0), x), x, n_starts=1, max_iter=500)
    x = shift + scale * x
    two = fit_vae(initial_vae(NonlinearICA(decoder, other, scale**2), x), x, n_starts=1, max_iter=500)
    jacobian = 2 * math.log(scale)
    for a, b in zip(one.history, two.history, strict=True):
        assert a.objective == pytest.approx(b.objective + jacobian, abs=EQUIVARIANCE)
    assert two.model.sigma2 == pytest.approx(scale**2 * one.model.sigma2, rel=EQUIVARIANCE)


@pytest.mark.parametrize(("shift", "scale"), [(5e5, 1e4), (-3.0, 1e-4)])
def test_data_need_no_scaling(shift, scale, curved_data):
    """Neither by the user nor in the start: of parameters that know nothing of the data."""
    truth, x = curved_data
    decoder, encoder = MLP((1, 8, 2)), MLP((2, 16, 2))
    vae = VAE(NonlinearICA(decoder, decoder.init(0), 1.0), encoder, encoder.init(0))
    target = log_likelihood(truth, x, gradient=False).total / len(x) - 2 * math.log(scale) - UNSCALED
    options = {"max_iter": 1500, "learning_rate": 0.02}
    fit = fit_vae(vae, shift + scale * x, **options)
    assert fit.log_likelihood.total / len(x) >= target
    without = fit_vae(vae, shift + scale * x, n_starts=1, **options)  # this is what a further start is for
    assert without.log_likelihood.total / len(x) < target - 1


# -----------------------------------------------------------------------------------------------------
# Starting
# -----------------------------------------------------------------------------------------------------


def test_the_initial_encoder_inverts_the_model_roughly(curved_data):
    truth, x = curved_data
    rng = np.random.default_rng(0)
    z, fresh = truth.sample(2000, rng)
    vae = initial_vae(truth, x, 16)
    assert vae.encoder.sizes == (2, 16, 2)
    mean, log_s2 = encode(vae.encoder, vae.phi, fresh)
    residual = np.mean((z - mean) ** 2)
    assert residual <= 0.1  # of variance 1
    assert np.ptp(log_s2) == 0
    assert math.log(residual) == pytest.approx(log_s2[0, 0], abs=0.5)


@pytest.mark.parametrize(
    ("hidden", "sizes"), [((), (2, 2)), ((4, 5), (2, 4, 5, 2)), (np.int64(3), (2, 3, 2))]
)
def test_the_initial_encoder_has_the_layers_asked_for(hidden, sizes, affine_data):
    model = probabilistic_pca(affine_data, 1)
    vae = initial_vae(model, affine_data, hidden, "relu")
    assert vae.encoder == MLP(sizes, "relu")
    assert vae.model is model
    truth = log_likelihood(model, affine_data, gradient=False).total
    assert elbo(vae, affine_data, np.zeros((1, 500, 1))).total > 2 * truth - 500


def test_hidden_widths_that_are_none_are_refused(affine_data):
    model = probabilistic_pca(affine_data, 1)
    with pytest.raises(TypeError, match=r"sizes\[1\] must be an integer >= 1, got 1.5"):
        initial_vae(model, affine_data, 1.5)
    with pytest.raises(ValueError, match=r"sizes\[2\] must be an integer >= 1, got 0"):
        initial_vae(model, affine_data, (3, 0))


def test_an_affine_encoder_of_an_affine_model_starts_at_the_posterior(affine_data):
    model = probabilistic_pca(affine_data, 1)
    vae = initial_vae(model, affine_data, ())
    noise = np.array([-1.0, 1.0])[:, None, None] * np.ones((2, 500, 1))  # exact for a quadratic
    truth = log_likelihood(model, affine_data, gradient=False).total
    assert 0 <= (truth - elbo(vae, affine_data, noise).total) / 500 <= 0.01


# -----------------------------------------------------------------------------------------------------
# Fitting
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["gradient", "closed-form"])
@pytest.mark.parametrize("m", [1, 2])
def test_an_affine_fit_reaches_probabilistic_pca(m, update, affine_data, monkeypatch):
    """Also for m = 2, from any start: of all turns of W, which have one likelihood, the ELBO is largest for
    orthogonal columns, where a diagonal q is the posterior and the gap 0."""
    x = affine_data
    if m == 2:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((500, 2)) @ rng.standard_normal((2, 4)) + 0.4 * rng.standard_normal((500, 4))
    n = x.shape[1]
    best = log_likelihood(probabilistic_pca(x, m), x, gradient=False).total / 500
    monkeypatch.setattr(elbo_ascent, "ROUND", 100)
    fit = fit_vae(start(MLP((m, n)), x), x, n_starts=1, sigma2_update=update, learning_rate=0.02)
    assert fit.status == "converged", fit.message
    assert fit.converged
    assert best - PPCA_GAP <= fit.log_likelihood.total / 500 <= best + 1e-12
    assert fit.history[0].objective < best - 100 * PPCA_GAP  # it was not there from the start
    W, _ = affine_map(fit.model)
    columns = W / np.linalg.norm(W, axis=0)
    assert np.abs(columns.T @ columns - np.eye(m)).max() <= 0.1
    # it is the likelihood that is reported, not the bound
    truth = log_likelihood(fit.model, x, gradient=False).per_observation
    assert np.array_equal(fit.log_likelihood.per_observation, truth)
    assert fit.model is fit.vae.model
    assert "gained less than 0.001" in fit.message


def test_a_curved_fit_comes_near_the_truth(curved_data):
    truth, x = curved_data
    fit = fit_vae(start(MLP((1, 8, 2)), x), x, max_iter=4000)
    target = log_likelihood(truth, x, gradient=False).total / len(x)
    reached = fit.log_likelihood.total / len(x)
    assert reached >= target - 0.1
    assert fit.model.sigma2 == pytest.approx(0.01, rel=0.2)
    rng = np.random.default_rng(7)
    bounds = [elbo(fit.vae, x, rng.standard_normal((1, len(x), 1))).total / len(x) for _ in range(20)]
    error = np.std(bounds, ddof=1)
    assert np.mean(bounds) <= reached + 4 * error / math.sqrt(20)
    # the history's best value is that of the VAE returned, at one more draw of the noise
    assert max(step.objective for step in fit.history) == pytest.approx(np.mean(bounds), abs=5 * error)


def test_the_same_seed_gives_the_same_fit_bit_for_bit(affine_data):
    fits = [
        fit_vae(start(MLP((1, 2)), affine_data), affine_data, rng, max_iter=700)
        for rng in (3, np.random.default_rng(3), 4)
    ]
    for name in ("theta", "sigma2"):
        assert np.array_equal(getattr(fits[0].model, name), getattr(fits[1].model, name))
        assert not np.array_equal(getattr(fits[0].model, name), getattr(fits[2].model, name))
    assert np.array_equal(fits[0].vae.phi, fits[1].vae.phi)
    assert [step[:3] for step in fits[0].history] == [step[:3] for step in fits[1].history]


def test_data_are_never_written_to(affine_data):
    x = np.asfortranarray(affine_data.astype(np.float32))
    x.setflags(write=False)
    vae = start(MLP((1, 2)), affine_data)
    phi = vae.phi.copy()
    from_array = fit_vae(vae, x, max_iter=20)
    assert np.array_equal(vae.phi, phi)
    from_list = fit_vae(vae, x.tolist(), max_iter=20)
    assert np.array_equal(from_array.model.theta, from_list.model.theta)
    writeable = affine_data.copy()
    fit_vae(vae, writeable, max_iter=20)
    assert np.array_equal(writeable, affine_data)


def test_a_fit_that_is_not_evaluated_is_the_same_fit(curved_data, affine_data):
    """Its likelihood is on nodes that give no error; an affine decoder's is exact either way."""
    for sizes, x, exact in (((1, 4, 2), curved_data[1], False), ((1, 2), affine_data, True)):
        vae = start(MLP(sizes), x)
        quick, full = (fit_vae(vae, x, max_iter=500, evaluate=evaluate) for evaluate in (False, True))
        assert quick.model.theta.tobytes() == full.model.theta.tobytes()
        assert quick.log_likelihood.total == pytest.approx(full.log_likelihood.total, abs=1e-3 * len(x))
        assert np.isnan(quick.log_likelihood.error).all() != exact


def test_every_observation_is_seen_once_a_pass():
    batches = schedules.batches(1050, 100, np.random.default_rng(0))
    sizes, rows = [], []
    for _ in range(11):
        batch = next(batches)
        sizes.append(len(batch))
        rows.extend(batch)
    assert sorted(rows) == list(range(1050))
    assert max(sizes) <= 100
    assert min(sizes) == 95
    again = [row for _ in range(11) for row in next(batches)]
    assert sorted(again) == sorted(rows)
    assert again != rows


def test_of_many_observations_a_fixed_part_is_held(affine_data, monkeypatch):
    monkeypatch.setattr(elbo_problem, "HELD", 50)
    vae = start(MLP((1, 2)), affine_data)
    problem = problem_of(vae, affine_data, None, np.random.default_rng(0))
    assert problem.judge is problem.training
    assert len(np.unique(problem.judge.x, axis=0)) == 50
    assert set(map(tuple, problem.judge.x)) <= set(map(tuple, affine_data))
    assert problem.judge.noise.shape == (200, 50, 1)  # 10 000 latents at the least
    assert problem.judge.noise.mean() == pytest.approx(0.0, abs=1e-15)
    assert problem.judge.noise.std() == pytest.approx(1.0, rel=1e-14)
    assert fit_vae(vae, affine_data, max_iter=20).status == "iteration limit"


def test_data_of_the_same_seed_do_not_meet_their_own_draws(curved_data):
    """`fit_vae(vae, model.sample(1000, 0)[1], rng=0)`: the noise must not be the latents once more."""
    truth, _ = curved_data
    z, x = truth.sample(1000, 0)
    noise = problem_of(initial_vae(truth, x), x, None, np.random.default_rng(0)).judge.noise[0]
    assert abs(np.corrcoef(z[:, 0], noise[:, 0])[0, 1]) <= 0.2
    plain = np.random.default_rng(0).standard_normal((1, 1000, 1))[0]  # as it was
    assert np.corrcoef(z[:, 0], plain[:, 0])[0, 1] > 0.99


def test_the_history_counts_steps_and_times(affine_data):
    seen = []
    fit = fit_vae(
        start(MLP((1, 2)), affine_data), affine_data, max_iter=1200, n_samples=2, callback=seen.append
    )
    assert [step.iteration for step in fit.history] == [0, 500, 1000, 1200]
    assert list(fit.history) == seen
    seconds = [step.seconds for step in fit.history]
    assert seconds == sorted(seconds)
    assert fit.history[-1].objective > fit.history[0].objective
    assert fit.status == "iteration limit"
    assert not fit.converged
    assert "raise max_iter" in fit.message


# -----------------------------------------------------------------------------------------------------
# σ² in closed form, warm-up, observations set aside, posterior collapse
# -----------------------------------------------------------------------------------------------------


def lost_n(sigma2, sigma2_bar, N, n):
    return sigma2 + n * (elbo_problem.best_sigma2(sigma2, sigma2_bar, N, n) - sigma2)


def of_sigma(sigma2, sigma2_bar, N, n):
    return math.sqrt(elbo_problem.best_sigma2(sigma2, sigma2_bar, N, n))


@pytest.mark.parametrize(
    ("rule", "holds"), [(elbo_problem.best_sigma2, True), (lost_n, False), (of_sigma, False)]
)
def test_sigma2_in_closed_form_is_where_the_elbo_is_largest(rule, holds, curved_data):
    truth, x = curved_data
    vae = initial_vae(truth, x)
    noise = np.random.default_rng(0).standard_normal((3, len(x), 1))
    found = [
        rule(s, elbo(vae.replace(model=truth.replace(sigma2=s)), x, noise).gradient.sigma2, *x.shape)
        for s in (1e-4, 1e-3, 2e-3)
    ]
    at = elbo(vae.replace(model=truth.replace(sigma2=found[1])), x, noise).gradient.sigma2
    stationary = abs(at) * found[1] <= 1e-10 * x.size
    assert (stationary and np.ptp(found) <= 1e-10 * found[0]) == holds


def test_a_fit_in_closed_form_ends_at_that_sigma2(curved_data):
    x = curved_data[1]
    vae = start(MLP((1, 8, 2)), x)
    fit = fit_vae(vae, x, n_starts=1, max_iter=1500, sigma2_update="closed-form")
    training = problem_of(vae, x, None, np.random.default_rng(0)).training
    by = elbo(fit.vae, *training).gradient
    assert abs(by.sigma2) * fit.model.sigma2 <= 1e-9 * x.size
    assert fit.history[-1].objective > fit.history[0].objective + 1


def spied(monkeypatch):
    """What steps are taken on: the weights of the KL, and the observations."""
    seen = []

    def spy(*arguments, right=elbo_and_gradient, **options):
        seen.append((options.get("kl_weight"), arguments[5]))
        return right(*arguments, **options)

    monkeypatch.setattr(elbo_ascent, "elbo_and_gradient", spy)
    return seen


def test_the_weight_of_the_kl_rises_to_one(affine_data, monkeypatch):
    seen = spied(monkeypatch)
    fit = fit_vae(start(MLP((1, 2)), affine_data), affine_data, max_iter=1010, kl_warmup=1000)
    weights = [weight for weight, _ in seen]
    assert weights[:3] == [0.0, 0.001, 0.002]
    assert weights[500] == 0.5
    assert weights[998:] == [0.998, 0.999, *[1.0] * 10]
    # what judges is the ELBO itself, also in the middle of it
    short = fit_vae(start(MLP((1, 2)), affine_data), affine_data, max_iter=500, kl_warmup=1000)
    assert short.history == tuple(
        step._replace(seconds=own.seconds) for step, own in zip(fit.history, short.history, strict=False)
    )
    training = problem_of(
        start(MLP((1, 2)), affine_data), affine_data, None, np.random.default_rng(0)
    ).training
    at_best = elbo(short.vae, *training).total / len(training.x)
    assert at_best == pytest.approx(max(step.objective for step in short.history), rel=1e-10)
    assert short.status == "iteration limit"
    assert "the weight of the KL had only reached 0.5 after 500 steps" in short.message


def test_gains_are_counted_after_the_warm_up(affine_data, monkeypatch):
    monkeypatch.setattr(elbo_ascent, "ROUND", 10)
    arguments = {"tol": 1e3, "patience": 1, "schedule": "constant"}
    vae = start(MLP((1, 2)), affine_data)
    assert fit_vae(vae, affine_data, **arguments).history[-1].iteration == 10
    assert fit_vae(vae, affine_data, kl_warmup=95, **arguments).history[-1].iteration == 100


def test_observations_set_aside_are_not_trained_on_and_judge(affine_data, monkeypatch):
    seen = spied(monkeypatch)
    vae = start(MLP((1, 2)), affine_data)
    fit = fit_vae(vae, affine_data, max_iter=100, validation_fraction=0.2, sigma2_update="closed-form")
    trained = {tuple(row) for _, x in seen for row in x}
    aside = problem_of(vae, affine_data, 0.2, np.random.default_rng(0)).judge
    assert (len(trained), aside.x.shape, aside.noise.shape) == (400, (100, 2), (100, 100, 1))
    assert trained | {tuple(row) for row in aside.x} == {tuple(row) for row in affine_data}
    value = elbo(fit.vae, *aside).total / 100
    assert value == pytest.approx(max(step.objective for step in fit.history), rel=1e-10)
    assert len(fit.log_likelihood.per_observation) == 500


def test_a_fit_stops_early_where_it_learns_by_heart(monkeypatch):
    monkeypatch.setattr(elbo_ascent, "ROUND", 100)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 2))  # nothing to learn but these points
    vae = start(MLP((1, 60, 2)), x, hidden=60)
    fit = fit_vae(vae, x, validation_fraction=0.3, patience=2, learning_rate=0.05)
    values = [step.objective for step in fit.history]
    assert fit.status == "converged"
    assert "the ELBO of 6 observations set aside gained less than 0.001" in fit.message
    assert fit.history[-1].iteration <= 2000
    assert values[-1] < max(values) - 0.5  # it would have gone on downhill


def test_too_much_set_aside_is_refused(affine_data):
    vae = start(MLP((1, 2)), affine_data)
    with pytest.raises(ValueError, match=r"must leave at least 2 of 10 observations to train on, got 0\.9"):
        fit_vae(vae, affine_data[:10], validation_fraction=0.9)


def test_a_latent_that_the_data_do_not_need_is_reported():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 1)) @ [[1.0, -0.5, 0.3]] + 0.3 * rng.standard_normal((400, 3))
    fit = fit_vae(start(MLP((2, 4, 3)), x), x, n_starts=1, max_iter=1500, learning_rate=0.02)
    assert fit.status in ("converged", "iteration limit")
    unused, used = sorted(fit.kl_per_latent)
    assert unused < 0.01 < 1.0 < used
    name = f"z{np.argmin(fit.kl_per_latent) + 1} "
    assert "posterior collapse: 1 of 2 latents have a mean KL below 0.01 nats (" + name in fit.message
    q = encode(fit.vae.encoder, fit.vae.phi, x)
    assert fit.kl_per_latent == pytest.approx(kl_per_latent(*q).mean(axis=0))
    assert kl_per_latent(*q).sum(axis=1) == pytest.approx(kl_to_prior(*q))


def test_data_without_structure_end_in_posterior_collapse(monkeypatch):
    monkeypatch.setattr(elbo_ascent, "ROUND", 100)
    x = np.random.default_rng(0).standard_normal((2000, 2))
    x = (x - x.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True)).T)  # exactly round
    options = {"n_starts": 1, "max_iter": 1200, "n_samples": 4, "learning_rate": 0.02}
    for scale, status in ([1.0, 1.0], "posterior collapse"), ([1.0, 2.0], "iteration limit"):
        vae = initial_vae(NonlinearICA(MLP((1, 2)), [1.0, 1.0, 0.0, 0.0], 1.0), scale * x, 8)
        fit = fit_vae(vae, scale * x, **options)
        assert fit.status == status
        assert ("posterior collapse: 1 of 1 latents" in fit.message) == (status == "posterior collapse")
        assert not fit.converged


# -----------------------------------------------------------------------------------------------------
# Ends
# -----------------------------------------------------------------------------------------------------


def test_a_plateau_lowers_the_rate_and_then_ends():
    plateau = schedules.Plateau(0.0)
    trace = []
    for value in (1.0, 1.5, 1.4, 1.5001, 2.0, 1.0, 1.0, 1.0, 3.0):
        plateau = schedules.next_plateau(plateau, value, 1e-3)
        trace.append((plateau.waited, plateau.lowered))
    assert trace == [(0, 0), (0, 0), (1, 0), (2, 0), (0, 0), (1, 0), (2, 0), (0, 1), (0, 1)]
    assert plateau.best == 3.0


@pytest.mark.parametrize("when", [0, 500])
def test_the_callback_can_stop_it(when, affine_data):
    fit = fit_vae(start(MLP((1, 2)), affine_data), affine_data, callback=lambda step: step.iteration == when)
    assert fit.status == "stopped by callback"
    assert fit.message == f"the callback asked to stop after {when} steps"
    assert fit.history[-1].iteration == when


def test_a_line_through_two_points_collapses(monkeypatch):
    x = np.array([[0.0, 1.0], [2.0, -1.0]])
    # Adam's own jitter keeps σ² above the real floor for longer than a test should take
    monkeypatch.setattr(elbo_problem, "sigma2_floor", lambda x: 1e-3)
    fit = fit_vae(start(MLP((1, 2)), x), x, n_samples=8)
    assert fit.status == "collapsed"
    assert not fit.converged
    assert "sigma2 is at its floor 0.001 after" in fit.message
    assert 1e-3 * (1 - 1e-12) <= fit.model.sigma2 <= 1e-2


def test_a_rate_far_too_large_is_called_divergence():
    x = np.random.default_rng(0).standard_normal((50, 2))
    vae = start(Polynomial(1, 2, 9), x)
    fit = fit_vae(vae, x, n_starts=1, learning_rate=1e60)
    assert fit.status == "diverged"
    assert "take a smaller learning_rate than 1e+60" in fit.message
    assert np.array_equal(fit.model.theta, vae.model.theta)  # the best that was seen
    assert fit.history[-1].objective == -math.inf


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_iter": 0}, ValueError, "max_iter must be an integer >= 1, got 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an integer"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be a finite number > 0"),
        ({"tol": -1.0}, ValueError, "tol must be a finite number > 0"),
        ({"n_samples": 0}, ValueError, "n_samples must be an integer >= 1"),
        ({"n_starts": 0}, ValueError, "n_starts must be an integer >= 1"),
        ({"patience": 0}, ValueError, "patience must be an integer >= 1"),
        ({"kl_warmup": -1}, ValueError, "kl_warmup must be an integer >= 0"),
        ({"schedule": "cosine"}, ValueError, "schedule must be one of"),
        ({"sigma2_update": "em"}, ValueError, "sigma2_update must be one of closed-form, gradient, got 'em'"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction must be a finite number > 0 and < 1"),
        ({"validation_fraction": 0}, ValueError, "validation_fraction must be a finite number > 0 and < 1"),
        ({"rng": True}, TypeError, "rng must be an int seed"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error, message, affine_data):
    with pytest.raises(error, match=message):
        fit_vae(start(MLP((1, 2)), affine_data), affine_data, **arguments)


def test_data_that_cannot_be_fitted_are_refused(affine_data):
    vae = start(MLP((1, 2)), affine_data)
    with pytest.raises(ValueError, match="at least 2 observations"):
        fit_vae(vae, affine_data[:1])
    with pytest.raises(ValueError, match="must not be constant"):
        fit_vae(vae, np.ones((5, 2)))
    with pytest.raises(ValueError, match="x must have shape"):
        fit_vae(vae, np.ones((5, 3)))
    with pytest.raises(TypeError, match="vae must be a VAE"):
        fit_vae(vae.model, affine_data)


def test_a_constant_column_is_fitted_with_a_warning(affine_data):
    x = np.column_stack([affine_data, np.full(500, 3.0)])
    decoder = MLP((1, 3))
    vae = initial_vae(NonlinearICA(decoder, [1.0, -0.6, 0.0, 0.5, 2.0, 3.0], 0.2), x)
    with pytest.warns(UserWarning, match="constant columns"):
        fit = fit_vae(vae, x, max_iter=100)
    assert np.isfinite(fit.history[-1].objective)
