"""A compressed exit on disk: its factors by themselves, and the family that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ruyi_rl.family import Family
from ruyi_rl.family.compression import apply_factors
from ruyi_rl.family.truncation import Factors

FACTORS = "factors.safetensors"
"""The factors as compression left them, beside the family: what a recovery starts from, however often."""


def save_factors(path: Path, factors: Mapping[str, Factors]) -> None:
    """Writes `<name>.u` and `<name>.v` of each."""
    tensors = {f"{name}.{part}": getattr(found, part).contiguous() for name, found in factors.items() for part in "uv"}
    save_file(tensors, path)


def load_factors(path: Path) -> dict[str, Factors]:
    """What `save_factors` wrote."""
    tensors = load_file(path)
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return {name: Factors(tensors[f"{name}.u"], tensors[f"{name}.v"]) for name in names}


def save_compressed(
    family: Family, tokenizer: PreTrainedTokenizerBase, exit: str, factors: Mapping[str, Factors], folder: Path
) -> None:
    """Puts the factors, by their names in the family, into the uncompressed `family` and saves it."""
    apply_factors(family, exit, factors)
    family.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
