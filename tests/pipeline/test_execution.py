import json
import os
import signal

import pytest

from ruyi_rl import execution
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.pipeline import run_stages
from ruyi_rl.refusal import Refusal
from ruyi_rl.run_folder import StageFolder
from tests.recorded_stages import EXITS, checkpoint, manifest


def test_a_stage_that_says_itself_why_it_failed_needs_no_traceback(stages, config):
    def fail(context):
        context.keep("before", {})
        raise StageFailed("the reward failed on 70 of 512 completions")

    stages.act["grpo"] = fail
    with pytest.raises(StageFailed) as failed:
        run_stages(config("grpo"), ["stage=grpo"])
    folder = StageFolder(f"{config().run_dir}/grpo")
    first, safe, command = str(failed.value).splitlines()
    assert first == "grpo failed: the reward failed on 70 of 512 completions"
    assert safe.startswith("Safe on disk: before") and command.endswith("python -m ruyi_rl stage=grpo")
    assert folder.manifest().status == "failed" and "70 of 512" in folder.manifest().message
    assert not (folder.path / "error.txt").exists()


def test_a_failed_stage_leaves_word_and_goes_on_where_it_was(stages, config):
    def fail(context):
        context.keep("before", {"1.7B": 0.25})
        checkpoint(context)
        raise ZeroDivisionError("no reward")

    stages.act["grpo"] = fail
    with pytest.raises(StageFailed) as failed:
        run_stages(config("grpo"), ["stage=grpo", "fresh=true", "data.path=my data"])
    message = str(failed.value)
    folder = StageFolder(f"{config().run_dir}/grpo")
    assert "ZeroDivisionError: no reward" in message and f"{folder.path}/checkpoint-7" in message
    assert message.endswith("python -m ruyi_rl stage=grpo 'data.path=my data'")
    assert "raise ZeroDivisionError" in (folder.path / "error.txt").read_text()
    assert folder.manifest().status == "failed" and "no reward" in folder.manifest().message

    seen = []
    stages.act["grpo"] = lambda context: seen.append(context.kept("before"))
    run_stages(config("grpo"), [])
    assert seen == [{"1.7B": 0.25}] and stages.names == ["init", "sft", "grpo", "grpo"]
    assert (folder.path / "checkpoint-7").exists() and not (folder.path / "error.txt").exists()
    assert folder.manifest().status == "done" and folder.manifest().message is None


def test_a_stage_that_had_saved_nothing_is_no_obstacle_to_a_mended_config(stages, config):
    stages.act["sft"] = lambda context: 1 / 0
    with pytest.raises(StageFailed, match="had saved nothing"):
        run_stages(config("sft"), [])
    stages.act.clear()
    mended = config("sft")
    mended.sft.trainer = {"max_steps": 3}
    run_stages(mended, [])
    assert stages.names == ["init", "sft", "sft"]


def test_a_half_done_stage_with_a_checkpoint_is_not_thrown_away(stages, config):
    def fail(context):
        checkpoint(context)
        raise ValueError

    stages.act["sft"] = fail
    with pytest.raises(StageFailed):
        run_stages(config("sft"), [])
    changed = config("sft")
    changed.sft.trainer = {"max_steps": 3}
    with pytest.raises(Refusal, match="sft.trainer.max_steps unset → 3"):
        run_stages(changed, [])


def test_a_refusal_of_a_stage_passes_and_leaves_no_folder(stages, config):
    def refuse(context):
        raise Refusal("model.base", "no such folder")

    stages.act["init"] = refuse
    with pytest.raises(Refusal, match="model.base"):
        run_stages(config("init"), [])
    assert not StageFolder(f"{config().run_dir}/init").path.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_stage_says_what_is_safe_and_how_to_go_on(stages, config, number, status):
    def interrupt(context):
        with context.stop.gently():
            os.kill(os.getpid(), number)
            checkpoint(context)

    stages.act["sft"] = interrupt
    with pytest.raises(Interrupted) as interrupted:
        run_stages(config("sft"), ["stage=sft"])
    assert interrupted.value.status == status
    assert "checkpoint-7 (after step 7)" in str(interrupted.value)
    assert str(interrupted.value).endswith("Go on with: python -m ruyi_rl stage=sft")
    assert manifest(config(), "sft").status == "interrupted"


def test_the_seconds_of_all_attempts_add_up(stages, config):
    def interrupt(context):
        context.keep("half", True)
        context.earlier_seconds += 100
        os.kill(os.getpid(), signal.SIGINT)

    stages.act["sft"] = interrupt
    with pytest.raises(Interrupted):
        run_stages(config("sft"), [])
    stages.act.clear()
    run_stages(config("sft"), [])
    assert 100 <= StageFolder(f"{config().run_dir}/sft").summary()["seconds"] < 160


def test_the_torchrun_command_is_given_back_to_who_typed_it(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    typed = execution.continuing_command(["stage=sft"], num_processes=1)
    assert typed == "torchrun --nproc-per-node=4 -m ruyi_rl stage=sft"
    started = execution.continuing_command(["stage=sft", "num_processes=4"], num_processes=4)
    assert started == "python -m ruyi_rl stage=sft num_processes=4"


def test_the_summary_names_stage_run_and_seed(stages, config):
    run_stages(config("init"), [])
    summary = json.loads((StageFolder(f"{config().run_dir}/init").path / "summary.json").read_text())
    assert (summary["stage"], summary["run"], summary["seed"]) == ("init", f"{config().run_dir}/init", 1)
    assert summary["exits"] == {"1.7B": EXITS["init"]}
