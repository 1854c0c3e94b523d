import gzip
import json
from pathlib import Path

import pytest

from ruyi_rl.rewards.code import CodeJudge, CodeOptions

DATA = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture(scope="module")
def judge(confinable):
    with CodeJudge(CodeOptions(seconds=10)) as judge:
        yield judge


@pytest.fixture(scope="session")
def humaneval():
    file = DATA / "humaneval" / "HumanEval.jsonl.gz"
    if not file.exists():
        pytest.skip(f"no HumanEval at {file}")
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]
