import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
BENCH = SCRIPTS / "bench.py"
sys.path.insert(0, str(SCRIPTS))

import bench_baseline
import bench_expansion
import bench_training

TINY = {"grpo": ["--cases", "12,6,2"], "sft": ["--cases", "3,12"]}


def bench(command, *arguments):
    return subprocess.run([sys.executable, BENCH, command, *arguments], capture_output=True, text=True, check=False)


def run_training(command, *options):
    """In this process, which has imported what takes seconds to import."""
    parser = ArgumentParser()
    getattr(bench_training, f"add_{command}_arguments")(parser)
    options = ["--shape", "tiny", "--hidden", "32", "--threads", "1", "--rounds", "2", *TINY[command], *options]
    return getattr(bench_training, command)(parser.parse_args(options))


@pytest.mark.parametrize("command", ["grpo", "sft"])
def test_training_is_proved_equal_and_timed(command, tmp_path, capsys):
    baseline = tmp_path / "baseline.json"
    found = run_training(command, "--no-memory", "--update", str(baseline))
    printed = capsys.readouterr().out
    assert len(found["equality"]) == 2  # equal and uneven lengths
    for equality in found["equality"]:
        assert 0 < equality["gradients"] <= 1e-4 and equality["log_probs"] <= 1e-5
        assert equality["case"] in printed
    phases = {row["phase"] for row in found["rows"]}
    assert phases == {"forward + backward", "optimiser", "whole step"} | (
        {"old log-probs"} if command == "grpo" else set()
    )
    for row in found["rows"]:
        assert 0 < row["ours"]["lowest"] <= row["ours"]["median"] <= row["ours"]["highest"]
        if row["phase"] != "optimiser":
            assert row["bound"] >= row["bound_scored"] > 1
            assert row["share"] == pytest.approx(row["ratio"]["median"] / row["bound"])
    json.dumps(found)
    assert len(json.loads(baseline.read_text())) == len([row for row in found["rows"] if row["bound"]])


@pytest.mark.slow
def test_what_is_new_is_proved_equal_and_measured(capsys):
    parser = ArgumentParser()
    bench_expansion.add_arguments(parser)
    options = ["--shape", "tiny", "--case", "4,64", "--rounds", "1", "--threads", "1"]
    found = bench_expansion.expansion(parser.parse_args(options))
    assert found["gradients"]["gradients"] <= 1e-6 and "tensors within" in capsys.readouterr().out
    rows = {row["phase"]: row for row in found["rows"]}
    assert rows.keys() == {"forward", "backward", "optimiser", "whole step"}
    assert rows["backward"]["bound"] > rows["whole step"]["bound"] > 1
    memory = found["memory_mib"]
    assert memory["what is new"]["peak"] < memory["whole branch"]["peak"]


@pytest.mark.parametrize("command", ["grpo", "sft"])
def test_unequal_results_are_not_timed(command, monkeypatch):
    import bench_grpo
    import bench_sft

    module = {"grpo": bench_grpo, "sft": bench_sft}[command]
    plain = module.theirs

    def changed(branch, *rest):
        branch.model.norm.weight.data.mul_(1.001)
        return plain(branch, *rest)

    monkeypatch.setattr(module, "theirs", changed)
    with pytest.raises(SystemExit, match="our results are not TRL's"):
        run_training(command, "--no-memory")


def test_a_worse_ratio_than_the_baselines_ends_with_1(tmp_path):
    baseline = tmp_path / "baseline.json"
    entries = bench_baseline.updated({}, {"a | whole step": 3.0, "b | whole step": 2.0, "a | memory": 1.0})
    baseline.write_text(json.dumps(entries))

    def check(**ratios):
        parser = ArgumentParser()
        bench_baseline.add_baseline_arguments(parser)
        names = {name.replace("_", " | ", 1).replace("_", " "): ratio for name, ratio in ratios.items()}
        bench_baseline.against_baseline(parser.parse_args(["--check", str(baseline)]), names)

    check(a_whole_step=2.6, a_memory=1.1)
    check(a_whole_step=9.0, a_memory=0.1)
    with pytest.raises(SystemExit, match=r"a \| whole step: 2\.500, the baseline has 3\.000 and allows 15%"):
        check(a_whole_step=2.5, b_whole_step=2.0)
    for worse in ({"a_memory": 1.2}, {"b_whole_step": float("nan")}, {"c_whole_step": 5.0}):
        with pytest.raises(SystemExit):
            check(**worse)


def test_an_updated_baseline_keeps_tolerances_and_other_entries():
    before = {"a": {"ratio": 1.0, "tolerance": 0.5}, "b": {"ratio": 2.0, "tolerance": 0.1}}
    assert bench_baseline.updated(before, {"a": 1.5, "c": 3.0}) == {
        "a": {"ratio": 1.5, "tolerance": 0.5},
        "b": {"ratio": 2.0, "tolerance": 0.1},
        "c": {"ratio": 3.0, "tolerance": bench_baseline.TOLERANCE},
    }


def test_the_committed_baseline_can_be_read():
    entries = json.loads(bench_baseline.COMMITTED.read_text())
    assert {name.split()[0] for name in entries} >= {"grpo", "sft"}
    assert all(entry["ratio"] > 0 and 0 < entry["tolerance"] < 1 for entry in entries.values())


@pytest.mark.parametrize("cases", ["1,2", "a,b,c", "8,4,1", "0,4,2"])
def test_a_case_that_is_none_is_refused(cases):
    with pytest.raises(SystemExit, match=f"--cases {cases}"):
        run_training("grpo", "--cases", cases)


@pytest.mark.slow
def test_peak_memory_is_at_least_what_a_step_keeps():
    """Each side in a process of its own."""
    (peak,) = run_training("sft", "--cases", "32,256", "--lengths", "equal", "--rounds", "1")["memory"]
    # Every layer's input, float32, of 5 layers 32 wide.
    kept = 32 * 256 * 5 * 32 * 4 / 2**20
    assert kept < peak["ours_transient"] <= peak["ours"] and kept < peak["trl_transient"] <= peak["trl"]
    assert peak["whole"] == pytest.approx(peak["ours"] / peak["trl"])


@pytest.mark.slow
def test_syncs_are_proved_and_timed(tmp_path):
    done = bench("sync", "--shape", "tiny", "--rounds", "2", "--threads", "1", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["contestant"] for row in rows] == ["plain, from memory", "plain, through files", "vllm"]
    assert all(row["seconds"]["lowest"] > 0 and row["contestant"] in done.stdout for row in rows)


def test_missing_data_is_refused(tmp_path):
    done = bench("rewards", "--data", str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / "math" / "train.json") in done.stderr and "--embedded" in done.stderr


@pytest.mark.slow
def test_all_contestants_judge_the_embedded_rows_right(confinable, tmp_path):
    done = bench("rewards", "--quick", "--embedded", "--workers", "2", "--json", str(tmp_path / "found.json"))
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
