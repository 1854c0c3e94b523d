"""The `model` group and `start_from`: exits, folders, tokenizers. What lies on the hub is checked when it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.validation.foreign import check_foreign, read_object
from ruyi_rl.validation.trainer_fields import class_fields
from ruyi_rl.validation.values import require, require_choice

BACKBONES = {
    "qwen2": ("transformers/models/qwen2/configuration_qwen2.py", "Qwen2Config"),
    "qwen3": ("transformers/models/qwen3/configuration_qwen3.py", "Qwen3Config"),
}
FAMILIES = ("ruyi_qwen2", "ruyi_qwen3", "ee_qwen3")
DTYPES = ("float32", "bfloat16", "float16")
CHAT_STAGES = ("sft", "expanded_sft", "grpo", "compress", "eval")
"""Stages that render chats."""


def check_model(config: RunConfig) -> None:
    """Refuse a model that cannot be built or loaded.

    Raises:
        Refusal: a folder that is missing or holds no Qwen and no family, impossible exits, unknown backbone keys.
    """
    if config.start_from is not None:
        folder = Path(config.start_from)
        if not folder.is_dir():
            raise Refusal(
                "start_from", f"the folder {config.start_from!r} does not exist", "a folder that holds a family"
            )
        stored = read_model_config("start_from", folder)
        if stored["model_type"] not in FAMILIES:
            raise Refusal("start_from", f"{config.start_from!r} holds no family", "a family, such as runs/<name>/init")
        check_foreign("start_from", folder, stored, stock=False)
        return
    model = config.model
    require_choice("model.dtype", model.dtype, DTYPES)
    if model.base is None:
        _check_scratch(model)
        check_exits(model.exits, model.scratch["num_hidden_layers"])
    elif folder := local_folder(model.base):
        stored = read_model_config("model.base", folder)
        _check_base(model, stored)
        check_foreign("model.base", folder, stored, stock=stored["model_type"] in BACKBONES)
    elif model.exits:
        check_exits(model.exits, None)


def check_exits(exits: dict[str, int], num_hidden_layers: int | None) -> None:
    """Refuse positions that are repeated, not increasing, out of range or do not end at the last layer.

    Args:
        exits: exit name -> position k, in the order given.
        num_hidden_layers: layers of the model; None where they are not known, then only the order is checked.
    """
    positions = list(exits.values())
    shown = "{" + ", ".join(f"{name}: {position}" for name, position in exits.items()) + "}"
    if not exits:
        raise Refusal("model.exits", "no exit is given", "such as model.exits={small: 6, large: 27}")
    last = None if num_hidden_layers is None else num_hidden_layers - 1
    limits = "0 and up" if last is None else f"0 to {last}, the last layer of {num_hidden_layers}"
    for name, position in exits.items():
        if position < 0 or (last is not None and position > last):
            raise Refusal("model.exits", f"{name}: {position} is out of range in {shown}", limits)
        if positions.count(position) > 1:
            raise Refusal("model.exits", f"position {position} is repeated in {shown}", "each position once")
    if positions != sorted(positions):
        raise Refusal("model.exits", f"the positions of {shown} do not increase", "the shallowest exit first")
    if last is not None and positions[-1] != last:
        raise Refusal(
            "model.exits", f"{shown} ends at {positions[-1]}", f"the last exit must be at {last}, the last layer"
        )


def check_chat_template(config: RunConfig, stages: list[str]) -> None:
    """Refuse a local base or family whose tokenizer has no chat template, where a stage renders chats."""
    key, path = (
        ("start_from", config.start_from) if config.start_from is not None else ("model.base", config.model.base)
    )
    folder = None if path is None else local_folder(path)
    stage = next(name for name in stages if name in CHAT_STAGES)
    trainer = getattr(getattr(config, stage), "trainer", {})
    if folder is None or trainer.get("chat_template_path"):
        return  # a template that sft brings is saved for those after it
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        raise Refusal(key, f"{folder} holds no tokenizer (tokenizer_config.json)", "save the tokenizer with the model")
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return
    if not read_object(key, file).get("chat_template"):
        raise Refusal(
            key,
            f"the tokenizer in {folder} has no chat template, which stage {stage} needs",
            "add chat_template.jinja to the folder, or take an instruct model's tokenizer",
        )


def local_folder(base: str) -> Path | None:
    """The folder that a base names, or None where it is a hub id (`owner/name`).

    Raises:
        Refusal: it is spelt like a path, but there is no such folder.
    """
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    spelt_as_path = base.startswith((".", "/", "~")) or base.endswith("/") or base.count("/") > 1
    # owner/name, unless a folder `owner` stands here: then it is a mistyped path.
    if path.exists() or spelt_as_path or "/" not in base or path.parent.is_dir():
        raise Refusal(
            "model.base", f"the folder {base!r} does not exist", "a model folder, or a hub id such as Qwen/Qwen3-0.6B"
        )
    return None


def read_model_config(key: str, folder: Path) -> dict[str, Any]:
    """config.json of a model folder, with its model_type checked to be a Qwen's or a family's."""
    file = folder / "config.json"
    if not file.is_file():
        raise Refusal(key, f"{folder} holds no config.json", "a folder that save_pretrained wrote")
    stored = read_object(key, file)
    allowed = (*BACKBONES, *FAMILIES)
    if stored.get("model_type") not in allowed:
        raise Refusal(
            key, f"{folder} holds a model of type {stored.get('model_type')!r}", "one of: " + ", ".join(allowed)
        )
    return stored


def family_exits(stored: dict[str, Any]) -> dict[str, int]:
    """Exit name -> position of a family's config.json; a published checkpoint's exits are named exit<k>."""
    positions = stored.get("early_exit_points") or [stored["num_hidden_layers"] - 1]
    names = stored.get("exit_names") or [f"exit{position}" for position in positions]
    return dict(zip(names, positions))


def _check_scratch(model: ModelOptions) -> None:
    require_choice("model.architecture", model.architecture, BACKBONES)
    path, name = BACKBONES[model.architecture]
    fields = class_fields(path, name)
    for key, value in model.scratch.items():
        if key not in fields:
            raise Refusal(f"model.scratch.{key}", f"{name} has no such key", nearest(str(key), fields))
        if problem := fields[key].problem(value):
            raise Refusal(f"model.scratch.{key}", *problem)
        if isinstance(value, int) and not isinstance(value, bool) and not key.endswith("token_id"):
            require(f"model.scratch.{key}", value, value >= 1, "1 or more")
    if "num_hidden_layers" not in model.scratch:
        raise Refusal(
            "model.base", "is not given, and model.scratch names no num_hidden_layers", "a base, or model.scratch={…}"
        )
    heads, groups = (
        model.scratch.get(key, fields[key].default) for key in ("num_attention_heads", "num_key_value_heads")
    )
    if groups is not None and heads % groups:
        raise Refusal(
            "model.scratch.num_key_value_heads",
            f"{groups} does not divide the {heads} attention heads",
            f"a divisor of {heads}",
        )


def _check_base(model: ModelOptions, stored: dict[str, Any]) -> None:
    if stored["model_type"] not in FAMILIES:
        check_exits(model.exits, stored["num_hidden_layers"])
        return
    exits = family_exits(stored)
    if model.exits and model.exits != exits:
        raise Refusal(
            "model.exits", f"{model.exits} are not the exits of the family in {model.base}", f"{exits}, or none"
        )
