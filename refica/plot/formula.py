"""A formula, typeset by matplotlib's mathtext."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from refica.plot.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["formula"]

WIDTH, HEIGHT = 7.2, 0.62
"""Inches."""

SIZE = 14.0
"""Points of the letters, where the formula fits the width."""

INK = "#1a1a1a"


def formula(tex: str, ink: str = INK, bar: str | None = None) -> Figure:
    """Return a figure of one line of mathematics, with smaller letters where it would not fit.

    Parameters
    ----------
    tex : str
        With its dollar signs, in the part of TeX that mathtext knows.
    ink : str
        Colour of the formula.
    bar : str, optional
        Colour of a bar before it; None: no bar.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    figure = new_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("none")
    if bar is not None:
        figure.text(0.0, 0.5, "▌", color=bar, fontsize=26, va="center")
    text = figure.text(0.03, 0.5, tex, color=ink, fontsize=SIZE, va="center", math_fontfamily="cm")
    widest = 0.97 * figure.bbox.width
    figure.canvas.draw()
    extent = text.get_window_extent()
    if extent.width > widest:
        text.set_fontsize(math.floor(SIZE * widest / extent.width * 10.0) / 10.0)
    return figure
