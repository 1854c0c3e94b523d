"""What goes into a pool of reward workers, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruyi_rl.refusal import Refusal, nearest

SCOPES = ("sample", "group", "batch")
LONGEST_TIMEOUT = 86_400.0
"""Seconds."""
MOST_MEMORY_GB = float(2**20)
KINDS = (
    "exception",
    "timeout",
    "crash",
    "memory",
    "nan",
    "infinite",
    "wrong_length",
    "wrong_type",
    "unpicklable",
)
"""Kinds of failures. `infinite`: more than `values.LARGEST` in size, too; `crash`: the worker's end, by a signal,
`os._exit` or `sys.exit`; `unpicklable`: an argument that cannot be sent to a worker."""


@dataclass(frozen=True)
class PoolLimits:
    """What a pool of workers may use.

    Raises:
        Refusal: an impossible value.
    """

    timeout: float = 10.0
    """Seconds that one sample may take; a group or batch that cannot be cut gets them for each of its samples."""
    workers: int | None = None
    """Worker processes at most. None: the cores, divided by the ranks on this machine."""
    memory_gb: float = 4.0
    """GiB that a worker, and all that it starts, may hold."""
    scope: str = "sample"
    """What one call must hold together: `sample` (cut anywhere), `group` or `batch` (never cut)."""

    def __post_init__(self):
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise Refusal("timeout", f"{self.timeout} seconds", f"above 0, up to {LONGEST_TIMEOUT:g} (a day)")
        if self.workers is not None and self.workers < 1:
            raise Refusal("workers", f"{self.workers} worker processes", "1 or more, or null: by the cores")
        if not 0 < self.memory_gb <= MOST_MEMORY_GB:
            raise Refusal("memory_gb", f"{self.memory_gb} GiB", f"above 0, up to {MOST_MEMORY_GB:g}")
        if self.scope not in SCOPES:
            raise Refusal("scope", f"{self.scope!r} is unknown", nearest(self.scope, SCOPES))


@dataclass(frozen=True)
class RewardFailure:
    """One completion that the function gave no reward for."""

    index: int
    """Of the completion in the call."""
    kind: str
    """One of `KINDS`."""
    message: str
    """One line."""
    place: str
    """`file.py:12`, the innermost line of the plugin (of a value: where its function begins), or ""."""


@dataclass
class Scores:
    """What a call gives."""

    rewards: list[float | None]
    """One a completion, in their order; None where the function abstained or failed."""
    failures: list[RewardFailure] = field(default_factory=list)
    """By index, one a failed completion."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """What `log_extra` got: column -> one plain value a completion, None where nothing was given."""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """What `log_metric` got: name -> the values of all calls, in the order of the completions."""
    seconds: float = 0.0
    """Wall clock from the call to the last answer."""
