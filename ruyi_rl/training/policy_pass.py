"""Log-probs and entropies of completions, each at its own exit: packed, or padded as the reference of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ruyi_rl.training.packing import pack_rows
from ruyi_rl.training.token_budget import Block, blocks_of


@dataclass(frozen=True)
class CompletionRows:
    """Prompts with completions, padded on whichever side."""

    input_ids: torch.Tensor
    """(rows, length): prompts and, in the last `completion_length` columns, completions."""
    attention_mask: torch.Tensor
    """(rows, length): 1 for tokens."""
    completion_length: int
    """Columns of the completions."""
    prompt_numbers: torch.Tensor
    """(rows,): rows of one number have one prompt."""
    exit_ids: torch.Tensor
    """(rows,): index into the exits, deepest first."""

    def select(self, rows: torch.Tensor) -> CompletionRows:
        """Those rows, in that order."""
        return CompletionRows(
            self.input_ids[rows],
            self.attention_mask[rows],
            self.completion_length,
            self.prompt_numbers[rows],
            self.exit_ids[rows],
        )

    def blocks(self, exits: int) -> list[Block]:
        """The rows by prompt, with the tokens that each takes in a pack."""
        width = self.input_ids.shape[1] - self.completion_length
        return blocks_of(
            self.attention_mask[:, :width].sum(1),
            (self.attention_mask[:, width:].sum(1) - 1).clamp(min=0),
            self.prompt_numbers,
            self.exit_ids,
            exits,
        )


@dataclass(frozen=True)
class RowStatistics:
    """Both (rows, completion length) float32 (float64 for a float64 model), 0 where there is no token."""

    log_probs: torch.Tensor
    entropies: torch.Tensor

    @classmethod
    def joined(cls, statistics: Sequence[RowStatistics], parts: Sequence[torch.Tensor]) -> RowStatistics:
        """Those of all rows, in their order, from those of parts: tensors of row indices, every row in one."""
        back = torch.cat(list(parts)).argsort()
        columns = ([part.log_probs for part in statistics], [part.entropies for part in statistics])
        return cls(*(torch.cat(column)[back] for column in columns))


def packed_pass(model, rows: CompletionRows, exits: Sequence[str], temperature: float) -> RowStatistics:
    """One forward of one pack: each prompt once, nothing padded.

    Args:
        model: a family, or what wraps one.
        rows: every exit in them, in any order.
        exits: names, deepest first.
        temperature: divides the logits.
    """
    packed = pack_rows(
        rows.input_ids, rows.attention_mask, rows.completion_length, rows.prompt_numbers, rows.exit_ids, exits
    )
    outputs = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        pack=packed.pack,
        use_cache=False,
        output="log_probs",
        temperature=temperature,
    )
    return RowStatistics(packed.unpack(outputs.log_probs), packed.unpack(outputs.entropy))


def padded_pass(model, rows: CompletionRows, exits: Sequence[str], temperature: float) -> RowStatistics:
    """One forward of the padded rows, which must stand exit by exit, as many of each; rows leave at their exit."""
    labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
    labels[:, : -rows.completion_length] = -100
    outputs = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        labels=labels,
        use_cache=False,
        exits=dict.fromkeys(exits, len(labels) // len(exits)),
        output="log_probs",
        temperature=temperature,
    )
    return RowStatistics(
        *(
            torch.cat([column[name] for name in exits])[:, -rows.completion_length :]
            for column in (outputs.log_probs, outputs.entropy)
        )
    )
