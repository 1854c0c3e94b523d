"""What a plugin may change of its process and would break the worker that serves it, or the next sample's call."""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys


class Ambience:
    """The process as it was before the first call.

    Everything else that a plugin changes (its modules' variables, the environment, random states, signal handlers)
    stays as it leaves it, as in one process: it may have been set up for good at its first call.
    """

    def __init__(self):
        self._recursion = sys.getrecursionlimit()
        self._builtins = dict(vars(builtins))
        self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._streams = [os.dup(descriptor) for descriptor in range(3)]
        self._identities = [_identity(descriptor) for descriptor in range(3)]
        # Buffered, whatever PYTHONUNBUFFERED says: a plugin that prints much must not wait for each line.
        self._out = sys.stdout = _opened(1)
        self._error = sys.stderr = _opened(2)

    def restore(self) -> None:
        """Puts back the built-in functions, the recursion limit, timers, standard streams and the working folder."""
        # The order matters: what comes later calls built-in functions, some levels deep.
        sys.setrecursionlimit(self._recursion)
        if vars(builtins) != self._builtins:
            vars(builtins).update(self._builtins)
        # A timer that fires in a later call would end the wrong sample.
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.fchdir(self._folder)
        for descriptor, kept in enumerate(self._streams):
            if _identity(descriptor) != self._identities[descriptor]:
                os.dup2(kept, descriptor, inheritable=True)
        self._out = sys.stdout = _flushed(self._out, 1)
        self._error = sys.stderr = _flushed(self._error, 2)


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _opened(descriptor: int) -> io.TextIOBase:
    return open(descriptor, "w", closefd=False, encoding="utf-8", errors="backslashreplace")


def _flushed(stream: io.TextIOBase, descriptor: int) -> io.TextIOBase:
    """The stream with nothing left to write; another one where the plugin has closed it."""
    if stream.closed:
        return _opened(descriptor)
    stream.flush()
    return stream
