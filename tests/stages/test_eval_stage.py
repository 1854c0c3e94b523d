"""`stage=eval` for real, on a family of a few thousand parameters."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.family.config import RuyiQwen3Config
from ruyi_rl.family.options import ExpandOptions, ModelOptions
from ruyi_rl.pipeline import run_stages
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.stages.eval import measured_exits
from ruyi_rl.stages.options import EvalOptions
from ruyi_rl.training.options import EvaluationOptions, SFTOptions

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
JUDGE = """
def evens(completions, **kwargs):
    return [float(len(chat[0]["content"]) % 2 == 0) for chat in completions]
"""
SFT = {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run's config after its stages up to expand; sft measured the small exit alone."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "evens.py").write_text(JUDGE)
    rows = [{"prompt": f"{n}+{n + 1}=", "completion": str(2 * n + 1), "answer": str(2 * n + 1)} for n in range(80)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = RunConfig(
        name="x",
        run_dir=str(folder / "x"),
        stage=StageOptions("expand"),
        stages=["init", "sft", "expand", "eval"],
        model=ModelOptions(exits={"small": 0, "large": 2}, scratch=dict(SHAPE)),
        data=DataOptions(path=str(folder / "rows.jsonl"), holdout=12, test=None),
        reward=RewardOptions(functions={"evens": RewardFunctionOptions(path=str(folder / "evens.py"))}),
        sft=SFTOptions(exits=["small"], trainer=dict(SFT)),
        expand=ExpandOptions(exit="small", blocks=1),
        evaluation=EvaluationOptions(problems=8, samples=3, max_new_tokens=8),
    )
    run_stages(made, [])
    return replace(made, stage=StageOptions("eval"))


@pytest.fixture
def elsewhere(config, tmp_path):
    """The same run in a folder of its own."""
    shutil.copytree(config.run_dir, tmp_path / "x")
    return replace(config, run_dir=str(tmp_path / "x"))


def summary(config, stage="eval"):
    return StageFolder(Path(config.run_dir) / stage).summary()


def untimed(held_out, exit):
    return {key: value for key, value in held_out["exits"][exit].items() if key != "seconds"}


def rows(found, exit):
    kept = ("stage", "pass_rate", "measured_by", "unchanged", "comparable")
    return [tuple(row[key] for key in kept) for row in found["history"]["rows"] if row["exit"] == exit]


@pytest.mark.slow
def test_every_exit_is_measured_and_told_stage_by_stage(elsewhere, capsys):
    run_stages(elsewhere, [])
    shown, sft, found = capsys.readouterr().out, summary(elsewhere, "sft"), summary(elsewhere)
    # In the same way, on the same function.
    assert untimed(found["held_out"], "small") == untimed(sft["held_out"], "small")
    assert "arithmetic: 8 problems · small greedy" in shown
    assert "large" not in sft["held_out"]["exits"] and 0 <= found["exits"]["large"]["pass"] <= 1
    small, large = sft["exits"]["small"]["pass"], found["exits"]["large"]["pass"]
    assert rows(found, "small") == [
        ("init", None, None, False, False),
        ("sft", small, "sft", False, True),
        ("expand", small, "eval", True, True),
    ]
    # Training the small exit alone moves the trunk's embedding, which the large one reads too.
    assert rows(found, "large") == [
        ("init", None, None, False, False),
        ("sft", large, "eval", False, True),
        ("expand", large, "eval", True, True),
    ]
    assert found["exits"]["small"]["layers"] == 2 and found["exits"]["large"]["layers"] == 3
    folder = Path(elsewhere.run_dir) / "eval"
    assert not StageFolder(folder).holds_family() and (folder / "history.png").stat().st_size > 5000
    assert json.loads((folder / "history.json").read_text()) == found["history"]
    assert "small, stage by stage" in shown and "sft, before expansion" in shown
    metrics = found["benchmarks"]["arithmetic"]["exits"]["large"]
    assert (
        metrics["pass@1"]["value"] == pytest.approx(large)
        and metrics["greedy"]["value"] == found["exits"]["large"]["greedy"]
    )
    run_stages(elsewhere, [])
    shown = capsys.readouterr().out
    assert "eval is done already" in shown and "small, stage by stage" in shown


@pytest.mark.slow
def test_it_measures_as_sft_does(elsewhere, tmp_path):
    shutil.copytree(Path(elsewhere.run_dir) / "sft", tmp_path / "alone")
    for file in ("manifest.json", "summary.json"):
        (tmp_path / "alone" / file).unlink()
    run_stages(replace(elsewhere, run_dir=str(tmp_path / "y"), start_from=str(tmp_path / "alone")), [])
    found = StageFolder(tmp_path / "y" / "eval").summary()
    sft = summary(elsewhere, "sft")["held_out"]
    assert untimed(found["held_out"], "small") == untimed(sft, "small")
    assert found["held_out"]["measurement"] == sft["measurement"]
    assert [row[:3] for row in rows(found, "small")] == [("alone", sft["exits"]["small"]["pass_rate"], "eval")]


@pytest.mark.slow
def test_another_way_of_measuring_is_measured_anew_and_told_apart(elsewhere):
    changed = replace(elsewhere, evaluation=EvaluationOptions(problems=8, samples=2, max_new_tokens=4))
    run_stages(replace(changed, eval=EvalOptions(exits=["small"])), [])
    found = summary(elsewhere)
    assert list(found["exits"]) == ["small"] and found["held_out"]["samples"] == 2
    value = found["exits"]["small"]["pass"]
    assert rows(found, "small")[1:] == [("sft", value, "eval", False, True), ("expand", value, "eval", True, True)]
    assert rows(found, "large")[1:] == [("sft", None, None, False, False), ("expand", None, None, True, False)]


@pytest.mark.slow
def test_without_an_evaluation_the_sizes_are_shown(elsewhere):
    run_stages(replace(elsewhere, evaluation=EvaluationOptions(problems=0)), [])
    found = summary(elsewhere)
    assert set(found["exits"]["small"]) == {"layers", "parameters", "bytes"} and "held_out" not in found
    assert rows(found, "small")[2][1] == summary(elsewhere, "sft")["exits"]["small"]["pass"]


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused(elsewhere, tmp_path):
    with pytest.raises(Refusal, match=r"eval\.exits: no exit 'smal'"):
        run_stages(replace(elsewhere, eval=EvalOptions(exits=["smal"])), [])
    with pytest.raises(Refusal, match="no held-out rows"):
        start = str(Path(elsewhere.run_dir) / "expand")
        data = replace(elsewhere.data, holdout=0)
        run_stages(replace(elsewhere, data=data, start_from=start, run_dir=str(tmp_path / "y")), [])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text((Path(elsewhere.run_dir) / "init" / "config.json").read_text())
    with pytest.raises(Refusal, match="holds no family that can be measured"):
        run_stages(replace(elsewhere, start_from=str(tmp_path / "bin"), run_dir=str(tmp_path / "z")), [])


def test_exits_stand_shallowest_first():
    config = RuyiQwen3Config(num_hidden_layers=3, early_exit_points=[0, 2], exit_names=["small", "large"])
    assert measured_exits(config, None) == measured_exits(config, ["large", "small"]) == ["small", "large"]
    assert measured_exits(config, ["large"]) == ["large"]
