import json
from types import SimpleNamespace

import pytest
from transformers import TrainerControl
from transformers.trainer_callback import CallbackHandler

from ruyi_rl.heart import Heart
from ruyi_rl.signals import StepAbandoned, StopSignal
from ruyi_rl.training.callbacks import (
    Beats,
    MetricsFile,
    NoLastCheckpoint,
    StopOnSignal,
    first_and_last,
    last_tokens,
    read_metrics,
)


def state(step, main=True):
    return SimpleNamespace(global_step=step, is_world_process_zero=main)


def write(path, steps, phase=1):
    callback = MetricsFile(path, phase)
    callback.on_train_begin(None, state(0), None)
    for step in steps:
        callback.on_log(None, state(step), None, logs={"loss": 1.0 / step})


def test_each_log_is_a_line_and_the_closing_log_is_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    MetricsFile(path).on_log(None, state(2), None, logs={"train_runtime": 3.0, "train_loss": 1.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"phase": 1, "step": 1, "loss": 1.0},
        {"phase": 1, "step": 2, "loss": 0.5},
    ]


def test_a_resumed_training_drops_the_steps_that_come_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4])
    MetricsFile(path).on_train_begin(None, state(2), None)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_resumed_second_phase_keeps_the_first(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    write(path, [1, 2, 3], phase=2)
    MetricsFile(path, phase=2).on_train_begin(None, state(1), None)
    assert [(row["phase"], row["step"]) for row in read_metrics(path)] == [(1, 1), (1, 2), (1, 3), (2, 1)]


def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    path.write_text(path.read_text()[:-8])
    assert [row["step"] for row in read_metrics(path)] == [1]
    MetricsFile(path).on_train_begin(None, state(1), None)
    MetricsFile(path).on_log(None, state(2), None, logs={"loss": 0.5})
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_other_ranks_write_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    callback = MetricsFile(path)
    callback.on_train_begin(None, state(0, main=False), None)
    callback.on_log(None, state(1, main=False), None, logs={"loss": 1.0})
    assert not path.exists() and read_metrics(path) == []


def test_after_a_whole_step_a_stop_saves_and_ends_the_training():
    stop = StopSignal()
    control = SimpleNamespace(should_log=False, should_save=False, should_training_stop=False)
    StopOnSignal(stop).on_step_end(None, state(1), control)
    assert not (control.should_save or control.should_training_stop)
    stop.number = 15
    StopOnSignal(stop).on_step_end(None, state(2), control)
    assert control.should_save and control.should_training_stop
    assert not control.should_log  # else the rows of the metrics file would depend on when a signal came


def test_a_signal_that_comes_while_ranks_agree_is_agreed_on_the_next_time(monkeypatch):
    stop, shared = StopSignal(), []

    def all_reduce(number, operation, group):
        shared.append(int(number))
        stop.number = 15

    monkeypatch.setattr("ruyi_rl.ranks.world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    callback = StopOnSignal(stop)
    callback.on_substep_end(None, state(1), None)
    with pytest.raises(StepAbandoned):
        callback.on_substep_end(None, state(1), None)
    assert shared == [0, 15]


def test_in_the_middle_of_a_step_a_stop_abandons_it():
    stop = StopSignal()
    StopOnSignal(stop).on_substep_end(None, state(1), None)
    stop.number = 15
    with pytest.raises(StepAbandoned):
        StopOnSignal(stop).on_substep_end(None, state(1), None)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, (None, None)), (1, (1.0, 1.0)), (4, (1.0, 4.0)), (20, (1.5, 19.5)), (25, (1.5, 24.5))]
)
def test_first_and_last_tenth(count, expected):
    rows = [{"small/reward": float(step)} for step in range(1, count + 1)] + [{"loss": 1.0}, {"small/reward": None}]
    assert first_and_last(rows, "small/reward") == expected


@pytest.mark.parametrize("step, saved", [(3, True), (4, False)])
def test_the_last_step_writes_no_checkpoint(step, saved):
    control = SimpleNamespace(should_save=True)
    NoLastCheckpoint().on_step_end(None, SimpleNamespace(global_step=step, max_steps=4), control)
    assert control.should_save is saved


def test_a_last_step_that_reuses_rollouts_hides_no_tokens():
    assert last_tokens([{"num_tokens": 5.0}, {"num_tokens": 9.0}, {"loss": 1.0}, {"num_tokens": None}]) == 9
    assert last_tokens([{"loss": 1.0}]) == last_tokens([]) == 0


def test_every_micro_step_beats():
    heart = Heart()
    control = TrainerControl()
    handler = CallbackHandler([Beats(heart)], None, None, None, None)
    for event in ("on_step_begin", "on_substep_end", "on_step_end", "on_save"):
        heart.beaten = False
        getattr(handler, event)(None, SimpleNamespace(global_step=7), control)
        assert heart.beaten and heart.step == 7, event
