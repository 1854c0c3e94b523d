"""The model card of an export: what it tells of a run, what it must not tell, and when it is written again."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from ruyi_rl.run_folder import DONE, Manifest, StageFolder, fingerprint, write_json
from ruyi_rl.stages.card_scores import harness_table, interval, score_tables
from ruyi_rl.stages.model_card import table
from ruyi_rl.stages.provenance import Base, base_model, provenance, trained_sampling
from tests.stages.quick_command import run_tool_command

SECRET = "hf_a-secret-of-the-run"


def manifest(stage, config_hash, before=None, **decided_by):
    return Manifest(
        stage=stage,
        status=DONE,
        config_hash=config_hash,
        decided_by={"data.name": "sums", "data.path": "/home/me/private/rows.jsonl", **decided_by},
        input=str(before) if before else None,
        input_hash=fingerprint(before) if before else None,
        seed=7,
        world_size=2,
        deepspeed="off",
        versions={"torch": "9.9", "trl": "8.8"},
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-02T00:00:00+00:00",
    )


@pytest.fixture
def run(family_folder, tmp_path, monkeypatch):
    """A run of init and grpo, as far as an export looks into it; the family is that of grpo."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "models" / "little-qwen"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# little\n")
    first, last = tmp_path / "run" / "init", tmp_path / "run" / "grpo"
    for folder in (first, last):
        shutil.copytree(family_folder, folder)
        (folder / "config.yaml").write_text("name: sums-small\n")
    based = {"model.base": str(base)}
    StageFolder(first).write_manifest(manifest("init", "aaaa", **based))
    drawn = {"grpo.trainer.temperature": 0.9, "grpo.trainer.top_k": None}
    StageFolder(last).write_manifest(manifest("grpo", "bbbb", first, **based, **drawn))
    score = {"pass_rate": 0.25, "standard_error": 0.05, "greedy": 0.5, "mean_tokens": 12.25, "truncated": 0.01}
    held_out = {"problems": 16, "samples": 4, "temperature": 1.0, "exits": dict.fromkeys(("small", "large"), score)}
    write_json(last / "summary.json", {"stage": "grpo", "held_out": held_out})
    return last


def evaluated(run):
    """Writes what `stage=eval` finds; small is better than large here."""
    share = {"value": 0.412, "low": 0.35, "high": 0.474}
    score = {"greedy": share, "pass@4": {**share, "value": 0.6}, "mean_tokens": 7.5, "truncated": 0.0, "seconds": 3.0}
    exits = {"small": score, "large": {**score, "greedy": {**share, "value": 0.3}}}
    folder = run.parent / "eval"
    folder.mkdir(exist_ok=True)
    StageFolder(folder).write_manifest(manifest("eval", "cccc", run))
    harness = {"arc|easy": {"metric": "acc", "exits": {"small": {"value": 0.5, "standard_error": 0.02}, "large": {}}}}
    benchmarks = {"sums": {"problems": 100, "samples": 4, "exits": exits, "differences": []}}
    write_json(folder / "summary.json", {"stage": "eval", "benchmarks": benchmarks, "harness": harness})


@pytest.fixture
def exported(export_config):
    """Exports the run's exit `small`; returns the card."""

    def export(*overrides, folder="small-merged"):
        assert run_tool_command(export_config, "export.exit=small", *overrides) == 0
        return Path(f"run/export/{folder}/README.md").read_text()

    return export


def rows_of(card):
    return [re.split(r" *(?<!\\)\| *", line.strip("| ")) for line in card.splitlines() if line.startswith("|")]


def test_a_card_tells_where_the_exit_comes_from_and_how_good_it_is(run, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", SECRET)
    (run / "config.yaml").write_text(f"name: sums-{SECRET}\n")
    card = exported()
    mark = json.loads((tmp_path / "run/export/small-merged/exported.json").read_text())
    front = ModelCard(card).data.to_dict()
    assert front["license"] == "apache-2.0" and front["library_name"] == "transformers" and "grpo" in front["tags"]
    assert "base_model" not in front  # no hub id
    assert "`little-qwen`" in card and f"{mark['parameters']:,} parameters in float32" in card
    assert SECRET not in card and str(tmp_path) not in card and "/home" not in card and "private" not in card
    rows = rows_of(card)
    assert ["**small**", "50.0 %", "25.0 % ± 5.0 %", "12.2", "1.0 %"] in rows
    assert ["init", "–", "`aaaa`", "7", "2", "2026-01-02T00:00:00+00:00"] in rows
    assert ["grpo", "sums", "`bbbb`", "7", "2", "2026-01-02T00:00:00+00:00"] in rows
    assert "torch 9.9, trl 8.8" in card and "temperature 0.9, top_p 1, top_k 0 (no limit)" in card
    sampling = json.loads((tmp_path / "run/export/small-merged/generation_config.json").read_text())
    assert (sampling["do_sample"], sampling["temperature"], sampling["top_k"]) == (True, 0.9, 0)
    # A later evaluation is in the card without another export.
    capsys.readouterr()
    evaluated(run)
    made = (tmp_path / "run/export/small-merged/model.safetensors").stat().st_mtime_ns
    card = exported("export.license=mit")
    shown = capsys.readouterr().err
    assert "already" in shown and "brought up to date" in shown
    assert (tmp_path / "run/export/small-merged/model.safetensors").stat().st_mtime_ns == made
    assert ModelCard(card).data.to_dict()["license"] == "mit"
    rows = rows_of(card)
    assert ["exit", "greedy", "pass@4", "mean tokens", "truncated"] in rows
    assert ["**small**", "41.2 % [35.0, 47.4]", "60.0 % [35.0, 47.4]", "7.5", "0.0 %"] in rows
    assert ["arc\\|easy", "acc", "50.0 % ± 2.0 %", "–"] in rows


def test_an_evaluation_of_another_family_is_not_this_ones(run):
    evaluated(run)
    assert score_tables(run)[0].title.startswith("sums: 100 problems, 4 samples each")
    again = StageFolder(run).manifest()
    again.config_hash = "dddd"
    StageFolder(run).write_manifest(again)
    assert [found.title.partition(":")[0] for found in score_tables(run)] == ["held-out rows"]
    (run / "summary.json").unlink()
    assert score_tables(run) == []


def test_every_format_says_how_it_is_loaded(run, exported):
    cards = {name: exported(f"export.format={name}", "export.exit=null", folder=name) for name in ("family", "ruyi")}
    assert yaml.safe_load(cards["family"].split("---")[1])["library_name"] == "ruyi_rl"
    assert "configuration_ruyi_qwen3.py" in cards["ruyi"] and 'family.at_exit("large")' in cards["ruyi"]
    found = {}
    code = re.search(r"```python\n(.*?)```", cards["family"], re.DOTALL)[1]
    exec(code.replace('"family"', '"run/export/family"').replace("256", "4").replace("…", "3+5="), found)  # noqa: S102
    assert found["ids"].shape[0] == 1 and type(found["model"]).__name__ == "Qwen3ForCausalLM"


def test_the_lines_of_a_card_run(run, exported):
    card = exported()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    found = {}
    exec(code.replace('"small-merged"', '"run/export/small-merged"').replace("256", "4"), found)  # noqa: S102
    assert found["ids"].shape[1] <= found["inputs"]["input_ids"].shape[1] + 4


def test_the_base_is_a_hub_id_a_folder_or_nothing(tmp_path):
    def base(value, on_hub=None):
        return base_model([manifest("init", "aaaa", **{"model.base": value})], on_hub)

    assert base("Qwen/Qwen3-0.6B", True) == Base("Qwen/Qwen3-0.6B", on_hub=True)
    # A folder that is not there from here.
    assert base("models/qwen3", False) == base("models/qwen3") == base("qwen3") == Base("qwen3")
    write_json(tmp_path / "init" / "summary.json", {"base_on_hub": True})
    StageFolder(tmp_path / "init").write_manifest(manifest("init", "aaaa", **{"model.base": "Qwen/Qwen3-4B"}))
    assert provenance(tmp_path / "init").base == Base("Qwen/Qwen3-4B", on_hub=True)
    assert base(str(tmp_path / "gone" / "my-qwen")) == Base("my-qwen")
    assert base(None) == Base(None) == base_model([])
    (tmp_path / "README.md").write_text("---\n{not yaml\n---\n")
    assert base(str(tmp_path)) == Base(tmp_path.name)


def test_the_sampling_is_that_of_the_last_reinforcement_learning():
    first = manifest("grpo", "aaaa", **{"grpo.trainer.temperature": 0.5})
    last = manifest("grpo", "bbbb", **{"grpo.trainer.temperature": 0.7, "grpo.trainer.min_p": 0.1})
    after = manifest("compress", "cccc", **{"grpo.trainer.temperature": 0.9})
    assert trained_sampling([first, last, after]) == {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.1}
    assert trained_sampling([manifest("sft", "aaaa")]) == {}


def test_a_family_without_a_run_has_a_name_at_least(family_folder):
    found = provenance(family_folder)
    assert (found.run, found.stages, found.base) == ("family", [], Base(None))


def test_cells():
    assert interval({"value": 0.5}) == "50.0 %" and interval(None) == interval({"value": None}) == "–"
    assert table(["a", "b"], [["x|y", 3]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 3 |"
    found = harness_table({"t": {"metric": "acc", "exits": {"a": {"value": 0.25}}}})
    assert found.rows == [["t", "acc", "25.0 %"]] and found.columns == ["task", "metric", "a"]
