"""Both embedded tasks through init, SFT and GRPO, on a family of a few thousand parameters."""

import pytest

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.pipeline import run_stages
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.training.callbacks import read_metrics

TASK = "{train_problems: 40, test_problems: 12}"
SHAPE = "hidden_size: 32, intermediate_size: 64, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16"
CHANGES = [
    f"data.task={{arithmetic: {TASK}, toy_code: {TASK}}}",
    "model.exits={small: 0, large: 1}",
    f"model.scratch={{num_hidden_layers: 2, {SHAPE}}}",
    "sft.trainer.max_steps=2",
    "sft.trainer.per_device_train_batch_size=8",
    "grpo.trainer.max_steps=2",
    "grpo.trainer.logging_steps=1",
    "grpo.trainer.per_device_train_batch_size=32",
    "grpo.trainer.num_generations=4",
    "grpo.trainer.max_completion_length=6",
    "evaluation={problems: 8, samples: 1}",
    "rollout=transformers",
]


@pytest.mark.slow
def test_every_row_of_a_mixture_is_judged(confinable, tmp_path):
    place = [f"run_dir={tmp_path}", "name=x", "reward.functions.code_tests.workers=1"]
    config = to_run_config(compose_config(["stage=grpo", "data=toy_mixed", "reward=math_code", *CHANGES, *place]))
    run_stages(config, [])
    found = StageFolder(tmp_path / "grpo").summary()
    assert found["reward_failures"] == 0
    # A row that no function judged would be left out, and counted.
    assert all(score["failures"] == 0 for score in found["held_out"]["exits"].values())
    steps = [row for row in read_metrics(tmp_path / "grpo" / "metrics.jsonl") if "small/reward" in row]
    assert len(steps) == 2 and all(row[f"{name}/unscored"] == 0 for row in steps for name in ("small", "large"))
