"""What a plugin may change of its process and would break the worker that serves it, or the next sample's call."""

from __future__ import annotations

import builtins
import decimal
import io
import os
import signal
import sys
from collections.abc import Callable
from operator import is_
from typing import Any

_STANDARD = sys.stdlib_module_names - {"sys", "__main__"}


class Ambience:
    """The process as it was before the first call.

    What the plugin sets while it is imported, and in its `_start`, is kept. What else it changes (variables of modules,
    other packages' functions, the environment, random states, signal handlers) stays as it leaves it, as in one
    process: it may have been set up for good at its first call.
    """

    def __init__(self):
        self._recursion = sys.getrecursionlimit()
        self._builtins = dict(vars(builtins))
        self._settings: list[tuple[Callable[[Any], object], Any]] = []
        self._decimal: Any = None
        self._functions: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._streams = [os.dup(descriptor) for descriptor in range(3)]
        self._identities = [_identity(descriptor) for descriptor in range(3)]
        # Buffered, whatever PYTHONUNBUFFERED says: a plugin that prints much must not wait for each line.
        self._out = sys.stdout = _opened(1)
        self._error = sys.stderr = _opened(2)

    def keep(self) -> None:
        """The plugin has started: what numbers and texts depend on is to stay as it is now."""
        self._recursion = sys.getrecursionlimit()
        self._settings = [
            (sys.setswitchinterval, sys.getswitchinterval()),
            (sys.set_int_max_str_digits, sys.get_int_max_str_digits()),
            (sys.settrace, sys.gettrace()),
            (sys.setprofile, sys.getprofile()),
        ]
        self._decimal = decimal.getcontext().copy()
        modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in _STANDARD]
        self._functions = [
            (vars(module), {name: value for name, value in vars(module).items() if callable(value)})
            for module in modules
        ]

    def restore(self) -> None:
        """Puts back functions of Python and its library, the recursion limit, how `decimal` rounds, limits of the
        interpreter, timers, standard streams and the working folder."""
        # The order matters: what comes later calls built-in functions, some levels deep.
        sys.setrecursionlimit(self._recursion)
        if vars(builtins) != self._builtins:
            vars(builtins).update(self._builtins)
        for names, functions in self._functions:
            if not all(map(is_, map(names.get, functions), functions.values())):
                names.update(functions)
        for put, value in self._settings:
            put(value)
        if self._decimal is not None:
            decimal.setcontext(self._decimal.copy())
        # A timer that fires in a later call would end the wrong sample.
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
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
