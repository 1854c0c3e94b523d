"""`stage=compare` over folders that a sweep and single runs have left."""

import json
import subprocess
import sys

import pytest

from ruyi_rl.__main__ import main
from ruyi_rl.report.compare.runs import find_runs
from ruyi_rl.run_folder import DONE, FAILED, Manifest, StageFolder, write_json


def leave_run(folder, seed, scale, pass_after, status=DONE, stage="grpo"):
    place = StageFolder(folder / stage)
    decided = {"seed": seed, "grpo.advantage.scale": scale}
    place.path.mkdir(parents=True)
    known = {"stage": stage, "config_hash": "x", "decided_by": decided, "input": None, "input_hash": None}
    place.write_manifest(
        Manifest(
            status=status, seed=seed, world_size=1, deepspeed="off", versions={}, started="", message="no", **known
        )
    )
    if status == DONE:
        exits = {"small": {"pass_before": 0.25, "pass_after": pass_after}}
        write_json(place.path / "summary.json", {"stage": stage, "seed": seed, "exits": exits, "seconds": 5.0})


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leave_run(tmp_path / "runs" / "a1", 1, "group", 0.5)
    leave_run(tmp_path / "runs" / "a2", 2, "group", 0.75)
    leave_run(tmp_path / "runs" / "b1", 1, "exit", 0.5)
    leave_run(tmp_path / "runs" / "b2", 2, "exit", 0.5, status=FAILED)
    return tmp_path


def test_run_folders_by_a_pattern(runs, capsys):
    assert main(["stage=compare", "runs=runs/*", "compare.output=out"]) == 0
    printed = capsys.readouterr().out
    assert "25.0 → 62.5 (+37.5 ± 12.5)" in printed and "without a result: b2 failed: no" in printed
    assert sorted(path.name for path in (runs / "out").iterdir()) == [
        f"compare.{end}" for end in ("csv", "json", "md", "png")
    ]
    found = json.loads((runs / "out" / "compare.json").read_text())
    assert [group["overrides"] for group in found["groups"]] == [
        {"grpo.advantage.scale": scale} for scale in ("group", "exit")
    ]
    assert main(["stage=compare", "runs=[runs/a1,runs/a2/grpo]"]) == 0
    assert "25.0 → 62.5" in capsys.readouterr().out
    assert len(list(runs.glob("multirun/compare-*/compare.md"))) == 1


def test_a_sweep_from_any_folder(runs, capsys, monkeypatch):
    jobs = [
        {
            "job": number,
            "overrides": overrides,
            "stage": "grpo",
            "run_dir": run,
            "log": "x",
            "status": status,
            "message": said,
        }
        for number, overrides, run, status, said in (
            (1, ["grpo.advantage.scale=group", "seed=1"], "runs/a1", "done", None),
            (2, ["grpo.advantage.scale=group", "seed=2"], "runs/a2", "done", None),
            (3, ["grpo.advantage.scale=exit", "seed=2"], "runs/b2", "killed", "SIGKILL"),
            (4, ["grpo.advantage.scale=no", "seed=1"], None, "refused", "grpo.advantage.scale: 'no' is unknown"),
        )
    ]
    write_json(runs / "multirun" / "s" / "sweep.json", {"command": "", "working_folder": "../..", "jobs": jobs})
    monkeypatch.chdir(runs / "multirun")
    assert main(["stage=compare", "runs=s"]) == 0
    printed = capsys.readouterr().out
    assert "25.0 → 62.5 (+37.5 ± 12.5)" in printed
    assert "job 3 (grpo.advantage.scale=exit seed=2) killed: SIGKILL" in printed
    assert "job 4 (grpo.advantage.scale=no seed=1) refused: grpo.advantage.scale: 'no' is unknown" in printed
    assert (runs / "multirun" / "s" / "compare.json").is_file()


def test_each_result_counts_once(runs):
    def folders(*sources):
        return [(run.folder, run.stage) for run in find_runs(sources, None)]

    leave_run(runs / "runs" / "a1", 1, "group", 0.25, stage="sft")
    a1 = "runs/a1"
    assert folders(f"{a1}/sft", f"{a1}/grpo", a1, f"{runs}/{a1}", "runs/../runs/a?") == [
        (a1, "sft"),
        (a1, "grpo"),
        ("runs/../runs/a2", "grpo"),
    ]


def test_a_pipeline_that_was_killed_has_no_result(runs):
    leave_run(runs / "runs" / "p", 1, "group", 0.25, stage="sft")
    (runs / "runs" / "p" / "sft" / "config.yaml").write_text("stages: [init, sft, grpo]\n")
    job = {"job": 1, "overrides": ["seed=1"], "stage": "pipeline", "run_dir": "runs/p", "log": "x"}
    killed = {**job, "status": "killed", "message": "SIGKILL"}
    write_json(runs / "s" / "sweep.json", {"command": "", "working_folder": "..", "jobs": [killed]})
    (run,) = find_runs(["s"], None)
    assert (run.stage, run.summary, run.status, run.message) == ("grpo", None, "killed", "SIGKILL")
    (run,) = find_runs(["s"], "sft")
    assert run.stage == "sft" and run.summary is not None
    leave_run(runs / "runs" / "p", 1, "group", 0.25)
    (run,) = find_runs(["s"], None)
    assert run.stage == "grpo" and run.summary is not None


def test_refused_jobs_of_several_sweeps_are_all_listed(runs):
    job = {"job": 1, "overrides": ["seed=1"], "stage": None, "run_dir": None, "log": "x", "status": "refused"}
    for name in ("s", "t"):
        write_json(runs / name / "sweep.json", {"command": "", "working_folder": "..", "jobs": [job]})
    assert len(find_runs(["[st]"], None)) == 2 and len(find_runs(["s", str(runs / "s")], None)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=nowhere"], "runs: nowhere is no folder"),
        (["runs=."], "holds no sweep and no run"),
        ([], "runs: None names no runs"),
        (["runs=runs/b2"], "none of 1 has a result: b2 failed: no"),
        (["runs=runs/a1", "compare.metrics=[exits.*.pas]"], "compare.metrics: no run has 'exits.*.pas'"),
        (["runs=runs/a1", "compare.stage=grop"], "compare.stage: 'grop'"),
        (["runs=runs/a1", "num_processes=2"], "num_processes"),
    ],
)
def test_refused(runs, words, message, capsys, monkeypatch, tmp_path_factory):
    if words == ["runs=."]:
        monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    assert main(["stage=compare", *words]) == 2
    assert message in capsys.readouterr().err


def test_it_imports_no_torch(runs):
    code = "import sys\nfrom ruyi_rl.__main__ import main\nmain(['stage=compare', 'runs=runs/*'])\n"
    code += "print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
