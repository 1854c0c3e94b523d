"""A checkpoint that another user could have written is not read."""

import os

import pytest

from ruyi_rl import ownership
from ruyi_rl.__main__ import main
from ruyi_rl.ownership import FileSystem, others_may_write, require_own, stranger
from ruyi_rl.refusal import Refusal

NOBODY = 65534


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-3"
    (folder / "global_step3").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "global_step3" / "shard.pt").write_bytes(b"x")
    return folder


def test_ones_own_checkpoint_is_read(checkpoint):
    (checkpoint / "latest").symlink_to(checkpoint / "optimizer.pt")
    assert stranger(checkpoint) is None
    require_own(checkpoint)
    assert {path.name for path in checkpoint.parent.iterdir()} == {"checkpoint-3"}


@pytest.mark.parametrize("name", [".", "optimizer.pt", "global_step3", "global_step3/shard.pt"])
def test_what_everyone_can_write_is_refused_until_it_is_mended(checkpoint, name):
    path = checkpoint / name
    before = path.stat().st_mode
    path.chmod(before | 0o002)
    with pytest.raises(Refusal, match="every user of this machine can write .*chmod") as refused:
        require_own(checkpoint)
    assert str(path) in str(refused.value)
    path.chmod(before)
    require_own(checkpoint)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", [".", "optimizer.pt", "global_step3/shard.pt"])
def test_what_belongs_to_another_user_is_refused(checkpoint, name):
    os.chown(checkpoint / name, NOBODY, -1)
    with pytest.raises(Refusal, match="belongs to .*chown"):
        require_own(checkpoint)


def test_a_servers_mapping_of_users_is_no_stranger(checkpoint, monkeypatch):
    owner = checkpoint.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    monkeypatch.setattr(ownership, "ROOT", owner + 2)
    monkeypatch.setattr(ownership, "file_system", lambda folder: FileSystem(owner + 1, True))
    assert "belongs to" in stranger(checkpoint)
    monkeypatch.setattr(ownership, "file_system", lambda folder: FileSystem(owner, True))
    assert stranger(checkpoint) is None


def test_where_modes_are_not_kept_they_say_nothing(checkpoint, monkeypatch):
    checkpoint.chmod(0o777)
    monkeypatch.setattr(ownership, "file_system", lambda folder: FileSystem(os.geteuid(), False))
    assert stranger(checkpoint) is None and not others_may_write(checkpoint)


def test_a_run_folder_that_everyone_can_write_is_told(tmp_path):
    assert not others_may_write(tmp_path)
    tmp_path.chmod(0o777)
    assert others_may_write(tmp_path)


def test_the_command_leaves_a_stricter_umask_alone(capsys):
    before = os.umask(0o077)
    try:
        main(["--help"])
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
