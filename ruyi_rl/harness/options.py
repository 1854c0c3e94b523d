"""`eval.harness`: what lm-evaluation-harness measures. Importing this module imports neither torch nor the harness."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BACKENDS = ("auto", "hf", "vllm")
"""What `backend` may be."""


@dataclass
class HarnessOptions:
    """The `eval.harness` block, read by `stage=eval`. Needs `pip install 'ruyi_rl[harness]'`."""

    tasks: list[str] = field(default_factory=list)
    """Names of the harness's tasks, groups and tags (`mmlu`, `bbh_cot_zeroshot` …), or of `include_path`'s; none: the
    harness is not run."""
    num_fewshot: int | None = None
    """Solved examples before each question; None: as each task says. A task that says 0 keeps 0."""
    limit: float | None = None
    """Questions of each task, the first ones: from 1 on a number, below 1 a share. None: all."""
    batch_size: int | None = 16
    """hf: rows in one forward pass; None: found by the harness, halving from 64 until it fits. Decides no result."""
    backend: str = "auto"
    """`hf`: the branch in this process, the questions shared out over all ranks; `vllm`: an engine of its own, on one
    rank; `auto`: vllm on one rank with a GPU where it can be imported, else hf, and the stage says which."""
    include_path: str | None = None
    """Folder with task files (YAML) of your own."""
    chat_template: bool = False
    """Ask each question as a chat, by the tokenizer's template."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Any further argument of the harness's `simple_evaluate` (`gen_kwargs`, `system_instruction` …)."""
    model: dict[str, Any] = field(default_factory=dict)
    """Any further argument of the harness's model class: `max_length`, `enable_thinking`; with vllm also the engine's
    (`tensor_parallel_size`, `gpu_memory_utilization` …)."""
