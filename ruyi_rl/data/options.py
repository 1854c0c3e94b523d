"""`data`: where rows come from and how their fields map. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataOptions:
    """The `data` group."""

    name: str = "arithmetic"
    """Short name; the default run name ends with it."""
    source: str = "rows"
    """`rows`: JSONL / JSON / parquet files or a hub id at `path`; `arithmetic`: the embedded, generated task."""
    path: str | None = None
    """A file, a folder that holds the split files, or a hub dataset id."""
    train: str = "train"
    """Training split: a file name in `path` (with or without suffix), or the hub split."""
    test: str | None = "test"
    """Held-out split, likewise. None, or a file that is absent: `holdout` rows are cut from the training split."""
    holdout: int = 256
    """Rows cut from the end of the shuffled training split where there is no held-out split."""
    subset: str | None = None
    """Hub dataset configuration name."""
    fields: dict[str, str] = field(default_factory=dict)
    """Our field -> the row's field: prompt, answer, completion, tests, text … Fields not named here pass through."""
    prompt_template: str | None = None
    """str.format template over the row's fields that makes the user's message; None: the prompt field as it is."""
    completion_template: str | None = None
    """str.format template over the row's fields that makes the assistant's message for SFT."""
    answer_pattern: str | None = None
    """Regular expression with one group that cuts the gold answer out of the answer field (GSM8K: after ####)."""
    system: str | None = None
    """System message put before every prompt."""
    limit: int | None = None
    """Use at most this many training rows."""
    max_prompt_tokens: int = 512
    """Longer prompts are left out of the run, counted and reported before it starts; never cut."""
    task: dict[str, Any] = field(default_factory=dict)
    """Options of an embedded task (`source=arithmetic`): see ruyi_rl/data/arithmetic.py."""
