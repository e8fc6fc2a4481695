"""Fitting: direct maximum likelihood and variational autoencoders."""

from refica.fit.mle import fit_mle
from refica.fit.result import Fit, Step

__all__ = ["Fit", "Step", "fit_mle"]
