"""What a rollout back end is: token ids in, token ids out, one exit a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    max_new_tokens: int
    """Limit of a completion, its end token included."""
    temperature: float = 1.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    """Decides every draw of the call."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion."""

    token_ids: list[int]
    """The tokens after the prompt, the end token included where there is one."""
    finished: bool
    """Whether it ended by itself, rather than at the limit."""
    log_probs: list[float] | None = None
    """Log-probability of each token where the back end reports them."""


class RolloutWorker(Protocol):
    """Generates for the exits of one family and can be given new weights."""

    name: str
    runs_family: bool
    """Whether it runs the family itself, which must then be whole (not sharded) while it generates."""

    def generate(self, exit: str, prompt_ids: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        """One completion a prompt, in order; a prompt that stands there n times gets n draws."""
        ...

    def update_weights(self) -> None:
        """Take the family's current weights. Called before the first generate after an update, never for a worker that
        runs the family itself."""
        ...

    def close(self) -> None:
        """Free what the worker holds; it cannot be used afterwards."""
        ...
