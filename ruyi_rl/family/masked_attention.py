"""Exact attention inside a pack on any device and in any dtype, with dropout: torch's own, with a mask a segment.

Each segment is a row of a batch of like length, its keys those of its prompt and its own. No mask spans the pack, but
each row's is its length × (prompt + length), and every completion copies its prompt's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.nn.functional import scaled_dot_product_attention

from ruyi_rl.family.joined_attention import length_batches


@dataclass(frozen=True)
class MaskedBatch:
    """Segments of like length."""

    queries: torch.Tensor
    """(rows, length): position in the slice; 0 in the padding."""
    keys: torch.Tensor
    """(rows, keys): the same of the prompt and the segment."""
    mask: torch.Tensor
    """(rows, 1, length, keys): which keys a query sees. In the padding it sees the first, so that nothing is NaN."""


@dataclass(frozen=True)
class MaskedPlan:
    """How the tokens of a slice of a pack attend."""

    batches: tuple[MaskedBatch, ...]
    back: torch.Tensor
    """(tokens of the slice,): where each stands in the flattened batches."""


def masked_plan(lengths: Sequence[int], prompts: Sequence[int], device: torch.device | str = "cpu") -> MaskedPlan:
    """The plan for segments that stand one after the other.

    Args:
        lengths: tokens of each segment.
        prompts: for each segment the number of the segment that it also attends to; -1: none.
        device: where the indices go.
    """
    starts = list(accumulate(lengths, initial=0))
    made, back, end = [], torch.zeros(starts[-1], dtype=torch.int64), 0
    for rows in length_batches(lengths):
        length = max(lengths[row] for row in rows)
        before = torch.tensor([lengths[prompts[row]] if prompts[row] >= 0 else 0 for row in rows])
        own = torch.tensor([lengths[row] for row in rows])
        width = int((before + own).max())
        queries, keys = (
            torch.zeros(len(rows), length, dtype=torch.int64),
            torch.zeros(len(rows), width, dtype=torch.int64),
        )
        for place, row in enumerate(rows):
            mine = torch.arange(starts[row], starts[row + 1])
            queries[place, : lengths[row]] = mine
            first = int(before[place])
            if first:
                keys[place, :first] = torch.arange(first) + starts[prompts[row]]
            keys[place, first : first + lengths[row]] = mine
            back[mine] = end + place * length + torch.arange(lengths[row])
        query, key = torch.arange(length)[None, :, None], torch.arange(width)[None, None, :]
        inside = query < own[:, None, None]
        mask = torch.where(inside, key <= query + before[:, None, None], key == 0)
        made.append(MaskedBatch(queries.to(device), keys.to(device), mask[:, None].to(device)))
        end += queries.numel()
    return MaskedPlan(tuple(made), back.to(device))


def masked_attention(query, key, value, plan: MaskedPlan, scale: float, dropout: float = 0.0) -> torch.Tensor:
    """query (tokens, heads, dim), key and value (tokens, kv heads, dim) -> (tokens, heads, dim)."""
    groups = query.shape[1] // key.shape[1]
    outs = []
    for batch in plan.batches:
        keys, values = (tokens[batch.keys].transpose(1, 2).repeat_interleave(groups, dim=1) for tokens in (key, value))
        out = scaled_dot_product_attention(
            query[batch.queries].transpose(1, 2), keys, values, attn_mask=batch.mask, dropout_p=dropout, scale=scale
        )
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)[plan.back]
