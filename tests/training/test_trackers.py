"""What TensorBoard, Weights & Biases and trackio hold of a training that was interrupted and went on; no network."""

import json
import sqlite3
import struct
from pathlib import Path

import pytest

from ruyi_rl.failure import Interrupted
from ruyi_rl.pipeline import run_stages
from ruyi_rl.training.callbacks import read_metrics
from tests.stages.test_smoke_pipeline import (  # noqa: F401 - base is a fixture of config
    GRPO,
    base,
    config,
    interrupt_at,
)

pytestmark = pytest.mark.slow

SECRET = "hf_verysecretindeed"


@pytest.fixture
def tracked(config, tmp_path, monkeypatch):  # noqa: F811
    """The folder of a GRPO run of three steps that a signal stopped after its second, with all its metrics."""
    for variable in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR", "TENSORBOARD_LOGGING_DIR", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackio = pytest.importorskip("trackio")
    pytest.importorskip("wandb")
    for module in (trackio.utils, trackio.sqlite_storage):  # read when they were imported, which TRL does
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    found = config("grpo")
    found.grpo.trainer = {**GRPO, "report_to": ["tensorboard", "wandb", "trackio"], "hub_token": SECRET}
    run_stages(config("sft"), [])
    monkeypatch.setattr("sys.argv", ["ruyi_rl", "stage=grpo", f"grpo.trainer.hub_token={SECRET}"])
    interrupt_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        run_stages(found, [])
    run_stages(found, [])
    return Path(found.run_dir)


def test_every_tracker_holds_every_metric_of_every_exit_in_one_run(tracked, tmp_path):
    rows = read_metrics(tracked / "grpo" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    keys = {key for row in rows for key in row if key.startswith(("small/", "large/"))}
    assert {"small/reward", "large/entropy", "large/completions/mean_length", "small/dead_groups"} <= keys
    truth = {(key, row["step"]): row[key] for row in rows for key in keys if key in row}

    assert from_tensorboard(tracked / "grpo" / "tensorboard", keys) == pytest.approx(truth, rel=1e-6)
    attempts = [from_wandb(folder) for folder in sorted((tracked / "wandb").glob("offline-run-*"))]
    assert len(attempts) == 2 and attempts[0]["identity"] == attempts[1]["identity"]
    assert attempts[1]["name"] == "x/grpo" and attempts[1]["group"] == "x" and attempts[1]["project"] == "ruyi_rl"
    logged = {pair: value for each in attempts for pair, value in each["values"].items()}
    assert {pair: logged.get(pair) for pair in truth} == pytest.approx(truth)
    assert from_trackio(tmp_path / "trackio", keys) == pytest.approx(truth)

    # The configuration is there, and no secret in it.
    files = [*tracked.rglob("*tfevents*"), *(tracked / "wandb").rglob("*.wandb"), *(tmp_path / "trackio").rglob("*.db")]
    for stored in (file.read_bytes() for file in files):
        assert b"max_completion_length" in stored
    for folder in (tracked, tmp_path / "trackio"):
        leaks = [file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
        assert not leaks


def from_tensorboard(folder, keys):
    """(key, step) -> value, as TensorBoard itself would show it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {
        (key, event.step): event.value
        for key in keys
        if f"train/{key}" in found.Tags()["scalars"]
        for event in found.Scalars(f"train/{key}")
    }


def from_wandb(folder):
    """What one attempt's file holds."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    found = {"values": {}}
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run = record.run
            found |= {"identity": run.run_id, "name": run.display_name, "group": run.run_group, "project": run.project}
        if record.HasField("history"):
            items = record.history.item
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            step = values.get("train/global_step")
            found["values"] |= {(key.removeprefix("train/"), step): value for key, value in values.items()}
    return found


def wandb_records(data, header=7, block=32768):
    """The records of LevelDB's log format, which Weights & Biases stores: pieces within blocks, each with checksum (4
    bytes), length (2) and type (1: whole, first, middle, last)."""
    place, pieces = header, b""
    while place + header <= len(data):
        room = block - place % block
        if room < header:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + header])
        pieces += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):
            yield pieces
            pieces = b""


def from_trackio(folder, keys):
    """(key, step) -> value of the only run of the training."""
    (file,) = folder.glob("*.db")
    with sqlite3.connect(file) as connection:
        rows = connection.execute("select run_name, run_id, metrics from metrics order by id").fetchall()
    assert {row[0] for row in rows} == {"x/grpo"} and len({row[1] for row in rows}) == 1
    logs = [json.loads(row[2]) for row in rows]
    return {
        (key, log["train/global_step"]): log[f"train/{key}"] for log in logs for key in keys if f"train/{key}" in log
    }
