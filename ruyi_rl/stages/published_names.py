"""A family under the keys and names of the published Ruyi checkpoints, for the code that was released with these.

That code is written for transformers 4.51: it takes no `rope_parameters`, so the base of the rotary embedding has to
stand where it looks. Importing this module imports no torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruyi_rl.run_folder import write_json

if TYPE_CHECKING:
    import torch

    from ruyi_rl.family import Family

BACKBONES = {"ruyi_qwen2": ("ruyi_qwen2", "RuyiQwen2"), "ruyi_qwen3": ("ruyi_qwen3", "RuyiQwen3")}
"""model_type -> the published code's file names and class names."""
ALIASES = {"ee_qwen3": "ruyi_qwen3"}
OWN_CLASSES = ("Qwen2Family", "Qwen3Family", "EEQwen3Family")
"""`architectures` that the published code does not know."""
LEFT_OUT = ("dtype", "layer_types", "rope_parameters", "expansion_blocks", "factor_ranks", "_name_or_path")
"""Keys that no published checkpoint has, and the one that names a folder of this machine."""
SHARD = "5GB"
"""Size of one file of weights at most."""


def untellable(stored: Mapping[str, Any], exits: Mapping[str, int]) -> str | None:
    """Why a family cannot be told in published names, in one line; None where it can.

    Args:
        stored: its config.json.
        exits: exit name -> position k.
    """
    blocks = dict(zip(exits, stored.get("expansion_blocks") or []))
    expanded = ", ".join(f"{number} of {name}" for name, number in blocks.items() if number)
    return f"the published names have no place for expansion blocks ({expanded})" if expanded else None


def older_spelling(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json of transformers 5 as transformers 4 reads them: without these it would take the default
    base of the rotary embedding and float32, and say nothing."""
    rope = dict(stored.get("rope_parameters") or {})
    theta, kind = rope.pop("rope_theta", None), rope.get("rope_type", "default")
    return {
        **({} if theta is None else {"rope_theta": theta}),
        "rope_scaling": None if kind == "default" else rope,
        **({"torch_dtype": stored["dtype"]} if stored.get("dtype") else {}),
    }


def published_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A family's config.json under the published keys.

    Exit names that follow from the positions are left out; others stay under their own key, which the published code
    passes over.

    Args:
        stored: the family's config.
    """
    model_type = stored["model_type"]
    files, classes = BACKBONES[ALIASES.get(model_type, model_type)]
    values = {key: value for key, value in stored.items() if key not in LEFT_OUT} | older_spelling(stored)
    if values.get("exit_names") == [f"exit{k}" for k in stored["early_exit_points"]]:
        del values["exit_names"]
    if not values.get("architectures") or set(values["architectures"]) & set(OWN_CLASSES):
        values["architectures"] = [f"{classes}ForCausalLM"]
    values["auto_map"] = values.get("auto_map") or {
        "AutoConfig": f"configuration_{files}.{classes}Config",
        "AutoModel": f"modeling_{files}.{classes}Model",
        "AutoModelForCausalLM": f"modeling_{files}.{classes}ForCausalLM",
    }
    return values


def code_files(config: Mapping[str, Any]) -> list[str]:
    """Files that the published code wants beside the weights, told from a `published_config`."""
    return sorted({f"{place.rpartition('.')[0]}.py" for place in config["auto_map"].values()})


def published_tensors(family: Family) -> dict[str, torch.Tensor]:
    """Published name -> tensor, the family's own; factors are multiplied.

    Raises:
        ValueError: expansion blocks, which have no name there.
    """
    from ruyi_rl.family.weights import dense

    own, ranks = family.state_dict(), family.config.factor_ranks
    if any(family.config.expansions.values()):
        raise ValueError("expansion blocks have no published name")
    if family.config.tie_word_embeddings:
        own.pop("lm_head.weight", None)  # the embeddings again
    found = {}
    for name, tensor in own.items():
        module, _, factor = name.removesuffix(".weight").rpartition(".")
        if module not in ranks:
            found[name] = tensor
        elif factor == "u":
            found[f"{module}.weight"] = dense((tensor, own[f"{module}.v.weight"]))
    return found


def save_published(family: Family, folder: Path, code: Path) -> None:
    """Writes config.json and the weights under published names, and the published code's files where they are at hand.

    Args:
        code: a folder that may hold these files.
    """
    from huggingface_hub import save_torch_state_dict

    config = published_config(json.loads(family.config.to_json_string()))
    tensors = {name: tensor.contiguous() for name, tensor in published_tensors(family).items()}
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD, metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    for name in code_files(config):
        if (code / name).is_file():
            shutil.copyfile(code / name, folder / name)
