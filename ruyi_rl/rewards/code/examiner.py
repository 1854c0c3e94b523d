"""The parent's side of the trusted process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, Self

from ruyi_rl.rewards.code import trusted
from ruyi_rl.rewards.code.instrumentation import Examination

Answer = tuple[str, Any, Any]
"""What the program answered: ("value", value, arguments after the call or None), the same as "iterator" with a list of
its items, ("raise", class name, message) or (a reason code, None, message) where there will be none."""


class ExaminerFailure(RuntimeError):
    """The trusted process itself failed, which says nothing about the program."""


class Examiner:
    """Runs compiled tests in a process of its own, started at the first of them; use it in a `with` block."""

    def __init__(self) -> None:
        self._end: weakref.finalize | None = None
        self._channel: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and a test that may be running."""
        if self._end is not None:
            self._channel.close()
            self._end()
            self._end = self._channel = None

    def examine(
        self, tests: Examination, ask: Callable[[str, list, dict], Answer], seconds: float, stop: bool
    ) -> tuple[str, Any]:
        """Run tests against a program.

        Args:
            tests: compiled tests.
            ask: calls a function of the program: name, arguments, keyword arguments.
            seconds: for everything, the program's answers included.
            stop: end at the first test that fails.

        Returns:
            ("verdict", {passed, failed, whole, reason, message}), ("unusable", why) where the tests themselves are
            broken, ("timeout", why), or ("crash", why) where the tests ended without a verdict.

        Raises:
            ExaminerFailure: the process was killed from outside.
        """
        if self._end is None:
            self._start()
        task = {
            "setup": tests.setup, "steps": tests.steps, "function": tests.function, "functions": tests.functions,
            "exceptions": tests.exceptions, "texts": tests.texts, "seconds": seconds, "stop": stop,
        }  # fmt: skip
        result = None
        deadline = time.monotonic() + seconds
        try:
            trusted.send(self._channel, task)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._channel.settimeout(left)
                kind, *content = trusted.receive(self._channel)
                if kind == "ended":
                    return result or ("crash", f"the tests ended without a verdict, with exit status {content[0]}")
                if kind == "call":
                    trusted.send(self._channel, ask(*content))
                else:
                    result = (kind, *content)
        except TimeoutError:
            self.close()
            return result or ("timeout", f"the tests took longer than {seconds:g} s")
        except (EOFError, ConnectionError) as error:
            self.close()
            raise ExaminerFailure("the process that runs the tests is gone") from error
        except BaseException:
            # Also where `ask` raises: the process waits for an answer that will not come.
            self.close()
            raise

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-P", trusted.__file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        theirs.close()
        self._end = weakref.finalize(self, _kill, process)


def _kill(process: subprocess.Popen) -> None:
    # A group of its own: this reaches the fork that runs a test, too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
