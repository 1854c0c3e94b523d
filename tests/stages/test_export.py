"""`stage=export`: which folders, what they hold, what is done again, what fails and is refused."""

import fcntl
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ruyi_rl.__main__ import main
from ruyi_rl.family import Family
from ruyi_rl.stages.exported import factored_modules, held
from tests.factored_family import with_factors
from tests.stages.quick_command import run_tool_command

IDS = torch.tensor([[51, 43, 53, 61, 100, 7], [9, 8, 7, 6, 5, 4]])


@pytest.fixture(scope="module")
def compressed_folder(family_folder, tmp_path_factory):
    """The family with two new blocks at `small`, compressed, and its tokenizer."""
    folder = tmp_path_factory.mktemp("compressed") / "family"
    shutil.copytree(family_folder, folder)
    with_factors(Family.from_pretrained(str(folder)), "small", std=0.3).save_pretrained(folder)
    return folder


@pytest.fixture
def export(export_config, compressed_folder, tmp_path, monkeypatch, capsys):
    """Runs the stage on the exit `small`; returns what it wrote on standard output and standard error. Without vLLM:
    capsys, which reads that, has no file descriptor for it."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, family=compressed_folder, status=0):
        assert run_tool_command(export_config, f"start_from={family}", "export.exit=small", *overrides) == status
        return capsys.readouterr()

    return run


def logits_of(family, exit="small"):
    with torch.no_grad():
        return Family.from_pretrained(str(family))(IDS, exits=exit).logits[exit]


def test_the_command_prints_lines_of_python_alone(compressed_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = [f"start_from={compressed_folder}", "run_dir=run", "export.check=logits", "export.exit=[medium,large]"]
    assert main(["stage=export", *asked]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    for block, exit in zip(blocks, ("medium", "large"), strict=True):
        found = {}
        exec(block, found)  # noqa: S102
        assert torch.equal(found["model"](IDS).logits, logits_of(compressed_folder, exit))
    assert main(["stage=export", "export.formats=merged"]) == 2
    assert "export.formats" in capsys.readouterr().err


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


def test_every_exit_is_exported_unless_some_are_named(export, compressed_folder, tmp_path):
    shown = export("export.exit=null")
    folders = tmp_path / "run" / "export"
    assert sorted(path.name for path in folders.iterdir()) == ["large-merged", "medium-merged", "small-merged"]
    assert shown.out.count("AutoModelForCausalLM.from_pretrained") == 3
    for exit in ("medium", "large"):  # small's factors are merged
        model = AutoModelForCausalLM.from_pretrained(folders / f"{exit}-merged")
        assert type(model).__name__ == "Qwen3ForCausalLM"
        assert torch.equal(model(IDS).logits, logits_of(compressed_folder, exit))
    export("export.exit=[large,small]", "export.output=some")
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["large", "small"]
    export("export.exit=null", "export.format=factored", "export.output=factored")
    assert [path.name for path in (tmp_path / "factored").iterdir()] == ["small"]  # the others hold no factors


def test_only_the_folder_that_is_missing_is_made_again(export, compressed_folder, tmp_path):
    folders = tmp_path / "run" / "export"
    export("export.exit=null")
    made = (folders / "large-merged" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(folders / "medium-merged")
    again = export("export.exit=null").err
    assert again.count("already") == 2 and "medium of" in again
    assert (folders / "large-merged" / "model.safetensors").stat().st_mtime_ns == made
    assert (folders / "medium-merged" / "README.md").is_file()


def test_the_family_in_its_own_format_keeps_its_factors(export, compressed_folder, tmp_path):
    found = {}
    shown = export("export.exit=null", "export.format=family")
    exec(shown.out, found)  # noqa: S102
    folder, source = tmp_path / "run" / "export" / "family", Family.from_pretrained(str(compressed_folder))
    assert found["family"].config.factor_ranks == source.config.factor_ranks
    assert found["tokenizer"].chat_template and (folder / "README.md").is_file()
    for name, tensor in source.state_dict().items():
        assert torch.equal(found["family"].state_dict()[name], tensor)


def test_older_libraries_find_what_they_look_for(export, compressed_folder, tmp_path):
    """transformers 4 knows no `rope_parameters` and no `dtype`: it would take its defaults and say nothing."""
    family = shutil.copytree(compressed_folder, tmp_path / "family")
    config = json.loads((family / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 77777.0}
    (family / "config.json").write_text(json.dumps(config))
    export(family=family)
    written = json.loads((tmp_path / "run" / "export" / "small-merged" / "config.json").read_text())
    assert written["rope_theta"] == 77777.0 and written["torch_dtype"] == "float32"
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert written["rope_parameters"] == config["rope_parameters"]


def test_the_same_command_does_nothing_again(export, compressed_folder, tmp_path):
    family = shutil.copytree(compressed_folder, tmp_path / "family")
    weights = tmp_path / "out" / "model.safetensors"
    first = export("export.output=out", family=family)
    made = weights.stat().st_mtime_ns
    again = export("export.output=out", family=family)
    assert "already" in again.err and "already" not in first.err and again.out == first.out
    assert weights.stat().st_mtime_ns == made
    for change in ("export.format=factored", "fresh=true"):
        before = weights.stat().st_mtime_ns
        assert "already" not in export("export.output=out", change, family=family).err
        assert weights.stat().st_mtime_ns != before
    os.utime(family / "model.safetensors", ns=(1, 1))
    assert "already" not in export("export.output=out", family=family).err
    (tmp_path / "out" / "exported.json").write_text(json.dumps({"exit": "small"}))  # of another version
    assert "already" not in export("export.output=out", family=family).err
    assert not (tmp_path / "out" / "modeling_factored_qwen.py").exists()  # of the factored one before


def test_an_export_without_its_weights_is_made_again(export, tmp_path):
    export("export.output=out")
    (tmp_path / "out" / "model.safetensors").unlink()
    assert "already" not in export("export.output=out").err
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_whoever_may_read_the_folder_may_read_the_weights(export, tmp_path):
    before = os.umask(0o027)
    try:
        export("export.output=out")
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "out").iterdir()} == {"0o640"}


def test_a_folder_that_another_process_writes_is_refused(export, tmp_path):
    (tmp_path / "out").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "out: another process writes it" in export("export.output=out", status=2).err
    os.close(descriptor)
    export("export.output=out")
    with held([tmp_path / "out", tmp_path / "never"]):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


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
    folder = tmp_path / "run" / "export" / "small-merged"
    assert json.loads((folder / "exported.json").read_text()) == {} and not (folder / "config.json").exists()


def test_an_export_that_fails_holds_no_other_back(export, family_folder, tmp_path, monkeypatch):
    original = Family.branch

    def damaged(self, exit, copy=True):
        branch = original(self, exit, copy=True)
        if exit == "small":
            wrong_head(branch)
        return branch

    monkeypatch.setattr(Family, "branch", damaged)
    shown = export("export.exit=null", family=family_folder, status=1)
    assert "small-merged must not be used" in shown.err and shown.err.count("must not be used") == 1
    folders = tmp_path / "run" / "export"
    assert json.loads((folders / "small-merged" / "exported.json").read_text()) == {}
    monkeypatch.setattr(Family, "branch", original)
    assert export("export.exit=null", family=family_folder).err.count("already") == 2


@pytest.mark.parametrize("format", ["family", "ruyi"])
def test_a_family_that_lost_a_weight_fails(export, family_folder, tmp_path, monkeypatch, format):
    from ruyi_rl.stages import export_files

    original = export_files.write_files

    def damaged(family, tokenizer, target, source, sampling):
        original(family, tokenizer, target, source, sampling)
        weights = load_file(target.folder / "model.safetensors")
        weights["model.norms.1.weight"] *= 1.01
        save_file(weights, target.folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export_files, "write_files", damaged)
    shown = export("export.exit=null", f"export.format={format}", family=family_folder, status=1)
    assert "must not be used" in shown.err and not shown.out


def test_a_folder_of_other_things_is_left_alone(export, compressed_folder, family_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for overrides in (["export.output=mine"], [f"export.output={compressed_folder}"]):
        shown = export(*overrides, status=2)
        assert shown.err.startswith("ruyi_rl: export.output: ") and "no export wrote" in shown.err
        assert shown.err.count("\n") == 1
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
