"""Checkpoints on disk: sealed when they are whole, checked before they are read, rotated. Imports no torch.

A checkpoint is written in `.saving-N/checkpoint-N`; each of its files is flushed to the disk and summed; the seal,
`checkpoint.json`, lists them; then the folder takes its name, `checkpoint-N`. So a kill, a full disk or a power cut
leaves a folder of another name, never a part of a checkpoint under this one.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

SEAL = "checkpoint.json"
PREFIX = "checkpoint-"
SAVING = ".saving-"
BROKEN = "broken-"
CHUNK = 16 << 20
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class FileSum:
    """What a file of a checkpoint must be."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Seal:
    """`checkpoint.json`: written last, so that a checkpoint that has one was written to its end."""

    step: int
    """Optimiser steps done."""
    world_size: int
    """Ranks that wrote it."""
    deepspeed: str
    """Mode that it was written under: `off`, `zero1` …"""
    files: dict[str, FileSum]
    """Path in the folder -> what it must be, of all files on this host."""

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())


def saving_folder(folder: Path, step: int) -> Path:
    """Where the trainer writes the `checkpoint-N` of a step, beside its later place in `folder`."""
    return folder / f"{SAVING}{step}"


def file_sum(path: Path) -> FileSum:
    """Flushes a file to the disk and sums it.

    Raises:
        OSError: the disk does not take it.
    """
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        return _sum(file, lambda: None)


def files_of(folder: Path) -> list[str]:
    """Paths of all files in a checkpoint, relative to it, sorted; without the seal."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != SEAL)


def write_seal(folder: Path, seal: Seal) -> None:
    """Writes the seal and flushes the folders, whose entries a power cut could lose otherwise."""
    path = folder / SEAL
    with open(path, "w") as file:
        file.write(json.dumps(asdict(seal) | {"crc32": _seal_sum(seal)}, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    for directory in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush_folder(directory)


def give_name(folder: Path, step: int) -> Path:
    """Moves what was written in `saving_folder(folder, step)` to its place, in one step that a kill cannot cut."""
    saving, place = saving_folder(folder, step), folder / f"{PREFIX}{step}"
    if place.exists():  # of another host's, or broken: a resumed run never goes on from it
        shutil.rmtree(place)
    os.rename(saving / place.name, place)
    flush_folder(folder)
    shutil.rmtree(saving)
    return place


def remove_unfinished(folder: Path) -> None:
    """Removes what a kill has left half written."""
    for path in folder.glob(f"{SAVING}*"):
        shutil.rmtree(path)


def read_seal(checkpoint: Path) -> Seal | None:
    """The seal; None where there is none, or none that is as it was written."""
    try:
        stored = json.loads((checkpoint / SEAL).read_text())
        files = {name: FileSum(**file) for name, file in stored.pop("files").items()}
        expected = stored.pop("crc32")
        seal = Seal(**stored, files=files)
        return seal if _seal_sum(seal) == expected else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def complete_checkpoints(folder: Path) -> list[Path]:
    """The `checkpoint-N` folders in `folder` whose seal names this step and files of the sizes that are there, by N.

    What the files hold is not looked at: see `problem`.
    """
    whole = []
    for path in folder.glob(f"{PREFIX}*"):
        seal = read_seal(path)
        step = path.name.removeprefix(PREFIX)
        if seal is not None and step == str(seal.step) and _size_problem(path, seal) is None:
            whole.append((seal.step, path))
    return [path for _, path in sorted(whole)]


def problem(checkpoint: Path, part: int = 0, parts: int = 1, beat: Callable[[], None] = lambda: None) -> str | None:
    """What is wrong with a checkpoint: no seal, a file that is missing, cut or changed; None where nothing is.

    Args:
        part, parts: read only this share of the files, so that several processes check one checkpoint.
        beat: called after each piece of a file.
    """
    seal = read_seal(checkpoint)
    if seal is None:
        return f"{SEAL} is missing or not what was written"
    if checkpoint.name != f"{PREFIX}{seal.step}":
        return f"{SEAL} is of step {seal.step}"
    if wrong := _size_problem(checkpoint, seal):
        return wrong
    for name in share(seal.files, part, parts):
        try:
            with open(checkpoint / name, "rb") as file:
                found = _sum(file, beat)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != seal.files[name]:
            return f"{name} is not what was written (its CRC-32 differs)"
    return None


def share(names: Iterable[str], part: int, parts: int) -> list[str]:
    """The names that process `part` of `parts` takes."""
    return sorted(names)[part::parts]


def set_aside(checkpoint: Path) -> Path:
    """Renames a broken checkpoint to `broken-checkpoint-N`, in the place of an older one of that name."""
    place = checkpoint.with_name(BROKEN + checkpoint.name)
    shutil.rmtree(place, ignore_errors=True)
    os.rename(checkpoint, place)
    return place


def flush_files(folder: Path) -> None:
    """Flushes the files of a folder, not of those inside it, and its entries to the disk."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal_sum(seal: Seal) -> int:
    return zlib.crc32(json.dumps(asdict(seal), sort_keys=True).encode())


def _size_problem(checkpoint: Path, seal: Seal) -> str | None:
    for name, expected in seal.files.items():
        try:
            found = (checkpoint / name).stat().st_size
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != expected.bytes:
            return f"{name} has {found} bytes, not {expected.bytes}"
    return None


def _sum(file: BinaryIO, beat: Callable[[], None]) -> FileSum:
    crc = length = 0
    while chunk := file.read(CHUNK):
        crc, length = zlib.crc32(chunk, crc), length + len(chunk)
        beat()
    return FileSum(length, crc)
