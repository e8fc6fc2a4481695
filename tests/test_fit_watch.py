"""Progress on stderr: a line that is rewritten on a terminal, plain lines elsewhere, silence by default."""

import io

import fitting
import pytest

import refica as ri
from refica.fit.result import Step
from refica.fit.watch import Watch


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def shown(stream, times, callback=None):
    """What a watch writes of steps at these seconds."""
    watch = Watch(callback, verbose=True, stream=stream)
    for number, seconds in enumerate(times, start=1):
        watch.sees(Step(number, -1.25, 0.01, seconds))
    watch.close()
    return stream.getvalue()


def test_plain_lines_come_every_few_seconds():
    text = shown(io.StringIO(), [0.0, 0.1, 4.9, 5.0, 9.0, 10.5])
    assert text.splitlines() == [
        f"refica: iteration {number}: -1.250000 nats per observation, sigma2 0.01, {seconds} s"
        for number, seconds in [(1, 0), (4, 5), (6, 10)]
    ]


def test_on_a_terminal_one_line_is_rewritten():
    text = shown(Terminal(), [0.0, 0.05, 0.2])
    assert text.count("\n") == 1
    assert text.endswith("0 s\n")
    assert text.split("\r\x1b[K")[1:] == [
        "refica: iteration 1: -1.250000 nats per observation, sigma2 0.01, 0 s",
        "refica: iteration 3: -1.250000 nats per observation, sigma2 0.01, 0 s\n",
    ]


def test_a_watch_that_resumes_goes_on_counting():
    watch = Watch()
    watch.resume(100.0)
    assert 100.0 <= watch.seconds() < 200.0


@pytest.mark.parametrize("answer", [None, False, 0])
def test_a_false_answer_does_not_stop(answer):
    watch = Watch(lambda step: answer)
    assert not watch.sees(Step(1, 0.0, 1.0, 0.0))
    assert not watch.stopped


def test_a_true_answer_stops_for_good():
    watch = Watch(lambda step: step.iteration == 1)
    assert watch.sees(Step(1, 0.0, 1.0, 0.0))
    assert watch.sees(Step(2, 0.0, 1.0, 0.0))
    assert watch.stopped


@pytest.mark.parametrize("verbose", [False, True])
def test_fits_are_silent_unless_asked(verbose, capsys):
    truth, x = fitting.curve(10)
    ri.fit_mle(truth, x, n_starts=1, max_iter=3, verbose=verbose)
    ri.fit_vae(ri.initial_vae(truth, x, 2), x, max_iter=3, verbose=verbose)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("refica: iteration") == (2 if verbose else 0)
