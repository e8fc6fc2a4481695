"""The data with the fitted manifolds, and generated against observed data."""

# notation: x (N, n) data, z (K, m) latents, g (K, 2) the decoder's values in the plane of the figure

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.plot.canvas import (
    BLUE,
    LIGHT,
    Style,
    View,
    aspect,
    axes_for,
    bins,
    check_data,
    frame,
    legend,
    marker_size,
    new_figure,
    scatter,
    styles,
    view_of,
)
from refica.validation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path

__all__ = ["generated", "manifold", "manifold_panels"]

STEPS = 100
"""Points per unit of z on a curve."""

BAND_STEP = 5
"""Every so many points of the curve carry its band: they are many, and drawn slowly."""

REACH = 3.5
"""Curves are drawn for |z| up to this: beyond lies 0.05 % of N(0, 1)."""

GRID = 2.0
"""Grid lines of two latent coordinates are drawn from -GRID to GRID."""

BAND = 2.0
"""Half-width of a noise band, in σ."""


def manifold(
    models: Mapping[str, NonlinearICA], x: Any, *, names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the data and what the models say of them.

    - n = 1: a histogram and the density p(x) of each model, E(3).
    - m = 1: the curve g(z), |z| <= 3.5, marked at z = -2, -1, 0, 1, 2, with the band of points that lie
      within 2σ of it.
    - m >= 2: the images of the lines z1 = const and z2 = const of a grid on [-2, 2]² (of its border and
      axes alone, for several models), the other latent coordinates 0, and a disc of radius 2σ around g(0).

    For n > 2 all is projected on the first two principal components of the data; the noise is isotropic,
    so that its band keeps its width.

    Parameters
    ----------
    models : mapping of str to NonlinearICA
        By the label in the legend; all with data_dim n.
    x : array_like (N, n)
    names : sequence of n str, optional
        Names of the coordinates, with units; None is x1, x2, ...
    ax : Axes, optional
        Where to draw; None makes a new figure.

    Raises
    ------
    ImportError
        If ax is None and matplotlib is missing.
    TypeError, ValueError
        If there is no model, or models, data and names do not fit together.
    """
    x, names = check_data(models, x, names)
    view = None if x.shape[1] == 1 else view_of(x, names)
    ax = axes_for(ax, None if view is None else view(x))
    _draw(ax, models, x, names[0], view)
    legend(ax, ["observed", *models], "" if view is None else _marks(models))
    return ax


def manifold_panels(
    models: Mapping[str, NonlinearICA], x: Any, *, names: Sequence[str] | None = None
) -> Figure:
    """Return a figure with `manifold` of each model in a panel of its own, on the same scales.

    For m >= 2, where grids on top of each other cannot be read. Parameters and errors are those of
    `manifold`.
    """
    x, names = check_data(models, x, names)
    view = None if x.shape[1] == 1 else view_of(x, names)
    columns = {1: 1, 2: 2, 4: 2}.get(len(models), 3)
    rows = math.ceil(len(models) / columns)
    width = 7.4 / max(2, columns)
    height = width * (0.7 if view is None else min(aspect(view(x)), 1.0))
    figure = new_figure(width * columns, rows * (0.3 + height) + 0.6)
    marks = "lines: density p(x) of the model" if view is None else _marks(models)
    figure.suptitle(f"grey: observed; {marks}", fontsize=8)
    ax = None
    for number, (label, model) in enumerate(models.items(), start=1):
        ax = figure.add_subplot(rows, columns, number, sharex=ax, sharey=ax)
        _draw(ax, {label: model}, x, names[0], view)
        ax.set_title(label, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(ax.get_xlabel(), fontsize=10)
        figure.supylabel(ax.get_ylabel(), fontsize=10)
        ax.set(xlabel="", ylabel="")
        ax.label_outer()
    return figure


def generated(
    model: NonlinearICA, x: Any, rng: Any, *, names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the data and as many observations drawn from the model, E(1).

    n = 1: histograms; n > 2: the first two principal components of the observed data.

    Parameters
    ----------
    model : NonlinearICA
    x : array_like (N, n)
    rng : int or numpy.random.Generator
    names : sequence of n str, optional
    ax : Axes, optional

    Raises
    ------
    ImportError
        If ax is None and matplotlib is missing.
    TypeError, ValueError
        If the data do not fit the model, or ``rng`` is neither a seed nor a generator.
    """
    x, names = check_data({"model": model}, x, names)
    drawn = model.sample(len(x), rng)[1]
    both = np.concatenate([x, drawn])
    if x.shape[1] == 1:
        ax, edges = axes_for(ax), bins(both)
        ax.hist(x[:, 0], edges, density=True, color=LIGHT, label="observed")
        ax.hist(
            drawn[:, 0],
            edges,
            density=True,
            histtype="step",
            linewidth=1.6,
            color=BLUE,
            label="generated",
        )
        ax.set(xlabel=names[0], ylabel="density")
    else:
        view = view_of(x, names)
        ax = axes_for(ax, view(both))
        scatter(ax, view(x), "observed", LIGHT, 2.0)
        across, up = view(drawn).T
        size = 1.5 * marker_size(len(x))
        ax.scatter(across, up, s=size, marker="x", linewidths=0.5, color=BLUE, label="generated")
        frame(ax, view(both), view.labels)
    legend(ax, ["observed", "generated"])
    return ax


def _draw(ax: Axes, models: Mapping[str, NonlinearICA], x: Array, name: str, view: View | None) -> None:
    """All of `manifold` but the legend; without a view n is 1."""
    if view is None:
        _densities(ax, models, x)
        ax.set(xlabel=name, ylabel="density")
        return
    scatter(ax, view(x), "observed")
    for (label, model), style in zip(models.items(), styles(models), strict=True):
        if model.latent_dim == 1:
            _curve(ax, model, view, label, style)
        else:
            _wireframe(ax, model, view, label, style, per_axis=9 if len(models) == 1 else 3)
    frame(ax, view(x), view.labels)


def _densities(ax: Axes, models: Mapping[str, NonlinearICA], x: Array) -> None:
    """n = 1: the histogram of the data and p(x) of each model on a grid."""
    ax.hist(x[:, 0], bins(x), density=True, color=LIGHT, label="observed")
    margin = 0.05 * float(np.ptp(x)) or 1.0
    grid = np.linspace(x.min() - margin, x.max() + margin, 501)[:, None]
    for (label, model), style in zip(models.items(), styles(models), strict=True):
        p = np.exp(log_likelihood(model, grid, gradient=False).per_observation)
        ax.plot(grid[:, 0], p, color=style.colour, linestyle=style.line, linewidth=1.8, label=label)
    ax.set_xlim(grid[0, 0], grid[-1, 0])


def _marks(models: Mapping[str, NonlinearICA]) -> str:
    """What `_curve` and `_wireframe` draw, in words."""
    dims = {model.latent_dim for model in models.values()}
    words = []
    if 1 in dims:
        words.append("marks: z = −2, −1, 0, 1, 2; bands: within 2σ of the curve")
    if max(dims) > 1:
        rest = ", other coordinates 0" if max(dims) > 2 else ""
        words.append(
            f"solid: z1 constant, dashed: z2 constant (−2 to 2{rest}); "
            "marks: z = 0 and ±2 on both axes; disc: within 2σ of g(0)"
        )
    return "\n".join(words)


def _curve(ax: Axes, model: NonlinearICA, view: View, label: str, style: Style) -> None:
    """m = 1: g(z) with its band, which lies under the data."""
    from matplotlib.patches import PathPatch

    half = round(REACH * STEPS)
    z = np.arange(-half, half + 1) / STEPS
    g = view(model.decoder(model.theta, z[:, None]))
    band = _swept_disc(g[::BAND_STEP], BAND * math.sqrt(model.sigma2))
    # Not add_patch, which would spend half a second on data limits that `frame` sets anyway.
    ax.add_artist(PathPatch(band, facecolor=style.colour, edgecolor="none", alpha=0.2, zorder=0.5))
    ax.plot(
        g[:, 0],
        g[:, 1],
        color=style.colour,
        linestyle=style.line,
        linewidth=style.width,
        marker=style.marker,
        markevery=[half + STEPS * mark for mark in (-2, -1, 0, 1, 2)],
        markersize=6.5,
        markeredgecolor="white",
        zorder=style.layer,
        label=label,
    )


def _wireframe(ax: Axes, model: NonlinearICA, view: View, label: str, style: Style, *, per_axis: int) -> None:
    """m >= 2: so many grid lines of each of the first two latent coordinates, those at 0 thicker."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle

    m = model.latent_dim
    along, levels = np.linspace(-GRID, GRID, 81), np.linspace(-GRID, GRID, per_axis)
    z = np.zeros((2, per_axis, len(along), m))
    z[0, ..., 0], z[0, ..., 1] = levels[:, None], along
    z[1, ..., 1], z[1, ..., 0] = levels[:, None], along
    g = view(model.decoder(model.theta, z.reshape(-1, m))).reshape(2, per_axis, -1, 2)
    widths = np.where(levels == 0.0, 1.8, 0.8)
    for lines, line in zip(g, ("-", (0, (4, 1.5))), strict=True):
        ax.add_collection(
            LineCollection(list(lines), colors=style.colour, linewidths=widths, linestyles=line)
        )
    unit = np.eye(m)[:2]
    marked = view(model.decoder(model.theta, np.concatenate([np.zeros((1, m)), GRID * unit, -GRID * unit])))
    ax.plot(
        marked[:, 0],
        marked[:, 1],
        linestyle="none",
        color=style.colour,
        marker=style.marker,
        markersize=6.5,
        markeredgecolor="white",
        zorder=2.6,
        label=label,
    )
    radius = BAND * math.sqrt(model.sigma2)
    ax.add_patch(Circle(tuple(marked[0]), radius, facecolor=style.colour, alpha=0.35, zorder=2.5))


def _swept_disc(points: Array, radius: float) -> Path:
    """The union of discs of a radius moved along a polyline (K, 2), as one path.

    A disc at each point and a rectangle along each segment, all counter-clockwise: filled with the
    nonzero winding rule, as matplotlib does, they make their union without overlaps that darken it,
    however the curve folds.
    """
    from matplotlib.path import Path

    start, end = points[:-1], points[1:]
    along = end - start
    length = np.linalg.norm(along, axis=1, keepdims=True)
    normal = radius * np.stack([-along[:, 1], along[:, 0]], axis=1) / np.where(length > 0.0, length, 1.0)
    corners = np.stack([start - normal, end - normal, end + normal, start + normal, start - normal], axis=1)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    sides = Path(corners.reshape(-1, 2), np.tile(codes, len(corners)))
    disc = Path.unit_circle()
    vertices, disc_codes = np.asarray(disc.vertices), np.asarray(disc.codes)
    placed = (vertices[None] * radius + points[:, None]).reshape(-1, 2)
    return Path.make_compound_path(sides, Path(placed, np.tile(disc_codes, len(points))))
