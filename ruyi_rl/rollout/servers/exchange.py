"""The folders through which a run and its servers meet: sockets, and weights on their way."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.weights import branch_layout
from ruyi_rl.rollout.worker import RolloutFailed

if TYPE_CHECKING:
    from ruyi_rl.rollout.worker import RolloutSpec

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "ruyi-rollout-"
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

    def close(self) -> None:
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def open_exchange(chosen: str | None, exits: Sequence[str], needed: int) -> Exchange:
    """Makes the folders.

    Args:
        chosen: `rollout.exchange`; None: shared memory, or the folder for temporary files where that has no room.
        needed: bytes of weights that will lie there at most.

    Raises:
        Refusal: no room, or a folder that cannot be written.
    """
    local = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    place = room_for(chosen, needed)
    sockets = private_folder(local)
    weights = sockets if place == local else private_folder(place)
    names = {exit: f"{number}-{file_name(exit)}" for number, exit in enumerate(exits)}
    return Exchange(
        sockets,
        {exit: weights / name for exit, name in names.items()},
        tuple(dict.fromkeys((sockets, weights))),
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
