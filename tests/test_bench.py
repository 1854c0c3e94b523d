import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench.py"


def bench(*arguments):
    return subprocess.run([sys.executable, BENCH, "rewards", *arguments], capture_output=True, text=True, check=False)


def test_missing_data_is_refused(tmp_path):
    done = bench("--data", str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / "math" / "train.json") in done.stderr and "--embedded" in done.stderr


@pytest.mark.slow
def test_all_contestants_judge_the_embedded_rows_right(confinable, tmp_path):
    done = bench("--quick", "--embedded", "--workers", "2", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["contestant"] for row in found["math"]} == {"math-verify", "TRL accuracy_reward", "math_answer"}
    assert {row["rows"] for row in found["math"]} == {"sums, right", "sums, wrong"}
    assert {row["workers"] for row in found["scaling"]} == {1, 2}
    assert {row["contestant"] for row in found["code"]} == {
        "plain subprocesses",
        "code_tests, cold",
        "code_tests, warm",
    }
    for row in [row for table in found.values() for row in table]:
        assert row["accuracy"] == 1.0 and 0 < row["lowest"] <= row["speed"] <= row["highest"]
        assert row["ratio"] == 1.0 or row["contestant"] not in ("math-verify", "plain subprocesses")
        assert f"{row['speed']:8.0f}" in done.stdout
