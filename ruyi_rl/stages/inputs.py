"""What a training stage reads: the family and tokenizer of the stage before, the chosen exits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ruyi_rl import ranks
from ruyi_rl.family import Family, FamilyConfig
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.refusal import Refusal, nearest


def load_family(folder: Path, options: ModelOptions) -> Family:
    """The family in `folder`, in the dtype and with the attention that the config asks for.

    Raises:
        Refusal: no family there.
    """
    kwargs: dict[str, Any] = {"dtype": getattr(torch, options.dtype)}
    if options.attn_implementation is not None:
        kwargs["attn_implementation"] = options.attn_implementation
    try:
        return Family.from_pretrained(str(folder), **kwargs)
    except (OSError, ValueError) as error:
        raise Refusal(str(folder), f"holds no family that can be loaded: {error}") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a family.

    Raises:
        Refusal: none there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise Refusal(str(folder), f"holds no tokenizer that can be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def chosen_exits(folder: Path, chosen: Sequence[str] | None, key: str) -> dict[str, int]:
    """Exit name -> position k of the exits to train, shallowest first; None: all of the family in `folder`.

    Raises:
        Refusal: an exit that the family has not.
    """
    exits = FamilyConfig.from_pretrained(str(folder)).exits
    for name in chosen or ():
        if name not in exits:
            raise Refusal(key, f"no exit {name!r} in {folder}", nearest(name, exits))
    return {name: k for name, k in exits.items() if chosen is None or name in chosen}


def device() -> torch.device:
    """This rank's device."""
    return torch.device("cuda", ranks.local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def weight_bytes(family: Family) -> dict[str, int]:
    """Bytes of each exit's branch and, under `family`, of all weights; under ZeRO-3 as if they were not sharded."""
    size = family.dtype.itemsize
    whole = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in family.parameters())
    return {**{exit: size * family.branch_parameters(exit) for exit in family.exits}, "family": size * whole}
