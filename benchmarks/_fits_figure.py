"""The figure of `benchmarks.fits`: how far each fit is from the truth on fresh data."""

from __future__ import annotations

import statistics
from typing import Any

from refica.plot.canvas import BLUE, GREY, new_figure

LEAST, MOST = -0.5, 0.05
"""Range in nats; what lies below is drawn on the border as an arrow."""

SHOWN = {"VAE": ("#D55E00", "s", 0.2), "l-bfgs": (BLUE, "o", -0.2)}
"""Colour, marker and place beside the middle of a row."""


def draw(rows: list[dict[str, Any]], gap: float, N: int) -> Any:
    """Return the figure: a dot for each seed, a bar at their median, the band that is allowed."""
    settings = list(dict.fromkeys(row["setting"] for row in rows if row["row"] in SHOWN))
    figure = new_figure(8.0, 1.0 + 0.42 * len(settings))
    ax = figure.subplots()
    for place, setting in enumerate(settings):
        fits = [row for row in rows if row["setting"] == setting and row["row"] in SHOWN]
        allowed = -gap - max(row["p"] for row in fits) / (2 * N)
        ax.barh(
            place, -allowed, left=allowed, height=0.8, color="#e3e3e3", linewidth=0,
            label="allowed: .05 + p/2N" if place == 0 else None,
        )  # fmt: skip
        for name, (colour, marker, beside) in SHOWN.items():
            values = [max(row["to_truth"], LEAST) for row in fits if row["row"] == name]
            if not values:
                continue
            outside = [value for value in values if value == LEAST]
            inside = [value for value in values if value > LEAST]
            y = place + beside
            ax.plot(
                inside, [y] * len(inside), marker, color=colour, markersize=4.5, linestyle="none", alpha=0.7,
                label={"l-bfgs": "direct maximum likelihood"}.get(name, name) if place == 0 else None,
            )  # fmt: skip
            ax.plot(outside, [y] * len(outside), "<", color=colour, markersize=5, linestyle="none")
            middle = statistics.median(row["to_truth"] for row in fits if row["row"] == name)
            if middle > LEAST:
                ax.plot([middle] * 2, [y - 0.18, y + 0.18], color="black", linewidth=1.6)
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(settings)), settings)
    ax.invert_yaxis()
    ax.set_xlim(LEAST - 0.01, MOST)
    ax.set_xlabel(
        "held-out log-likelihood per observation above the truth's (nats)\n"
        "bars: medians over seeds; triangles: further below"
    )
    ax.grid(axis="x", color=GREY, alpha=0.2, linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=9
    )
    return figure
