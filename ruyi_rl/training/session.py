"""Runs a trainer inside a stage: callbacks, resume, interruption, and the saved family at its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ruyi_rl import ranks
from ruyi_rl.checkpoint_folder import flush_files
from ruyi_rl.execution import StageContext
from ruyi_rl.ownership import require_own
from ruyi_rl.report.html.upkeep import Upkeep
from ruyi_rl.report.progress import TrainingProgress
from ruyi_rl.signals import StepAbandoned
from ruyi_rl.training.callbacks import (
    Beats,
    MetricsFile,
    NoLastCheckpoint,
    OnSave,
    ReportRefresh,
    RunStateOf,
    StopOnSignal,
)
from ruyi_rl.training.checkpoints import newest_whole
from ruyi_rl.training.phases import phase_metrics
from ruyi_rl.training.trackers import tracked
from ruyi_rl.watchdog import watched

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
"""What accelerate sets where DeepSpeed trains on one rank without a launcher."""


def train(
    trainer: Trainer,
    context: StageContext,
    exits: Sequence[str],
    metric: str,
    save_to: Path,
    phase: int = 1,
    description: str | None = None,
    watching: Sequence[TrainerCallback] = (),
) -> None:
    """Trains from the newest whole checkpoint in the trainer's output folder and saves the family.

    Args:
        trainer: a family's, built, not started.
        exits: names shown in the progress.
        metric: shown for each exit, from `<exit>/<metric>`.
        save_to: folder for the trained family and its tokenizer.
        phase: number of this training within the stage.
        description: for the progress line; None: the stage's name.
        watching: called after all other callbacks, when a resumed training has its state.

    Raises:
        StopNow: a signal came before the last step's end; a checkpoint of the last whole step is saved.
    """
    progress = TrainingProgress(context.console, description or context.step.stage, exits, metric)
    for chatty in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(chatty)

    def say(line: str) -> None:
        context.console.print(line, markup=False, soft_wrap=True)

    trainer.copies = context.copies
    with watched(context):
        checkpoint = newest_whole(Path(trainer.args.output_dir), trainer.copies, say, context.heart.beat)
    if checkpoint is not None:
        require_own(checkpoint)
        say(f"going on from {checkpoint}")
        for line in trainer.changes(checkpoint):
            say(line)
    metrics, stop = MetricsFile(context.folder / "metrics.jsonl", phase), StopOnSignal(context.stop)
    trainer.check_stop = stop.check
    trainer.max_skipped_updates, trainer.announce = context.config.max_skipped_updates, say
    going_on = RunStateOf(trainer, checkpoint)
    ours = (metrics, progress, stop, NoLastCheckpoint(), OnSave(context.record), going_on, Beats(context.heart))
    refresh = ReportRefresh(Upkeep(context.folder.parent, say))
    for callback in (*ours, *watching, refresh):
        trainer.add_callback(callback)
    begun = 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))
    try:
        trainer.phases.listener = context.heart.enter
        with tracked(trainer, context, phase, begun), watched(context), context.stop.gently() as section:
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            except StepAbandoned:
                trainer.save_last_step()
            section.finished = trainer.state.global_step >= trainer.state.max_steps
            if section.finished:
                with trainer.phases("save"):
                    # TRL switches it off for its own passes; whoever loads the family generates with it.
                    trainer.model.config.use_cache = True
                    trainer.save_model(str(save_to))
                    if context.copies.keeps:
                        flush_files(save_to)  # before the manifest says that it is there
                    ranks.barrier()
            if ranks.rank() == 0:
                metrics.add_to_last(phase_metrics(trainer.phases.take()))
            if section.finished:
                context.mirror()
    finally:
        progress.close()
    release(trainer)


def release(trainer: Trainer) -> None:
    """Frees the engines' buffers, which outlive the trainer, before the next model is loaded."""
    for engine in (getattr(trainer, "deepspeed", None), getattr(trainer, "ref_model", None)):
        if hasattr(engine, "destroy"):
            engine.destroy()
    trainer.accelerator.free_memory()


def enter_deepspeed(config: dict | None) -> None:
    """Lets DeepSpeed know the run's ranks, before arguments and model are made; nothing without a configuration.

    Otherwise ZeRO-3 on a CPU counts one rank when the model is loaded, and one rank without a launcher looks for MPI.
    """
    if config is None:
        return
    import deepspeed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if ranks.world_size() == 1:
        os.environ.setdefault("LOCAL_RANK", "0")
        if not torch.distributed.is_initialized():  # vLLM's engines may have made the group
            torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(backend, verbose=False)


def leave_deepspeed() -> None:
    """Lets the next model be loaded whole, and trained as its own arguments say.

    A ZeRO-3 configuration that is still known would shard it; accelerate leaves a variable by which each later trainer
    of this process, and of those that it starts, would be under DeepSpeed. With `enter_deepspeed`'s LOCAL_RANK, and
    what accelerate makes of it, a process that this one starts would take itself for a launcher's rank.
    """
    unset_hf_deepspeed_config()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    if "MASTER_ADDR" not in os.environ:  # no launcher has set them
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
