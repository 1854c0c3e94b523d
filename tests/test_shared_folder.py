"""Two ranks as two hosts, each with a run folder of its own or both with one."""

import hashlib
import os
from pathlib import Path

import pytest

from tests.forked_ranks import run_ranks

HOSTS = {"GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
SMALL_CHUNK = 1000
"""Bytes: so that files of a few kilobytes take several chunks, and the last one is no whole one."""


def as_host(folders: list[str]):
    """Makes this rank the only one of its host; returns its folder and the copies."""
    from ruyi_rl import file_transfer, ranks, shared_folder

    os.environ.update(HOSTS, LOCAL_RANK="0")
    file_transfer.CHUNK = SMALL_CHUNK
    folder = Path(folders[ranks.rank()])
    return folder, shared_folder.find_copies(folder)


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def mirror_everything(folders, leave):
    from ruyi_rl import ranks

    with ranks.connected():
        folder, copies = as_host(folders)
        assert copies.keepers == [0, 1] and copies.keeps and copies.first == copies.rank and not copies.shared
        assert copies.beside == [copies.rank]
        sent = copies.mirror(folder, leave=leave)
        assert copies.mirror(folder, leave=leave) == []
        print(f"sent {sent}")


def one_folder(folder):
    from ruyi_rl import ranks

    with ranks.connected():
        _, copies = as_host([folder, folder])
        assert copies.shared and copies.keepers == [0] and copies.beside == [0, 1]
        assert copies.keeps == (ranks.rank() == 0)
        assert copies.mirror(Path(folder)) == []


def some_share(folders):
    """Ranks 1 and 2 on two hosts share a folder, rank 0 has its own."""
    from ruyi_rl import ranks

    with ranks.connected():
        folder, copies = as_host(folders)
        assert copies.seen == (0, 1, 1) and copies.keepers == [0, 1]
        assert copies.keeps == (ranks.rank() != 2)
        copies.mirror(folder)


def one_rank_fails(refused):
    from ruyi_rl import ranks
    from ruyi_rl.refusal import Refusal

    os.environ.update(HOSTS)

    def check():
        if ranks.rank() == 1:
            raise Refusal("data.path", "no file", "one") if refused else ZeroDivisionError("a bug")

    with ranks.connected():
        with pytest.raises((Refusal, RuntimeError, ZeroDivisionError)) as caught:
            ranks.everywhere(check)
        print(f"{ranks.rank()} {type(caught.value).__name__} {caught.value}")
        assert ranks.everywhere(ranks.rank) == ranks.rank()


def full_disk(folders):
    """The second host's disk takes no file, and the first one's source is cut."""
    from ruyi_rl import file_transfer, ranks

    with ranks.connected():
        folder, copies = as_host(folders)
        if ranks.rank() == 1:

            def append(path, data):
                raise OSError(28, "No space left on device", str(path))

            file_transfer._append = append
        with pytest.raises(OSError, match="rank 1 on .*No space left on device"):
            copies.mirror(folder)


def altered_on_the_way(folders):
    from ruyi_rl import file_transfer, ranks

    with ranks.connected():
        folder, copies = as_host(folders)
        if ranks.rank() == 1:
            append = file_transfer._append
            file_transfer._append = lambda path, data: append(path, bytes([data[0] ^ 1]) + bytes(data[1:]))
        with pytest.raises(OSError, match="rank 1 on .*model.safetensors did not arrive whole"):
            copies.mirror(folder)


@pytest.fixture
def folders(tmp_path):
    made = [tmp_path / name for name in ("a", "b")]
    for folder in made:
        folder.mkdir()
    return made


def fill(folder):
    (folder / "checkpoint-3" / "deep" / "deeper").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(3 * SMALL_CHUNK + 7))
    (folder / "exactly.bin").write_bytes(os.urandom(2 * SMALL_CHUNK))
    (folder / "empty").touch()
    (folder / "checkpoint-3" / "deep" / "deeper" / "file").write_text("x")
    (folder / "checkpoint-3" / "rng_state_0.pth").write_text("rank 0's")
    os.utime(folder / "empty", ns=(1, 1_700_000_000_123_456_789))


def test_a_mirror_makes_copies_the_same_and_leaves_out_what_each_rank_writes(tmp_path, folders):
    first, second = folders
    fill(first)
    (second / "exactly.bin").write_bytes(os.urandom(2 * SMALL_CHUNK))  # of the same size, but another
    (second / "own").write_text("stays")
    leave = ("rng_state_*.pth",)
    log = run_ranks(f"{__name__}:mirror_everything", [str(each) for each in folders], leave, log=tmp_path / "log")
    expected = contents(first)
    expected.pop("checkpoint-3/rng_state_0.pth")
    found = contents(second)
    assert found.pop("own")
    assert found == expected and len(expected) == 4
    sent = sorted(expected)
    assert log.count(f"sent {sent}") == 2
    assert not [path for folder in folders for path in folder.rglob(".*")]


def test_a_folder_that_is_left_out_is_left_out_whole(tmp_path, folders):
    fill(folders[0])
    run_ranks(f"{__name__}:mirror_everything", [str(each) for each in folders], ("checkpoint-*",), log=tmp_path / "log")
    assert sorted(contents(folders[1])) == ["empty", "exactly.bin", "model.safetensors"]


def test_hosts_that_share_the_folder_have_one_copy_and_send_nothing(tmp_path, folders):
    fill(folders[0])
    before = contents(folders[0])
    run_ranks(f"{__name__}:one_folder", str(folders[0]), log=tmp_path / "log")
    assert contents(folders[0]) == before


def test_hosts_that_share_among_themselves_keep_one_copy_together(tmp_path, folders):
    fill(folders[0])
    paths = [str(folders[0]), str(folders[1]), str(folders[1])]
    run_ranks(f"{__name__}:some_share", paths, log=tmp_path / "log", ranks=3)
    assert "model.safetensors" in contents(folders[1])


@pytest.mark.parametrize("case", [full_disk, altered_on_the_way])
def test_what_does_not_arrive_is_told_on_every_rank_and_leaves_nothing(tmp_path, folders, case):
    (folders[0] / "model.safetensors").write_bytes(os.urandom(3 * SMALL_CHUNK))
    run_ranks(f"{__name__}:{case.__name__}", [str(each) for each in folders], log=tmp_path / "log")
    assert contents(folders[1]) == {}


def test_what_one_rank_is_refused_all_are(tmp_path):
    log = run_ranks(f"{__name__}:one_rank_fails", True, log=tmp_path / "refusal")
    for rank in (0, 1):
        assert f"{rank} Refusal data.path: no file (rank 1 on " in log


def test_where_one_rank_fails_all_do(tmp_path):
    log = run_ranks(f"{__name__}:one_rank_fails", False, log=tmp_path / "error")
    assert "0 RuntimeError rank 1 failed: ZeroDivisionError('a bug')" in log and "1 ZeroDivisionError a bug" in log
