"""One confined program, seen from outside: requests in, outcomes out, and the clock."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from ruyi_rl.rewards.sandbox.exchange import Exchange, Reply
from ruyi_rl.rewards.sandbox.outcome import Outcome
from ruyi_rl.rewards.sandbox.plain import Colliding, Malformed, decode, encode
from ruyi_rl.rewards.sandbox.residences import Residence
from ruyi_rl.rewards.sandbox.slots import Slot

MAX_REQUEST = 256 << 20
"""Bytes of the arguments of one call."""
_MESSAGE = 300
_ANSWERS = ("value", "iterator", "exception", "memory", "missing", "unplain", "flood")


class Confined:
    """A program in its slot. Get one from `Sandbox.open`, use it from one thread at a time, and `close` it."""

    def __init__(self, program: str, slot: Slot, release: Callable[[], None]):
        self._program, self._slot, self._release = program, slot, release
        self._left = slot.options.seconds
        self._residence: Residence | None = None
        self._exchange: Exchange | None = None
        self._over: Outcome | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, function: str, args: Sequence = (), kwargs: Mapping[str, Any] | None = None) -> Outcome:
        """Call a function that the program defines; the first call runs the program's definitions first.

        State persists between the calls. After an outcome that ends the program (a timeout, a crash, definitions that
        raise …) every further call has the same outcome.

        Raises:
            Unplain, TooLarge: an argument that is no plain data, or is too large: the caller's mistake.
            SandboxFailure: the sandbox itself failed.
        """
        request = encode(("call", str(function), tuple(args), dict(kwargs or {})), MAX_REQUEST)
        printed = ""
        if self._over is None and self._residence is None:
            defined = replace(self._ask(encode(("define", self._program), MAX_REQUEST)), loading=True)
            if defined.kind != "value":
                self._finish(defined)
                return defined
            printed = defined.stdout
        if self._over is not None:
            return replace(self._over, stdout="", seconds=0.0)
        outcome = self._ask(request)
        return replace(outcome, stdout=printed + outcome.stdout) if printed else outcome

    def run(self, stdin: str = "") -> Outcome:
        """Run the program as a script, from a fresh state.

        Raises:
            TooLarge: more standard input than the program's folder could hold.
            SandboxFailure: the sandbox itself failed.
        """
        request = encode(("run", self._program, stdin), self._slot.options.disk_mb << 20)
        self._leave()
        outcome = self._ask(request, to_the_end=True)
        self._over = None
        return outcome

    def charge(self, seconds: float) -> None:
        """Take time off the program's clock: what its last answer has cost outside."""
        self._left -= seconds

    def close(self) -> None:
        """End the program and wait until nothing is left of it."""
        if not self._closed:
            self._closed = True
            try:
                self._leave()
            finally:
                self._release()

    def _ask(self, request: bytes, to_the_end: bool = False) -> Outcome:
        if self._closed:
            raise ValueError("this program is closed")
        if self._left <= 0:
            outcome = self._timeout()
            self._finish(outcome)
            return outcome
        if self._residence is None:
            options = self._slot.options
            memory = None if self._slot.cgroup is not None or not self._slot.confined else options.memory_mb << 20
            self._residence = self._slot.start()
            self._exchange = Exchange(self._residence, options.output_kb << 10, memory)
        began = time.monotonic()
        reply = self._exchange.ask(request, self._left, to_the_end)
        outcome = self._outcome(reply, to_the_end)
        # With the decoding: an answer can be made ready beforehand, and large.
        seconds = time.monotonic() - began
        self._left -= seconds
        outcome = replace(outcome, stdout=reply.stdout.decode("utf-8", "replace"), seconds=seconds)
        if reply.reason != "answer" or outcome.kind == "crash":
            self._finish(outcome)
        return outcome

    def _finish(self, outcome: Outcome) -> None:
        self._over = outcome
        self._leave()

    def _leave(self) -> None:
        residence, self._residence, self._exchange = self._residence, None, None
        if residence is not None:
            residence.end()

    def _timeout(self) -> Outcome:
        return Outcome("timeout", message=f"over {self._slot.options.seconds:g} s")

    def _outcome(self, reply: Reply, to_the_end: bool) -> Outcome:
        limits = self._slot.options
        if reply.reason == "flood":
            return Outcome("flood", message=f"more than {limits.output_kb} KiB of output")
        if reply.reason == "memory" or (reply.reason != "answer" and self._slot.killed_for_memory()):
            return Outcome("memory", message=f"over {limits.memory_mb} MiB")
        if reply.reason == "timeout":
            return self._timeout()
        if reply.frame is not None:
            answer = _answer(reply.frame)
            if answer is not None and not (to_the_end and answer.kind not in ("exception", "memory")):
                return answer
            if not to_the_end:
                return Outcome("crash", message="the answer is not one of the protocol's")
        return _ended(reply.status, to_the_end)


def _answer(frame: bytes) -> Outcome | None:
    """The outcome that a frame tells, or None for a frame that no honest program sends."""
    try:
        answer = decode(frame)
    except Malformed:
        return None
    except Colliding as error:
        return Outcome("unplain", message=str(error))
    if type(answer) is not tuple or len(answer) != 4:
        return None
    kind, value, message, args = answer
    if type(kind) is not str or kind not in _ANSWERS or type(message) is not str:
        return None
    if (kind == "exception" and type(value) is not str) or type(args) not in (list, type(None)):
        return None
    if kind == "iterator" and type(value) is not list:
        return None
    value = value if kind in ("value", "iterator", "exception") else None
    return Outcome(kind, value, message=_one_line(message), args=args if kind in ("value", "iterator") else None)


def _ended(status: int | None, to_the_end: bool) -> Outcome:
    """The outcome of a program whose process is gone."""
    if status is None:
        return Outcome("crash", message="the program's processes were killed")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return Outcome("timeout", message="over its processor time")
        return Outcome("crash", message=f"killed by {_signal_name(number)}")
    code = os.WEXITSTATUS(status)
    if to_the_end:
        return Outcome("exit", code)
    return Outcome("crash", message=f"ended with exit status {code} before it answered")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MESSAGE])
