"""No update that is not finite reaches weights or moments, and too many of them in a row stop the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ruyi_rl import ranks
from ruyi_rl.failure import StageFailed
from ruyi_rl.training.skipped_batches import FOLDER, MicroBatch, SkippedUpdate, listed, write_skipped
from ruyi_rl.training.zero_gradients import local_gradients, spoil

METRIC = "skipped_updates"


class FiniteUpdates:
    """Mixed into a family's trainers.

    An update whose loss, gradient or gradient's norm is NaN or infinite on any rank is left out on all of them, as if
    its optimiser step had never been: weights, moments and the optimiser's own step count stay bit by bit. The learning
    rate's schedule and the rows go on. Every rank keeps its micro-batches (see `skipped_batches`).

    Under fp16 the loss scaler skips updates whose scaled gradient overflows, and lowers the scale: these are no faults
    and are not counted, unless the scale is down at 1 already or the loss itself is not finite.

    Metric: `skipped_updates`, so far; a skipped update always has a row of its own.
    """

    max_skipped_updates: int = 5
    """More than this many in a row stop the run."""
    announce: Callable[[str], None] = print
    """Gets a line for the user."""

    def __init__(self, *args, **kwargs):
        self._micro_batches: list[MicroBatch] = []
        self._skipped: SkippedUpdate | None = None  # the update under way, where it is not finite
        super().__init__(*args, **kwargs)
        self.add_callback(GuardedSteps(self))

    @property
    def skipped_updates(self) -> dict[str, Any]:
        """`count`: of the whole training; `steps`: of the latest ones, without a finite one since."""
        return self.carried.setdefault(METRIC, {"count": 0, "steps": []})

    def saw_micro_batch(self, inputs: Mapping[str, Any], losses: Mapping[str, torch.Tensor]) -> None:
        """To be called with what each loss of the training was computed from, before its backward pass.

        Args:
            losses: exit -> () its contribution.
        """
        if self.model.training:
            losses = {name: loss.detach() for name, loss in losses.items()}
            self._micro_batches.append(MicroBatch(inputs, losses))

    def training_step(self, *args, **kwargs):
        """Raises StageFailed, on every rank, after too many updates in a row that were not finite."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            if not self.is_deepspeed_enabled:  # DeepSpeed's step is in its backward pass
                self._judge_plain_update()
            self._end_update()
        # The sum that is logged would stay NaN for the rest of the run.
        return torch.where(loss.isfinite(), loss, 0.0)

    def guard_steps(self) -> None:
        """Puts the guard in the way of the optimiser's step; to be called when the training has begun."""
        if self.is_deepspeed_enabled:
            optimizer = self.deepspeed.optimizer
            optimizer.check_grad_overflow = True  # else ZeRO-1 and 2 step with what is not finite in bf16
            self._guard(optimizer, self._zero_step)
        else:
            self._guard(self.optimizer, self._plain_step)

    def _guard(self, optimizer, guarded: Callable) -> None:
        step = optimizer.step

        @wraps(step)  # a schedule looks for its own mark on it
        def guarded_step(*args, **kwargs) -> None:
            guarded(lambda: step(*args, **kwargs))

        optimizer.step = guarded_step

    def _judge_plain_update(self) -> None:
        """Before clipping, which would spread a NaN over all gradients."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        scaler = self.accelerator.scaler
        norm = torch.nn.utils.get_total_norm(gradients)
        scaled = scaler is not None and scaler.get_scale() > 1
        if not self._finite(norm.new_ones(()) if scaled else norm):
            self._skip((name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None)

    def _plain_step(self, step: Callable[[], None]) -> None:
        if self._skipped is None:
            step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # it has looked at the gradients, and is told that the step is over
            self.optimizer._is_overflow = False  # of the step before; the schedule is to go on

    def _zero_step(self, step: Callable[[], None]) -> None:
        optimizer = self.deepspeed.optimizer
        scaled = optimizer.loss_scale > 1
        local = [] if scaled else [gradient for _, gradient in local_gradients(optimizer)]
        norm = torch.nn.utils.get_total_norm(local) if local else torch.zeros(())
        if not self._finite(norm):
            self._skip(local_gradients(optimizer))
            spoil(optimizer)
        step()
        if optimizer.overflow and self._skipped is None and not scaled:
            self._skip(())
        if self._skipped is not None:
            if not optimizer.overflow:
                raise RuntimeError("DeepSpeed took an update that is not finite: this version of it is not supported")
            optimizer.overflow = False  # else the schedule would stay where it was

    def _finite(self, norm: torch.Tensor) -> bool:
        """Whether all losses and this rank's part of the gradient are finite, on every rank; waits for the device."""
        losses = [loss for batch in self._micro_batches for loss in batch.losses.values()]
        finite = torch.stack([norm.to(self.args.device).float(), *(loss.float() for loss in losses)]).isfinite().all()
        bad = (~finite).float()[None]
        if ranks.world_size() > 1:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        return not bad.item()

    def _skip(self, gradients) -> None:
        """Notes why the update under way is skipped; every rank calls it.

        Args:
            gradients: (name, tensor) of what this rank has of them.
        """
        names = [name for name, gradient in gradients if not gradient.isfinite().all()]
        exits = {n for batch in self._micro_batches for n, loss in batch.losses.items() if not loss.isfinite()}
        found = ranks.gathered((sorted(exits), names))
        step = self.state.global_step + 1
        record = self.skipped_updates
        record["count"] += 1
        record["steps"].append(step)
        self._skipped = SkippedUpdate(
            step,
            len(record["steps"]),
            self._get_learning_rate(),
            {
                name: [rank for rank, (bad, _) in enumerate(found) if name in bad]
                for name in sorted({name for bad, _ in found for name in bad})
            },
            list(dict.fromkeys(name for _, bad in found for name in bad)),
        )

    def _end_update(self) -> None:
        batches, self._micro_batches = self._micro_batches, []
        update = self._skipped
        if update is None:
            self.skipped_updates["steps"] = []
            return
        folder = Path(self.args.output_dir) / FOLDER
        write_skipped(folder, update, batches, ranks.rank(), self.processing_class)
        record, allowed = self.skipped_updates, self.max_skipped_updates
        if update.in_a_row > allowed:
            raise StageFailed(too_many(update, record["steps"], allowed, folder, self.args.max_grad_norm))
        self.announce(
            f"step {update.step}: the update was skipped ({update.in_a_row} in a row, {record['count']} in all): "
            f"{update.reason()}. Its rows are in {folder / f'step-{update.step}-rank-*.json'}"
        )

    def update_over(self) -> bool:
        """Whether the update that has just ended was skipped; asked once an update."""
        skipped, self._skipped = self._skipped is not None, None
        return skipped


class GuardedSteps(TrainerCallback):
    """Logs each skipped update, and puts off a checkpoint to the first finite one.

    What comes before updates that are not finite is often a bad one that was: its checkpoint must not be the one that
    pushes out the last good one.
    """

    def __init__(self, trainer: FiniteUpdates):
        self.trainer, self._owed = trainer, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.guard_steps()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.update_over():
            control.should_log = True
            self._owed, control.should_save = self._owed or control.should_save, False
        elif self._owed:
            self._owed, control.should_save = False, True
        return control


def too_many(update: SkippedUpdate, steps: Sequence[int], allowed: int, folder: Path, max_grad_norm: float) -> str:
    """The message that ends a run."""
    those = f"the update of step {steps[0]} was" if len(steps) == 1 else f"the updates of steps {listed(steps)} were"
    return (
        f"{those} not finite, and max_skipped_updates={allowed}. The last one: {update.reason()}. Nothing of "
        f"them has reached weights or optimiser. The rows are in {folder}, step-N-rank-R.json: where "
        "always the same ones do it, look at these. Otherwise try a lower learning_rate (it was "
        f"{update.learning_rate:.3g}) or max_grad_norm (it is {max_grad_norm:g}) in the stage's trainer block; that is "
        "another run, which takes the weights of a checkpoint with start_from=<checkpoint> and another name"
    )


def skipped_updates(rows: Sequence[Mapping[str, Any]]) -> int:
    """Of all phases, from the rows of `metrics.jsonl`."""
    return sum({row["phase"]: int(row[METRIC]) for row in rows if METRIC in row}.values())
