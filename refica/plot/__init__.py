"""Figures from results. Each function draws on one Axes and returns it; nothing is shown.

Matplotlib is imported when a figure is drawn, never with the package, and without pyplot, so that no
figure is held in global state. ``ax=None`` makes a new figure, which is then ``ax.figure``.
"""

from refica.plot.canvas import figure_png
from refica.plot.data import generated, manifold, manifold_panels
from refica.plot.fits import latent, learning_curves
from refica.plot.posteriors import posterior, posterior_panels

__all__ = [
    "figure_png",
    "generated",
    "latent",
    "learning_curves",
    "manifold",
    "manifold_panels",
    "posterior",
    "posterior_panels",
]
