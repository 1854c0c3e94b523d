"""Files on their way from one host's disk to others', in chunks, and whether they have arrived whole.

Importing this module imports no torch.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from socket import gethostname
from typing import Any, TypeVar

from ruyi_rl import ranks

Value = TypeVar("Value")
CHUNK = 64 << 20
"""Bytes that are sent at a time: what a transfer takes of a rank's memory."""


@dataclass(frozen=True)
class FileState:
    """What tells a file from another of the same name."""

    bytes: int
    changed: int
    """Time of the last change, ns."""


def files_in(path: Path, leave: Sequence[str]) -> dict[str, FileState]:
    """Path relative to `path` -> state, of all files in a folder, or of a file under the name `.`.

    Args:
        leave: patterns of what is left out, files or folders, wherever they are.
    """
    if path.is_file():
        return {".": _state(path)}
    found = {}
    for folder, folders, names in os.walk(path):
        inside = Path(folder).relative_to(path)
        folders[:] = [name for name in folders if not _left((inside / name).as_posix(), leave)]
        for name in ((inside / name).as_posix() for name in names):
            if not _left(name, leave):
                found[name] = _state(path / name)
    return found


def _left(name: str, leave: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}") for pattern in leave)


def _state(path: Path) -> FileState:
    status = path.stat()
    return FileState(status.st_size, status.st_mtime_ns)


def send(path: Path, file: FileState, source: int, group: Any, beat: Callable[[], None]) -> str | None:
    """Sends a file's bytes, then their CRC-32; returns what went wrong. As much is sent in any case.

    Args:
        file: what the receivers expect.
        source: this rank.
        group: process group with the receivers, for bytes in the processor's memory.
        beat: called with every chunk.
    """
    import torch
    import torch.distributed as dist

    crc, problem = 0, None
    for start, length in _chunks(file):
        chunk = torch.zeros(length, dtype=torch.uint8)
        if problem is None:
            _, problem = attempt(lambda into=chunk, start=start: _read(path, start, memoryview(into.numpy())))
        crc = zlib.crc32(chunk.numpy(), crc)
        dist.broadcast(chunk, source, group=group)
        beat()
    dist.broadcast(torch.tensor([crc]), source, group=group)
    return problem


def receive(path: Path | None, file: FileState, source: int, group: Any, beat: Callable[[], None]) -> str | None:
    """Takes what `send` sends and writes it to `path`; returns what went wrong.

    Args:
        path: None: only takes it, for a file that is there.
    """
    import torch
    import torch.distributed as dist

    problem, temporary = None, None
    if path is not None:
        temporary = path.with_name(f".{path.name}.mirror")
        _, problem = attempt(lambda: _empty(temporary))
    for _, length in _chunks(file):
        chunk = torch.empty(length, dtype=torch.uint8)
        dist.broadcast(chunk, source, group=group)
        beat()
        if temporary is not None and problem is None:
            _, problem = attempt(lambda got=chunk: _append(temporary, memoryview(got.numpy())))
    crc = torch.empty(1, dtype=torch.int64)
    dist.broadcast(crc, source, group=group)
    if temporary is not None:
        if problem is None:
            _, problem = attempt(lambda: _finish(temporary, path, file, int(crc)))
        attempt(lambda: temporary.unlink(missing_ok=True))
    return problem


def _read(path: Path, start: int, into: memoryview) -> None:
    with open(path, "rb") as file:
        file.seek(start)
        if file.readinto(into) != len(into):
            raise OSError(f"{path} was cut while it was sent")


def _empty(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def _append(path: Path, data: memoryview) -> None:
    with open(path, "ab") as file:
        file.write(data)


def _finish(temporary: Path, path: Path, state: FileState, sent: int) -> None:
    """Gives a received file its name, when what lies on the disk is what was sent.

    Raises:
        OSError: it is not.
    """
    crc = 0
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
        while data := file.read(CHUNK):
            crc = zlib.crc32(data, crc)
    if (crc, temporary.stat().st_size) != (sent, state.bytes):
        raise OSError(f"{path} did not arrive whole")
    os.utime(temporary, ns=(state.changed, state.changed))
    os.replace(temporary, path)


def _chunks(file: FileState) -> Iterator[tuple[int, int]]:
    """(start, length) of each chunk."""
    for start in range(0, file.bytes, CHUNK):
        yield start, min(CHUNK, file.bytes - start)


def attempt(action: Callable[[], Value]) -> tuple[Value | None, str | None]:
    """What an action on files gives, and what went wrong: the other hosts wait for this one either way."""
    try:
        return action(), None
    except OSError as error:
        return None, f"{this_rank()}: {error}"


def this_rank() -> str:
    """As a message names it: `rank 3 on node7`."""
    return f"rank {ranks.rank()} on {gethostname()}"
