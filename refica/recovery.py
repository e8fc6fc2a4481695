"""How well latents are recovered, after removing what the model cannot identify (mathematics section 8).

Z ~ N(0, I) fixes origin and scale but no axes: every orthogonal map of the latent space leaves the law
of X unchanged. So the orthogonal map is removed, without centring or scaling; the affine map and the
canonical correlations forgive more, and say so. The MCC of the literature forgives only permutations and
signs, which is less than the model allows, and still looks high by chance: it comes with that level.
"""

# notation: Z (N, m) true latents, E (N, m) estimated ones, Q (m, m) an orthogonal map

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from refica.validation import Array, check_array, check_count, check_seed

__all__ = ["Recovery", "mcc_chance", "procrustes", "r_squared", "recovery"]

ROUNDING = 1e-13
"""Size, relative to the numbers themselves, below which a deviation from their mean is rounding: the mean
of N equal numbers is off by a few units in the last place (2e-16), at N = 1e6 by up to 1e-14 or so."""

ROTATIONS = 2000
"""Random rotations behind the chance level: its standard error is then .002 at m = 2 and less above."""

BLOCK = 500
"""Random rotations drawn at a time, so that memory stays small for large m."""


@dataclass(frozen=True, slots=True, eq=False)
class Recovery:
    """The result of `recovery`.

    Attributes
    ----------
    procrustes_r2 : float
        1 - ‖Z - E Q‖² / ‖Z - mean‖² with the best orthogonal Q: 1 is perfect, 0 what the constant
        estimate 0 scores, negative is worse than that.
    affine_r2 : float
        The same with the best affine map E A + b, in [0, 1]: what a linear regression gets out of E.
    canonical_correlations : (m,)
        In descending order, in [0, 1]: invariant under invertible affine maps of either side.
    mcc : float
        Mean absolute correlation of coordinates after the best one-to-one matching, in [0, 1].
    mcc_chance : float
        What a random rotation of the true latents scores on average: an MCC of this size says nothing.
    """

    procrustes_r2: float
    affine_r2: float
    canonical_correlations: Array
    mcc: float
    mcc_chance: float

    def to_dict(self) -> dict[str, float | list[float]]:
        """Return the measures as plain values, for JSON."""
        return {
            "procrustes_r2": self.procrustes_r2,
            "affine_r2": self.affine_r2,
            "canonical_correlations": self.canonical_correlations.tolist(),
            "mcc": self.mcc,
            "mcc_chance": self.mcc_chance,
        }


def recovery(z_true: Any, z_estimated: Any) -> Recovery:
    """Return the measures of mathematics section 8.

    A coordinate of the estimate that is constant (a collapsed one) explains nothing: it counts as
    correlation 0, so that a constant estimate gets affine_r2, correlations and mcc of exactly 0 and,
    if it is 0, a procrustes_r2 of 0 up to O(1/N). Nothing is ever nan.

    Parameters
    ----------
    z_true : array_like (N, m)
        The latents behind the data, N >= 2 rows.
    z_estimated : array_like (N, m)
        Their estimates, as a rule the posterior means.

    Raises
    ------
    TypeError, ValueError
        For arrays that are not finite, not of the same shape, of one row, or true latents that do not
        vary.

    Examples
    --------
    >>> z = np.random.default_rng(0).standard_normal((500, 2))
    >>> turned = z @ [[0.6, -0.8], [0.8, 0.6]]
    >>> found = recovery(z, turned)
    >>> round(found.procrustes_r2, 12), round(found.mcc, 2), round(found.mcc_chance, 2)
    (1.0, 0.8, 0.9)
    """
    Z, E = _pair(z_true, z_estimated)
    deviations, estimated = _centred(Z), _centred(E)
    fitted = _orthonormal_basis(estimated)
    return Recovery(
        procrustes_r2=r_squared(Z, E @ procrustes(Z, E)),  # which refuses a Z that does not vary
        affine_r2=min(1.0, float(np.sum((fitted.T @ deviations) ** 2) / np.sum(deviations**2))),
        canonical_correlations=_canonical_correlations(_orthonormal_basis(deviations), fitted, Z.shape[1]),
        mcc=_best_matching(np.abs(_unit_columns(deviations).T @ _unit_columns(estimated))),
        mcc_chance=mcc_chance(Z.shape[1]),
    )


def r_squared(z_true: Any, z_estimated: Any) -> float:
    """Return 1 - ‖Z - E‖² / ‖Z - mean‖² of an estimate as it is: nothing is removed first.

    Parameters and errors are those of `recovery`.
    """
    Z, E = _pair(z_true, z_estimated)
    total = float(np.sum(_centred(Z) ** 2))
    if total == 0.0:
        raise ValueError("z_true must vary, got the same latents in every row")
    return 1.0 - float(np.sum((Z - E) ** 2)) / total


def procrustes(z_true: Any, z_estimated: Any) -> Array:
    """Return the orthogonal Q (m, m) that minimises ‖Z - E Q‖, reflections included.

    With the singular value decomposition Eᵀ Z = U S Vᵀ it is U Vᵀ (Schönemann 1966).

    Parameters and errors are those of `recovery`, but latents need not vary.
    """
    Z, E = _pair(z_true, z_estimated)
    U, _S, Vt = np.linalg.svd(E.T @ Z)
    return np.asarray(U @ Vt)


def mcc_chance(m: int, rotations: int = ROTATIONS, seed: int = 0) -> float:
    """Return the mean MCC between Z ~ N(0, I_m) and Z Q for uniformly random orthogonal Q, by simulation.

    The correlation matrix of the two is Q itself, so no latents are drawn. 1 at m = 1, 2√2/π = .900 at
    m = 2, .827 at m = 3, .730 at m = 5.

    Parameters
    ----------
    m : int
        Latent dimension >= 1.
    rotations : int
        Number of random maps.
    seed : int

    Raises
    ------
    TypeError, ValueError
        If one is not an integer in its range.
    """
    m, rotations = check_count("m", m), check_count("rotations", rotations)
    rng = np.random.default_rng(check_seed("seed", seed))
    scores = []
    for start in range(0, rotations, BLOCK):
        # Uniform up to the signs of the columns (Stewart 1980), which the absolute value removes.
        Q, _R = np.linalg.qr(rng.standard_normal((min(BLOCK, rotations - start), m, m)))
        scores += [_best_matching(q) for q in np.abs(Q)]
    return float(np.mean(scores))


def _pair(z_true: Any, z_estimated: Any) -> tuple[Array, Array]:
    Z = check_array("z_true", z_true, ("N", "m"))
    if len(Z) < 2:
        raise ValueError(f"z_true must have at least 2 rows, got {len(Z)}")
    return Z, check_array("z_estimated", z_estimated, Z.shape)


def _centred(z: Array) -> Array:
    """Deviations from the column means; exactly 0 where they are rounding."""
    deviations = z - z.mean(axis=0)
    constant = np.abs(deviations).max(axis=0) <= ROUNDING * np.abs(z).max(axis=0)
    deviations[:, constant] = 0.0
    return np.asarray(deviations)


def _unit_columns(centred: Array) -> Array:
    """Columns scaled to length 1; columns of zeros stay."""
    largest = np.abs(centred).max(axis=0)
    scaled = centred / np.where(largest > 0.0, largest, 1.0)  # first, lest squares over- or underflow
    length = np.linalg.norm(scaled, axis=0)
    return np.asarray(scaled / np.where(length > 0.0, length, 1.0))


def _orthonormal_basis(centred: Array) -> Array:
    """An orthonormal basis (N, rank) of the span of the columns, whatever their scales."""
    U, S, _Vt = np.linalg.svd(_unit_columns(centred), full_matrices=False)
    return np.asarray(U[:, ROUNDING * len(centred) * S[0] < S])


def _canonical_correlations(true_basis: Array, estimated_basis: Array, m: int) -> Array:
    """Cosines of the angles between two subspaces, filled up with 0 to (m,)."""
    found = np.zeros(m)
    if true_basis.shape[1] and estimated_basis.shape[1]:
        cosines = np.linalg.svd(true_basis.T @ estimated_basis, compute_uv=False)
        found[: len(cosines)] = np.minimum(cosines, 1.0)
    return found


def _best_matching(correlations: Array) -> float:
    """Mean of the matched absolute correlations (m, m), at most 1."""
    return min(1.0, float(correlations[linear_sum_assignment(correlations, maximize=True)].mean()))
