"""What `scripts/kill_anywhere.py` takes for the same and for a moment; its runs: tests/stages/test_killed_runs.py."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from kill_cases import RANKS, cases
from kill_compare import differences
from kill_moments import ANY, FINAL, FIRST, LOADING, Moment, Moments, rest, visits, wait_for

ROWS = [{"step": 1, "loss": 0.5, "time/update": 1.0}, {"step": 2, "loss": float("nan"), "rewards/seconds": 3.0}]
SUMMARY = {"run": "a", "exits": {"small": {"reward_last": 0.25}}, "phases": {"save": {"seconds": 1.0}}, "seconds": 9.0}
TRACE = "update save update save update save"


@pytest.fixture
def stage(tmp_path):
    def write(name, tensors=None, rows=ROWS, summary=SUMMARY):
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors or {"a": torch.zeros(2), "b": torch.ones(3)}, folder / "model.safetensors")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return write


def test_only_times_and_places_may_differ(stage):
    later = [{**ROWS[0], "time/update": 2.0}, {**ROWS[1], "rewards/seconds": 4.0}]
    moved = {**SUMMARY, "run": "b", "phases": {}, "seconds": 1.0}
    assert differences(stage("a"), stage("b", rows=later, summary=moved)) == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"tensors": {"a": torch.tensor([0.0, -0.0]), "b": torch.ones(3)}}, "model.safetensors: 1 of 2 tensors, a"),
        ({"tensors": {"a": torch.zeros(2), "b": torch.ones(3, dtype=torch.int32)}}, "1 of 2 tensors, b"),
        ({"tensors": {"a": torch.zeros(2)}}, "1 of 2 tensors, b"),
        ({"rows": ROWS[:1]}, "metrics.jsonl: 1 rows for 2"),
        ({"rows": [ROWS[0], {**ROWS[1], "loss": 0.5}]}, "metrics.jsonl: row 2, loss"),
        ({"summary": {**SUMMARY, "exits": {"small": {"reward_last": 0.5}}}}, "summary.json: ['exits']"),
    ],
)
def test_anything_else_is_a_difference(stage, changes, found):
    (difference,) = differences(stage("run", **changes), stage("whole"))
    assert found in difference


def test_moments_are_of_every_phase_before_one_comes_again(tmp_path):
    lines = [f"{100 + number} {phase}\n" for number, phase in enumerate(TRACE.split())]
    (tmp_path / "rank-0").write_text("".join(lines))
    seen = visits(tmp_path, started=95, ended=106)
    assert [(visit.phase, visit.number, visit.start, visit.seconds) for visit in seen[-2:]] == [
        ("update", 3, 9, 1),
        ("save", 3, 10, 1),
    ]
    moments = Moments(random.Random(1))
    drawn = {moment.label: moment for moment in (moments.next(seen, 11) for _ in range(6))}
    assert set(drawn) == {"update", "save", FIRST, FINAL, LOADING, ANY}
    assert (drawn[FINAL].phase, drawn[FINAL].number) == ("save", 3)
    assert (drawn[FIRST].phase, drawn[FIRST].number) == ("update", 1)
    assert drawn[LOADING].delay < seen[0].start
    # From two thirds on: the last update and the last save.
    assert [(visit.phase, visit.number) for visit in rest(seen, 2 / 3)] == [("update", 1), ("save", 1)]


def test_a_moment_that_never_comes_is_told(tmp_path):
    (tmp_path / "rank-0").write_text("100 update\n101 save\n")
    assert wait_for(Moment("save", "save", 1, 0.0), tmp_path, lambda: True)
    assert not wait_for(Moment("save", "save", 2, 0.0), tmp_path, lambda: False)


def test_every_training_stage_is_killed_on_every_sharding():
    names = [case.name for case in cases("transformers")]
    assert len(set(names)) == len(names)
    for stage in ("sft", "grpo", "expanded_sft", "compress"):
        found = {(case.ranks, case.deepspeed) for case in cases("transformers") if case.stage == stage}
        assert found == set(RANKS.values())
    assert {case.stage for case in cases("vllm")} == {"grpo"}
