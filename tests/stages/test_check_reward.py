"""`stage=check_reward` through the command, with real workers."""

import json

import pytest

from ruyi_rl.__main__ import main
from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.data.arithmetic import arithmetic_options, generate
from ruyi_rl.rewards import trial
from ruyi_rl.rewards.samples import require_columns
from ruyi_rl.stages.check_reward import read_samples

GOOD = """
from ruyi_rl.rewards.completions import completion_text


def mine(completions, answer, **kwargs):
    return [float(gold in completion_text(text)) for text, gold in zip(completions, answer)]
"""
BAD = """
def mine(completions, answer, **kwargs):
    return [1.0 for message in completions
            if message[0]["contents"]]
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs the command with a plugin of this source; returns its status and what it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "MEASURED_SECONDS", 0.01)

    def run(source, *overrides):
        (tmp_path / "mine.py").write_text(source)
        status = main(["stage=check_reward", "reward.functions={math_answer: {path: mine.py, timeout: 5}}", *overrides])
        return status, capsys.readouterr()

    return run


def config(*overrides):
    return to_run_config(compose_config(["stage=check_reward", *overrides]))


def test_a_good_reward_keeps_the_contract_and_right_stands_beside_wrong(check, tmp_path):
    status, shown = check(GOOD, "check_reward.samples=12", "check_reward.shown=6", "check_reward.output=o.json")
    assert status == 0, shown.err
    assert "keeps the contract" in shown.out and "BROKEN" not in shown.out
    origins = [line.split("│")[3].strip() for line in shown.out.splitlines() if line.count("│") == 5]
    assert origins == ["reference", "exchanged"] * 3 + ["reference", "exchanged"]
    results = json.loads((tmp_path / "o.json").read_text())
    assert results["holds"] is True
    (function,) = results["functions"].values()
    assert {check["outcome"] for check in function["checks"]} == {"holds"}
    speed = function["speed"]
    assert speed["one"] > 0 and speed["all"] > 0 and speed["memory_gb"] > 0.005
    rewards = {origin: [] for origin in ("reference", "exchanged")}
    for sample in results["samples"]:
        rewards[sample["origin"]].append(sample["rewards"]["math_answer"])
    assert len(rewards["reference"]) == 12 and sum(rewards["reference"]) > 6 > sum(rewards["exchanged"])


def test_a_bad_reward_ends_with_status_one_and_the_line_at_fault(check):
    status, shown = check(BAD, "check_reward.samples=4")
    assert status == 1
    assert "breaks the contract" in shown.err and "mine.py:4: KeyError" in shown.err and "-> mend" in shown.err
    assert "Traceback" not in shown.err


def test_what_cannot_be_imported_ends_with_status_one(check):
    status, shown = check("raise ValueError('not here')\n" + GOOD)
    assert status == 1 and "not here" in shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["check_reward.samples=1"], ("check_reward.samples", "2 or more")),
        (["check_reward.completions=none.jsonl"], ("check_reward.completions", "none.jsonl")),
        (["check_reward.output=/proc/x/o.json"], ("check_reward.output", "/proc")),
        (["num_processes=2"], ("num_processes", "one process")),
        (["data=rows", "data.path=rows.jsonl"], ("rows.jsonl", "'answer'")),
    ],
)
def test_refusals_come_before_any_worker(check, tmp_path, monkeypatch, overrides, words):
    monkeypatch.setattr(trial, "RewardPool", None)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1="}\n')
    status, shown = check(GOOD, *overrides)
    assert status == 2
    assert all(word in shown.err for word in words), shown.err


def test_samples_are_rows_of_the_training_with_their_demonstrations():
    samples = read_samples(config("check_reward.samples=20", "data.limit=15", "seed=3"))
    rows, _ = generate(arithmetic_options(config().data.task), 3)
    assert samples.completions[:15] == [row["completion"][0]["content"] for row in rows[:15]]
    assert samples.columns["prompts"][:15] == [row["prompt"] for row in rows[:15]]
    assert samples.columns["answer"][:15] == [row["answer"] for row in rows[:15]]
    assert "style" not in samples.columns and samples.columns["exit"][0] == "large"


@pytest.mark.parametrize("data", ["toy_code", "toy_mixed"])
def test_demonstrations_stand_beside_their_own_rows(data):
    """However a task shuffles them; a row that another function judges has None."""
    samples = read_samples(config(f"data={data}", "reward=math_code", "check_reward.samples=24"))
    rows = zip(samples.completions[:24], samples.columns["prompts"], samples.columns["answer"], strict=False)
    for completion, prompt, answer in rows:
        asked = prompt[-1]["content"]
        assert ("def f" in completion) == asked.startswith("f(") == (answer is None)
    require_columns(samples, {"math_answer": ["answer"], "code_tests": ["tests"]})


def test_rows_without_completions_are_tried_on_their_answers(tmp_path):
    rows = [{"prompt": f"{n}+1=", "answer": n + 1} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=rows", f"data.path={tmp_path / 'rows.jsonl'}", "data.holdout=2"]
    samples = read_samples(config(*data, "check_reward.samples=4"))
    assert samples.origins == ["answer"] * 4 + ["exchanged"] * 4
    assert samples.completions[:4] == [rf"\boxed{{{answer}}}" for answer in samples.columns["answer"][:4]]


def test_a_file_of_completions_meets_the_rows_of_both_splits(tmp_path):
    train, test = generate(arithmetic_options(config().data.task), 1)
    file = tmp_path / "drawn.jsonl"
    lines = [{"prompt": rows[0]["prompt"], "exit": "small", "completion": "so 5"} for rows in (train, test)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = read_samples(config(f"check_reward.completions={file}"))
    assert samples.columns["answer"] == [train[0]["answer"], test[0]["answer"]]
