"""The processes of ``refica compare``: no more than jobs or processors, and gone with the command."""

import os
import signal
import subprocess
import sys
import time

import pytest

from refica.cli import BAD_DATA, NOT_CONVERGED, main
from refica.cli import compare as compare_command
from refica.cli import workers as module
from refica.cli.workers import prompt_ctrl_c, workers

POSIX = pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX's")

PROMPT = 5.0
"""Seconds within which a command ends on a busy machine; it takes half of one alone."""

COMMAND = "import sys; from refica.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(("jobs", "cpus"), [(1, 8), (11, 1)])
def test_one_job_or_one_processor_needs_no_processes(jobs, cpus, monkeypatch):
    monkeypatch.setattr(module, "_usable_cpus", lambda: cpus)
    with workers(jobs) as executor:
        assert executor is None


def test_there_are_no_more_processes_than_can_work(monkeypatch):
    monkeypatch.setattr(module, "_usable_cpus", lambda: 2)
    with workers(11) as executor:
        found = set(executor.map(worker, range(11)))
    assert 1 <= len({pid for pid, _ in found}) <= 2
    assert {handler for _, handler in found} == {signal.SIG_IGN}


def worker(job):
    return os.getpid(), signal.getsignal(signal.SIGINT)


def test_at_least_one_processor_is_usable():
    assert 1 <= module._usable_cpus() <= os.cpu_count()


def test_a_worker_that_dies_is_an_error_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_usable_cpus", lambda: 2)
    monkeypatch.setattr(
        compare_command, "compare", lambda *arguments: arguments[-1].submit(os._exit, 1).result()
    )
    assert main(["compare", "--data", "iris", "--out", str(tmp_path / "out")]) == BAD_DATA
    err = capsys.readouterr().err
    assert "a process that did part of the work was killed" in err
    assert err.count("\n") == 1


def test_an_error_in_a_worker_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(module, "_usable_cpus", lambda: 2)

    def work():
        with workers(2) as executor:
            executor.submit(time.sleep, 60.0)
            executor.submit(int, "one").result()

    began = time.monotonic()
    with pytest.raises(ValueError, match="invalid literal"):
        work()
    assert time.monotonic() - began < 30.0


@POSIX
def test_ctrl_c_is_not_taken_for_the_end_of_a_fit():
    def a_fit():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)
        except KeyboardInterrupt:
            return "the best so far"

    assert a_fit() == "the best so far"
    with pytest.raises(KeyboardInterrupt), prompt_ctrl_c():
        pytest.fail(a_fit())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@POSIX
@pytest.mark.parametrize("after", [0.0, 3.0])
@pytest.mark.parametrize("send", [os.killpg, os.kill])
def test_ctrl_c_ends_the_command_and_its_processes(after, send, tmp_path):
    """From a terminal it reaches all of them, from another program the first; while they start or later."""
    command = running(tmp_path)
    time.sleep(after)
    began = time.monotonic()
    send(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert time.monotonic() - began < PROMPT
    assert (command.returncode, out, err) == (NOT_CONVERGED, "", "refica: interrupted\n")
    assert is_gone(command.pid)


@POSIX
def test_the_processes_end_when_the_command_is_killed(tmp_path):
    command = running(tmp_path)
    time.sleep(3.0)
    command.kill()
    assert command.communicate(timeout=60) == ("", "")
    assert is_gone(command.pid)


def running(tmp_path):
    """The command, a process group of its own, when it has begun to fit."""
    arguments = ["compare", "--data", "iris", "--out", str(tmp_path)]
    command = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert command.stderr.readline() == "refica: fitting all of the data, and 10 folds\n"
    return command


def is_gone(group):
    """Whether the processes of a group end within a moment."""
    until = time.monotonic() + PROMPT
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
