"""The root of the configuration. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruyi_rl.data.options import DataOptions
from ruyi_rl.family.options import CompressOptions, ExpandOptions, ModelOptions
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.stages.options import (
    CheckRewardOptions,
    CompareOptions,
    EvalOptions,
    ExportOptions,
    GenerateOptions,
    MemoryOptions,
    NewRewardOptions,
    ServeOptions,
)
from ruyi_rl.training.options import DeepSpeedOptions, EvaluationOptions, GRPOOptions, SFTOptions


@dataclass
class StageOptions:
    """The `stage` group."""

    name: str = "overview"
    """The stage to run; the stages it needs run before it where they are missing. `pipeline` runs all of `stages`;
    `overview` runs nothing and prints what there is."""


@dataclass
class RunConfig:
    """Everything a run is decided by."""

    stage: StageOptions = field(default_factory=StageOptions)
    """What to run."""
    name: str = "???"
    """Name of the run. Fixed by the config, so that the same command finds its run again."""
    run_dir: str = "runs/${name}"
    """Folder of the run: one sub-folder a stage."""
    seed: int = 1
    """Decides every random choice of the run."""
    fresh: bool = False
    """Start the asked stage over, even where it is done or half done."""
    start_from: str | None = None
    """Folder of a family that the asked stage starts from, in place of the stage before it."""
    keep_best: str | None = None
    """Besides the trained family, keep in `<stage>/best/` the one of the evaluation (`evaluation.every`) at which each
    exit had its highest held-out pass rate so far (`exit`), or at which the mean over the exits was highest (`mean`).
    Decides no result."""
    launch: bool = False
    """stage=serve: start the server in place of this process, rather than only print its command."""
    push_to: str | None = None
    """stage=export: hub id, such as me/model, that the exported folder is uploaded to; of several exits each goes to an
    id of its own, me/model-<exit>. A repository that is not there yet is made private. Decides no result."""
    runs: Any = None
    """stage=compare: a sweep's folder, run folders, or patterns of them: one, or a list. Decides no result."""
    num_processes: int = 1
    """Ranks to start on this machine; leave it at 1 under torchrun or another launcher."""
    watchdog_minutes: float | None = 30.0
    """In a training or an evaluation: minutes after which a run ends in which no rank gets on any more, be it by a
    token, a rewarded completion or a micro-step; every rank's stack and phase are printed. To be longer than any single
    step that says nothing meanwhile, such as writing a file of a checkpoint. None or 0: never."""
    stages: list[str] = field(default_factory=lambda: ["init", "sft", "grpo"])
    """The order of the pipeline: a stage starts from the family that the one before it left."""
    max_skipped_updates: int = 5
    """A training's updates whose loss or gradient is not finite are skipped; more than this many in a row stop the run.
    0: the first one does."""
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    reward: RewardOptions = field(default_factory=RewardOptions)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    deepspeed: DeepSpeedOptions = field(default_factory=DeepSpeedOptions)
    pretrain: SFTOptions = field(default_factory=SFTOptions)
    sft: SFTOptions = field(default_factory=SFTOptions)
    expand: ExpandOptions = field(default_factory=ExpandOptions)
    expanded_pretrain: SFTOptions = field(default_factory=SFTOptions)
    expanded_sft: SFTOptions = field(default_factory=SFTOptions)
    grpo: GRPOOptions = field(default_factory=GRPOOptions)
    compress: CompressOptions = field(default_factory=CompressOptions)
    eval: EvalOptions = field(default_factory=EvalOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    generate: GenerateOptions = field(default_factory=GenerateOptions)
    serve: ServeOptions = field(default_factory=ServeOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    new_reward: NewRewardOptions = field(default_factory=NewRewardOptions)
    check_reward: CheckRewardOptions = field(default_factory=CheckRewardOptions)
    compare: CompareOptions = field(default_factory=CompareOptions)
