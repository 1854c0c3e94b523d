"""Sample completions side by side: the same problem at every exit, before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruyi_rl.report.html.records import StageRecord, json_lines
from ruyi_rl.report.streams import CONTROLS

PROBLEMS = 8
"""Problems of a benchmark that are shown."""
DRAWN = 2
"""Samples of an exit that are shown besides the greedy completion."""
LONGEST = 12_000
"""Characters of a text that are shown; the rest is counted."""


@dataclass(frozen=True)
class Answer:
    """One completion."""

    exit: str
    text: str
    left_out: int
    """Characters after the text."""
    verdict: str
    """`right`, `wrong`, or "" where nothing judged it."""
    reward: float | None
    tokens: int | None
    finished: bool


@dataclass(frozen=True)
class Row:
    """The exits' completions of one kind."""

    label: str
    """`greedy, after grpo`"""
    answers: list[Answer]


@dataclass(frozen=True)
class Problem:
    number: int
    prompt: str
    left_out: int
    rows: list[Row]


@dataclass(frozen=True)
class Samples:
    """Problems of one benchmark."""

    benchmark: str
    occasions: list[str]
    problems: list[Problem]


@dataclass
class _Collected:
    """Lines of one benchmark: problem -> (occasion, sample) -> exit -> line."""

    occasions: list[str] = field(default_factory=list)
    lines: dict[int, dict[tuple[str, str], dict[str, Mapping[str, Any]]]] = field(default_factory=dict)


def samples(stages: Sequence[StageRecord], exits: Mapping[str, int]) -> list[Samples]:
    """For each benchmark the first problems, at its first and its last measurement of the run."""
    found: dict[str, _Collected] = {}
    for record in stages:
        if record.completions is not None:
            _collect(found, record, json_lines(record.completions))
    return [_shown(name, collected, exits) for name, collected in found.items() if collected.lines]


def _collect(found: dict[str, _Collected], record: StageRecord, lines: Iterable[Mapping[str, Any]]) -> None:
    for line in lines:
        if not isinstance(line.get("problem"), int) or not isinstance(line.get("completion"), str):
            continue
        sample = line.get("sample")
        if isinstance(sample, int) and sample >= DRAWN:
            continue
        collected = found.setdefault(str(line.get("benchmark")), _Collected())
        # Two stages may name a measurement alike.
        occasion = f"{record.name}\n{line.get('occasion')}"
        if occasion not in collected.occasions:
            collected.occasions.append(occasion)
        problem = line["problem"]
        if problem not in collected.lines and len(collected.lines) >= PROBLEMS:
            continue
        exits = collected.lines.setdefault(problem, {}).setdefault((occasion, str(sample)), {})
        exits[str(line.get("exit"))] = line


def _shown(benchmark: str, collected: _Collected, exits: Mapping[str, int]) -> Samples:
    chosen = list(dict.fromkeys([collected.occasions[0], collected.occasions[-1]]))
    names = {occasion: _name(occasion) for occasion in chosen}
    problems = []
    for number, kinds in sorted(collected.lines.items()):
        order = sorted({sample for _, sample in kinds}, key=lambda sample: (sample != "greedy", sample))
        rows = [
            Row(_label(sample, names[occasion]), _answers(kinds[occasion, sample], exits))
            for sample in order
            for occasion in chosen
            if (occasion, sample) in kinds
        ]
        asked = next(line for each in kinds.values() for line in each.values())
        if rows:
            problems.append(Problem(number, *visible(str(asked.get("prompt", ""))), rows))
    return Samples(benchmark, list(names.values()), problems)


def _name(occasion: str) -> str:
    stage, _, told = occasion.partition("\n")
    told = told.removeprefix("held-out pass rate").strip()
    if not told:
        return f"by {stage}"
    return told if stage in told else f"{told} ({stage})"


def _label(sample: str, occasion: str) -> str:
    return f"greedy, {occasion}" if sample == "greedy" else f"sample {int(sample) + 1}, {occasion}"


def _answers(lines: Mapping[str, Mapping[str, Any]], exits: Mapping[str, int]) -> list[Answer]:
    order = sorted(lines, key=lambda name: exits.get(name, len(exits)))
    return [_answer(name, lines[name]) for name in order]


def _answer(exit: str, line: Mapping[str, Any]) -> Answer:
    right, reward, tokens = line.get("right"), line.get("reward"), line.get("tokens")
    text, left_out = visible(line["completion"])
    return Answer(
        exit=exit,
        text=text,
        left_out=left_out,
        verdict="" if right is None else "right" if right else "wrong",
        reward=float(reward) if isinstance(reward, (int, float)) else None,
        tokens=tokens if isinstance(tokens, int) else None,
        finished=bool(line.get("finished", True)),
    )


def visible(text: str) -> tuple[str, int]:
    """A text as a browser may show it, at most `LONGEST` of its characters, and how many are left out."""
    return text[:LONGEST].translate(CONTROLS), max(0, len(text) - LONGEST)
