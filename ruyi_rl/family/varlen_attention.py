"""Exact attention inside a pack on CUDA: one call of a variable-length flash kernel.

Every segment is one sequence of queries. Its keys are its own, behind those of its prompt where it has one; these are
gathered, which costs G copies of a prompt's keys and values (few heads, next to the MLP's work) and no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.nn.attention.varlen import varlen_attn

DTYPES = (torch.float16, torch.bfloat16)
"""What the kernel takes."""


def runs_varlen(device: torch.device, head_dim: int) -> bool:
    """Whether the kernel runs there: on CUDA from Ampere on, with heads of 8, 16, … 256 elements."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and head_dim % 8 == 0
        and head_dim <= 256
    )


@dataclass(frozen=True)
class VarlenPlan:
    """How the tokens of a slice of a pack attend."""

    query_ends: torch.Tensor
    """(segments + 1,) int32: where each segment's queries begin, and the end of the last."""
    key_ends: torch.Tensor
    """(segments + 1,) int32: the same of the gathered keys."""
    key_index: torch.Tensor
    """(gathered keys,) int64: position in the slice."""
    longest_query: int
    longest_key: int


def varlen_plan(lengths: Sequence[int], prompts: Sequence[int], device: torch.device | str = "cpu") -> VarlenPlan:
    """The plan for segments that stand one after the other.

    Args:
        lengths: tokens of each segment.
        prompts: for each segment the number of the segment that it also attends to; -1: none.
        device: where the indices go.
    """
    places = torch.arange(sum(lengths)).split(list(lengths))
    keys = [part for own, prompt in zip(places, prompts) for part in ((places[prompt], own) if prompt >= 0 else (own,))]
    key_lengths = [length + (lengths[prompt] if prompt >= 0 else 0) for length, prompt in zip(lengths, prompts)]
    return VarlenPlan(
        torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device),
        torch.tensor(list(accumulate(key_lengths, initial=0)), dtype=torch.int32, device=device),
        torch.cat(keys).to(device),
        max(lengths),
        max(key_lengths),
    )


def varlen_attention(query, key, value, plan: VarlenPlan, scale: float) -> torch.Tensor:
    """query (tokens, heads, dim), key and value (tokens, kv heads, dim), all of a dtype of `DTYPES`, on CUDA ->
    (tokens, heads, dim). The kernel's causal mask is aligned to the last key, so a completion sees all of its prompt.
    """
    return varlen_attn(
        query.contiguous(),
        key.index_select(0, plan.key_index),
        value.index_select(0, plan.key_index),
        plan.query_ends,
        plan.key_ends,
        plan.longest_query,
        plan.longest_key,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=True,
    )
