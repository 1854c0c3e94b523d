"""Which stage needs which, what is done already, and running the rest. Importing this module imports no torch."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.benchmarks.files import evaluation_files
from ruyi_rl.config import RunConfig
from ruyi_rl.ownership import others_may_write
from ruyi_rl.redaction import without_secrets
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.run_folder import (
    DONE,
    Manifest,
    StageFolder,
    config_hash,
    differences,
    fingerprint,
    flat,
    locked,
    require_writable,
)

ORDER = ("init", "pretrain", "sft", "expand", "expanded_pretrain", "expanded_sft", "grpo", "compress", "eval")
"""The stages of this version, in the order in which they make sense."""
TWINS = {"expanded_pretrain": "pretrain", "expanded_sft": "sft"}
"""Stage -> the stage that it does again after `expand`."""
WITHOUT_FAMILY = ("eval",)
"""Stages that leave no family, so that no other can start from them."""
REWARD_TOOLS = ("new_reward", "check_reward")
"""Tools for the author of a reward: they need no family."""
TOOLS = ("generate", "serve", "export", "report", "compare", "memory", *REWARD_TOOLS)
"""What `stage` may name besides: they leave nothing for another stage; the others read a finished family
(`ruyi_rl.tools`)."""

DECIDED_BY = {
    "init": ("model", "seed"),
    "pretrain": ("data", "pretrain", "seed"),
    "sft": ("data", "sft", "seed"),
    "expand": ("expand", "seed"),
    "expanded_pretrain": ("data", "expanded_pretrain", "seed"),
    "expanded_sft": ("data", "expanded_sft", "seed"),
    "grpo": ("data", "grpo", "reward", "rollout", "evaluation", "seed"),
    "compress": ("data", "compress", "reward", "rollout", "evaluation", "seed"),
    "eval": ("data", "eval", "reward", "rollout", "evaluation", "seed"),
}
"""Stage -> the blocks of the config that decide its result, besides what decides its input."""

UNDECIDING = frozenset(
    (
        *("output_dir", "run_name", "report_to", "project", "trackio_space_id", "disable_tqdm", "log_level"),
        *("logging_dir", "logging_steps", "logging_first_step", "logging_strategy"),
        *("log_completions", "num_completions_to_print", "log_unique_prompts"),
        *("save_steps", "save_strategy", "save_total_limit"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataset_num_proc", "ddp_timeout"),
    )
)
"""Trainer fields that change what is shown or kept, not what is learnt: changing one never calls for a new run."""

DECIDING_ROLLOUTS = frozenset(("rollout.backend", "rollout.engine"))
"""Keys of `rollout` that may decide a result: the others say where and how fast completions are made, not which."""

MEMORY = frozenset(("grpo.token_budget", "eval.harness.batch_size"))
"""Keys that decide the memory alone: a run that died of it goes on with a smaller one."""

WATCHING = frozenset(("evaluation.every", "evaluation.max_drop"))
"""Keys of `evaluation` that say when a training is looked at, and when it is given up."""

OPERATING_REWARDS = frozenset(("timeout", "workers", "memory_gb", "on_error", "max_failure_share"))
"""Keys of a reward function that say how it is run and when a run is given up, not what it gives."""

ROLLOUTS_FOLDER = "rollouts"
"""Folder of `stage=grpo grpo.rollout_only=true` in the run's, so that the training's own stays as it is."""


@dataclass(frozen=True)
class Step:
    """One stage of this run and the folder it belongs in."""

    stage: str
    folder: StageFolder
    input: Path | None
    """Folder of the family it starts from; None for `init`."""
    decided_by: dict[str, Any]

    @property
    def config_hash(self) -> str:
        return config_hash(self.decided_by)


@dataclass(frozen=True)
class Work:
    """A step that has to run."""

    step: Step
    resume: bool
    """Go on from what the folder holds; otherwise the folder is cleared first."""


def chain(config: RunConfig) -> list[str]:
    """The stages that the asked one stands on, in order, itself last.

    Raises:
        Refusal: unknown stage, or an order that cannot run.
    """
    check_stages(config)
    asked = config.stage.name
    if asked not in (*ORDER, "pipeline"):
        raise Refusal("stage", f"no stage {asked!r}", nearest(asked, (*ORDER, "pipeline", *TOOLS)))
    if config.start_from is not None:
        if asked in ("init", "pipeline"):
            raise Refusal("start_from", f"stage={asked} does not start from a family", "a stage after init")
        return [asked]
    if asked == "pipeline":
        stages = list(config.stages)
    elif asked in config.stages:
        stages = config.stages[: config.stages.index(asked) + 1]
    else:
        stages = [stage for stage in config.stages if ORDER.index(stage) < ORDER.index(asked)] + [asked]
    if not stages or stages[0] != "init":
        raise Refusal("stages", f"{stages} has no family to begin with", "begin with init, or give start_from=<folder>")
    return stages


def check_stages(config: RunConfig) -> None:
    """Refuse `stages` that hold an unknown name, or one twice, or one after a stage that leaves no family."""
    for stage in config.stages:
        if stage not in ORDER:
            raise Refusal("stages", f"no stage {stage!r}", nearest(stage, ORDER))
    for stage in config.stages:
        if config.stages.count(stage) > 1:
            twin = next((name for name, of in TWINS.items() if of == stage), None)
            hint = f"after expand it is {twin}" if twin else "each stage has one folder in the run"
            raise Refusal("stages", f"{stage} is named twice in {config.stages}", hint)
    for stage in config.stages[:-1]:
        if stage in WITHOUT_FAMILY:
            raise Refusal("stages", f"{stage} leaves no family for the next one in {config.stages}", f"{stage} last")


def deciding(config: dict[str, Any], stage: str) -> dict[str, Any]:
    """Config key -> value of all that decides `stage` by itself, flat and without secrets.

    Args:
        config: the config as nested dicts.
    """
    leaves = flat({block: config[block] for block in DECIDED_BY[stage]})
    return without_secrets({key: value for key, value in leaves.items() if decides(key)})


def decides(key: str) -> bool:
    """Whether a config key, dotted, may decide a stage's result."""
    parts = key.split(".")
    if parts[0] == "rollout":
        return ".".join(parts[:2]) in DECIDING_ROLLOUTS
    if parts[:2] == ["reward", "functions"] and len(parts) == 4:
        return parts[3] not in OPERATING_REWARDS
    if key in MEMORY:
        return False
    if key in WATCHING:
        return False
    return not ("trainer" in parts and parts[-1] in UNDECIDING)


def reads_reward(config: RunConfig, stage: str) -> bool:
    """Whether a stage cannot do its work without the `reward` group; sft measures only where it can."""
    own = stage == "compress" or (stage == "eval" and not config.eval.benchmarks)
    return stage == "grpo" or (own and config.evaluation.problems > 0)


def steps(config: RunConfig) -> list[Step]:
    """The steps of this run, the asked stage last."""
    stages = chain(config)
    run = Path(config.run_dir)
    tree = asdict(config)
    found: list[Step] = []
    decided_by: dict[str, Any] = {}
    before: Path | None = None
    if config.start_from is not None:
        before = Path(config.start_from)
        if not (before / "config.json").is_file():
            raise Refusal("start_from", f"no family in {before}", "a folder with config.json and weights")
        own = run / stages[-1]
        if before.resolve().is_relative_to(own.resolve()):
            raise Refusal("start_from", f"{before} lies in {own}, which this stage writes anew", "another name")
        decided_by = {"start_from": fingerprint(before)}
    for stage in stages:
        decided_by = {**decided_by, **deciding(tree, stage)}
        if stage == "eval":
            decided_by["files"] = evaluation_files(config)
        found.append(Step(stage, StageFolder(run / stage), before, decided_by))
        before = run / stage
    if config.stage.name == "grpo" and config.grpo.rollout_only:
        found[-1] = replace(found[-1], folder=StageFolder(run / ROLLOUTS_FOLDER))
    return found


def pending(steps: list[Step], config: RunConfig) -> list[Work]:
    """What has to run, in order; nothing where the asked stage is done with this config.

    Raises:
        Refusal: a folder in the way was made with another config (of several, the earliest stage's is named: it has
            to be mended first), or a training in it cannot go on with this number of ranks.
    """
    from ruyi_rl.validation.begun_training import require_ranks  # which imports this module

    work: list[Work] = []
    in_the_way: Refusal | None = None
    for step in reversed(steps):
        asked = step is steps[-1] or config.stage.name == "pipeline"
        manifest = step.folder.manifest()
        if config.fresh and asked:
            work.insert(0, Work(step, resume=False))
        elif manifest is None:
            if step.folder.path.is_dir() and any(step.folder.path.iterdir()):
                raise Refusal(
                    "run_dir", f"{step.folder.path} holds files that no stage wrote", "another name or run_dir"
                )
            work.insert(0, Work(step, resume=False))
        elif manifest.config_hash != step.config_hash:
            again = step.stage in WITHOUT_FAMILY and same_input(step, steps, manifest)
            if step.folder.holds_work(manifest) and not again:
                in_the_way = another_config(step, manifest, config)
            work.insert(0, Work(step, resume=again))
        elif step.stage in WITHOUT_FAMILY and another_family(step, manifest):
            work.insert(0, Work(step, resume=True))
        elif manifest.status == DONE and (step.stage in WITHOUT_FAMILY or step.folder.holds_family()):
            break
        else:
            work.insert(0, Work(step, resume=manifest.status != DONE))
    if in_the_way is not None:
        raise in_the_way
    require_ranks(work, config)
    return work


def same_input(step: Step, steps: list[Step], manifest: Manifest) -> bool:
    """Whether a stage's folder was made from the family that it would start from now, whatever else was asked of it.

    What leaves no family may then be asked for more in the same folder: it keeps each part with what decided it.
    """
    if "start_from" in step.decided_by:
        return manifest.decided_by.get("start_from") == step.decided_by["start_from"]
    before = {key for each in steps[-2:-1] for key in each.decided_by}
    same = all(manifest.decided_by.get(key) == step.decided_by.get(key) for key in before)
    return same and Path(manifest.input or "").name == step.input.name


def another_family(step: Step, manifest: Manifest) -> bool:
    """Whether the family that a stage's folder was made from has been begun anew since; one that is gone has not."""
    there = StageFolder(step.input).manifest() is not None or (step.input / "config.json").is_file()
    return there and manifest.input_hash != fingerprint(step.input)


def another_config(step: Step, manifest: Manifest, config: RunConfig) -> Refusal:
    """The refusal of a folder whose config differs; names the keys and how to mend it."""
    changed = differences(manifest.decided_by, step.decided_by)
    shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
    fresh = "fresh=true" if config.stage.name in (step.stage, "pipeline") else f"stage={step.stage} fresh=true"
    return Refusal(
        "name",
        f"{step.folder.path} was made with another config: {shown}",
        f"{fresh} to start it over, or another name",
    )


def run_stages(config: RunConfig, overrides: list[str]) -> None:
    """Runs the asked stage and before it what it needs; prints the asked stage's result where it is done already.

    Args:
        config: the whole, valid configuration.
        overrides: the command line's arguments as typed, for the command that continues.

    Raises:
        Refusal: the run cannot start.
        StageFailed: a stage raised.
        Interrupted: SIGINT or SIGTERM came.
    """
    from ruyi_rl.report.console import run_console
    from ruyi_rl.report.tables import already_done

    run = Path(config.run_dir)
    found = steps(config)
    console = run_console()
    if ranks.host_count() == 1:
        # Every rank reads the folders before any rank writes: connected() below is where they meet.
        work = pending(found, config)
        if not work:
            already_done(console, found[-1].stage, found[-1].folder)
            return
    require_writable(run)
    if others_may_write(run):
        console.print(f"every user of this machine can write in {run}: chmod o-w {run}", style="yellow", markup=False)

    from ruyi_rl.benchmarks.split import under
    from ruyi_rl.execution import execute
    from ruyi_rl.hosts import agree, meet, pending_on_rank_zero
    from ruyi_rl.rewards.scoring import check_start
    from ruyi_rl.stages.memory import announce

    with ranks.connected(), ExitStack() as held:
        copies = meet(run)
        ranks.everywhere(lambda: held.enter_context(locked(run, console.print)) if copies.keeps else None)
        found = agree(copies, run, found, config.fresh)
        # Read again under the lock: another process may have finished the work in between. Rank 0's answer holds.
        work = pending_on_rank_zero(found, config)
        if any(reads_reward(config, item.step.stage) for item in work):
            check_start(config.reward)  # before the hours of the stages that it stands on
        if any(item.step.stage == "eval" for item in work):
            for name, benchmark in config.eval.benchmarks.items():
                with under(f"eval.benchmarks.{name}"):
                    check_start(benchmark.reward)
        if ranks.rank() == 0:
            announce(console, config, [step.stage for step in found], {item.step.stage for item in work})
        execute(work, config, overrides, console, copies)
        if not work:
            already_done(console, found[-1].stage, found[-1].folder)
