import multiprocessing
import os
import stat
import tempfile
import time
from pathlib import Path

import pytest
import torch
from fakes import small_family, spec_of

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.servers import exchange
from ruyi_rl.rollout.weights import branch_layout, write_branch_weights
from ruyi_rl.rollout.worker import RolloutFailed


def test_folders_are_private_and_go(tmp_path):
    opened = exchange.open_exchange(str(tmp_path), ["a/b", "a b"], needed=10)
    assert len(set(opened.weights.values())) == 2
    for folder in opened.folders:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(tmp_path in folder.parents for folder in opened.weights.values())
    assert len(str(opened.sockets)) < 40
    opened.close()
    assert not any(folder.exists() for folder in opened.folders) and tmp_path.exists()


def hold_until_killed(place, ready):
    opened = exchange.open_exchange(place, ["a"], needed=1)
    ready.send([str(folder) for folder in opened.folders])
    time.sleep(60)


def test_what_a_killed_run_left_goes_and_what_a_living_one_holds_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "SHARED_MEMORY", tmp_path)
    context = multiprocessing.get_context("fork")
    left, right = context.Pipe()
    other = context.Process(target=hold_until_killed, args=(str(tmp_path), right))
    other.start()
    held = [Path(folder) for folder in left.recv()]
    being_made, strangers = Path(tempfile.mkdtemp(prefix=exchange.PREFIX, dir=tmp_path)), tmp_path / "other"
    strangers.mkdir()
    assert exchange.remove_abandoned(tmp_path) == []
    other.kill()
    other.join()
    assert sorted(exchange.remove_abandoned(tmp_path)) == sorted(held)
    assert not any(folder.exists() for folder in held) and being_made.exists() and strangers.exists()
    os.utime(being_made, (0, 0))
    opened = exchange.open_exchange(str(tmp_path), ["a"], needed=1)
    assert not being_made.exists() and all(folder.exists() for folder in opened.folders)
    opened.close()


def test_a_chosen_folder_must_be_there_and_writable(tmp_path):
    with pytest.raises(Refusal, match="there is no folder"):
        exchange.open_exchange(str(tmp_path / "nowhere"), ["a"], needed=1)
    assert exchange.room_for(str(tmp_path), 1) == tmp_path


def test_without_room_in_shared_memory_files_go_to_the_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(exchange.tempfile, "tempdir", None)
    sizes = {exchange.SHARED_MEMORY: 5, tmp_path: 50}
    monkeypatch.setattr(exchange, "free_bytes", sizes.__getitem__)
    assert exchange.room_for(None, 4) == exchange.SHARED_MEMORY
    assert exchange.room_for(None, 40) == tmp_path
    with pytest.raises(Refusal) as refused:
        exchange.room_for(None, 60 * 2**30)
    assert refused.value.key == "rollout.exchange"
    assert "take 60.00 GiB" in str(refused.value) and str(tmp_path) in str(refused.value)


def test_needed_bytes_are_those_of_the_files(tmp_path):
    family = small_family()
    spec = spec_of(family, tmp_path)
    sizes = []
    for exit in spec.exits:
        write_branch_weights(family, branch_layout(spec.config, exit), tmp_path / exit, torch.float32)
        sizes.append(sum(path.stat().st_size for path in (tmp_path / exit).glob("*.safetensors")))
    needed = exchange.exchange_bytes(spec)
    assert 0 < sum(sizes) + max(sizes) - needed < 20_000  # the files' headers


def test_a_full_disk_is_noticed_before_anything_is_gathered(monkeypatch, tmp_path):
    spec = spec_of(small_family(), tmp_path)
    folders = {exit: tmp_path for exit in spec.exits}
    monkeypatch.setattr(exchange, "free_bytes", lambda folder: 10)
    exchange.check_room(folders, spec)
    (tmp_path / "model-00001.safetensors").touch()
    with pytest.raises(RolloutFailed, match=r"0\.00 GiB left"):
        exchange.check_room(folders, spec)
