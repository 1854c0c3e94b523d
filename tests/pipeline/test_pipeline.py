import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ruyi_rl import execution
from ruyi_rl.benchmarks.options import BenchmarkOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.pipeline import chain, pending, run_stages, steps
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards import scoring
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.run_folder import StageFolder, config_hash, fingerprint
from tests.recorded_stages import checkpoint, manifest

DAE = ["init", "sft", "expand", "expanded_sft", "grpo", "compress", "eval"]


def test_a_stage_runs_what_it_needs_first_and_each_starts_from_the_one_before(stages, config):
    run_stages(config("grpo"), [])
    assert stages.ran == [("init", None), ("sft", "init"), ("grpo", "sft")]


def test_pipeline_runs_all_of_stages(stages, config):
    run_stages(config("pipeline", stages=["init", "pretrain", "sft"]), [])
    assert stages.names == ["init", "pretrain", "sft"]


def test_a_stage_out_of_the_list_stands_on_those_that_come_before_it(config):
    assert chain(config("pretrain")) == ["init", "pretrain"]
    assert chain(config("expand")) == ["init", "sft", "expand"]
    assert chain(config("eval")) == ["init", "sft", "grpo", "eval"]
    assert chain(config("grpo", stages=DAE)) == DAE[:-2]


def test_the_stages_of_dae_run_one_after_the_other(stages, config):
    run_stages(config("pipeline", stages=DAE), [])
    assert stages.ran == [(stage, before) for stage, before in zip(DAE, [None, *DAE])]
    run_stages(config("pipeline", stages=DAE), [])
    run_stages(config("eval", stages=DAE), [])
    assert len(stages.ran) == len(DAE), "eval is done without a family of its own"
    run_stages(config("eval", stages=DAE, fresh=True), [])
    assert stages.names == [*DAE, "eval"]


def test_eval_is_run_again_for_a_family_that_was_begun_anew(stages, config, monkeypatch):
    run_stages(config("eval"), [])
    # A test's stages take no second, which the time of a start is told by.
    monkeypatch.setattr(execution, "_now", lambda: datetime(2100, 1, 1, tzinfo=UTC).isoformat())
    run_stages(config("grpo", fresh=True), [])
    stages.ran.clear()
    run_stages(config("eval"), [])
    assert stages.ran == [("eval", "grpo")]
    run_stages(config("eval"), [])
    assert len(stages.ran) == 1 and manifest(config(), "eval").input_hash == fingerprint(Path(config().run_dir, "grpo"))
    monkeypatch.setattr(execution, "_now", lambda: datetime(2101, 1, 1, tzinfo=UTC).isoformat())

    def interrupted(context):
        raise KeyboardInterrupt

    stages.act["grpo"] = interrupted
    with pytest.raises(Interrupted):
        run_stages(config("grpo", fresh=True), [])
    again = pending(steps(config("eval")), config("eval"))
    assert [(item.step.stage, item.resume) for item in again] == [("grpo", True), ("eval", True)]
    StageFolder(f"{config().run_dir}/grpo").path.rename(Path(config().run_dir) / "away")
    assert pending(steps(config("eval")), config("eval")) == [], "what is gone was not made anew"


def test_eval_is_run_again_where_a_file_that_it_reads_has_changed(stages, config, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "check_start", lambda reward: None)
    rows, judge = tmp_path / "rows.jsonl", tmp_path / "judge.py"
    rows.write_text(json.dumps({"text": "1+1=", "answer": "2"}) + "\n")
    judge.write_text("def reward(completions, **kwargs):\n    return [1.0 for _ in completions]\n")
    asked = config("eval")
    data = DataOptions(name="mine", path=str(rows), fields={"prompt": "text"}, test=None)
    reward = RewardOptions(functions={"judge": RewardFunctionOptions(path=f"{judge}:reward")})
    asked.eval.benchmarks = {"mine": BenchmarkOptions(data, reward)}
    run_stages(asked, [])
    for file in (rows, judge):
        text = file.read_text()
        file.write_text(text.replace("1", "3"))
        assert [(item.step.stage, item.resume) for item in pending(steps(asked), asked)] == [("eval", True)]
        file.write_text(text)
        assert pending(steps(asked), asked) == [], "the same content"


def test_only_its_own_block_decides_a_stage_of_dae(stages, config):
    run_stages(config("pipeline", stages=DAE), [])
    ran = len(stages.ran)

    def first_in_the_way(**changes):
        other = config("pipeline", stages=DAE)
        for key, value in changes.items():
            block, name = key.split("__")
            setattr(getattr(other, block), name, value)
        with pytest.raises(Refusal, match="made with another config") as refused:
            run_stages(other, [])
        return refused.value.problem.split(" was made")[0].rpartition("/")[2]

    assert first_in_the_way(expand__blocks=2) == "expand"
    assert first_in_the_way(expanded_sft__train_only="expansion") == "expanded_sft"
    assert first_in_the_way(sft__packed=False) == "sft"
    assert first_in_the_way(compress__ratio=0.3) == "compress"
    shown = config("pipeline", stages=DAE)
    shown.compress.trainer = {"logging_steps": 3}
    shown.export.format = "factored"
    run_stages(shown, [])
    assert len(stages.ran) == ran
    # What leaves no family is in nobody's way: it is asked again, and keeps what it has.
    shown.eval.exits = ["1.7B"]
    run_stages(shown, [])
    assert stages.ran[ran:] == [("eval", "compress")]
    run_stages(shown, [])
    assert len(stages.ran) == ran + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "grop"}, "did you mean 'grpo'"),
        ({"stages": ["init", "stf"]}, "did you mean 'sft'"),
        ({"stages": ["init", "sft", "sft"]}, "sft is named twice.*after expand it is expanded_sft"),
        ({"stages": ["init", "pretrain", "pretrain"]}, "pretrain is named twice.*after expand it is expanded_pretrain"),
        ({"stages": ["init", "sft", "grpo", "grpo"]}, "grpo is named twice.*one folder"),
        ({"stages": ["init", "sft", "eval", "grpo"]}, "eval leaves no family.*eval last"),
        ({"stages": ["sft", "grpo"]}, "begin with init"),
        ({"stage": "pipeline", "start_from": "."}, "does not start from a family"),
        ({"start_from": "nowhere"}, "no family in nowhere"),
    ],
)
def test_orders_that_cannot_run_are_refused(config, changes, message):
    with pytest.raises(Refusal, match=message):
        steps(config(**changes))


def test_a_done_stage_is_shown_and_not_run_again(stages, config, capsys):
    run_stages(config(), [])
    capsys.readouterr()
    run_stages(config(), [])
    assert len(stages.ran) == 3
    shown = capsys.readouterr().out
    assert "done already" in shown and "0.100 → 0.200" in shown and f"{config().run_dir}/grpo" in shown


def test_a_done_stage_does_not_need_the_folders_it_came_from(stages, config):
    run_stages(config(), [])
    StageFolder(f"{config().run_dir}/init").clear()
    StageFolder(f"{config().run_dir}/sft").clear()
    run_stages(config(), [])
    assert len(stages.ran) == 3


def test_the_next_stage_uses_the_done_ones(stages, config):
    run_stages(config("sft"), [])
    run_stages(config("grpo"), [])
    assert stages.names == ["init", "sft", "grpo"]


def test_the_manifest_says_how_the_stage_was_made(stages, config):
    run_stages(config("sft"), [])
    found = manifest(config(), "sft")
    assert found.status == "done" and found.seed == 1 and found.world_size == 1
    assert found.config_hash == config_hash(found.decided_by)
    assert found.input_hash == fingerprint(StageFolder(f"{config().run_dir}/init").path)
    assert found.versions["ruyi_rl"] and found.versions["torch"] and found.finished >= found.started
    assert {"model.name", "data.name", "sft.loss_weights.preset", "seed"} <= set(found.decided_by)
    assert not any(key.startswith(("grpo.", "evaluation.")) for key in found.decided_by)
    assert "run_dir: " in (StageFolder(config().run_dir).path / "sft" / "config.yaml").read_text()


def test_another_config_is_refused_with_the_keys_that_differ(stages, config):
    first = config("sft")
    first.sft.trainer = {"max_steps": 300}
    run_stages(first, [])
    second = config("grpo")
    second.sft.trainer = {"max_steps": 400}
    with pytest.raises(Refusal) as refused:
        run_stages(second, [])
    assert refused.value.key == "name"
    assert "sft was made with another config: sft.trainer.max_steps 300 → 400" in str(refused.value)
    assert "stage=sft fresh=true" in str(refused.value)
    assert len(stages.ran) == 2


def test_a_changed_input_is_a_changed_config_of_all_that_stands_on_it(stages, config):
    run_stages(config("grpo"), [])
    with pytest.raises(Refusal, match="init was made with another config: .*seed 1 → 2.*stage=init fresh=true"):
        run_stages(config("grpo", seed=2), [])


@pytest.mark.parametrize("key", ["logging_steps", "save_steps", "report_to"])
def test_what_is_only_shown_or_kept_decides_nothing(stages, config, key):
    run_stages(config("sft"), [])
    other = config("sft")
    other.sft.trainer = {key: 5}
    run_stages(other, [])
    assert len(stages.ran) == 2


@pytest.mark.parametrize(
    "key, value",
    [("timeout", 3.0), ("workers", 2), ("memory_gb", 1.0), ("on_error", "stop"), ("max_failure_share", 0.5)],
)
def test_how_a_reward_is_run_decides_nothing(stages, config, monkeypatch, key, value):
    monkeypatch.setattr(scoring, "check_start", lambda options: None)

    def of(**fields):
        found = config("grpo")
        found.reward.functions = {"a": RewardFunctionOptions(path="rewards/format.py", **fields)}
        return found

    run_stages(of(), [])
    ran = len(stages.ran)
    run_stages(of(**{key: value}), [])
    assert len(stages.ran) == ran
    for deciding in (
        {"weight": 2.0},
        {"clip": [0.0, 1.0]},
        {"gate": "b"},
        {"kwargs": {key: value}},
        {"scope": "group"},
    ):
        with pytest.raises(Refusal, match="reward.functions.a"):
            run_stages(of(**deciding), [])


def test_a_reward_that_cannot_start_is_refused_before_the_first_stage(stages, config, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "def _start(**kwargs):\n    raise RuntimeError('no sandbox here')\n\n"
        "def one(completions, **kwargs):\n    return [1.0 for _ in completions]\n"
    )

    def of(stage):
        found = config(stage)
        found.reward.functions = {"a": RewardFunctionOptions(path=str(plugin))}
        return found

    with pytest.raises(Refusal, match="no sandbox here") as refused:
        run_stages(of("grpo"), [])
    assert refused.value.key == "reward.functions.a" and stages.ran == []
    measured = of("eval")
    measured.stages = ["init", "eval"]
    with pytest.raises(Refusal, match="no sandbox here"):
        run_stages(measured, [])
    run_stages(of("init"), [])
    assert len(stages.ran) == 1, "a run that needs no reward starts none"
    measured.evaluation.problems = 0
    run_stages(measured, [])
    assert stages.names == ["init", "eval"]


def test_a_token_budget_decides_nothing(stages, config):
    """A run that has died of memory goes on with a smaller one."""
    run_stages(config("grpo"), [])
    ran = len(stages.ran)
    other = config("grpo")
    other.grpo.token_budget = 512
    run_stages(other, [])
    assert len(stages.ran) == ran
    other.grpo.packed = False
    with pytest.raises(Refusal, match="grpo.packed"):
        run_stages(other, [])


def test_what_watches_a_training_decides_nothing(stages, config):
    run_stages(config("grpo"), [])
    ran = len(stages.ran)
    watched = config("grpo", keep_best="exit")
    watched.evaluation.every, watched.evaluation.max_drop = 5, 0.1
    run_stages(watched, [])
    assert len(stages.ran) == ran


def test_a_family_is_not_cleared_by_the_stage_that_starts_from_it(stages, config, tmp_path):
    run_stages(config("sft"), [])
    best = tmp_path / "x" / "sft" / "best" / "step-5"
    best.mkdir(parents=True)
    (best / "config.json").write_text("{}")
    for given in (best, best.parents[1]):
        with pytest.raises(Refusal, match="start_from.*which this stage writes anew .another name"):
            run_stages(config("sft", run_dir=str(tmp_path / "x"), start_from=str(given), fresh=True), [])


def test_evaluation_and_reward_decide_grpo_but_not_sft(stages, config):
    run_stages(config("grpo"), [])
    other = config("sft")
    other.evaluation.problems = 7
    run_stages(other, [])
    assert len(stages.ran) == 3
    other = config("grpo")
    other.evaluation.problems = 7
    with pytest.raises(Refusal, match="evaluation.problems 256 → 7"):
        run_stages(other, [])


def test_fresh_starts_the_asked_stage_over_and_no_other(stages, config):
    run_stages(config("grpo"), [])
    left = StageFolder(f"{config().run_dir}/grpo").path / "left.txt"
    left.write_text("")
    changed = config("grpo", fresh=True)
    changed.grpo.trainer = {"max_steps": 3}
    run_stages(changed, [])
    assert stages.names == ["init", "sft", "grpo", "grpo"]
    assert not left.exists()


def test_fresh_of_the_pipeline_starts_all_over(stages, config):
    run_stages(config("pipeline"), [])
    run_stages(config("pipeline", fresh=True), [])
    assert len(stages.ran) == 6


def test_a_training_goes_on_in_another_mode_and_on_ranks_that_can_take_its_steps(stages, config, monkeypatch):
    def fail(context):
        checkpoint(context)
        raise ValueError

    stages.act["sft"] = fail
    found = config("sft")
    found.sft.trainer["gradient_accumulation_steps"] = 2
    with pytest.raises(StageFailed):
        run_stages(found, [])
    found.deepspeed.mode = "zero3"
    with pytest.raises(StageFailed):
        run_stages(found, [])
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Refusal, match="began on 1 ranks, this run has 4") as refused:
        pending(steps(found), found)
    assert refused.value.allowed == "1 or 2 ranks, or fresh=true to start over"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [item.resume for item in pending(steps(found), found)] == [True]
    found.fresh = True
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert [item.resume for item in pending(steps(found), found)] == [False]


def test_start_from_takes_that_family_and_no_stage_before(stages, config, tmp_path):
    run_stages(config("sft"), [])
    family = f"{config().run_dir}/sft"
    run_stages(config("grpo", run_dir=str(tmp_path / "y"), start_from=family), [])
    assert stages.ran[2:] == [("grpo", "sft")]
    found = StageFolder(tmp_path / "y" / "grpo").manifest()
    assert found.input == family and found.decided_by["start_from"] == fingerprint(Path(family))
    assert not any(key.startswith("sft.") for key in found.decided_by)


def test_strangers_files_in_the_way_are_refused(stages, config, tmp_path):
    (tmp_path / "x" / "init").mkdir(parents=True)
    (tmp_path / "x" / "init" / "notes.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(Refusal, match="no stage wrote"):
            run_stages(config("init", fresh=fresh), [])
    assert (tmp_path / "x" / "init" / "notes.txt").exists()


def test_a_run_folder_that_is_not_writable_is_refused(stages, config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="run_dir"):
        run_stages(config("init", run_dir=str(tmp_path / "file" / "x")), [])
    assert stages.ran == []


def test_a_done_stage_is_shown_without_importing_torch(stages, config, tmp_path):
    run_stages(config("init"), [])
    code = (
        "import sys\n"
        "from ruyi_rl.config import RunConfig, StageOptions\n"
        "from ruyi_rl.pipeline import run_stages\n"
        f"run_stages(RunConfig(stage=StageOptions('init'), name='x', run_dir={config().run_dir!r}), [])\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "done already" in shown and shown.endswith("[]\n")
