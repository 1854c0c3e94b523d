import zlib

import pytest

from ruyi_rl.checkpoint_folder import (
    complete_checkpoints,
    file_sum,
    files_of,
    give_name,
    problem,
    read_seal,
    remove_unfinished,
    saving_folder,
    set_aside,
    share,
)
from tests.sealed_checkpoint import sealed_checkpoint

NAMES = ["run_state/rank-0.json", "trainer_state.json"]


def test_a_sealed_checkpoint_is_whole_and_says_what_it_is(tmp_path):
    checkpoint = sealed_checkpoint(tmp_path, 7, world_size=2, deepspeed="zero3")
    assert complete_checkpoints(tmp_path) == [checkpoint] == [tmp_path / "checkpoint-7"]
    seal = read_seal(checkpoint)
    assert (seal.step, seal.world_size, seal.deepspeed) == (7, 2, "zero3")
    assert list(seal.files) == files_of(checkpoint) == NAMES
    assert seal.bytes == sum((checkpoint / name).stat().st_size for name in NAMES)
    assert problem(checkpoint) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]


def test_a_sum_is_of_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr("ruyi_rl.checkpoint_folder.CHUNK", 7)
    content = bytes(range(256)) * 3
    (tmp_path / "file").write_bytes(content)
    found = file_sum(tmp_path / "file")
    assert (found.bytes, found.crc32) == (len(content), zlib.crc32(content))


def test_checkpoints_sort_by_number_and_cut_ones_are_none(tmp_path):
    for step in (100, 20, 300, 400, 500):
        sealed_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-300" / "checkpoint.json").unlink()
    (tmp_path / "checkpoint-400" / "trainer_state.json").write_text("{")
    (tmp_path / "checkpoint-500" / "checkpoint.json").write_text('{"step": 500, "files"')
    (tmp_path / "checkpoint-20").rename(tmp_path / "checkpoint-21")  # a seal of another step
    sealed_checkpoint(tmp_path, 30)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-30", "checkpoint-100"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_flipped_bit_and_every_cut_is_found_by_some_part(tmp_path, name, parts):
    checkpoint = sealed_checkpoint(tmp_path, 1)
    whole = (checkpoint / name).read_bytes()

    def problems():
        found = [problem(checkpoint, part, parts) for part in range(parts)]
        return [each for each in found if each]

    assert not problems()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (checkpoint / name).write_bytes(flipped)
        assert problems() == [f"{name} is not what was written (its CRC-32 differs)"]
    (checkpoint / name).write_bytes(whole[:-1])
    assert f"{name} has {len(whole) - 1} bytes, not {len(whole)}" in problems()
    (checkpoint / name).unlink()
    assert f"{name} cannot be read: No such file or directory" in problems()


def test_every_flipped_bit_of_the_seal_is_found(tmp_path):
    checkpoint = sealed_checkpoint(tmp_path, 1)
    seal, path = read_seal(checkpoint), checkpoint / "checkpoint.json"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        # A space may become another one, which changes nothing.
        assert problem(checkpoint) is not None or read_seal(checkpoint) == seal
    path.write_bytes(whole)
    checkpoint.rename(tmp_path / "checkpoint-9")
    assert problem(tmp_path / "checkpoint-9") == "checkpoint.json is of step 1" and not complete_checkpoints(tmp_path)


def test_without_its_seal_a_checkpoint_is_broken(tmp_path):
    checkpoint = sealed_checkpoint(tmp_path, 1)
    for content in ("", "[]", '{"step": 1}', '{"step": 1, "world_size": 1, "deepspeed": "off", "files": {"a": 3}}'):
        (checkpoint / "checkpoint.json").write_text(content)
        assert problem(checkpoint) == "checkpoint.json is missing or not what was written"
    assert problem(tmp_path / "checkpoint-2") == "checkpoint.json is missing or not what was written"


def test_parts_are_each_file_once():
    names = [f"file-{number}" for number in range(7)]
    parts = [share(reversed(names), part, 3) for part in range(3)]
    assert sorted(name for part in parts for name in part) == names and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_a_kill_left_is_removed_and_a_leftover_gives_way(tmp_path):
    (saving_folder(tmp_path, 3) / "checkpoint-3").mkdir(parents=True)
    sealed_checkpoint(tmp_path, 2)
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    (tmp_path / "checkpoint-2" / "stale").write_text("of another attempt")
    again = sealed_checkpoint(tmp_path, 2)
    assert problem(again) is None and not (again / "stale").exists()


def test_a_kill_before_the_rename_leaves_no_checkpoint(tmp_path, monkeypatch):
    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", killed)
    with pytest.raises(KeyboardInterrupt):
        sealed_checkpoint(tmp_path, 5)
    assert complete_checkpoints(tmp_path) == [] and not (tmp_path / "checkpoint-5").exists()
    monkeypatch.undo()
    assert problem(give_name(tmp_path, 5)) is None


def test_a_broken_one_is_set_aside_out_of_sight(tmp_path):
    for content in ("first", "second"):
        (sealed_checkpoint(tmp_path, 4) / "mark").write_text(content)
        place = set_aside(tmp_path / "checkpoint-4")
    assert place == tmp_path / "broken-checkpoint-4" and (place / "mark").read_text() == "second"
    assert complete_checkpoints(tmp_path) == [] and not list(tmp_path.glob("checkpoint-*"))
