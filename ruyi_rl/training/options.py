"""Options of the training stages, `evaluation` and `deepspeed`. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruyi_rl.data.options import DataOptions

ADVANTAGE_SCALES = ("group", "exit", "none", "pooled")
"""What `grpo.advantage.scale` may be."""
ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}
"""Mode -> ZeRO stage."""
DEEPSPEED_MODES = ("auto", "off", *ZERO_STAGES)
"""What `deepspeed.mode` may be."""

TRAIN_ONLY = ("expansion",)
"""What `train_only` may be, besides null."""
KEEP_BEST = ("exit", "mean")
"""What `keep_best` may be, besides null."""


@dataclass
class LossWeightOptions:
    """λ_k(t) of the joint loss `L = Σ λ_k(t)·CE_k` (Ruyi2 report, joint training)."""

    preset: str | None = "uniform"
    """`uniform` (1 each), `ee_llm` (last exit 1, the others decay from 0.5 to 0.1), `layerskip` (in proportion to the
    branch's depth, summing to 1), or None: `start` and `end` alone."""
    schedule: str | None = None
    """How λ moves from `start` to `end`: `constant`, `linear` or `cosine`. None: the preset's."""
    start: dict[str, float] = field(default_factory=dict)
    """Exit -> λ at the first step; overrides the preset's."""
    end: dict[str, float] = field(default_factory=dict)
    """Exit -> λ at the last step; overrides the preset's."""


@dataclass
class StageTwoOptions:
    """A second SFT stage on other rows, mixed with replayed rows of the first."""

    data: DataOptions | None = None
    """Rows of the second stage; None: no second stage."""
    replay: float = 0.2
    """Share of first-stage rows in the second stage's mix, 0 <= replay < 1."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """SFTConfig fields that differ from `sft.trainer` in the second stage."""


@dataclass
class SFTOptions:
    """The `sft` and `pretrain` blocks and their `expanded_` twins: joint multi-branch training."""

    exits: list[str] | None = None
    """Exits to train; None: all, or with `train_only` all that have expansion blocks. Parameters that only other exits
    use are frozen."""
    train_only: str | None = None
    """None: all that the exits run through. `expansion`: their expansion blocks, norms and heads alone, and only of
    exits that have such blocks; no other exit changes then."""
    packed: bool = True
    """Compute a batch without its padding. `false`: as it is padded, the reference. Goes with TRL's `trainer.packing`,
    which joins rows into longer ones, and then is exact with every attention implementation."""
    loss_weights: LossWeightOptions = field(default_factory=LossWeightOptions)
    """λ per exit."""
    stage_two: StageTwoOptions = field(default_factory=StageTwoOptions)
    """Second stage with replay."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Any field of TRL's SFTConfig."""


@dataclass
class AdvantageOptions:
    """How rewards become advantages."""

    scale: str = "group"
    """`group`: divided by the spread of the (prompt, exit) group; `exit`: by the exit's spread over the batch; `none`:
    only centred; `pooled`: centred and scaled over all exits of a prompt together (for comparison)."""


@dataclass
class GRPOOptions:
    """The `grpo` block."""

    exits: list[str] | None = None
    """Exits to train; None: all, or with `train_only` all that have expansion blocks. Parameters that only other exits
    use are frozen."""
    train_only: str | None = None
    """None: all that the exits run through. `expansion`: their expansion blocks, norms and heads alone, and only of
    exits that have such blocks; no other exit changes then."""
    advantage: AdvantageOptions = field(default_factory=AdvantageOptions)
    """How rewards become advantages."""
    exit_weights: dict[str, float] = field(default_factory=dict)
    """Exit -> weight of its loss; an exit that is not named weighs 1."""
    packed: bool = True
    """Compute log-probs and gradients in packs: each prompt once for all exits and samples, nothing padded. `false`:
    in padded rows, the reference."""
    token_budget: int | None = None
    """Tokens of a pack at most: a micro-batch of more is computed in several packs, to the same gradients, with the
    memory of one. None: a micro-batch (`grpo.trainer.per_device_train_batch_size` rows) is one pack. A pack is never
    less than a prompt with one completion of every exit. Without meaning for `packed=false`."""
    rollout_only: bool = False
    """Only draw and score the completions that the training would be given, and write them to
    `<run_dir>/rollouts/rollouts.jsonl`; nothing is trained."""
    replay: str | None = None
    """A file that `rollout_only` has written: train on its completions, without an engine."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Any field of TRL's GRPOConfig, but for `scale_rewards` (`advantage.scale`) and `use_vllm` (`rollout`)."""


@dataclass
class EvaluationOptions:
    """The `evaluation` block: how pass rates are measured on held-out rows after `sft`, around `grpo` and during both.

    `every` and `max_drop` change no result and no weight: a run may be continued with others.
    """

    problems: int = 256
    """Held-out problems; 0 switches evaluation off."""
    samples: int = 8
    """Samples a problem at `temperature`; greedy decoding is measured besides."""
    temperature: float = 1.0
    """Sampling temperature of the pass rate."""
    max_new_tokens: int | None = None
    """Limit of a completion; None: the `max_completion_length` of `grpo.trainer`."""
    every: int | None = None
    """Optimiser steps between measurements of the trained exits during `sft`, `expanded_sft` and `grpo`; the last
    step's is the one after the training. None: only before and after."""
    max_drop: float | None = None
    """How far an exit's pass rate may be below its best so far, the one before `grpo` included (0.05: 5 points); one
    that falls further stops the run. The standard error of a measurement, `pass_*_standard_error` in `summary.json`,
    should be well below it. None: no fall stops the run."""


@dataclass
class DeepSpeedOptions:
    """The `deepspeed` group."""

    mode: str = "auto"
    """`off`, `zero1`, `zero2`, `zero3`, `zero3_offload` (weights and optimiser states in the CPU's memory), or `auto`:
    off on one rank, ZeRO-2 on several."""
    config: dict[str, Any] = field(default_factory=dict)
    """DeepSpeed config keys that the stage's trainer does not decide (bucket sizes, offload …)."""
