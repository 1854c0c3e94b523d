import shutil

import pytest

from ruyi_rl.failure import StageFailed
from ruyi_rl.shared_folder import FolderCopies
from ruyi_rl.training import checkpoints
from ruyi_rl.training.checkpoints import newest_whole
from tests.sealed_checkpoint import sealed_checkpoint


def spoil(checkpoint):
    path = checkpoint / "run_state" / "rank-0.json"
    path.write_text(path.read_text().replace("1", "2"))


def test_the_newest_whole_checkpoint_is_taken_and_newer_ones_are_set_aside(tmp_path):
    found = [sealed_checkpoint(tmp_path, step) for step in (9, 80, 100)]
    (tmp_path / ".saving-120").mkdir()
    lines = []
    assert newest_whole(tmp_path, FolderCopies(), lines.append) == found[2] and not lines
    assert not (tmp_path / ".saving-120").exists()
    spoil(found[2])
    (found[1] / "checkpoint.json").unlink()
    assert newest_whole(tmp_path, FolderCopies(), lines.append) == found[0]
    assert "checkpoint-100 is broken and was set aside as broken-checkpoint-100: run_state/rank-0.json" in lines[0]
    assert "checkpoint-80 is broken" in lines[1] and "checkpoint.json" in lines[1] and len(lines) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken-checkpoint-100",
        "broken-checkpoint-80",
        "checkpoint-9",
    ]


def test_where_none_is_whole_it_is_said_that_all_starts_over(tmp_path):
    lines = []
    assert newest_whole(tmp_path / "nothing", FolderCopies(), lines.append) is None and not lines
    spoil(sealed_checkpoint(tmp_path, 5))
    assert newest_whole(tmp_path, FolderCopies(), lines.append) is None
    assert "is broken" in lines[0] and "starts over from its beginning" in lines[1]


def test_a_checkpoint_that_will_not_fit_is_not_begun(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=9))
    checkpoints._require_space(tmp_path, 1)  # nothing is known of its size
    sealed_checkpoint(tmp_path, 1)
    with pytest.raises(StageFailed, match=r"checkpoint 2 was not written: it takes about .* are free .*\. Make room"):
        checkpoints._require_space(tmp_path, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=11))
    checkpoints._require_space(tmp_path, 2)
