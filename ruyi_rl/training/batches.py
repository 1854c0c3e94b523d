"""The batch arithmetic of GRPO over a family. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """One generation batch: prompts × exits × samples rows, over ranks and micro-batches."""

    prompts: int
    """Prompts of a generation batch, over all ranks."""
    exits: int
    """Exits that answer every prompt."""
    samples: int
    """G: completions of one (prompt, exit)."""
    world_size: int
    """Ranks."""
    micro_batches: int
    """Micro-batches a rank splits its share of the generation batch into (TRL's steps_per_generation)."""

    @property
    def completions(self) -> int:
        """Completions of a generation batch, over all ranks."""
        return self.prompts * self.exits * self.samples

    @property
    def micro_batch_rows(self) -> int:
        """Rows of one micro-batch on one rank."""
        return self.completions // self.world_size // self.micro_batches


def plan_batches(
    per_device_train_batch_size: int, steps_per_generation: int, num_generations: int, exits: int, world_size: int
) -> BatchPlan:
    """The plan that TRL's numbers mean for a family.

    Every micro-batch must hold every exit equally often, and every rank whole prompts with all exits and samples.

    Raises:
        ValueError: numbers that do not go together; the message shows the arithmetic and the nearest that do.
    """
    size, steps, block = per_device_train_batch_size, steps_per_generation, exits * num_generations
    if num_generations < 2:
        raise ValueError(f"num_generations is {num_generations}: a group needs at least 2 samples to be compared")
    if size % exits:
        below = size // exits * exits
        nearest = " or ".join(str(value) for value in (below, below + exits) if value)
        raise ValueError(
            f"per_device_train_batch_size {size} is no multiple of the {exits} exits: "
            f"every micro-batch holds every exit equally often; nearest: {nearest}"
        )
    if (size * steps) % block:
        below = size * steps // block * block
        nearest = " or ".join(str(value) for value in (below, below + block) if value)
        raise ValueError(
            f"per_device_train_batch_size {size} x steps_per_generation {steps} = {size * steps} rows a rank, but "
            f"whole prompts are {exits} exits x {num_generations} samples = {block} rows; nearest: {nearest}"
        )
    return BatchPlan(
        prompts=size * steps // block * world_size,
        exits=exits,
        samples=num_generations,
        world_size=world_size,
        micro_batches=steps,
    )


def packed_prompts(micro_batch: int, exits: int, samples: int) -> int:
    """Prompts of a micro-batch at most: one that is no whole prompts begins and ends inside one.

    Args:
        micro_batch: its rows.
        exits: that answer every prompt.
        samples: G, completions of one (prompt, exit).
    """
    rows = micro_batch // exits
    return max((n * rows + rows - 1) // samples - n * rows // samples + 1 for n in range(samples))
