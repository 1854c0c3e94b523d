"""Servers that share the requests of several exits, are told of new weights, and are replaced when they fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.servers.addresses import address_problem
from ruyi_rl.rollout.servers.client import WorkerClient, WorkerFailed
from ruyi_rl.rollout.servers.losses import Losses
from ruyi_rl.rollout.servers.serving import Serving, run, until
from ruyi_rl.rollout.servers.work import ExitWork
from ruyi_rl.rollout.servers.worker import Worker
from ruyi_rl.rollout.worker import RolloutFailed, RolloutSpec, Sampling, Statistics, WorkerHealth

Task = Callable[[Worker, WorkerClient], Coroutine[Any, Any, None]]
PATROL_SECONDS = 0.25
"""How often it is looked whether a server's process has ended, and whether a starting server answers."""
PROBE_SECONDS = 5.0
"""What a server has to say that it is well."""


class Pool:
    """The workers of all exits, and how the run speaks with them; for rank 0 alone.

    Every method runs an event loop of its own to its end: nothing goes on between calls but the servers themselves.

    Args:
        folders: exit -> folder of its current weights; None where they travel by other means than files, and only
            `VllmServerRollout` can send them.
        report: called with one line when a worker is given up.
        beat: called whenever a worker has come up, taken weights, answered or moved on.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        options: RolloutOptions,
        workers: Sequence[Worker],
        folders: Mapping[str, Path] | None,
        report: Callable[[str], None],
        beat: Callable[[], None] = lambda: None,
    ):
        self._beat = beat
        self.spec, self.options, self.workers, self.folders = spec, options, list(workers), folders
        self.version: str | None = None
        """Of the weights that a worker must hold to be asked."""
        self.statistics = Statistics()
        self._losses = Losses(options.max_failures, self.statistics, report)
        self._unfinished: list[asyncio.Future[None]] = []

    def sync(self, version: str) -> None:
        """Has the workers take the weights that lie in their folders.

        Returns when every worker that was there has them or was given up, and every exit has a worker with them; the
        first time, when all servers of the run have them. Workers that start meanwhile get them when they are up.

        Raises:
            RolloutFailed: too many failures.
            Refusal: a server cannot start with these options.
        """
        self.version = version
        run(self._to_the_end(self._bring(self._update, self.holds)))
        for exit in {worker.exit for worker in self.workers}:
            seconds = [worker.sync_seconds for worker in self.workers if worker.exit == exit and self.holds(worker)]
            self.statistics.of(exit).sync_seconds += max(seconds)

    def generate(self, works: Mapping[str, ExitWork], sampling: Sampling) -> bool:
        """Has the workers answer all groups; returns whether they have.

        They have not where all workers of an exit wait for weights that do not come by files. Called again with the
        same works it goes on with what is left.

        Args:
            works: exit -> its groups.

        Raises:
            RolloutFailed: too many failures, or an exit without any worker for too long.
        """
        run(self._to_the_end(self._generate(works, sampling)))
        return all(work.done for work in works.values())

    def health(self) -> list[WorkerHealth]:
        """The state of every worker; asks each of them."""
        return run(self._health())

    def reach(self) -> None:
        """Waits until every exit has a worker that is up, whatever weights it holds; the first time, for all workers.

        Raises:
            RolloutFailed: too many failures, or an exit without any worker for too long.
            Refusal: a server cannot start with these options.
        """
        run(self._to_the_end(self._bring(self._reach, lambda worker: worker.up)))

    def settle(self, worker: Worker) -> None:
        """Notes that a worker has just got the current weights; gives it up if it does not say so itself."""

        async def confirm(worker: Worker, client: WorkerClient) -> None:
            await client.forget_prefixes(self.options.timeout)
            await self._confirm(worker, client)

        async def once() -> None:
            async with WorkerClient(worker.endpoint) as client:
                try:
                    await until([confirm(worker, client)], [self._watch(worker)])
                except WorkerFailed as failure:
                    await self._losses.give_up(worker, failure)

        run(once())

    def give_up(self, worker: Worker, problem: str) -> None:
        """Counts a failure, reports it, and starts the worker anew where the run has started it.

        Raises:
            RolloutFailed: one failure too many.
        """
        run(self._losses.give_up(worker, WorkerFailed(problem)))

    def holds(self, worker: Worker) -> bool:
        """Whether a worker holds the current weights."""
        return worker.up and worker.version is not None and worker.version == self.version

    async def _bring(self, task: Task, reached: Callable[[Worker], bool]) -> None:
        """Runs a task with all workers until those that were up are done or given up, and every exit has one that is.

        The first time, until all servers of the run are done.
        """
        first = not any(worker.served for worker in self.workers)
        missing = {worker for worker in self.workers if first or worker.up}
        changed = asyncio.Event()

        def settled(worker: Worker) -> None:
            missing.discard(worker)
            changed.set()

        async def bring(worker: Worker) -> None:
            # An address may stay away for long, and its exit may have others.
            once = first and worker.server is not None
            await self._look_after(worker, task, lambda: None if once else settled(worker))
            settled(worker)

        async def enough() -> None:
            exits = {worker.exit for worker in self.workers}
            while missing or exits - {worker.exit for worker in self.workers if reached(worker)}:
                await changed.wait()
                changed.clear()

        await until([enough()], [bring(worker) for worker in self.workers])

    async def _generate(self, works: Mapping[str, ExitWork], sampling: Sampling) -> None:
        started = time.monotonic()

        async def finish(exit: str, work: ExitWork) -> None:
            stalled = asyncio.ensure_future(self._stalled(exit))
            finished = asyncio.ensure_future(work.finished.wait())
            await asyncio.wait({stalled, finished}, return_when=asyncio.FIRST_COMPLETED)
            stalled.cancel()
            finished.cancel()
            work.seconds += time.monotonic() - started

        async def serve(worker: Worker, work: ExitWork) -> None:
            await self._look_after(worker, lambda worker, client: self._serve(worker, client, work, sampling))

        open_works = {exit: work for exit, work in works.items() if not work.done}
        for work in open_works.values():
            work.begin()
        await until(
            [finish(exit, work) for exit, work in open_works.items()],
            [serve(worker, open_works[worker.exit]) for worker in self.workers if worker.exit in open_works],
        )

    async def _stalled(self, exit: str) -> None:
        """Returns when an exit's workers are up and none has the weights, which do not come by files."""
        if self.folders is not None:
            await asyncio.Event().wait()
        mine = [worker for worker in self.workers if worker.exit == exit]
        while not all(worker.up and not self.holds(worker) for worker in mine):
            await asyncio.sleep(PATROL_SECONDS)

    async def _to_the_end(self, task: Coroutine[Any, Any, None]) -> None:
        """Runs a task, and then what it has begun and may no longer need: restarts, and transfers of weights."""
        try:
            await task
        finally:
            unfinished, self._unfinished = self._unfinished, []
            for result in await asyncio.gather(*unfinished, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, WorkerFailed):
                    raise result

    async def _uninterrupted(self, task: Coroutine[Any, Any, None]) -> None:
        """Runs a task that goes on when the one that waits for it is cancelled."""
        future = asyncio.ensure_future(task)
        self._unfinished.append(future)
        await asyncio.shield(future)

    async def _look_after(
        self,
        worker: Worker,
        task: Task,
        given_up: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs a task with a worker until it succeeds, giving the worker up whenever it fails."""
        while True:
            try:
                async with WorkerClient(worker.endpoint) as client:
                    await until([task(worker, client)], [self._watch(worker)])
                return
            except WorkerFailed as failure:
                await self._uninterrupted(self._losses.give_up(worker, failure))
                given_up()

    async def _watch(self, worker: Worker) -> None:
        """Fails when the server's process has ended."""
        while worker.server is not None:
            if ended := worker.server.ended():
                raise WorkerFailed(ended)
            await asyncio.sleep(PATROL_SECONDS)
        await asyncio.Event().wait()

    async def _reach(self, worker: Worker, client: WorkerClient) -> None:
        """Waits until a worker answers, and, where others have started it, serves what it should."""
        problem = "it does not answer"
        while not worker.up:
            if await client.answers(min(PROBE_SECONDS, self.options.timeout)):
                found = None if worker.server else await address_problem(client, worker.exit, self.spec, self.folders)
                if found is None:
                    worker.answers()
                    self._beat()
                    return
                problem = found.text
            limit = self.options.start_timeout
            if time.monotonic() - worker.since > limit:
                if worker.server is not None:
                    raise WorkerFailed(f"it did not answer within {limit:g} s of its start")
                if not any(other.up for other in self.workers if other.exit == worker.exit):
                    raise RolloutFailed(
                        f"no worker of the exit {worker.exit} is left: {worker.name} was given up {limit:g} s ago, and "
                        f"{problem}. Failures of this run:\n{self._losses.summary()}"
                    )
            else:
                self._beat()  # a start has a limit of its own
            await asyncio.sleep(PATROL_SECONDS)

    async def _update(self, worker: Worker, client: WorkerClient) -> None:
        """Brings a worker to the current weights."""
        await self._reach(worker, client)
        if self.holds(worker):
            return
        if self.folders is None:
            await asyncio.Event().wait()
        # Not to be read any more when the next weights are written.
        await self._uninterrupted(self._load(worker))

    async def _load(self, worker: Worker) -> None:
        started = time.monotonic()
        async with WorkerClient(worker.endpoint) as client:
            await client.load_weights((self.folders or {})[worker.exit], self.options.timeout)
            await self._confirm(worker, client)
        worker.sync_seconds = time.monotonic() - started

    async def _confirm(self, worker: Worker, client: WorkerClient) -> None:
        """Writes the version of the current weights on a worker that has just got them."""
        version = str(self.version)
        await client.set_weight_version(version, self.options.timeout)
        found = await client.weight_version(self.options.timeout)
        if found != version:
            raise WorkerFailed(f"it says that it holds the weights {found}, not {version}, which it was just sent")
        worker.version = version
        self._beat()

    async def _serve(self, worker: Worker, client: WorkerClient, work: ExitWork, sampling: Sampling) -> None:
        """Has a worker answer groups of its exit, once it has the current weights."""
        if self.holds(worker):
            found = await client.weight_version(self.options.timeout)
            if found != worker.version:
                raise WorkerFailed(f"it has restarted: it holds the weights {found}, not {worker.version}")
        await self._update(worker, client)
        mates = sum(other.exit == worker.exit for other in self.workers)
        serving = Serving(
            worker,
            work,
            sampling,
            mates=mates,
            workers=len(self.workers),
            options=self.options,
            spec=self.spec,
            beat=self._beat,
        )
        await serving.run()

    async def _health(self) -> list[WorkerHealth]:
        async def of(worker: Worker) -> WorkerHealth:
            ended = worker.server.ended() if worker.server is not None else None
            async with WorkerClient(worker.endpoint) as client:
                alive = ended is None and await client.answers(PROBE_SECONDS)
            detail = worker.place if alive else f"{ended or 'it does not answer'} ({worker.place})"
            return WorkerHealth(worker.exit, worker.name, alive, detail)

        return list(await asyncio.gather(*map(of, self.workers)))
