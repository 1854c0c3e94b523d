"""Which family a tool reads."""

import json

import pytest

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.failure import StageFailed
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.worker import RolloutFailed
from ruyi_rl.run_folder import Manifest, StageFolder
from ruyi_rl.stages import generate
from ruyi_rl.tools import find_family, run_tool, stage_order


def config(*overrides):
    return to_run_config(compose_config(["stage=generate", *overrides]))


def left(run, stage, status="done", family=True):
    """What a stage of some other config leaves in its folder."""
    manifest = Manifest(stage, status, "0", {}, None, None, 1, 1, "off", {}, "")
    StageFolder(run / stage).write_manifest(manifest)
    if family:
        (run / stage / "config.json").write_text(json.dumps({}))
    return run / stage


def test_the_furthest_finished_stage_is_read_whatever_its_config(tmp_path):
    run, asked = tmp_path / "x", config(f"run_dir={tmp_path / 'x'}")
    first = left(run, "init")
    assert find_family(asked) == first
    second = left(run, "sft")
    left(run, "grpo", status="interrupted")
    assert find_family(asked) == second
    last = left(run, "grpo")
    assert find_family(asked) == last
    assert find_family(config(f"run_dir={run}", "start_from=elsewhere")).name == "elsewhere"


def test_what_dae_has_made_is_further_and_eval_holds_no_family(tmp_path):
    run = tmp_path / "x"
    for stage in ("init", "sft", "expand", "expanded_sft", "grpo", "compress"):
        left(run, stage)
        assert find_family(config(f"run_dir={run}")).name == stage
    left(run, "eval", family=False)
    assert find_family(config(f"run_dir={run}")).name == "compress"


def test_the_order_is_the_pipelines_and_stages_run_by_hand_count(tmp_path):
    run = tmp_path / "x"
    left(run, "init")
    by_hand = left(run, "pretrain")
    assert find_family(config(f"run_dir={run}")) == by_hand
    left(run, "grpo")
    other = left(run, "sft")
    assert find_family(config(f"run_dir={run}", "stages=[init,grpo,sft]")) == other
    assert stage_order(["init", "grpo", "sft"]) == [
        *("pretrain", "expand", "expanded_pretrain", "expanded_sft", "compress", "eval"),
        *("init", "grpo", "sft"),
    ]


def test_a_run_without_a_family_is_refused_with_what_there_is(tmp_path):
    run = tmp_path / "x"
    left(run, "init", status="failed")
    left(tmp_path / "trained", "sft")
    left(tmp_path / "begun", "sft", status="running")
    with pytest.raises(Refusal) as refusal:
        find_family(config(f"run_dir={run}"))
    assert refusal.value.key == "run_dir" and "init is failed" in str(refusal.value)
    assert "(trained)" in str(refusal.value) and "stage=grpo" in str(refusal.value)


def test_rollouts_that_give_up_fail_the_tool(monkeypatch):
    def give_up(config):
        raise RolloutFailed("worker small-0 died")

    monkeypatch.setattr(generate, "run", give_up)
    with pytest.raises(StageFailed, match="generate failed: worker small-0 died"):
        run_tool(config())
