"""The fields of TRL's SFTConfig and GRPOConfig, read from their sources: importing them would cost seconds of torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PLAIN = {"int": int, "float": (int, float), "bool": bool, "str": str, "dict": dict, "list": list, "None": type(None)}
CONFIG_SOURCES = {
    "sft": ("trl/trainer/sft_config.py", "SFTConfig"),
    "grpo": ("trl/trainer/grpo_config.py", "GRPOConfig"),
}
# TRL names these values in help texts and error messages only.
GRPO_CHOICES = {
    "loss_type": ("bnpo", "cispo", "dapo", "dr_grpo", "grpo", "luspo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


@dataclass(frozen=True)
class TrainerField:
    """One field of a trainer's configuration class."""

    name: str
    types: tuple[str, ...] | None
    """Keys of `PLAIN` that a value may have; None where the annotation names a class, which takes anything."""
    choices: tuple[str, ...] | None = None
    """The strings it takes, where the source lists them."""
    default: Any = None
    """Its default, where the source writes it as a literal; else None."""

    def problem(self, value: Any) -> tuple[str, str] | None:
        """What is wrong with a value and what is allowed, or None where nothing is."""
        if self.types is not None and not any(_is_a(value, kind) for kind in self.types):
            return f"{value!r} is of type {type(value).__name__}", "allowed: " + " or ".join(self.types)
        if self.choices and isinstance(value, str) and value not in self.choices:
            return f"{value!r} is unknown", "one of: " + ", ".join(self.choices)
        return None


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, PLAIN[kind])


@functools.cache
def trainer_fields(trainer: str) -> dict[str, TrainerField]:
    """The fields of a trainer's configuration, those of its base classes included.

    Args:
        trainer: `sft` (SFTConfig) or `grpo` (GRPOConfig).

    Returns:
        Field name -> field, for every field of the installed class.
    """
    enums = _enum_values("transformers/trainer_utils.py") | _enum_values("transformers/training_args.py")
    sources = [
        ("transformers/training_args.py", "TrainingArguments"),
        ("trl/trainer/base_config.py", "_BaseConfig"),
        CONFIG_SOURCES[trainer],
    ]
    fields = {}
    for path, name in sources:
        fields |= class_fields(path, name, enums)
    if trainer == "grpo":
        fields |= {name: replace(fields[name], choices=choices) for name, choices in GRPO_CHOICES.items()}
    return fields


def class_fields(
    path: str, class_name: str, enums: dict[str, tuple[str, ...]] | None = None
) -> dict[str, TrainerField]:
    """The annotated fields of one class of an installed package, without importing it.

    Args:
        path: the source file, beginning with the package's name: `trl/trainer/sft_config.py`.
        class_name: the class in it; its base classes are not followed.
        enums: enum class name -> the values that a field annotated with it takes.
    """
    (node,) = [item for item in _source(path).body if isinstance(item, ast.ClassDef) and item.name == class_name]
    fields = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            fields[item.target.id] = _field(item, enums or {})
    return fields


@functools.cache
def _source(path: str) -> ast.Module:
    package, rest = path.split("/", 1)
    spec = importlib.util.find_spec(package)
    return ast.parse((Path(spec.submodule_search_locations[0]) / rest).read_text(encoding="utf-8"))


def _enum_values(path: str) -> dict[str, tuple[str, ...]]:
    values = {}
    for node in _source(path).body:
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "ExplicitEnum" for base in node.bases):
            constants = [item.value for item in node.body if isinstance(item, ast.Assign)]
            values[node.name] = tuple(item.value for item in constants if isinstance(item, ast.Constant))
    return values


def _field(item: ast.AnnAssign, enums: dict[str, tuple[str, ...]]) -> TrainerField:
    parts = _union(item.annotation)
    names = [_type_name(part) for part in parts]
    choices = next((enums[name] for name in names if name in enums), None)
    types = tuple(name for name in names if name not in enums)
    default = _literal(item.value)
    if isinstance(item.value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in item.value.keywords}
        default = _literal(keywords.get("default"))
        metadata = keywords.get("metadata")
        if isinstance(metadata, ast.Dict):
            listed = [value for key, value in zip(metadata.keys, metadata.values) if _literal(key) == "choices"]
            choices = choices or next((tuple(_literal(node)) for node in listed if _literal(node)), None)
    known = all(name in PLAIN for name in types)
    return TrainerField(item.target.id, types if known else None, choices, default)


def _union(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _union(annotation.left) + _union(annotation.right)
    return [annotation]


def _type_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return _type_name(node.value)
    return str(node.value) if isinstance(node, ast.Constant) else getattr(node, "id", "?")


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
