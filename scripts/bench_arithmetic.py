"""How many floating-point operations a training step takes: one model for each exit, and a family that shares.

A matrix product of m x k and k x n counts 2mkn. A linear layer's backward takes twice its forward. Attention counts the
pairs of query and key that its mask leaves, 4 operations a dimension of a head forwards and, since flash kernels
recompute the scores, 2.5 times that backwards. An LM head's backward takes three times its forward, since chunked
kernels recompute the logits. Norms, rotations, softmax and the optimiser count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench_family import Shape


@dataclass(frozen=True)
class Work:
    """Operations of a forward pass."""

    layers: float = 0
    """Of the layers' linear maps."""
    attention: float = 0
    heads: float = 0

    @property
    def forward(self) -> float:
        return self.layers + self.attention + self.heads

    @property
    def backward(self) -> float:
        return 2 * self.layers + 2.5 * self.attention + 3 * self.heads

    def __add__(self, other: Work) -> Work:
        return Work(self.layers + other.layers, self.attention + other.attention, self.heads + other.heads)


def layer_work(shape: Shape, tokens: float, pairs: float) -> Work:
    """One decoder layer on so many tokens, of which so many pairs attend."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    weights = attention + 3 * shape.hidden * shape.intermediate
    return Work(2 * weights * tokens, 4 * shape.heads * shape.head_dim * pairs)


def head_work(shape: Shape, tokens: float) -> Work:
    return Work(heads=2 * shape.hidden * shape.vocabulary * tokens)


def times(work: Work, count: float) -> Work:
    return Work(work.layers * count, work.attention * count, work.heads * count)


def total(parts: Iterable[Work]) -> Work:
    return sum(parts, Work())


def triangle(tokens: int) -> int:
    """Pairs of causal attention."""
    return tokens * (tokens + 1) // 2


def separate_grpo(
    shape: Shape, prompts: Sequence[int], lengths: Mapping[str, Sequence[Sequence[int]]], every_token_scored: bool
) -> Work:
    """One model an exit, on padded rows of prompt and completion.

    Args:
        prompts: tokens of each prompt.
        lengths: exit -> for each prompt the tokens of its completions.
        every_token_scored: whether the head runs on all tokens, as TRL's does without Triton, or on completions' only.
    """
    width = max(prompts) + max(length for rows in lengths.values() for row in rows for length in row)
    parts = []
    for name, rows in lengths.items():
        count = sum(map(len, rows))
        parts.append(times(layer_work(shape, width, triangle(width)), count * (shape.exits[name] + 1)))
        scored = count * (width - 1) if every_token_scored else sum(map(sum, rows))
        parts.append(head_work(shape, scored))
    return total(parts)


def shared_grpo(shape: Shape, prompts: Sequence[int], lengths: Mapping[str, Sequence[Sequence[int]]]) -> Work:
    """What a family needs: each prompt once, nothing padded, no completion's last token.

    Args:
        prompts: tokens of each prompt.
        lengths: exit -> for each prompt the tokens of its completions.
    """
    # Every trunk layer below the deepest exit, and each exit's own.
    layers = max(shape.exits[name] for name in lengths) + len(lengths)
    parts = [times(layer_work(shape, prompt, triangle(prompt)), layers) for prompt in prompts]
    for name, rows in lengths.items():
        for prompt, row in zip(prompts, rows, strict=True):
            tokens = sum(length - 1 for length in row)
            pairs = sum(prompt * (length - 1) + triangle(length - 1) for length in row)
            parts.append(times(layer_work(shape, tokens, pairs), shape.exits[name] + 1))
            parts.append(head_work(shape, sum(row)))
    return total(parts)


def separate_sft(
    shape: Shape, rows: Sequence[int], scored: int, every_token_scored: bool, exits: Sequence[str] | None = None
) -> Work:
    """One model an exit, on padded rows.

    Args:
        rows: tokens of each row.
        scored: tokens in the loss, of all rows.
        every_token_scored: whether the head runs on all tokens, padding too.
        exits: of which exits; None: all.
    """
    width, parts = max(rows), []
    for name in exits or shape.exits:
        parts.append(times(layer_work(shape, width, triangle(width)), len(rows) * (shape.exits[name] + 1)))
        parts.append(head_work(shape, len(rows) * (width - 1) if every_token_scored else scored))
    return total(parts)


def joint_sft(shape: Shape, rows: Sequence[int], scored: int) -> Work:
    """What a family needs: the trunk once, nothing padded, and every exit's own layer and head."""
    layers = max(shape.exits.values()) + len(shape.exits)
    parts = [times(layer_work(shape, row, triangle(row)), layers) for row in rows]
    return total([*parts, head_work(shape, scored * len(shape.exits))])
