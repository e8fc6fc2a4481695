"""Training of a variational autoencoder (Exercise 3): Adam on minibatches, noise from a generator.

The objective is the ELBO per observation. Training runs in rounds of steps at one rate (`elbo_ascent`), in
coordinates of standardised data (`elbo_problem`), from the best of a few starts (`encoder_start`). Where the
ELBO no longer rises the rate is lowered; after the last lowering the fit has converged.
"""

# notation: N observations, n data, m latent

from __future__ import annotations

from typing import Any

import numpy as np

from refica.encoder import encode
from refica.files.messages import PathLike
from refica.fit import elbo_ascent
from refica.fit.checkpoint import Keeper, digest, name_of
from refica.fit.elbo_ascent import SIGMA2_UPDATES
from refica.fit.elbo_problem import Settings, problem_of
from refica.fit.nodes import nodes_for_round
from refica.fit.result import Fit
from refica.fit.run import run
from refica.fit.schedules import PATIENCE, SCHEDULES
from refica.fit.starts import check_training_data
from refica.fit.watch import Callback, Watch
from refica.marginal import log_likelihood
from refica.vae import VAE, kl_per_latent
from refica.validation import Array, check_choice, check_count, check_generator, check_number

__all__ = ["fit_vae"]

COLLAPSED_KL = 0.01
"""A latent whose mean KL (nats) is below this has collapsed: the mutual information of z_j and x under q is
at most that KL, so that z_j then holds next to nothing of x."""


def fit_vae(
    vae: VAE,
    x: Any,
    rng: Any = 0,
    *,
    n_starts: int = 2,
    max_iter: int = 30_000,
    batch_size: int = 100,
    learning_rate: float = 0.01,
    schedule: str = "plateau",
    tol: float = 1e-3,
    patience: int = PATIENCE,
    n_samples: int = 1,
    sigma2_update: str = "gradient",
    kl_warmup: int = 0,
    validation_fraction: float | None = None,
    callback: Callback | None = None,
    checkpoint: PathLike | None = None,
    resume: PathLike | None = None,
    verbose: bool = False,
    evaluate: bool = True,
) -> Fit:
    """Return the VAE that maximises the ELBO over (θ, σ², φ).

    Parameters
    ----------
    vae : VAE
        The first start; `initial_vae` makes one for a model.
    x : array_like (N, n)
        At least two observations, in any units.
    rng : int or numpy.random.Generator
        For further starts, the order of the observations and the noise; the same seed gives the same fit
        bit for bit.
    n_starts : int
        Starts of which the one with the largest ELBO is trained: the one given, and others from principal
        components, with the same decoder and encoder.
    max_iter : int
        Most Adam steps, >= 1.
    batch_size : int
        Most observations in a step; permutations are cut into batches of (almost) equal size.
    learning_rate : float
        Adam's rate at the start, > 0.
    schedule : str
        Of the rate: "plateau", divided by 3 whenever ``patience`` rounds of 500 steps in a row brought no
        gain, three times; "constant"; "inverse-time", rate / (1 + rounds).
    tol : float
        Smallest gain of ELBO per observation in a round that counts as one, > 0.
    patience : int
        Rounds in a row without a gain after which the rate is lowered or, after the last lowering and with
        the other schedules, the fit ends.
    n_samples : int
        Draws of noise for each observation of a batch.
    sigma2_update : str
        "gradient": log σ² is a parameter like others; "closed-form": σ² is the running mean of ‖x - g(z)‖²/n
        over batches, which is where the ELBO is largest in σ² (Rybkin, Daniilidis and Levine, ICML 2021),
        and after a round that mean over all data (of more than 20 000, those a round is judged by).
    kl_warmup : int
        Steps in which the weight of the KL rises linearly from 0 to 1 (Bowman et al., CoNLL 2016); 0: none.
        What judges a round is the ELBO itself throughout; gains are counted after the warm-up.
    validation_fraction : float, optional
        Between 0 and 1: this part of the data, drawn at random, is not trained on, and gains are gains of
        its ELBO, so that the fit stops early where it would learn the training data by heart. None: all
        data are trained on.
    callback : callable, optional
        Called with each `Step` of the history; True ends the fit.
    checkpoint : path, optional
        A JSON file that holds the state of the fit after the last round, about every second: whole at any
        moment, whatever happens.
    resume : path, optional
        A checkpoint to go on from, bit for bit as if the fit had not been interrupted. All arguments must be
        as they were, but for ``max_iter``, ``callback``, ``verbose``, ``evaluate`` and the paths.
    verbose : bool
        Whether to show progress on stderr.
    evaluate : bool
        Whether ``log_likelihood`` is integrated as `refica.log_likelihood` does it. False, where only the
        model is wanted, saves seconds: it is then on nodes like those of a round of `fit_mle`, without an
        error (an affine decoder's is exact).

    Returns
    -------
    Fit
        With ``vae`` and ``model``, the parameters of the best round; ``log_likelihood``, the true one of
        all of x and not the bound; ``history``, with a `Step` for the start and for each round: its
        objective is the ELBO per observation (of all data, of those set aside, or of 20 000 observations
        drawn once) of the round's average parameters at noise drawn once for the fit; ``kl_per_latent``.
        ``status`` is "converged", "iteration limit", "collapsed" (σ² is at its floor), "posterior collapse"
        (every latent has a KL below 0.01 nats; where only some have, the message says which), "diverged",
        "stopped by callback" or "interrupted" (by Ctrl-C: the best so far).

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
    settings = Settings(
        n_starts=check_count("n_starts", n_starts),
        max_iter=check_count("max_iter", max_iter),
        batch_size=check_count("batch_size", batch_size),
        learning_rate=check_number("learning_rate", learning_rate, above=0.0),
        schedule=check_choice("schedule", schedule, SCHEDULES),
        tol=check_number("tol", tol, above=0.0),
        patience=check_count("patience", patience),
        n_samples=check_count("n_samples", n_samples),
        sigma2_update=check_choice("sigma2_update", sigma2_update, SIGMA2_UPDATES),
        kl_warmup=check_count("kl_warmup", kl_warmup, minimum=0),
        validation_fraction=_fraction(validation_fraction),
    )
    watch = Watch(callback, verbose)
    keeper = Keeper(_identity(vae, x, settings, rng), watch, checkpoint, resume)
    return _run(vae, x, settings, rng, watch, keeper, evaluate)


def _run(
    vae: VAE,
    x: Array,
    settings: Settings,
    rng: np.random.Generator,
    watch: Watch,
    keeper: Keeper,
    evaluate: bool,
) -> Fit:
    """Train, and evaluate what came of it."""
    problem = problem_of(vae, x, settings.validation_fraction, rng)
    with np.errstate(over="ignore", invalid="ignore"):  # a fit that diverges says so in its status
        state, ending = run(
            lambda: elbo_ascent.begin(vae, problem),
            lambda state: elbo_ascent.advance(state, vae, problem, settings, watch, rng),
            lambda state: elbo_ascent.ending(state, problem, settings, watch),
            rng,
            watch,
            keeper,
            vae.model,
        )
    status, message = ending or ("interrupted", f"interrupted by Ctrl-C: {keeper.words()}")
    theta, sigma2, phi = problem.to_parameters(state.best)
    fitted = vae.replace(model=vae.model.replace(theta=theta, sigma2=float(sigma2)), phi=phi)
    kl = kl_per_latent(*encode(fitted.encoder, fitted.phi, x)).mean(axis=0)
    status, message = _with_collapse(status, message, kl)
    quick = not evaluate and not getattr(fitted.model.decoder, "is_affine", False)
    nodes = nodes_for_round(fitted.model, x) if quick else None
    return Fit(
        model=fitted.model,
        log_likelihood=log_likelihood(fitted.model, x, nodes, gradient=False),
        history=state.history,
        status=status,
        message=message,
        vae=fitted,
        kl_per_latent=kl,
    )


def _with_collapse(status: str, message: str, kl: Array) -> tuple[str, str]:
    """Add the latents that have collapsed, by their KL (m,); if all have, that is the status of a fit that
    would have ended well."""
    collapsed = np.flatnonzero(kl < COLLAPSED_KL)
    if not len(collapsed):
        return status, message
    each = ", ".join(f"z{j + 1} {kl[j]:.2g}" for j in collapsed)
    words = (
        f"{message}; posterior collapse: {len(collapsed)} of {len(kl)} latents have a mean KL below "
        f"{COLLAPSED_KL:g} nats ({each}), so that x depends on them hardly or not at all"
    )
    every = len(collapsed) == len(kl) and status in ("converged", "iteration limit")
    return ("posterior collapse" if every else status), words


def _fraction(value: Any) -> float | None:
    return None if value is None else check_number("validation_fraction", value, above=0.0, below=1.0)


def _identity(vae: VAE, x: Array, settings: Settings, rng: np.random.Generator) -> dict[str, Any]:
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
