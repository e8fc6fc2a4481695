"""Exact integration for decoders that are piecewise affine: relu, leaky relu and identity at any depth.

From the bottom up: `network` (where such a network bends along a line), `truncated` (a Gaussian on an
interval), `line` (one latent dimension), `arrangement` (the cells of the plane on which the network is
affine), `plane` (two latent dimensions), `integrator`.
"""

from refica.piecewise.integrator import ExactPiecewiseAffine
from refica.piecewise.network import is_piecewise_affine

__all__ = ["ExactPiecewiseAffine", "is_piecewise_affine"]
