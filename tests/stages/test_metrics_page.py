"""docs/metrics.md against the metrics that real trainings log: none is missing there, and none stands there in vain."""

import gc
import json
import re
from pathlib import Path

import pytest

from ruyi_rl.__main__ import main
from ruyi_rl.rewards.pool import KINDS
from ruyi_rl.training.callbacks import read_metrics
from ruyi_rl.training.phases import PHASES

pytestmark = pytest.mark.slow

REWARD = """
from ruyi_rl.rewards.completions import completion_text


def brief(completions, prompts, log_metric=None, **kwargs):
    log_metric("brevity", 0.5)
    if "9" in str(prompts[0]):
        raise LookupError("a nine")
    return [float(len(completion_text(completion)) % 3) for completion in completions]
"""
COMMON = ["rollout=transformers", "evaluation.problems=2", "evaluation.samples=2", "data.task.train_problems=64"]
GRPO = [
    *("stage=grpo", "grpo.trainer.max_steps=1", "grpo.trainer.per_device_train_batch_size=24"),
    *("grpo.trainer.num_generations=4", "grpo.trainer.max_completion_length=6", "evaluation.problems=0"),
]
REWARDS = [
    *("reward.functions={math_answer: {weight: 0}}", "+reward.functions.brief={path: brief.py, max_failure_share: 1}"),
    "+reward.functions.gated={path: brief.py, max_failure_share: 1, gate: brief}",
]


@pytest.fixture(scope="module")
def logged(family_folder, tmp_path_factory):
    """The names of all metrics that trainings log with every option that adds one."""
    folder = tmp_path_factory.mktemp("metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("brief.py").write_text(REWARD)
        return {
            metric
            for run in (sft, drawn, cispo, vespo, recovery)
            for row in read_metrics(run(["seed=1", f"start_from={family_folder}", *COMMON]) / "metrics.jsonl")
            for metric in row
        }


def ran(arguments: list[str], name: str, stage: str) -> Path:
    gc.freeze()  # else each collection of a stage looks at all that was ever imported
    assert main([*arguments, f"name={name}"]) == 0
    return Path("runs", name, stage)


def sft(start: list[str]) -> Path:
    few = ["stage=sft", "sft.trainer.max_steps=2", "sft.trainer.per_device_train_batch_size=4", "evaluation.every=1"]
    return ran([*start, *few], "sft", "sft")


def drawn(start: list[str]) -> Path:
    """Rollouts that come with log-probs, as an engine's do; a reference policy, an entropy bonus."""
    start = [*start, *GRPO, *REWARDS]
    rollouts = ran([*start, "grpo.rollout_only=true"], "drawn", "rollouts") / "rollouts.jsonl"
    rows = [json.loads(line) for line in rollouts.read_text().splitlines()]
    for row in rows:
        row["log_probs"] = [-1.0] * len(row["completion_ids"])
    rollouts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["grpo.trainer.beta=0.1", "grpo.trainer.entropy_coef=0.01", f"grpo.replay={rollouts}"]
    return ran([*start, *options], "replayed", "grpo")


def cispo(start: list[str]) -> Path:
    return ran([*start, *GRPO, "grpo.trainer.loss_type=cispo"], "cispo", "grpo")


def vespo(start: list[str]) -> Path:
    return ran([*start, *GRPO, "grpo.trainer.loss_type=vespo"], "vespo", "grpo")


def recovery(start: list[str]) -> Path:
    expanded = ran([*start, "stage=expand", "expand.exit=small", "expand.blocks=1"], "expanded", "expand")
    few = [
        "compress.recover_steps=2",
        "evaluation.problems=0",
        "compress.calibration_rows=8",
        "compress.trainer.per_device_train_batch_size=4",
    ]
    start = [word for word in start if not word.startswith("start_from")]
    return ran([*start, "stage=compress", f"start_from={expanded}", *few], "compressed", "compress")


def test_every_metric_is_on_the_page_and_every_one_there_appears(logged, repo_root):
    page = (repo_root / "docs" / "metrics.md").read_text()
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    documented = {metric for cell in cells for metric in re.findall(r"`([^`]+)`", cell)}
    assert {general(metric) for metric in logged} == documented


def test_the_phases_and_kinds_of_failure_are_those_of_the_code(logged):
    assert {metric.partition("/")[2] for metric in logged if metric.startswith("time/")} <= set(PHASES)
    assert {"time/reference", "time/old_log_probs", "time/evaluation"} <= logged
    kinds = {metric.rpartition("/")[2] for metric in logged if "/failures/" in metric}
    assert kinds and kinds <= set(KINDS)


def general(metric: str) -> str:
    """The metric's name as the page has it."""
    metric = re.sub(r"^(small|medium|large)/", "<exit>/", metric)
    metric = re.sub(r"rewards/(math_answer|brief|gated)/", "rewards/<function>/", metric)
    metric = re.sub(r"failures/.*", "failures/<kind>", metric)
    metric = re.sub(r"^time/.*", "time/<phase>", metric)
    return {"brevity": "<metric>"}.get(metric, metric)
