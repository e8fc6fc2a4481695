"""The figure of `benchmarks.coverage`: reported against true error, a panel for each integrator."""

from __future__ import annotations

from typing import Any

import numpy as np

from refica.plot.canvas import BLUE, GREY, new_figure

LEAST, MOST = 1e-18, 1e6
"""Range of both axes in nats; what lies outside is drawn on the border."""

COLUMNS = 4
CONVERGED, OTHER = BLUE, "#D55E00"


def draw(outcomes: dict[str, list[Any]]) -> Any:
    """Return the figure, of the cases whose truth is known well enough to say covered or missed."""
    found = {name: [o for o in rows if o.covered or o.missed] for name, rows in outcomes.items()}
    found = {name: rows for name, rows in found.items() if rows}
    height = -(-len(found) // COLUMNS)
    figure = new_figure(10.0, 0.6 + 2.35 * height)
    axes = figure.subplots(height, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for ax in axes.ravel()[len(found) :]:
        ax.set_visible(False)
    for ax, (name, rows) in zip(axes.ravel(), found.items(), strict=False):
        _panel(ax, name, rows)
    for ax in axes[:, 0]:
        ax.set_ylabel("reported error (nats)")
    for column in range(COLUMNS):
        ax = [ax for ax in axes[:, column] if ax.get_visible()][-1]
        ax.set_xlabel("true error (nats)")
        ax.tick_params(labelbottom=True)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=9
    )
    return figure


def _panel(ax: Any, name: str, rows: list[Any]) -> None:
    true = np.clip([o.greatest for o in rows], LEAST, MOST)
    reported = np.clip([o.reported for o in rows], LEAST, MOST)
    converged = np.array([o.converged for o in rows])
    line = np.array([LEAST, MOST])
    ax.fill_between(line, LEAST, line / 10.0, color="#e8e8e8", linewidth=0, label="gross miss")
    ax.plot(line, line, color="black", linewidth=0.8, label="reported = true")
    style: dict[str, Any] = {"linestyle": "none", "rasterized": True}
    ax.plot(
        true[~converged], reported[~converged], "x", color=OTHER, markersize=2.5, markeredgewidth=0.6,
        label="not converged, and says so", **style,
    )  # fmt: skip
    ax.plot(
        true[converged], reported[converged], "o", color=CONVERGED, markersize=2.2, markeredgewidth=0,
        alpha=0.6, label="claims to have converged", **style,
    )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=(LEAST, MOST), ylim=(LEAST, MOST))
    ticks = [1e-16, 1e-12, 1e-8, 1e-4, 1.0, 1e4]
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)
    ax.minorticks_off()
    ax.tick_params(labelsize=7)
    ax.set_title(name, fontsize=8.5, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=GREY, alpha=0.15, linewidth=0.5)
