"""What a sweep shows while it runs. Imports no torch."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ruyi_rl.cli.sweep.process import last_line
from ruyi_rl.cli.sweep.record import DONE, REFUSED, RUNNING, WAITING, JobRecord, SweepRecord
from ruyi_rl.pipeline import ORDER
from ruyi_rl.report.tables import duration

REFRESHES = 2
"""A second, on a terminal."""


class SweepDisplay:
    """Context that shows one line a running job on a terminal; elsewhere a line for each start and end.

    Args:
        console: where to.
        record: whose jobs.
        live: whether jobs run side by side; one by one they show themselves, through their log.
        total: jobs that there are to be; None: those of the record.
    """

    def __init__(self, console: Console, record: SweepRecord, live: bool, total: int | None = None):
        self.console, self.record, self.total = console, record, total
        self._started: dict[int, float] = {}
        self._taken: list[float] = []
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=REFRESHES) if live else None
        self._begin = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None and self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str, style: str | None = None) -> None:
        self.console.print(line, style=style, markup=False, soft_wrap=True)

    def started(self, job: JobRecord) -> None:
        self._started[job.job] = time.monotonic()
        self.say(f"{self.label(job)}: {' '.join(job.overrides)}".rstrip(": "))

    def ended(self, job: JobRecord) -> None:
        """Says how a job ended, and when all may have."""
        taken = time.monotonic() - self._started.pop(job.job, time.monotonic())
        if job.status == DONE:
            self._taken.append(taken)
        self.say(f"{self.label(job)} {ending(job)} after {duration(taken)}{self._left()}")

    def announce(self) -> None:
        """Says which jobs are done, and which cannot run."""
        jobs = self.record.jobs.values()
        if done := sum(job.status == DONE for job in jobs):
            self.say(f"{done} of {len(jobs)} jobs {'is' if done == 1 else 'are'} done already", style="green")
        for job in jobs:
            if job.status == REFUSED:
                self.say(f"{self.label(job)} cannot run: {job.message}", style="yellow")

    def close(self) -> None:
        """Says how every job ended, and what comes next."""
        jobs = [self.record.jobs[number] for number in sorted(self.record.jobs)]
        for job in jobs:
            words = " ".join(job.overrides)
            self.say(f"{self.label(job)} {ending(job)}" + (f": {words}" if words else ""))
        done, folder = sum(job.status == DONE for job in jobs), self.record.folder
        count = f"{done} of {self.total or len(jobs)} jobs {'is' if done == 1 else 'are'} done"
        self.say(f"{count}; {folder} holds sweep.json and the logs")
        if any(job.status not in (DONE, REFUSED) for job in jobs):
            self.say("The same command goes on with what is not done", style="yellow")
        if done and any(job.stage in (*ORDER, "pipeline") for job in jobs):
            self.say(f"Next: python -m ruyi_rl stage=compare runs={shlex.quote(str(folder))}", style="dim")

    def best(self, best: tuple[int, float, list[str]] | None) -> None:
        """Says which trial of a search is the best."""
        if best is not None:
            number, value, overrides = best
            self.say(f"best of {self.record.metric}: {value:.4g} by job {number}: {' '.join(overrides)}", style="bold")

    def label(self, job: JobRecord) -> str:
        count = self.total or len(self.record.jobs)
        return f"job {job.job:>{len(str(count))}}/{count}"

    def _left(self) -> str:
        """By the mean time of this start's jobs and how many of them ran side by side."""
        left = sum(job.status in (WAITING, RUNNING) for job in self.record.jobs.values())
        left += (self.total or len(self.record.jobs)) - len(self.record.jobs)
        if not left or not self._taken:
            return ""
        pace = (time.monotonic() - self._begin) / len(self._taken)
        return f" · {left} to go, about {duration(pace * left)} left"

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        labels = [len(self.label(self.record.jobs[number])) for number in self._started]
        table.add_column(no_wrap=True, width=max(labels, default=0))
        table.add_column(justify="right", no_wrap=True, width=len("0:00:00"))
        table.add_column(no_wrap=True, overflow="ellipsis", style="dim", ratio=1)
        now = time.monotonic()
        for number, started in sorted(self._started.items()):
            job = self.record.jobs[number]
            line = last_line(self.record.folder / job.log)
            table.add_row(escape(self.label(job)), duration(now - started), escape(line))
        return table


def ending(job: JobRecord) -> str:
    """How a job ended, in words."""
    if job.status == DONE:
        return "done"
    if job.status == WAITING:
        return "not started"
    return f"{job.status} with status {job.exit_status}" + (f" ({job.message})" if job.message else "")


class LogTail:
    """Shows what is appended to a log."""

    def __init__(self, log: Path):
        self.log = log
        self.place = log.stat().st_size if log.exists() else 0

    def __call__(self) -> None:
        with open(self.log, "rb") as file:
            file.seek(self.place)
            new = file.read()
        # A character of several bytes may be half there.
        whole = new if not new or new[-1] < 0x80 else new[: new.rfind(b"\n") + 1]
        self.place += len(whole)
        if whole:
            sys.stdout.write(whole.decode(errors="replace"))
            sys.stdout.flush()
