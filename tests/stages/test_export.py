"""`stage=export` through the command: both formats, what is refused, and vLLM on what is merged."""

import json
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ruyi_rl.__main__ import main
from ruyi_rl.family import Family
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from ruyi_rl.stages import export as stage
from ruyi_rl.stages.exported import factored_modules
from tests.factored_family import with_factors

IDS = torch.tensor([[51, 43, 53, 61, 100, 7], [9, 8, 7, 6, 5, 4]])


@pytest.fixture(scope="module")
def compressed_folder(family_folder, tmp_path_factory):
    """The family with two new blocks at `small`, compressed, and its tokenizer."""
    folder = tmp_path_factory.mktemp("compressed") / "family"
    shutil.copytree(family_folder, folder)
    with_factors(Family.from_pretrained(str(folder)), "small", std=0.3).save_pretrained(folder)
    return folder


@pytest.fixture
def export(compressed_folder, tmp_path, monkeypatch, capsys):
    """Runs the command on the exit `small`; returns what it wrote on standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, family=compressed_folder, status=0):
        command = ["stage=export", f"start_from={family}", "run_dir=run", "export.exit=small", *overrides]
        assert main(command) == status
        return capsys.readouterr()

    return run


def logits_of(family, exit="small"):
    with torch.no_grad():
        return Family.from_pretrained(str(family))(IDS, exits=exit).logits[exit]


def test_both_formats_load_by_the_lines_that_are_printed(export, compressed_folder, tmp_path):
    expected, sizes = logits_of(compressed_folder), {}
    for format, kind, atol in (("merged", "Qwen3ForCausalLM", 1e-4), ("factored", "FactoredQwen3ForCausalLM", 0)):
        shown = export(f"export.format={format}")
        folder, found = tmp_path / "run" / "export" / f"small-{format}", {}
        exec(shown.out, found)  # noqa: S102
        assert shown.out.count("\n") == 3 and type(found["model"]).__name__ == kind
        with torch.no_grad():
            torch.testing.assert_close(found["model"](IDS).logits, expected, atol=atol * expected.abs().max(), rtol=0)
        sizes[format] = (folder / "model.safetensors").stat().st_size
        parameters = found["model"].num_parameters()
        assert 0 < sizes[format] - 4 * parameters < 20_000  # the file's header
        assert str(folder) in shown.err and f"{parameters:,} parameters" in shown.err
        assert f"({sizes[format]:,} bytes)" in shown.err and "largest difference of a logit" in shown.err
        assert found["tokenizer"]("3+5=")["input_ids"]
        tokenizer = AutoTokenizer.from_pretrained(compressed_folder)
        assert found["model"].generation_config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])
        mark = json.loads((folder / "exported.json").read_text())
        assert (mark["exit"], mark["format"]) == ("small", format) and mark["family"] == str(compressed_folder)
        assert (mark["parameters"], mark["bytes"]) == (parameters, sizes[format])
    family = Family.from_pretrained(str(compressed_folder))
    assert sizes["factored"] - 4 * family.branch_parameters("small") < 20_000
    assert sizes["factored"] < 0.8 * sizes["merged"]
    assert not list((tmp_path / "run" / "export" / "small-merged").glob("*.py"))
    assert (tmp_path / "run" / "export" / "small-factored" / "modeling_factored_qwen.py").is_file()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("format", ["merged", "factored"])
def test_weights_of_16_bits_stay_so(export, compressed_folder, tmp_path, dtype, format):
    family = shutil.copytree(compressed_folder, tmp_path / "family")
    Family.from_pretrained(str(family), dtype=getattr(torch, dtype)).save_pretrained(family)
    shown = export(f"export.format={format}", family=family)
    folder = tmp_path / "run" / "export" / f"small-{format}"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=format == "factored")
    assert model.dtype == getattr(torch, dtype)
    mark = json.loads((folder / "exported.json").read_text())
    assert mark["bytes"] < 2 * mark["parameters"] + 20_000
    assert (mark["difference"] == 0) == (format == "factored"), shown.err


def test_the_default_exit_and_its_stock_model(export, compressed_folder, tmp_path):
    assert "/run/export/large-merged'" in export("export.exit=null").out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export" / "large-merged")
    assert torch.equal(model(IDS).logits, logits_of(compressed_folder, "large"))


def test_the_same_command_does_nothing_again(export, compressed_folder, tmp_path):
    family = shutil.copytree(compressed_folder, tmp_path / "family")
    weights = tmp_path / "out" / "model.safetensors"
    first = export("export.output=out", family=family)
    made = weights.stat().st_mtime_ns
    again = export("export.output=out", family=family)
    assert "already" in again.err and "already" not in first.err and again.out == first.out
    assert weights.stat().st_mtime_ns == made
    for change in ("export.format=factored", "export.exit=medium", "fresh=true"):
        before = weights.stat().st_mtime_ns
        assert "already" not in export("export.output=out", change, family=family).err
        assert weights.stat().st_mtime_ns != before
    os.utime(family / "model.safetensors", ns=(1, 1))
    assert "already" not in export("export.output=out", family=family).err
    assert not (tmp_path / "out" / "modeling_factored_qwen.py").exists()  # of the factored one before


def wrong_head(branch):
    branch.lm_head.weight.data = branch.lm_head.weight.roll(1, 0)


def not_a_number(branch):
    branch.model.norm.weight.data = branch.model.norm.weight * torch.nan


@pytest.mark.parametrize("damage", [wrong_head, not_a_number])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_that_is_not_the_family_fails(export, compressed_folder, tmp_path, monkeypatch, damage, dtype):
    family = shutil.copytree(compressed_folder, tmp_path / "family")
    Family.from_pretrained(str(family), dtype=getattr(torch, dtype)).save_pretrained(family)
    original = Family.branch

    def damaged(self, exit, copy=True):
        branch = original(self, exit, copy=True)
        damage(branch)
        return branch

    monkeypatch.setattr(Family, "branch", damaged)
    shown = export(family=family, status=1)
    assert "must not be used" in shown.err and "Traceback" not in shown.err and not shown.out
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert "already" not in export(family=family).err


def test_tolerances_follow_the_dtype():
    assert stage.tolerance(torch.float32, 30.0) == pytest.approx(3e-3)
    assert stage.tolerance(torch.float32, 0.1) == pytest.approx(1e-4)
    assert stage.tolerance(torch.bfloat16, 10.0) == pytest.approx(10 * 8 / 128)
    assert stage.tolerance(torch.float16, 10.0) == pytest.approx(10 * 8 / 1024)


def test_what_is_refused(export, compressed_folder, family_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for overrides, key, word in (
        (["export.exit=smal"], "export.exit", "did you mean 'small'?"),
        (["export.format=merge"], "export.format", "did you mean 'merged'?"),
        (["export.format=factored", "export.exit=medium"], "export.format", "no factors of medium"),
        (["export.output=mine"], "export.output", "no export wrote"),
        ([f"export.output={compressed_folder}"], "export.output", "no export wrote"),
        (["export.output=/proc/x"], "export.output", "/proc"),
        (["export.formats=merged"], "export.formats", "export.format"),
        (["launch=true"], "launch", "stage=serve"),
        (["num_processes=2"], "num_processes", "one process"),
    ):
        shown = export(*overrides, status=2)
        assert shown.err.startswith(f"ruyi_rl: {key}: ") and word in shown.err and shown.err.count("\n") == 1
    assert "export.format: " in export("export.format=factored", family=family_folder, status=2).err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "run").exists()


def test_factored_layers_are_told_from_the_config():
    exits = {"small": 0, "medium": 1, "large": 3}
    names = {
        "small": ["model.expansions.0.1.mlp.up_proj", "model.eelayers.0.mlp.up_proj", "lm_head.0"],
        "medium": ["model.expansions.1.0.mlp.up_proj", "lm_head.1", "model.layers.0.mlp.up_proj"],
        "large": ["model.expansions.2.10.mlp.up_proj", "model.layers.0.mlp.up_proj", "model.layers.3.mlp.up_proj"],
    }
    others = ["model.expansions.10.1.mlp.up_proj", "lm_head.10", "lm_head.11"]
    stored = {"factor_ranks": dict.fromkeys([name for some in names.values() for name in some] + others, 3)}
    for exit in exits:
        assert set(factored_modules(stored, exits, exit)) == set(names[exit])
    assert factored_modules({"factor_ranks": {"lm_head": 3}}, exits, "medium") == ["lm_head"]
    assert factored_modules({}, exits, "medium") == []


@pytest.mark.slow
def test_vllm_computes_what_the_family_does_from_a_merged_export(compressed_folder, tmp_path):
    if problem := vllm_problem() or import_problem():
        pytest.skip(problem)
    from ruyi_rl.rollout.engine import Engine, leave_groups

    # Not through the command: capsys, which reads what that prints, has no file descriptor for vLLM.
    stage.write_export(compressed_folder, "small", tmp_path / "small", "merged")
    engine = Engine(
        "small",
        {
            "model": str(tmp_path / "small"),
            "dtype": "float32",
            "max_model_len": 64,
            "max_num_seqs": 4,
            "kv_cache_memory_bytes": 2**26,
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
        },
    )
    asked = {"max_tokens": 8, "temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0, "detokenize": False}
    outputs = engine.generate(IDS.tolist(), [asked] * len(IDS))
    engine.shut_down()
    leave_groups()
    family = Family.from_pretrained(str(compressed_folder))
    for prompt, output in zip(IDS.tolist(), outputs, strict=True):
        ids = prompt + list(output.outputs[0].token_ids)
        steps = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        got = torch.tensor([step[token].logprob for step, token in zip(steps, ids[1:], strict=True)])
        with torch.no_grad():
            log_probs = family(torch.tensor([ids]), exits="small").logits["small"][0, :-1].log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        assert ids[len(prompt) :] == log_probs[len(prompt) - 1 :].argmax(-1).tolist()
