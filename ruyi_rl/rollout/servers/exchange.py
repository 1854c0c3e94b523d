"""The folders through which a run and its servers meet: sockets, and weights on their way."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.weights import branch_layout
from ruyi_rl.rollout.worker import RolloutFailed

if TYPE_CHECKING:
    from ruyi_rl.rollout.worker import RolloutSpec

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "ruyi-rollout-"
HELD = ".held"
"""File in a folder, locked for as long as the run lives."""
YOUNG_SECONDS = 60
"""Age below which a folder without that file is being made."""
GIB = 2**30


@dataclass(frozen=True)
class Exchange:
    """The folders of one run, private to its user; `close` removes them."""

    sockets: Path
    """On this machine, with a short path: a socket's may have 107 characters at most."""
    weights: Mapping[str, Path]
    """Exit -> folder of its `config.json` and weights."""
    folders: tuple[Path, ...]
    """Everything that `close` removes."""
    locks: tuple[IO[str], ...] = ()
    """Say that the folders are in use; the system lets go of them however the process ends."""

    def close(self) -> None:
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        for lock in self.locks:
            lock.close()


def open_exchange(chosen: str | None, exits: Sequence[str], needed: int) -> Exchange:
    """Makes the folders, and removes from shared memory those of runs that were killed with all that watched over them.

    Args:
        chosen: `rollout.exchange`; None: shared memory, or the folder for temporary files where that has no room.
        needed: bytes of weights that will lie there at most.

    Raises:
        Refusal: no room, or a folder that cannot be written.
    """
    local = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    remove_abandoned(SHARED_MEMORY)
    place = room_for(chosen, needed)
    sockets = private_folder(local)
    weights = sockets if place == local else private_folder(place)
    names = {exit: f"{number}-{file_name(exit)}" for number, exit in enumerate(exits)}
    folders = tuple(dict.fromkeys((sockets, weights)))
    return Exchange(
        sockets,
        {exit: weights / name for exit, name in names.items()},
        folders,
        tuple(locked_file(folder) for folder in folders),
    )


def room_for(chosen: str | None, needed: int) -> Path:
    """The folder that has room for the weights.

    Raises:
        Refusal: none has; with what is needed and what is free.
    """
    places = [Path(chosen)] if chosen else [SHARED_MEMORY, Path(tempfile.gettempdir())]
    free = {place: free_bytes(place) for place in places if place.is_dir()}
    if chosen and not free:
        raise Refusal("rollout.exchange", f"there is no folder {chosen}", "a folder that every server sees")
    for place, room in free.items():
        if room >= needed:
            return place
    rooms = " and ".join(f"{place} has {room / GIB:.2f} GiB free" for place, room in free.items())
    raise Refusal(
        "rollout.exchange",
        f"the weights for the servers take {needed / GIB:.2f} GiB, and {rooms}",
        "a folder with more room that every server sees",
    )


def check_room(folders: Mapping[str, Path], spec: RolloutSpec) -> None:
    """Checks that new weights of every exit can be written next to the old ones, one exit after the other.

    Raises:
        RolloutFailed: they cannot.
    """
    for exit, folder in folders.items():
        there = any(folder.glob("*.safetensors"))
        needed, free = branch_bytes(spec, exit), free_bytes(folder)
        if there and free < needed:
            raise RolloutFailed(
                f"{folder} has {free / GIB:.2f} GiB left, and the weights of the exit {exit} take {needed / GIB:.2f}"
            )


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written there; in shared memory they also have to be free as memory."""
    free = shutil.disk_usage(folder).free
    if folder.is_relative_to(SHARED_MEMORY):
        free = min(free, available_memory())
    return free


def available_memory() -> int:
    """Bytes of this machine's memory that programs could take without swapping."""
    import psutil

    return psutil.virtual_memory().available


def private_folder(place: Path) -> Path:
    """A new folder that only this user can read.

    Raises:
        Refusal: it cannot be made.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    except OSError as error:
        raise Refusal(
            "rollout.exchange", f"cannot write in {place}: {error.strerror}", "a folder that can be written"
        ) from None


def locked_file(folder: Path) -> IO[str]:
    """The locked file that says that the folder is in use; processes that this one starts do not hold it."""
    file = open(folder / HELD, "w")  # noqa: SIM115 - closed with the exchange
    with suppress(OSError):  # some network file systems have no locks; nothing is removed there
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def remove_abandoned(place: Path) -> list[Path]:
    """Removes the folders of this user's runs that nobody holds any more; returns them.

    To be called for a place on this machine only: a lock on a network file system may not be seen by other hosts.
    """
    removed = []
    for folder in place.glob(f"{PREFIX}*"):
        try:
            if folder.stat().st_uid != os.geteuid() or _held(folder):
                continue
        except OSError:  # it went meanwhile
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def _held(folder: Path) -> bool:
    if not (folder / HELD).exists():
        return time.time() - folder.stat().st_mtime < YOUNG_SECONDS
    with open(folder / HELD) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def branch_bytes(spec: RolloutSpec, exit: str) -> int:
    """Bytes of an exit's weights as a worker holds them."""
    numbers = 0
    for tensor in branch_layout(spec.config, exit):
        size = 1
        for length in tensor.shape:
            size *= length
        numbers += size
    return numbers * spec.dtype.itemsize


def exchange_bytes(spec: RolloutSpec) -> int:
    """Bytes of all exits' weight files, and of the largest once more: a new one is whole before the old one goes."""
    sizes = [branch_bytes(spec, exit) for exit in spec.exits]
    return sum(sizes) + max(sizes)


def file_name(name: str) -> str:
    """The name of an exit as a part of a file's name."""
    return re.sub(r"[^\w.-]", "_", name)[:40]
