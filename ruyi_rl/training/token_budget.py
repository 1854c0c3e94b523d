"""Which rows go into one pack: whole prompts under a token budget, every exit in every pack."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Block:
    """Rows of one prompt: the same number of every exit's."""

    rows: tuple[tuple[int, ...], ...]
    """For each exit its rows."""
    prompt: int
    """Tokens of the prompt."""
    completions: tuple[tuple[int, ...], ...]
    """Tokens of each row."""

    @cached_property
    def tokens(self) -> int:
        """Tokens that the block takes in a pack."""
        return self.prompt + sum(map(sum, self.completions))

    @property
    def divisible(self) -> bool:
        """Whether it can be split into two, each with every exit."""
        return min(map(len, self.rows)) > 1

    def halves(self) -> tuple[Block, Block]:
        """Two blocks of the same prompt, which each of them holds."""
        half = len(self.rows[0]) // 2
        return tuple(
            Block(
                tuple(part[chosen] for part in self.rows), self.prompt, tuple(part[chosen] for part in self.completions)
            )
            for chosen in (slice(None, half), slice(half, None))
        )


def blocks_of(
    prompt_tokens: torch.Tensor,
    completion_tokens: torch.Tensor,
    prompt_numbers: torch.Tensor,
    exit_ids: torch.Tensor,
    exits: int,
) -> list[Block]:
    """The blocks of rows of which each prompt has equally many of every exit.

    Args:
        prompt_tokens, completion_tokens: (rows,).
        prompt_numbers: (rows,): rows of one number have one prompt.
        exit_ids: (rows,).
        exits: number of exits.

    Raises:
        ValueError: a prompt that has not equally many rows of every exit.
    """
    members: dict[int, list[list[int]]] = {}
    for row, (number, exit) in enumerate(zip(prompt_numbers.tolist(), exit_ids.tolist())):
        members.setdefault(number, [[] for _ in range(exits)])[exit].append(row)
    lengths, prompts = completion_tokens.tolist(), prompt_tokens.tolist()
    if any(len(set(map(len, rows))) > 1 for rows in members.values()):
        raise ValueError("every prompt of a pack needs equally many completions of every exit")
    return [
        Block(
            tuple(map(tuple, rows)),
            prompts[rows[0][0]],
            tuple(tuple(lengths[row] for row in part) for part in rows),
        )
        for rows in members.values()
    ]


def packs_needed(blocks: Sequence[Block], budget: int | None) -> int:
    """Fewest packs, as `balanced_packs` makes them, of at most `budget` tokens each; 1 without a budget.

    A block of one row an exit is never split: where it is larger than the budget, it is a pack of its own.
    """
    if budget is None:
        return 1
    pieces = _pieces(blocks, 1, budget)
    alone = [block.tokens for block in pieces if block.tokens > budget]
    count = max(1, len(alone) - (sum(alone) - sum(block.tokens for block in pieces)) // budget)
    while count < len(pieces) and any(
        len(pack) > 1 and sum(block.tokens for block in pack) > budget for pack in _spread(pieces, count)
    ):
        count += 1
    return count


def balanced_packs(blocks: Sequence[Block], count: int, budget: int | None = None) -> list[list[int]]:
    """Rows of `count` packs of nearly equal tokens; inside a pack exit by exit.

    Blocks of more than `budget` tokens are halved, and the largest ones where there are fewer blocks than packs.

    Raises:
        ValueError: more packs than rows of an exit.
    """
    packs = _spread(_pieces(blocks, count, budget), count)
    return [[row for part in zip(*(block.rows for block in pack)) for rows in part for row in rows] for pack in packs]


def _pieces(blocks: Sequence[Block], count: int, budget: int | None) -> list[Block]:
    if count > sum(len(block.rows[0]) for block in blocks):
        raise ValueError(f"{count} packs, each with every exit, cannot be made of {len(blocks)} prompts' rows")
    heap = [(not block.divisible, -block.tokens, block.rows, block) for block in blocks]
    heapq.heapify(heap)
    while not heap[0][0] and (len(heap) < count or (budget is not None and -heap[0][1] > budget)):
        for half in heapq.heappop(heap)[-1].halves():
            heapq.heappush(heap, (not half.divisible, -half.tokens, half.rows, half))
    return [block for *_, block in heap]


def _spread(blocks: Sequence[Block], count: int) -> list[list[Block]]:
    """Longest first, each to the pack that is lightest by then."""
    packs: list[list[Block]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for block in sorted(blocks, key=lambda block: (-block.tokens, block.rows)):
        load, number = loads[0]
        packs[number].append(block)
        heapq.heapreplace(loads, (load + block.tokens, number))
    return [sorted(pack, key=lambda block: block.rows) for pack in packs]
