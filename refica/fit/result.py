"""What a fit returns: the model, its re-evaluated log-likelihood, the history, a status with a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from refica.marginal import Likelihood
from refica.model import NonlinearICA
from refica.vae import VAE
from refica.validation import Array

__all__ = ["Fit", "Step"]


class Step(NamedTuple):
    """One entry of a history: of `fit_mle` an iteration, of the stochastic methods and `fit_vae` a round.

    ``objective`` is the mean per observation (nats) that the optimiser saw: the log-likelihood (or the log of
    the mean density) on its own nodes, or the ELBO at its own noise; ``seconds`` are counted from the start
    of the fit.
    """

    iteration: int
    objective: float
    sigma2: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The result of `fit_mle` or `fit_vae`.

    Attributes
    ----------
    model : NonlinearICA
        The fitted model.
    log_likelihood : Likelihood
        Of the training data under it, re-evaluated by an integrator the optimiser did not use.
    history : tuple of Step
        Of the run that was kept.
    status : str
        "converged", "iteration limit", "stopped by callback", "interrupted", "collapsed", "diverged",
        "integrator not converged" or "posterior collapse".
    converged : bool
        Whether the status is "converged".
    message : str
        A sentence that explains the status.
    vae : VAE or None
        The fitted VAE, for `fit_vae`.
    kl_per_latent : (m,) or None
        For `fit_vae`: KL(q(z_j | x_i) ‖ N(0, 1)) in nats, the mean over the data.
    """

    model: NonlinearICA
    log_likelihood: Likelihood
    history: tuple[Step, ...] = field(repr=False)
    status: str
    message: str
    vae: VAE | None = None
    kl_per_latent: Array | None = None

    @property
    def converged(self) -> bool:
        """Whether the status is "converged"."""
        return self.status == "converged"
