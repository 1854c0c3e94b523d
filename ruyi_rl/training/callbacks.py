"""What listens to a trainer: the metrics file, the clock of the phases, the stop signal, the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ruyi_rl import ranks
from ruyi_rl.heart import Heart
from ruyi_rl.report.html.upkeep import Upkeep
from ruyi_rl.run_folder import write_text
from ruyi_rl.signals import StepAbandoned, StopSignal
from ruyi_rl.training.checkpoints import Checkpoints, saved_run_state
from ruyi_rl.training.phases import PhaseClock


class MetricsFile(TrainerCallback):
    """Appends one JSON object per log to `metrics.jsonl` (rank 0).

    Args:
        path: the file.
        phase: number of the training within the stage; each has steps of its own.
    """

    def __init__(self, path: Path, phase: int = 1):
        self.path, self.phase = path, phase

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            # A killed run may have logged steps after its last checkpoint; they will come again.
            kept = [row for row in read_metrics(self.path) if not self._comes_again(row, state.global_step)]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        # The trainer's closing log sums the run up: that is the summary's, not a step's.
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            row = {"phase": self.phase, "step": state.global_step, **logs}
            with open(self.path, "a") as file:
                file.write(json.dumps(row, default=float) + "\n")

    def add_to_last(self, values: Mapping[str, float]) -> None:
        """Adds to the newest row what came after its log, such as the writing of the trained model (rank 0)."""
        rows = read_metrics(self.path)
        if rows:
            rows[-1] |= {key: rows[-1].get(key, 0.0) + value for key, value in values.items()}
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def _comes_again(self, row: dict[str, Any], step: int) -> bool:
        return (row["phase"], row["step"]) > (self.phase, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in order; none if there is no file. A line cut by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


class PhaseBorders(TrainerCallback):
    """Within an optimiser step, what is no other phase's is the update's; so it holds the optimiser's step wherever
    that is, with DeepSpeed inside the backward pass.
    """

    def __init__(self, phases: PhaseClock):
        self.phases = phases

    def on_train_begin(self, args, state, control, **kwargs):
        self.phases.take()  # what came before it is no step's time

    def on_step_begin(self, args, state, control, **kwargs):
        self.phases.turn_to("update")

    def on_step_end(self, args, state, control, **kwargs):
        self.phases.turn_to("other")


class StopOnSignal(TrainerCallback):
    """After a signal on any rank, all of them stop at the end of the same micro-step.

    After the last one of an optimiser step the trainer saves by itself; in the middle of a step `StepAbandoned` is
    raised.
    """

    def __init__(self, stop: StopSignal):
        self.stop = stop
        self._group = None

    def on_train_begin(self, args, state, control, **kwargs):
        if ranks.world_size() > 1 and torch.distributed.get_backend() != "gloo":
            # Ranks agree on the CPU: a micro-step is not to wait for what is queued on its device.
            self._group = torch.distributed.new_group(backend="gloo", timeout=ranks.PATIENCE)

    def on_step_end(self, args, state, control, **kwargs):
        if self._agreed():
            # No log: with `logging_steps` above 1 the resumed run's rows would be others.
            control.should_save = control.should_training_stop = True
        return control

    def on_substep_end(self, args, state, control, **kwargs):
        self.check()

    def check(self) -> None:
        """Raises StepAbandoned where a signal came on any rank; every rank calls it at the same point of a step."""
        if self._agreed():
            raise StepAbandoned

    def _agreed(self) -> bool:
        number = self.stop.number or 0
        if ranks.world_size() > 1:
            shared = torch.tensor(number)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=self._group)
            number = int(shared)
        if number:  # else one that has come while the ranks agreed would be forgotten
            self.stop.number = number
        return bool(number)


class NoLastCheckpoint(TrainerCallback):
    """No checkpoint after the last step, whose family is saved anyway; to be added after what asks for checkpoints.

    It would be a full copy of the optimiser for nothing, and transformers trains one step too many from it.
    """

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control


class OnSave(TrainerCallback):
    """Calls `record` after every checkpoint."""

    def __init__(self, record: Callable[[], None]):
        self.record = record

    def on_save(self, args, state, control, **kwargs):
        self.record()


class ReportRefresh(TrainerCallback):
    """Lets the run's report follow the training (rank 0)."""

    def __init__(self, upkeep: Upkeep):
        self.upkeep = upkeep

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.upkeep.refresh()


class RunStateOf(TrainerCallback):
    """Gives a resumed trainer the state that its checkpoint holds, and remembers what it begins with."""

    def __init__(self, trainer: Checkpoints, checkpoint: Path | None):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        found = None if self.checkpoint is None else saved_run_state(self.checkpoint)
        if found is not None:
            self.trainer.set_run_state(*found)
        self.trainer.remember_step()


class Beats(TrainerCallback):
    """Beats with every micro-step, log and checkpoint; the borders of phases beat by themselves."""

    def __init__(self, heart: Heart):
        self.heart = heart

    def _beat(self, args, state, control, **kwargs):
        self.heart.at_step(state.global_step)

    on_train_begin = on_step_begin = on_substep_end = on_step_end = on_log = on_save = on_prediction_step = _beat


class CastAtEnd(TrainerCallback):
    """Casts the trained model to `dtype` after the last checkpoint, so that it is saved in it."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def on_train_end(self, args, state, control, model, **kwargs):
        model.to(self.dtype)


def first_and_last(rows: Sequence[dict[str, Any]], key: str, share: float = 0.1) -> tuple[float | None, float | None]:
    """Mean of `key` over the first and over the last `share` of the rows that have it, at least one row each."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return None, None
    count = max(1, round(share * len(values)))
    return sum(values[:count]) / count, sum(values[-count:]) / count


def last_tokens(rows: Sequence[dict[str, Any]]) -> int:
    """Tokens seen by the last row that says so: a step that reuses rollouts does not."""
    return next((int(row["num_tokens"]) for row in reversed(rows) if row.get("num_tokens")), 0)
