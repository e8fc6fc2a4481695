"""What all figures share: styles, figures without pyplot, projections, histograms, frames, legends.

Colours are those of Okabe and Ito (2008), told apart by readers of any colour vision; what must be told
apart also differs in line style or marker, for print in grey.
"""

# notation: x (N, n) data; a view maps R^n to the plane of the figure

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refica.model import NonlinearICA
from refica.validation import Array, check_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREY",
    "LIGHT",
    "LIGHT_BLUE",
    "TRUTH",
    "Style",
    "View",
    "aspect",
    "axes_for",
    "bins",
    "check_data",
    "figure_png",
    "frame",
    "legend",
    "marker_size",
    "new_figure",
    "scatter",
    "styles",
    "view_of",
]

WIDEST_EQUAL = 4.0
"""Up to this ratio of the ranges both axes have the same scale, in which the noise is round."""

MOST_BINS = 500
"""Most bins of a histogram, for data with far outliers."""

LEGEND_WIDTH = 80
"""Characters that fit above a figure of 6.4 inches, with 7 for each marker."""

BLUE, LIGHT_BLUE, GREY, LIGHT = "#0072B2", "#cce3f0", "#777777", "#c8c8c8"


class Style(NamedTuple):
    """How one model looks; where curves lie on each other, the broken and thinner ones are on top."""

    colour: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str
    width: float = 2.0
    layer: float = 2.0


TRUTH = Style("#000000", (0, (5, 3)), "s", 1.2, 2.4)

# What `refica compare` fits looks the same in all its figures; other labels take the spare styles in turn.
NAMED = {
    "truth": TRUTH,
    "linear": Style("#E69F00", (0, (6, 1.5, 1, 1.5)), "^", 2.0, 2.1),
    "direct MLE": Style(BLUE, "-", "o", 2.8),
    "VAE": Style("#D55E00", (0, (1.2, 1.2)), "D", 2.0, 2.2),
}
SPARE = (
    Style("#009E73", "-", "v"),
    Style("#CC79A7", (0, (5, 2)), "P"),
    Style("#56B4E9", (0, (6, 1.5, 1, 1.5)), "X"),
    Style(BLUE, (0, (1.2, 1.2)), "o"),
    Style("#D55E00", "-", "D"),
)


def styles(labels: Iterable[str]) -> list[Style]:
    """Return the style of each label."""
    spare = itertools.cycle(SPARE)
    return [NAMED.get(label) or next(spare) for label in labels]


def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """Return the figure as a PNG image, cut to what is drawn.

    The same figure gives the same bytes (with the same version of matplotlib).
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.05)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches that pyplot knows nothing of.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "refica[plot]"') from error
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def axes_for(ax: Axes | None, shown: Array | None = None) -> Axes:
    """Return the given Axes, or new ones on a figure high enough for the points (K, 2) to be shown."""
    if ax is not None:
        return ax
    height = 0.65 if shown is None else min(aspect(shown), 0.85)
    return new_figure(6.4, 1.0 + 5.6 * height).add_subplot()


def check_data(
    models: Mapping[str, NonlinearICA], x: Any, names: Sequence[str] | None
) -> tuple[Array, list[str]]:
    """Return x (N, n) and n names, checked against the models."""
    if not models:
        raise ValueError("models must be one or more, by label, got none")
    dims = {label: model.data_dim for label, model in models.items()}
    n = next(iter(dims.values()))
    if set(dims.values()) != {n}:
        raise ValueError(f"models must have the same data_dim, got {dims}")
    words = [f"x{j + 1}" for j in range(n)] if names is None else list(names)
    if len(words) != n:
        raise ValueError(f"names must be {n}, one for each coordinate, got {len(words)}: {words}")
    return check_array("x", x, ("N", n)), words


class View(NamedTuple):
    """The map x -> (x - centre) @ axes to the plane of the figure, and the labels of its axes."""

    centre: Array
    axes: Array
    labels: tuple[str, str]

    def __call__(self, points: Array) -> Array:
        """Return points (K, n) in the plane, (K, 2)."""
        return np.asarray((points - self.centre) @ self.axes)


def view_of(x: Array, names: Sequence[str]) -> View:
    """Return the plane of two coordinates, or of the first two principal components of the data."""
    n = x.shape[1]
    if n == 2:
        return View(np.zeros(2), np.eye(2), (names[0], names[1]))
    centre = x.mean(axis=0)
    # Not thin: one or two observations of n > 2 coordinates span no plane, but are drawn in one.
    _eigenvalues, vectors = np.linalg.eigh((x - centre).T @ (x - centre))
    axes = vectors[:, [-1, -2]]
    # The sign of an axis is arbitrary: the coordinate that counts most in it grows with it.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    total = float(np.sum((x - centre) ** 2)) or 1.0
    share = np.sum(((x - centre) @ axes) ** 2, axis=0) / total
    first, second = (f"PC {j + 1} ({share[j]:.0%} of the variance)" for j in range(2))
    return View(centre, axes, (first, second))


def scatter(ax: Axes, points: Array, label: str, colour: str = GREY, scale: float = 1.0) -> None:
    """Draw observations (N, 2), behind everything else."""
    size = scale * marker_size(len(points))
    ax.scatter(points[:, 0], points[:, 1], s=size, color=colour, linewidths=0, label=label, zorder=1)


def marker_size(count: int) -> float:
    """Return the area of a marker in square points: smaller for more observations."""
    return float(np.clip(6000.0 / count, 3.0, 16.0))


def bins(values: Array) -> list[float]:
    """Return edges of a histogram: Rice's 2 ∛N bins for the central 99 %, as wide ones for the rest.

    Rules for the whole range smooth too much where tails are long and folds of g put sharp peaks into the
    density of X.
    """
    low, high = np.quantile(values, [0.005, 0.995])
    central = max(10.0, 2.0 * float(np.cbrt(values.size)))
    count = central * float(np.ptp(values)) / (high - low) if high > low else central
    edges: list[float] = np.histogram_bin_edges(values, int(min(count, MOST_BINS))).tolist()
    return edges


def aspect(shown: Array) -> float:
    """Return height / width of a frame for the points (K, 2): on equal scales, where that is legible."""
    width, height = np.ptp(shown, axis=0)
    return float(np.clip(height / width, 0.4, 1.3)) if _equal_scales(width, height) else 0.65


def frame(ax: Axes, shown: Array, labels: tuple[str, str]) -> None:
    """Set limits that show the points (K, 2) and no more, equal scales where legible, and labels."""
    low, high = shown.min(axis=0), shown.max(axis=0)
    margin = np.where(high > low, 0.05 * (high - low), 1.0)
    if _equal_scales(*(high - low)):
        ax.set_aspect("equal")
    low, high = low - margin, high + margin
    ax.set(xlabel=labels[0], ylabel=labels[1], xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def _equal_scales(width: float, height: float) -> bool:
    return 0.0 < max(width, height) <= WIDEST_EQUAL * min(width, height)


def legend(ax: Axes, labels: Sequence[str], note: str = "") -> None:
    """Put a legend above the axes, where it covers no data, with these labels in this order."""
    handles, found = ax.get_legend_handles_labels()
    by_label = dict(zip(found, handles, strict=True))
    widths = [len(label) + 7 for label in labels]
    columns = len(labels) if sum(widths) <= LEGEND_WIDTH else max(1, LEGEND_WIDTH // max(widths))
    ax.legend(
        [by_label[label] for label in labels],
        list(labels),
        title=note or None,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        alignment="left",
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.4,
        fontsize=9,
        title_fontsize=8,
    )
    ax.spines[["top", "right"]].set_visible(False)
