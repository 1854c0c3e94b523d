"""`eval.benchmarks`: what is measured, and how. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ruyi_rl.data.options import DataOptions
from ruyi_rl.rewards.options import RewardOptions

REFERENCE = "reference"
"""Value of `eval.completions`, and the name of who has answered where nobody is named."""


@dataclass
class BenchmarkOptions:
    """One benchmark of `stage=eval`, as `benchmark=<name>` chooses it."""

    data: DataOptions = field(default_factory=DataOptions)
    """Its rows. All rows of `data.test` are problems; without a test split, all of `data.train`."""
    reward: RewardOptions = field(default_factory=RewardOptions)
    """The judge."""
    problems: int | None = None
    """Problems that are measured, drawn by the run's seed; None: all."""
    samples: int | None = None
    """Samples a problem, besides greedy decoding; None: `evaluation.samples`."""
    temperature: float | None = None
    """Of the samples; None: `evaluation.temperature`."""
    max_new_tokens: int | None = None
    """Limit of a completion; None: that of `evaluation`."""
    pass_at: list[int] | None = None
    """Each k of pass@k and maj@k; None: `eval.pass_at`."""
