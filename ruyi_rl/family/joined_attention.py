"""Exact attention inside a pack on the CPU, without a mask over it.

Every segment attends to itself causally; a completion attends to its whole prompt besides. The two parts are computed
apart, each by a plain flash kernel on a batch without masks, and joined by their log-sum-exps:

    out = out_self · exp(lse_self - lse) + out_prompt · exp(lse_prompt - lse),   lse = logaddexp(lse_self, lse_prompt)

(the online softmax of FlashAttention, arXiv 2205.14135, over two blocks of keys). Given the joint `out` and `lse`, a
flash kernel's backward of one part yields exactly that part's share of the gradients. So all completions of a prompt
read its keys once, as one batch row, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

WASTE = 0.2
"""Share of a batch row that may be padding before its segment is moved to a batch of shorter ones."""
BLOCK = 32
"""The CPU kernel's block of queries; a row that ends inside one is slower than one padded to its end."""


@dataclass(frozen=True)
class Batch:
    """Rows of one kernel call."""

    index: torch.Tensor
    """(rows, length): position in the slice; 0 in the padding."""
    padding: torch.Tensor | None
    """(rows, length): where there is no token; None: nowhere."""
    start: int | None
    """Position from which on the rows are the slice's tokens one after the other, which then need no copy."""

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, …) -> (rows, heads, length, …)."""
        if self.start is not None:
            taken = tokens[self.start : self.start + self.index.numel()]
        else:
            taken = tokens.flatten(1).index_select(0, self.index.flatten())
        return taken.reshape(*self.index.shape, *tokens.shape[1:]).transpose(1, 2)

    def take_filled(self, tokens: torch.Tensor, filling: float) -> torch.Tensor:
        """As `take`, with `filling` in the padding."""
        taken = self.take(tokens)
        if self.padding is None:
            return taken
        return taken.masked_fill_(self.padding.view(len(taken), 1, -1, *[1] * (tokens.ndim - 2)), filling)


@dataclass(frozen=True)
class Rows:
    """Tokens of a slice as the rows of batches."""

    batches: tuple[Batch, ...]
    """One kernel call each."""
    back: torch.Tensor
    """(tokens of the slice,): where each token stands in the flattened batches, one after the other, behind one
    neutral entry; 0: in none of them."""

    def gather(self, parts: Sequence[torch.Tensor], neutral: float = 0.0) -> torch.Tensor:
        """One (rows, heads, length, …) a batch -> (tokens, heads, …), `neutral` for a token that is in none."""
        flat = [part.transpose(1, 2).flatten(0, 1).flatten(1) for part in parts]
        nothing = flat[0].new_full((1, flat[0].shape[1]), neutral)
        found = torch.cat([nothing, *flat]).index_select(0, self.back)
        return found.unflatten(1, (parts[0].shape[1], *parts[0].shape[3:]))


@dataclass(frozen=True)
class AttentionPlan:
    """How the tokens of a slice of a pack attend."""

    causal: Rows
    """Every segment, as a row."""
    queries: Rows | None
    """Row by row all tokens that attend to a prompt; None: no segment has one."""
    keys: Rows | None
    """The prompts, row by row; those of one batch have one length, so that no key is padding."""


def attention_plan(lengths: Sequence[int], prompts: Sequence[int], device: torch.device | str = "cpu") -> AttentionPlan:
    """The plan for segments that stand one after the other.

    Args:
        lengths: tokens of each segment.
        prompts: for each segment the number of the segment that it also attends to; -1: none.
        device: where the indices go.
    """
    places = torch.arange(sum(lengths)).split(list(lengths))
    causal = _rows([[places[segment] for segment in batch] for batch in like(lengths)], sum(lengths), device, BLOCK)
    followers: dict[int, list[torch.Tensor]] = {}
    for segment, prompt in enumerate(prompts):
        if prompt >= 0:
            followers.setdefault(prompt, []).append(places[segment])
    if not followers:
        return AttentionPlan(causal, None, None)
    asking = {prompt: torch.cat(segments) for prompt, segments in followers.items()}
    queries, keys = [], []
    for length in sorted({lengths[prompt] for prompt in followers}):
        same = [prompt for prompt in followers if lengths[prompt] == length]
        for batch in like([len(asking[prompt]) for prompt in same]):
            queries.append([asking[same[row]] for row in batch])
            keys.append([places[same[row]] for row in batch])
    return AttentionPlan(causal, _rows(queries, sum(lengths), device), _rows(keys, sum(lengths), device))


def like(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers in batches of like length, longest first: at most a share of `WASTE` of a row is padding."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not found or lengths[row] < (1 - WASTE) * lengths[found[-1][0]]:
            found.append([])
        found[-1].append(row)
    return found


def _rows(batches: Sequence[Sequence[torch.Tensor]], tokens: int, device, block: int = 1) -> Rows:
    back, made, end = torch.zeros(tokens, dtype=torch.int64), [], 1
    for rows in batches:
        index = pad_sequence(list(rows), batch_first=True)
        if index.shape[1] > block:
            index = pad(index, (0, -index.shape[1] % block))
        padding = torch.arange(index.shape[1]) >= torch.tensor([len(row) for row in rows])[:, None]
        places = end + torch.arange(index.numel()).view_as(index)
        back[index[~padding]] = places[~padding]
        end += index.numel()
        whole, first = not padding.any(), int(index[0, 0])
        in_order = whole and torch.equal(index.flatten(), torch.arange(first, first + index.numel()))
        made.append(Batch(index.to(device), None if whole else padding.to(device), first if in_order else None))
    return Rows(tuple(made), back.to(device))


class JoinedAttention(torch.autograd.Function):
    """Flash attention of a plan's parts on the CPU, joined.

    `apply(query, key, value, plan, scale)` takes query (tokens, heads, dim), key and value (tokens, kv heads, dim), and
    gives (tokens, heads, dim).
    """

    @staticmethod
    def forward(ctx, query, key, value, plan: AttentionPlan, scale: float):
        out, lse = _parts(plan.causal, plan.causal, query, key, value, scale, True)
        if plan.queries is not None:
            seen, seen_lse = _parts(plan.queries, plan.keys, query, key, value, scale, False)
            joint = torch.logaddexp(lse, seen_lse)
            out.mul_((lse - joint).exp().to(out.dtype)[..., None])
            out.addcmul_(seen, (seen_lse - joint).exp().to(out.dtype)[..., None])
            lse = joint
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        plan, saved = ctx.plan, (gradient, *ctx.saved_tensors)
        found = _gradients(plan.causal, plan.causal, *saved, ctx.scale, True)
        if plan.queries is not None:
            for total, part in zip(found, _gradients(plan.queries, plan.keys, *saved, ctx.scale, False)):
                total.add_(part)
        return *found, None, None


def _parts(queries: Rows, keys: Rows, query, key, value, scale: float, is_causal: bool):
    """(tokens, heads, dim) and its log-sum-exps (tokens, heads); 0 and -inf for a token that none of the rows holds."""
    found = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            asking.take(query), asked.take(key), asked.take(value), 0.0, is_causal, scale=scale
        )
        for asking, asked in zip(queries.batches, keys.batches)
    ]
    outs, lses = zip(*found)
    return queries.gather(outs), queries.gather(lses, -torch.inf)


def _gradients(queries: Rows, keys: Rows, gradient, query, key, value, out, lse, scale: float, is_causal: bool):
    """What the rows contribute to the gradients of query, key and value."""
    found = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            asking.take_filled(gradient, 0),
            asking.take(query),
            asked.take(key),
            asked.take(value),
            asking.take(out),
            # Token 0 stands in the padding; with its own sums, large scores there would be inf · 0.
            asking.take_filled(lse, torch.inf),
            0.0,
            is_causal,
            scale=scale,
        )
        for asking, asked in zip(queries.batches, keys.batches)
    ]
    return [rows.gather(parts) for rows, parts in zip((queries, keys, keys), zip(*found))]
