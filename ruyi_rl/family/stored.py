"""A family as it lies on disk: each branch's size, told from headers alone, and whether two hold the same branch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import get_local_safetensors_metadata
from safetensors import safe_open

from ruyi_rl.family.config import FamilyConfig
from ruyi_rl.family.expansion import SILENT
from ruyi_rl.family.weights import parameters_of


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    name: str
    dtype: str
    """As the format names it: F32, BF16 …"""
    shape: tuple[int, ...]
    bytes: int

    def load(self) -> torch.Tensor:
        with safe_open(self.file, "pt") as file:
            return file.get_tensor(self.name)


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
    if not weight_files(folder):
        raise ValueError(f"{folder} holds no safetensors")
    tensors = {}
    for file, header in get_local_safetensors_metadata(folder).files_metadata.items():
        for name, entry in header.tensors.items():
            start, end = entry.data_offsets
            tensors[name] = StoredTensor(folder / file, name, entry.dtype, tuple(entry.shape), end - start)
    return StoredFamily(FamilyConfig.from_pretrained(str(folder)), tensors)


def weight_files(folder: Path) -> list[Path]:
    """The files that a family's weights take."""
    return sorted(folder.glob("model*.safetensors"))


def same_function(before: StoredFamily, after: StoredFamily) -> set[str]:
    """The exits whose branches compute the same in both families, told from the bytes.

    That is: every tensor of the branch is the same bit by bit, and what `after` has besides are expansion blocks that
    write nothing to the residual stream. Each shared tensor is read once.
    """

    @cache
    def same(name: str) -> bool:
        one, other = before.tensors[name], after.tensors[name]
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and torch.equal(one.load().view(torch.uint8), other.load().view(torch.uint8))

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
    """Whether these are expansion blocks that add nothing."""
    if any(not name.startswith("model.expansions.") for name in tensors):
        return False
    writing = [name for name in tensors if any(f".{module}" in name for module in SILENT)]
    return not any(tensors[name].load().any() for name in writing)
