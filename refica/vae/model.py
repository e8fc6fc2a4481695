"""The variational autoencoder as a value: an encoder beside the model, and what its bounds return."""

# notation: N observations, n data, m latent, p and q parameters of decoder and encoder

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refica.decoders import Decoder, decoder_from_dict, decoder_to_dict
from refica.model import NonlinearICA
from refica.validation import Array, check_array, shown

__all__ = ["VAE", "Bound", "BoundGradient", "QuadratureBound", "bound_at", "check_vae"]


class BoundGradient(NamedTuple):
    """Derivatives of a total: ``theta`` (p,), ``sigma2`` with respect to σ² itself, ``phi`` (q,)."""

    theta: Array
    sigma2: float
    phi: Array


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """The result of `elbo` or `iwae`: in expectation over the noise a lower bound on log p(x_i).

    It is exact for the noise that was given, beyond rounding.

    Attributes
    ----------
    per_observation : (N,)
        The bound on each log p(x_i), in nats.
    total : float
        Their sum.
    gradient : BoundGradient or None
        Of the total: ``theta`` (p,), ``sigma2`` (float, with respect to σ² itself), ``phi`` (q,).
    """

    per_observation: Array
    total: float
    gradient: BoundGradient | None

    def __repr__(self) -> str:
        """Show the total, not arrays."""
        return f"Bound(total={self.total!r} of {len(self.per_observation)} observations)"


@dataclass(frozen=True, slots=True, eq=False)
class QuadratureBound:
    """The result of `elbo_quadrature`: a lower bound on log p(x_i), with no noise in it.

    Attributes
    ----------
    per_observation : (N,)
        The ELBO of each observation, in nats.
    total : float
        Their sum.
    gradient : BoundGradient or None
        Of the total: ``theta`` (p,), ``sigma2`` (float, with respect to σ² itself), ``phi`` (q,).
    error : (N,)
        Estimated absolute error of each ELBO, by comparison with rules of another kind.
    converged : (N,) bool
        Where the rules agree well enough for their difference to be an estimate.
    message : str
        The rule, and what each False in ``converged`` means.
    """

    per_observation: Array
    total: float
    gradient: BoundGradient | None
    error: Array
    converged: Array
    message: str

    def __repr__(self) -> str:
        """Show totals, not arrays."""
        return (
            f"QuadratureBound(total={self.total!r} of {len(self.per_observation)} observations, largest "
            f"error={np.max(self.error):.2g}, {np.sum(self.converged)} converged, message={self.message!r})"
        )


@dataclass(frozen=True, slots=True, init=False, eq=False)
class VAE:
    """A nonlinear ICA model with an encoder for approximate posteriors.

    Parameters
    ----------
    model : NonlinearICA
        m latent, n data dimensions.
    encoder : MLP
        From n inputs to 2m outputs: m means, then m log variances (see `refica.encoder.encode`).
    phi : array_like (q,)
        The encoder's parameters, flat as theta; a read-only copy is kept.

    Raises
    ------
    TypeError, ValueError
        If the encoder's dimensions do not fit the model's, or phi not the encoder.

    Notes
    -----
    The encoder sees the data as they are, so that (encoder, phi) say everything about q. Data of any
    scale are served by `refica.initial_vae` and `refica.fit_vae`, which start and step in the
    coordinates of standardised inputs and then fold shift and scale into the first layer of phi.

    Examples
    --------
    >>> from refica import MLP
    >>> decoder, encoder = MLP((1, 8, 2)), MLP((2, 16, 2 * 1))
    >>> model = NonlinearICA(decoder, decoder.init(0), sigma2=0.1)
    >>> vae = VAE(model, encoder, encoder.init(1))
    >>> vae.replace(model=model.replace(sigma2=0.2)).model.sigma2
    0.2
    """

    model: NonlinearICA
    encoder: Decoder
    phi: Array

    def __init__(self, model: NonlinearICA, encoder: Decoder, phi: Any) -> None:
        if not isinstance(model, NonlinearICA):
            raise TypeError(f"model must be a NonlinearICA, got {model!r}")
        n, m = model.data_dim, model.latent_dim
        if not callable(getattr(encoder, "vjp", None)):
            raise TypeError(f"encoder must be an MLP such as MLP(({n}, 16, {2 * m})), got {encoder!r}")
        if (encoder.latent_dim, encoder.data_dim) != (n, 2 * m):
            raise ValueError(
                f"encoder must have {n} inputs (data_dim) and {2 * m} outputs (latent_dim means, then as "
                f"many log variances), got {encoder.latent_dim} and {encoder.data_dim}; "
                f"use for instance MLP(({n}, 16, {2 * m}))"
            )
        phi = check_array("phi", phi, (encoder.n_params,)).copy()
        phi.setflags(write=False)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "phi", phi)

    def replace(self, *, model: NonlinearICA | None = None, phi: Any = None) -> VAE:
        """Return the VAE with another model or other encoder parameters; what is None stays.

        Parameters
        ----------
        model : NonlinearICA, optional
        phi : array_like (q,), optional

        Raises
        ------
        TypeError, ValueError
            As the constructor.
        """
        return VAE(self.model if model is None else model, self.encoder, self.phi if phi is None else phi)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain description that `from_dict` reads back bit for bit.

        Raises
        ------
        TypeError
            If decoder or encoder is neither an MLP nor a Polynomial.
        """
        return {
            "model": self.model.to_dict(),
            "encoder": decoder_to_dict(self.encoder),
            "phi": self.phi.tolist(),
        }

    @staticmethod
    def from_dict(description: dict[str, Any]) -> VAE:
        """Return the VAE that `to_dict` described.

        Raises
        ------
        TypeError, ValueError
            If an entry is missing or does not fit.
        """
        missing = {"model", "encoder", "phi"} - set(description)
        if missing:
            raise ValueError(f"the description of a VAE lacks {', '.join(sorted(missing))}")
        return VAE(
            NonlinearICA.from_dict(description["model"]),
            decoder_from_dict(description["encoder"]),
            description["phi"],
        )


def check_vae(vae: Any) -> VAE:
    """Return ``vae`` if it is a VAE.

    Raises
    ------
    TypeError
        If it is anything else, such as a model.
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"vae must be a VAE(model, encoder, phi), got {shown(vae)}")
    return vae


def bound_at(values: Array, by: BoundGradient | None) -> Bound:
    """Return per-observation values (N,) and the gradient of their sum as a result."""
    gradient = None if by is None else by._replace(sigma2=float(by.sigma2))
    return Bound(values, math.fsum(values), gradient)
