"""Which benchmarks a configuration asks for, with every value filled in. Importing this module imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ruyi_rl.benchmarks.options import BenchmarkOptions

if TYPE_CHECKING:
    from ruyi_rl.config import RunConfig

DEFAULT_COMPLETION = 256
"""TRL's max_completion_length."""
TAKEN = frozenset(("harness", "ranks", "rollout"))
"""Folders in the stage's that are for something else."""


@dataclass(frozen=True)
class Asked:
    """A benchmark that is to be measured."""

    name: str
    options: BenchmarkOptions
    """`samples`, `temperature` and `max_new_tokens` are set."""
    own: bool
    """Whether it is the run's own held-out rows."""

    @property
    def block(self) -> str:
        """The block of the configuration that its `data` and `reward` stand in; "" for the root."""
        return "" if self.own else f"eval.benchmarks.{self.name}"

    @property
    def occasion(self) -> str:
        return "held-out pass rate" if self.own else self.name

    @property
    def folder(self) -> str:
        """Name of its folder in the stage's. Data may have any name, a benchmark of the group none that is taken."""
        name = re.sub(r"[^\w-]", "_", self.name)
        return f"{name}_data" if name in TAKEN else name

    def key(self, name: str) -> str:
        """The config key of one of its options."""
        return f"{self.block}.{name}" if self.block else name


def asked_benchmarks(config: RunConfig) -> list[Asked]:
    """Those of `eval.benchmarks`; where there are none, the run's own held-out rows, unless `evaluation.problems` is
    0."""
    evaluation = config.evaluation
    given = dict(config.eval.benchmarks)
    if not given and evaluation.problems:
        given = {config.data.name: BenchmarkOptions(config.data, config.reward, evaluation.problems)}
    defaults = {
        "samples": evaluation.samples,
        "temperature": evaluation.temperature,
        "max_new_tokens": completion_limit(config),
        "pass_at": config.eval.pass_at,
    }
    return [
        Asked(
            name,
            replace(options, **{key: value for key, value in defaults.items() if getattr(options, key) is None}),
            own=not config.eval.benchmarks,
        )
        for name, options in given.items()
    ]


def completion_limit(config: RunConfig) -> int:
    """`evaluation.max_new_tokens`, or that of the training."""
    limit = config.evaluation.max_new_tokens or config.grpo.trainer.get("max_completion_length")
    return limit or DEFAULT_COMPLETION
