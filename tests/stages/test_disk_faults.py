"""Disks that fail during a run: one message, the last good checkpoint, and afterwards the undisturbed result."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ruyi_rl.__main__ import main
from ruyi_rl.checkpoint_folder import complete_checkpoints, read_seal
from ruyi_rl.run_folder import locked
from ruyi_rl.training.callbacks import StopOnSignal

SHAPE = "hidden_size: 32, intermediate_size: 64, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16"
TRAINER = "{max_steps: 6, save_steps: 2, per_device_train_batch_size: 4, learning_rate: 1e-2}"
SURVIVES = 4
"""The newest checkpoint of an undisturbed run: after the last step there is none."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("faults") / "rows.jsonl"
    pairs = [(f"{n}+{n + 1}=", str(2 * n + 1)) for n in range(40)]
    file.write_text("".join(json.dumps({"prompt": p, "completion": c, "answer": c}) + "\n" for p, c in pairs))
    return file


@pytest.fixture
def train(rows, capfd):
    """Runs the command in a folder; gives its status and what it wrote on standard error."""

    def run(folder):
        capfd.readouterr()
        status = main(
            [
                *("stage=sft", "name=x", f"run_dir={folder}", "stages=[init,sft]", "evaluation.problems=0"),
                *(f"model.scratch={{num_hidden_layers: 2, {SHAPE}}}", "model.exits={small: 0, large: 1}"),
                *("data=rows", f"data.path={rows}", "data.holdout=8", "data.test=null", f"sft.trainer={TRAINER}"),
            ]
        )
        return status, capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights that a run in `train` ends with; made by the first that asks."""
    return {"folder": tmp_path_factory.mktemp("undisturbed") / "x"}


@pytest.fixture
def require_right(train, undisturbed):
    """Checks that the same command goes on and ends with the undisturbed run's weights, bit by bit."""

    def check(folder):
        if "weights" not in undisturbed:
            assert train(undisturbed["folder"])[0] == 0
            undisturbed["weights"] = load_file(undisturbed["folder"] / "sft" / "model.safetensors")
        assert train(folder)[0] == 0
        found = load_file(folder / "sft" / "model.safetensors")
        assert found.keys() == undisturbed["weights"].keys()
        assert all(bool((found[name] == tensor).all()) for name, tensor in undisturbed["weights"].items())

    return check


def at_step(monkeypatch, step, act):
    """Calls `act` once, at the end of an optimiser step and before its checkpoint is written."""
    original, done = StopOnSignal.on_step_end, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step and not done:
            done.append(step)
            act()
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)


def names(folder):
    return [path.name for path in complete_checkpoints(folder / "sft")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "room", "left"),
    [
        (2, lambda folder: 100_000, []),
        (4, lambda folder: read_seal(folder / "sft" / "checkpoint-2").bytes, ["checkpoint-2"]),  # enough, it seems
        (6, lambda folder: 50_000, ["checkpoint-2", "checkpoint-4"]),
    ],
    ids=["first checkpoint", "in the middle of a checkpoint", "trained family"],
)
def test_a_disk_that_fills(train, require_right, monkeypatch, small_disk, step, room, left):
    folder, ballast = small_disk / "x", small_disk / "ballast"

    def fill():
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - room(folder))))

    at_step(monkeypatch, step, fill)
    status, said = train(folder)
    assert status == 1 and "Traceback" not in said and "ake room there" in said and "go on with" in said
    assert names(folder) == left and not list((folder / "sft").glob(".saving-*"))
    assert not left or f"Safe on disk: {folder / 'sft' / left[-1]}" in said
    ballast.unlink()
    require_right(folder)


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(train, require_right, monkeypatch, small_disk):
    def make_read_only():
        # The disk itself cannot be made so while the run has a file open on it; what is mounted over it can.
        subprocess.run(["mount", "--bind", small_disk, small_disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", small_disk], check=True)

    at_step(monkeypatch, 4, make_read_only)
    status, said = train(small_disk / "x")
    assert status == 1 and "Traceback" not in said and "Read-only file system" in said
    assert names(small_disk / "x") == ["checkpoint-2"]
    status, said = train(small_disk / "x")
    assert status == 2 and said.startswith("ruyi_rl: run_dir: cannot write in") and said.count("\n") == 1
    subprocess.run(["umount", small_disk], check=True)
    require_right(small_disk / "x")


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start(train, require_right, small_disk):
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    status, said = train(small_disk / "x")
    assert status == 1 and "Traceback" not in said and "make room there" in said
    (small_disk / "ballast").unlink()
    require_right(small_disk / "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_is_cut_or_changed(train, require_right, monkeypatch, tmp_path, name):
    at_step(monkeypatch, 5, interrupt)
    folder = tmp_path / "x"
    assert train(folder)[0] == 143 and names(folder) == ["checkpoint-4", "checkpoint-5"]
    file = folder / "sft" / "checkpoint-5" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if name == "model.safetensors" else content[: len(content) // 2])
    require_right(folder)
    assert names(folder) == [f"checkpoint-{SURVIVES}"] and (folder / "sft" / "broken-checkpoint-5" / name).is_file()


@pytest.mark.slow
def test_a_checkpoint_that_every_user_can_write_is_not_read(train, require_right, monkeypatch, tmp_path):
    at_step(monkeypatch, 5, interrupt)
    folder = tmp_path / "x"
    assert train(folder)[0] == 143
    file = folder / "sft" / "checkpoint-5" / "optimizer.pt"
    file.chmod(0o666)
    status, said = train(folder)
    assert status == 2 and f"every user of this machine can write {file}" in said and "chmod" in said
    file.chmod(0o644)
    require_right(folder)


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)


def test_a_second_run_in_a_folder_is_refused_and_leaves_it_as_it_is(train, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    holder = os.fork()
    if holder == 0:
        with locked(folder):
            (folder / "held").touch()
            signal.pause()
    try:
        while not (folder / "held").exists():
            time.sleep(0.01)
        status, said = train(folder)
        assert status == 2 and f"{folder} is in use by process {holder}" in said and said.count("\n") == 1
        assert sorted(path.name for path in Path(folder).iterdir()) == [".lock", "held"]
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
