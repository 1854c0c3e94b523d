"""The memory estimate of a training stage from the configuration alone. Importing this module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruyi_rl.config import RunConfig
from ruyi_rl.family.shape import FamilyShape
from ruyi_rl.rollout.engine_memory import DEFAULT_LIMIT
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.training.batches import packed_prompts
from ruyi_rl.training.memory_estimate import (
    Engines,
    MemoryEstimate,
    cache_bytes,
    memory_estimate,
    pack_load,
    padded_load,
    rows_load,
    vllm_engines,
)
from ruyi_rl.training.options import GRPOOptions, SFTOptions

ROWS_ON_CPU = 256
"""Sequences that one engine on a CPU answers at once."""
TRL_DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_generations": 8,
    "max_completion_length": 256,
    "max_length": 1024,
    "gradient_checkpointing": True,
    "beta": 0.0,
    "fp16": False,
}
"""TRL's, of the fields that decide memory."""


@dataclass(frozen=True)
class Device:
    """Where a rank trains."""

    kind: str
    """`cuda` or `cpu`."""
    bytes: int | None = None
    """Of memory for this rank; None: not known."""


def estimate_stage(
    config: RunConfig,
    stage: str,
    shape: FamilyShape,
    mode: str,
    ranks: int,
    device: Device,
    longest_prompt: int | None = None,
    longest_row: int | None = None,
    options: SFTOptions | GRPOOptions | None = None,
    parameters: tuple[int, int] | None = None,
) -> MemoryEstimate:
    """What a rank will hold at most in `stage`.

    Args:
        stage: `sft`, `pretrain`, a twin of theirs, or `grpo`.
        mode: `off` or a key of `ZERO_STAGES`.
        ranks: of the run.
        longest_prompt: of the prompts, in tokens; None: as many as are allowed.
        longest_row: of SFT's rows, in tokens; None: as many as are allowed.
        options: the stage's block; None: the config's.
        parameters: numbers of those that are trained, and of all; None: as the shape says.
    """
    options = options or getattr(config, stage)
    given, exits = trainer_values(options), chosen_exits(options, shape)
    bits16 = bool(given.get("bf16", device.kind == "cuda" and not given["fp16"]) or given["fp16"])
    if stage == "grpo":
        prompt = longest_prompt or config.data.max_prompt_tokens
        load, engines = _packs(options, given, exits, prompt), Engines()
        if options.replay is None:
            engines = _engines(config, given, shape, exits, prompt + given["max_completion_length"], bits16, device)
    else:
        load = rows_load(exits, given["per_device_train_batch_size"] * (longest_row or given["max_length"]))
        engines = Engines()
    return memory_estimate(
        shape,
        mode,
        ranks,
        parameters or (shape.trained(exits, options.train_only), shape.parameters),
        load,
        bits16,
        bool(given["gradient_checkpointing"]),
        device.kind,
        engines,
        reference=stage == "grpo" and given["beta"] != 0.0,
    )


def trainer_values(options: SFTOptions | GRPOOptions) -> dict[str, Any]:
    """The fields of a block's trainer, with TRL's defaults for those that decide memory."""
    return TRL_DEFAULTS | {key: value for key, value in options.trainer.items() if value is not None}


def chosen_exits(options: SFTOptions | GRPOOptions, shape: FamilyShape) -> dict[str, int]:
    """Exit name -> position k of the exits that a block trains, shallowest first."""
    expanded = [name for name, blocks in shape.blocks.items() if blocks]
    names = options.exits or (expanded if options.train_only else shape.exits)
    return {name: k for name, k in shape.exits.items() if name in names}


def _packs(options: GRPOOptions, given: Mapping[str, Any], exits: Mapping[str, int], prompt: int):
    rows, length = given["per_device_train_batch_size"], given["max_completion_length"]
    if not options.packed:
        return padded_load(exits, rows, prompt + length)
    prompts = packed_prompts(rows, len(exits), given["num_generations"])
    return pack_load(exits, prompts * prompt, rows * length, options.token_budget)


def _engines(
    config: RunConfig,
    given: Mapping[str, Any],
    shape: FamilyShape,
    exits: Mapping[str, int],
    length: int,
    bits16: bool,
    device: Device,
) -> Engines:
    """Of the back end that makes completions in the training processes."""
    rollout, item = config.rollout, 2 if config.model.dtype != "float32" else 4
    if rollout.backend == "vllm_server":
        return Engines()
    # A rank's share of a generation batch: all micro-batches of a step, exit by exit.
    rows = math.ceil(given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] / len(exits))
    if rollout.backend == "transformers" or (rollout.backend == "auto" and vllm_problem()):
        # It generates on the trained weights, one exit after the other.
        rows = min(rows, rollout.batch_size)
        most = max(cache_bytes(shape, {name: k}, rows, length, 2 if bits16 else 4) for name, k in exits.items())
        return Engines(most, 0)
    if device.kind == "cuda":
        return vllm_engines(
            shape, exits, item, rollout.gpu_memory_utilization, device.bytes, rollout.sleep, rollout.tensor_parallel
        )
    rows = min(rows, ROWS_ON_CPU)
    limit = DEFAULT_LIMIT if rollout.kv_cache_gib is None else round(rollout.kv_cache_gib * 2**30)
    held = item * shape.trained(list(exits)) + cache_bytes(shape, exits, rows, length, item, limit)
    return Engines(held, held)
