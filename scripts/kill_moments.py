"""Where in a run a kill falls: a phase, one of its visits, and how far into it; read from the trace of a run."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

POLL_SECONDS = 0.001
LOADING, ANY = "loading", "anywhere"
"""Before a run's first phase; and at a time drawn from the whole run, whatever is done then."""
FIRST, FINAL = "before the first checkpoint", "final save"


@dataclass(frozen=True)
class Visit:
    """One phase that rank 0 went through."""

    phase: str
    number: int
    """Which visit of this phase, from 1."""
    start: float
    """Seconds after the command's start."""
    seconds: float


@dataclass(frozen=True)
class Moment:
    """A moment of a run: `delay` seconds after the visit has begun, or after the command's start."""

    label: str
    phase: str | None
    number: int
    delay: float


def visits(trace: Path, started: float, ended: float) -> list[Visit]:
    """What rank 0 went through, in order.

    Args:
        trace: folder of `sitecustomize.py`'s files.
        started, ended: of the command, seconds since the epoch.
    """
    path = trace / "rank-0"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    times = [float(moment) for moment, _ in lines] + [ended]
    phases = [phase for _, phase in lines]
    return numbered(
        Visit(phase, 0, start - started, end - start) for phase, start, end in zip(phases, times, times[1:])
    )


def numbered(seen: Iterable[Visit]) -> list[Visit]:
    """The same visits, each numbered among those of its phase."""
    count: Counter[str] = Counter()
    found = []
    for visit in seen:
        count[visit.phase] += 1
        found.append(replace(visit, number=count[visit.phase]))
    return found


def rest(seen: Sequence[Visit], share: float) -> list[Visit]:
    """About what a run goes through that has a checkpoint of this share of its steps."""
    start, end = seen[0].start, seen[-1].start + seen[-1].seconds
    later = [visit for visit in seen if visit.start >= start + share * (end - start)]
    return numbered(replace(visit, start=visit.start - share * (end - start)) for visit in later)


class Moments:
    """Draws moments, of the phases that were hit least so far."""

    def __init__(self, draw: random.Random):
        self.draw, self.hit = draw, Counter()

    def next(self, seen: Sequence[Visit], seconds: float, only: str | None = None) -> Moment:
        """A moment of a run that went through `seen` in so many seconds.

        Args:
            only: a label that the moment must have; None: one that was hit least.
        """
        saves = [visit for visit in seen if visit.phase == "save"]
        choices: dict[str, list[Visit]] = {LOADING: [], ANY: []}
        for visit in seen:
            choices.setdefault(visit.phase, []).append(visit)
        if saves:
            choices["save"] = saves[:-1]
            choices[FINAL] = saves[-1:]
            choices[FIRST] = [visit for visit in seen if visit.start < saves[0].start]
        choices = {label: found for label, found in choices.items() if found or label in (LOADING, ANY)}
        fewest = min(self.hit[label] for label in choices)
        label = only or self.draw.choice([label for label in choices if self.hit[label] == fewest])
        self.hit[label] += 1
        if label == ANY or not choices[label]:
            until = seconds if label == ANY or not seen else seen[0].start
            return Moment(label, None, 0, self.draw.uniform(0.2, until))
        visit = self.draw.choice(choices[label])
        return Moment(label, visit.phase, visit.number, self.draw.uniform(0, visit.seconds))


def wait_for(moment: Moment, trace: Path, running: Callable[[], bool]) -> bool:
    """Waits until the run that writes `trace` is at the moment; False where it has ended before."""
    path, read, seen = trace / "rank-0", 0, 0
    while moment.phase is not None and seen < moment.number:
        if not running():
            return False
        time.sleep(POLL_SECONDS)
        if path.exists() and (size := path.stat().st_size) > read:
            text = path.read_text()
            read, seen = size, [line.split()[1:] for line in text.splitlines()].count([moment.phase])
    deadline = time.monotonic() + moment.delay
    while (left := deadline - time.monotonic()) > 0:
        if not running():
            return False
        time.sleep(min(left, 0.02))
    return running()


def newest_phase(trace: Path) -> str:
    """What rank 0 is in."""
    path = trace / "rank-0"
    lines = path.read_text().split() if path.exists() else []
    return lines[-1] if lines else LOADING
