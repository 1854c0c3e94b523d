import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ruyi_rl.rewards.code import CodeJudge, CodeOptions

pytestmark = pytest.mark.slow
THREADS = 2


def verdicts(samples, **options):
    """(completion, row) pairs, judged by several judges at once."""

    def judge_share(start):
        with CodeJudge(CodeOptions(seconds=30, **options)) as judge:
            return [judge.judge(text, row) for text, row in samples[start::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        shares = list(pool.map(judge_share, range(THREADS)))
    return [shares[number % THREADS][number // THREADS] for number in range(len(samples))]


FORMS = {
    "whole program": lambda row: f"```python\n{row['prompt']}{row['canonical_solution']}```",
    "function without imports": lambda row: (
        row["prompt"][row["prompt"].index(f"def {row['entry_point']}(") :] + row["canonical_solution"]
    ),
    "body without its first indentation": lambda row: row["canonical_solution"].strip(),
    "body and more": lambda row: row["canonical_solution"] + "\n\nThis is right:\nassert cand",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_reference_solution_passes(confinable, humaneval, form):
    found = verdicts([(FORMS[form](row), row) for row in humaneval])
    wrong = {
        row["task_id"]: verdict for row, verdict in zip(humaneval, found, strict=True) if verdict.reason != "passed"
    }
    assert not wrong and len(found) == 164
    assert all(verdict.passed == verdict.total > 0 for verdict in found)
    # As many as HumanEval has assertions, those in loops counted as often as they run.
    assert sum(verdict.total for verdict in found) == 1582


def test_every_changed_solution_fails(confinable, humaneval):
    rows = "\n".join(json.dumps(row) for row in humaneval)
    command = [sys.executable, str(Path(__file__).parent / "mutants.py"), "1"]
    made = subprocess.run(command, input=rows, capture_output=True, text=True, check=True).stdout.splitlines()
    changed = [
        (mutant, row)
        for row, line in zip(humaneval, made, strict=True)
        for mutant in json.loads(line)["showing"]
        # Where the answer is not unique, the test takes another one for right as well.
        if mutant not in json.loads(line)["accepted"]
    ]
    assert len(changed) >= 160
    passed = [
        mutant for (mutant, _), verdict in zip(changed, verdicts(changed), strict=True) if verdict.reason == "passed"
    ]
    assert not passed
