"""What `eval` and each tool is asked for, a block each. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXPORT_FORMATS = ("merged", "factored")
"""What `export.format` may be."""


@dataclass
class EvalOptions:
    """The `eval` block, read by `stage=eval`."""

    exits: list[str] | None = None
    """Exits to measure; None: all of the family."""


@dataclass
class GenerateOptions:
    """The `generate` block, read by `stage=generate`."""

    exits: list[str] | None = None
    """Exits that answer, side by side; None: all of the family."""
    prompt: str | None = None
    """One prompt; None, and no `file`: a chat on a terminal, else the lines of standard input."""
    file: str | None = None
    """Prompts: .txt with one a line, or JSONL, JSON or parquet rows whose `prompt` is text or chat messages."""
    output: str | None = None
    """JSONL file for the completions, one a line; an older file is replaced. None: they are only shown."""
    chat: bool | None = None
    """Render prompts by the tokenizer's chat template; None: where it has one."""
    system: str | None = None
    """System message that opens every chat."""
    max_new_tokens: int = 256
    """Limit of a completion, its end token included."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    samples: int = 1
    """Completions of each prompt at each exit; drawn by the run's `seed`."""


@dataclass
class ServeOptions:
    """The `serve` block, read by `stage=serve`."""

    exit: str | None = None
    """The exit whose branch is served; None: the family's default exit."""
    host: str = "127.0.0.1"
    """Address that the server listens on."""
    port: int = 8000
    output: str | None = None
    """Folder that the branch is exported to, a stock Qwen; None: `<run_dir>/serve/<exit>`."""
    rollout: bool = True
    """Let `rollout.addresses` use the server: it takes new weights from whoever reaches it, and reports the
    log-probabilities of the distribution that it drew from."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Any further flag of `vllm serve`, such as `max_model_len`."""


@dataclass
class ExportOptions:
    """The `export` block, read by `stage=export`."""

    exit: str | None = None
    """The exit whose branch is exported; None: the family's default exit."""
    format: str = "merged"
    """`merged`: a stock Qwen; `factored`: the factors of a compressed exit as they are, fewer bytes, with a modelling
    file that loads them through `trust_remote_code`."""
    output: str | None = None
    """Folder that the branch is exported to; None: `<run_dir>/export/<exit>-<format>`."""


@dataclass
class NewRewardOptions:
    """The `new_reward` block, read by `stage=new_reward`."""

    kind: str = "plain"
    """`plain`: a function; `async`: one that waits for something outside, such as a server; `group`: one that compares
    the completions of a prompt with each other."""


@dataclass
class CheckRewardOptions:
    """The `check_reward` block, read by `stage=check_reward`."""

    samples: int = 32
    """Rows of the data whose completions are scored, or the most completions that are read of the file."""
    completions: str | None = None
    """JSONL file of completions to score, such as `generate.output` or the file of `grpo.rollout_only`; columns that a
    line lacks are those of the data's row with its prompt. None: the data's own reference completions, right and
    exchanged between rows. Where there are no `completion_ids`, a completion has one a byte."""
    shown: int = 16
    """Most rows of the table of samples."""
    output: str | None = None
    """JSON file for all results; an older file is replaced. None: they are only shown."""
