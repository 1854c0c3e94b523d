"""`stage=expand`: the folder it leaves, and what it refuses."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import GenerationConfig, Qwen3Config

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.failure import StageFailed
from ruyi_rl.family import Family, FamilyConfig
from ruyi_rl.family.expansion import trained_share
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages import expand
from ruyi_rl.stages.held_out import measured_already, measurement
from ruyi_rl.stages.inputs import load_tokenizer

SCORES = {"small": {"pass_rate": 0.25}, "medium": {"pass_rate": 0.5}, "large": {"pass_rate": 0.75}}


@pytest.fixture
def before(family_folder, tmp_path):
    return shutil.copytree(family_folder, tmp_path / "sft")


def context(before, *overrides: str):
    """What the stage is given; it writes beside its input."""
    config = to_run_config(compose_config(["stage=expand", "name=x", *overrides]))
    folder = before.parent / "expand"
    folder.mkdir(exist_ok=True)
    return SimpleNamespace(config=config, input=before, folder=folder, console=Console(quiet=True))


@pytest.mark.parametrize("exit, layers", [(None, {"small": 3, "medium": 2, "large": 4}), ("large", {"large": 6})])
def test_the_family_it_leaves_computes_what_it_did(before, exit, layers):
    given = context(before, "expand.blocks=2", *([f"expand.exit={exit}"] if exit else []))
    summary = expand.run(given)
    assert (summary["max_logit_change"], summary["blocks"], summary["exit"]) == (0.0, 2, exit or "small")
    assert {name: summary["exits"][name]["layers"] for name in layers} == layers
    old, new = (Family.from_pretrained(str(folder)) for folder in (before, given.folder))
    assert new.config.expansions == {"small": 0, "medium": 0, "large": 0} | {summary["exit"]: 2}
    tokens = torch.randint(2, 200, (3, 20), generator=torch.Generator().manual_seed(7))
    for name in old.exits:
        assert torch.equal(old(tokens).logits[name], new(tokens).logits[name])
        assert summary["exits"][name]["parameters"] == new.branch_parameters(name)
    new.freeze_except([summary["exit"]], only_expansion=True)
    trained = sum(parameter.numel() for parameter in new.parameters() if parameter.requires_grad)
    assert summary["trained_parameters"] == trained
    assert summary["trained_share"] == trained / new.branch_parameters(summary["exit"])


def test_tokenizer_and_generation_config_go_along(before):
    declared = GenerationConfig.from_pretrained(before)
    declared.eos_token_id = [5, 6]
    declared.save_pretrained(before)
    given = context(before)
    expand.run(given)
    assert GenerationConfig.from_pretrained(given.folder).eos_token_id == [5, 6]
    assert load_tokenizer(given.folder).get_vocab() == load_tokenizer(before).get_vocab()
    assert load_tokenizer(given.folder).chat_template == load_tokenizer(before).chat_template


def test_the_dtype_is_the_families(before):
    Family.from_pretrained(str(before)).to(torch.bfloat16).save_pretrained(before)
    given = context(before)
    assert expand.run(given)["max_logit_change"] == 0.0
    assert Family.from_pretrained(str(given.folder), dtype="auto").dtype == torch.bfloat16


def test_the_seed_decides_the_new_blocks(before):
    name = "model.expansions.0.0.self_attn.q_proj.weight"

    def drawn(*overrides):
        given = context(before, *overrides)
        expand.run(given)
        return Family.from_pretrained(str(given.folder)).state_dict()[name]

    assert torch.equal(drawn("seed=3"), drawn("seed=3")) and not torch.equal(drawn("seed=3"), drawn("seed=4"))


def test_what_the_stage_before_measured_holds_on(before):
    given = context(before)
    held_out = {"measurement": measurement(given.config), "problems": 4, "exits": SCORES}
    (before / "summary.json").write_text(json.dumps({"stage": "sft", "held_out": held_out}))
    summary = expand.run(given)
    assert summary["held_out"] == held_out | {"measured_in": "sft"}
    (given.folder / "summary.json").write_text(json.dumps({"stage": "expand"} | summary))
    given.input = given.folder
    assert measured_already(given, ["small", "large"])["exits"] == {name: SCORES[name] for name in ("small", "large")}
    assert expand.held_out_before(given.folder)["held_out"]["measured_in"] == "sft", "the first to measure is named"


def test_without_a_measurement_there_is_none(before):
    assert "held_out" not in expand.run(context(before))
    (before / "summary.json").write_text('{"stage": "sft", "exits": {}}')
    assert expand.held_out_before(before) == {}


@pytest.mark.parametrize(
    "override, key, hint",
    [
        ("expand.exit=smal", "expand.exit", "small, medium, large"),
        ("expand.blocks=0", "expand.blocks", "1 or more"),
        ("expand.init=zero", "expand.init", "unknown"),
        ("expand.blocks=1", "expand.exit", "small has 2 expansion blocks already"),
    ],
)
def test_what_only_the_loaded_family_tells_is_refused_as_usual(before, override, key, hint):
    Family.from_pretrained(str(before)).expand("small", 2).save_pretrained(before)
    given = context(before, override)
    with pytest.raises(Refusal, match=hint) as refused:
        expand.run(given)
    assert refused.value.key == key and not list(given.folder.iterdir())


def test_an_exit_is_expanded_again_where_that_is_said(before):
    Family.from_pretrained(str(before)).expand("small", 2).save_pretrained(before)
    summary = expand.run(context(before, "expand.again=true", "expand.blocks=1"))
    assert summary["blocks"] == 1 and summary["exits"]["small"]["layers"] == 4


@pytest.mark.parametrize("weight", [1e-3, float("nan")])
def test_a_changed_function_is_never_saved(before, monkeypatch, weight):
    def loud(family, *arguments):
        grown(family, *arguments)
        torch.nn.init.constant_(family.model.expansions[0][0].mlp.down_proj.weight, weight)

    grown = Family.expand
    monkeypatch.setattr(Family, "expand", loud)
    given = context(before)
    with pytest.raises(StageFailed, match="change the logits of small"):
        expand.run(given)
    assert not list(given.folder.iterdir())


def test_half_of_ruyi2s_smallest_branch_is_trained():
    """The report's "approximately half", from the shapes of Qwen3-14B; the count is by hand."""
    shape = {"vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40}
    heads = {"num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128}
    config = FamilyConfig.from_backbone(Qwen3Config(**shape, **heads), {"1.7B": 2, "8B": 21, "14B": 39})
    config.expansion_blocks = [3, 0, 0]
    layer, words = 330_311_936, 151936 * 5120
    trained, branch = trained_share(config, "1.7B")
    assert trained == 3 * layer + 5120 + words
    assert branch == 6 * layer + 5120 + 2 * words
    assert trained / branch == pytest.approx(0.5000007, abs=5e-8)
    assert trained_share(config, "8B")[0] == 5120 + words
    with pytest.raises(ValueError, match="no such exit"):
        trained_share(config, "E3B")


def test_a_shared_head_is_not_trained():
    backbone = Qwen3Config(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3)
    config = FamilyConfig.from_backbone(backbone, {"a": 0, "b": 2}, shared_heads=True)
    config.expansion_blocks = [1, 0]
    family = Family(config)
    trained, branch = trained_share(config, "a")
    assert branch == family.branch_parameters("a")
    assert trained == sum(parameter.numel() for parameter in family.model.expansions[0].parameters()) + 32
