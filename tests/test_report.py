"""A page shows exactly the text that went in, and asks for nothing from elsewhere."""

import base64
import dataclasses
import html
import re
import struct
import zlib
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refica import report

NASTY = [
    "</p><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='x",
    "&amp; &lt; &#38; &nbsp &notit; &#13; &#x0;",
    "<!-- --> ]]> <![CDATA[ </style> </title> <plaintext>",
    "\nfirst line end, \r\n, \r, tab \t, trailing space ",
    "σ² ≤ 10⁻³, 日本語, עברית, 👩‍🔬, \u202e, \ufeff, \ufffe",
    "{title} {0} %s \\n \\",
    "",
]

# What HTML cannot hold: control characters but tab, line feed, carriage return; halves of surrogate pairs.
UNHOLDABLE = [*range(0x9), 0xB, 0xC, *range(0xE, 0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)]
REPLACED = dict.fromkeys(UNHOLDABLE, "\ufffd")

texts = st.one_of(
    st.sampled_from(NASTY),
    st.text(),
    st.text(alphabet="<>&\"'/=!-[]#;ampltscrip \n\r\t\x00\x85\ud800"),
)

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """The elements of a page in order, each as [tag, attributes, text directly and below it]."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self._open, self.outside = [], [], []
        self.feed(page)
        self.close()
        assert self._open == [], "elements that are not closed"

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2] += data
        if not self._open and data.strip():
            self.outside.append(data)

    def handle_comment(self, data):
        raise AssertionError("a comment")

    def all(self, tag):
        return [element for element in self.elements if element[0] == tag]

    def texts(self, tag):
        return [element[2] for element in self.all(tag)]


def png(width=300, height=150):
    """A minimal image, made by hand: signature, IHDR, IDAT, IEND."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def a_page(text="text"):
    """A page with every kind of block, and this text wherever text can be."""
    blocks = (
        report.heading(text),
        report.paragraph(text),
        report.code(text),
        report.table([text, "b"], [[text, "1"], ["c", text]], caption=text),
        report.figure(png(), alt=f"a{text}", caption=text),
        report.details(text, [report.heading(text, 3), report.details(text, [report.paragraph(text)])]),
    )
    return report.Page(text, blocks)


def shows(page, text):
    """Whether a parser finds the text in each of its places, and there alone."""
    try:
        reader = Reader(page)
    except AssertionError:
        return False
    seen = text.translate(REPLACED)
    tags = [element[0] for element in reader.elements]
    expected = {"script": 0, "p": 2, "img": 1, "table": 1, "td": 4, "th": 2, "details": 2, "title": 1}
    return (
        all(tags.count(tag) == count for tag, count in expected.items())
        and reader.outside == []
        and reader.texts("title") == reader.texts("h1") == reader.texts("h2") == reader.texts("h3") == [seen]
        and reader.texts("p") == [seen, seen]
        and reader.texts("code") == [seen]
        and reader.texts("th") == [seen, "b"]
        and reader.texts("td") == [seen, "1", "c", seen]
        and reader.texts("summary") == [seen, seen]
        and reader.texts("caption") == ([seen] if seen else [])
        and reader.texts("figcaption") == ([seen] if seen else [])
        and [image[1]["alt"] for image in reader.all("img")] == [f"a{seen}"]
    )


@given(texts)
@example("\r\n")
@example("&#13;")
@example("\ud800 is half a pair")
def test_every_text_comes_back_as_it_went_in(text):
    page = report.render(a_page(text))
    assert shows(page, text)
    assert page.encode("utf-8").decode("utf-8") == page
    assert "\r" not in page  # which a browser, other than Python's parser, reads as a line feed


@pytest.mark.parametrize(
    "fault",
    [
        lambda text: text,
        lambda text: html.escape(text, quote=False),
        lambda text: text.replace("<", "&lt;"),
        lambda text: html.escape(text.strip()),
        lambda text: html.escape(html.escape(text)),
    ],
)
def test_planted_faults_of_escaping_are_noticed(monkeypatch, fault):
    monkeypatch.setattr(report, "_escaped", fault)
    assert not all(shows(report.render(a_page(text)), text) for text in NASTY)


@given(texts)
def test_nothing_is_asked_for_from_elsewhere(text):
    reader = Reader(report.render(a_page(text)))
    for tag, attributes, _text in reader.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
        assert not any(name.startswith("on") for name in attributes)
        for name in attributes.keys() & {"src", "srcset", "href", "action", "data", "poster", "style"}:
            assert (tag, name) == ("img", "src")
            assert attributes[name].startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|http", report.STYLE)
    policy = next(a["content"] for _, a, _ in reader.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")
    assert "script" not in policy


def test_the_frame_of_the_page():
    page = report.render(a_page())
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert '<meta charset="utf-8">' in page
    assert page.endswith("</html>\n")
    assert report.render(a_page()) == page  # no time, no random number
    assert len(report.render(report.Page("empty", ()))) > 0


def test_blocks_stand_in_their_order():
    words = [f"word{i}" for i in range(5)]
    page = report.render(report.Page("t", tuple(map(report.paragraph, words))))
    assert Reader(page).texts("p") == words


def test_a_figure_is_embedded_whole_and_has_its_drawn_size():
    image = png(300, 150)
    reader = Reader(report.render(report.Page("t", (report.figure(image, "what it shows"),))))
    ((_tag, attributes, _text),) = reader.all("img")
    assert base64.b64decode(attributes["src"].partition(",")[2]) == image
    # 300 pixels at 150 per inch are 2 inches, 192 CSS pixels.
    assert (attributes["width"], attributes["height"]) == ("192", "96")
    assert attributes["alt"] == "what it shows"
    assert reader.all("figcaption") == []
    small = report.render(report.Page("t", (report.figure(image, "a", dpi=300),)))
    assert 'width="96" height="48"' in small


@pytest.mark.parametrize("image", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_what_is_no_png_is_refused(image):
    with pytest.raises(ValueError, match="png must be the bytes of a PNG image"):
        report.figure(image, "a")


def test_a_figure_without_description_or_resolution_is_refused():
    for alt in ("", "  \n"):
        with pytest.raises(ValueError, match="alt must describe the figure"):
            report.figure(png(), alt)
    with pytest.raises(ValueError, match="dpi must be a finite number > 0"):
        report.figure(png(), "a", dpi=0)


def sides(block):
    """The classes of the cells of a one-row table."""
    reader = Reader(report.render(report.Page("t", (block,))))
    head, body = ([attributes["class"] for _, attributes, _ in reader.all(tag)] for tag in ("th", "td"))
    assert body == head * (len(body) // len(head))  # a column has one side
    return head


def test_columns_of_numbers_are_on_the_right():
    numbers = ["-1.5", "1e-3", "+0.02 (0.01)", " .5", "3 s", "nan", "inf", "−2"]
    words = ["VAE", "", "converged", "-", "n/a", "nanny", "e5"]
    for cell in numbers + words:
        assert sides(report.table(["a"], [[cell]])) == ["right" if cell in numbers else "left"]
    # One word makes a column one of words; an empty cell decides nothing.
    assert sides(report.table(["a", "b"], [["1", ""], ["x", "2"]])) == ["left", "right"]
    assert sides(report.table(["a"], [])) == ["left"]


def test_sides_can_be_given():
    assert sides(report.table(["a", "b", "c"], [["1", "x", "2"]], left=(0, 2))) == ["left", "right", "left"]
    for left in ((3,), (-1,)):
        with pytest.raises(ValueError, match="left must be numbers from 0 to 2"):
            report.table(["a", "b", "c"], [], left=left)


def test_a_table_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="row 2 must have 2 cells, got 1"):
        report.table(["a", "b"], [["1", "2"], ["3"]])
    with pytest.raises(ValueError, match="columns must be at least one"):
        report.table([], [])


@pytest.mark.parametrize("level", [1, 7, 2.5, True, "2"])
def test_a_heading_of_another_level_is_refused(level):
    with pytest.raises((TypeError, ValueError), match="level must be"):
        report.heading("a", level)


def test_blocks_are_values():
    assert report.paragraph("a") == report.paragraph("a")
    block = report.table(["a"], [["1"]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        block.caption = "b"
    rows = [["1"]]
    block = report.table(["a"], rows)
    rows[0][0] = "2"
    assert block.rows == (("1",),)
