"""A polynomial decoder on cells: its Taylor expansion about the centre, which is exact.

g(c + δ) = Σ_β T_β δ^β with T_β = Σ_{α >= β} C_α binom(α, β) c^(α - β). So g = T_0, J the T_β of degree 1,
and on |δ_i| <= s_i, real or complex, |ε| <= Σ_{|β| >= 2} |T_β| s^β.
"""

# notation: C cells, m latent, n data, M monomials of degree <= d with exponents α, β (multi-indices)

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refica.bounds.enclosure import DISCS, GROW, Enclosure, U, node_roundoff
from refica.decoders import Polynomial
from refica.validation import Array

__all__ = ["Taylor"]


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Taylor:
    """Encloses a polynomial decoder on cells.

    ``exponents`` (M, m); ``degrees`` (M,); ``coefficients`` (n, M) as in theta; ``shift`` (M, n, M) holds
    C_α binom(α, β) at [α - β, :, β], so that T_β = Σ_γ c^γ shift[γ, :, β].
    """

    exponents: Array
    degrees: Array
    coefficients: Array
    shift: Array

    def __init__(self, decoder: Polynomial, theta: Array) -> None:
        exponents = decoder.exponents
        place = {alpha: j for j, alpha in enumerate(exponents)}
        coefficients = theta.reshape(decoder.data_dim, -1)
        shift = np.zeros((len(exponents), decoder.data_dim, len(exponents)))
        for alpha, j in place.items():
            for beta, k in place.items():
                gamma = tuple(a - b for a, b in zip(alpha, beta, strict=True))
                if min(gamma) >= 0:
                    shift[place[gamma], :, k] = coefficients[:, j] * math.prod(map(math.comb, alpha, beta))
        object.__setattr__(self, "exponents", np.array(exponents))
        object.__setattr__(self, "degrees", np.array(exponents).sum(axis=1))
        object.__setattr__(self, "coefficients", coefficients)
        object.__setattr__(self, "shift", shift)

    @np.errstate(over="ignore", invalid="ignore")  # inf and nan are bounds that say nothing
    def __call__(self, c: Array, r: Array) -> Enclosure:
        """Return the enclosure on the cells c ± r, both (C, m)."""
        (M, m), d = self.exponents.shape, self.degrees[-1]
        # Relative to the sum of moduli T is off by m powers (8 U each) and products, a binomial and the sum.
        u = (9 * m + M + 4) * U * GROW
        T = np.tensordot(self._monomials(c), self.shift, axes=1)
        doubt = u * np.tensordot(self._monomials(np.abs(c)), np.abs(self.shift), axes=1)
        curved = self.degrees >= 2
        by_axis = self.exponents / np.maximum(self.degrees, 1)[:, None]
        errors, bends = [], []
        for kappa in (1.0, *DISCS):
            reach = self._monomials(kappa * r)[:, None, :]
            terms = (curved * np.abs(T) + doubt) * reach * GROW
            errors.append(terms.sum(axis=2) * GROW)
            bends.append(terms @ by_axis)
        g, J = T[:, :, 0], T[:, :, self.degrees == 1] if d else np.zeros((*T.shape[:2], m))
        # The decoder by d + m products and its sum, and because a computed node may be off.
        far = np.abs(c) + r
        off = (d + m + M + 2) * U + d * (node_roundoff(c, r) / far).max(axis=1)
        roundoff = off[:, None] * (self._monomials(far * GROW) @ np.abs(self.coefficients).T) * GROW
        reach = (np.einsum("cnm,cm->cn", np.abs(J), r) + errors[0] + roundoff) * GROW + 2.0 * U * np.abs(g)
        return Enclosure(g, J, g - reach, g + reach, errors[0], np.stack(errors[1:]), roundoff, bends[0])

    def _monomials(self, z: Array) -> Array:
        """z^α, (C, m) -> (C, M)."""
        return np.prod(z[:, None, :] ** self.exponents, axis=2)
