"""SIGINT and SIGTERM: the first lets the current micro-step end and saves; a second stops at once."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

CAUGHT = (signal.SIGINT, signal.SIGTERM)
REPEAT_SECONDS = 1.0
"""Two signals this close are one: a launcher forwards the Ctrl-C that the terminal has sent to every process."""

RAISE_SECONDS = 0.05
"""After which a stop that a finaliser has swallowed is tried again."""


class StopNow(KeyboardInterrupt):
    """Raised where a signal stops the run; no `except Exception` of a library swallows it."""


class StepAbandoned(StopNow):
    """Raised on every rank in the middle of an optimiser step, where the ranks have agreed to stop."""


class StopSignal:
    """Context that turns signals into a request to stop.

    Outside `gently` sections the first signal raises `StopNow` where the program is.

    Args:
        announce: called with a line for the user when a signal comes.
    """

    def __init__(self, announce: Callable[[str], None] = lambda line: None):
        self.announce = announce
        self.number: int | None = None
        """The signal that was received, on this rank or, once ranks have agreed, on any."""
        self._gentle = False
        self._time = 0.0
        self._lost = False
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.number is not None

    @property
    def status(self) -> int:
        """128 + the signal's number."""
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in CAUGHT:
                self._previous[number] = signal.signal(number, self._receive)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            sys.unraisablehook = self._hook
        self._previous.clear()

    def gently(self) -> _Gently:
        """Context in which a first signal only sets `requested`; raises `StopNow` at its end if one came.

        Not where its `finished` was set: what it protects is done, and the signal stops what comes after it.
        """
        return _Gently(self)

    def check(self) -> None:
        """Raises `StopNow` if a signal came."""
        if self.requested:
            raise StopNow(signal.Signals(self.number or signal.SIGINT).name)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self.number is None
        if not first and now - self._time < REPEAT_SECONDS and not self._lost:
            return
        self._lost = False
        if first:
            self.number, self._time = number, now
        if first and self._gentle:
            self.announce(
                f"{signal.Signals(number).name}: finishing this micro-step and saving; once more stops at once"
            )
            return
        raise StopNow(signal.Signals(number).name)

    def _unraisable(self, unraisable: Any) -> None:
        """A finaliser cannot be left by an exception: what was raised in one is raised again a moment later."""
        if unraisable.exc_type is not StopNow:
            return self._hook(unraisable)
        self._lost = True
        main, number = threading.main_thread().ident, self.number or signal.SIGINT
        threading.Timer(RAISE_SECONDS, signal.pthread_kill, (main, number)).start()
        return None


class _Gently:
    def __init__(self, stop: StopSignal):
        self.stop, self.finished = stop, False

    def __enter__(self) -> Self:
        self.stop._gentle = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.stop._gentle = False
        if kind is None and not self.finished:
            self.stop.check()
