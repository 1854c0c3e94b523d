"""What a rollout back end is: token ids in, token ids out, every request with its exit and its own seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from ruyi_rl.family import Family, FamilyConfig


@dataclass(frozen=True)
class RolloutSpec:
    """What every back end is told of the family and of the run."""

    config: FamilyConfig
    exits: tuple[str, ...]
    """Exits that will be asked for, shallowest first."""
    end_token_ids: tuple[int, ...]
    """Every token that ends a completion."""
    pad_token_id: int
    dtype: torch.dtype
    """In which an engine holds its weights."""
    max_model_len: int
    """Longest prompt and completion together, in tokens."""
    folder: Path
    """For logs and small files; made where it is needed."""
    seed: int = 0


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


@dataclass(frozen=True)
class Request:
    """One completion that is asked for."""

    exit: str
    prompt_ids: Sequence[int]
    seed: int = 0
    """Decides every draw of this completion; below 2^63."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion."""

    token_ids: list[int]
    """The tokens after the prompt, the end token included where there is one."""
    finished: bool
    """Whether it ended by itself, rather than at the limit."""
    log_probs: list[float] | None = None
    """Log-probability of each token under the distribution that it was drawn from (temperature and filters applied),
    where the back end reports it."""


Arrived = Callable[[Sequence[int], Sequence[Completion]], None]
"""Called with the places of requests and their completions as soon as these are there; each place comes once."""


@dataclass
class ExitStatistics:
    """What one exit's worker has done since it was last asked."""

    tokens: int = 0
    """Completion tokens."""
    seconds: float = 0.0
    """Wall time of generating them."""
    sync_seconds: float = 0.0
    """Wall time of taking weights."""
    failures: int = 0
    """Times that a worker was given up."""


@dataclass(frozen=True)
class WorkerHealth:
    """One worker's state."""

    exit: str
    name: str
    alive: bool
    detail: str = ""
    """Where it is, or why it is not alive."""


class RolloutFailed(RuntimeError):
    """The rollouts cannot go on; the message says what happened, worker by worker."""


class Rollout(Protocol):
    """A back end: generates for the exits of one family and takes new weights.

    With several ranks every rank calls each method, in the same order.
    """

    name: str
    runs_family: bool
    """Whether it runs the family itself, which must then be whole (not sharded) while it generates."""

    def update_weights(self, family: Family) -> None:
        """Take the family's current weights; it may be sharded by ZeRO-3. Called before the first generate."""
        ...

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        """One completion a request, in order.

        Args:
            arrived: called while others are still generated, where the back end can, and for as many as it can.

        Raises:
            RolloutFailed: after more failures than are allowed.
        """
        ...

    def statistics(self) -> dict[str, ExitStatistics]:
        """Exit -> what this rank's workers have done since the last call of this method."""
        ...

    def health(self) -> list[WorkerHealth]:
        """The state of every worker that this rank looks after."""
        ...

    def close(self) -> None:
        """Free what the back end holds; it cannot be used afterwards. May be called twice."""
        ...


@dataclass
class Statistics:
    """Collects `ExitStatistics`."""

    exits: dict[str, ExitStatistics] = field(default_factory=dict)

    def of(self, exit: str) -> ExitStatistics:
        return self.exits.setdefault(exit, ExitStatistics())

    def take(self) -> dict[str, ExitStatistics]:
        """What was collected; starts over."""
        taken, self.exits = self.exits, {}
        return taken


def request_seeds(
    run_seed: int, occasion: Sequence[object], exits: Sequence[str], prompts: Sequence[Sequence[int]]
) -> list[int]:
    """A seed for each request, decided by the run's seed, the occasion, the prompt, the exit and the sample.

    Not by ranks, batches or order: requests of the same prompt and exit are samples 0, 1, … in the order in which they
    stand. Sample i's seed is sample 0's plus i, so that one vLLM request with `n` samples draws the same.

    Args:
        run_seed: the run's.
        occasion: what else tells this rollout from others (mode, step, number of the rollout in the step).
        exits: (requests,) names.
        prompts: (requests,) token ids.
    """
    samples: Counter[tuple[str, tuple[int, ...]]] = Counter()
    first: dict[tuple[str, tuple[int, ...]], int] = {}
    seeds = []
    for exit, prompt in zip(exits, prompts, strict=True):
        key = exit, tuple(prompt)
        if key not in first:
            text = repr((run_seed, *occasion, *key))
            first[key] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 2
        seeds.append(first[key] + samples[key])
        samples[key] += 1
    return seeds
