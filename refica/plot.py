"""Figures from results. Each function draws on one Axes and returns it; nothing is shown.

Matplotlib is imported when a figure is drawn, never with the package, and without pyplot, so that no
figure is held in global state. ``ax=None`` makes a new figure, which is then ``ax.figure``.

Colours are those of Okabe and Ito (2008), told apart by readers of any colour vision; what must be told
apart also differs in line style or marker, for print in grey.
"""

# notation: x (N, n) data, z (K, m) latents, g (K, n) the decoder's values; a view maps R^n to the plane

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refica.fit.result import Step
from refica.marginal import log_likelihood
from refica.model import NonlinearICA
from refica.recovery import procrustes, recovery
from refica.validation import Array, check_array, check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure_png", "generated", "latent", "learning_curves", "manifold", "manifold_panels"]

REACH = 3.5
"""Curves are drawn for |z| up to this: beyond lies 0.05 % of N(0, 1)."""

GRID = 2.0
"""Grid lines of two latent coordinates are drawn from -GRID to GRID."""

BAND = 2.0
"""Half-width of a noise band, in σ."""

WIDEST_EQUAL = 4.0
"""Up to this ratio of the ranges both axes have the same scale, in which the noise is round."""

MOST_BINS = 500
"""Most bins of a histogram, for data with far outliers."""

GREY = "#777777"
LIGHT = "#c8c8c8"


class _Style(NamedTuple):
    """How one model looks; where curves lie on each other, the broken and thinner ones are on top."""

    colour: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str
    width: float = 2.0
    layer: float = 2.0


# What `refica compare` fits looks the same in all its figures; other labels take the spare styles in turn.
_STYLES = {
    "truth": _Style("#000000", (0, (5, 3)), "s", 1.2, 2.4),
    "linear": _Style("#E69F00", (0, (6, 1.5, 1, 1.5)), "^", 2.0, 2.1),
    "direct MLE": _Style("#0072B2", "-", "o", 2.8),
    "VAE": _Style("#D55E00", (0, (1.2, 1.2)), "D", 2.0, 2.2),
}
_SPARE = (
    _Style("#009E73", "-", "v"),
    _Style("#CC79A7", (0, (5, 2)), "P"),
    _Style("#56B4E9", (0, (6, 1.5, 1, 1.5)), "X"),
    _Style("#0072B2", (0, (1.2, 1.2)), "o"),
    _Style("#D55E00", "-", "D"),
)


class _View(NamedTuple):
    """The map x -> (x - centre) @ axes to the plane of the figure, and the labels of its axes."""

    centre: Array
    axes: Array
    labels: tuple[str, str]

    def __call__(self, points: Array) -> Array:
        return np.asarray((points - self.centre) @ self.axes)


# ---------------------------------------------------------------------------------------------------
# The data and the manifold
# ---------------------------------------------------------------------------------------------------


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
    x, names = _check_data(models, x, names)
    if x.shape[1] == 1:
        return _densities(_axes(ax), models, x, names[0])
    view = _view(x, names)
    ax = _axes(ax, view(x))
    _scatter(ax, view(x), "observed")
    for (label, model), style in zip(models.items(), _styles(models), strict=True):
        if model.latent_dim == 1:
            _curve(ax, model, view, label, style)
        else:
            _wireframe(ax, model, view, label, style, 9 if len(models) == 1 else 3)
    _frame(ax, view(x), view.labels)
    _legend(ax, ["observed", *models], _marks(models, x.shape[1]))
    return ax


def manifold_panels(
    models: Mapping[str, NonlinearICA], x: Any, *, names: Sequence[str] | None = None
) -> Figure:
    """Return a figure with `manifold` of each model in a panel of its own, on the same scales.

    For m >= 2, where grids on top of each other cannot be read. Parameters and errors are those of
    `manifold`.
    """
    x, names = _check_data(models, x, names)
    columns = {1: 1, 2: 2, 4: 2}.get(len(models), 3)
    rows = math.ceil(len(models) / columns)
    width = 7.4 / max(2, columns)
    shape = 0.7 if x.shape[1] == 1 else min(_shape(_view(x, names)(x)), 1.0)
    figure = _new_figure(width * columns, rows * (0.3 + width * shape) + 0.6)
    figure.suptitle(f"grey: observed; {_marks(models, x.shape[1])}", fontsize=8)
    ax = None
    for number, (label, model) in enumerate(models.items(), start=1):
        ax = figure.add_subplot(rows, columns, number, sharex=ax, sharey=ax)
        manifold({label: model}, x, names=names, ax=ax).set_title(label, fontsize=10)
        figure.supxlabel(ax.get_xlabel(), fontsize=10)
        figure.supylabel(ax.get_ylabel(), fontsize=10)
        ax.set(xlabel="", ylabel="")
        ax.get_legend().remove()
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
    x, names = _check_data({"model": model}, x, names)
    drawn = model.sample(len(x), rng)[1]
    if x.shape[1] == 1:
        ax = _axes(ax)
        edges = _bins(np.concatenate([x, drawn]))
        ax.hist(x[:, 0], edges, density=True, color=LIGHT, label="observed")
        ax.hist(drawn[:, 0], edges, density=True, histtype="step", linewidth=1.6, color="#0072B2",
                label="generated")  # fmt: skip
        ax.set(xlabel=names[0], ylabel="density")
    else:
        view = _view(x, names)
        both = view(np.concatenate([x, drawn]))
        ax = _axes(ax, both)
        _scatter(ax, view(x), "observed", LIGHT, 2.0)
        ax.scatter(*view(drawn).T, s=1.5 * _marker_size(len(x)), marker="x", linewidths=0.5, color="#0072B2",
                   label="generated")  # fmt: skip
        _frame(ax, both, view.labels)
    _legend(ax, ["observed", "generated"])
    return ax


def _densities(ax: Axes, models: Mapping[str, NonlinearICA], x: Array, name: str) -> Axes:
    """n = 1: the histogram of the data and p(x) of each model on a grid."""
    ax.hist(x[:, 0], _bins(x), density=True, color=LIGHT, label="observed")
    margin = 0.05 * np.ptp(x) or 1.0
    grid = np.linspace(x.min() - margin, x.max() + margin, 501)[:, None]
    for (label, model), style in zip(models.items(), _styles(models), strict=True):
        p = np.exp(log_likelihood(model, grid, gradient=False).per_observation)
        ax.plot(grid[:, 0], p, color=style.colour, linestyle=style.line, linewidth=1.8, label=label)
    ax.set(xlabel=name, ylabel="density", xlim=(grid[0, 0], grid[-1, 0]))
    _legend(ax, ["observed", *models])
    return ax


def _marks(models: Mapping[str, NonlinearICA], n: int) -> str:
    """What `_densities`, `_curve` and `_wireframe` draw, in words."""
    if n == 1:
        return "lines: the density p(x) of the model"
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


def _curve(ax: Axes, model: NonlinearICA, view: _View, label: str, style: _Style) -> None:
    """m = 1: g(z) with its band, which lies under the data."""
    from matplotlib.patches import PathPatch

    g = view(model.decoder(model.theta, np.linspace(-REACH, REACH, 701)[:, None]))
    band = _swept_disc(g, BAND * math.sqrt(model.sigma2))
    ax.add_patch(PathPatch(band, facecolor=style.colour, edgecolor="none", alpha=0.2, zorder=0.5))
    every = np.flatnonzero(np.isin(np.linspace(-350, 350, 701).round(), np.arange(-200, 201, 100)))
    ax.plot(*g.T, color=style.colour, linestyle=style.line, linewidth=style.width, marker=style.marker,
            markevery=every.tolist(), markersize=6.5, markeredgecolor="white", zorder=style.layer,
            label=label)  # fmt: skip


def _wireframe(ax: Axes, model: NonlinearICA, view: _View, label: str, style: _Style, per_axis: int) -> None:
    """m >= 2: so many grid lines of each of the first two latent coordinates, those at 0 thicker."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle

    along, levels = np.linspace(-GRID, GRID, 81), np.linspace(-GRID, GRID, per_axis)
    z = np.zeros((2, len(levels), len(along), model.latent_dim))
    z[0, ..., 0], z[0, ..., 1] = levels[:, None], along
    z[1, ..., 1], z[1, ..., 0] = levels[:, None], along
    g = view(model.decoder(model.theta, z.reshape(-1, model.latent_dim))).reshape(2, len(levels), -1, 2)
    widths = np.where(levels == 0.0, 1.8, 0.8)
    for lines, line in zip(g, ("-", (0, (4, 1.5))), strict=True):
        ax.add_collection(
            LineCollection(list(lines), colors=style.colour, linewidths=widths, linestyles=line)
        )
    unit = np.eye(model.latent_dim)[:2]
    marked = view(model.decoder(model.theta, np.concatenate([0.0 * unit[:1], GRID * unit, -GRID * unit])))
    ax.plot(*marked.T, linestyle="none", color=style.colour, marker=style.marker, markersize=6.5,
            markeredgecolor="white", label=label, zorder=2.6)  # fmt: skip
    radius = BAND * math.sqrt(model.sigma2)
    ax.add_patch(Circle(tuple(marked[0]), radius, facecolor=style.colour, alpha=0.35, zorder=2.5))


def _swept_disc(points: Array, radius: float) -> Any:
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
    placed = (disc.vertices[None] * radius + points[:, None]).reshape(-1, 2)
    return Path.make_compound_path(sides, Path(placed, np.tile(disc.codes, len(points))))


# ---------------------------------------------------------------------------------------------------
# The latent space
# ---------------------------------------------------------------------------------------------------


def latent(mean: Any, *, truth: Any = None, ax: Axes | None = None) -> Axes:
    """Draw the latent space: posterior means, against the truth where it is known.

    With a truth the means are first turned by the best orthogonal map, which the model cannot identify.

    - m = 1: a histogram with the prior N(0, 1); with a truth, the means against it.
    - m >= 2: the first two coordinates with the circles of 1, 2 and 3 standard deviations of the prior,
      coloured by the first coordinate of the truth.

    Posterior means vary less than the latents do, by the mean posterior variance.

    Parameters
    ----------
    mean : array_like (N, m)
        Posterior means, as of `refica.posterior`.
    truth : array_like (N, m), optional
        The latents behind the data.
    ax : Axes, optional

    Raises
    ------
    ImportError
        If ax is None and matplotlib is missing.
    TypeError, ValueError
        For arrays that are not finite or not of the same shape.
    """
    mean = check_array("mean", mean, ("N", "m"))
    note = ""
    if truth is not None:
        truth = check_array("truth", truth, mean.shape)
        removed = "sign" if mean.shape[1] == 1 else "rotation or reflection"
        note = f"R² = {recovery(truth, mean).procrustes_r2:.4f} after the best {removed}"
        mean = mean @ procrustes(truth, mean)
    ax = _axes(ax)
    if mean.shape[1] > 1:
        return _latent_plane(ax, mean, truth, note)
    return _latent_line(ax, mean[:, 0]) if truth is None else _latent_pairs(ax, mean[:, 0], truth[:, 0], note)


def _latent_line(ax: Axes, mean: Array) -> Axes:
    ax.hist(mean, _bins(mean), density=True, color=LIGHT, label="posterior means")
    z = np.linspace(-REACH, REACH, 401)
    p = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    ax.plot(z, p, color="#000000", linestyle=(0, (4, 2)), linewidth=1.8, label="prior N(0, 1)")
    ax.set(xlabel="latent z (standard deviations of the prior)", ylabel="density")
    _legend(ax, ["posterior means", "prior N(0, 1)"])
    return ax


def _latent_pairs(ax: Axes, mean: Array, truth: Array, note: str) -> Axes:
    both = np.concatenate([mean, truth])
    ends = np.array([both.min(), both.max()])
    ax.plot(ends, ends, color="#000000", linewidth=1.0, zorder=1.5, label="mean = truth")
    ax.scatter(truth, mean, s=_marker_size(len(mean)), color="#0072B2", alpha=0.6, linewidths=0,
               label="observations")  # fmt: skip
    ax.set_aspect("equal")
    ax.set(xlabel="true z", ylabel="posterior mean of z")
    _legend(ax, ["observations", "mean = truth"], note)
    return ax


def _latent_plane(ax: Axes, mean: Array, truth: Array | None, note: str) -> Axes:
    shade: dict[str, Any] = {"color": "#0072B2"}
    if truth is not None:
        shade = {"c": truth[:, 0], "cmap": "viridis", "vmin": -2.5, "vmax": 2.5}
    points = ax.scatter(*mean[:, :2].T, s=1.4 * _marker_size(len(mean)), linewidths=0, label="posterior means",
                        **shade)  # fmt: skip
    if truth is not None:
        ax.figure.colorbar(points, ax=ax, shrink=0.8, extend="both").set_label("true z1")
    turn = np.linspace(0.0, 2.0 * np.pi, 181)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    prior = "prior: 1, 2, 3 standard deviations"
    for radius in (3, 2, 1):
        ax.plot(*(radius * circle), color="#000000", linestyle=(0, (4, 2)), linewidth=1.0, label=prior)
    limit = max(3.2, 1.05 * float(np.abs(mean[:, :2]).max()))
    ax.set_aspect("equal")
    ax.set(xlabel="posterior mean of z1", ylabel="posterior mean of z2", xlim=(-limit, limit),
           ylim=(-limit, limit))  # fmt: skip
    _legend(ax, ["posterior means", prior], note)
    return ax


# ---------------------------------------------------------------------------------------------------
# Learning curves
# ---------------------------------------------------------------------------------------------------


def learning_curves(
    histories: Mapping[str, Sequence[Step]], *, reference: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the objective per observation against the seconds since the start of each fit.

    The objectives need not be the same quantity: a log-likelihood and an ELBO are, where they meet, an
    upper and a lower one. The vertical axis shows the ends well and cuts off the first steps.

    Parameters
    ----------
    histories : mapping of str to sequence of Step
        By the label in the legend; each with at least one step.
    reference : float, optional
        The truth's log-likelihood per observation, as a horizontal line.
    ax : Axes, optional

    Raises
    ------
    ImportError
        If ax is None and matplotlib is missing.
    TypeError, ValueError
        If there is no history, one has no steps, or the reference is not a finite number.
    """
    if not histories or not all(len(history) for history in histories.values()):
        raise ValueError(f"histories must be one or more, each with steps, got {dict(histories)!r}")
    if reference is not None:
        reference = check_number("reference", reference)
    ax = _axes(ax)
    curves = {
        label: np.array([[step.seconds, step.objective] for step in history])
        for label, history in histories.items()
    }
    for (label, curve), style in zip(curves.items(), _styles(curves), strict=True):
        ax.plot(*curve.T, color=style.colour, linestyle=style.line, linewidth=1.6, label=label)
    if reference is not None:
        truth = _STYLES["truth"]
        ax.axhline(reference, color=truth.colour, linestyle=truth.line, linewidth=truth.width, label="truth")
    ends = [curve[-1, 0] for curve in curves.values()]
    if min(ends) > 0.0 and max(ends) > 5.0 * min(ends):
        ax.set_xscale("log")
    ax.set(xlabel="time (s)", ylabel="objective per observation (nats)",
           ylim=_legible(list(curves.values()), reference))  # fmt: skip
    _legend(ax, [*curves, *([] if reference is None else ["truth"])])
    return ax


def _legible(curves: Sequence[Array], reference: float | None) -> tuple[float, float]:
    """Limits of the objective: all that each curve shows in the last nine tenths of its steps."""
    tails = [curve[len(curve) // 10 :, 1] for curve in curves]
    shown = np.concatenate([*tails, [] if reference is None else [reference]])
    shown = shown[np.isfinite(shown)]
    if not len(shown):
        return 0.0, 1.0
    margin = 0.06 * float(np.ptp(shown)) or 0.1
    return float(shown.min()) - margin, float(shown.max()) + margin


# ---------------------------------------------------------------------------------------------------
# What all figures share
# ---------------------------------------------------------------------------------------------------


def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """Return the figure as a PNG image, cut to what is drawn.

    The same figure gives the same bytes (with the same version of matplotlib).
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.05)
    return buffer.getvalue()


def _new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that pyplot knows nothing of."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "refica[plot]"') from error
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(ax: Axes | None, shown: Array | None = None) -> Axes:
    """The given Axes, or new ones on a figure high enough for the points (K, 2) that are shown."""
    if ax is not None:
        return ax
    shape = 0.65 if shown is None else min(_shape(shown), 0.85)
    return _new_figure(6.4, 1.0 + 5.6 * shape).add_subplot()


def _shape(shown: Array) -> float:
    """Height of a frame in units of its width: that of the points on equal scales, where legible."""
    width, height = np.maximum(np.ptp(shown, axis=0), np.finfo(float).tiny)
    equal = 1.0 / WIDEST_EQUAL <= height / width <= WIDEST_EQUAL
    return float(np.clip(height / width, 0.4, 1.3)) if equal else 0.65


def _check_data(
    models: Mapping[str, NonlinearICA], x: Any, names: Sequence[str] | None
) -> tuple[Array, Sequence[str]]:
    if not models:
        raise ValueError("models must be one or more, by label, got none")
    dims = {label: model.data_dim for label, model in models.items()}
    n = next(iter(dims.values()))
    if set(dims.values()) != {n}:
        raise ValueError(f"models must have the same data_dim, got {dims}")
    names = [f"x{j + 1}" for j in range(n)] if names is None else list(names)
    if len(names) != n:
        raise ValueError(f"names must be {n}, one for each coordinate, got {len(names)}: {names}")
    return check_array("x", x, ("N", n)), names


def _styles(labels: Mapping[str, Any]) -> list[_Style]:
    spare = itertools.cycle(_SPARE)
    return [_STYLES.get(label) or next(spare) for label in labels]


def _view(x: Array, names: Sequence[str]) -> _View:
    """The plane of two coordinates, or of the first two principal components of the data."""
    n = x.shape[1]
    if n == 2:
        return _View(np.zeros(2), np.eye(2), (names[0], names[1]))
    centre = x.mean(axis=0)
    _U, S, Vt = np.linalg.svd(x - centre)
    S = np.concatenate([S, np.zeros(2)])
    share = S**2 / (np.sum(S**2) or 1.0)
    # The sign of an axis is arbitrary: the coordinate that counts most in it grows with it.
    axes = Vt[:2] * np.sign(Vt[[0, 1], np.abs(Vt[:2]).argmax(axis=1)])[:, None]
    first, second = (f"PC {j + 1} ({share[j]:.0%} of the variance)" for j in range(2))
    return _View(centre, axes.T, (first, second))


def _scatter(ax: Axes, points: Array, label: str, colour: str = GREY, scale: float = 1.0) -> None:
    size = scale * _marker_size(len(points))
    ax.scatter(*points.T, s=size, color=colour, linewidths=0, label=label, zorder=1)


def _marker_size(count: int) -> float:
    """Area of a marker in square points: smaller for more observations."""
    return float(np.clip(6000.0 / count, 3.0, 16.0))


def _bins(values: Array) -> Array:
    """Edges of a histogram: Rice's 2 ∛N bins for the central 99 %, and as wide ones for the rest.

    Rules for the whole range smooth too much where tails are long and folds of g put sharp peaks into the
    density of X.
    """
    low, high = np.quantile(values, [0.005, 0.995])
    central = max(10.0, 2.0 * float(np.cbrt(values.size)))
    bins = central * float(np.ptp(values)) / (high - low) if high > low else central
    return np.histogram_bin_edges(values, int(min(bins, MOST_BINS)))


def _frame(ax: Axes, shown: Array, labels: tuple[str, str]) -> None:
    """Limits that show the points (K, 2) and no more, equal scales where that is legible, labels."""
    low, high = shown.min(axis=0), shown.max(axis=0)
    margin = np.where(high > low, 0.05 * (high - low), 1.0)
    low, high = low - margin, high + margin
    width, height = high - low
    if max(width, height) <= WIDEST_EQUAL * min(width, height):
        ax.set_aspect("equal")
    ax.set(xlabel=labels[0], ylabel=labels[1], xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def _legend(ax: Axes, order: Sequence[str], note: str = "") -> None:
    """A legend above the axes, where it covers no data, in the given order."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    wide = sum(len(label) + 7 for label in order) > 80  # characters that fit above a figure of 6.4 inches
    columns = max(1, 80 // (max(map(len, order)) + 7)) if wide else len(order)
    ax.legend([handles[label] for label in order], order, title=note or None, ncols=columns,
              loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, alignment="left",
              borderaxespad=0.2, columnspacing=1.4, fontsize=9, title_fontsize=8)  # fmt: skip
    ax.spines[["top", "right"]].set_visible(False)
