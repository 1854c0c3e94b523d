"""What a packed row is made of, and which part of it each layer of a family computes.

A pack is one row of segments without padding. Shared segments stand first: every exit runs them. Then come the
segments of the deepest exit, then those of the next …, so that the tokens that are still active at a depth are always a
prefix of the row:

    [ shared | large | large | medium | medium | small ]
      depth 0..1      : all of it
      depth 2..3      : without small
      depth 4         : shared and large

In GRPO the shared segments are prompts and the others their completions. In joint SFT every segment is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Scored:
    """Which tokens of an exit are scored; both (scored tokens,) int64."""

    sources: torch.Tensor
    """Position, among the tokens that the exit's branch runs, whose hidden state predicts the token."""
    targets: torch.Tensor
    """The token."""


@dataclass(frozen=True)
class Pack:
    """Segments of one row, and what of it each exit runs."""

    lengths: tuple[int, ...]
    """Tokens of each segment, in the row's order; none is empty."""
    prompts: tuple[int, ...]
    """For each segment the number of the shared segment that it also attends to, as a whole; -1: none."""
    shared: int
    """Number of shared segments."""
    owned: Mapping[str, int] = field(default_factory=dict)
    """Exit -> number of segments of its own, deepest exit first."""
    scored: Mapping[str, Scored] = field(default_factory=dict)
    """Exit -> what `output="log_probs"` scores of it."""

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return sum(self.lengths)

    @property
    def exits(self) -> tuple[str, ...]:
        """The exits that the pack is for."""
        return tuple(self.scored)

    def segments(self, exit: str) -> tuple[int, int]:
        """(first, after the last) of the exit's own segments."""
        start = self.shared
        for name, count in self.owned.items():
            if name == exit:
                return start, start + count
            start += count
        return start, start

    def active(self, exits: list[str]) -> int:
        """Number of leading segments that the shared ones and these exits' make up."""
        return max((self.segments(name)[1] for name in exits), default=0)

    def check(self, depths: Mapping[str, int]) -> None:
        """Raises ValueError unless the segments are those of the family's exits, ordered deepest first."""
        if unknown := [name for name in {**self.owned, **self.scored} if name not in depths]:
            raise ValueError(f"a pack for exits {unknown}; this family has {list(depths)}")
        order = [depths[name] for name in self.owned]
        if order != sorted(order, reverse=True):
            raise ValueError(f"a pack's exits stand deepest first, but got {list(self.owned)}")
        if self.shared + sum(self.owned.values()) != len(self.lengths) or len(self.prompts) != len(self.lengths):
            raise ValueError(
                f"{self.shared} shared segments and {dict(self.owned)} do not make {len(self.lengths)} segments"
            )
        if min(self.lengths, default=0) < 1:
            raise ValueError("a pack holds no empty segments, and at least one segment")
        if any(prompt != -1 for prompt in self.prompts[: self.shared]) or not all(
            -1 <= prompt < self.shared for prompt in self.prompts[self.shared :]
        ):
            raise ValueError(f"a completion's prompt is one of the {self.shared} shared segments, which have none")
