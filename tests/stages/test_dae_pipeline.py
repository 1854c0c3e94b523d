"""`experiment=dae_tiny` from nothing to its report, shortened."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ruyi_rl.__main__ import main
from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config
from ruyi_rl.family import Family
from ruyi_rl.validation import validate

STAGES = ["init", "sft", "expand", "expanded_sft", "grpo", "compress", "eval"]
SHORT = (
    "rollout=transformers",
    "evaluation.problems=8",
    "evaluation.samples=2",
    "data.task.train_problems=100",
    "sft.trainer.max_steps=4",
    "expanded_sft.trainer.max_steps=3",
    "expanded_sft.trainer.warmup_steps=0",
    "grpo.trainer.max_steps=2",
    "grpo.trainer.warmup_steps=0",
    "grpo.trainer.per_device_train_batch_size=16",
    "grpo.trainer.max_completion_length=8",
    "compress.calibration_rows=16",
    "compress.recover_steps=3",
)
NEW = ("model.expansions.0.", "model.norms.0.", "lm_head.0.")


def test_the_experiment_is_valid_and_says_what_it_runs():
    config = to_run_config(compose_config(["experiment=dae_tiny"], ConfigSource()))
    validate(config)
    assert config.stage.name == "pipeline" and config.stages == STAGES
    assert config.expanded_sft.train_only == config.grpo.train_only == "expansion"


@pytest.mark.slow
def test_every_stage_of_dae_and_its_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = ["experiment=dae_tiny", f"run_dir={tmp_path / 'run'}", *SHORT]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for told in ("small, stage by stage", "loss of all matrices by method", "expansions.0.2.down_proj"):
        assert told in shown

    def tensors(stage: str) -> dict:
        with safe_open(tmp_path / "run" / stage / "model.safetensors", "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    before, after, compressed = (tensors(stage) for stage in ("expand", "grpo", "compress"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {name for name in before if name.startswith(NEW)}
    assert all(compressed[name].equal(before[name]) for name in before if not name.startswith(NEW))

    # A trainer switches the cache off for its own passes.
    assert all(read(tmp_path / "run" / stage / "config.json").get("use_cache", True) for stage in STAGES[:-1])

    summaries = {stage: read(tmp_path / "run" / stage / "summary.json") for stage in STAGES}
    assert summaries["expand"]["max_logit_change"] == 0.0
    sizes = [summaries[stage]["exits"]["small"]["parameters"] for stage in ("init", "expand", "eval")]
    rows = [row for row in read(tmp_path / "run" / "eval" / "history.json")["rows"] if row["exit"] == "small"]
    # init, sft; expand, expanded_sft, grpo; compress, and recovered.
    assert [row["parameters"] for row in rows] == [size for size, times in zip(sizes, (2, 3, 2)) for _ in range(times)]
    assert sizes[0] < sizes[2] < sizes[1]
    measured = [row for row in rows if row["pass_rate"] is not None]
    assert len(measured) == 6 and all(row["comparable"] for row in measured)
    assert (tmp_path / "run" / "eval" / "history.png").stat().st_size > 0

    start = time.monotonic()
    assert main(command) == 0
    assert time.monotonic() - start < 5 and "done already" in capsys.readouterr().out


@pytest.mark.slow
def test_pretraining_after_an_expansion_moves_what_is_new(tmp_path):
    text = "".join(json.dumps({"text": f"{n:03d} " + "one and one is two. " * 9}) + "\n" for n in range(40))
    (tmp_path / "texts.jsonl").write_text(text)
    data = ["data=rows", f"data.path={tmp_path / 'texts.jsonl'}", "data.holdout=4", "+data.fields.text=text"]
    steps = ["expanded_pretrain.trainer.max_steps=2", "expanded_pretrain.trainer.warmup_steps=0"]
    run = ["stage=pipeline", "stages=[init,expand,expanded_pretrain]", f"run_dir={tmp_path / 'run'}", "name=texts"]
    assert main([*run, *data, *steps]) == 0
    before, after = (
        Family.from_pretrained(tmp_path / "run" / stage).state_dict() for stage in ("expand", "expanded_pretrain")
    )
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {name for name in before if name.startswith(NEW)}
    summary = read(tmp_path / "run" / "expanded_pretrain" / "summary.json")
    assert list(summary["exits"]) == ["small"] and summary["steps"] == 2


@pytest.mark.slow
def test_an_engine_that_casts_leaves_no_trace_in_what_is_frozen(family_folder, tmp_path):
    """DeepSpeed in bf16 rounds a whole float32 family, and saves it so."""
    family = Family.from_pretrained(family_folder).expand("small", blocks=1)
    shutil.copytree(family_folder, tmp_path / "expand")
    family.save_pretrained(tmp_path / "expand")
    steps = ["expanded_sft.trainer.max_steps=2", "expanded_sft.trainer.warmup_steps=0", "data.task.train_problems=100"]
    engine = ["deepspeed=zero2", "expanded_sft.trainer.bf16=true", "evaluation.problems=0"]
    start = [f"start_from={tmp_path / 'expand'}", f"run_dir={tmp_path / 'run'}", "stage=expanded_sft"]
    assert main([*start, *engine, *steps]) == 0
    before, after = family.state_dict(), Family.from_pretrained(tmp_path / "run" / "expanded_sft", dtype="auto")
    assert after.dtype == torch.float32
    moved = {name for name, tensor in after.state_dict().items() if not tensor.equal(before[name])}
    assert moved and all(name.startswith(NEW) for name in moved)


def read(path: Path) -> dict:
    return json.loads(path.read_text())
