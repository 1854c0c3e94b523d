"""The statically read fields against the classes themselves."""

import ast
import dataclasses
import inspect
import typing

import pytest

from ruyi_rl.validation.model import BACKBONES
from ruyi_rl.validation.trainer_fields import GRPO_CHOICES, class_fields, trainer_fields
from ruyi_rl.validation.trainers import TRAINERS, check_trainer_fields


def trl_class(trainer: str):
    import trl

    return {"sft": trl.SFTConfig, "grpo": trl.GRPOConfig}[trainer]


@pytest.mark.parametrize("trainer", ["sft", "grpo"])
def test_fields_and_literal_defaults_are_those_of_the_class(trainer):
    truth = {field.name: field for field in dataclasses.fields(trl_class(trainer))}
    read = trainer_fields(trainer)
    assert set(read) == set(truth)
    for name, field in truth.items():
        default = field.default
        # `optim` takes its default from a computed name.
        if default is not dataclasses.MISSING and name != "optim":
            assert read[name].default == default, name


@pytest.mark.parametrize("trainer", ["sft", "grpo"])
def test_types_are_those_of_the_annotations(trainer):
    hints = typing.get_type_hints(trl_class(trainer))
    for name, field in trainer_fields(trainer).items():
        parts = typing.get_args(hints[name]) or (hints[name],)
        for kind in (int, float, bool, str):
            if hints[name] is kind or (kind in parts and typing.get_origin(hints[name]) not in (list, dict)):
                assert field.types is None or kind.__name__ in field.types, name
        if type(None) in parts:
            assert field.types is None or "None" in field.types, name


@pytest.mark.parametrize("trainer", ["sft", "grpo"])
def test_every_default_of_the_class_is_accepted(trainer):
    for field in dataclasses.fields(trl_class(trainer)):
        if field.default is not dataclasses.MISSING:
            assert trainer_fields(trainer)[field.name].problem(field.default) is None, field.name


def test_enums_and_listed_choices_are_those_of_transformers():
    from transformers.trainer_utils import SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    fields = trainer_fields("sft")
    for name, enum in (
        ("lr_scheduler_type", SchedulerType),
        ("save_strategy", SaveStrategy),
        ("optim", OptimizerNames),
    ):
        assert set(fields[name].choices) == {member.value for member in enum}
    for field in dataclasses.fields(trl_class("sft")):
        if field.metadata.get("choices") and isinstance(field.metadata["choices"], list):
            assert list(fields[field.name].choices) == field.metadata["choices"]


def test_choices_that_trl_names_in_its_code_only():
    from trl.trainer import grpo_trainer

    compared: dict[str, set[str]] = {name: set() for name in GRPO_CHOICES}
    for node in ast.walk(ast.parse(inspect.getsource(grpo_trainer))):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr in compared:
            for other in node.comparators:
                compared[node.left.attr] |= {
                    item.value
                    for item in ast.walk(other)
                    if isinstance(item, ast.Constant) and isinstance(item.value, str)
                }
    assert {name: set(choices) for name, choices in GRPO_CHOICES.items()} == compared


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("learning_rate", [1e-6, 1], ["1e-6", None, True]),
        ("max_steps", [1, -1], [1.0, "1", False]),
        ("bf16", [True, None], [1, "yes"]),
        ("max_length", [8, None], [8.0]),
        ("report_to", ["none", ["wandb"], None], [1]),
        ("lr_scheduler_kwargs", [{"num_cycles": 1}, None], [1.0]),
        ("pad_to_multiple_of", ["auto", 8, None], [8.0]),
        ("loss_type", ["nll", "dft"], ["dapo", None]),
    ],
)
def test_values(name, good, bad):
    field = trainer_fields("sft")[name]
    assert [field.problem(value) for value in good] == [None] * len(good)
    assert all(field.problem(value) for value in bad)


def test_all_fields_of_the_classes_pass_in_their_blocks():
    from ruyi_rl.validation.trainers import DECIDED_ELSEWHERE, OF_BLOCK

    config: dict = {}
    for block, trainer in TRAINERS.items():
        values = {
            field.name: field.default
            for field in dataclasses.fields(trl_class(trainer))
            if field.default is not dataclasses.MISSING
            and field.name not in DECIDED_ELSEWHERE | OF_BLOCK.get(block, {})
        }
        assert len(values) > 100
        *path, last = block.split(".")
        node = config
        for name in path:
            node = node.setdefault(name, {})
        node[last] = values
    check_trainer_fields(config)


@pytest.mark.parametrize("architecture", BACKBONES)
def test_backbone_keys_are_those_of_transformers(architecture):
    from transformers import Qwen2Config, Qwen3Config

    config = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}[architecture]()
    path, name = BACKBONES[architecture]
    fields = class_fields(path, name)
    assert {"hidden_size", "num_hidden_layers", "num_key_value_heads"} <= set(fields)
    assert set(fields) <= set(config.to_dict()) | {"layer_types", "pad_token_id", "bos_token_id", "eos_token_id"}
    assert fields["num_attention_heads"].default == config.num_attention_heads
