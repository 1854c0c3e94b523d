"""What watches the exits during a training: what is refused, and what goes together."""

import pytest

from tests.validation.test_validation import checked, refusal, working_folder  # noqa: F401 - a fixture of every test


@pytest.mark.parametrize(
    ("given", "key", "allowed"),
    [
        (["keep_best=exit"], "keep_best", "evaluation.every"),
        (["evaluation.max_drop=0.1"], "evaluation.max_drop", "evaluation.every"),
        (["keep_best=exits", "evaluation.every=5"], "keep_best", "did you mean 'exit'"),
        (["evaluation.every=0"], "evaluation.every", "1 or more"),
        (["evaluation.every=5", "evaluation.max_drop=0"], "evaluation.max_drop", "0.05: 5 points"),
        (["evaluation.every=5", "evaluation.max_drop=5"], "evaluation.max_drop", "between 0 and 1"),
        (["evaluation.every=5", "evaluation.problems=0"], "evaluation.every", "evaluation.problems"),
    ],
)
def test_a_guard_that_could_not_guard_is_refused(given, key, allowed):
    refused = refusal("stage=grpo", *given)
    assert refused.key == key and allowed in refused.allowed


def test_replayed_rollouts_have_no_engine_to_measure_with(tmp_path):
    (tmp_path / "rollouts.jsonl").touch()
    refused = refusal("stage=grpo", "grpo.replay=rollouts.jsonl", "evaluation.every=5")
    assert refused.key == "evaluation.every" and "no engine" in refused.problem


@pytest.mark.parametrize("stage", ["pretrain", "sft", "pipeline"])
def test_guards_pass_for_every_stage(stage):
    data = ["data=gsm8k"] if stage == "pretrain" else []
    given = checked(f"stage={stage}", "evaluation.every=5", "evaluation.max_drop=0.05", "keep_best=mean", *data)
    assert (given.evaluation.every, given.evaluation.max_drop, given.keep_best) == (5, 0.05, "mean")
