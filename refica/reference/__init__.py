"""The yardstick for one to three latent dimensions: sums over lattices that provably pass over nothing.

From the bottom up: `lines` (a decoder on a cell, with a remainder), `cells` (branch and bound), `patches`
(from modes to lattices), `grid` (sums, their error, refinement), `panels` (Gauss-Legendre where no lattice
serves), `integrator`.
"""

from refica.reference.integrator import BOUNDED, Reference

__all__ = ["BOUNDED", "Reference"]
