import json
import os
import shutil

import pytest
import torch
from transformers import Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.run_folder import DONE, Manifest, StageFolder, fingerprint
from ruyi_rl.stages.history import history
from ruyi_rl.stages.lineage import lineage

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
NOW = "this way"


def score(pass_rate, seconds=1.0):
    return {"pass_rate": pass_rate, "standard_error": 0.01, "greedy": pass_rate + 0.1, "seconds": seconds}


def held_out(how=NOW, **exits):
    return {"measurement": how, "exits": {exit: score(*values) for exit, values in exits.items()}}


def before(pass_rate):
    return {"pass_before": pass_rate, "pass_before_standard_error": 0.01, "greedy_before": pass_rate + 0.1}


class Run:
    """A run whose stages are made by hand: each saves the family as it is."""

    def __init__(self, folder):
        self.folder, self.last = folder, None
        self.family = Family.from_scratch(Qwen3Config(**SHAPE), {"small": 0, "large": 2}, seed=1)

    def change(self, *exits):
        """What a training does to the norms of these exits."""
        with torch.no_grad():
            for exit in exits:
                self.family.model.norms[list(self.family.exits).index(exit)].weight += 0.5
        return self

    def stage(self, name, start=None, **summary):
        folder, start = self.folder / name, start or self.last
        self.family.save_pretrained(folder)
        (folder / "summary.json").write_text(json.dumps({"stage": name, "exits": {}, **summary}))
        manifest = Manifest(
            stage=name,
            status=DONE,
            config_hash=f"hash of {folder}",
            decided_by={},
            input=str(start) if start else None,
            input_hash=fingerprint(start) if start else None,
            seed=1,
            world_size=1,
            deepspeed="off",
            versions={},
            started="",
        )
        StageFolder(folder).write_manifest(manifest)
        self.last = folder
        return self

    def rows(self, exit, measured=None):
        return [row for row in history(self.last, measured)["rows"] if row["exit"] == exit]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


def column(rows, *keys):
    return [tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]] for row in rows]


def test_dae_stands_row_by_row(run):
    sft = held_out(small=(0.3, 1.5), large=(0.7, 1.6))
    run.stage("init").change("small", "large").stage("sft", held_out=sft)
    run.family.expand("small", 2)
    run.stage("expand", held_out=sft)
    run.change("small").stage("expanded_sft", held_out=held_out(small=(0.4, 2.5)))
    run.change("small").stage("grpo", exits={"small": before(0.4)}, held_out=held_out(small=(0.5, 3.5)))
    compress = {**before(0.5), "pass_compressed": 0.45, "greedy_compressed": 0.5, "pass_after": 0.48}
    found = held_out(small=(0.48, 4.5))
    run.change("small").stage("compress", recover_steps=10, exits={"small": compress}, held_out=found)

    measured = held_out(small=(0.48, 4.5), large=(0.7, 9.5))
    rows = run.rows("small", measured)
    assert column(rows, "stage", "layers", "pass_rate", "measured_by", "unchanged") == [
        ("init", 1, None, None, False),
        ("sft", 1, 0.3, "sft", False),
        ("expand", 3, 0.3, "sft", True),
        ("expanded_sft", 3, 0.4, "expanded_sft", False),
        ("grpo", 3, 0.5, "grpo", False),
        ("compress", 3, 0.45, "compress", False),
        ("compress, recovered", 3, 0.48, "compress", False),
    ]
    assert column(rows, "greedy")[5] == 0.5 and rows[5]["standard_error"] is None
    assert all(row["comparable"] for row in rows[1:]) and rows[-1]["standard_error"] == 0.01
    block = sum(parameter.numel() for parameter in run.family.model.expansions[0][0].parameters())
    assert rows[2]["parameters"] - rows[1]["parameters"] == 2 * block
    assert rows[2]["bytes"] - rows[1]["bytes"] == 4 * 2 * block

    large = run.rows("large", measured)
    assert column(large, "pass_rate", "measured_by") == [(None, None)] + 4 * [(0.7, "sft")] + [(0.7, "eval")]
    assert column(large, "unchanged") == [False, False, True, True, True, True]
    assert history(run.last, measured)["expanded"] == ["small"]


def test_what_was_changed_and_not_measured_is_empty(run):
    run.stage("init").stage("sft", held_out=held_out(small=(0.3,), large=(0.7,)))
    run.change("small").stage("pretrain").change("small").stage("grpo", held_out=held_out(small=(0.5,)))
    assert column(run.rows("small"), "pass_rate") == [0.3, 0.3, None, 0.5]  # init and sft hold the same weights here
    assert column(run.rows("large"), "pass_rate") == [0.7, 0.7, 0.7, 0.7]


def test_a_copy_on_a_changed_branch_is_no_measurement(run):
    run.stage("init").change("small").stage("sft", held_out=held_out(small=(0.3, 1.5)))
    run.change("small").stage("expand", held_out=held_out(small=(0.3, 1.5)))
    assert column(run.rows("small"), "pass_rate", "measured_by") == [(None, None), (0.3, "sft"), (None, None)]


def test_a_measurement_before_a_training_is_of_its_input(run):
    run.stage("init").change("small").stage("sft").change("small")
    run.stage("grpo", exits={"small": before(0.25)}, held_out=held_out(small=(0.5,)))
    rows = run.rows("small")
    assert column(rows, "pass_rate", "measured_by") == [(None, None), (0.25, "before grpo"), (0.5, "grpo")]
    assert rows[1]["standard_error"] == 0.01 and rows[1]["greedy"] == 0.35


def test_another_kind_of_measurement_is_marked_and_the_same_kind_preferred(run):
    run.stage("init").change("small", "large")
    run.stage("sft", held_out=held_out("another way", small=(0.9,), large=(0.8,))).change("small")
    run.stage("grpo", exits={"small": before(0.3)}, held_out=held_out(small=(0.5, 1.5)))
    measured = held_out(small=(0.5, 1.5))
    assert column(run.rows("small", measured), "pass_rate", "measured_by", "comparable")[1:] == [
        (0.3, "before grpo", True),
        (0.5, "grpo", True),
    ]
    assert column(run.rows("large", measured), "pass_rate", "comparable")[1:] == [(0.8, False), (0.8, False)]
    # Without a measurement of its own, the last one of the run says what is comparable.
    assert history(run.last, None)["measurement"] == NOW
    other = held_out("a third way", small=(0.6,))
    assert column(run.rows("small", other), "pass_rate", "comparable")[2] == (0.6, True)


def test_nothing_measured_leaves_sizes(run):
    run.stage("init").stage("sft")
    rows = run.rows("small")
    assert column(rows, "pass_rate", "measured_by", "comparable") == 2 * [(None, None, False)]
    assert history(run.last, None)["measurement"] is None and rows[0]["bytes"] > 0


def test_a_chain_of_runs_is_walked_and_their_stages_named_apart(tmp_path):
    first, second = Run(tmp_path / "first"), Run(tmp_path / "second")
    first.stage("init").change("small").stage("sft", held_out=held_out(small=(0.3,)))
    second.change("small").change("small").stage("sft", start=first.last, held_out=held_out(small=(0.4,)))
    rows = second.rows("small")
    assert column(rows, "stage") == ["first/init", "first/sft", "sft"]
    assert column(rows, "pass_rate", "measured_by") == [(None, None), (0.3, "first/sft"), (0.4, "sft")]


def test_a_family_that_no_stage_made_begins_the_history(run, tmp_path):
    run.family.save_pretrained(tmp_path / "published")
    run.stage("sft", start=tmp_path / "published")
    assert column(run.rows("small"), "stage")[1:] == ["sft"]
    assert lineage(run.last)[0] == [tmp_path / "published", run.last]


@pytest.mark.parametrize("take", [shutil.move, shutil.copytree])
def test_a_run_that_was_moved_or_copied_is_walked_in_its_new_place(run, take):
    run.stage("init").stage("sft")
    there = run.folder.with_name("there")
    take(run.folder, there)
    assert lineage(there / "sft") == ([there / "init", there / "sft"], None)


def test_an_ancestor_that_is_gone_or_was_made_anew_is_left_out_and_said(run):
    run.stage("init").stage("sft").stage("grpo")
    manifest = StageFolder(run.folder / "init").manifest()
    manifest.config_hash = "another"
    StageFolder(run.folder / "init").write_manifest(manifest)
    folders, why = lineage(run.last)
    assert folders == [run.folder / "sft", run.folder / "grpo"]
    assert f"{run.folder / 'init'} has been made anew" in why and history(run.last, None)["stopped"] == why
    shutil.rmtree(run.folder / "sft")
    folders, why = lineage(run.last)
    assert folders == [run.folder / "grpo"] and "holds no family any more" in why


def test_a_stage_that_started_from_its_own_offspring_ends_the_walk(run):
    run.stage("init").stage("sft").stage("grpo")
    run.stage("sft", start=run.last)  # with fresh=true and start_from: over the folder that grpo had started from
    folders, why = lineage(run.last)
    assert [os.path.basename(folder) for folder in folders] == ["grpo", "sft"] and "made anew" in why
