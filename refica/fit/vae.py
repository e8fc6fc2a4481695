"""Training of a variational autoencoder (Exercise 3): Adam on minibatches, noise from a generator.

The objective is the ELBO per observation. Training runs in rounds of steps at one rate. What a round
leaves is the average of its iterates (Polyak and Juditsky 1992: it takes out most of the jitter), and
this is evaluated at noise held fixed for the whole fit, so that two rounds differ by their parameters
only. Where that value no longer rises the rate is lowered; after the last lowering the fit has converged.

Steps are taken in coordinates in which Adam's equal steps make sense whatever the units of the data: θ's
output layer in units of the data, log σ² for σ², and φ's first layer as for standardised inputs.
"""

# notation: N observations, n data, m latent, p and q parameters of decoder and encoder;
# u (p + 1 + q,) the coordinates, a name with _bar the gradient with respect to what it is named after

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refica.activations import Activation
from refica.decoders import MLP, Decoder
from refica.encoder import LINEAR_LOG_VARIANCE
from refica.files.messages import PathLike
from refica.fit.adam import AdamState, adam_start, adam_step
from refica.fit.checkpoint import Keeper, digest, name_of
from refica.fit.result import Fit, Step
from refica.fit.run import run
from refica.fit.schedules import LOWERINGS, PATIENCE, Plateau, batches, next_plateau, rate_of
from refica.fit.starts import check_training_data, output_units, sigma2_floor, standardisation
from refica.fit.watch import Callback, Watch
from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.vae import VAE, BoundGradient, elbo_and_gradient, elbo_values
from refica.validation import Array, check_count, check_generator, check_number

__all__ = ["fit_vae", "initial_vae"]

ROUND = 500
"""Steps between two evaluations: long enough for an average, and for a gain to show."""

HELD = 20_000
"""Most observations in an evaluation; of more, as many are drawn once."""

SIMULATED = 2000
"""Pairs (z, x) drawn from the model to start an encoder from."""


def fit_vae(
    vae: VAE,
    x: Any,
    rng: Any = 0,
    *,
    max_iter: int = 30_000,
    batch_size: int = 100,
    learning_rate: float = 0.01,
    tol: float = 1e-3,
    n_samples: int = 1,
    callback: Callback | None = None,
    checkpoint: PathLike | None = None,
    resume: PathLike | None = None,
    verbose: bool = False,
) -> Fit:
    """Return the VAE that maximises the ELBO over (θ, σ², φ), starting from the one given.

    Parameters
    ----------
    vae : VAE
        The start; `initial_vae` makes one for a model.
    x : array_like (N, n)
        At least two observations.
    rng : int or numpy.random.Generator
        For the order of the observations and the noise; the same seed gives the same fit bit for bit.
    max_iter : int
        Most Adam steps, >= 1.
    batch_size : int
        Most observations in a step; permutations are cut into batches of (almost) equal size.
    learning_rate : float
        Adam's rate at the start, > 0.
    tol : float
        Smallest gain of ELBO per observation in a round of 500 steps that counts as one, > 0.
    n_samples : int
        Draws of noise for each observation of a batch.
    callback : callable, optional
        Called with each `Step` of the history; True ends the fit.
    checkpoint : path, optional
        A JSON file that holds the state of the fit after the last round, about every second: whole at any
        moment, whatever happens.
    resume : path, optional
        A checkpoint to go on from, bit for bit as if the fit had not been interrupted. All arguments must be
        as they were, but for ``max_iter``, ``callback``, ``verbose`` and the paths.
    verbose : bool
        Whether to show progress on stderr.

    Returns
    -------
    Fit
        With ``vae`` and ``model``, the parameters of the best round; ``log_likelihood``, the true one
        of the training data and not the bound; ``history``, with a `Step` for the start and for each
        round: its objective is the ELBO per observation (of all data, or of 20 000 observations drawn
        once) of the round's average parameters at noise drawn once for the fit. ``status`` is
        "converged", "iteration limit", "collapsed" (σ² is at its floor), "diverged", "stopped by
        callback" or "interrupted" (by Ctrl-C: the best so far).

    Raises
    ------
    TypeError, ValueError
        For bad data (fewer than two observations or all equal among them) or arguments out of range;
        ``DataError`` for a checkpoint that is not of this fit.
    OutputError
        If the checkpoint cannot be written.
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"vae must be a VAE, got {vae!r}")
    x = vae.model.check_data(x)
    check_training_data(x)
    rng = check_generator(rng)
    settings = _Settings(
        max_iter=check_count("max_iter", max_iter),
        batch_size=check_count("batch_size", batch_size),
        learning_rate=check_number("learning_rate", learning_rate, above=0.0),
        tol=check_number("tol", tol, above=0.0),
        n_samples=check_count("n_samples", n_samples),
    )
    watch = Watch(callback, verbose)
    keeper = Keeper(_identity(vae, x, settings, rng), watch, checkpoint, resume)
    problem = _problem(vae, x, rng)
    with np.errstate(over="ignore", invalid="ignore"):  # a fit that diverges says so in its status
        state, ending = run(
            lambda: _begin(vae, problem),
            lambda state: _advance(state, x, problem, settings, watch, rng),
            lambda state: _ending(state, problem, settings, watch),
            rng,
            watch,
            keeper,
            vae.model,
        )
    status, message = ending or ("interrupted", f"interrupted by Ctrl-C: {keeper.words()}")
    theta, sigma2, phi = _to_parameters(state.best, problem)
    fitted = vae.replace(model=vae.model.replace(theta=theta, sigma2=float(sigma2)), phi=phi)
    return Fit(
        model=fitted.model,
        log_likelihood=log_likelihood(fitted.model, x, gradient=False),
        history=state.history,
        status=status,
        message=message,
        vae=fitted,
    )


def _identity(vae: VAE, x: Array, settings: _Settings, rng: np.random.Generator) -> dict[str, Any]:
    """Return what a checkpoint must agree in to be one of this fit."""
    numbers = settings._asdict()
    del numbers["max_iter"]  # a fit may go on beyond its limit
    return {
        "kind": "fit_vae",
        "decoder": name_of(vae.model.decoder),
        "encoder": name_of(vae.encoder),
        "vae": digest(vae.model.theta, np.array(vae.model.sigma2), vae.phi),
        "data": digest(x),
        **numbers,
        "rng": name_of(rng.bit_generator.state),
    }


def initial_vae(
    model: NonlinearICA,
    x: Any,
    hidden: int | Sequence[int] = 16,
    activation: Activation | str = "tanh",
    rng: Any = 0,
) -> VAE:
    """Return a VAE to start from: the model with an MLP encoder that inverts it roughly.

    Pairs (z, x) are simulated from the model and z regressed on the encoder's random last hidden layer:
    that gives the means, and the log of the mean squared residual each log variance. The inputs are
    standardised, folded into the first layer: so the units of the data do not matter.

    Parameters
    ----------
    model : NonlinearICA
    x : array_like (N, n)
        The data, for their mean and standard deviation.
    hidden : int or sequence of int
        Widths of the encoder's hidden layers; () for an affine encoder.
    activation : Activation or str
        Of its hidden layers.
    rng : int or numpy.random.Generator

    Raises
    ------
    TypeError, ValueError
        For bad data, widths, activation or rng.
    """
    x, rng = model.check_data(x), check_generator(rng)
    widths = tuple(np.atleast_1d(np.asarray(hidden, dtype=object)))  # of a wrong type: MLP says so
    encoder = MLP((model.data_dim, *widths, 2 * model.latent_dim), activation)
    phi = encoder.init(rng)
    z, simulated = model.sample(SIMULATED, rng)
    # standardised by their own moments: a model far from the data still gives a usable start
    shift, scale = standardisation(simulated)
    h = (simulated - shift) / scale
    if widths:
        features = MLP((model.data_dim, *widths), activation, activation)
        h = features(phi[: features.n_params], h)
    h1 = np.column_stack([h, np.ones(len(h))])
    coefficients = np.linalg.lstsq(h1, z)[0]
    residual = np.mean((z - h1 @ coefficients) ** 2, axis=0)
    *_, (W, b) = encoder.unpack(phi)
    W[...], b[...] = 0.0, 0.0
    m = model.latent_dim
    W[:m], b[:m] = coefficients[:-1].T, coefficients[-1]
    b[m:] = np.log(np.maximum(residual, math.exp(-LINEAR_LOG_VARIANCE)))
    return VAE(model, encoder, _fold(encoder, phi, *standardisation(x)))


class _Settings(NamedTuple):
    """The numbers that `fit_vae` was called with."""

    max_iter: int
    batch_size: int
    learning_rate: float
    tol: float
    n_samples: int


class _Problem(NamedTuple):
    """What stays the same during a fit.

    ``decoder``, ``encoder``; ``units`` (p,) of the coordinates of θ; ``shift`` and ``scale`` (n,) of the
    encoder's inputs; ``log_floor`` of σ²; ``held`` observations (H, n) and ``held_noise`` (1, H, m).
    """

    decoder: Decoder
    encoder: Decoder
    units: Array
    shift: Array
    scale: Array
    log_floor: float
    held: Array
    held_noise: Array


class _State(NamedTuple):
    """What changes from round to round.

    ``u`` (d,) the last iterate; ``best`` (d,) of the rounds' averages; ``adam``, its moments; ``plateau``;
    ``history``, empty before the start has been evaluated.
    """

    u: Array
    best: Array
    adam: AdamState
    plateau: Plateau
    history: tuple[Step, ...]


def _begin(vae: VAE, problem: _Problem) -> _State:
    """Return the state before the first evaluation."""
    u = _to_coordinates(vae, problem)
    return _State(u, u, adam_start(len(u)), Plateau(-math.inf), ())


def _advance(
    state: _State, x: Array, problem: _Problem, settings: _Settings, watch: Watch, rng: np.random.Generator
) -> _State:
    """Evaluate the start, or take a round and evaluate the average of its iterates."""
    if not state.history:
        value = _held_elbo(state.u, problem)
        step = _step(0, value, state.u, problem, watch)
        return state._replace(plateau=Plateau(value), history=(step,))
    done = state.history[-1].iteration
    steps = min(ROUND, settings.max_iter - done)
    rate = rate_of("plateau", settings.learning_rate, state.plateau, len(state.history) - 1)
    average, u, adam = _round(state.u, state.adam, x, problem, settings, rate, steps, rng)
    value = _held_elbo(average, problem)
    best = average if value > state.plateau.best else state.best
    plateau = next_plateau(state.plateau, value, settings.tol)
    step = _step(done + steps, value, average, problem, watch)
    return _State(u, best, adam, plateau, (*state.history, step))


def _step(iteration: int, value: float, u: Array, problem: _Problem, watch: Watch) -> Step:
    """Return an entry of the history, after the watch has seen it."""
    _, sigma2, _ = _to_parameters(u, problem)
    step = Step(iteration, value, float(sigma2), watch.seconds())
    watch.sees(step)
    return step


def _round(
    u: Array,
    adam: AdamState,
    x: Array,
    problem: _Problem,
    settings: _Settings,
    rate: float,
    steps: int,
    rng: np.random.Generator,
) -> tuple[Array, Array, AdamState]:
    """Take Adam steps at one rate; return the average of the iterates, the last one and Adam's state."""
    at_sigma2 = len(problem.units)
    total = np.zeros_like(u)
    for rows in itertools.islice(batches(len(x), settings.batch_size, rng), steps):
        theta, sigma2, phi = _to_parameters(u, problem)
        noise = rng.standard_normal((settings.n_samples, len(rows), problem.held_noise.shape[2]))
        _, by = elbo_and_gradient(problem.decoder, problem.encoder, theta, sigma2, phi, x[rows], noise)
        change, adam = adam_step(adam, _pull_back(by, sigma2, problem) / len(rows), rate)
        u = u + change
        u[at_sigma2] = max(u[at_sigma2], problem.log_floor)
        total += u
    return total / steps, u, adam


def _held_elbo(u: Array, problem: _Problem) -> float:
    """ELBO per held observation at the held noise; -inf where it is not finite."""
    theta, sigma2, phi = _to_parameters(u, problem)
    values = elbo_values(
        problem.decoder, problem.encoder, theta, sigma2, phi, problem.held, problem.held_noise
    )
    mean = float(values.mean())
    return mean if math.isfinite(mean) else -math.inf


def _ending(state: _State, problem: _Problem, settings: _Settings, watch: Watch) -> tuple[str, str] | None:
    """Return why the fit ends here, as status and sentence, or None if it goes on."""
    if not state.history:
        return None
    step = state.history[-1]
    after = f"after {step.iteration} steps"
    if watch.stopped:
        return "stopped by callback", f"the callback asked to stop {after}"
    if step.iteration and not math.isfinite(step.objective):
        return (
            "diverged",
            f"the ELBO is not finite {after}; take a smaller learning_rate than {settings.learning_rate:g}",
        )
    if state.u[len(problem.units)] <= problem.log_floor:
        return "collapsed", (
            f"sigma2 is at its floor {math.exp(problem.log_floor):.3g} {after}: the decoder all but passes "
            "through the data, where the bound has no maximum; take fewer hidden units or more observations"
        )
    if state.plateau.lowered > LOWERINGS:
        return "converged", (
            f"the ELBO gained less than {settings.tol:g} per observation in each of {PATIENCE} rounds of "
            f"{ROUND} steps at the last of {LOWERINGS + 1} rates, {after}"
        )
    if step.iteration >= settings.max_iter:
        return "iteration limit", f"the ELBO had not settled at the lowest rate {after}; raise max_iter"
    return None


def _problem(vae: VAE, x: Array, rng: np.random.Generator) -> _Problem:
    """Choose the coordinates, the observations and the noise that the whole fit shares."""
    shift, scale = standardisation(x)
    held = x if len(x) <= HELD else x[np.sort(rng.choice(len(x), HELD, replace=False))]
    return _Problem(
        vae.model.decoder,
        vae.encoder,
        output_units(vae.model.decoder, scale),
        shift,
        scale,
        math.log(sigma2_floor(x)),
        held,
        rng.standard_normal((1, len(held), vae.model.latent_dim)),
    )


def _to_coordinates(vae: VAE, problem: _Problem) -> Array:
    """u = (θ / units, log σ², φ for standardised inputs), (p + 1 + q,)."""
    phi = _unfold(vae.encoder, vae.phi, problem.shift, problem.scale)
    log_sigma2 = max(math.log(vae.model.sigma2), problem.log_floor)
    return np.concatenate([vae.model.theta / problem.units, [log_sigma2], phi])


def _to_parameters(u: Array, problem: _Problem) -> tuple[Array, Any, Array]:
    """θ (p,), σ², φ (q,) of the coordinates u."""
    p = len(problem.units)
    phi = _fold(problem.encoder, u[p + 1 :], problem.shift, problem.scale)
    return problem.units * u[:p], np.exp(u[p]), phi


def _pull_back(by: BoundGradient, sigma2: float, problem: _Problem) -> Array:
    """u_bar from the gradient in (θ, σ², φ): units · θ_bar, σ² σ²_bar (d σ² / d log σ² = σ²), folded φ_bar.

    With W = U / scale and b = c - U (shift / scale) in the first layer,
    U_bar = (W_bar - b_bar shiftᵀ) / scale and c_bar = b_bar.
    """
    phi_bar = by.phi
    if isinstance(problem.encoder, MLP):
        phi_bar = phi_bar.copy()
        W_bar, b_bar = next(problem.encoder.unpack(phi_bar))
        W_bar[...] = (W_bar - np.outer(b_bar, problem.shift)) / problem.scale
    return np.concatenate([problem.units * by.theta, [sigma2 * by.sigma2], phi_bar])


def _fold(encoder: Decoder, phi: Array, shift: Array, scale: Array) -> Array:
    """φ for inputs x from φ for inputs (x - shift) / scale: W = U / scale, b = c - U (shift / scale).

    An encoder that is no MLP has no first layer to fold into, and takes its inputs as they are.
    """
    if not isinstance(encoder, MLP):
        return phi
    phi = phi.copy()
    W, b = next(encoder.unpack(phi))
    W /= scale
    b -= W @ shift
    return phi


def _unfold(encoder: Decoder, phi: Array, shift: Array, scale: Array) -> Array:
    """Undo `_fold`: U = W scale, c = b + W shift."""
    if not isinstance(encoder, MLP):
        return phi
    phi = phi.copy()
    W, b = next(encoder.unpack(phi))
    b += W @ shift
    W *= scale
    return phi
