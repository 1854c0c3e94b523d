"""A disk that takes nothing more: told from other failures, with what the user can do. Imports no torch."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EROFS: "mount it for writing again",
    errno.EIO: "see what the system's log says of it",
}
TORCH_WRITER = "inline_container.cc"
"""In what torch.save raises where a file could not be written; it does not say why."""
LITTLE = 1 << 20
"""Bytes."""


def refused_write(error: BaseException, folder: Path) -> str | None:
    """What a disk has refused, where that is why something was raised, and the remedy; None where it is not.

    Args:
        error: the exception, with what it was raised from.
        folder: where the run writes.
    """
    chain = list(_chain(error))
    number = next((number for number in REMEDIES if any(_tells(each, number) for each in chain)), None)
    if number is None and any(TORCH_WRITER in str(each) for each in chain):
        number = _asked(folder)
    if number not in REMEDIES:
        return None
    reason, remedy = os.strerror(number), REMEDIES[number]
    return f"the disk of {folder} ({_free(folder)}) refuses to be written: {reason}; {remedy}"


def byte_count(count: int) -> str:
    """Bytes as a user counts them: `12.3 GB`, `45 MB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _tells(error: BaseException, number: int) -> bool:
    # Libraries in Rust keep the number in their text alone.
    return getattr(error, "errno", None) == number or os.strerror(number) in str(error)


def _asked(folder: Path) -> int | None:
    """Why the disk does not take a little more; None where it does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(LITTLE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


def _free(folder: Path) -> str:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return f"{byte_count(shutil.disk_usage(existing).free)} free"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
