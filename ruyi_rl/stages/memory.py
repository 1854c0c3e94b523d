"""`stage=memory`: how the training stages' batches are put together and what they take, before anything is loaded.

Importing this module imports no torch.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from ruyi_rl.config import RunConfig
from ruyi_rl.family.shape import FamilyShape
from ruyi_rl.pipeline import TWINS
from ruyi_rl.report.console import run_console
from ruyi_rl.report.memory import MemoryReport, memory_table, memory_warning
from ruyi_rl.training.deepspeed import sharding_mode
from ruyi_rl.training.stage_memory import Device, chosen_exits, estimate_stage, trainer_values
from ruyi_rl.validation.known_shape import expanded, known_shape

TRAINING = ("pretrain", "sft", "grpo")
"""Stages, or those that they do again, that an estimate is made of."""


def run(config: RunConfig) -> None:
    """Prints a table for each training stage; the longest rows that are allowed are assumed.

    Raises:
        Refusal: the base's config.json cannot be had.
    """
    console = run_console()
    for stage, report, what in reports(config):
        console.print(f"[bold]{stage}[/]: {what}", soft_wrap=True)
        console.print(memory_table(report))
        if warning := memory_warning(report):
            console.print(warning, style="yellow", markup=False, soft_wrap=True)


def reports(config: RunConfig) -> Iterator[tuple[str, MemoryReport, str]]:
    """(stage, its estimate, its batch in words) of each training stage of `stages`, in order."""
    shape, ranks, own = known_shape(config), _ranks(config), device(config)
    mode = sharding_mode(config.deepspeed, ranks)
    for stage in config.stages:
        if stage == "expand":
            shape = expanded(shape, config.expand.exit, config.expand.blocks)
        if TWINS.get(stage, stage) in TRAINING:
            given = trainer_values(getattr(config, stage))
            estimate = estimate_stage(config, stage, shape, mode, ranks, own)
            report = MemoryReport(estimate, own.kind, own.bytes, bool(given["gradient_checkpointing"]))
            yield stage, report, f"{_batch(config, stage, given, shape, ranks)}, deepspeed={mode}"


def device(config: RunConfig) -> Device:
    """What `memory` describes, or what this machine has."""
    own, kind = gpu_bytes(), config.memory.device
    if kind == "auto":
        kind = "cuda" if own or config.model.base is not None else "cpu"
    if config.memory.gigabytes is not None:
        return Device(kind, round(config.memory.gigabytes * 10**9))
    return Device(kind, own if kind == "cuda" else psutil.virtual_memory().total // _ranks(config))


def gpu_bytes() -> int | None:
    """Memory of this machine's smallest GPU, from its driver; None where there is none."""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return min((int(mebibytes) * 2**20 for mebibytes in told if mebibytes.isdigit()), default=None)


def _batch(config: RunConfig, stage: str, given: Mapping[str, Any], shape: FamilyShape, ranks: int) -> str:
    size, steps, samples = (
        given[key] for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations")
    )
    rows, ends = size * steps * ranks, f"{ranks} ranks" if ranks > 1 else "one rank"
    by = f"{size} rows × {steps} micro-batch{'es' if steps > 1 else ''} × {ends}"
    if stage != "grpo":
        return f"{by} = {rows:,} rows a step, of at most {given['max_length']:,} tokens"
    exits = len(chosen_exits(config.grpo, shape))
    return f"{by} = {rows:,} completions a step: {rows // (exits * samples)} prompts × {exits} exits × G {samples}"


def _ranks(config: RunConfig) -> int:
    return int(os.environ.get("WORLD_SIZE", config.num_processes))
