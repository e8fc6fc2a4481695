"""refica: exact likelihoods of nonlinear ICA models, to check others against."""

from importlib.metadata import version as _version

from refica.activations import leaky_relu
from refica.decoders import MLP, Polynomial
from refica.exact import ExactLinear, probabilistic_pca
from refica.fit import fit_mle
from refica.marginal import density, log_likelihood, posterior, scores
from refica.model import NonlinearICA
from refica.quadrature import FixedNodes, Quadrature
from refica.rules import gauss_hermite, monte_carlo, uniform_grid

__version__ = _version("refica")

__all__ = [
    "MLP",
    "ExactLinear",
    "FixedNodes",
    "NonlinearICA",
    "Polynomial",
    "Quadrature",
    "__version__",
    "density",
    "fit_mle",
    "gauss_hermite",
    "leaky_relu",
    "log_likelihood",
    "monte_carlo",
    "posterior",
    "probabilistic_pca",
    "scores",
    "uniform_grid",
]
