"""Held-out rates during a training: it ends as without them; an exit that falls stops it; the best families stay."""

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from ruyi_rl import ranks
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.family import Family
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.pipeline import decides, run_stages
from ruyi_rl.report.tables import better_before
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.stages import periodic
from ruyi_rl.stages.held_out import measurement
from ruyi_rl.stages.inputs import load_tokenizer
from ruyi_rl.training.callbacks import read_metrics
from ruyi_rl.training.options import EvaluationOptions, GRPOOptions, SFTOptions
from tests.forked_ranks import run_ranks
from tests.stages.test_smoke_pipeline import (  # noqa: F401 - base is a fixture of config
    EXITS,
    GRPO,
    SFT,
    SHAPE,
    base,
    config,
    equal,
    weights,
)

STEPS = {"max_steps": 4, "logging_steps": 1, "save_steps": 1, "learning_rate": 1e-2}


@pytest.fixture
def grpo(config, tmp_path):  # noqa: F811
    """A grpo run from an untrained family; `name` tells runs apart."""

    def make(name, model=None, **changes):
        model = model or ModelOptions(exits=dict(EXITS), scratch=dict(SHAPE))
        run_stages(config("init", model=model, run_dir=str(tmp_path / "start")), [])
        return config(
            "grpo",
            model=model,
            run_dir=str(tmp_path / name),
            start_from=str(tmp_path / "start" / "init"),
            rollout=RolloutOptions(backend="transformers"),
            **{"grpo": GRPOOptions(trainer={**GRPO, **STEPS}), **changes},
        )

    return make


def every(steps, **changes) -> EvaluationOptions:
    return EvaluationOptions(problems=6, samples=2, every=steps, **changes)


def folder(run, stage="grpo") -> Path:
    return Path(run.run_dir) / stage


def evaluations(run, stage="grpo") -> dict[int, dict]:
    """Step -> what was logged of the measurement after it, without what the clock says."""
    rows = [row for row in read_metrics(folder(run, stage) / "metrics.jsonl") if "eval/pass_rate" in row]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: {key: value for key, value in row.items() if "eval/" in key} for row in rows}


def learnt(run, stage) -> list[dict]:
    """The rows of a training's steps, without its measurements and without what the clock says."""
    rows = [row for row in read_metrics(folder(run, stage) / "metrics.jsonl") if "eval/pass_rate" not in row]
    return [{key: value for key, value in row.items() if not clocked(key)} for row in rows]


def clocked(key: str) -> bool:
    return key.startswith("time/") or any(word in key for word in ("seconds", "per_second", "step_time"))


def drawing(monkeypatch) -> dict[tuple[str, str], dict]:
    """Each measurement takes from every generator that a training may draw from, and flatters; what it has found."""
    original, found = periodic.rates, {}

    def rates(context, *rest):
        random.random(), numpy.random.rand(3), torch.rand(3)
        measured = found[context.step.stage, rest[-2]] = original(context, *rest)
        return flattered(measured)

    monkeypatch.setattr(periodic, "rates", rates)
    return found


def flattered(measured: dict) -> dict:
    """No family is better, so that it is kept."""
    return {**measured, "exits": {name: {**score, "pass_rate": 1.0} for name, score in measured["exits"].items()}}


def scripted(monkeypatch, small: dict[int, float], large: float = 0.3, signal_at: int | None = None) -> None:
    """What the measurements say, by step; a signal comes in the middle of one, once."""
    signals = [signal_at]

    def rates(context, *rest):
        occasion, progress = rest[-2:]
        step = int(occasion.rpartition(" ")[2])
        if step in signals:
            signals.remove(step)
            os.kill(os.getpid(), signal.SIGTERM)
        progress("small", 1, 4)
        scores = {"small": small[step], "large": large}
        return {
            "measurement": measurement(context.config),
            "exits": {n: {"pass_rate": p, "standard_error": 0.01, "greedy": p} for n, p in scores.items()},
        }

    monkeypatch.setattr(periodic, "rates", rates)


def test_how_often_is_measured_decides_neither_a_stage_nor_a_measurement(config):  # noqa: F811
    plain, watched = config("grpo"), config("grpo", evaluation=every(3, max_drop=0.1), keep_best="mean")
    assert not decides("evaluation.every") and not decides("evaluation.max_drop") and decides("evaluation.samples")
    assert measurement(plain) == measurement(watched)
    assert measurement(plain) != measurement(replace(plain, evaluation=EvaluationOptions(problems=5, samples=2)))


@pytest.mark.slow
def test_sft_and_grpo_end_as_without_measurements_which_are_those_of_stage_eval(config, tmp_path, monkeypatch):  # noqa: F811
    """With dropout, so that a training draws; with gradient checkpointing, which generation switches off."""
    short = {"max_steps": 3, "gradient_checkpointing": True, "save_strategy": "no"}
    changes = {
        "model": ModelOptions(exits=dict(EXITS), scratch={**SHAPE, "attention_dropout": 0.2}),
        "sft": SFTOptions(trainer={**SFT, **short}),
        "grpo": GRPOOptions(trainer={**GRPO, **short, "logging_steps": 2}),
    }
    plain = config("grpo", **changes)
    watched = config("grpo", run_dir=str(tmp_path / "y"), evaluation=every(1), keep_best="exit", **changes)
    run_stages(plain, [])
    measured = drawing(monkeypatch)
    run_stages(watched, [])
    for stage in ("sft", "grpo"):
        assert equal(weights(plain, stage), weights(watched, stage))
        assert learnt(plain, stage) == learnt(watched, stage)
        assert sorted(evaluations(watched, stage)) == [1, 2]
        summary = StageFolder(folder(watched, stage)).summary()
        assert summary["phases"]["evaluation"]["seconds"] > 0 and "best" in summary

    for stage in ("sft", "grpo"):
        best = json.loads((folder(watched, stage) / "best" / "best.json").read_text())
        assert [each["family"] for each in best["exits"].values()] == ["step-1", "step-1"]
    again = config("eval", run_dir=str(tmp_path / "again"), start_from=f"{folder(watched)}/best/step-1", **changes)
    run_stages(again, [])
    there = measured["grpo", "held-out pass rate at step 1"]["exits"]
    for name, score in StageFolder(folder(again, "eval")).summary()["exits"].items():
        assert [score["pass"], score["greedy"]] == [there[name]["pass_rate"], there[name]["greedy"]]


@pytest.mark.slow
def test_an_exit_that_falls_stops_a_run_whose_best_family_stays_through_interruptions(grpo, monkeypatch):
    """A 16-bit family, which is trained in float32 and kept as it would be saved."""
    model = ModelOptions(exits=dict(EXITS), scratch=dict(SHAPE), dtype="bfloat16")
    plain, watched = grpo("plain", model), grpo("watched", model, evaluation=every(1, max_drop=0.2), keep_best="exit")
    run_stages(plain, [])
    scripted(monkeypatch, {1: 0.5, 2: 0.8, 3: 0.55}, signal_at=2)
    with pytest.raises(Interrupted, match="after step 2"):
        run_stages(watched, [])
    assert evaluations(watched).keys() == {1}
    best = folder(watched) / "best" / "step-2"
    for _ in range(2):  # the measurement of step 2 is made when the run goes on; that of step 3 stops it, again at once
        with pytest.raises(StageFailed) as stopped:
            run_stages(watched, [])
        said = str(stopped.value)
        assert "small: held-out pass rate 55.0 ± 1.0 % at step 3, 25.0 points below its best of 80.0 ± 1.0 %" in said
        assert f"start_from={best}" in said and "evaluation.max_drop=null" in said and "large:" not in said
        assert f"Safe on disk: {folder(watched) / 'checkpoint-3'}" in said
        assert StageFolder(folder(watched)).manifest().status == "failed"
        assert evaluations(watched).keys() == {1, 2, 3}
        kept = Family.from_pretrained(best, dtype="auto")
        assert kept.dtype == torch.bfloat16 and kept.config.use_cache and load_tokenizer(best)
        inside = load_file(folder(watched) / "checkpoint-2" / "model.safetensors")
        assert equal(kept.state_dict(), {name: tensor.bfloat16() for name, tensor in inside.items()})

    watched.evaluation.max_drop = None
    run_stages(watched, [])
    assert equal(weights(plain, "grpo"), weights(watched, "grpo"))
    stored = json.loads((folder(watched) / "checkpoint-3" / "run_state" / "rank-0.json").read_text())
    assert stored["carried"]["best"]["best"]["exits"]["small"]["step"] == 2
    summary = StageFolder(folder(watched)).summary()
    assert summary["best"]["exits"]["small"]["family"] == str(best) and best.is_dir()
    assert any(line.startswith("small was better at step 2: 80.0") for line in better_before(summary))
    named = json.loads((best.parent / "best.json").read_text())["exits"]
    assert named["small"]["family"] == "step-2" and named["large"]["family"] != "step-2"


def both(first, second) -> None:
    """In each rank."""
    original = periodic.rates
    periodic.rates = lambda *arguments: flattered(original(*arguments))
    with ranks.connected():
        run_stages(first, [])
        run_stages(second, [])


@pytest.mark.slow
def test_two_ranks_under_zero3_end_as_without_measurements_and_keep_a_whole_family(config, tmp_path):  # noqa: F811
    """SFT, whose weights nothing but a measurement gathers between two steps."""
    plain, watched = (
        config(
            "sft",
            run_dir=str(tmp_path / name),
            rollout=RolloutOptions(backend="transformers"),
            sft=SFTOptions(trainer={**SFT, **STEPS, "max_steps": 2}),
            **changes,
        )
        for name, changes in {"plain": {}, "watched": {"evaluation": every(1), "keep_best": "mean"}}.items()
    )
    for run in (plain, watched):
        run.deepspeed.mode = "zero3"
    shown = run_ranks("tests.stages.test_periodic_evaluation:both", plain, watched, log=tmp_path / "log")
    assert shown.count("held-out pass rate at step 1") == 1
    assert equal(weights(plain, "sft"), weights(watched, "sft")) and evaluations(watched, "sft").keys() == {1}
    # The optimiser's step has moved it from where it started, and is not the last one.
    kept = load_file(folder(watched, "sft") / "best" / "step-1" / "model.safetensors")
    assert not equal(kept, weights(watched, "sft")) and not equal(kept, weights(watched, "init"))
    assert {name: tensor.shape for name, tensor in kept.items()} == {
        name: tensor.shape for name, tensor in weights(watched, "sft").items()
    }
