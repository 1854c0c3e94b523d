"""Bytes to and from a running program: one request, and whatever comes until an answer, the end, or a limit."""

import os
import select
import time
from dataclasses import dataclass

from ruyi_rl.rewards.sandbox.memory import tree_memory
from ruyi_rl.rewards.sandbox.residences import Residence

_WATCH_SECONDS = 0.05
_PIECE = 1 << 16
# What surrounds an answer in its frame: the kind and the message.
_AROUND = 8192


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Attributes:
        reason: `answer`, `end` (the program's process is gone), `timeout`, `flood` or `memory`.
        frame: the bytes of the first answer that came, or None.
        status: of an end, the wait status of the program's process; None where nobody could tell it.
        stdout: what was printed since the last request.
    """

    reason: str
    frame: bytes | None
    status: int | None
    stdout: bytes


class Exchange:
    """The traffic with one program; it bounds all that the program can send.

    Args:
        residence: the program's, whose descriptors stay its owner's to close.
        limit: bytes of standard output, of standard error, and of one answer.
        memory: bytes that the program's processes may hold together, to be watched here; None: another watches.
    """

    def __init__(self, residence: Residence, limit: int, memory: int | None):
        self._residence, self._limit, self._memory = residence, limit, memory
        self._received, self._printed = bytearray(), bytearray()
        self._written = {residence.stdout: 0, residence.stderr: 0}
        self._open = {residence.channel.fileno(), residence.stdout, residence.stderr}

    def ask(self, request: bytes, seconds: float, to_the_end: bool = False) -> Reply:
        """Send a request and wait.

        Args:
            request: what `plain.encode` gave.
            seconds: wall clock.
            to_the_end: wait for the end of the program, not for an answer.
        """
        deadline = time.monotonic() + seconds
        to_send = memoryview(len(request).to_bytes(4, "little") + request)
        reason, status = "", None
        lifeline, channel = self._residence.lifeline.fileno(), self._residence.channel.fileno()
        while not reason:
            left = deadline - time.monotonic()
            if left <= 0:
                reason = "timeout"
                break
            poll = select.poll()
            poll.register(lifeline, select.POLLIN)
            for number in self._open:
                writes = select.POLLOUT if number == channel and to_send else 0
                poll.register(number, select.POLLIN | writes)
            wait = left if self._memory is None else min(left, _WATCH_SECONDS)
            ready = dict(poll.poll(wait * 1000))
            if ready.get(channel, 0) & select.POLLOUT:
                to_send = self._send(to_send)
            for number in ready.keys() & self._open:
                if ready[number] != select.POLLOUT:
                    self._read(number)
            if self._flooded():
                reason = "flood"
            elif not to_the_end and self._frame() is not None:
                reason = "answer"
            elif lifeline in ready:
                reason, status = "end", self._status()
            elif self._memory is not None and tree_memory(self._residence.number) > self._memory:
                reason = "memory"
        self._drain()
        if reason in ("answer", "end") and self._flooded():
            reason = "flood"
        frame, stdout = self._frame(), bytes(self._printed)
        self._printed.clear()
        if frame is not None:
            del self._received[: 4 + len(frame)]
        return Reply(reason, frame, status, stdout)

    def _send(self, data: memoryview) -> memoryview:
        try:
            return data[self._residence.channel.send(data[: 1 << 20]) :]
        except BlockingIOError:
            return data
        except OSError:
            # The program closed its end: its exit, or the clock, decides.
            return data[:0]

    def _read(self, number: int) -> bool:
        """Take what is there of one stream, at most a piece; False where nothing is."""
        try:
            piece = os.read(number, _PIECE)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""
        if not piece:
            self._open.discard(number)
            return False
        if number == self._residence.channel.fileno():
            self._received += piece
        else:
            self._written[number] += len(piece)
            if number == self._residence.stdout:
                self._printed += piece
        return True

    def _drain(self) -> None:
        for number in list(self._open):
            while not self._flooded() and self._read(number):
                continue

    def _flooded(self) -> bool:
        return max(self._written.values()) > self._limit or len(self._received) > self._limit + _AROUND

    def _frame(self) -> bytes | None:
        if len(self._received) < 4:
            return None
        size = int.from_bytes(self._received[:4], "little")
        return bytes(self._received[4 : 4 + size]) if len(self._received) >= 4 + size else None

    def _status(self) -> int | None:
        try:
            said = self._residence.lifeline.recv(32)
        except OSError:
            return None
        return int(said) if said else None
