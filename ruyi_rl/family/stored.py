"""A family as it lies on disk: each branch's size, and whether two families hold the same branch. Loads no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ruyi_rl.family.config import FamilyConfig
from ruyi_rl.family.expansion import SILENT
from ruyi_rl.family.weights import parameters_of

CHUNK = 2**22
"""Bytes that are compared at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    dtype: str
    """As the format names it: F32, BF16 …"""
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    bytes: int

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, `CHUNK` at a time."""
        with open(self.file, "rb") as file:
            file.seek(self.start)
            for start in range(0, self.bytes, CHUNK):
                yield file.read(min(CHUNK, self.bytes - start))


@dataclass(frozen=True)
class BranchSize:
    """What an exit's branch costs on disk; factors count as factors."""

    layers: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class StoredFamily:
    """The configuration of a saved family and the headers of its weight files."""

    config: FamilyConfig
    tensors: dict[str, StoredTensor]

    def branch(self, exit: str) -> dict[str, StoredTensor]:
        """The tensors that an exit runs through, by name."""
        names = parameters_of(self.config, [exit], self.tensors)
        return {name: tensor for name, tensor in self.tensors.items() if name in names}

    def size(self, exit: str) -> BranchSize:
        """Layers, parameters and bytes of an exit's branch."""
        tensors = self.branch(exit).values()
        return BranchSize(
            self.config.depths[exit],
            sum(math.prod(tensor.shape) for tensor in tensors),
            sum(tensor.bytes for tensor in tensors),
        )


def stored_family(folder: Path) -> StoredFamily:
    """Reads the configuration and the headers of the family in `folder`.

    Raises:
        ValueError: a folder without safetensors, or of something that is no family.
    """
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no safetensors")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= header(file)
    return StoredFamily(FamilyConfig.from_pretrained(str(folder)), tensors)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a load of `folder` would read."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return []
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def header(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, from the head of a safetensors file: 8 bytes of length, little-endian, and so much JSON."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    found = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        found[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, end - start)
    return found


def same_function(before: StoredFamily, after: StoredFamily) -> set[str]:
    """The exits whose branches compute the same in both families, told from the bytes.

    That is: every tensor of the branch is the same bit by bit, and what `after` has besides are expansion blocks that
    write nothing to the residual stream. Reads each shared tensor once, up to the first difference.
    """

    @cache
    def same(name: str) -> bool:
        one, other = before.tensors[name], after.tensors[name]
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and all(left == right for left, right in zip(one.chunks(), other.chunks()))

    def unchanged(exit: str) -> bool:
        if before.config.exits.get(exit) != after.config.exits[exit]:
            return False
        old, new = before.branch(exit), after.branch(exit)
        if not old.keys() <= new.keys() or not _silent({name: new[name] for name in new.keys() - old.keys()}):
            return False
        # Small ones first: a norm that was trained shows it without a matrix being read.
        return all(same(name) for name in sorted(old, key=lambda name: old[name].bytes))

    return {exit for exit in after.config.exits if unchanged(exit)}


def _silent(tensors: dict[str, StoredTensor]) -> bool:
    """Whether these are whole expansion blocks that add nothing."""
    if any(not name.startswith("model.expansions.") for name in tensors):
        return False
    blocks = {".".join(name.split(".")[:4]) for name in tensors}
    writing = {name for name in tensors if any(f".{module}" in name for module in SILENT)}
    whole = {f"{block}.{module}weight" for block in blocks for module in SILENT} <= writing
    return whole and not any(chunk.strip(b"\0") for name in writing for chunk in tensors[name].chunks())
