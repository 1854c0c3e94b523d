"""What `eval` and each tool is asked for, a block each. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruyi_rl.benchmarks.options import BenchmarkOptions
from ruyi_rl.harness.options import HarnessOptions

BRANCH_FORMATS = ("merged", "factored")
"""Values of `export.format` that write a folder for each exit."""
FAMILY_FORMATS = ("family", "ruyi")
"""Values of `export.format` that write one folder for all exits."""
EXPORT_FORMATS = (*BRANCH_FORMATS, *FAMILY_FORMATS)
"""What `export.format` may be."""
EXPORT_CHECKS = ("all", "logits")
"""What `export.check` may be."""


@dataclass
class EvalOptions:
    """The `eval` block, read by `stage=eval`."""

    exits: list[str] | None = None
    """Exits to measure; None: all of the family."""
    benchmarks: dict[str, BenchmarkOptions] = field(default_factory=dict)
    """Name -> benchmark, as `benchmark=[gsm8k,humaneval]` puts them here. None given: the run's own held-out rows, by
    `data`, `reward` and `evaluation`."""
    pass_at: list[int] | None = None
    """Each k of pass@k, and above 2 of maj@k; None: the powers of two up to the samples of a problem."""
    completions: str | None = None
    """Score given completions in the place of the family's: `reference`, those of the data itself, or a JSONL file
    whose lines hold `completion` and `prompt` (or `problem`, the number of a row), and perhaps `exit`, who has
    answered, `benchmark` and `sample`. Each is scored; nothing is generated."""
    resamples: int = 2000
    """Bootstrap draws of an interval."""
    harness: HarnessOptions = field(default_factory=HarnessOptions)
    """What lm-evaluation-harness measures."""


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

    exit: Any = None
    """The exit whose branch is exported, or a list of exits; None: each exit of the family."""
    format: str = "merged"
    """`merged`: each exit as a stock Qwen; `factored`: the factors of a compressed exit as they are, fewer bytes, with
    a modelling file that loads them through `trust_remote_code`; `family`: all exits in the family's own format;
    `ruyi`: all exits under the names of the published Ruyi checkpoints."""
    output: str | None = None
    """Folder to export to, of several exits a folder each in it; None: `<run_dir>/export/<exit>-<format>`, or
    `<run_dir>/export/<format>` where one folder holds all exits."""
    check: str = "all"
    """What is compared with the family before the export counts as done: `logits`, as transformers computes them from
    the folder, or `all`: where vLLM is installed its log-probs too, for 10 to 30 seconds an exit on a CPU."""
    license: str | None = None
    """License in the model card, an identifier of the hub's such as apache-2.0; None: the one that the base's card
    names, where that is at hand."""


@dataclass
class MemoryOptions:
    """The `memory` block, read by `stage=memory`."""

    device: str = "auto"
    """What is trained on: `cuda`, `cpu`, or `auto`: cuda where this machine has a GPU or `model.base` names a model."""
    gigabytes: float | None = None
    """Memory of the device, in units of 10^9 bytes; None: this machine's, where it has such a device."""


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


@dataclass
class CompareOptions:
    """The `compare` block, read by `stage=compare`."""

    stage: str | None = None
    """The stage whose results are compared; None: what a sweep asked for, else the furthest that a run has begun."""
    metrics: list[str] | None = None
    """Dotted paths in summary.json, `*` for the exit, such as `exits.*.reward_last`; None: held-out pass rates before
    and after, greedy, benchmarks and seconds."""
    output: str | None = None
    """Folder for compare.json, .csv, .md and .png; None: the sweep's, else one by the runs in `multirun`."""
