"""Two ranks as two hosts with a run folder each: what they agree on before a run."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.forked_ranks import run_ranks
from tests.sealed_checkpoint import sealed_checkpoint

HOSTS = {"GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}


def agreed(folders, seed=1, other_seed=1, fresh=False):
    """Prints what `agree` gives a rank; both have the stages sft and grpo, rank 1 with `other_seed`."""
    from ruyi_rl import hosts, ranks
    from ruyi_rl.refusal import Refusal

    os.environ.update(HOSTS, LOCAL_RANK="0")
    with ranks.connected():
        run = Path(folders[ranks.rank()])
        copies = hosts.meet(run)
        found = steps(run, other_seed if ranks.rank() else seed)
        try:
            found = hosts.agree(copies, run, found, fresh)
            manifests = {step.stage: getattr(step.folder.manifest(), "status", None) for step in steps(run, seed)}
            # In one piece: ranks write into one file.
            sys.stdout.write(f"rank {ranks.rank()}: {[step.decided_by['seed'] for step in found]} {manifests}\n")
        except Refusal as refusal:
            sys.stdout.write(f"rank {ranks.rank()}: refused: {refusal}\n")


def steps(run, seed=1):
    from ruyi_rl.pipeline import Step
    from ruyi_rl.run_folder import StageFolder

    decided_by = {"seed": seed}
    return [Step(stage, StageFolder(run / stage), None, decided_by) for stage in ("sft", "grpo")]


def stage_of(run, name, status, checkpoint=None):
    """Leaves a stage in a run folder as one that ended so would."""
    from ruyi_rl.run_folder import Manifest

    step = next(step for step in steps(run) if step.stage == name)
    values = {"stage": name, "status": status, "config_hash": step.config_hash, "decided_by": step.decided_by}
    values |= {"input": None, "input_hash": None, "seed": 1, "world_size": 2, "deepspeed": "off", "versions": {}}
    step.folder.write_manifest(Manifest(**values, started="now"))
    (step.folder.path / "model.safetensors").write_bytes(os.urandom(100))
    if checkpoint is not None:
        sealed_checkpoint(step.folder.path, checkpoint)
    return step.folder.path


@pytest.fixture
def two(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()

    def run(*arguments):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        shown = run_ranks(f"{__name__}:agreed", [str(folder) for folder in folders], *arguments, log=log)
        lines = sorted(line for line in shown.splitlines() if line.startswith("rank "))
        assert len(lines) == 2, shown
        return lines

    run.folders = folders
    return run


@pytest.mark.parametrize("holder", [0, 1])
def test_a_host_that_lacks_a_finished_stage_gets_it_also_where_it_is_the_first(two, holder):
    stage = stage_of(two.folders[holder], "sft", "done", checkpoint=3)
    lines = two()
    assert lines == [f"rank {rank}: [1, 1] {{'sft': 'done', 'grpo': None}}" for rank in (0, 1)]
    got = two.folders[1 - holder] / "sft"
    assert sorted(path.name for path in got.iterdir()) == ["manifest.json", "model.safetensors"]
    assert (got / "model.safetensors").read_bytes() == (stage / "model.safetensors").read_bytes()
    places = [json.loads((folder / ".ranks.json").read_text()) for folder in two.folders]
    assert places == [{"ranks": [rank], "world_size": 2} for rank in (0, 1)]


def test_an_unfinished_stage_is_not_sent(two):
    stage_of(two.folders[1], "sft", "failed")
    assert two()[0] == "rank 0: [1, 1] {'sft': None, 'grpo': None}"


def test_a_host_with_another_configuration_is_refused_everywhere(two):
    lines = two(1, 2)
    assert all(
        "refused: command line: this host's configuration is not rank 0's: seed 1 → 2 (rank 1" in x for x in lines
    )


def test_a_new_host_is_refused_where_an_interrupted_stage_needs_the_shards_of_the_old_one(two):
    two()
    stage_of(two.folders[0], "grpo", "interrupted", checkpoint=3)
    (two.folders[1] / ".ranks.json").unlink()
    lines = two()
    assert all("refused: run_dir: grpo was interrupted and has checkpoints" in line for line in lines)
    assert all("holds no part of them; its ranks are [1] of 2 now (rank 1 on " in line for line in lines)
    assert two(1, 1, True) == [  # fresh=true
        "rank 0: [1, 1] {'sft': None, 'grpo': 'interrupted'}",
        "rank 1: [1, 1] {'sft': None, 'grpo': None}",
    ]


def test_hosts_that_have_changed_places_are_refused_and_the_old_order_goes_on(two):
    two()
    for folder in two.folders:
        stage_of(folder, "grpo", "interrupted", checkpoint=3)
    two.folders.reverse()
    assert "holds the part of ranks [1] of 2; its ranks are [0] of 2 now" in two()[0]
    two.folders.reverse()
    assert two() == [f"rank {rank}: [1, 1] {{'sft': None, 'grpo': 'interrupted'}}" for rank in (0, 1)]
