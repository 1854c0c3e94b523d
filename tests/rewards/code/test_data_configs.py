import json
from pathlib import Path

import yaml

from ruyi_rl.data.options import DataOptions
from ruyi_rl.data.rows import load_splits
from ruyi_rl.rewards.loading import load_function

CONF = Path(__file__).parents[3] / "conf"
score = load_function("rewards/code_tests.py")
MBPP = [
    {
        "task_id": number,
        "text": f"Write a function to multiply by {number}.",
        "code": f"def times(x):\r\n    return {number} * x",
        "test_list": [f"assert times(1) == {number}", f"assert math.isclose(times(2.0), {2 * number})"],
        "test_setup_code": "import math" if number % 2 else "",
        "challenge_test_list": [],
    }
    for number in range(2, 12)
]


def splits(name, **changes):
    options = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text()) | changes
    return load_splits(DataOptions(**options), seed=0, stage="grpo", needs=["tests"])


def columns(rows):
    return {name: list(rows[name]) for name in rows.column_names if name not in ("prompt", "completion")}


def test_mbpp_rows_reach_the_reward_with_their_tests(confinable, tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    rows = splits("mbpp", path=str(tmp_path)).train
    assert "assert times(1) ==" in rows[0]["prompt"][-1]["content"]
    given = columns(rows)
    assert score(completions=list(given["code"]), **given) == [1.0] * len(rows)
    assert score(completions=["def times(x): return 2 * x"] * len(rows), **given).count(1.0) <= 1


def test_humaneval_rows_reach_the_reward_with_their_tests(confinable, humaneval, tmp_path):
    (tmp_path / "HumanEval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in humaneval[:50]))
    rows = splits("humaneval", path=str(tmp_path), train="HumanEval").train
    given = columns(rows)
    stub = given["code_prompt"][0]
    assert stub in rows[0]["prompt"][-1]["content"]
    assert score(completions=list(given["canonical_solution"]), **given) == [1.0] * len(rows)
    whole = [f"```python\n{a}{b}```" for a, b in zip(given["code_prompt"], given["canonical_solution"], strict=True)]
    assert score(completions=whole, **given) == [1.0] * len(rows)
    assert score(completions=["    return None"] * len(rows), **given) == [0.0] * len(rows)


def test_demonstrations_pass_their_own_tests(confinable, tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    options = yaml.safe_load((CONF / "data" / "mbpp.yaml").read_text()) | {"path": str(tmp_path)}
    rows = load_splits(DataOptions(**options), seed=0, stage="sft").train
    assert score(completions=list(rows["completion"]), **columns(rows)) == [1.0] * len(rows)


def test_the_reward_config_names_options_that_exist():
    config = yaml.safe_load((CONF / "reward" / "code.yaml").read_text())
    function = config["functions"]["code_tests"]
    score.__globals__["_start"](**function["kwargs"] | {"sandbox": "none"})
    assert function["timeout"] > function["kwargs"]["seconds"]
