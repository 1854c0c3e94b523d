"""Workers that have failed: why, how often, and what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ruyi_rl.rollout.servers.client import WorkerFailed
from ruyi_rl.rollout.servers.worker import Worker
from ruyi_rl.rollout.worker import RolloutFailed, Statistics

PATROL_SECONDS = 0.25
"""How often it is looked how a server has ended."""
DYING_PATROLS = 6


class Losses:
    """Gives workers up, and the run after too many.

    Args:
        limit: failures that the run survives.
        statistics: count them too.
        report: called with one line for each worker that is given up.
    """

    def __init__(self, limit: int, statistics: Statistics, report: Callable[[str], None]):
        self.limit, self.statistics, self.report = limit, statistics, report
        self.failures: list[str] = []

    async def give_up(self, worker: Worker, failure: WorkerFailed) -> None:
        """Counts a failure, reports it, and starts the worker anew where the run has started it.

        Raises:
            RolloutFailed: one failure too many, or a server that does not start at all.
            Refusal: a server that does not start because of an option.
        """
        problem = await self._cause(worker, failure)
        worker.check_start()
        worker.lose()
        self.statistics.of(worker.exit).failures += 1
        self.failures.append(f"{time.strftime('%H:%M:%S')} {worker.name}: {problem} ({worker.place})")
        if len(self.failures) > self.limit:
            count = f"workers failed {len(self.failures)} times, and rollout.max_failures is {self.limit}"
            raise RolloutFailed(f"{count}:\n{self.summary()}")
        then = "it is started anew" if worker.server is not None else "it is asked again when it answers"
        self.report(f"rollout worker {worker.name} was given up, and {then}: {problem} ({worker.place})")
        await asyncio.to_thread(worker.restart)

    def summary(self) -> str:
        """All failures, one a line."""
        return "\n".join(f"  {failure}" for failure in self.failures)

    async def _cause(self, worker: Worker, failure: WorkerFailed) -> str:
        """What has happened; of a process that has ended, how, for its connections break first."""
        for _ in range(DYING_PATROLS if failure.dying and worker.server is not None else 1):
            if worker.server is not None and (ended := worker.server.ended()):
                return ended
            await asyncio.sleep(PATROL_SECONDS)
        return str(failure)
