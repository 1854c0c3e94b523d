"""A training that was stopped in the middle of a step, of rollouts or of a log ends as if nothing had happened."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ruyi_rl.checkpoint_folder import complete_checkpoints
from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.failure import Interrupted
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.pipeline import run_stages
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.training.callbacks import StopOnSignal, read_metrics
from ruyi_rl.training.options import EvaluationOptions, GRPOOptions, LossWeightOptions, SFTOptions
from ruyi_rl.training.run_state import FOLDER

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
    return [sum(map(str.isdigit, chat[0]["content"])) / 6 for chat in completions]
"""
STEPS = 6
COMMON = {"max_steps": STEPS, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "logging_steps": 3}
# Rollouts of four micro-batches, each used twice: four optimiser steps go by before the next.
GRPO = {
    "per_device_train_batch_size": 8,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "num_generations": 4,
    "max_completion_length": 6,
}
SFT = {"per_device_train_batch_size": 4, "neftune_noise_alpha": 5.0}  # noise from torch's own generator


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "digits.py").write_text(JUDGE)
    rows = [{"prompt": f"{n}+{n + 1}=", "completion": str(2 * n + 1), "answer": str(2 * n + 1)} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(stage, name):
        return RunConfig(
            stage=StageOptions(stage),
            name=name,
            run_dir=str(folder / name),
            stages=["init", stage],
            model=ModelOptions(exits={"small": 0, "large": 2}, scratch=dict(SHAPE)),
            data=DataOptions(path=str(folder / "rows.jsonl"), holdout=12, test=None),
            reward=RewardOptions(functions={"digits": RewardFunctionOptions(path=str(folder / "digits.py"))}),
            sft=SFTOptions(
                packed=False,
                loss_weights=LossWeightOptions(start={"small": 2.0}, end={"small": 0.5}, schedule="linear"),
                trainer={**COMMON, **SFT},
            ),
            grpo=GRPOOptions(trainer={**COMMON, **GRPO}),
            evaluation=EvaluationOptions(problems=0),
        )

    return config


@pytest.fixture(scope="module")
def whole(make):
    """Stage -> what the uninterrupted run has left."""
    found = {}

    def of(stage):
        if stage not in found:
            config = make(stage, f"whole-{stage}")
            run_stages(config, [])
            found[stage] = left_by(config, stage)
        return found[stage]

    return of


def left_by(config, stage):
    """Final weights, and the metrics without clocks."""
    folder = Path(config.run_dir) / stage
    rows = [
        {key: value for key, value in row.items() if not any(word in key for word in ("time", "second", "flos"))}
        for row in read_metrics(folder / "metrics.jsonl")
    ]
    return load_file(folder / "model.safetensors"), rows


def stop_once(monkeypatch, place, call):
    """Sends this process SIGTERM before the `call`-th call of a method of StopOnSignal."""
    original, calls = getattr(StopOnSignal, place), []

    def counted(self, *args, **kwargs):
        calls.append(place)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StopOnSignal, place, counted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "place", "call", "saved"),
    [
        ("sft", "on_substep_end", 3, 2),
        ("sft", "on_step_end", 4, 4),  # between two logs
        ("grpo", "on_substep_end", 2, 1),  # in the middle of rollouts
        ("grpo", "on_step_end", 2, 2),
        ("grpo", "check", 7, 4),  # first rollouts, their rewards, four micro-steps, second rollouts
    ],
)
def test_a_training_stopped_anywhere_ends_as_if_nothing_had_happened(
    make, whole, monkeypatch, stage, place, call, saved
):
    weights, rows = whole(stage)
    config = make(stage, f"{stage}-{place}-{call}")
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stopped:
        stop_once(patch, place, call)
        run_stages(config, [f"stage={stage}"])
    folder = Path(config.run_dir) / stage
    assert stopped.value.status == 143 and f"after step {saved}" in str(stopped.value)
    newest = complete_checkpoints(folder)[-1]
    assert newest.name == f"checkpoint-{saved}"
    assert (newest / FOLDER / "rank-0.safetensors").is_file() == (stage == "grpo" and saved % 4 != 0)
    run_stages(config, [])
    again, rows_again = left_by(config, stage)
    assert weights.keys() == again.keys() and all(bool((weights[name] == again[name]).all()) for name in weights)
    assert rows_again == rows
