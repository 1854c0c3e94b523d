"""One worker's part in answering the requests of its exit."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.servers.client import WorkerClient, WorkerFailed
from ruyi_rl.rollout.servers.work import ExitWork
from ruyi_rl.rollout.servers.worker import Worker
from ruyi_rl.rollout.worker import RolloutSpec, Sampling

SEQUENCES = 1024
"""Sequences that an engine works on at a time at most, where nobody has set another number."""
Value = TypeVar("Value")


class Serving:
    """Has one worker answer groups of its exit for as long as there may be any.

    Args:
        mates: workers of the exit, this one among them.
        workers: of all exits.
        beat: called when the worker has answered, or its counters have moved.
    """

    def __init__(
        self,
        worker: Worker,
        work: ExitWork,
        sampling: Sampling,
        *,
        mates: int,
        workers: int,
        options: RolloutOptions,
        spec: RolloutSpec,
        beat: Callable[[], None] = lambda: None,
    ):
        self._beat = beat
        self.worker, self.work, self.sampling, self.mates = worker, work, sampling, mates
        self.workers, self.options, self.spec = workers, options, spec
        self.under_way = 0
        self.moved = time.monotonic()
        """When a request was begun or answered, or the worker's counters moved."""

    async def run(self) -> None:
        """Runs until it is cancelled.

        Raises:
            WorkerFailed: the worker broke a connection, answered rubbish, or made no progress for `options.timeout`.
                What it has not answered waits again.
        """
        slots = self.work.slots(self.mates, int(self.options.engine.get("max_num_seqs") or SEQUENCES))
        slots = min(slots, connections(self.workers))
        async with WorkerClient(self.worker.endpoint, slots) as client:
            await until([self._ask(client) for _ in range(slots)], [self._watch(client)])

    async def _ask(self, client: WorkerClient) -> None:
        """Takes one group after the other, and puts back the one that it did not get answered."""
        vocabulary, ends = self.spec.config.vocab_size, self.spec.end_token_ids
        while True:
            group = await self.work.waiting.get()
            answered = False
            self.under_way += 1
            self.moved = time.monotonic()
            try:
                completions = await client.complete(group, self.sampling, vocabulary, ends)
                answered = True
            finally:
                self.under_way -= 1
                self.moved = time.monotonic()
                if not answered:
                    self.work.waiting.put_nowait(group)
            self.work.answer(group, completions)
            self._beat()

    async def _watch(self, client: WorkerClient) -> None:
        """Fails when requests are under way and nothing has moved for too long."""
        limit = self.options.timeout
        counted = None
        while True:
            await asyncio.sleep(min(2.0, limit / 8))
            if self.under_way == 0:
                continue
            count = await client.progress(min(2.0, limit / 4))
            if count is not None and count != counted:
                counted, self.moved = count, time.monotonic()
                self._beat()
            if time.monotonic() - self.moved > limit:
                raise WorkerFailed(f"it made no progress for {limit:g} s with {self.under_way} requests under way")


def connections(workers: int) -> int:
    """Connections to one worker, where all together take at most half of the files that this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, SEQUENCES if limit == resource.RLIM_INFINITY else limit // 2 // workers)


def run(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Runs a coroutine in an event loop of its own; whatever it has left undone is cancelled at its end."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(handle)
        return runner.run(coroutine)


def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Reports what a loop's callbacks raise, but for what anyio's sockets do when they are cancelled as data comes."""
    if not isinstance(context.get("exception"), asyncio.InvalidStateError):
        loop.default_exception_handler(context)


async def until(goals: Sequence[Coroutine[Any, Any, Any]], helpers: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Runs all until the goals are reached, or one of all fails, whose error is raised; the rest is cancelled."""
    open_goals = {asyncio.ensure_future(goal) for goal in goals}
    running = {asyncio.ensure_future(helper) for helper in helpers} | open_goals
    everything = list(running)
    try:
        while open_goals:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            open_goals -= done
            for task in done:
                task.result()
    finally:
        unfinished = everything
        while unfinished := [task for task in unfinished if not task.done()]:
            for task in unfinished:
                task.cancel()  # again and again: a library may swallow it
            await asyncio.wait(unfinished, timeout=1.0)
        for task in everything:
            if not task.cancelled():
                task.exception()  # one that came second is of no interest
