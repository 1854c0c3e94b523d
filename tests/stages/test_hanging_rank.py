"""A rank that hangs ends its run within the watchdog's time, which the same command then completes."""

import json
import re
import time
from pathlib import Path

import pytest

from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.training.callbacks import read_metrics
from ruyi_rl.training.options import EvaluationOptions, GRPOOptions
from tests.forked_ranks import run_ranks

LIMIT = 6.0
"""Seconds of the watchdog: more than anything takes here that does not beat."""
JUDGE = """
def digits(completions, **kwargs):
    return [float(any(map(str.isdigit, chat[0]["content"]))) for chat in completions]
"""
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GRPO = {
    "max_steps": 4,
    "save_steps": 1,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 7,
    "logging_steps": 1,
}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "digits.py").write_text(JUDGE)
    rows = [{"prompt": f"{n}+{n + 1}=", "answer": str(2 * n + 1)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig(
        stage=StageOptions("grpo"),
        name="x",
        run_dir=str(tmp_path / "x"),
        stages=["init", "grpo"],
        model=ModelOptions(exits={"small": 0, "large": 1}, scratch={**SHAPE, "num_key_value_heads": 1, "head_dim": 16}),
        data=DataOptions(path=str(tmp_path / "rows.jsonl"), holdout=4, test=None),
        reward=RewardOptions(functions={"digits": RewardFunctionOptions(path=str(tmp_path / "digits.py"))}),
        grpo=GRPOOptions(trainer=dict(GRPO)),
        evaluation=EvaluationOptions(problems=0),
        watchdog_minutes=LIMIT / 60,
    )


@pytest.mark.slow
def test_a_hanging_rank_ends_the_run_and_a_slow_one_does_not(config, tmp_path):
    config.rollout.backend = "transformers"
    slow, hangs = 1, 3  # rollouts of rank 1, whose seven tokens at two exits together take over two limits
    shown = run_ranks(
        "tests.stages.hanging_rank:run", config, slow, hangs, LIMIT / 6, log=tmp_path / "log", status=1, timeout=120
    )
    ended = time.time()
    folder = StageFolder(Path(config.run_dir) / "grpo")
    rows = read_metrics(folder.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["step_time"] > 2 * LIMIT
    assert ended - (folder.path / "metrics.jsonl").stat().st_mtime < LIMIT + 5

    manifest = folder.manifest()
    assert manifest.status == "failed" and manifest.message in shown
    where = (
        r"rank 1 \(host \S+\) in rollout after step 2 \(wait, .*?\), silent for .*; rank 0 \(host \S+\) waits in \w+"
    )
    assert re.match(rf"no progress for {LIMIT:g} s: {where} after step 2 ", manifest.message), manifest.message
    for rank, call in ((0, "distributed_c10d.py"), (1, "in hindered")):
        stacks = (folder.path / f"stacks-rank-{rank}.txt").read_text()
        assert call in stacks and stacks in shown
    (checkpoint,) = folder.checkpoints()[-1:]
    assert checkpoint.name == "checkpoint-2"
    assert f"Safe on disk: {checkpoint}" in shown and "go on with: " in shown
    assert "Traceback (most recent call last)" not in shown

    again = run_ranks("ruyi_rl.pipeline:run_stages", config, ["stage=grpo"], log=tmp_path / "again", timeout=120)
    assert f"going on from {checkpoint}" in again.replace("\n", "")
    assert folder.manifest().status == "done"
    assert not list(folder.path.glob("stacks-*")) and not (folder.path / "ranks").exists()
