"""Messages between the pool and a worker: eight bytes of length, then the message, which begins with its tag."""

from __future__ import annotations

import os

HEADER = 8
"""Bytes of the length, little-endian."""
TAG = 16
"""Bytes at the beginning of each message to a worker, random, which its reply begins with too."""
MAX_REPLY = 64 * 2**20
"""Bytes of the longest message that is read from a worker."""


def frame(message: bytes) -> bytes:
    """A message as it is sent."""
    return len(message).to_bytes(HEADER, "little") + message


def send(descriptor: int, message: bytes) -> None:
    """Write a whole message to a blocking descriptor."""
    rest = memoryview(frame(message))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int) -> bytes:
    """Read a whole message from a blocking descriptor.

    Raises:
        EOFError: the other end is closed.
    """
    return _read(descriptor, int.from_bytes(_read(descriptor, HEADER), "little"))


def _read(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(descriptor, min(size - len(data), 2**20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


class Received:
    """Bytes that have arrived so far, as messages.

    Raises (from `add`):
        ValueError: a message longer than `MAX_REPLY` is announced.
    """

    def __init__(self):
        self._data = bytearray()

    def add(self, data: bytes) -> list[bytes]:
        """Take in what has arrived; gives the messages that are complete by now."""
        self._data += data
        messages = []
        while len(self._data) >= HEADER:
            size = int.from_bytes(self._data[:HEADER], "little")
            if size > MAX_REPLY:
                raise ValueError(f"a message of {size} bytes")
            if len(self._data) < HEADER + size:
                break
            messages.append(bytes(self._data[HEADER : HEADER + size]))
            del self._data[: HEADER + size]
        return messages
