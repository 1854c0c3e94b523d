"""A trainer's checkpoints: written so that a kill leaves the old one or the new one, and read only where whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers.trainer_utils import rotate_checkpoints

from ruyi_rl import ranks
from ruyi_rl.checkpoint_folder import (
    PREFIX,
    Seal,
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
    write_seal,
)
from ruyi_rl.disk import byte_count, refused_write
from ruyi_rl.failure import StageFailed
from ruyi_rl.shared_folder import FolderCopies
from ruyi_rl.training.phases import in_phase
from ruyi_rl.training.run_state import RandomStates, RunState

NEARLY_FULL = 64 << 20
"""Bytes that a disk may have free when the last block did not fit."""


@dataclass(frozen=True)
class LastStep:
    """A rank as it was after an optimiser step; its weights and its optimiser stay so until the next one's end."""

    state: RunState
    random: RandomStates
    micro_steps: int | None
    """DeepSpeed's count."""


class Checkpoints:
    """Mixed into a family's trainers.

    A checkpoint holds, besides what transformers writes, each rank's `run_state`. It is the state after a whole
    optimiser step, also where it is written in the middle of the next one (`save_last_step`).
    """

    copies: FolderCopies
    """Of the run folder: who looks after the files."""
    _saving: str | None = None
    _last_step: LastStep | None = None

    def __init__(self, *args, **kwargs):
        self.copies = one_folder()
        super().__init__(*args, **kwargs)

    def run_state(self) -> RunState:
        """What a checkpoint holds of this rank besides weights, optimiser, schedule and random states."""
        return RunState()

    def set_run_state(self, state: RunState, same_ranks: bool) -> None:
        """Goes on from a state; called when the training has begun.

        Args:
            same_ranks: whether as many ranks have written it; if not, it is rank 0's.
        """

    def remember_step(self) -> None:
        """To be called after each optimiser step."""
        engine = getattr(self, "deepspeed", None)
        self._last_step = LastStep(self.run_state(), RandomStates.now(), getattr(engine, "micro_steps", None))

    def save_last_step(self) -> None:
        """Writes the checkpoint of the last whole optimiser step, in the middle of the next; the training cannot go on.

        Nothing of that next step has reached the weights or the optimiser.
        """
        last, step = self._last_step, self.state.global_step
        newest = ranks.from_rank_zero([path.name for path in complete_checkpoints(Path(self.args.output_dir))][-1:])
        if last is None or step == 0 or newest == [f"{PREFIX}{step}"]:
            return
        last.random.restore()
        self.set_run_state(last.state, same_ranks=True)
        if last.micro_steps is not None:
            self.deepspeed.micro_steps = last.micro_steps
        self._save_checkpoint(self.model, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.remember_step()

    def _get_output_dir(self, trial):
        return self._saving or super()._get_output_dir(trial)

    @in_phase("save")
    def _save_checkpoint(self, model, trial):
        folder, step = Path(self.args.output_dir), self.state.global_step
        _require_space(folder, step)
        if self.copies.keeps:
            remove_unfinished(folder)
        ranks.barrier()
        saving = saving_folder(folder, step)
        self._saving = str(saving)
        try:
            super()._save_checkpoint(model, trial)
            checkpoint = saving / f"{PREFIX}{step}"
            self.run_state().save(checkpoint, ranks.rank())
            ranks.barrier()
            self.copies.mirror(checkpoint)
            self._seal(checkpoint)
        except Exception as error:
            free = shutil.disk_usage(folder).free
            # What is half written takes the room that the next attempt needs.
            shutil.rmtree(saving, ignore_errors=True)
            raise _unsaved(folder, step, error, free) from error
        finally:
            self._saving = None
        if self.copies.keeps:
            give_name(folder, step)
        ranks.barrier()
        if self.copies.keeps:
            rotate_checkpoints(str(folder), self.args.save_total_limit)

    def _seal(self, checkpoint: Path) -> None:
        sums = {}
        for name in share(files_of(checkpoint), *_part(self.copies)):
            sums[name] = file_sum(checkpoint / name)
            self.phases.listener("save")  # a large file on a slow disk takes its time
        found = ranks.gathered((self.copies.first, sums))
        if self.copies.keeps:
            files = {name: file for first, sums in found if first == self.copies.first for name, file in sums.items()}
            write_seal(checkpoint, Seal(self.state.global_step, ranks.world_size(), zero_mode(self.args), files))
        ranks.barrier()


def zero_mode(args) -> str:
    """`off`, `zero1`, `zero2` or `zero3`: how a trainer's arguments shard."""
    return f"zero{args.deepspeed['zero_optimization']['stage']}" if args.deepspeed else "off"


def one_folder() -> FolderCopies:
    """The run folder of a run whose ranks all see the same."""
    return FolderCopies((0,) * ranks.world_size(), ranks.rank())


def newest_whole(
    folder: Path, copies: FolderCopies, say: Callable[[str], None], beat: Callable[[], None] = lambda: None
) -> Path | None:
    """The newest checkpoint that is whole on every host; every rank calls it.

    Newer ones are set aside, with a line for the user; what a kill has left half written is removed.

    Args:
        folder: of the training.
        say: prints a warning (rank 0).
        beat: called as the reading gets on.
    """
    if copies.keeps and folder.is_dir():
        remove_unfinished(folder)
    steps = _steps(folder)
    for step in steps:
        checkpoint = folder / f"{PREFIX}{step}"
        problems = [found for found in ranks.gathered(problem(checkpoint, *_part(copies), beat)) if found]
        if not problems:
            return checkpoint
        if copies.keeps and checkpoint.is_dir():
            set_aside(checkpoint)
        say(f"{checkpoint} is broken and was set aside as broken-{checkpoint.name}: {problems[0]}")
    if steps:
        say(f"no checkpoint in {folder} is whole: this training starts over from its beginning")
    return None


def saved_run_state(checkpoint: Path) -> tuple[RunState, bool] | None:
    """This rank's state in a checkpoint, and whether as many ranks have written it; if not, it is rank 0's.

    Returns None where the checkpoint holds none.
    """
    seal = read_seal(checkpoint)
    same_ranks = seal is not None and seal.world_size == ranks.world_size()
    state = RunState.load(checkpoint, ranks.rank() if same_ranks else 0)
    return None if state is None else (state, same_ranks)


def _part(copies: FolderCopies) -> tuple[int, int]:
    """This rank's share of the reading of a copy's files, and how many shares there are."""
    return copies.beside.index(copies.rank), len(copies.beside)


def _steps(folder: Path) -> list[int]:
    """Of all checkpoints on any host, newest first."""
    names = [path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")]
    return sorted({int(name) for found in ranks.gathered(names) for name in found if name.isdigit()}, reverse=True)


def _require_space(folder: Path, step: int) -> None:
    """Raises StageFailed, on every rank, where a disk has less room than the checkpoint before took."""
    whole = complete_checkpoints(folder)
    needed = read_seal(whole[-1]).bytes if whole else 0
    free = shutil.disk_usage(folder).free if folder.is_dir() else None
    found = ranks.gathered((needed, free))
    lacking = [f"{byte_count(n)}, and {byte_count(f)} are free" for n, f in found if f is not None and f < n]
    if lacking:
        raise StageFailed(
            f"checkpoint {step} was not written: it takes about {lacking[0]} on the disk of {folder}. Make room there"
        )


def _unsaved(folder: Path, step: int, error: Exception, free: int) -> StageFailed:
    reason = refused_write(error, folder)
    if reason is None:
        # torch's writer tells that it failed, but not why.
        full = f"; the disk had {byte_count(free)} free by then: make room there" if free < NEARLY_FULL else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split()) + full
    return StageFailed(f"checkpoint {step} could not be written to {folder}: {reason}")
