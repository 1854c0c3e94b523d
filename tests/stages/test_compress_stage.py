"""`stage=compress` on a family of a few thousand parameters: real rows, real signals, a real recovery."""

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config

from ruyi_rl.config import RunConfig, StageOptions
from ruyi_rl.data.options import DataOptions
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.family import Family
from ruyi_rl.family.options import CompressOptions
from ruyi_rl.pipeline import run_stages
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.stages import compression_scores
from ruyi_rl.training.callbacks import StopOnSignal, read_metrics
from ruyi_rl.training.options import EvaluationOptions
from tests.forked_ranks import run_ranks

EXITS = {"small": 0, "large": 2}
JUDGE = """
def digits(completions, **kwargs):
    return [float(any(map(str.isdigit, chat[0]["content"]))) for chat in completions]
"""
TRAINER = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Rows, a reward plugin and an expanded family whose new blocks do something."""
    folder = tmp_path_factory.mktemp("compress")
    (folder / "digits.py").write_text(JUDGE)
    rows = [{"prompt": f"{n}+{n + 1}=", "completion": str(2 * n + 1), "answer": str(2 * n + 1)} for n in range(80)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": f"{n} and one. " * 4}) + "\n" for n in range(40)))
    expanded_family().save_pretrained(folder / "family")
    byte_tokenizer().save_pretrained(folder / "family")
    return folder


def expanded_family(exits=("small",)) -> Family:
    tokenizer = byte_tokenizer()
    backbone = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    family = Family.from_scratch(backbone, dict(EXITS))
    for exit in exits:
        family.expand(exit, blocks=2, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return family


@pytest.fixture
def config(base, tmp_path):
    def make(compress=None, **changes):
        values = {
            "name": "x",
            "run_dir": str(tmp_path / "x"),
            "start_from": str(base / "family"),
            "data": DataOptions(path=str(base / "rows.jsonl"), holdout=12, test=None),
            "reward": RewardOptions(functions={"digits": RewardFunctionOptions(path=str(base / "digits.py"))}),
            "compress": CompressOptions(
                **{"calibration_rows": 20, "max_length": 64, "trainer": dict(TRAINER), **(compress or {})}
            ),
            "evaluation": EvaluationOptions(problems=0),
            **changes,
        }
        return RunConfig(stage=StageOptions("compress"), **values)

    return make


MEASURED = {"evaluation": EvaluationOptions(problems=6, samples=2, max_new_tokens=6)}


def folder_of(config) -> Path:
    return Path(config.run_dir) / "compress"


def logits(folder, exit):
    torch.manual_seed(0)
    ids = torch.randint(5, 90, (2, 11))
    with torch.no_grad():
        return Family.from_pretrained(str(folder))(ids, exits=exit).logits[exit]


def test_the_exit_becomes_factors_and_no_other_changes(config, base, capsys):
    made = config()
    run_stages(made, [])
    folder = folder_of(made)
    before, after = load_file(base / "family" / "model.safetensors"), load_file(folder / "model.safetensors")
    own = ("model.expansions.0.", "lm_head.0.")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if not name.startswith(own))
    assert sum(name.endswith(".u.weight") for name in after) == 2 * 7 + 1
    assert torch.equal(logits(folder, "large"), logits(base / "family", "large"))
    assert not torch.allclose(logits(folder, "small"), logits(base / "family", "small"), atol=1e-2)
    assert (folder / "tokenizer.json").is_file()

    summary = StageFolder(folder).summary()
    assert (summary["exit"], summary["method"], summary["ratio"], summary["recover_steps"]) == (
        "small",
        "budgeted",
        0.4,
        0,
    )
    exit = summary["exits"]["small"]
    removed = sum(
        row["rows"] * row["columns"] - row["rank"] * (row["rows"] + row["columns"]) for row in summary["matrices"]
    )
    assert exit["parameters_before"] - exit["parameters_after"] == removed > 0
    assert exit["bytes_before"] - exit["bytes_after"] == 4 * removed
    assert not any(key.startswith("pass") for key in exit) and "held_out" not in summary
    assert json.loads((folder / "matrices.json").read_text()) == summary["matrices"]
    shown = capsys.readouterr().out
    assert "calibration: 20 rows of" in shown and "10 others held out" in shown and "budgeted (used)" in shown


def test_the_losses_are_those_of_the_saved_factors_on_the_rows(config, base):
    """Both on the calibration's rows and on the others, measured by hooks of our own on a stock branch."""
    made = config()
    run_stages(made, [])
    from ruyi_rl.stages.calibration_rows import calibration_rows

    rows = calibration_rows(made, byte_tokenizer())
    stored, summary = load_file(folder_of(made) / "model.safetensors"), StageFolder(folder_of(made)).summary()
    family = Family.from_pretrained(base / "family")
    stock_names = {f"model.expansions.0.{block}.": f"model.layers.{1 + block}." for block in range(2)}
    for part, key, norm in (("calibration", "achieved", "norm"), ("held_out", "held_out_achieved", "held_out_norm")):
        branch, seen = family.branch("small"), {}
        for name, module in branch.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda _, given, out, name=name, seen=seen: seen.setdefault(name, []).append(given[0][0])
                )
        with torch.no_grad():
            for row in getattr(rows, part):
                branch(torch.tensor([row]))
        assert summary["tokens"][part] == sum(map(len, getattr(rows, part)))
        for matrix in summary["matrices"]:
            own = matrix["name"]
            stock = (
                "lm_head"
                if own == "lm_head.0"
                else next(own.replace(old, new) for old, new in stock_names.items() if own.startswith(old))
            )
            inputs = torch.cat(seen[stock]).double().T
            weight = branch.get_submodule(stock).weight.detach().double()
            factors = stored[f"{own}.u.weight"].double() @ stored[f"{own}.v.weight"].double()
            assert matrix[norm] == pytest.approx((weight @ inputs).norm().item(), rel=1e-5)
            assert matrix[key] == pytest.approx(((weight - factors) @ inputs).norm().item(), rel=1e-3), own


def test_each_method_is_told_and_none_is_worse_than_a_simpler_one(config, tmp_path):
    ours = []
    for method in ("svd", "whitened", "budgeted"):
        made = config({"method": method}, run_dir=str(tmp_path / method))
        run_stages(made, [])
        ours.append(StageFolder(folder_of(made)).summary())
    losses = ours[0]["losses"]
    assert losses["budgeted"]["calibration"] <= losses["whitened"]["calibration"] < losses["svd"]["calibration"]
    for method, summary in zip(losses, ours):
        achieved = math.hypot(*(row["achieved"] for row in summary["matrices"]))
        assert achieved == pytest.approx(summary["losses"][method]["calibration"], rel=1e-4)
        held_out = math.hypot(*(row["held_out_achieved"] for row in summary["matrices"]))
        assert held_out == pytest.approx(summary["losses"][method]["held_out"], rel=1e-4)


def test_few_tokens_are_warned_of_with_the_numbers(config, capsys):
    made = config({"calibration_rows": 1})
    run_stages(made, [])
    (warning, *_) = StageFolder(folder_of(made)).summary()["warnings"]
    assert "tokens are fewer than the columns" in warning and "64" in warning
    assert "tokens are fewer" in capsys.readouterr().out


def test_plain_text_calibrates_too(config, base):
    data = DataOptions(path=str(base / "texts.jsonl"), holdout=4, test=None, fields={"text": "text"})
    made = config({"data": data})
    run_stages(made, [])
    rows = [f"{n} and one. " * 4 for n in range(40)]
    tokens = StageFolder(folder_of(made)).summary()["tokens"]
    assert min(map(len, rows)) + 1 <= tokens["calibration"] / 20 <= max(map(len, rows)) + 1


@pytest.mark.parametrize(
    ("compress", "key", "text"),
    [
        ({"max_length": 3}, "compress.max_length", "longer than 3"),
        ({"exit": "smal"}, "compress.exit", "smal"),
        ({"exit": "large"}, "compress.exit", "large"),
    ],
)
def test_what_cannot_be_compressed_is_refused_and_leaves_nothing(config, compress, key, text):
    made = config(compress)
    with pytest.raises(Refusal, match=text) as refused:
        run_stages(made, [])
    assert refused.value.key == key and not folder_of(made).exists()


@pytest.mark.parametrize(
    ("expanded", "text"), [((), "no exit in .* is expanded"), (("small", "large"), "small, large are expanded")]
)
def test_the_exit_must_be_plain(config, tmp_path, expanded, text):
    expanded_family(expanded).save_pretrained(tmp_path / "family")
    byte_tokenizer().save_pretrained(tmp_path / "family")
    with pytest.raises(Refusal, match=text) as refused:
        run_stages(config(start_from=str(tmp_path / "family")), [])
    assert refused.value.key == "compress.exit"


def test_compressing_twice_is_refused(config, tmp_path):
    made = config()
    run_stages(made, [])
    with pytest.raises(Refusal, match="compressed"):
        run_stages(config(start_from=str(folder_of(made)), run_dir=str(tmp_path / "y")), [])
    with pytest.raises(Refusal, match="compressed"):
        run_stages(config({"exit": "small"}, start_from=str(folder_of(made)), run_dir=str(tmp_path / "y")), [])


@pytest.mark.parametrize("where", ["model.embed_tokens.weight", "model.expansions.0.1.mlp.up_proj.weight"])
def test_a_family_with_nan_fails_with_a_sentence(config, tmp_path, where):
    family = expanded_family()
    with torch.no_grad():
        family.get_parameter(where).view(-1)[0 if "mlp" in where else slice(None)] = math.nan
    family.save_pretrained(tmp_path / "family")
    byte_tokenizer().save_pretrained(tmp_path / "family")
    made = config(start_from=str(tmp_path / "family"))
    with pytest.raises(StageFailed, match="cannot be compressed: .*NaN"):
        run_stages(made, [])
    assert not (folder_of(made) / "error.txt").exists()


@pytest.mark.slow
def test_pass_rates_before_and_after_and_what_a_resumed_run_repeats(config, monkeypatch):
    made = config({"recover_steps": 3}, **MEASURED)
    run_stages(made, [])
    summary = StageFolder(folder_of(made)).summary()
    exit = summary["exits"]["small"]
    for when in ("before", "compressed", "after"):
        assert 0 <= exit[f"pass_{when}"] <= 1 and 0 <= exit[f"greedy_{when}"] <= 1
        assert exit[f"pass_{when}_standard_error"] >= 0
    assert summary["retained"] == pytest.approx(exit["pass_after"] / exit["pass_before"])
    assert summary["held_out"]["exits"]["small"]["pass_rate"] == exit["pass_after"]
    assert (folder_of(made) / "curves.png").is_file()

    # From the last measurement on, without another compression, recovery or measurement.
    manifest = StageFolder(folder_of(made)).manifest()
    manifest.status = "interrupted"
    del manifest.progress["after"]
    StageFolder(folder_of(made)).write_manifest(manifest)
    occasions, original = [], compression_scores.measure

    def measure(*args):
        occasions.append(args[-1])
        return original(*args)

    monkeypatch.setattr(compression_scores, "measure", measure)
    run_stages(made, [])
    assert occasions == ["held-out pass rate after recovery"]
    again = StageFolder(folder_of(made)).summary()["exits"]["small"]
    assert again["pass_after"] == exit["pass_after"] and again["pass_before"] == exit["pass_before"]


@pytest.mark.slow
def test_recovery_trains_the_factors_alone_towards_the_uncompressed_exit(config, base, tmp_path):
    plain, made = config(run_dir=str(tmp_path / "y")), config({"recover_steps": 40, "ratio": 0.6})
    plain.compress.ratio = 0.6
    run_stages(plain, [])
    run_stages(made, [])
    before, after = (load_file(folder_of(each) / "model.safetensors") for each in (plain, made))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in after if name.endswith((".u.weight", ".v.weight"))}
    rows = read_metrics(folder_of(made) / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["small/loss"] < 0.7 * rows[0]["small/loss"]
    assert torch.equal(logits(folder_of(made), "large"), logits(base / "family", "large"))


@pytest.mark.slow
def test_a_bfloat16_family_stays_one_and_is_tuned_in_float32(config, tmp_path):
    expanded_family().bfloat16().save_pretrained(tmp_path / "family")
    byte_tokenizer().save_pretrained(tmp_path / "family")
    made = config({"recover_steps": 20}, start_from=str(tmp_path / "family"))
    run_stages(made, [])
    assert {tensor.dtype for tensor in load_file(folder_of(made) / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder_of(made) / "config.json").read_text())["dtype"] == "bfloat16"
    assert StageFolder(folder_of(made)).summary()["exits"]["small"]["bytes_before"] == 2 * 45056
    rows = read_metrics(folder_of(made) / "metrics.jsonl")
    assert rows[-1]["small/loss"] < 0.9 * rows[0]["small/loss"]


@pytest.mark.slow
def test_trainer_fields_that_make_no_run_are_refused_before_anything_is_computed(config):
    made = config({"recover_steps": 2, "trainer": {**TRAINER, "lr_scheduler_type": "zigzag"}})
    with pytest.raises(Refusal) as refused:
        run_stages(made, [])
    assert refused.value.key == "compress.trainer" and not folder_of(made).exists()


@pytest.mark.slow
def test_an_interrupted_recovery_ends_as_if_nothing_had_happened(config, tmp_path, monkeypatch):
    whole, broken = config({"recover_steps": 4}), config({"recover_steps": 4}, run_dir=str(tmp_path / "y"))
    run_stages(whole, [])
    original, sent = StopOnSignal.on_step_end, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and not sent:
            sent.append(2)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)
    with pytest.raises(Interrupted, match="after step 2"):
        run_stages(broken, [])
    run_stages(broken, [])
    first, second = (load_file(folder_of(each) / "model.safetensors") for each in (whole, broken))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    steps = [[row["step"] for row in read_metrics(folder_of(each) / "metrics.jsonl")] for each in (whole, broken)]
    assert steps[0] == steps[1] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["off", "zero3"])
def test_two_ranks_find_what_one_finds(config, tmp_path, mode):
    alone, shared = config(), config({"recover_steps": 2}, run_dir=str(tmp_path / "y"), **MEASURED)
    shared.deepspeed.mode = mode
    run_stages(alone, [])
    shown = run_ranks("ruyi_rl.pipeline:run_stages", shared, [], log=tmp_path / "log")
    assert ("recovery runs on ZeRO-2" in shown) == (mode == "zero3")
    one, two = (StageFolder(folder_of(each)).summary() for each in (alone, shared))
    assert one["tokens"] == two["tokens"]
    for first, second in zip(one["matrices"], two["matrices"], strict=True):
        assert first["rank"] == second["rank"]
        for key in ("predicted", "norm", "held_out_norm"):
            assert first[key] == pytest.approx(second[key], rel=1e-5), (first["name"], key)
    assert all(math.isfinite(two["exits"]["small"][f"pass_{when}"]) for when in ("before", "compressed", "after"))
    assert len(read_metrics(folder_of(shared) / "metrics.jsonl")) == 2
