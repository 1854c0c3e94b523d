"""How far a training or an evaluation is: one live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers import TrainerCallback

from ruyi_rl.report.tables import duration

SILENCE = 30.0
"""Longest time in seconds without a plain line."""
LINES = 10
"""Plain lines of a training that is quicker than that."""


class ProgressLine:
    """Context that shows `description n/total elapsed, time left, status`.

    Args:
        console: where to; a terminal gets a live bar, anything else plain lines.
        description: what is going on.
        total: steps in all.
        done: steps that an earlier attempt did.
        lines: plain lines however quick it goes; 0: only after a silence.
    """

    def __init__(
        self,
        console: Console,
        description: str,
        total: int,
        done: int = 0,
        lines: int = LINES,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.console, self.description, self.total, self.first, self.clock = console, description, total, done, clock
        self.started = self.last_time = clock()
        self.last_done = done
        self.lines = lines
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.quiet:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[status]}", style="dim"),
                console=self.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                escape(self.description), total=self.total, completed=self.first, status="", left=""
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def time_left(self, done: int) -> float | None:
        """Seconds still to go at this attempt's pace; None before its first step."""
        mine = done - self.first
        return (self.clock() - self.started) / mine * (self.total - done) if mine > 0 else None

    def update(self, done: int, status: str = "") -> None:
        """Shows that `done` steps are done, with a status."""
        left = self.time_left(done)
        left_text = "" if left is None or done >= self.total else f"about {duration(left)} left"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, status=escape(status), left=left_text)
        elif self._is_due(done):
            parts = [
                f"{self.description} {done}/{self.total}",
                duration(self.clock() - self.started),
                left_text,
                status,
            ]
            self.console.print(" · ".join(part for part in parts if part), markup=False, soft_wrap=True)
            self.last_time, self.last_done = self.clock(), done

    def _is_due(self, done: int) -> bool:
        if done == self.last_done:
            return False
        if self.clock() - self.last_time >= SILENCE:
            return True
        return self.lines > 0 and (done >= self.total or done - self.last_done >= self.total / self.lines)


class TrainingProgress(TrainerCallback):
    """Shows a training: steps, time left, and the last value of one metric for every exit.

    Args:
        console: rank 0's, or a silent one.
        description: what is trained.
        exits: names to show.
        metric: `reward` or `loss`; read from `<exit>/<metric>`.
    """

    def __init__(self, console: Console, description: str, exits: Sequence[str], metric: str):
        self.console, self.description, self.exits, self.metric = console, description, exits, metric
        self.line: ProgressLine | None = None
        self.status = ""

    def on_train_begin(self, args, state, control, **kwargs):
        self.line = ProgressLine(self.console, self.description, state.max_steps, state.global_step).__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        # A step that is logged shows itself in on_log, with its own figures.
        if self.line is not None and not control.should_log:
            self.line.update(state.global_step, self.status)

    def on_log(self, args, state, control, logs=None, **kwargs):
        # An evaluation between two steps has a line of its own, and comes before its step's log.
        if self.line is not None and logs and not {"train_runtime", "eval/pass_rate"} & set(logs):
            self.status = status(self.metric, self.exits, logs) or self.status
            self.line.update(state.global_step, self.status)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Leaves the terminal; also for a training that raised."""
        if self.line is not None:
            self.line.__exit__()
            self.line = None


def status(metric: str, exits: Sequence[str], logs: Mapping[str, Any]) -> str:
    """`reward  1.7B 0.31  8B 0.42`; empty where the log has none."""
    values = {exit: logs.get(f"{exit}/{metric}") for exit in exits}
    # The loss of a recovery may be a millionth.
    found = [
        f"{exit} {value:{'.3f' if value == 0 or abs(value) >= 0.01 else '.3g'}}"
        for exit, value in values.items()
        if value is not None
    ]
    return "  ".join([metric, *found]) if found else ""
