"""The main job: fit linear, direct maximum likelihood and VAE to the same data, and compare them.

Every model is judged by the same number, its log-likelihood per observation, integrated as
`refica.log_likelihood` does it and not bounded, on the training data and on data it has not seen. Beside it
stands what the VAE's bound says, and why it says less.
"""

# notation: N observations, R of them, n data, m latent

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from refica.centrality import ScoreCentrality, score_centrality
from refica.datasets import Dataset
from refica.decoders import MLP
from refica.exact import probabilistic_pca
from refica.fit import METHODS, Fit, fit_mle, fit_vae, initial_vae
from refica.fit.starts import check_training_data, principal_start
from refica.marginal import Likelihood, log_likelihood
from refica.model import NonlinearICA
from refica.posterior import posterior
from refica.recovery import Recovery, recovery
from refica.uncertainty import StandardErrors, standard_errors
from refica.vae import VAE, Gaps, elbo_quadrature, gaps
from refica.validation import Array, check_choice, check_count, check_seed, shown

__all__ = ["Certainty", "Comparison", "Entry", "Score", "Settings", "Tightness", "compare", "fold_count"]

FOLDS, FEWEST = 10, 3
"""Folds, at most one for each observation; and observations, so that two are left to fit."""

SMALL = 1000
"""Data without a held-out sample: 10-fold cross-validation up to this many rows, one split above."""

GAP_ROWS = {1: 1000, 2: 100, 3: 10}
"""Most training observations whose gaps are computed, by m; beyond that `MANY_GAP_ROWS`. It takes a second or
two for m = 1 and 2, and up to a minute for more."""

MANY_GAP_ROWS = 5

MOST_GAP_AXES = 6
"""Latent dimensions beyond which gaps are not computed: product rules over q get too coarse."""

ELBO_ROWS = {1: 100_000, 2: 5000}
"""Most training observations whose ELBO is integrated with that many latents; of more, and for more latents,
it is that of the observations whose gaps are computed."""

SCORED = 1000
"""Most training observations whose scores are computed, and as many are simulated; for m = 1, where it takes
a fraction of a second (for m = 2 up to half a minute, most of it log p at moved parameters)."""

STREAMS = ("fit", "split", "generated", "centrality")
OWN = 3
"""Second key of these streams, which those of examples do not have."""

DATA_WARNINGS = r"x has (constant columns|\d+ duplicate rows)"
"""What `check_training_data` warns of: said once, of all of the data, and not by each of the fits."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fitted: dimensions and activation of the decoder, the method, the seed of every draw."""

    latent_dim: int = 1
    hidden: int = 8
    activation: str = "tanh"
    method: str = "l-bfgs"
    seed: int = 0
    n_starts: int = 4
    max_iter: int | None = None


class Score(NamedTuple):
    """A mean log-likelihood: ``per_observation`` (N,), ``error`` the mean of their integration errors
    (nats), ``converged`` how many of them the integrator vouches for, ``message`` its words."""

    per_observation: Array
    error: float
    converged: int
    message: str

    @property
    def mean(self) -> float:
        """Mean log-likelihood per observation, in nats."""
        return float(self.per_observation.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over observations (sampling, not integration)."""
        return float(self.per_observation.std(ddof=1) / math.sqrt(len(self.per_observation)))


class Tightness(NamedTuple):
    """What a VAE's bound loses: the ``elbo`` of the training data, or of ``x``; ``x`` (R, n), of the training
    data all or some evenly spaced, and the ``ledger`` of their gaps."""

    elbo: Score
    x: Array
    ledger: Gaps

    @property
    def converged(self) -> bool:
        """Whether all of it is vouched for."""
        return bool(self.ledger.converged.all()) and self.elbo.converged == len(self.elbo.per_observation)


class Certainty(NamedTuple):
    """How sure a fit is: the standard ``errors`` of its parameters, and the ``centrality`` of its scores at
    observations that it simulates itself."""

    errors: StandardErrors
    centrality: ScoreCentrality


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One row: a model with its scores; ``model`` is None where it is not defined.

    ``fit`` holds history and VAE where there are any; ``seconds`` is the (wall) time of the fit to all the
    training data, with folds beside it where there are processes for them; ``recovery`` compares posterior
    means with the true latents; ``tightness`` is there for a VAE; ``certainty`` for direct MLE, where scores
    are affordable.
    """

    name: str
    model: NonlinearICA | None
    status: str
    message: str
    seconds: float = math.nan
    fit: Fit | None = None
    train: Score | None = None
    held_out: Score | None = None
    recovery: Recovery | None = None
    tightness: Tightness | None = None
    certainty: Certainty | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The result of `compare`: the entries in the order truth, linear, direct MLE, VAE."""

    data: Dataset
    settings: Settings
    entries: tuple[Entry, ...]
    held_out_kind: str

    @property
    def trustworthy(self) -> bool:
        """Whether every number that was computed is vouched for by its integrator."""
        scores = [score for entry in self.entries for score in (entry.train, entry.held_out) if score]
        bounds = [entry.tightness for entry in self.entries if entry.tightness]
        return all(score.converged == len(score.per_observation) for score in scores) and all(
            bound.converged for bound in bounds
        )

    def difference(self, entry: Entry, baseline: str) -> tuple[float, float] | None:
        """Return the mean paired held-out difference of an entry to another and its standard error."""
        other = next((e for e in self.entries if e.name == baseline and e.held_out), None)
        if other is None or other.held_out is None or entry.held_out is None or other is entry:
            return None
        d = entry.held_out.per_observation - other.held_out.per_observation
        return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))


def compare(
    data: Dataset,
    settings: Settings,
    progress: Progress = lambda _: None,
    executor: Executor | None = None,
) -> Comparison:
    """Fit the three models and score them.

    Parameters
    ----------
    data : Dataset
    settings : Settings
    progress : callable
        Told in a sentence what is about to happen or, in cross-validation, what is done.
    executor : concurrent.futures.Executor, optional
        Maps the fits of cross-validation, to all of the data and without each fold. But for the times, the
        result does not depend on it.

    Raises
    ------
    TypeError, ValueError
        For bad settings, or data that cannot be fitted.
    KeyboardInterrupt
        At Ctrl-C, also where that ends a fit with the best model so far.
    """
    _check(settings, executor)
    x = data.x
    check_training_data(x)
    if fold_count(data) and len(x) < FEWEST:
        raise ValueError(f"cross-validation needs at least {FEWEST} observations, got {len(x)}")
    with warnings.catch_warnings():  # ends what `_fit_all` does to them
        if folds := fold_count(data):
            entries = _cross_validated(x, folds, settings, progress, executor)
            kind = f"by {folds}-fold cross-validation"
        else:
            train, test, kind = _split(data, settings.seed)
            entries = _fitted(train, test, settings, progress)
    entries = tuple(_doubted(entry, x, settings.seed, progress) for entry in entries)
    if data.truth is not None:
        truth = Entry("truth", data.truth, "", "the model that the data were drawn from")
        entries = (_scored(truth, x, data.held_out, progress), *entries)
    if data.z is not None:
        entries = tuple(_recovered(entry, x, data.z) for entry in entries)
    return Comparison(data, settings, entries, kind)


def fold_count(data: Dataset) -> int:
    """Return the number of folds of cross-validation; 0 where there is a held-out sample or one split."""
    return min(FOLDS, len(data.x)) if data.held_out is None and len(data.x) <= SMALL else 0


def stream(seed: int, use: str) -> np.random.Generator:
    """Return a generator for one use of a seed, independent of the other uses and of the data's own."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(use), OWN)))


def _check(settings: Settings, executor: Executor | None) -> None:
    check_count("latent_dim", settings.latent_dim)
    check_count("hidden", settings.hidden)
    check_choice("method", settings.method, METHODS)
    if settings.max_iter is not None:
        check_count("max_iter", settings.max_iter)
    check_seed("seed", settings.seed)
    if executor is not None and not callable(getattr(executor, "map", None)):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")


def _split(data: Dataset, seed: int) -> tuple[Array, Array, str]:
    """Return the data to fit, those held out, and what these are: the sample's own, or a random fifth."""
    x = data.x
    if data.held_out is not None:
        return x, data.held_out, f"on {len(data.held_out)} fresh observations"
    test, train = np.split(stream(seed, "split").permutation(len(x)), [len(x) // 5])
    kind = f"on a random fifth ({len(test)} of {len(x)} rows)"
    return x[np.sort(train)], x[np.sort(test)], kind


def _fitted(
    train: Array, held_out: Array | None, settings: Settings, progress: Progress
) -> tuple[Entry, ...]:
    """Return the entries fitted to the training data, with their scores."""
    return tuple(_scored(entry, train, held_out, progress) for entry in _fit_all(train, settings, progress))


def _fit_all(x: Array, settings: Settings, progress: Progress, evaluate: bool = True) -> tuple[Entry, ...]:
    """Fit linear, direct MLE and VAE; the VAE's solution is one of the starts of direct MLE."""
    warnings.filterwarnings("ignore", DATA_WARNINGS, UserWarning)  # here, for it may be another process
    check_training_data(x)
    rng = stream(settings.seed, "fit")
    decoder = MLP((settings.latent_dim, settings.hidden, x.shape[1]), settings.activation)
    linear = _fit_linear(x, settings.latent_dim)
    start = principal_start(decoder, x, rng, rotate=False)

    progress("fitting the VAE")
    began = time.perf_counter()
    vae = initial_vae(start, x, settings.hidden, settings.activation, rng)
    fitted_vae = _to_its_end(fit_vae(vae, x, rng=rng, evaluate=evaluate))
    vae_seconds = time.perf_counter() - began

    progress("fitting by direct maximum likelihood")
    began = time.perf_counter()
    fitted_mle = fit_mle(
        fitted_vae.model,
        x,
        method=settings.method,
        n_starts=settings.n_starts,
        max_iter=settings.max_iter,
        rng=rng,
        evaluate=evaluate,
    )
    mle_seconds = time.perf_counter() - began
    return (
        linear,
        _entry("direct MLE", _to_its_end(fitted_mle), mle_seconds),
        _entry("VAE", fitted_vae, vae_seconds),
    )


def _to_its_end(fit: Fit) -> Fit:
    """Return a fit that Ctrl-C has not ended; one that it has ends the comparison."""
    if fit.status == "interrupted":
        raise KeyboardInterrupt(fit.message)
    return fit


def _entry(name: str, fit: Fit, seconds: float) -> Entry:
    return Entry(name, fit.model, fit.status, fit.message, seconds, fit)


def _fit_linear(x: Array, latent_dim: int) -> Entry:
    began = time.perf_counter()
    try:
        model = probabilistic_pca(x, latent_dim)
    except ValueError as error:
        return Entry("linear", None, "not defined", str(error))
    message = "probabilistic PCA in closed form"
    return Entry("linear", model, "exact", message, time.perf_counter() - began)


def _scored(entry: Entry, train: Array, held_out: Array | None, progress: Progress) -> Entry:
    """Return the entry with its scores on the training and the held-out data."""
    if entry.model is None:
        return entry
    progress(f"evaluating {entry.name}")
    fit_score = _score(entry.fit.log_likelihood) if entry.fit else _evaluate(entry.model, train)
    other = None if held_out is None else _evaluate(entry.model, held_out)
    if entry.fit and entry.fit.vae and entry.model.latent_dim <= MOST_GAP_AXES:
        progress(f"the gaps of the {entry.name}")
        entry = replace(entry, tightness=_tightness(entry.fit.vae, train))
    return replace(entry, train=fit_score, held_out=other)


def _doubted(entry: Entry, x: Array, seed: int, progress: Progress) -> Entry:
    """Return direct MLE with standard errors and the score-centrality test, where they are affordable."""
    model = entry.model
    if model is None or entry.name != "direct MLE" or model.latent_dim > 1 or len(x) > SCORED:
        return entry
    progress(f"standard errors and scores of {entry.name}")
    rng = stream(seed, "centrality")
    certainty = Certainty(standard_errors(model, x), score_centrality(model, SCORED, rng))
    return replace(entry, certainty=certainty)


def _tightness(vae: VAE, x: Array) -> Tightness:
    m = vae.model.latent_dim
    count = min(len(x), GAP_ROWS.get(m, MANY_GAP_ROWS))
    some = x[np.linspace(0, len(x) - 1, count).round().astype(np.intp)]
    ledger = gaps(vae, some)
    if count == len(x) or len(x) > ELBO_ROWS.get(m, 0):
        good = int(ledger.converged.sum())
        return Tightness(Score(ledger.elbo, float(ledger.error.mean()), good, ledger.message), some, ledger)
    bound = elbo_quadrature(vae, x, gradient=False)
    good = int(bound.converged.sum())
    elbo = Score(bound.per_observation, float(bound.error.mean()), good, bound.message)
    return Tightness(elbo, some, ledger)


def _evaluate(model: NonlinearICA, x: Array) -> Score:
    return _score(log_likelihood(model, x, gradient=False))


def _score(result: Likelihood) -> Score:
    return Score(
        result.per_observation, float(result.error.mean()), int(result.converged.sum()), result.message
    )


def _cross_validated(
    x: Array, count: int, settings: Settings, progress: Progress, executor: Executor | None
) -> tuple[Entry, ...]:
    """Return the entries fitted to all of x, with held-out scores from models fitted without the fold that
    they are scored on."""
    folds = np.array_split(stream(settings.seed, "split").permutation(len(x)), count)
    jobs = [
        partial(_fitted, x, None, settings, _silent),
        *(partial(_fold, np.delete(x, fold, axis=0), x[fold], settings) for fold in folds),
    ]
    progress(f"fitting all of the data, and {count} folds")
    fits = []
    for number, fit in enumerate((map if executor is None else executor.map)(operator.call, jobs)):
        progress(f"fold {number} of {count} fitted" if number else "all of the data fitted")
        fits.append(fit)
    return tuple(
        replace(entry, held_out=_joined(folds, [part.held_out for part in parts])) if entry.model else entry
        for entry, *parts in zip(*fits, strict=True)
    )


def _fold(train: Array, held_out: Array, settings: Settings) -> tuple[Entry, ...]:
    """Return the entries fitted without a fold, with their scores on it and nothing else that is large."""
    return tuple(
        replace(entry, fit=None, held_out=_evaluate(entry.model, held_out)) if entry.model else entry
        for entry in _fit_all(train, settings, _silent, evaluate=False)
    )


def _silent(words: str) -> None:
    """Progress of a fit that may be one of several at a time, and in another process."""


def _joined(folds: list[Array], scores: list[Score | None]) -> Score | None:
    """Return one score from those of the folds, in the order of the data; None if there is none of some."""
    parts = [(fold, score) for fold, score in zip(folds, scores, strict=True) if score is not None]
    if len(parts) < len(folds):
        return None
    N = sum(map(len, folds))
    values, error = np.empty(N), 0.0
    for fold, score in parts:
        values[fold] = score.per_observation
        error += score.error * len(fold) / N
    messages = dict.fromkeys(score.message for _, score in parts)
    return Score(values, error, sum(score.converged for _, score in parts), " | ".join(messages))


def _recovered(entry: Entry, x: Array, z: Array) -> Entry:
    if entry.model is None or entry.model.latent_dim != z.shape[1]:
        return entry
    return replace(entry, recovery=recovery(z, posterior(entry.model, x).mean))
