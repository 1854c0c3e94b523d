import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from ruyi_rl.report.progress import SILENCE, ProgressLine, TrainingProgress, status


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120, highlight=False)


def lines(console):
    return console.file.getvalue().splitlines()


def test_plain_lines_come_ten_times_in_a_quick_run_with_time_left(console):
    clock = Clock()
    with ProgressLine(console, "grpo", 100, clock=clock) as line:
        for step in range(1, 101):
            clock.now = step * 0.5
            line.update(step, f"reward small {step / 100:.2f}")
    assert len(lines(console)) == 10
    assert lines(console)[0] == "grpo 10/100 · 0:05 · about 0:45 left · reward small 0.10"
    assert lines(console)[-1] == "grpo 100/100 · 0:50 · reward small 1.00"


def test_a_slow_run_is_never_silent_for_long(console):
    clock = Clock()
    with ProgressLine(console, "grpo", 1000, clock=clock) as line:
        for step in range(1, 11):
            clock.now = step * (SILENCE + 1)
            line.update(step)
    assert len(lines(console)) == 10


def test_a_resumed_run_estimates_by_its_own_pace(console):
    clock = Clock()
    line = ProgressLine(console, "grpo", 100, done=90, clock=clock)
    assert line.time_left(90) is None
    clock.now = 10.0
    assert line.time_left(95) == pytest.approx(10.0)


def test_without_lines_only_a_silence_is_broken(console):
    clock = Clock()
    with ProgressLine(console, "measuring", 4, lines=0, clock=clock) as line:
        for step in (1, 2, 3):
            line.update(step)
        clock.now = SILENCE
        line.update(4)
    assert len(lines(console)) == 1


def test_a_terminal_gets_one_live_line():
    console = Console(file=io.StringIO(), width=120, force_terminal=True, highlight=False)
    with ProgressLine(console, "grpo", 2) as line:
        line.update(1, "reward [small] 0.25")
        line.update(2, "reward [small] 0.50")
    text = console.file.getvalue()
    assert "2/2" in text and "reward [small] 0.50" in text
    assert text.count("\n") <= 2


def test_the_status_names_every_exit_that_the_log_has():
    logs = {"small/reward": 0.25, "large/reward": 0.5, "reward": 0.375, "small/loss": 1.0, "mid/reward": None}
    assert status("reward", ["small", "mid", "large"], logs) == "reward  small 0.250  large 0.500"
    assert status("kl", ["small"], logs) == ""


def test_a_tiny_loss_does_not_show_as_nothing():
    assert status("loss", ["small"], {"small/loss": 1.9e-6}) == "loss  small 1.9e-06"
    assert status("loss", ["small"], {"small/loss": 0.0}) == "loss  small 0.000"


def test_a_training_shows_its_last_figures_and_not_the_closing_log(console):
    callback = TrainingProgress(console, "sft", ["small"], "loss")
    state, control = SimpleNamespace(max_steps=2, global_step=0), SimpleNamespace(should_log=False)
    callback.on_train_begin(None, state, control)
    state.global_step, control.should_log = 1, True
    callback.on_step_end(None, state, control)
    callback.on_log(None, state, control, logs={"small/loss": 2.0})
    state.global_step, control.should_log = 2, False
    callback.on_step_end(None, state, control)
    callback.on_log(None, state, control, logs={"train_runtime": 1.0})
    callback.on_train_end(None, state, control)
    assert [line.split(" · ")[-1] for line in lines(console)] == ["loss  small 2.000"] * 2
