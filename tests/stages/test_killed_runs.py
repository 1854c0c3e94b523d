"""Runs that are killed, and the same command again; `scripts/kill_anywhere.py` does it at many random moments."""

import json
from pathlib import Path

import pytest

from ruyi_rl.checkpoint_folder import complete_checkpoints
from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.training.options import DeepSpeedOptions, EvaluationOptions, GRPOOptions, SFTOptions
from tests.forked_ranks import run_ranks

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
JUDGE = """
def digits(completions, **kwargs):
    texts = [chat[0]["content"] for chat in completions]
    return [None if text.startswith("1") else sum(map(str.isdigit, text)) for text in texts]
"""
STEPS = {"max_steps": 5, "save_steps": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}
SFT = {**STEPS, "per_device_train_batch_size": 4}
# Rollouts of four micro-batches, each used twice: four optimiser steps go by before the next.
GRPO = {
    **STEPS,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "num_generations": 4,
    "max_completion_length": 6,
}


@pytest.fixture(scope="module")
def differences():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "scripts")
        from kill_compare import differences
    return differences


@pytest.fixture
def config(tmp_path):
    (tmp_path / "digits.py").write_text(JUDGE)
    rows = [{"prompt": f"{n}+{n + 1}=", "completion": str(2 * n + 1), "answer": str(2 * n + 1)} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(stage, name, mode="off", **changes):
        return RunConfig(
            stage=StageOptions(stage),
            run_dir=str(tmp_path / name),
            stages=["init", stage],
            model=ModelOptions(exits={"small": 0, "large": 2}, scratch=dict(SHAPE)),
            data=DataOptions(path=str(tmp_path / "rows.jsonl"), holdout=12, test=None),
            reward=RewardOptions(functions={"digits": RewardFunctionOptions(path=str(tmp_path / "digits.py"))}),
            rollout=RolloutOptions(backend="transformers"),
            deepspeed=DeepSpeedOptions(mode=mode),
            sft=SFTOptions(trainer=dict(SFT)),
            grpo=GRPOOptions(trainer=dict(GRPO)),
            evaluation=EvaluationOptions(problems=0),
            **changes,
        )

    return make


def started(config, tmp_path, ranks, moment="", visit=0, victims=()):
    """The run on so many ranks; where it has victims, until these are dead."""
    function, log = "tests.stages.killed_ranks:main", tmp_path / "log"
    if not victims:
        return run_ranks(function, config, moment, visit, victims, log=log, ranks=ranks)
    with pytest.raises(AssertionError):
        run_ranks(function, config, moment, visit, victims, log=log, ranks=ranks)
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "ranks", "mode", "kills"),
    [
        ("grpo", 1, "off", [("rename", 2, (0,), 2), ("reward", 1, (0,), 4), ("save", 1, (0,), 4)]),
        ("sft", 2, "zero3", [("save", 2, (1,), 2)]),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(config, differences, tmp_path, stage, ranks, mode, kills):
    whole, run = config(stage, "whole", mode), config(stage, "killed", mode)
    started(whole, tmp_path, ranks)
    folder = StageFolder(Path(run.run_dir) / stage)
    for moment, visit, victims, kept in kills:
        started(run, tmp_path, ranks, moment, visit, victims)
        # A rank that lives on may have had the time to say that it has lost another.
        assert folder.manifest().status in (("running",) if len(victims) == ranks else ("running", "failed"))
        assert [path.name for path in complete_checkpoints(folder.path)][-1] == f"checkpoint-{kept}"
    assert "going on from" in started(run, tmp_path, ranks)
    assert not differences(folder.path, Path(whole.run_dir) / stage)
    assert not list(folder.path.glob(".saving-*"))
