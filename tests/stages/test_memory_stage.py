"""The memory estimate from the configuration: by itself, and before a run."""

from io import StringIO

import pytest
from rich.console import Console

from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages import memory
from ruyi_rl.training.stage_memory import Device

RUYI2 = ModelOptions(base="Qwen/Qwen3-14B-Base", exits={"1.7B": 2, "8B": 21, "14B": 39}, dtype="bfloat16")
GPU = Device("cuda", 80 * 10**9)


@pytest.fixture
def offline(monkeypatch):
    """A network that is not asked."""

    def asked(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", asked)
    monkeypatch.setattr("huggingface_hub.get_session", asked)


def announced(config, stages, begun, monkeypatch, device=GPU):
    console = Console(file=StringIO(), width=140)
    monkeypatch.setattr(memory, "device", lambda config, here=False: device)
    memory.announce(console, config, stages, set(begun))
    return console.file.getvalue()


def test_a_run_of_a_shipped_base_is_told_what_it_takes_before_it_begins(offline, monkeypatch):
    config = RunConfig(model=RUYI2, num_processes=8)
    text = announced(config, ["init", "sft", "grpo"], ["init", "sft"], monkeypatch)
    assert text.startswith("sft: ") and "memory of a rank" in text and "grpo" not in text
    config.model.base = "owner/unknown"
    assert announced(config, ["init", "sft"], ["init", "sft"], monkeypatch) == "", "only the hub could tell"
    assert announced(config, ["init", "eval"], ["eval"], monkeypatch) == ""


def test_a_toy_is_one_line(monkeypatch):
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4}
    config = RunConfig(model=ModelOptions(scratch=sizes, exits={"small": 1, "large": 4}))
    config.data.source = "arithmetic"
    text = announced(config, ["init", "sft"], ["init", "sft"], monkeypatch)
    assert text.startswith("sft: at most about ") and text.count("\n") == 1
    small = Device("cpu", 10**6)
    assert announced(config, ["init", "sft"], ["init", "sft"], monkeypatch, small) == "", "its rows are short"
    config.data.source = "rows"
    text = announced(config, ["init", "sft"], ["init", "sft"], monkeypatch, small)
    assert "are not enough" in text and "sft.trainer.per_device_train_batch_size" in text


def test_stages_that_train_nothing_are_refused():
    with pytest.raises(Refusal, match="train nothing"):
        memory.run(RunConfig(stage=StageOptions("memory"), stages=["init", "eval"]))
