"""One self-contained HTML page: blocks of text, tables and embedded figures, and nothing from elsewhere.

A `Page` is a title and blocks; `render` writes it. Every text is escaped: what goes in is what a reader
sees, never markup. The page has no script and asks for no other resource, which it also tells the browser
(``default-src 'none'``), so that it opens offline and can be sent by mail.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from refica.validation import check_count, check_number

__all__ = ["Block", "Page", "code", "details", "figure", "heading", "output", "paragraph", "render", "table"]

PNG = b"\x89PNG\r\n\x1a\n"
CSS_PIXELS = 96
"""CSS pixels per inch."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading below the title: level 2 opens a section, 3 a part of one."""

    text: str
    level: int


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text whose spaces and line ends count."""

    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a program printed: spaces and line ends count."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under named columns; ``left`` says which columns are aligned left, not right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    left: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A PNG image with its description for those who cannot see it, a caption and a resolution."""

    png: bytes
    alt: str
    caption: str
    dpi: float


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks that are folded away under a summary (and unfolded in print)."""

    summary: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Heading | Paragraph | Code | Output | Table | Figure | Details


@dataclass(frozen=True, slots=True)
class Page:
    """A title and the blocks below it, in order."""

    title: str
    blocks: tuple[Block, ...]


def heading(text: str, level: int = 2) -> Heading:
    """Return a heading of level 2 to 6.

    Raises
    ------
    TypeError, ValueError
        For another level (1 is the page's title).
    """
    if check_count("level", level, minimum=2) > 6:
        raise ValueError(f"level must be 2 to 6, got {level}")
    return Heading(text, level)


def paragraph(text: str) -> Paragraph:
    """Return a paragraph; line ends in it are spaces."""
    return Paragraph(text)


def code(text: str) -> Code:
    """Return a block of text in which spaces and line ends are kept: a command, a message, JSON."""
    return Code(text)


def output(text: str) -> Output:
    """Return a block of what a program printed, which looks unlike the code that printed it."""
    return Output(text)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    left: Collection[int] | None = None,
) -> Table:
    """Return a table.

    Parameters
    ----------
    columns : sequence of str
        At least one.
    rows : sequence of sequence of str
        One cell per column each, as they are to be read.
    caption : str
    left : collection of int, optional
        The columns, from 0, that are aligned left, the others right; None aligns those right whose cells
        begin like numbers.

    Raises
    ------
    ValueError
        If a row does not fit the columns, or ``left`` names one that there is not.
    """
    head, body = tuple(columns), tuple(tuple(row) for row in rows)
    if not head:
        raise ValueError("columns must be at least one, got none")
    for number, row in enumerate(body, start=1):
        if len(row) != len(head):
            raise ValueError(f"row {number} must have {len(head)} cells, got {len(row)}: {row}")
    if left is None:
        left = [j for j in range(len(head)) if not _numeric([row[j] for row in body])]
    if not set(left) <= set(range(len(head))):
        raise ValueError(f"left must be numbers from 0 to {len(head) - 1}, got {sorted(left)}")
    return Table(head, body, caption, tuple(j in left for j in range(len(head))))


def figure(png: bytes, alt: str, caption: str = "", dpi: float = 150) -> Figure:
    """Return a figure, shown at the size at which it was drawn: an inch of it is an inch of the page.

    Parameters
    ----------
    png : bytes
        A PNG image, as of `refica.plot.figure_png`.
    alt : str
        What it shows, in words.
    caption : str
    dpi : float
        Its pixels per inch.

    Raises
    ------
    TypeError, ValueError
        If it is no PNG image, has no description, or dpi is not a number > 0.
    """
    if not png.startswith(PNG) or len(png) < 24:
        raise ValueError(f"png must be the bytes of a PNG image, got {png[:8]!r}")
    if not alt.strip():
        raise ValueError("alt must describe the figure, got no text")
    return Figure(png, alt, caption, check_number("dpi", dpi, above=0.0))


def details(summary: str, blocks: Sequence[Block]) -> Details:
    """Return blocks that unfold on request."""
    return Details(summary, tuple(blocks))


def render(page: Page) -> str:
    """Return the page as HTML5, to be written as UTF-8."""
    title = _escaped(page.title)
    body = "\n".join(map(_html, page.blocks))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escaped(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_escaped(text)}</p>"
        case Code(text):
            # The inner element keeps a first line end, which HTML drops right after <pre>.
            return f"<pre><code>{_escaped(text)}</code></pre>"
        case Output(text):
            return f'<pre class="output"><samp>{_escaped(text)}</samp></pre>'
        case Table():
            return _table_html(block)
        case Figure():
            return _figure_html(block)
        case Details(summary, blocks):
            inner = "\n".join(map(_html, blocks))
            return f"<details>\n<summary>{_escaped(summary)}</summary>\n{inner}\n</details>"
        case _:
            assert_never(block)


def _table_html(block: Table) -> str:
    sides = ["left" if left else "right" for left in block.left]

    def row(cells: tuple[str, ...], tag: str) -> str:
        each = zip(cells, sides, strict=True)
        inner = "".join(f'<{tag} class="{side}">{_escaped(cell)}</{tag}>' for cell, side in each)
        return f"<tr>{inner}</tr>"

    head, body = row(block.columns, "th"), "\n".join(row(cells, "td") for cells in block.rows)
    caption = f"<caption>{_escaped(block.caption)}</caption>\n" if block.caption else ""
    # Its own scroll bar, lest a wide table widen the page on a small screen.
    return (
        f'<div class="wide">\n<table>\n{caption}<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table>\n</div>"
    )


def _figure_html(block: Figure) -> str:
    # A PNG file is its signature and then IHDR: length (4), name (4), width (4), height (4), big-endian.
    pixels = (int.from_bytes(block.png[start : start + 4], "big") for start in (16, 20))
    width, height = (round(count * CSS_PIXELS / block.dpi) for count in pixels)
    data = base64.b64encode(block.png).decode("ascii")
    caption = f"\n<figcaption>{_escaped(block.caption)}</figcaption>" if block.caption else ""
    return (
        f'<figure>\n<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{_escaped(block.alt)}">{caption}\n</figure>'
    )


def _numeric(cells: Sequence[str]) -> bool:
    """Whether every cell that is not blank begins like a number: ``-1.5``, ``1e-3``, ``+.02 (.01)``."""
    filled = [cell for cell in cells if cell.strip()]
    return bool(filled) and all(re.match(r"\s*[-+−]?(\.?\d|nan\b|inf\b)", cell) for cell in filled)


def _escaped(text: str) -> str:
    """The text as HTML for content and for quoted attributes.

    Characters that HTML cannot hold (control characters, lone surrogates) become U+FFFD; a carriage
    return, which a parser would turn into a line feed, is written as a reference.
    """
    return html.escape(UNPRINTABLE.sub("\ufffd", text)).replace("\r", "&#13;")


UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light; }
body { max-width: 54rem; margin: 2rem auto 4rem; padding: 0 1.25rem; background: #fff; color: #1a1a1a;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1, h2, h3, h4, h5, h6 { line-height: 1.25; margin: 2.2em 0 .6em; break-after: avoid; }
h1 { font-size: 1.7rem; margin-top: 0; }
h2 { font-size: 1.25rem; border-bottom: 1px solid #ccc; padding-bottom: .25em; }
h3, h4, h5, h6 { font-size: 1.05rem; }
p { margin: .7em 0; overflow-wrap: anywhere; }
pre { background: #f5f5f5; padding: .8em 1em; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
pre.output { background: none; border-left: 3px solid #bbb; }
code, samp { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.wide { overflow-x: auto; margin: 1.2em 0; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .35em .7em; border-bottom: 1px solid #ddd; vertical-align: baseline; }
thead th { border-bottom: 1.5px solid #1a1a1a; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; }
td.right, td:first-child { white-space: nowrap; }
.left { text-align: left; }
.right { text-align: right; }
caption, figcaption { color: #444; font-size: .85rem; line-height: 1.45; text-align: left; }
caption { caption-side: bottom; padding-top: .7em; }
figure { margin: 1.5em 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { margin-top: .5em; }
summary { cursor: pointer; font-weight: 600; }
details { margin: 1em 0; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10.5pt; }
  .wide { overflow: visible; }
  pre { white-space: pre-wrap; }
  tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; }
}
"""
