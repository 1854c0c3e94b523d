"""How (prompt, exit, sample) rows are laid out over generation batches, ranks and micro-batches.

A generation batch is whole prompts; a prompt's block is G samples of the deepest exit, then G of the next …:

    prompt 0: large large | medium medium | small small      (G = 2)
    prompt 1: large large | medium medium | small small

Each rank holds whole blocks. Micro-batches take equal shares of every exit, because a rank that ran other layers than
its neighbour would deadlock ZeRO-3, and a micro-batch that left a parameter unused would corrupt its gradients.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from ruyi_rl.training.batches import BatchPlan


def deepest_first(exits: Sequence[str], depths: Mapping[str, int]) -> list[str]:
    """The exits by falling position k."""
    return sorted(exits, key=lambda name: -depths[name])


def expand_rows(dataset, exits: Sequence[str]):
    """A dataset of prompts -> one of (prompt, exit) rows: row `prompt · E + e`, with the exit's name in `exit`."""
    count = len(dataset)
    rows = dataset.select([prompt for prompt in range(count) for _ in exits])
    if "exit" in rows.column_names:
        rows = rows.remove_columns("exit")
    return rows.add_column("exit", list(exits) * count)


class FamilySampler(Sampler):
    """Row indices of an expanded dataset, block by block, each generation batch repeated as TRL's sampler repeats it.

    The order of a pass depends on the seed and the pass's number alone, so that a resumed run draws what the whole run
    would have drawn. Prompts that fill no generation batch are left out of that pass, as in TRL.

    Args:
        prompts: number of prompts of the dataset.
        plan: exits, samples and prompts of a generation batch.
        repeat_count: how many times each generation batch is yielded (`num_iterations · steps_per_generation`).
        shuffle: draw the prompts in random order, anew each pass.
        seed: decides the order.
    """

    def __init__(self, prompts: int, plan: BatchPlan, repeat_count: int = 1, shuffle: bool = True, seed: int = 0):
        self.prompts, self.plan, self.repeat_count = prompts, plan, repeat_count
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Number of the pass that comes next; accelerate calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.prompts))
        if self.shuffle:
            random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        exits, samples = self.plan.exits, self.plan.samples
        for start in range(0, self.prompts - self.plan.prompts + 1, self.plan.prompts):
            batch = [
                prompt * exits + exit
                for prompt in order[start : start + self.plan.prompts]
                for exit in range(exits)
                for _ in range(samples)
            ]
            for _ in range(self.repeat_count):
                yield from batch

    def __len__(self) -> int:
        return self.prompts // self.plan.prompts * self.plan.completions * self.repeat_count


@dataclass(frozen=True)
class RowLayout:
    """Which exit and which prompt each row of whole blocks belongs to; both (rows,) int64."""

    exit_ids: torch.Tensor
    """Index into the exits, deepest first."""
    prompt_ids: torch.Tensor
    """Number of the block."""


def block_layout(rows: int, exits: int, samples: int, device: torch.device | str = "cpu") -> RowLayout:
    """The layout of `rows` rows, which must be whole blocks of `exits · samples`.

    Raises:
        ValueError: rows that are no whole blocks.
    """
    if rows % (exits * samples):
        raise ValueError(f"{rows} rows are no whole prompts of {exits} exits x {samples} samples")
    index = torch.arange(rows, device=device)
    return RowLayout(exit_ids=index // samples % exits, prompt_ids=index // (exits * samples))


def balanced_chunks(exit_ids: torch.Tensor, exits: int, chunks: int) -> list[torch.Tensor]:
    """Split rows into chunks that hold equal shares of every exit, ordered by exit, deepest first.

    Args:
        exit_ids: (rows,), each exit equally often.
        exits: number of exits.
        chunks: number of chunks; divides the rows of an exit.

    Returns:
        `chunks` tensors of row indices; inside an exit the order of the rows is kept.

    Raises:
        ValueError: rows that cannot be split so.
    """
    rows = [torch.nonzero(exit_ids == exit).flatten() for exit in range(exits)]
    if len({len(part) for part in rows}) != 1 or len(rows[0]) % chunks:
        raise ValueError(f"{[len(part) for part in rows]} rows per exit do not split into {chunks} equal micro-batches")
    parts = [part.split(len(part) // chunks) for part in rows]
    return [torch.cat([part[chunk] for part in parts]) for chunk in range(chunks)]


def rows_of(inputs: dict, rows: torch.Tensor) -> dict:
    """The inputs of some rows; what is not by row stays."""
    count = len(inputs["exit_ids"])
    return {
        key: value[rows] if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == count else value
        for key, value in inputs.items()
    }


def rows_and_tokens(mask: torch.Tensor, exit_ids: torch.Tensor, exits: int) -> torch.Tensor:
    """(2, exits): completions, and their tokens."""
    tokens = mask.sum(1).float()
    counts = torch.stack([torch.ones_like(tokens), tokens])
    return counts.new_zeros(2, exits).index_add_(1, exit_ids, counts)
