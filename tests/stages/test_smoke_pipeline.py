"""The whole pipeline on a family of a few thousand parameters: real trainers, real rows, real signals."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ruyi_rl.checkpoint_folder import saving_folder
from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.family.options import ModelOptions
from ruyi_rl.pipeline import run_stages
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.training.callbacks import StopOnSignal, read_metrics
from ruyi_rl.training.options import EvaluationOptions, GRPOOptions, SFTOptions
from tests.forked_ranks import run_ranks

EXITS = {"small": 0, "large": 2}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
JUDGE = """
def digits(completions, **kwargs):
    return [float(any(map(str.isdigit, chat[0]["content"]))) for chat in completions]
"""
SFT = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1}
GRPO = {"max_steps": 3, "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 6}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Rows, a reward plugin, and the folder that holds them."""
    folder = tmp_path_factory.mktemp("smoke")
    (folder / "digits.py").write_text(JUDGE)
    rows = [{"prompt": f"{n}+{n + 1}=", "completion": str(2 * n + 1), "answer": str(2 * n + 1)} for n in range(80)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [f"{n:04d}" + "one and one is two. " * 9 for n in range(80)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def config(base, tmp_path):
    def make(stage, **changes):
        values = {
            "name": "x",
            "run_dir": str(tmp_path / "x"),
            "model": ModelOptions(exits=dict(EXITS), scratch=dict(SHAPE)),
            "data": DataOptions(path=str(base / "rows.jsonl"), holdout=12, test=None),
            "reward": RewardOptions(functions={"digits": RewardFunctionOptions(path=str(base / "digits.py"))}),
            "sft": SFTOptions(trainer=dict(SFT)),
            "grpo": GRPOOptions(trainer=dict(GRPO)),
            "evaluation": EvaluationOptions(problems=6, samples=2),
            **changes,
        }
        return RunConfig(stage=StageOptions(stage), **values)

    return make


def weights(config, stage):
    return load_file(Path(config.run_dir) / stage / "model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def interrupt_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal while a training does `step`, once."""
    original, sent = StopOnSignal.on_step_end, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)


def test_init_makes_a_family_and_its_tokenizer(config):
    from transformers import AutoTokenizer

    from ruyi_rl.family import Family

    run_stages(config("init"), [])
    folder = Path(config("init").run_dir) / "init"
    family, tokenizer = Family.from_pretrained(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert family.exits == EXITS and tokenizer.chat_template
    assert family.config.vocab_size == len(tokenizer)
    assert family.generation_config.eos_token_id == tokenizer.eos_token_id
    summary = StageFolder(folder).summary()
    assert summary["exits"]["large"] == {"k": 2, "layers": 3, "parameters": family.branch_parameters("large")}
    first = weights(config("init"), "init")
    run_stages(config("init", fresh=True), [])
    assert equal(first, weights(config("init"), "init"))
    run_stages(config("init", fresh=True, seed=2), [])
    assert not equal(first, weights(config("init"), "init"))


def test_init_grows_on_a_stock_qwen_and_takes_a_family_as_it_is(config, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from ruyi_rl.data.tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    stock = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    Qwen2ForCausalLM(Qwen2Config(**stock, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    grown = config("init", model=ModelOptions(base=str(tmp_path / "stock"), exits=dict(EXITS)))
    run_stages(grown, [])
    assert weights(grown, "init")["lm_head.1.weight"].shape[0] == len(tokenizer)
    family = f"{grown.run_dir}/init"
    again = config("init", model=ModelOptions(base=family), run_dir=str(tmp_path / "y"))
    run_stages(again, [])
    assert equal(weights(grown, "init"), weights(again, "init"))
    other = config("init", model=ModelOptions(base=family, exits={"a": 1, "b": 2}), run_dir=str(tmp_path / "z"))
    with pytest.raises(Refusal, match="model.exits"):
        run_stages(other, [])


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (ModelOptions(base="no/such/folder", exits=dict(EXITS)), "model.base"),
        (ModelOptions(exits={"a": 0, "b": 1}, scratch=dict(SHAPE)), "model.scratch"),
        (ModelOptions(exits=dict(EXITS), scratch={**SHAPE, "hiden_size": 3}), "model.scratch.hiden_size"),
        (ModelOptions(exits=dict(EXITS), scratch=dict(SHAPE), architecture="qwen4"), "model.architecture"),
    ],
)
def test_init_refuses_what_makes_no_family_and_leaves_nothing(config, model, key):
    with pytest.raises(Refusal) as refused:
        run_stages(config("init", model=model), [])
    assert refused.value.key == key and "\n" not in str(refused.value)
    assert not (Path(config("init").run_dir) / "init").exists()


def test_a_folder_without_a_model_is_refused(config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="model.base"):
        run_stages(config("init", model=ModelOptions(base=str(tmp_path / "empty"), exits=dict(EXITS))), [])


@pytest.mark.slow
def test_grpo_runs_from_nothing_to_its_table_and_then_at_once(config, capsys):
    found = config("grpo")
    run_stages(found, ["stage=grpo"])
    run = Path(found.run_dir)
    shown = capsys.readouterr().out
    assert "2 prompts × 2 exits × G 4" in shown
    summary = StageFolder(run / "grpo").summary()
    assert summary["stage"] == "grpo" and summary["seed"] == 1 and summary["reward_failures"] == 0
    assert summary["steps"] == 3 and summary["tokens"] > 0 and summary["seconds"] > 0
    sft = StageFolder(run / "sft").summary()
    for name, exit in summary["exits"].items():
        for key in ("pass_before", "pass_after", "greedy_before", "greedy_after", "reward_first", "reward_last"):
            assert 0.0 <= exit[key] <= 1.0, (name, key)
        assert (exit["pass_before"], exit["greedy_before"]) == (
            sft["exits"][name]["pass"],
            sft["exits"][name]["greedy"],
        )
    rows = read_metrics(run / "grpo" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert summary["exits"]["small"]["reward_first"] == rows[0]["small/reward"]
    for stage in ("sft", "grpo"):
        names = {file.name for file in (run / stage).iterdir()}
        assert {"model.safetensors", "tokenizer.json", "config.yaml", "manifest.json", "curves.png"} <= names
    assert not equal(weights(found, "sft"), weights(found, "grpo"))
    phases = summary["phases"]
    assert phases.keys() == {"rollout", "reward", "update", "sync", "save", "other"}
    assert sft["phases"].keys() == {"update", "save", "other"}
    assert sum(phase["share"] for phase in phases.values()) == pytest.approx(1)
    seconds = sum(phase["seconds"] for phase in phases.values())
    assert sum(row["step_time"] for row in rows) < seconds < summary["seconds"]
    rollouts = sum(row["rollout/seconds"] + row["rollout/sync_seconds"] for row in rows)
    assert phases["rollout"]["seconds"] + phases["sync"]["seconds"] == pytest.approx(rollouts, rel=0.05, abs=0.02)
    assert "time in training: " in shown

    start = time.monotonic()
    run_stages(found, ["stage=grpo"])
    assert time.monotonic() - start < 1 and "done already" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_an_interrupted_training_ends_as_if_nothing_had_happened(config, tmp_path, monkeypatch, stage):
    whole, broken = config(stage), config(stage, run_dir=str(tmp_path / "y"))
    run_stages(whole, [])
    if stage == "grpo":
        run_stages(config("sft", run_dir=broken.run_dir), [])
    interrupt_at(monkeypatch, 2)
    with pytest.raises(Interrupted) as interrupted:
        run_stages(broken, [f"stage={stage}"])
    assert interrupted.value.status == 143 and "after step 2" in str(interrupted.value)
    assert StageFolder(tmp_path / "y" / stage).manifest().status == "interrupted"
    run_stages(broken, [f"stage={stage}"])
    assert equal(weights(whole, stage), weights(broken, stage))
    summaries = [StageFolder(Path(made.run_dir) / stage).summary() for made in (whole, broken)]
    scores = [
        {
            name: {key: value for key, value in exit.items() if key != "seconds"}
            for name, exit in summary["exits"].items()
        }
        for summary in summaries
    ]
    assert scores[0] == scores[1]
    rows = [read_metrics(Path(made.run_dir) / stage / "metrics.jsonl") for made in (whole, broken)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert [row["small/loss"] for row in rows[0]] == [row["small/loss"] for row in rows[1]]


@pytest.mark.slow
def test_a_training_killed_in_a_checkpoint_goes_on_from_the_whole_one_before(config):
    found = config("sft")
    found.sft.trainer["save_steps"] = 1
    run_stages(found, [])
    done = weights(found, "sft")
    folder = StageFolder(Path(found.run_dir) / "sft")
    # As a kill while checkpoint-3 was written would have left it.
    manifest = folder.manifest()
    manifest.status, manifest.progress = "running", {}
    folder.write_manifest(manifest)
    checkpoint = folder.path / "checkpoint-3"
    checkpoint.rename(saving_folder(folder.path, 3))
    (folder.path / "model.safetensors").unlink()
    run_stages(found, [])
    assert equal(done, weights(found, "sft"))
    assert [row["step"] for row in read_metrics(folder.path / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_after_the_training_a_failure_costs_no_training(config, monkeypatch):
    from ruyi_rl.stages import grpo

    found = config("grpo")
    original = grpo.measure

    def fail_after(context, folder, *rest):
        if folder == context.folder:
            raise OSError("no space left")
        return original(context, folder, *rest)

    monkeypatch.setattr(grpo, "measure", fail_after)
    with pytest.raises(StageFailed, match="no space left"):
        run_stages(found, [])
    trained = weights(found, "grpo")
    monkeypatch.setattr(grpo, "measure", original)
    monkeypatch.setattr(grpo, "_train", None)
    run_stages(found, [])
    assert equal(trained, weights(found, "grpo"))


@pytest.mark.slow
def test_the_second_sft_stage_starts_from_the_first_and_has_steps_of_its_own(config, base, monkeypatch):
    found = config("sft")
    found.sft.stage_two.data = DataOptions(path=str(base / "rows.jsonl"), holdout=40, test=None)
    found.sft.stage_two.trainer = {"max_steps": 3}
    interrupt_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        run_stages(found, [])
    run_stages(found, [])
    folder = Path(found.run_dir) / "sft"
    rows = read_metrics(folder / "metrics.jsonl")
    steps = [(row["phase"], row["step"]) for row in rows]
    assert steps == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3)]
    assert rows[4]["large/loss"] < rows[0]["large/loss"]
    assert StageFolder(folder).summary()["steps"] == 7
    assert not equal(load_file(folder / "stage_one" / "model.safetensors"), weights(found, "sft"))


@pytest.mark.slow
def test_a_16_bit_family_is_trained_in_float32_and_saved_in_16_bits(config):
    found = config("grpo", model=ModelOptions(exits=dict(EXITS), scratch=dict(SHAPE), dtype="bfloat16"))
    run_stages(found, [])
    for stage in ("sft", "grpo"):
        folder = StageFolder(Path(found.run_dir) / stage)
        inside = load_file(folder.checkpoints()[-1] / "model.safetensors")
        assert {str(value.dtype) for value in inside.values()} == {"torch.float32"}
        assert {str(value.dtype) for value in weights(found, stage).values()} == {"torch.bfloat16"}
        assert json.loads((folder.path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.slow
def test_pretrain_counts_every_token_of_plain_text(config, base):
    texts = DataOptions(path=str(base / "texts.jsonl"), holdout=4, test=None, fields={"text": "text"})
    trainer = {**SFT, "max_length": 64, "num_train_epochs": 1, "max_steps": -1, "save_strategy": "no"}
    block = SFTOptions(trainer=trainer)
    run_stages(config("pretrain", data=texts, pretrain=block), [])
    summary = StageFolder(Path(config("pretrain").run_dir) / "pretrain").summary()
    # 76 documents of 184 bytes and their end tokens, cut into whole sequences of 64.
    assert summary["tokens"] == pytest.approx(76 * 185, abs=64)
    assert summary["exits"]["large"]["loss_last"] < summary["exits"]["large"]["loss_first"]
    assert summary["phases"]["save"]["seconds"] > 0  # of the trained family, written after the last log


@pytest.mark.slow
def test_only_the_chosen_exits_are_trained_and_measured(config):
    found = config("grpo", grpo=GRPOOptions(exits=["small"], trainer={**GRPO, "learning_rate": 1e-2}))
    run_stages(found, [])
    assert list(StageFolder(Path(found.run_dir) / "grpo").summary()["exits"]) == ["small"]
    before, after = weights(found, "sft"), weights(found, "grpo")
    changed = {name for name in before if not bool((before[name] == after[name]).all())}
    assert changed and not any("layers.1" in name or "lm_head.1" in name for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"grpo": GRPOOptions(trainer={**GRPO, "per_device_train_batch_size": 12, "num_generations": 4})},
            "grpo.trainer",
        ),
        ({"grpo": GRPOOptions(trainer=dict(GRPO), exits=["smal"])}, "grpo.exits"),
        ({"sft": SFTOptions(trainer={**SFT, "max_length": 3})}, "sft.trainer.max_length"),
    ],
)
def test_what_cannot_be_trained_is_refused(config, changes, key):
    with pytest.raises(Refusal) as refused:
        run_stages(config("grpo", **changes), [])
    assert refused.value.key == key


RANKS = """
import pickle, sys
from ruyi_rl.pipeline import run_stages
run_stages(pickle.loads(bytes.fromhex(sys.argv[1])), [])
"""


def torchrun(config, ranks):
    import pickle

    script = Path(config.run_dir).parent / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*command, str(script), pickle.dumps(config).hex()],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launched(config, ranks) -> str:
    """A whole run by torchrun; what it shows."""
    process = torchrun(config, ranks)
    shown, _ = process.communicate(timeout=400)
    assert process.returncode == 0, shown
    return shown


def forked(config, ranks) -> str:
    """The same for less time, without the launcher and without GPUs."""
    return run_ranks("ruyi_rl.pipeline:run_stages", config, [], ranks=ranks, log=Path(config.run_dir).parent / "log")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "start"), [("off", forked), ("auto", launched), ("zero3", forked)])
def test_two_ranks_share_one_run(config, mode, start):
    found = config("grpo")
    found.deepspeed.mode = mode
    shown = start(found, 2)
    assert "16 a rank × 2 ranks × 1 micro-batches" in shown
    assert shown.count("held-out pass rate after grpo:") == 1
    summary = StageFolder(Path(found.run_dir) / "grpo").summary()
    assert summary["steps"] == 3
    assert all(math.isfinite(exit["pass_after"]) for exit in summary["exits"].values())
    assert [row["step"] for row in read_metrics(Path(found.run_dir) / "grpo" / "metrics.jsonl")] == [1, 2, 3]
    assert weights(found, "grpo").keys() == weights(found, "init").keys()


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step(config, monkeypatch):
    found = config("sft")
    found.sft.trainer["max_steps"] = 2000
    found.deepspeed.mode = "zero2"
    process = torchrun(found, 2)
    metrics = Path(found.run_dir) / "sft" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while len(read_metrics(metrics)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=200)
    folder = StageFolder(metrics.parent)
    assert folder.manifest().status == "interrupted", shown
    step = int(folder.checkpoints()[-1].name.removeprefix("checkpoint-"))
    assert step >= 3 and read_metrics(metrics)[-1]["step"] == step
    # Its steps are two micro-batches, which three ranks cannot divide.
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(Refusal, match="began on 2 ranks, this run has 3"):
        run_stages(found, [])
    shutil.rmtree(metrics.parent)
