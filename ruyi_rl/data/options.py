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
    """`rows`: JSONL / JSON / parquet files or a hub id at `path`; `arithmetic`, `toy_code`: the embedded, generated
    tasks; `mixture`: several of these at once."""
    path: str | None = None
    """A file, a folder that holds the split files, or a hub dataset id."""
    train: str = "train"
    """Training split: a file name in `path` (with or without suffix), or the hub split."""
    test: str | None = "test"
    """Held-out split, likewise. None, or a file that is absent: `holdout` rows are cut from the training split.
    Where `path` is a single file: only a file beside it that is named here with its suffix."""
    holdout: int | None = None
    """Rows held out of the training split where there is no held-out split: whole prompts, chosen by the seed. None:
    256, or a tenth of the prompts where that is less."""
    subset: str | None = None
    """Hub dataset configuration name."""
    fields: dict[str, str] = field(default_factory=dict)
    """Our field -> the row's field: prompt, answer, completion, messages, text, tests … A dot goes into a nested
    object (`answer: reward_model.ground_truth`). A row that lacks a field named here is refused. prompt, answer,
    completion, messages and text are also found under their own names; all other fields pass through."""
    prompt_template: str | None = None
    """str.format template that makes the user's message; None: the prompt field as it is. It sees the row's fields,
    the named groups of `answer_pattern`, and `answer`, which is the gold answer."""
    completion_template: str | None = None
    """str.format template, over the same, that makes the assistant's message for SFT."""
    completion_strip: str | None = None
    """Regular expression whose matches are taken out of the completion (GSM8K: the calculator's <<48/2=24>>)."""
    answer_pattern: str | None = None
    """Regular expression that cuts the gold answer out of the answer field (GSM8K: after ####): its one group, or its
    group named `answer`; other named groups can be used in the templates. A row that does not match is refused."""
    empty_answer: str = "refuse"
    """Rows whose answer is null or blank: `refuse` the file, `drop` such rows and report their number, or `keep` them
    with None, for another reward than one that reads the answer (`reward=math_code`)."""
    system: str | None = None
    """System message put before every prompt that has none of its own."""
    limit: int | None = None
    """Use at most this many training rows: the first ones, after the held-out rows are cut."""
    max_prompt_tokens: int = 512
    """Longer prompts are left out of the run, counted and reported before it starts; never cut."""
    task: dict[str, Any] = field(default_factory=dict)
    """Options of an embedded task, see ruyi_rl/data/<source>.py. Of a mixture: task -> its options."""
