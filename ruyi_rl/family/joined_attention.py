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
class Rows:
    """Tokens of a slice as the rows of one kernel call."""

    index: torch.Tensor
    """(rows, length): position in the slice; 0 in the padding."""
    padding: torch.Tensor | None
    """(rows, length): where there is no token; None: nowhere."""
    valid: torch.Tensor
    """(tokens,): which places of the flattened `index` hold a token."""
    places: torch.Tensor
    """(tokens,): their positions in the slice."""
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

    def flat(self, part: torch.Tensor) -> torch.Tensor:
        """(rows, heads, length, …) -> (tokens, heads, …), without the padding."""
        flat = part.transpose(1, 2).flatten(0, 1)
        if self.padding is None:
            return flat
        return flat.flatten(1).index_select(0, self.valid).unflatten(1, flat.shape[1:])

    def read(self, total: torch.Tensor) -> torch.Tensor:
        """(tokens of the slice, …) -> (tokens, …)."""
        if self.start is not None:
            return total[self.start : self.start + len(self.places)]
        return total.flatten(1).index_select(0, self.places).unflatten(1, total.shape[1:])

    def write(self, total: torch.Tensor, values: torch.Tensor) -> None:
        """The inverse of `read`, in place."""
        if self.start is not None:
            total[self.start : self.start + len(self.places)] = values
        else:
            total.flatten(1).index_copy_(0, self.places, values.flatten(1))

    def add(self, total: torch.Tensor, values: torch.Tensor) -> None:
        """As `write`, added to what is there."""
        if self.start is not None:
            total[self.start : self.start + len(self.places)] += values
        else:
            total.flatten(1).index_add_(0, self.places, values.flatten(1))


@dataclass(frozen=True)
class AttentionPlan:
    """How the tokens of a slice of a pack attend."""

    causal: tuple[Rows, ...]
    """Every segment, as a row of one of the batches."""
    prefix: tuple[tuple[Rows, Rows], ...]
    """(queries, keys): row by row all tokens that attend to a prompt, and that prompt. The prompts of a batch have one
    length, so that no key is padding."""


def attention_plan(lengths: Sequence[int], prompts: Sequence[int], device: torch.device | str = "cpu") -> AttentionPlan:
    """The plan for segments that stand one after the other.

    Args:
        lengths: tokens of each segment.
        prompts: for each segment the number of the segment that it also attends to; -1: none.
        device: where the indices go.
    """
    places = torch.arange(sum(lengths)).split(list(lengths))
    causal = tuple(_rows([places[segment] for segment in batch], device, BLOCK) for batch in length_batches(lengths))
    followers: dict[int, list[torch.Tensor]] = {}
    for segment, prompt in enumerate(prompts):
        if prompt >= 0:
            followers.setdefault(prompt, []).append(places[segment])
    asking = {prompt: torch.cat(segments) for prompt, segments in followers.items()}
    prefix = []
    for length in sorted({lengths[prompt] for prompt in followers}):
        same = [prompt for prompt in followers if lengths[prompt] == length]
        for batch in length_batches([len(asking[prompt]) for prompt in same]):
            queries = _rows([asking[same[row]] for row in batch], device)
            prefix.append((queries, _rows([places[same[row]] for row in batch], device)))
    return AttentionPlan(causal, tuple(prefix))


def length_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers in batches of like length, longest first: at most a share of `WASTE` of a row is padding."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not found or lengths[row] < (1 - WASTE) * lengths[found[-1][0]]:
            found.append([])
        found[-1].append(row)
    return found


def _rows(rows: Sequence[torch.Tensor], device, block: int = 1) -> Rows:
    index = pad_sequence(list(rows), batch_first=True)
    if index.shape[1] > block:
        index = pad(index, (0, -index.shape[1] % block))
    padding = torch.arange(index.shape[1]) >= torch.tensor([len(row) for row in rows])[:, None]
    valid, places = torch.nonzero(~padding.flatten()).flatten(), torch.cat(list(rows))
    whole, first = not padding.any(), int(places[0])
    in_order = whole and torch.equal(places, torch.arange(first, first + len(places)))
    return Rows(
        index.to(device),
        None if whole else padding.to(device),
        valid.to(device),
        places.to(device),
        first if in_order else None,
    )


class JoinedAttention(torch.autograd.Function):
    """Flash attention of a plan's parts on the CPU, joined.

    `apply(query, key, value, plan, scale)` takes query (tokens, heads, dim), key and value (tokens, kv heads, dim), and
    gives (tokens, heads, dim).
    """

    @staticmethod
    def forward(ctx, query, key, value, plan: AttentionPlan, scale: float):
        out, lse = query.new_empty(query.shape), None
        for rows in plan.causal:
            part, part_lse = _flash(rows, rows, query, key, value, scale, True)
            rows.write(out, rows.flat(part))
            lse = part_lse.new_empty(query.shape[:2]) if lse is None else lse
            rows.write(lse, rows.flat(part_lse))
        for queries, keys in plan.prefix:
            part, part_lse = _flash(queries, keys, query, key, value, scale, False)
            own, seen = queries.read(lse), queries.flat(part_lse)
            joint = torch.logaddexp(own, seen)
            joined = queries.read(out) * (own - joint).exp().to(out.dtype)[..., None]
            queries.write(out, joined.addcmul_(queries.flat(part), (seen - joint).exp().to(out.dtype)[..., None]))
            queries.write(lse, joint)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, out, lse = ctx.saved_tensors
        plan, saved = ctx.plan, (gradient, query, key, value, out, lse)
        totals = [tensor.new_empty(tensor.shape) for tensor in (query, key, value)]
        for rows in plan.causal:
            for total, part in zip(totals, _flash_backward(rows, rows, *saved, ctx.scale, True)):
                rows.write(total, rows.flat(part))
        for queries, keys in plan.prefix:
            parts = _flash_backward(queries, keys, *saved, ctx.scale, False)
            for total, rows, part in zip(totals, (queries, keys, keys), parts):
                rows.add(total, rows.flat(part))
        return *totals, None, None


def _flash(queries: Rows, keys: Rows, query, key, value, scale: float, is_causal: bool):
    """(rows, heads, length, dim) and the log-sum-exps (rows, heads, length)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries.take(query), keys.take(key), keys.take(value), 0.0, is_causal, scale=scale
    )


def _flash_backward(queries: Rows, keys: Rows, gradient, query, key, value, out, lse, scale: float, is_causal: bool):
    """What the rows contribute to the gradients of query, key and value; each (rows, heads, length, dim)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        queries.take(gradient),
        queries.take(query),
        keys.take(key),
        keys.take(value),
        queries.take(out),
        # In the padding stands token 0. An infinite sum makes its probabilities 0, whatever its scores are, and with
        # them all that it would add to the gradients of keys and values.
        queries.take_filled(lse, torch.inf),
        0.0,
        is_causal,
        scale=scale,
    )
