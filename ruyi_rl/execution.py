"""Runs the stages that have to run and records how each one ended."""

from __future__ import annotations

import shlex
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from ruyi_rl import ranks
from ruyi_rl.cli.launch import own_ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.disk import refused_write
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.heart import Heart
from ruyi_rl.launcher_command import launched_command, launcher
from ruyi_rl.lost_rank import is_lost_rank, lost_rank
from ruyi_rl.pipeline import WITHOUT_FAMILY, Step, Work
from ruyi_rl.redaction import Redaction
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.html.upkeep import keep_report
from ruyi_rl.report.libraries import quiet_libraries
from ruyi_rl.report.tables import print_result
from ruyi_rl.run_folder import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    Manifest,
    StageFolder,
    fingerprint,
    versions,
    write_json,
    write_text,
)
from ruyi_rl.shared_folder import NOT_MIRRORED, FolderCopies
from ruyi_rl.signals import StopSignal
from ruyi_rl.watchdog import STACKS


@dataclass
class StageContext:
    """What a stage is given."""

    config: RunConfig
    step: Step
    console: Console
    """Prints on rank 0 only."""
    stop: StopSignal
    manifest: Manifest
    started: float = field(default_factory=time.monotonic)
    earlier_seconds: float = 0.0
    heart: Heart = field(default_factory=Heart)
    """Beats as the stage gets on."""
    command: str = ""
    """Goes on with the run."""
    copies: FolderCopies = field(default_factory=FolderCopies)
    """Of the run folder, where hosts share no disk."""
    given_up: bool = False
    """Whether the end is recorded, though the stage still hangs somewhere."""

    @cached_property
    def redaction(self) -> Redaction:
        """Hides the run's secrets in what is stored or shown."""
        return Redaction.of(asdict(self.config))

    @property
    def folder(self) -> Path:
        return self.step.folder.path

    @property
    def input(self) -> Path:
        """Folder of the family that the stage starts from."""
        if self.step.input is None:
            raise ValueError(f"stage {self.step.stage} has no input")
        return self.step.input

    @property
    def seconds(self) -> float:
        """Wall seconds of the stage so far, over all attempts."""
        return self.earlier_seconds + time.monotonic() - self.started

    def kept(self, key: str) -> Any:
        """What an earlier attempt kept under `key`; None if nothing."""
        return self.manifest.progress.get(key)

    def keep(self, key: str, value: Any) -> None:
        """Keeps a JSON value in the manifest for a resumed attempt."""
        self.manifest.progress[key] = value
        self.record()
        self.stop.check()  # a signal that came while this was being made

    def record(self, status: str = RUNNING, message: str | None = None) -> None:
        """Writes the manifest, on every host that keeps a copy of it."""
        message = message and self.redaction.text(message)
        self.manifest.status, self.manifest.message, self.manifest.seconds = status, message, round(self.seconds, 3)
        self.manifest.finished = None if status == RUNNING else _now()
        if self.copies.keeps and not self.given_up:
            self.step.folder.write_manifest(self.manifest)

    def mirror(self) -> None:
        """Gives every host what rank 0 alone has written in the stage's folder, checkpoints apart; all ranks call it.

        Raises:
            OSError: see `FolderCopies.mirror`.
        """
        self.copies.mirror(self.folder, leave=NOT_MIRRORED)

    def give_up(self, happened: str) -> str:
        """Records for good, from any rank and thread, that the stage failed; returns what the user must know."""
        self.record(FAILED, happened)
        self.given_up = True
        if not self.copies.keeps:
            self.step.folder.write_manifest(self.manifest)
        return (
            f"{self.step.stage} failed. The stacks are in {self.folder}/{STACKS.format('*')}. "
            f"{what_is_safe(self.step.folder)}\nOnce its cause is mended, go on with: {self.command}"
        )


def execute(work: list[Work], config: RunConfig, overrides: list[str], console: Console, copies: FolderCopies) -> None:
    """Runs `work` in order; every rank calls it with the same list.

    Raises:
        Refusal, StageFailed, Interrupted: see `ruyi_rl.pipeline.run_stages`.
    """
    if not work:
        return
    with console.status("loading the libraries"):
        quiet_libraries()
    hidden = Redaction.of(asdict(config))
    command = continuing_command([hidden.text(word) for word in overrides], own_ranks(config))
    with StopSignal(lambda line: console.print(line, style="yellow")) as stop:
        for item in work:
            if stop.requested:  # while the report was written
                told = f"{item.step.stage} was not begun; the stages before it are safe.\nGo on with: {command}"
                raise Interrupted(told, stop.status)
            try:
                summary = run_stage(item, config, console, stop, command, copies)
            finally:
                _report(config, console, stop)
            print_result(console, summary, last=item is work[-1])


def run_stage(
    item: Work, config: RunConfig, console: Console, stop: StopSignal, command: str, copies: FolderCopies
) -> dict[str, Any]:
    """Runs one stage in its folder, leaving a manifest that says how it ended; returns its summary."""
    step = item.step
    manifest = ranks.on_rank_zero(lambda: _manifest(item, config))
    context = StageContext(config, step, console, stop, manifest, command=command)
    context.copies = replace(copies, beat=context.heart.beat)
    context.earlier_seconds = context.manifest.seconds
    if copies.keeps:
        if not item.resume:
            step.folder.clear()
        shown = context.redaction.tree(asdict(config))
        write_text(context.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(shown)))
    context.record()
    ranks.barrier()
    console.rule(f"{step.stage}" + (" (going on)" if item.resume else ""), align="left")
    try:
        summary = import_module(f"ruyi_rl.stages.{step.stage}").run(context)
        ranks.barrier()
    except Refusal:
        # Nothing has begun, so the mended command must find nothing in its way.
        if copies.keeps and not step.folder.holds_work(context.manifest):
            step.folder.clear()
        elif copies.keeps:
            context.record(INTERRUPTED)
        raise
    except KeyboardInterrupt:
        context.record(INTERRUPTED)
        raise Interrupted(
            f"{step.stage} was interrupted. {what_is_safe(step.folder)}\nGo on with: {command}", stop.status
        ) from None
    except Exception as error:
        raise _failed(context, error) from error
    summary = {
        "stage": step.stage,
        "run": str(context.folder),
        "seed": config.seed,
        **({"start_from": config.start_from} if config.start_from else {}),
        **summary,
        "seconds": round(context.seconds, 1),
    }
    if ranks.rank() == 0:
        write_json(context.folder / "summary.json", context.redaction.tree(summary))
        for left in [*context.folder.glob("error*.txt"), *context.folder.glob(STACKS.format("*"))]:
            left.unlink()
    context.mirror()
    context.record(DONE)
    return summary


def _report(config: RunConfig, console: Console, stop: StopSignal) -> None:
    """Brings the run's report up to what has happened, however the stage has ended."""
    if ranks.rank() == 0:
        with stop.gently() as section:
            section.finished = True  # a signal must not hide how the stage has ended
            keep_report(Path(config.run_dir), lambda line: console.print(line, style="yellow", markup=False))


def _failed(context: StageContext, error: Exception) -> StageFailed:
    """Records on the disk, if that takes it, that the stage failed; returns what the user must know."""
    refused = refused_write(error, context.folder)
    # What a stage or a disk has said needs no traceback.
    reason = str(error) if isinstance(error, StageFailed) else refused or last_line(error)
    if is_lost_rank(error):
        reason = lost_rank(reason, context.heart)
    reason, place = context.redaction.text(reason), ""
    with suppress(OSError):  # a full disk must not hide why the stage ended
        if refused is None and not isinstance(error, StageFailed):
            file = context.folder / ("error.txt" if ranks.rank() == 0 else f"error-rank{ranks.rank()}.txt")
            write_text(file, context.redaction.text("".join(traceback.format_exception(error))))
            place = f"The traceback is in {file}. "
        context.record(FAILED, message=" ".join(reason.split()))
    return StageFailed(
        f"{context.step.stage} failed: {reason}\n{place}{what_is_safe(context.step.folder)}\n"
        f"Once its cause is mended, go on with: {context.command}"
    )


def what_is_safe(folder: StageFolder) -> str:
    """One sentence on what an interrupted or failed stage has left on disk."""
    checkpoints = folder.checkpoints()
    manifest = folder.manifest()
    kept = sorted(manifest.progress) if manifest else []
    if checkpoints:
        step = checkpoints[-1].name.removeprefix("checkpoint-")
        return f"Safe on disk: {checkpoints[-1]} (after step {step}) and all stages before."
    if kept:
        return f"Safe on disk: {', '.join(kept)} in {folder.path / 'manifest.json'} and all stages before."
    return "This stage had saved nothing yet; the stages before it are safe."


def continuing_command(overrides: list[str], num_processes: int) -> str:
    """The command that goes on: the one that was typed, without `fresh`, which would start over.

    Args:
        num_processes: ranks that the command starts by itself; where it starts none, a launcher may have.
    """
    kept = [word for word in overrides if not word.lstrip("+").startswith("fresh=")]
    if launcher() is not None and num_processes == 1:
        return launched_command(kept)
    return shlex.join(["python", "-m", "ruyi_rl", *kept])


def last_line(error: BaseException) -> str:
    """The exception as the last line of its traceback, on one line."""
    return " ".join("".join(traceback.format_exception_only(error)).split())


def _manifest(item: Work, config: RunConfig) -> Manifest:
    step = item.step
    stored = step.folder.manifest() if item.resume else None
    if stored is not None:
        stored.status, stored.versions = RUNNING, versions()
        # Another config than the folder's was let pass where that keeps what it has made, see `pipeline.same_input`.
        stored.config_hash, stored.decided_by = step.config_hash, step.decided_by
        stored.world_size = step.folder.began_on() or ranks.world_size()
        stored.deepspeed = config.deepspeed.mode
        if step.stage in WITHOUT_FAMILY:
            # It measures what is there now; a training goes on from the weights that it began with.
            stored.input, stored.input_hash = str(step.input), fingerprint(step.input)
        return stored
    return Manifest(
        stage=step.stage,
        status=RUNNING,
        config_hash=step.config_hash,
        decided_by=step.decided_by,
        input=str(step.input) if step.input else None,
        input_hash=fingerprint(step.input) if step.input else None,
        seed=config.seed,
        world_size=ranks.world_size(),
        deepspeed=config.deepspeed.mode,
        versions=versions(),
        started=_now(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
