"""How a fit is watched: its clock, its callback, a line of progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from refica.fit.result import Step

__all__ = ["Callback", "Watch"]

Callback = Callable[[Step], object]

LINE_SECONDS = 5.0
"""Time between lines of progress where they pile up: in a file, or piped to another program."""

REWRITE_SECONDS = 0.1
"""Time between changes of the line on a terminal."""

CLEAR = "\r\x1b[K"
"""Back to the start of the line, and erase it."""


class Watch:
    """Sees every step: shows it, tells the callback, and knows whether that asked to stop.

    Parameters
    ----------
    callback : callable, optional
        Called with each `Step`; a true return value stops the fit.
    verbose : bool
        Whether to show progress: a line that is rewritten on a terminal, a line every few seconds elsewhere.
    stream : text stream, optional
        Where progress goes; None is stderr.

    Attributes
    ----------
    stopped : bool
        Whether the callback has asked to stop.
    """

    def __init__(
        self, callback: Callback | None = None, verbose: bool = False, stream: TextIO | None = None
    ) -> None:
        self.stopped = False
        self._callback = callback
        self._stream = (stream or sys.stderr) if verbose else None
        self._rewrites = self._stream is not None and self._stream.isatty()
        self._began = time.perf_counter()
        self._shown = -LINE_SECONDS

    def seconds(self) -> float:
        """Seconds that the fit has taken, those before an interruption included."""
        return time.perf_counter() - self._began

    def resume(self, seconds: float) -> None:
        """Count from the seconds that a fit had taken when it was interrupted."""
        self._began = time.perf_counter() - seconds
        self._shown = seconds - LINE_SECONDS

    def sees(self, step: Step) -> bool:
        """Return whether the fit is to stop after this step."""
        if self._stream is not None:
            self._show(self._stream, step)
        if self._callback is not None and self._callback(step):
            self.stopped = True
        return self.stopped

    def close(self) -> None:
        """End the line of progress that was being rewritten."""
        if self._stream is not None and self._rewrites:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, stream: TextIO, step: Step) -> None:
        if step.seconds - self._shown < (REWRITE_SECONDS if self._rewrites else LINE_SECONDS):
            return
        self._shown = step.seconds
        words = (
            f"refica: iteration {step.iteration}: {step.objective:.6f} nats per observation, "
            f"sigma2 {step.sigma2:.4g}, {step.seconds:.0f} s"
        )
        stream.write(f"{CLEAR}{words}" if self._rewrites else f"{words}\n")
        stream.flush()
