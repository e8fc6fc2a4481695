"""Processes that share the jobs of a command, and end with it: at Ctrl-C too, or if it is killed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

__all__ = ["prompt_ctrl_c", "workers"]


class _Stopped(BaseException):
    """Ctrl-C, by another name: a fit catches KeyboardInterrupt, and evaluates its best model so far."""


@contextmanager
def prompt_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the block at once."""
    ours = threading.current_thread() is threading.main_thread()  # where Python delivers signals
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def stop(*_: Any) -> None:
        raise _Stopped

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except _Stopped:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def workers(jobs: int) -> Iterator[Executor | None]:
    """Processes for so many jobs, if more than one can run at a time; they end with the block, however that
    ends.

    Raises
    ------
    ChildProcessError
        If one of them dies.
    """
    count = min(jobs, _usable_cpus())
    if count == 1:
        yield None
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        _start(pool, count)
        yield pool
    except BaseException as error:  # Ctrl-C above all: nobody waits for jobs that have begun
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            words = "a process that did part of the work was killed; most likely memory ran out"
            raise ChildProcessError(words) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(pool: Executor, count: int) -> None:
    """Start the processes, with Ctrl-C blocked: they inherit that, so that none is hit while it starts."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(count):
            pool.submit(int)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it has ended, even if that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
