"""The trackers' runs of a training (`report_to`): named, grouped and configured like ours, and gone on with like ours.

transformers' callbacks log to them; here is what these leave to chance: which run a training belongs to.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from transformers import Trainer
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ruyi_rl import ranks
from ruyi_rl.execution import StageContext
from ruyi_rl.failure import StageFailed
from ruyi_rl.validation.trackers import wandb_mode

PROJECT = "ruyi_rl"
"""Where a tracker keeps the runs, unless `project` or, for Weights & Biases, WANDB_PROJECT says otherwise."""
UNSET_PROJECT = "huggingface"
"""transformers' default of `project`."""
STEP = "train/global_step"
"""Under what transformers' callbacks log the step."""

Callback = TypeVar("Callback")


@dataclass(frozen=True)
class TrackedRun:
    """One training as its trackers know it."""

    name: str
    """`tiny-arithmetic/grpo`"""
    group: str
    """The name of our run, whose stages belong together."""
    identity: str
    """The same for all attempts at this training, another one after `fresh=true`."""
    project: str
    config: dict[str, Any]
    """Resolved, secrets hidden."""
    folder: Path
    """Of the stage."""
    part: str
    """Sub-folder of a further training of the same stage, else ""."""
    step: int
    """The training goes on after it; 0 where it begins."""


@contextmanager
def tracked(trainer: Trainer, context: StageContext, phase: int, step: int) -> Iterator[None]:
    """Context in which the trainer's trackers, if it has any, log to this training's own runs; ends these.

    Args:
        phase: number of the training within the stage.
        step: of the checkpoint that it goes on from; 0: none.

    Raises:
        StageFailed: a tracker does not start.
    """
    with ExitStack() as opened:
        if ranks.rank() == 0:
            run = tracked_run(trainer, context, phase, step)
            for kind, open_run in (
                (TensorBoardCallback, _tensorboard),
                (WandbCallback, _wandb),
                (TrackioCallback, _trackio),
            ):
                callback = _callback(trainer, kind)
                if callback is not None:
                    place = opened.enter_context(open_run(callback, run, trainer.args))
                    context.console.print(f"logging to {place}", style="dim", markup=False, soft_wrap=True)
        yield


def tracked_run(trainer: Trainer, context: StageContext, phase: int, step: int) -> TrackedRun:
    """The run that a training's trackers are told of."""
    config, stage = context.config, context.step.stage
    part = f"stage_{phase}" if phase > 1 else ""
    place = f"{Path(config.run_dir).resolve()} {stage} {phase} {context.manifest.started}"
    given = trainer.args.project
    values = {**asdict(config), "trainer": trainer.args.to_dict()}
    return TrackedRun(
        name=trainer.args.run_name or "/".join(filter(None, (config.name, stage, part))),
        group=config.name,
        identity=hashlib.sha256(place.encode()).hexdigest()[:16],
        project=given if given != UNSET_PROJECT else PROJECT,
        config=context.redaction.tree(values),
        folder=context.folder,
        part=part,
        step=step,
    )


@contextmanager
def _tensorboard(callback: TensorBoardCallback, run: TrackedRun, args: Any) -> Iterator[str]:
    """One folder for all attempts; what comes after the checkpoint will come again, and takes the old one's place."""
    from torch.utils.tensorboard import SummaryWriter

    asked = callback.logging_dir  # TENSORBOARD_LOGGING_DIR
    folder = Path(asked) / run.name if asked else run.folder / "tensorboard" / run.part
    callback.tb_writer = SummaryWriter(str(folder), purge_step=run.step + 1 if run.step else None)
    callback.tb_writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(OmegaConf.create(run.config))}```")
    try:
        yield f"TensorBoard in {folder}: tensorboard --logdir {asked or run.folder.parent}"
    finally:
        if callback.tb_writer is not None:
            callback.tb_writer.close()


@contextmanager
def _wandb(callback: WandbCallback, run: TrackedRun, args: Any) -> Iterator[str]:
    """Where it is offline, the attempts' folders have one id, under which `wandb sync` puts them together."""
    import wandb

    folder = os.environ.get("WANDB_DIR") or str(run.folder.parent)
    project = os.environ.get("WANDB_PROJECT") or run.project
    wandb.setup(wandb.Settings(show_info=False, show_warnings=False))  # offline it warns at every checkpoint
    offline = wandb_mode() != "online"
    try:
        opened = wandb.init(
            project=project,
            name=run.name,
            id=run.identity,
            group=run.group,
            job_type=run.folder.name,
            config=run.config,
            dir=folder,
            resume=None if offline else "allow",
            # What it would tell of this machine includes the command line, secrets and all.
            settings=wandb.Settings(show_info=False, show_warnings=False, x_disable_meta=True),
        )
    except (wandb.errors.Error, OSError) as error:
        told = " ".join(str(error).split())
        raise StageFailed(
            f"Weights & Biases did not start: {told}. WANDB_MODE=offline logs to {folder} alone"
        ) from error
    opened.define_metric(STEP)
    opened.define_metric("*", step_metric=STEP, step_sync=True)
    callback._initialized = True  # its own set-up would store the arguments as they are
    failed = True
    try:
        yield f"Weights & Biases, project {project}: {Path(opened.dir).parent if offline else opened.url}"
        failed = False
    finally:
        opened.finish(exit_code=int(failed))
        callback._initialized = False


@contextmanager
def _trackio(callback: TrackioCallback, run: TrackedRun, args: Any) -> Iterator[str]:
    import trackio

    with redirect_stdout(io.StringIO()):
        trackio.init(
            project=run.project,
            name=run.name,
            group=run.group,
            config=run.config,
            space_id=args.trackio_space_id,
            bucket_id=args.trackio_bucket_id,
            private=args.hub_private_repo,
            # Another run of this name is another training: its folder was cleared.
            resume="allow" if run.step else "never",
            embed=False,
        )
    callback._space_id = trackio.context_vars.current_space_id.get()
    callback._initialized = True
    try:
        yield f"trackio: trackio show --project {run.project}"
    finally:
        if callback._initialized:  # else the callback has ended it, as after a whole training
            with redirect_stdout(io.StringIO()):
                trackio.finish()
            callback._initialized = False


def _callback(trainer: Trainer, kind: type[Callback]) -> Callback | None:
    return next((each for each in trainer.callback_handler.callbacks if isinstance(each, kind)), None)
