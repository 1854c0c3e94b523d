"""Whose files these are: a checkpoint may hold pickles, which run what they say when read. Imports no torch."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruyi_rl import ranks
from ruyi_rl.refusal import Refusal

ROOT = 0


@dataclass(frozen=True)
class FileSystem:
    """What files look like that this process makes in a folder."""

    owner: int
    """User id that they get: another one than the process's where a server maps users."""
    keeps_modes: bool
    """Whether a file's mode is its own; where every file has the same, it says nothing."""


def file_system(folder: Path) -> FileSystem:
    """Learnt from a file that is made in `folder` and removed.

    Raises:
        OSError: none can be made.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
        status = os.fstat(file.fileno())
    return FileSystem(status.st_uid, not status.st_mode & stat.S_IWOTH)


def require_own(checkpoint: Path) -> None:
    """Refuses to read what may be somebody else's; every rank calls it, and each looks at what its host has.

    Raises:
        Refusal: on every rank.
        OSError: the folder of the checkpoint cannot be read or written.
    """
    mine = stranger(checkpoint) if checkpoint.is_dir() else None
    if problem := next(filter(None, ranks.gathered(mine)), None):
        raise Refusal(
            str(checkpoint),
            f"{problem}, and reading a checkpoint may run what its writer wants",
            "if nobody else has touched it: chown -R and chmod -R o-w; otherwise fresh=true to start the stage over",
        )


def stranger(folder: Path) -> str | None:
    """Why something in `folder`, or itself, may be from somebody else than this user or root; None where nothing is.

    Raises:
        OSError: the folder cannot be read, or no file can be made beside it.
    """
    system = file_system(folder.parent)
    for path in (folder, *_all_in(folder)):
        status = path.lstat()
        if status.st_uid not in (os.geteuid(), ROOT, system.owner):
            return f"{path} belongs to {user_name(status.st_uid)}"
        if system.keeps_modes and status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(status.st_mode):
            return f"every user of this machine can write {path}"
    return None


def others_may_write(folder: Path) -> bool:
    """Whether every user of this machine can write in `folder`.

    Raises:
        OSError: the folder cannot be read or written.
    """
    return bool(folder.stat().st_mode & stat.S_IWOTH) and file_system(folder).keeps_modes


def user_name(number: int) -> str:
    """The name of a user id, or the id itself where it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _all_in(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))
