"""Runs the stages that have to run and records how each one ended."""

from __future__ import annotations

import os
import shlex
import time
import traceback
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.failure import Interrupted, StageFailed
from ruyi_rl.pipeline import Step, Work
from ruyi_rl.refusal import Refusal
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
from ruyi_rl.signals import StopSignal


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

    def record(self, status: str = RUNNING, message: str | None = None) -> None:
        """Writes the manifest (rank 0)."""
        self.manifest.status, self.manifest.message, self.manifest.seconds = status, message, round(self.seconds, 3)
        self.manifest.finished = None if status == RUNNING else _now()
        if ranks.rank() == 0:
            self.step.folder.write_manifest(self.manifest)


def execute(work: list[Work], config: RunConfig, overrides: list[str], console: Console) -> None:
    """Runs `work` in order; every rank calls it with the same list.

    Raises:
        Refusal, StageFailed, Interrupted: see `ruyi_rl.pipeline.run_stages`.
    """
    if not work:
        return
    with console.status("loading the libraries"):
        quiet_libraries()
    command = continuing_command(overrides, config.num_processes)
    with StopSignal(lambda line: console.print(line, style="yellow")) as stop:
        for item in work:
            summary = run_stage(item, config, console, stop, command)
            print_result(console, summary, last=item is work[-1])


def run_stage(item: Work, config: RunConfig, console: Console, stop: StopSignal, command: str) -> dict[str, Any]:
    """Runs one stage in its folder, leaving a manifest that says how it ended; returns its summary."""
    step = item.step
    context = StageContext(config, step, console, stop, _manifest(item, config))
    context.earlier_seconds = context.manifest.seconds
    if ranks.rank() == 0:
        if not item.resume:
            step.folder.clear()
        write_text(context.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    context.record()
    ranks.barrier()
    console.rule(f"{step.stage}" + (" (going on)" if item.resume else ""), align="left")
    try:
        summary = import_module(f"ruyi_rl.stages.{step.stage}").run(context)
        ranks.barrier()
    except Refusal:
        # Nothing has begun, so the mended command must find nothing in its way.
        if ranks.rank() == 0 and not step.folder.holds_work(context.manifest):
            step.folder.clear()
        elif ranks.rank() == 0:
            context.record(INTERRUPTED)
        raise
    except KeyboardInterrupt:
        context.record(INTERRUPTED)
        raise Interrupted(
            f"{step.stage} was interrupted. {what_is_safe(step.folder)}\nGo on with: {command}", stop.status
        ) from None
    except StageFailed as error:
        # The stage itself has said what happened: a traceback would add nothing.
        context.record(FAILED, message=" ".join(str(error).split()))
        raise StageFailed(
            f"{step.stage} failed: {error}\n{what_is_safe(step.folder)}\n"
            f"Once its cause is mended, go on with: {command}"
        ) from error
    except Exception as error:
        rank = ranks.rank()
        file = context.folder / ("error.txt" if rank == 0 else f"error-rank{rank}.txt")
        write_text(file, traceback.format_exc())
        context.record(FAILED, message=last_line(error))
        raise StageFailed(
            f"{step.stage} failed: {last_line(error)}\nThe traceback is in {file}. {what_is_safe(step.folder)}\n"
            f"Once its cause is mended, go on with: {command}"
        ) from error
    summary = {
        "stage": step.stage,
        "run": str(context.folder),
        "seed": config.seed,
        **({"start_from": config.start_from} if config.start_from else {}),
        **summary,
        "seconds": round(context.seconds, 1),
    }
    if ranks.rank() == 0:
        write_json(context.folder / "summary.json", summary)
        for left in context.folder.glob("error*.txt"):
            left.unlink()
    context.record(DONE)
    return summary


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
        num_processes: ranks that the command starts by itself; where it starts none, torchrun may have.
    """
    kept = [word for word in overrides if not word.lstrip("+").startswith("fresh=")]
    words = ["python", "-m", "ruyi_rl", *kept]
    if num_processes == 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        words = ["torchrun", f"--nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', '1')}", *words[1:]]
    return shlex.join(words)


def last_line(error: BaseException) -> str:
    """The exception as the last line of its traceback, on one line."""
    return " ".join("".join(traceback.format_exception_only(error)).split())


def _manifest(item: Work, config: RunConfig) -> Manifest:
    step = item.step
    stored = step.folder.manifest() if item.resume else None
    if stored is not None:
        stored.status, stored.versions = RUNNING, versions()
        stored.world_size, stored.deepspeed = ranks.world_size(), config.deepspeed.mode
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
