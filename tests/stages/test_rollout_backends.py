"""GRPO as a stage on each rollout back end: the same run whichever generates, on one rank and on several."""

from dataclasses import replace
from pathlib import Path

import pytest

from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.pipeline import run_stages
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.record import read_rollouts
from ruyi_rl.rollout.vllm_version import import_problem
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.training.callbacks import read_metrics
from ruyi_rl.training.options import GRPOOptions
from tests.stages.test_smoke_pipeline import (  # noqa: F401 - base is a fixture of config
    EXITS,
    GRPO,
    SHAPE,
    base,
    config,
    equal,
    forked,
    interrupt_at,
    launched,
    weights,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def vllm():
    if problem := import_problem():
        pytest.skip(f"vLLM cannot be imported: {problem}")


@pytest.fixture
def on(config, tmp_path):  # noqa: F811
    """A grpo run from an untrained family, on a back end; `name` tells runs apart."""
    model = ModelOptions(exits=dict(EXITS), scratch={**SHAPE, "head_dim": 32})  # vLLM's CPU kernels take no 16
    run_stages(config("init", model=model, run_dir=str(tmp_path / "start")), [])

    def make(backend: str, name: str, trainer: dict | None = None, **grpo):
        trainer = {**GRPO, "learning_rate": 1e-2, "logging_steps": 1, **(trainer or {})}
        return config(
            "grpo",
            model=model,
            run_dir=str(tmp_path / name),
            start_from=str(tmp_path / "start" / "init"),
            rollout=RolloutOptions(backend=backend, engine={} if backend == "transformers" else {"max_num_seqs": 16}),
            grpo=GRPOOptions(trainer=trainer, **grpo),
        )

    return make


def summary(run, stage="grpo"):
    return StageFolder(Path(run.run_dir) / stage).summary()


def rewards(run) -> list[float]:
    return [row["reward"] for row in read_metrics(Path(run.run_dir) / "grpo" / "metrics.jsonl")]


def test_transformers_and_vllm_make_the_same_run(on, capfd):
    engine, own = on("vllm", "engine"), on("transformers", "own")
    for run in (engine, own):
        run_stages(run, [])
    assert "rollouts by vllm" in capfd.readouterr().out
    assert rewards(engine) == rewards(own)
    for name in EXITS:
        for key in ("pass_before", "pass_after", "greedy_before", "greedy_after"):
            assert summary(engine)["exits"][name][key] == summary(own)["exits"][name][key]
        found = summary(engine)["rollout"]["exits"][name]
        assert found["logp_difference_max"] <= 1e-4 and found["logp_difference_mean"] <= 1e-5
        assert found["tokens_per_second"] > 0 and found["failures"] == 0
    assert 0 < summary(engine)["rollout"]["sync_share"] < 1


def test_auto_takes_vllm_and_says_so_or_says_why_not(on, capfd):
    run_stages(on("auto", "auto"), [])
    assert "rollouts by vllm, which auto took" in capfd.readouterr().out
    odd = on("auto", "odd")
    odd.model = ModelOptions(exits=dict(EXITS), scratch={**SHAPE, "head_dim": 16})
    odd.start_from = None
    odd.stages = ["init", "grpo"]
    run_stages(odd, [])
    said = " ".join(capfd.readouterr().out.split())
    assert "rollouts by transformers, which auto took: vLLM on a CPU has no attention for heads of 16" in said


def test_an_interrupted_run_on_engines_ends_as_if_nothing_had_happened(on, monkeypatch):
    whole, cut = on("vllm", "whole", {"max_steps": 4}), on("vllm", "cut", {"max_steps": 4})
    run_stages(whole, [])
    interrupt_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        run_stages(cut, [])
    run_stages(cut, [])
    assert rewards(whole) == rewards(cut)
    assert equal(weights(whole, "grpo"), weights(cut, "grpo"))


def test_recorded_rollouts_train_as_the_first_step_does(on):
    recorded = on("vllm", "run", {"max_steps": 2}, rollout_only=True)
    run_stages(recorded, [])
    file = Path(recorded.run_dir) / "rollouts" / "rollouts.jsonl"
    assert summary(recorded, "rollouts")["completions"] == len(read_rollouts(file)) == 2 * 16
    assert not (Path(recorded.run_dir) / "grpo").exists()
    replayed = on("vllm", "run", {"max_steps": 1}, replay=str(file))
    run_stages(replayed, [])
    assert "pass_before" not in summary(replayed)["exits"]["small"]
    trained = on("vllm", "trained", {"max_steps": 1})
    run_stages(trained, [])
    assert equal(weights(replayed, "grpo"), weights(trained, "grpo"))
    too_many = on("vllm", "more", {"max_steps": 40}, replay=str(file))
    with pytest.raises(StageFailed, match="no further completion"):
        run_stages(too_many, [])


def test_limits_and_memory_that_do_not_suffice_are_refused_before_the_training(on):
    short = on("vllm", "short")
    short.rollout = replace(short.rollout, max_model_len=12)
    with pytest.raises(Refusal, match="a completion of 6 tokens make") as refused:
        run_stages(short, [])
    assert refused.value.key == "rollout.max_model_len"
    small = on("vllm", "small")
    small.rollout = replace(small.rollout, kv_cache_gib=1e-6)
    with pytest.raises(Refusal) as refused:
        run_stages(small, [])
    assert refused.value.key == "rollout.kv_cache_gib"
    assert not (Path(small.run_dir) / "grpo").exists()


@pytest.mark.parametrize(("mode", "start"), [("zero2", forked), ("zero3", launched)])
def test_two_ranks_have_engines_of_their_own(on, mode, start):
    run = on("vllm", mode)
    run.deepspeed.mode = mode
    start(run, 2)
    for name in EXITS:
        found = summary(run)["rollout"]["exits"][name]
        assert found["logp_difference_max"] <= 1e-4 and found["logp_difference_mean"] <= 1e-5
