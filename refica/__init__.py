"""refica: exact likelihoods of nonlinear ICA models, to check others against."""

from importlib.metadata import version as _version

from refica.activations import leaky_relu
from refica.centrality import mean_score_test, score_centrality
from refica.certified import certified_bounds
from refica.decoders import MLP, Polynomial
from refica.exact import ExactLinear, probabilistic_pca
from refica.examples import EXAMPLES, example
from refica.fit import fit_mle, fit_vae, initial_vae
from refica.marginal import density, log_likelihood, scores
from refica.model import NonlinearICA
from refica.model_files import load_model, save_model
from refica.piecewise import ExactPiecewiseAffine
from refica.posterior import posterior
from refica.proposals import EncoderProposal
from refica.quadrature import FixedNodes, Quadrature
from refica.recovery import recovery
from refica.reference import Reference
from refica.rules import gauss_hermite, monte_carlo, sobol, uniform_grid
from refica.uncertainty import observed_information, paired_difference, standard_errors
from refica.vae import VAE, elbo, elbo_quadrature, gaps, iwae
from refica.verify import verify

__version__ = _version("refica")

__all__ = [
    "EXAMPLES",
    "MLP",
    "VAE",
    "EncoderProposal",
    "ExactLinear",
    "ExactPiecewiseAffine",
    "FixedNodes",
    "NonlinearICA",
    "Polynomial",
    "Quadrature",
    "Reference",
    "__version__",
    "certified_bounds",
    "density",
    "elbo",
    "elbo_quadrature",
    "example",
    "fit_mle",
    "fit_vae",
    "gaps",
    "gauss_hermite",
    "initial_vae",
    "iwae",
    "leaky_relu",
    "load_model",
    "log_likelihood",
    "mean_score_test",
    "monte_carlo",
    "observed_information",
    "paired_difference",
    "posterior",
    "probabilistic_pca",
    "recovery",
    "save_model",
    "score_centrality",
    "scores",
    "sobol",
    "standard_errors",
    "uniform_grid",
    "verify",
]
