"""Figures as small files."""

from __future__ import annotations

import io
from typing import Any

from refica.plot.canvas import figure_png

COLOURS = 256
"""Colours of the palette: a third of the size, and nothing that can be seen is lost."""


def small_png(figure: Any, dpi: int) -> bytes:
    """Return a figure as a PNG image with a palette."""
    from PIL import Image  # comes with matplotlib

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(figure_png(figure, dpi=dpi))).convert("RGB")
    image.quantize(COLOURS, Image.Quantize.FASTOCTREE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
