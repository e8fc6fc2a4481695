"""The true posterior of one observation against the Gaussian that an encoder gives in its place."""

# notation: N observations, K points, m latent; z (K, m); mu and sd (m,) of q(z | x)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refica.encoder import encode
from refica.marginal import log_likelihood
from refica.plot.canvas import BLUE, LIGHT_BLUE, axes_for, legend, new_figure, styles
from refica.posterior import posterior as posterior_of
from refica.vae import VAE
from refica.validation import Array, check_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["posterior", "posterior_panels"]

TRUE, APPROXIMATE = "true posterior p(z | x)", "encoder's q(z | x)"

REACH = 4.0
"""Half-width of what is searched for density, in standard deviations of q and of the posterior."""

POINTS = {1: 1500, 2: 220}
"""Points per axis of the grid on which densities are drawn, by m."""

SAMPLES = 1500
"""Draws from the posterior at which a curve has further points: it may have peaks between the others."""

VISIBLE = 1e-3
"""Densities below this part of their peak are left out of the frame."""

DASHED = (0, (4, 1.5))

MASSES = (0.5, 0.9)
"""Probability inside the contours."""


def posterior(vae: VAE, x: Any, *, ax: Axes | None = None) -> Axes:
    """Draw p(z | x) of the VAE's model and its encoder's q(z | x) for one observation.

    - m = 1: both densities.
    - m = 2: for each the two lines of equal density that enclose probability 0.5 and 0.9.

    Parameters
    ----------
    vae : VAE
        With one or two latent dimensions.
    x : array_like (n,) or (1, n)
    ax : Axes, optional
        Where to draw; None makes a new figure.

    Raises
    ------
    ImportError
        If ax is None and matplotlib is missing.
    TypeError, ValueError
        For data that are not one observation of the model, or more than two latent dimensions.
    """
    x = _one(vae, x)
    ax = axes_for(ax)
    _draw(ax, vae, x)
    ax.set(xlabel="z" if vae.model.latent_dim == 1 else "z1")
    ax.set(ylabel="density" if vae.model.latent_dim == 1 else "z2")
    legend(ax, [TRUE, APPROXIMATE], _note(vae))
    return ax


def posterior_panels(vae: VAE, x: Any, titles: Sequence[str]) -> Figure:
    """Return a figure with `posterior` of each observation in a panel of its own, each on its own scales.

    Parameters
    ----------
    vae : VAE
    x : array_like (N, n)
        A few observations.
    titles : sequence of N str

    Raises
    ------
    ImportError
        If matplotlib is missing.
    TypeError, ValueError
        As for `posterior`, or for another number of titles.
    """
    x = check_array("x", x, ("N", vae.model.data_dim))
    if len(titles) != len(x):
        raise ValueError(f"titles must be {len(x)}, one for each observation, got {len(titles)}")
    plane = vae.model.latent_dim == 2
    rows = math.ceil(len(x) / 3)
    figure = new_figure(7.4, (2.5 if plane else 1.9) * rows + 0.7)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for ax, observation, title in zip(axes, x, titles, strict=False):
        _draw(ax, vae, _one(vae, observation))
        ax.set_title(title, fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    for ax in axes[len(x) :]:
        ax.remove()
    figure.supxlabel("z1" if plane else "z", fontsize=10)
    figure.supylabel("z2" if plane else "density", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    words = [f"{label}; {note}" if (note := _note(vae)) else label for label in labels[:1]] + labels[1:]
    figure.legend(handles, words, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def _one(vae: VAE, x: Any) -> Array:
    """Return x as (1, n)."""
    if vae.model.latent_dim > 2:
        raise ValueError(f"posteriors are drawn for latent_dim 1 and 2, got {vae.model.latent_dim}")
    x = vae.model.check_data(np.atleast_2d(x))
    if len(x) != 1:
        raise ValueError(f"x must be one observation, got {len(x)}")
    return x


def _note(vae: VAE) -> str:
    inside = " and ".join(f"{mass:.0%}" for mass in MASSES)
    return f"lines enclose {inside} of each" if vae.model.latent_dim == 2 else ""


def _draw(ax: Axes, vae: VAE, x: Array) -> None:
    mu, log_s2 = (part[0] for part in encode(vae.encoder, vae.phi, x))
    (_line if len(mu) == 1 else _plane)(ax, vae, x, mu, np.exp(0.5 * log_s2))


def _log_posterior(vae: VAE, x: Array, z: Array) -> Array:
    """log p(z | x) = log p(x, z) - log p(x), (K,)."""
    log_p = log_likelihood(vae.model, x, gradient=False).per_observation
    return np.asarray(vae.model.log_joint(x, z)[0] - log_p[0])


def _log_q(z: Array, mu: Array, sd: Array) -> Array:
    """log q(z | x), (K,)."""
    t = (z - mu) / sd
    return np.asarray(-0.5 * (t * t).sum(axis=1) - np.log(sd).sum() - 0.5 * len(mu) * math.log(2.0 * math.pi))


def _box(vae: VAE, x: Array, mu: Array, sd: Array) -> tuple[Array, Array, Array]:
    """Return the corners (m,) of a box that holds q and the posterior, and draws (K, m) from this."""
    post = posterior_of(vae.model, x)
    spread = REACH * np.sqrt(np.diag(post.covariance[0]))
    drawn = post.sample(SAMPLES, 0)[:, 0]
    low = np.min([mu - REACH * sd, post.mean[0] - spread, drawn.min(axis=0)], axis=0)
    return low, np.max([mu + REACH * sd, post.mean[0] + spread, drawn.max(axis=0)], axis=0), drawn


def _line(ax: Axes, vae: VAE, x: Array, mu: Array, sd: Array) -> None:
    """m = 1: two densities."""
    low, high, drawn = _box(vae, x, mu, sd)
    z = np.concatenate([np.linspace(low[0], high[0], POINTS[1]), drawn[:, 0]])
    z = np.sort(np.concatenate([z, mu + sd * np.linspace(-REACH, REACH, 201)]))[:, None]
    true, q = np.exp(_log_posterior(vae, x, z)), np.exp(_log_q(z, mu, sd))
    style = styles(["VAE"])[0]
    ax.fill_between(z[:, 0], true, color=LIGHT_BLUE, linewidth=0.0)
    ax.plot(z[:, 0], true, color=BLUE, linewidth=1.8, label=TRUE)
    ax.plot(z[:, 0], q, color=style.colour, linestyle=DASHED, linewidth=1.8, label=APPROXIMATE)
    shown = z[(true > VISIBLE * true.max()) | (q > VISIBLE * q.max()), 0]
    ax.set(xlim=(shown.min(), shown.max()), ylim=(0.0, 1.08 * max(true.max(), q.max())))


def _plane(ax: Axes, vae: VAE, x: Array, mu: Array, sd: Array) -> None:
    """m = 2: contours of two densities."""
    low, high, _ = _box(vae, x, mu, sd)
    across, up = (np.linspace(low[j], high[j], POINTS[2]) for j in (0, 1))
    z = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    log_true = _log_posterior(vae, x, z).reshape(len(up), len(across))
    style, turn = styles(["VAE"])[0], np.linspace(0.0, 2.0 * np.pi, 181)
    true = np.exp(log_true - log_true.max())
    levels = _levels(true)
    ax.contourf(across, up, true, [levels[0], 1.0], colors=[LIGHT_BLUE])
    ax.contour(across, up, true, levels, colors=BLUE, linewidths=1.6)
    for mass in MASSES:
        radius = math.sqrt(-2.0 * math.log(1.0 - mass))  # of a standard normal in the plane
        ellipse = mu + radius * sd * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        ax.plot(*ellipse.T, color=style.colour, linestyle=DASHED, linewidth=1.8)
    inside = z[(true >= levels[0]).ravel()]
    shown = np.concatenate([inside, ellipse])
    margin = 0.08 * np.ptp(shown, axis=0)
    left, right = shown.min(axis=0) - margin, shown.max(axis=0) + margin
    ax.set(xlim=(left[0], right[0]), ylim=(left[1], right[1]))
    ax.plot([], [], color=BLUE, linewidth=1.6, label=TRUE)
    ax.plot([], [], color=style.colour, linestyle=DASHED, linewidth=1.8, label=APPROXIMATE)


def _levels(density: Array) -> list[float]:
    """Return the densities whose contours enclose `MASSES`, of values on a grid, in ascending order."""
    falling = np.sort(density.ravel())[::-1]
    mass = np.cumsum(falling) / falling.sum()
    return sorted(float(falling[np.searchsorted(mass, each)]) for each in MASSES)
