"""The files of an export: weights, tokenizer, chat template, generation config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ruyi_rl.family import Family
from ruyi_rl.rollout.transformers import end_token_ids
from ruyi_rl.run_folder import write_json
from ruyi_rl.stages.exported import Target
from ruyi_rl.stages.published_names import older_spelling, save_published


def write_files(
    family: Family, tokenizer: PreTrainedTokenizerBase, target: Target, source: Path, sampling: Mapping[str, Any]
) -> None:
    """Writes a folder that transformers loads, without the mark that says that it is whole.

    Args:
        target: its folder is there.
        source: folder of the family.
        sampling: see `with_sampling`.
    """
    generation = with_sampling(family.generation_config, sampling)
    generation.eos_token_id = end_token_ids(family, tokenizer)
    if target.format == "ruyi":
        save_published(family, target.folder, code=source)
        generation.save_pretrained(target.folder)
    elif target.exit is None:
        kept, family.generation_config = family.generation_config, generation
        family.save_pretrained(target.folder)
        family.generation_config = kept
    else:
        make = family.branch if target.format == "merged" else family.factored_branch
        branch = make(target.exit, copy=False)
        branch.generation_config = generation
        branch.save_pretrained(target.folder)
        if target.format == "merged":
            file = target.folder / "config.json"
            stored = json.loads(file.read_text())
            write_json(file, stored | older_spelling(stored))
    tokenizer.save_pretrained(target.folder)
    for file in target.folder.glob("*.safetensors"):
        # Safetensors lets the owner alone read what it writes; a server may be another user.
        shutil.copymode(target.folder / "config.json", file)


def with_sampling(config: GenerationConfig, sampling: Mapping[str, Any]) -> GenerationConfig:
    """A copy of a generation config that says how to sample: as it says itself, as the base of a family may have
    recommended, else by the values that the family was trained with.

    Args:
        sampling: `temperature` and the like; empty: none are known.
    """
    values = config.to_dict()
    if sampling and not values.get("do_sample"):
        values |= {"do_sample": True, **sampling}
    return GenerationConfig.from_dict(values)


def load_export(target: Target) -> PreTrainedModel:
    """The model in an exported folder, as its user would load it."""
    if target.exit is None:
        return Family.from_pretrained(str(target.folder), dtype="auto", local_files_only=True).eval()
    trusted = target.format == "factored"
    return AutoModelForCausalLM.from_pretrained(target.folder, trust_remote_code=trusted, local_files_only=True).eval()


def logits_by_exit(model: PreTrainedModel, target: Target, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Exit name -> float32 logits (rows, length, vocabulary) of all exits that a target holds.

    Args:
        model: the family that is exported, or what was loaded from the target's folder.
    """
    with torch.no_grad():
        if not isinstance(model, Family):
            return {target.exit: model(rows).logits.float()}
        exits = list(model.exits) if target.exit is None else [target.exit]
        return {name: logits.float() for name, logits in model(rows, exits=exits).logits.items()}
