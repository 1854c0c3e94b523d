"""Held-out completions go to the judge through the scorer; what it cannot judge is counted, kept, or ends the run."""

import pytest

from ruyi_rl import ranks
from ruyi_rl.benchmarks.verdicts import Judge
from ruyi_rl.config import RunConfig
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.evaluation import evaluate_family
from ruyi_rl.failure import StageFailed
from ruyi_rl.rewards.failures import FailedSample, RewardFailures, Share, failure_counts, read_rows
from ruyi_rl.rewards.options import RewardFunctionOptions
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rollout.worker import Completion
from ruyi_rl.stages.held_out import ScoredJudge, measurement
from ruyi_rl.training.options import EvaluationOptions
from tests.rewards.fake_pool import Kind, group_of

ROWS = [{"prompt": f"{n}=", "answer": str(n)} for n in range(10)]


class Repeater:
    """Answers with the problem's number; greedy decoding always with a 5."""

    def generate(self, requests, sampling):
        numbers = [5 if sampling.temperature == 0 else int(bytes(request.prompt_ids[:-1])) for request in requests]
        return [Completion(list(str(number).encode()), True) for number in numbers]


def right(completion, row):
    if row["answer"] == "3":
        raise Kind("timeout")
    return None if row["answer"] == "4" else float(completion == row["answer"])


def measured(tmp_path, judge=None, fields=None, other=None, pass_at=1.0):
    functions = {"right": (right, {"max_failure_share": 1.0} | (fields or {}))}
    if other is not None:
        functions["other"] = other
    options, make, pools = group_of(judge=judge, pass_at=pass_at, **functions)
    failures = RewardFailures(options, tmp_path / "reward_failures.jsonl", lambda text: None)
    with RewardScorer(options, make) as scorer:
        judge = ScoredJudge(scorer, failures, "before")
        score = evaluate_family(
            byte_tokenizer(),
            ROWS,
            Judge(judge, pass_at, judge.settle),
            ["small"],
            EvaluationOptions(problems=10, samples=2, max_new_tokens=4),
            Repeater(),
            1,
        )["small"].score
    return score, failures, pools


def test_verdicts_and_what_could_not_be_judged(tmp_path):
    score, failures, pools = measured(tmp_path)
    assert score.pass_rate == 1.0 and score.greedy == pytest.approx(1 / 8)
    assert score.failures == 2 * 3  # two problems that failed or had no opinion, of 2 samples and a greedy one
    assert failure_counts(failures.path, "evaluation") == {"right": {"timeout": 3}}
    row = read_rows(failures.path)[0]
    assert (row["mode"], row["occasion"], row["exit"], row["prompt"]) == ("evaluation", "before", "small", "3=")
    columns = pools["right"].calls[0][1]
    assert columns.keys() == {"prompts", "completion_ids", "answer", "exit", "trainer_state"}
    assert columns["trainer_state"] is None


def test_a_sum_judges_where_no_function_is_named(tmp_path):
    half = (lambda completion, row: 0.5, {"weight": 1.0})
    assert measured(tmp_path, other=half, pass_at=1.5)[0].pass_rate == pytest.approx(8 / 9)  # 4 has the half alone
    assert measured(tmp_path, other=half, pass_at=1.6)[0].pass_rate == 0.0
    assert measured(tmp_path, other=half, pass_at=1.5)[0].failures == 3
    score, _, pools = measured(tmp_path, judge="right", other=half)
    assert score.pass_rate == 1.0 and pools["other"].calls == []
    assert measured(tmp_path, fields={"weight": 0.1})[0].pass_rate == 1.0, "the only function judges by itself"


def test_a_judge_behind_a_gate(tmp_path):
    gate = (lambda completion, row: float(row["answer"] != "7"), {})
    score, _, _ = measured(tmp_path, judge="right", fields={"gate": "other"}, other=gate)
    assert score.pass_rate == pytest.approx(7 / 8) and score.failures == 2 * 3


def test_too_many_failures_end_the_measurement_on_every_rank(tmp_path, monkeypatch):
    with pytest.raises(StageFailed, match="on_error=stop"):
        measured(tmp_path, fields={"on_error": "stop"})
    theirs = Share({"right": [("small", "nan")]}, [FailedSample("right", "nan", "nan", "p.py:1", "small", "1=", "1")])
    monkeypatch.setattr(ranks, "gathered", lambda own: [[theirs], own])
    options, make, _ = group_of(right=(right, {"on_error": "stop"}))
    with RewardScorer(options, make) as scorer, pytest.raises(StageFailed, match=r"p\.py:1: nan .*on_error=stop"):
        ScoredJudge(scorer, RewardFailures(options, None, lambda text: None), "before").settle()


def test_a_judge_that_cannot_run_is_told_at_the_meeting_of_the_ranks(tmp_path):
    options, make, pools = group_of(right=(right, {}))
    failures = RewardFailures(options, tmp_path / "reward_failures.jsonl")
    with RewardScorer(options, make) as scorer:
        pools["right"].broken = "right: cannot start: gone"
        judge = ScoredJudge(scorer, failures, "before")
        columns = {"prompts": ["p"], "exit": ["small"], "log_extra": None, "log_metric": None, "answer": ["1"]}
        assert judge(completions=["1"], **columns) == [None]
        with pytest.raises(StageFailed, match="no rewards: RewardError: right: cannot start: gone"):
            judge.settle()


def test_a_measurement_does_not_depend_on_how_its_judge_is_run():
    def of(**fields):
        config = RunConfig()
        config.reward.functions = {"a": RewardFunctionOptions(path="a.py", **fields)}
        return measurement(config)

    assert of(timeout=3.0, workers=2, memory_gb=1.0, on_error="stop", max_failure_share=0.5) == of()
    assert len({of(), of(weight=2.0), of(kwargs={"timeout": 1}), of(clip=[0.0, 1.0])}) == 4
