"""`completions.jsonl` of a stage's folder: what the exits answered when they were measured, a line a completion."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.benchmarks.verdicts import Attempt
from ruyi_rl.evaluation import Measured
from ruyi_rl.redaction import Redaction
from ruyi_rl.rewards.samples import prompt_key

COMPLETIONS = "completions.jsonl"
"""Name of the file."""
GREEDY = "greedy"
"""What `sample` says of a greedy answer."""


@dataclass(frozen=True)
class Selection:
    """Which completions of a measurement are written."""

    problems: int | None = None
    """The first ones; None: all."""
    samples: int | None = None
    """Of each problem, besides the greedy answer; None: all."""


SHOWN = Selection(problems=8, samples=2)
"""Enough to look at, of the many measurements around and during a training."""


def completion_lines(
    occasion: str,
    benchmark: str,
    rows: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Measured],
    selection: Selection = Selection(),
) -> Iterator[dict[str, Any]]:
    """The lines of a measurement: exit by exit, problem by problem.

    `problem` is the index of the row, `prompt` the user's last words, `sample` the sample's number or `greedy`.
    """
    for exit, found in measured.items():
        for answered in found.problems[: selection.problems]:
            prompt = prompt_key(rows[answered.problem]["prompt"])
            attempts: list[tuple[int | str, Attempt]] = list(enumerate(answered.samples[: selection.samples]))
            if answered.greedy is not None:
                attempts.insert(0, (GREEDY, answered.greedy))
            for sample, attempt in attempts:
                yield {
                    "occasion": occasion,
                    "benchmark": benchmark,
                    "problem": answered.problem,
                    "exit": exit,
                    "sample": sample,
                    "prompt": prompt,
                    "completion": attempt.text,
                    "reward": attempt.reward,
                    "right": attempt.right,
                    "tokens": attempt.tokens,
                    "finished": attempt.finished,
                }


def write_completions(
    path: Path, occasion: str, benchmark: str, lines: Iterable[Mapping[str, Any]], redaction: Redaction
) -> None:
    """Puts the lines at the end of the file, in the place of those of the same occasion and benchmark.

    Whoever reads, and a kill in between, finds the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = json.dumps({"occasion": occasion, "benchmark": benchmark}, ensure_ascii=False)[:-1] + ","
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A completion may hold half a surrogate pair, which UTF-8 cannot.
        with open(temporary, "w", encoding="utf-8", errors="replace") as file:
            if path.exists():
                with open(path, encoding="utf-8") as old:
                    file.writelines(line for line in old if not line.startswith(own))
            file.writelines(json.dumps(redaction.tree(line), ensure_ascii=False) + "\n" for line in lines)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
