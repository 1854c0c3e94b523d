"""`stage=memory`: how the training stages' batches are put together and what they take, before anything is loaded.

Importing this module imports no torch.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import psutil
from rich.console import Console

from ruyi_rl.config import RunConfig
from ruyi_rl.family.shape import FamilyShape
from ruyi_rl.pipeline import TWINS
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.console import run_console
from ruyi_rl.report.memory import MemoryReport, memory_line, memory_table, memory_warning
from ruyi_rl.training.deepspeed import sharding_mode
from ruyi_rl.training.stage_memory import Device, chosen_exits, estimate_stage, trainer_values
from ruyi_rl.validation.known_shape import expanded, known_shape

SMALL = 0.1
"""Share of a device under which an estimate is one line."""
TRAINING = ("pretrain", "sft", "grpo")
"""Stages, or those that they do again, that an estimate is made of."""


def run(config: RunConfig) -> None:
    """Prints a table for each training stage; the longest rows that are allowed are assumed.

    Raises:
        Refusal: there is no training stage, or the base's config.json cannot be had.
    """
    console = run_console()
    if not any(is_training(stage) for stage in config.stages):
        raise Refusal("stages", f"{config.stages} train nothing", "one of: " + ", ".join((*TRAINING, *TWINS)))
    for each in reports(config, config.stages, device(config)):
        print_report(console, *each)


def announce(console: Console, config: RunConfig, stages: Sequence[str], begun: Collection[str]) -> None:
    """Before a run's first stage: what its training stages will take, where that is known without the network.

    Args:
        stages: of the run, in order.
        begun: those of them that will run; the others are done.
    """
    if config.grpo.rollout_only or not any(is_training(stage) for stage in begun):
        return
    here = device(config, here=True)
    try:
        found = [each for each in reports(config, stages, here, ask_hub=False) if each[0] in begun]
    except Refusal:
        return  # the stage itself tells it, once the family is there
    # Embedded rows are far shorter than they may be: there the stage's own estimate is the one to be warned by.
    toy = config.model.base is None and config.start_from is None and config.data.source != "rows"
    for stage, report, what in found:
        if report.fits and (toy or report.estimate.peak < SMALL * report.bytes):
            console.print(memory_line(stage, report), style="dim", markup=False, soft_wrap=True)
        elif not toy:
            print_report(console, stage, report, what)


def print_report(console: Console, stage: str, report: MemoryReport, what: str) -> None:
    """A stage's batch, its estimate as a table and, where it does not fit, what to change."""
    console.print(f"[bold]{stage}[/]: {what}", soft_wrap=True)
    console.print(memory_table(report))
    if warning := memory_warning(report):
        console.print(warning, style="yellow", markup=False, soft_wrap=True)


def reports(
    config: RunConfig, stages: Sequence[str], own: Device, ask_hub: bool = True
) -> Iterator[tuple[str, MemoryReport, str]]:
    """(stage, its estimate, its batch in words) of each training stage of `stages`, in order.

    Args:
        own: where a rank trains.
        ask_hub: see `known_shape`.

    Raises:
        Refusal: see `known_shape`.
    """
    shape, ranks = known_shape(config, ask_hub), _ranks(config)
    mode = sharding_mode(config.deepspeed, ranks)
    for stage in stages:
        if stage == "expand":
            shape = expanded(shape, config.expand.exit, config.expand.blocks)
        # Exits that are not there are refused by the stage: what a family on the hub has is told only here.
        if is_training(stage) and chosen_exits(getattr(config, stage), shape):
            given = trainer_values(getattr(config, stage))
            estimate = estimate_stage(config, stage, shape, mode, ranks, own)
            checkpointing = bool(given["gradient_checkpointing"])
            report = MemoryReport(estimate, own.kind, own.bytes, checkpointing, stage, assumed=True)
            yield stage, report, f"{_batch(config, stage, given, shape, ranks)}, deepspeed={mode}"


def is_training(stage: str) -> bool:
    """Whether an estimate is made of a stage."""
    return TWINS.get(stage, stage) in TRAINING


def device(config: RunConfig, here: bool = False) -> Device:
    """What `memory` describes, or what this machine has.

    Args:
        here: whether the run is this machine's, and no other one's with GPUs is meant.
    """
    own, kind = gpu_bytes(), config.memory.device
    if kind == "auto":
        kind = "cuda" if own or (config.model.base is not None and not here) else "cpu"
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
