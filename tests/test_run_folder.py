import json
import multiprocessing
import os
import signal
import stat
import time

import pytest

from ruyi_rl import run_folder
from ruyi_rl.execution import what_is_safe
from ruyi_rl.refusal import Refusal
from ruyi_rl.run_folder import (
    Manifest,
    StageFolder,
    config_hash,
    differences,
    fingerprint,
    flat,
    locked,
    require_writable,
    write_text,
)
from tests.sealed_checkpoint import sealed_checkpoint


def manifest(**changes):
    values = {
        "stage": "sft",
        "status": "running",
        "config_hash": "abc",
        "decided_by": {"seed": 1},
        "input": None,
        "input_hash": None,
        "seed": 1,
        "world_size": 1,
        "deepspeed": "auto",
        "versions": {},
        "started": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(**{**values, **changes})


def test_flat_writes_nested_keys_with_dots_and_drops_empty_blocks():
    tree = {"a": {"b": 1, "c": {"d": [1, (2, 3)]}}, "e": {}, "f": None}
    assert flat(tree) == {"a.b": 1, "a.c.d": [1, [2, 3]], "f": None}


def test_the_hash_knows_every_key_and_value_but_no_order():
    base = {"a": 1, "b": [1, 2]}
    assert config_hash(base) == config_hash({"b": [1, 2], "a": 1})
    others = [{"a": 2, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1}, {"a": "1", "b": [1, 2]}, {**base, "c": None}]
    assert len({config_hash(other) for other in [base, *others]}) == 6


def test_differences_name_changed_added_and_removed_keys():
    old, new = {"same": 1, "x": 300, "gone": "a"}, {"same": 1, "x": 400, "new": None}
    assert differences(old, new) == ["x 300 → 400", "new unset → null", 'gone "a" → unset']


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    folder = StageFolder(tmp_path / "sft")
    assert folder.manifest() is None
    written = manifest(progress={"before": {"exits": {"1.7B": 0.5}}}, seconds=1.5)
    folder.write_manifest(written)
    assert folder.manifest() == written


def test_a_cut_manifest_counts_as_none(tmp_path):
    (tmp_path / "manifest.json").write_text('{"stage": "sf')
    assert StageFolder(tmp_path).manifest() is None


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_text(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_checkpoints_of_two_phases_are_work_and_the_second_phases_are_newer(tmp_path):
    folder = StageFolder(tmp_path)
    assert not folder.checkpoints() and not folder.holds_work(manifest())
    for name in ("stage_two/checkpoint-5", "stage_one/checkpoint-30"):
        checkpoint = tmp_path / name
        sealed_checkpoint(checkpoint.parent, int(checkpoint.name.removeprefix("checkpoint-")))
        assert folder.holds_work(manifest())
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-30", "checkpoint-5"]
    assert f"Safe on disk: {checkpoint.parent.parent}/stage_two/checkpoint-5 (after step 5)" in what_is_safe(folder)


def test_the_ranks_of_the_beginning_count_once_a_training_has_begun(tmp_path):
    folder = StageFolder(tmp_path)
    assert folder.began_on() is None
    folder.write_manifest(manifest(world_size=4, progress={"before": {}}))
    assert folder.began_on() is None
    folder.write_manifest(manifest(world_size=4, progress={"trained_one": True}))
    assert folder.began_on() == 4
    folder.write_manifest(manifest(world_size=4, progress={}))
    sealed_checkpoint(tmp_path, 3, world_size=2)
    assert folder.began_on() == 4


def test_clear_deletes_a_stage_folder_but_not_strangers_files(tmp_path):
    mine, theirs = StageFolder(tmp_path / "sft"), StageFolder(tmp_path / "home")
    mine.write_manifest(manifest())
    mine.clear()
    assert not mine.path.exists()
    theirs.path.mkdir()
    (theirs.path / "thesis.txt").write_text("years")
    with pytest.raises(Refusal, match="no stage wrote"):
        theirs.clear()
    assert (theirs.path / "thesis.txt").exists()


def test_a_fingerprint_is_of_the_stages_config_and_start_or_changes_with_config_and_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"123")
    second = fingerprint(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert len({first, second, fingerprint(tmp_path)}) == 3
    StageFolder(tmp_path).write_manifest(manifest(config_hash="feed"))
    found = {fingerprint(tmp_path)}
    for changes in ({"config_hash": "beef"}, {"config_hash": "feed", "started": "2001-01-01"}):
        StageFolder(tmp_path).write_manifest(manifest(**changes))
        found.add(fingerprint(tmp_path))
    StageFolder(tmp_path).write_manifest(manifest(config_hash="feed", status="done", seconds=7.0))
    assert len(found) == 3 and fingerprint(tmp_path) in found, "what goes on is the same family"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="run_dir: cannot write"):
        require_writable(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(Refusal, match="run_dir: cannot write"):
        require_writable(tmp_path)


def _hold(folder, held, release):
    with locked(folder):
        held.set()
        release.wait(30)


def test_two_processes_cannot_hold_one_run_and_a_killed_one_lets_go(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(30)
    with pytest.raises(Refusal, match=f"in use by process {process.pid}"), locked(tmp_path):
        pass
    process.kill()
    process.join()
    with locked(tmp_path):
        pass


def _hold_and_leave(folder, told, seconds):
    """Takes the lock and is killed, while a child of its own, forked, has it open for some seconds more."""
    with locked(folder):
        child = os.fork()
        if child == 0:
            time.sleep(seconds)
            os._exit(0)
        told.put(child)
        time.sleep(0.2)  # the queue's thread sends
        os.kill(os.getpid(), signal.SIGKILL)


def leave_a_child(folder, seconds) -> tuple[int, int]:
    """Process ids of a killed holder of the folder and of its child, which keeps the lock."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_hold_and_leave, args=(folder, told, seconds))
    process.start()
    child = told.get(timeout=30)
    process.join()
    return process.pid, child


def test_what_a_killed_run_left_is_waited_for(tmp_path):
    pid, _ = leave_a_child(tmp_path, 1.0)
    lines = []
    with locked(tmp_path, lines.append):
        assert len(lines) == 1 and f"process {pid}, which has ended" in lines[0]


def test_what_a_killed_run_left_is_named_where_it_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.3)
    pid, child = leave_a_child(tmp_path, 60)
    with pytest.raises(Refusal, match=rf"in use by what process {pid} left: \[{child}\]"), locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)


def test_a_run_of_another_host_is_refused_at_once(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock").write_text("1 elsewhere")
        lines = []
        with pytest.raises(Refusal, match="in use by process 1 on elsewhere"), locked(tmp_path, lines.append):
            pass
    assert not lines


def test_summaries_are_json(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"stage": "sft"}))
    assert StageFolder(tmp_path).summary() == {"stage": "sft"}
