"""What stays the same during a fit by direct maximum likelihood, whatever the method.

The data, the objective with its gradient on given nodes, the nodes made for a model, and the coordinates
that an optimiser moves in, which make a fit independent of the units and the origin of the data.
"""

# notation: N observations, n data, m latent, p parameters; u = (v, log σ²) (p + 1,), what is optimised,
# with θ = shift + units v

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import special

from refica.exact import ExactLinear
from refica.fit.nodes import nodes_for_round
from refica.fit.result import Step
from refica.fit.starts import output_shift, output_units, sigma2_floor, standardisation
from refica.fit.watch import Watch
from refica.likelihood import Gradient, row_blocks
from refica.marginal import Likelihood, block_size, checked_nodes, estimate_of, for_rows, log_likelihood
from refica.model import NonlinearICA
from refica.quadrature import FixedNodes, Integrator, Quadrature
from refica.validation import Array

__all__ = ["OBJECTIVES", "Coordinates", "Problem", "Round", "Settings", "relative_density"]

T = TypeVar("T")
S = TypeVar("S")

COLLAPSED = 1.01
"""σ² below this times its floor is at the floor."""

WORTH = 4.0
"""Times the tolerance that less noise must promise where n <= m: with the default one (p + 1)/10N, about five
nats in all for fifty parameters, three standard errors of one."""

OBJECTIVES = ("log-likelihood", "density-sum")


class Settings(NamedTuple):
    """The numbers and choices that `fit_mle` was called with; see there."""

    method: str
    objective: str
    n_starts: int
    max_iter: int
    tol: float
    fixed_sigma2: bool
    batch_size: int
    learning_rate: float
    schedule: str
    fresh_nodes: int | None


class Round(NamedTuple):
    """Where an optimiser stands: a model, its mean objective ``value`` on nodes made for it, and the steps
    that led there."""

    model: NonlinearICA
    value: float
    steps: tuple[Step, ...] = ()

    @property
    def done(self) -> int:
        """The number of the last step, 0 before the first."""
        return self.steps[-1].iteration if self.steps else 0


@dataclass(frozen=True, slots=True)
class Coordinates:
    """u = (v, log σ²) with θ = shift + units v: the origin and the units of the data do not matter.

    ``start`` is any model with the decoder, and where σ² is ``fixed`` with that σ²; ``shift`` (p,),
    ``units`` (p,); ``floor`` of σ².
    """

    start: NonlinearICA
    shift: Array
    units: Array
    floor: float
    fixed: bool

    def to(self, model: NonlinearICA) -> Array:
        """u (p + 1,) of a model; σ² below the floor is raised to it."""
        return np.append((model.theta - self.shift) / self.units, math.log(max(model.sigma2, self.floor)))

    def model_at(self, u: Array) -> NonlinearICA:
        """Return the model with coordinates u (p + 1,); the last is ignored where σ² is fixed."""
        theta = self.shift + self.units * u[:-1]
        return self.start.replace(theta=theta, sigma2=None if self.fixed else math.exp(u[-1]))

    def pull_back(self, by: Gradient, sigma2: float) -> Array:
        """u_bar (p + 1,) = (units θ_bar, σ² σ²_bar), since d σ² / d log σ² = σ²; 0 for a fixed σ²."""
        return np.append(self.units * by.theta, 0.0 if self.fixed else sigma2 * by.sigma2)


@dataclass(frozen=True, slots=True)
class Problem:
    """What stays the same during a fit: the model it ``start`` s from, data x (N, n), how it is watched."""

    start: NonlinearICA
    x: Array
    integrator: Integrator | None
    settings: Settings
    watch: Watch
    executor: Executor | None
    latest: list[tuple[NonlinearICA, Integrator]] = field(default_factory=list, repr=False)
    """The last model that nodes were made for, with these: a round ends at the model the next starts from."""

    @property
    def floor(self) -> float:
        """The σ² at which a fit is called collapsed."""
        return sigma2_floor(self.x)

    @property
    def coordinates(self) -> Coordinates:
        """What an optimiser moves in."""
        mean, sd = standardisation(self.x)
        decoder = self.start.decoder
        return Coordinates(
            self.start,
            output_shift(decoder, mean),
            output_units(decoder, sd),
            self.floor,
            self.settings.fixed_sigma2,
        )

    def admitted(self, start: NonlinearICA) -> NonlinearICA:
        """Return a model to start from, with the σ² that is fixed if one is."""
        return start.replace(sigma2=self.start.sigma2) if self.settings.fixed_sigma2 else start

    def has_collapsed(self, model: NonlinearICA) -> bool:
        """Whether a free σ² is at its floor."""
        return not self.settings.fixed_sigma2 and model.sigma2 <= COLLAPSED * self.floor

    @property
    def flat_in_sigma2(self) -> bool:
        """Whether the likelihood hardly depends on σ²: with n <= m latents can tell the data exactly."""
        return self.x.shape[1] <= self.start.latent_dim and self.settings.objective == "log-likelihood"

    def lowest(self, log_sigma2: float, slope: float, most: float) -> float:
        """The least log σ² in the next step or round, which may lower it by ``most``; ``slope``, the mean
        objective's in log σ², matters only where that is flat.

        What is gained there as σ² falls to nothing is noise, for which far observations pay: σ² falls only
        while a quarter of it promises `WORTH` times the fit's tolerance.
        """
        if self.flat_in_sigma2 and -slope * math.log(4.0) <= WORTH * self.settings.tol:
            return log_sigma2
        return max(log_sigma2 - most, math.log(self.floor))

    def evaluate(self, model: NonlinearICA, integrator: Integrator | None, gradient: bool) -> Likelihood:
        """Return the log-likelihood of the data."""
        return log_likelihood(model, self.x, integrator, gradient, self.executor)

    def nodes_for(self, model: NonlinearICA) -> Integrator:
        """Return nodes made for this model and frozen, or an integrator that does without."""
        if not (self.latest and self.latest[0][0] is model):
            self.latest[:] = [(model, self._made_for(model))]
        return self.latest[0][1]

    def _made_for(self, model: NonlinearICA) -> Integrator:
        given = self.integrator
        if given is not None:
            exact = hasattr(given, "evaluate") and not isinstance(given, Quadrature)
            return given if exact else FixedNodes(*checked_nodes(model, given, self.x))
        if getattr(model.decoder, "is_affine", False):
            return ExactLinear()
        return nodes_for_round(model, self.x)

    def mean_objective(self, log_p: Array) -> float:
        """Return the objective in nats per observation, from log p(x_i) (N,).

        The mean of log p(x_i); or log of the mean of p(x_i), which rises with the documents' Σ_i p(x_i), has
        its maximisers and its directions of ascent, and neither underflows nor overflows.
        """
        if self.settings.objective == "density-sum":
            return float(special.logsumexp(log_p)) - math.log(len(log_p))
        return math.fsum(log_p) / len(log_p)

    def value(self, model: NonlinearICA, nodes: Integrator) -> float:
        """Return the mean objective on given nodes."""
        return self.mean_objective(self.evaluate(model, nodes, gradient=False).per_observation)

    def value_and_gradient(self, model: NonlinearICA, nodes: Integrator) -> tuple[float, Gradient]:
        """Return the mean objective on given nodes, and its gradient in (θ, σ²).

        ∇ log Σ_i p(x_i) = Σ_i c_i ∇ log p(x_i) with c = softmax_i log p(x_i), known after a first pass.
        """
        if self.settings.objective == "log-likelihood":
            N = len(self.x)
            result = self.evaluate(model, nodes, gradient=True)
            assert result.gradient is not None
            value = self.mean_objective(result.per_observation)
            return value, Gradient(result.gradient.theta / N, result.gradient.sigma2 / N)
        log_p = self.evaluate(model, nodes, gradient=False).per_observation
        share = partial(relative_density, log_scale=float(special.logsumexp(log_p)))
        parts = self.mapped(partial(estimate_of, model, True, share), self.blocks(model, nodes))
        by = [part.gradient for part in parts if part.gradient is not None]
        total = Gradient(np.sum([g.theta for g in by], axis=0), math.fsum(g.sigma2 for g in by))
        return self.mean_objective(log_p), total

    def blocks(self, model: NonlinearICA, nodes: Integrator) -> list[tuple[Array, Any]]:
        """Return the observations with their nodes in blocks, fixed by the data alone."""
        rows = row_blocks(len(self.x), block_size(model, nodes))
        return [(self.x[block], for_rows(nodes, block)) for block in rows]

    def mapped(self, work: Callable[[T], S], blocks: Iterable[T]) -> list[S]:
        """Return what ``work`` makes of each block, here or by the executor."""
        return list((map if self.executor is None else self.executor.map)(work, blocks))

    def judged(self, model: NonlinearICA, steps: tuple[Step, ...]) -> Round:
        """Return a round that ended at a model, with its objective on nodes made for it."""
        return Round(model, self.value(model, self.nodes_for(model)), steps)


def relative_density(log_p: Array, log_scale: float) -> Array:
    """p(x_i) / exp(log_scale), (N,): the weight of an observation in the gradient of a sum of densities."""
    return np.exp(log_p - log_scale)
