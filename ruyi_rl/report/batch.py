"""The numbers that a run prints before it starts: its batch arithmetic and its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ruyi_rl.report.memory import MemoryReport, byte_size, memory_rows, memory_warning
from ruyi_rl.training.batches import packed_prompts


@dataclass(frozen=True)
class Prompts:
    """The training rows after those with too long a prompt are left out."""

    rows: int
    longest: int
    """Tokens of the longest prompt that is kept (of the longest whole sequence in `sft` and `pretrain`)."""
    limit: int | None
    """Most tokens allowed; None: no limit."""
    left_out: int
    """Rows over the limit."""


@dataclass(frozen=True)
class StepPlan:
    """How an optimiser step is put together."""

    world_size: int
    micro_batch: int
    """Rows (completions or sequences) of one rank in one forward and backward pass."""
    micro_batches: int
    """Passes whose gradients are added up to one optimiser step."""
    optimiser_steps: int
    prompts: Prompts
    longest_row: int
    """Tokens of a row at most."""
    weights: Mapping[str, int]
    """Bytes of the weights of each exit's branch, and of the whole family under `family`."""
    trained: tuple[int, int] | None = None
    """Number of parameters that are trained, and of all; None: not known."""
    memory: MemoryReport | None = None
    """What a rank will hold at most; None: not known."""
    exits: int = 1
    """Exits that answer every prompt; 1 where a row serves all exits in one pass."""
    generations: int = 1
    """G: completions of one prompt at one exit."""
    generation_batch: int | None = None
    """Completions that are generated at once, on all ranks; None where nothing is generated."""
    packed: bool = False
    """Whether a micro-batch is computed as packs: each prompt once, nothing padded."""
    token_budget: int | None = None
    """Tokens of a pack at most; None: a micro-batch is one pack."""
    began_on: int | None = None
    """Ranks that the training began on; None: those of now."""

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimiser step learns from, on all ranks."""
        return self.micro_batch * self.world_size * self.micro_batches

    @property
    def prompts_per_generation(self) -> int:
        """Prompts that are answered at once, on all ranks."""
        return (self.generation_batch or self.rows_per_step) // (self.exits * self.generations)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimiser step at most."""
        return self.rows_per_step * self.longest_row


def sft_steps(
    sequences: int, micro_batch: int, world_size: int, micro_batches: int, epochs: float, max_steps: int
) -> int:
    """Optimiser steps of SFT on `sequences` rows (after packing): `max_steps` where positive, else by epochs."""
    if max_steps > 0:
        return max_steps
    batches = math.ceil(math.ceil(sequences / world_size) / micro_batch)
    return math.ceil(epochs * max(1, math.ceil(batches / micro_batches)))


def grpo_steps(
    prompts: int,
    prompts_per_generation: int,
    updates_per_generation: float,
    epochs: float,
    max_steps: int,
) -> int:
    """Optimiser steps of GRPO: `max_steps` where positive, else by epochs of whole generation batches.

    Args:
        prompts: training prompts.
        prompts_per_generation: prompts answered at once; a rest that fills no batch is dropped.
        updates_per_generation: optimiser steps that learn from one generation batch.
    """
    if max_steps > 0:
        return max_steps
    return math.ceil(epochs * max(1, math.ceil(prompts // prompts_per_generation * updates_per_generation)))


def print_plan(console: Console, plan: StepPlan) -> None:
    """Prints the plan, and what to change where it is said not to fit."""
    console.print(plan_table(plan))
    if plan.memory is not None and (warning := memory_warning(plan.memory)):
        console.print(warning, style="yellow", markup=False, soft_wrap=True)


def plan_table(plan: StepPlan) -> Table:
    """The plan as rows of name, number and where the number comes from."""
    table = Table(title="before it starts", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    changed = plan.began_on not in (None, plan.world_size)
    begun = f"begun on {plan.began_on}, with as many rows a step" if changed else None
    table.add_row("ranks", f"{plan.world_size}", begun)
    by_rank = f"{plan.micro_batch} a rank × {plan.world_size} ranks × {plan.micro_batches} micro-batches"
    if plan.generation_batch is None:
        table.add_row("sequences a step", f"{plan.rows_per_step:,}", by_rank)
    else:
        table.add_row(
            "completions at once",
            f"{plan.generation_batch:,}",
            f"{plan.prompts_per_generation} prompts × {plan.exits} exits × G {plan.generations}",
        )
        table.add_row("completions a step", f"{plan.rows_per_step:,}", by_rank)
    table.add_row("tokens a step, at most", f"{plan.tokens_per_step:,}", f"{plan.longest_row:,} tokens a row")
    table.add_row("micro-batches", f"{plan.micro_batches}", f"a step, of {plan.micro_batch} rows on each rank")
    if plan.packed and plan.generation_batch is not None:
        prompts = packed_prompts(plan.micro_batch, plan.exits, plan.generations)
        # A completion's last token predicts nothing.
        most = prompts * plan.prompts.longest + plan.micro_batch * (plan.longest_row - plan.prompts.longest - 1)
        packs = "in one pack"
        if plan.token_budget is not None and most > plan.token_budget:
            packs = f"then in about {math.ceil(most / plan.token_budget)} packs of at most {plan.token_budget:,}"
        table.add_row("tokens a micro-batch, packed", f"{most:,}", f"at most, each prompt once; {packs}")
    table.add_row("optimiser steps", f"{plan.optimiser_steps:,}", f"{plan.prompts.rows:,} training rows")
    limit = "no limit" if plan.prompts.limit is None else f"limit {plan.prompts.limit:,}"
    kind = "longest sequence" if plan.generation_batch is None else "longest prompt"
    table.add_row(
        kind, f"{plan.prompts.longest:,}", f"tokens; {limit}, {plan.prompts.left_out:,} rows over it left out"
    )
    for name, size in plan.weights.items():
        table.add_row(f"weights of {name}", byte_size(size), "the whole family" if name == "family" else "its branch")
    if plan.trained is not None:
        trained, whole = plan.trained
        table.add_row("trained parameters", f"{trained:,}", f"of {whole:,}: gradients and optimiser state for these")
    if plan.memory is not None:
        for row in memory_rows(plan.memory):
            table.add_row(*row)
    return table
