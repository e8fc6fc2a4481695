"""The exercises page: every block of its lessons runs, its figures are there, its parser is strict."""

import html
import re

import pytest

from refica.cli import OK, main
from refica.exercises import QUICK, Effort
from refica.exercises.lesson import LESSONS, parse, read
from refica.exercises.run import work_through
from refica.report import Code, Figure, Output


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The quick page, as the command writes it."""
    path = tmp_path_factory.mktemp("exercises") / "new" / "page.html"
    assert main(["exercises", "--quick", "--out", str(path)]) == OK
    return path.read_text(encoding="utf-8")


def test_every_block_of_code_is_on_the_page_and_has_run(page):
    code = [piece.text for name in LESSONS for piece in read(name) if piece.kind == "python"]
    shown = [html.unescape(text) for text in re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)]
    assert shown[1:] == code
    printed = re.findall(r"<samp>(.*?)</samp>", page, re.DOTALL)
    silent = [text for text in code if "print(" not in text]
    assert len(printed) == len(code) - len(silent)
    for text in silent:
        assert "show(" in text


def test_the_numbers_by_hand_agree_with_those_of_refica(page):
    values = re.findall(r"by hand: ([-.\d]+)\nrefica: +([-.\d]+)", page)
    assert len(values) == 2
    for by_hand, ours in values:
        assert float(by_hand) == pytest.approx(float(ours), rel=1e-12)
    assert page.count("every component agrees") == 2
    assert float(re.search(r"largest relative difference: ([\d.e+-]+)", page)[1]) < 1e-11
    assert float(re.search(r"ELBO - KL\(q, posterior\): at most (\d[\d.e+-]+)", page)[1]) < 1e-8


def test_the_page_stands_alone_and_its_figures_are_described(page):
    assert page.count("data:image/png;base64,") == len(re.findall(r'alt="[^"]+"', page)) >= 18
    assert "http://" not in page
    assert "https://" not in page


def test_the_exercises_are_quoted_as_they_stand():
    quoted = " ".join(piece.text for name in LESSONS for piece in read(name) if piece.kind == "quotation")
    for words in ("Simulate the model (1).", "run SGD directly on the MLE?", "Design a VAE architecture"):
        assert words in quoted


def test_code_fits_the_width_of_the_page():
    """A line that is longer would have to be scrolled to, and could not be printed."""
    pieces = [piece for name in LESSONS for piece in read(name) if piece.kind == "python"]
    assert max(len(line) for piece in pieces for line in piece.text.splitlines()) <= 100


def test_a_lesson_is_read_piece_by_piece():
    lesson = parse("# A\n\n> b\n> c\n\nd\ne\n\n```python\nf = 1\n\ng = 2\n```\n## H\n\n```math\n$x$\n```\n")
    assert [(piece.kind, piece.text, piece.line) for piece in lesson] == [
        ("title", "A", 1),
        ("quotation", "b c", 3),
        ("prose", "d e", 6),
        ("python", "f = 1\n\ng = 2", 10),
        ("section", "H", 14),
        ("math", "$x$", 17),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```python\nx = 1\n", "line 1: the block of python does not end"),
        ("a\n\n```julia\n1\n```\n", "line 3: a block must be of python or math, got julia"),
        ("```\n1\n```\n", "got nothing"),
    ],
)
def test_a_lesson_that_is_not_well_formed_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_blocks_share_their_names_and_an_error_says_where():
    lesson = parse("```python\na = size\n```\n\n```python\nprint(a + 1)\n```\n")
    blocks = work_through(lesson, Effort(size=41))
    assert blocks == [Code("a = size"), Code("print(a + 1)"), Output("42")]
    with pytest.raises(ZeroDivisionError) as caught:
        work_through(parse("text\n\n```python\na = 1\na / 0\n```\n"), QUICK)
    assert caught.value.__notes__ == ["in the block of the lesson that begins at line 4"]
    assert caught.traceback[-1].lineno == 4  # counted from 0


def test_show_puts_a_figure_below_what_is_printed():
    text = "```python\nfrom matplotlib.figure import Figure\nshow(Figure(), 'empty')\nprint(1)\n```"
    code, printed, figure = work_through(parse(text), QUICK)
    assert isinstance(code, Code)
    assert printed == Output("1")
    assert isinstance(figure, Figure)
    assert (figure.alt, figure.caption) == ("empty", "empty")
