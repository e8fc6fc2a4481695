"""Fitting: direct maximum likelihood and variational autoencoders."""

from refica.fit.encoder_start import initial_vae
from refica.fit.mle import METHODS, fit_mle
from refica.fit.result import Fit, Step
from refica.fit.vae import fit_vae

__all__ = ["METHODS", "Fit", "Step", "fit_mle", "fit_vae", "initial_vae"]
