"""Exact integration for an affine decoder, and the closed-form maximum-likelihood fit of one.

With g(z) = W z + b the model is probabilistic PCA (Tipping and Bishop, JRSS B 61, 1999):
X ~ N(b, W Wᵀ + σ² I), and Z | x ~ N(M⁻¹Wᵀ(x - b), σ² M⁻¹) with M = WᵀW + σ² I.
"""

# notation: N observations, n data, m latent; W (n, m), b (n,), M (m, m)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refica.decoders import MLP
from refica.likelihood import Coefficient, Estimate, Nodes, evaluate, rounding_error
from refica.model import NonlinearICA
from refica.proposals import Gaussians, place
from refica.validation import Array, check_array, check_count

__all__ = ["ExactLinear", "affine_map", "probabilistic_pca"]


@dataclass(frozen=True, slots=True)
class ExactLinear:
    """Exact log-likelihood, gradient and posterior moments for an affine decoder, any latent dimension.

    Its nodes are the 2m points μ ± sqrt(m) L e_j of the exact Gaussian posterior N(μ, L Lᵀ), each of
    share 1/2m. With x fixed, log p(x, z) - log p(z | x) does not depend on z, so any weighted points of
    the posterior give p(x); these have its mean and covariance too, so that the gradient, whose
    integrand is quadratic in z, is exact as well. What is left is rounding, which is reported.
    """

    def nodes(self, model: NonlinearICA, x: Array) -> Nodes:
        """Return nodes (N, 2m, m) and log weights (N, 2m).

        Raises
        ------
        ValueError
            If the decoder is not affine.
        """
        m = model.latent_dim
        t = math.sqrt(m) * np.concatenate([np.eye(m), -np.eye(m)])
        return place(t, np.full(2 * m, -math.log(2 * m)), self.gaussians(model, x))

    def gaussians(self, model: NonlinearICA, x: Array) -> Gaussians:
        """Return the posteriors N(μ, L Lᵀ), one component for each observation.

        Raises
        ------
        ValueError
            If the decoder is not affine.
        """
        W, b = affine_map(model)
        m, rank = model.latent_dim, min(W.shape)
        # By W = U S Vᵀ: μ = V S/(S² + σ²) Uᵀ(x - b), L Lᵀ = V D² Vᵀ with D² = σ²/(S² + σ²). Solving with
        # M would lose, where n < m, the square of the condition that this loses (1e-10 of the gradient).
        U, S, Vt = np.linalg.svd(W)
        mean = ((x - b) @ U[:, :rank] * (S / (S * S + model.sigma2))) @ Vt[:rank]
        D = np.ones(m)
        D[:rank] = np.sqrt(model.sigma2 / (S * S + model.sigma2))
        _, R = np.linalg.qr(D[:, None] * Vt)
        L = R.T * np.sign(np.diag(R))
        return Gaussians(np.zeros((len(x), 1)), mean[:, None, :], np.broadcast_to(L, (len(x), 1, m, m)), {})

    def evaluate(
        self, model: NonlinearICA, x: Array, gradient: bool, coefficient: Coefficient = np.ones_like
    ) -> Estimate:
        """Return log p(x_i), rounding as its error, and the gradient of Σ_i c_i log p(x_i)."""
        result = evaluate(
            model.decoder,
            model.theta,
            model.sigma2,
            x,
            self.nodes(model, x),
            coefficient=coefficient if gradient else None,
        )
        return Estimate(result.log_p, rounding_error(x, model.sigma2, result.log_p), {}, result.gradient)


def affine_map(model: NonlinearICA) -> tuple[Array, Array]:
    """Return W (n, m) and b (n,) of an affine decoder.

    Raises
    ------
    ValueError
        If the decoder does not say that it is affine.
    """
    if not getattr(model.decoder, "is_affine", False):
        raise ValueError(
            f"ExactLinear needs an affine decoder such as MLP((m, n)), got {model.decoder}; "
            "use integrator=None, which picks one that fits"
        )
    m = model.latent_dim
    origin = np.zeros((m, m))
    still = np.zeros(model.decoder.n_params)
    W = model.decoder.jvp(model.theta, origin, still, np.eye(m)).T
    return W, model.decoder(model.theta, origin[:1])[0]


def probabilistic_pca(x: Any, latent_dim: int) -> NonlinearICA:
    """Return the maximum-likelihood model with an affine decoder, in closed form.

    σ² is the mean of the n - m discarded eigenvalues of the covariance with divisor N, W = U (Λ - σ² I)^½
    and b the mean (Tipping and Bishop 1999, equations 7 and 8; their rotation R is I).

    Parameters
    ----------
    x : array_like (N, n)
        At least two observations.
    latent_dim : int
        m, with 1 <= m < n.

    Returns
    -------
    NonlinearICA
        With decoder ``MLP((m, n))``.

    Raises
    ------
    TypeError, ValueError
        For bad data, or m >= n: then no eigenvalue is discarded and the optimum is not defined; or
        if the data lie in an m-dimensional subspace, where σ² = 0 and the likelihood is unbounded.
    """
    x = check_array("x", x, ("N", "n"))
    N, n = x.shape
    m = check_count("latent_dim", latent_dim)
    if m >= n:
        raise ValueError(
            f"probabilistic PCA is not defined for latent_dim {m} >= data_dim {n}: "
            "no eigenvalue is left to estimate sigma2 from"
        )
    if N < 2:
        raise ValueError("x must have at least 2 observations, got 1")
    b = x.mean(axis=0)
    _, singular, rows = np.linalg.svd((x - b) / math.sqrt(N), full_matrices=False)
    eigenvalues = np.zeros(n)
    eigenvalues[: len(singular)] = singular**2
    sigma2 = float(eigenvalues[m:].mean())
    if sigma2 <= np.finfo(float).eps * n * eigenvalues[0]:
        raise ValueError(
            f"x lies in a subspace of dimension {m}: the likelihood is unbounded as sigma2 -> 0; "
            "take a smaller latent_dim or remove collinear columns"
        )
    W = rows[:m].T * np.sqrt(np.maximum(eigenvalues[:m] - sigma2, 0.0))
    return NonlinearICA(MLP((m, n)), np.concatenate([W.ravel(), b]), sigma2)
