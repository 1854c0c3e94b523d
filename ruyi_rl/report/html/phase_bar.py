"""Where a training's time went, as one bar a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ruyi_rl.report.html.records import StageRecord
from ruyi_rl.report.html.series import columns
from ruyi_rl.report.tables import duration

PHASES = ("rollout", "reward", "old_log_probs", "reference", "update", "sync", "evaluation", "save", "other")
"""Every phase has the same colour in every bar; the order is that of `ruyi_rl.training.phases`."""
PREFIX = "time/"


@dataclass(frozen=True)
class Part:
    """A phase's piece of the bar."""

    name: str
    colour: int
    start: float
    """In percent of the bar."""
    width: float
    text: str


@dataclass(frozen=True)
class PhaseBar:
    """All of a training's time."""

    stage: str
    title: str
    parts: list[Part]
    total: str


def phase_bars(stages: Sequence[StageRecord]) -> list[PhaseBar]:
    """A bar for every stage that has logged phases, in a running one of the steps so far."""
    return [bar for record in stages if (bar := _bar(record)) is not None]


def _bar(record: StageRecord) -> PhaseBar | None:
    timed = {
        key.removeprefix(PREFIX): sum(series.values)
        for key, series in columns(record.rows).items()
        if key.startswith(PREFIX)
    }
    total = sum(timed.values())
    if total <= 0:
        return None
    order = [name for name in PHASES if name in timed] + sorted(set(timed) - set(PHASES))
    parts, start = [], 0.0
    for name in order:
        width = 100 * timed[name] / total
        colour = PHASES.index(name) if name in PHASES else len(PHASES)
        parts.append(Part(name, colour, round(start, 2), round(width, 2), f"{width:.0f} %, {_seconds(timed[name])}"))
        start += width
    shown = ", ".join(f"{part.name} {part.width:.0f} %" for part in parts if part.width >= 0.5)
    return PhaseBar(record.name, f"Time in {record.name}: {shown}", parts, _seconds(total))


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.1f} s"
