"""The figures of `benchmarks.accuracy`: rules by colour, proposals by marker and line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks._integrals import DIMENSIONS, SIGMA2
from refica.plot.canvas import BLUE, GREY, new_figure

# Okabe and Ito (2008); what shares a colour differs in marker and line.
RULES = {
    "gauss_hermite": BLUE,
    "uniform_grid": "#009E73",
    "monte_carlo": "#E69F00",
    "sobol": "#D55E00",
}
PROPOSALS: dict[str, dict[str, Any]] = {
    "prior": {"marker": "o", "linestyle": ":", "markerfacecolor": "white"},
    "laplace": {"marker": "^", "linestyle": "--", "markerfacecolor": "white"},
    "modes": {"marker": "s", "linestyle": "-"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "Reference": {"color": "black", "marker": "*", "linestyle": "-", "markersize": 7},
    "ExactPiecewiseAffine": {"color": "black", "marker": "D", "linestyle": "none", "markersize": 5},
    "scipy quad": {"color": "#CC79A7", "marker": "x", "linestyle": "-"},
    "scipy dblquad": {"color": "#CC79A7", "marker": "x", "linestyle": "--"},
    "scipy cubature": {"color": "#CC79A7", "marker": "+", "linestyle": "-", "markersize": 6},
    "scipy qmc_quad": {"color": "#CC79A7", "marker": "1", "linestyle": ":", "markersize": 6},
}
LEAST, MOST = 1e-15, 10.0
"""Range of errors in nats; what lies outside is drawn on the border."""
KNOWN = 1e-11
"""Below, the truth itself may be what is off."""


def draw(cases: Sequence[dict[str, Any]], work: str) -> Any:
    """Return a figure with a row for each m and a column for each σ²; ``work`` is "evaluations" or "time"."""
    figure = new_figure(10.0, 13.0)
    axes = figure.subplots(len(DIMENSIONS), len(SIGMA2), sharex="row", sharey=True)
    handles: dict[str, Any] = {}
    for case in cases:
        ax = axes[DIMENSIONS.index(case["m"]), SIGMA2.index(case["sigma2"])]
        for name, curve in case["methods"].items():
            handles.setdefault(name, _curve(ax, name, curve, work))
        ax.axhspan(LEAST, KNOWN, color="#ececec", linewidth=0, zorder=0)
        ax.set(xscale="log", yscale="log", ylim=(LEAST / 4, MOST * 3))
        ax.set_title(f"m = {case['m']}, σ² = {case['sigma2']:g}", fontsize=9, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color=GREY, alpha=0.2, linewidth=0.5)
        ax.tick_params(labelsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("error of log p(x) (nats)")
    for ax in axes[-1]:
        ax.set_xlabel("evaluations of the decoder" if work == "evaluations" else "time (ms)")
    groups = [list(OTHERS), *([f"{rule} {proposal}" for rule in RULES] for proposal in PROPOSALS)]
    _legend(figure, handles, groups)
    return figure


def _legend(figure: Any, handles: dict[str, Any], groups: list[list[str]]) -> None:
    """A column above the panels for each group of names, those that are shown."""
    shown = [[name for name in group if name in handles] for group in groups]
    rows = max(map(len, shown))
    blank = type(next(iter(handles.values())))([], [], linestyle="none")
    names = [name for group in shown for name in [*group, *[""] * (rows - len(group))]]
    figure.legend(
        [handles.get(name, blank) for name in names],
        names,
        loc="outside upper left",
        ncols=len(groups),
        frameon=False,
        fontsize=9,
    )


def _curve(ax: Any, name: str, curve: dict[str, list[Any]], work: str) -> Any:
    rule, _, proposal = name.partition(" ")
    style = OTHERS.get(name) or {"color": RULES[rule], **PROPOSALS[proposal]}
    effort = np.array(curve["evaluations" if work == "evaluations" else "ms"], dtype=float)
    error = np.array(curve["error"], dtype=float)
    given = ~np.isnan(error)
    (line,) = ax.plot(
        effort[given],
        np.clip(error[given], LEAST, MOST),
        **{"markersize": 4, "linewidth": 1.0, "markeredgewidth": 0.9, **style},
    )
    return line
