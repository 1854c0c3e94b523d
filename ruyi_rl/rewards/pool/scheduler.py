"""The thread that spreads batches over workers, and ends the workers that do not behave."""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ruyi_rl.rewards.pool.batch import Batch, Chunk
from ruyi_rl.rewards.pool.ends import failure
from ruyi_rl.rewards.pool.pace import FIRST_CALL, Pace
from ruyi_rl.rewards.pool.process import Plugin, WorkerProcess
from ruyi_rl.rewards.pool.replies import read_answer
from ruyi_rl.rewards.pool.scores import PoolLimits
from ruyi_rl.rewards.pool.values import Failed
from ruyi_rl.rewards.results import RewardError

START_SECONDS = 300.0
"""How long a worker may take to import its plugin."""
LAST_WORD_SECONDS = 5.0
"""How long the guard of a killed worker may take to clear up, before its work is given to others."""
LEAVE_SECONDS = 20.0
"""How long a killed worker may take to go, before its guard is killed too and the pool clears up itself."""
TICK_SECONDS = 0.05
"""How often it is considered whether one more worker pays, and whether killed ones have gone."""
MOST_PATIENCE = 32
"""Samples in a row that one worker may fail before it is suspected in any case."""
LONGEST_PAUSE = 3600.0
"""Seconds that the thread sleeps at most: the system takes no more than 24 days."""
SHOWN = 4096
"""Characters of what all workers print that are shown, once."""


class Scheduler:
    """Serves one plugin; its methods may be called from any thread.

    Args:
        name: of the reward, for messages.
        plugin: what the workers serve.
        limits: what they may use.
        most: workers at most.
    """

    def __init__(self, name: str, plugin: Plugin, limits: PoolLimits, most: int):
        self._name, self._plugin, self._most = name, plugin, most
        self._pace = Pace(limits.timeout)
        self._inbox: deque[Batch | Future[None]] = deque()
        # Garbage may be collected, and a pool closed by that, while its own thread holds the lock.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._wake: int | None = None
        self._closing = False
        self._batches: list[Batch] = []
        self._starts: list[Future[None]] = []
        self._workers: list[WorkerProcess] = []
        self._leaving: list[WorkerProcess] = []
        self._level = 0  # workers that have paid before: so many are replaced
        self._shown = 0
        self._patience = 1
        """Samples that must fail in a row until their worker is suspected."""
        self._selector: selectors.BaseSelector | None = None
        self.beat: Callable[[], None] = lambda: None
        """Called in its thread whenever a worker has answered, or its samples are to be tried again."""

    def submit(self, order: Batch | Future[None]) -> None:
        """Score a batch; of a bare future: start a worker, unless there is one.

        Raises:
            RuntimeError: the scheduler is closed.
        """
        with self._lock:
            if self._closing:
                raise RuntimeError(f"the pool of reward {self._name!r} is closed")
            self._inbox.append(order)
            if self._thread is None:
                self._selector = selectors.DefaultSelector()
                ours, self._wake = os.pipe()
                for descriptor in (ours, self._wake):
                    os.set_blocking(descriptor, False)
                self._selector.register(ours, selectors.EVENT_READ)
                self._thread = threading.Thread(
                    target=self._run, args=(ours,), name=f"reward {self._name}", daemon=True
                )
                self._thread.start()
            self._nudge()

    def cancel(self, batch: Batch) -> None:
        """Forget a batch: what no worker has yet is not asked, what comes is thrown away."""
        with self._lock:
            batch.cancelled = True
            self._nudge()

    def close(self) -> None:
        """Ends all workers, and waits until they have gone."""
        with self._lock:
            self._closing = True
            self._nudge()
        # The thread itself may get here where it collects the garbage that its owner has become.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _nudge(self) -> None:
        if self._wake is not None:
            try:
                os.write(self._wake, b"w")
            except BlockingIOError:
                return  # the pipe is full: it will wake up

    def _run(self, ours: int) -> None:
        problem: BaseException = RuntimeError(f"the pool of reward {self._name!r} was closed")
        try:
            while not self._closing:
                self._turn(ours)
        except BaseException as error:  # noqa: BLE001 - who waits for a batch must learn of it
            problem = error
        finally:
            with self._lock:
                self._closing = True
                self._batches += [order for order in self._inbox if isinstance(order, Batch)]
                self._starts += [order for order in self._inbox if not isinstance(order, Batch)]
                os.close(self._wake)
                self._wake = None
            self._dismiss(problem)
            self._clear()
            self._selector.close()
            os.close(ours)

    def _turn(self, ours: int) -> None:
        self._accept()
        self._assign()
        self._recruit()
        events = self._selector.select(self._pause())
        # Channels first: an answer that was given before its worker's end counts.
        for key, mask in sorted(events, key=lambda event: event[0].fileobj != getattr(event[0].data, "channel", None)):
            if key.data is None:
                os.read(ours, 4096)
            elif key.data not in self._workers:
                continue
            elif key.fileobj is key.data.control:
                self._hear(key.data)
            else:
                if mask & selectors.EVENT_WRITE:
                    self._send(key.data)
                if mask & selectors.EVENT_READ:
                    self._read(key.data)
        self._expire()
        self._leaving = self._still_there(self._leaving)

    def _accept(self) -> None:
        while self._inbox:
            order = self._inbox.popleft()
            if isinstance(order, Batch):
                self._batches.append(order)
            else:
                self._starts.append(order)
        self._batches = [batch for batch in self._batches if not batch.cancelled]
        if any(worker.ready for worker in self._workers):
            self._started(None)

    def _assign(self) -> None:
        """Give chunks to idle workers, those that have been called before first."""
        while idle := [worker for worker in self._workers if worker.idle]:
            batch = next((batch for batch in self._batches if batch.waiting), None)
            if batch is None:
                return
            worker = max(idle, key=lambda worker: worker.calls)
            waiting = sum(batch.waiting for batch in self._batches)
            chunk = batch.take(self._pace.chunk(waiting, len(self._workers)))
            try:
                message = batch.message(chunk, with_whole=worker.batch != batch.number)
            except Failed as failed:
                batch.failed(chunk, failed)
                self._settle(batch)
                continue
            worker.chunk, worker.batch, worker.since = chunk, batch.number, time.monotonic()
            seconds = self._pace.deadline(len(chunk.indices), len(chunk.units), fresh=worker.calls == 0)
            worker.deadline, worker.allowed = worker.since + seconds, seconds
            worker.send(message)
            self._watch(worker)

    def _recruit(self) -> None:
        """Start workers where there is work that pays for them."""
        waiting = sum(batch.waiting for batch in self._batches)
        if self._starts and not self._workers and not self._start():
            return
        while waiting and len(self._workers) < self._most:
            replaces = len(self._workers) < self._level and not any(worker.idle for worker in self._workers)
            needed = not self._workers or self._pace.pays(waiting, len(self._workers), self._waited())
            if not (needed or replaces and all(worker.ready for worker in self._workers)) or not self._start():
                return

    def _waited(self) -> float:
        """Seconds a sample that the longest unanswered call has taken so far."""
        now, waited = time.monotonic(), 0.0
        for worker in self._workers:
            if worker.chunk is not None and not worker.ending:
                seconds = now - worker.since - (FIRST_CALL if worker.calls == 0 else 0.0)
                waited = max(waited, seconds / len(worker.chunk.indices))
        return waited

    def _start(self) -> bool:
        try:
            worker = WorkerProcess(self._plugin)
        except OSError as error:
            self._refused(f"no worker can be started: {error}")
            return False
        worker.deadline, worker.allowed = worker.since + START_SECONDS, START_SECONDS
        self._workers.append(worker)
        self._pace.recruited()
        self._level = max(self._level, len(self._workers))
        self._selector.register(worker.control, selectors.EVENT_READ, worker)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        self._watch(worker)
        return True

    def _watch(self, worker: WorkerProcess) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0)
        if self._selector.get_key(worker.channel).events != events:
            self._selector.modify(worker.channel, events, worker)

    def _send(self, worker: WorkerProcess) -> None:
        worker.flush()
        self._watch(worker)

    def _read(self, worker: WorkerProcess) -> None:
        try:
            for reply in worker.replies():
                self._answer(worker, reply)
        except EOFError:
            # Its guard tells at once how it has ended; one that goes on, but without a channel, is ended.
            self._break(worker)
        except ValueError:
            # Nothing that it says can be trusted any more. The chunk is still its own, and is tried again elsewhere.
            self._break(worker)
            worker.kill("broken")

    def _break(self, worker: WorkerProcess) -> None:
        self._selector.unregister(worker.channel)
        worker.broken, worker.deadline = True, time.monotonic() + LAST_WORD_SECONDS

    def _answer(self, worker: WorkerProcess, reply: dict[str, Any]) -> None:
        if not worker.ready:
            if not reply.get("ready"):
                self._refused(str(reply.get("message")), worker)
                return
            worker.ready, worker.deadline = True, None
            self._pace.concurrent = bool(reply.get("concurrent"))
            self._pace.started(time.monotonic() - worker.since)
            self._started(None)
            return
        chunk, fresh = worker.chunk, worker.calls == 0
        # First: a reply that is none must leave the chunk with the worker, whose end gives it to others.
        answer = read_answer(reply, len(chunk.indices))
        worker.chunk = None
        if not worker.ending:
            worker.deadline = None
        if isinstance(answer, Failed):
            again = self._is_suspect(worker, chunk, answer)
            if again:
                worker.kill("closed")
                worker.deadline = time.monotonic() + LAST_WORD_SECONDS
            chunk.batch.failed(chunk, answer, again)
        else:
            worker.failed = 0
            if chunk.retried:
                self._patience = 1
            self._pace.answered(len(chunk.indices), answer.seconds, fresh)
            if not fresh and any(batch.waiting for batch in self._batches):
                self._pace.missed(answer.seconds, len(self._workers))
            chunk.batch.answered(chunk, answer)
        worker.calls += 1
        self._settle(chunk.batch)

    def _hear(self, worker: WorkerProcess) -> None:
        end = self._reported(worker)
        if end is not None:
            self._read_rest(worker)
            self._ended(worker, end)

    def _reported(self, worker: WorkerProcess) -> dict[str, Any] | None:
        """Take note of what a guard has told; gives how its worker ended, once it has."""
        for report in worker.reports():
            if "output" in report:
                *lines, worker.line = (worker.line + report["output"]).split("\n")
                self._show(lines)
            elif "known" in report:
                worker.end = report["known"]
            else:
                self._show([worker.line] if worker.line else [])
                return report["ended"]
        return None

    def _read_rest(self, worker: WorkerProcess) -> None:
        before = -1
        while worker.channel in self._selector.get_map() and worker.chunk is not None and before != worker.calls:
            before = worker.calls
            self._read(worker)

    def _ended(self, worker: WorkerProcess, end: dict[str, Any]) -> None:
        """A worker has ended, of itself or killed."""
        self._dismiss_worker(worker)
        chunk = worker.chunk
        end = worker.end | end
        failed = failure(worker.ending, worker.allowed, end, self._plugin.file, self._plugin.memory)
        if not worker.ready:
            where = f" ({failed.place})" if failed.place else ""
            self._refused(f"the worker could not start: {failed.message}{where}")
        elif chunk is not None:
            self._pace.killed()
            again = self._is_suspect(worker, chunk, failed)
            chunk.batch.failed(chunk, failed, again)
            self._settle(chunk.batch)

    def _is_suspect(self, worker: WorkerProcess, chunk: Chunk, failed: Failed) -> bool:
        """Whether not this sample, but what earlier calls have left in the worker may be at fault.

        To ask again costs a worker: the more often that was in vain, the more samples must fail one after the other.
        """
        if len(chunk.units) > 1 or failed.kind == "unpicklable":
            return False
        worker.failed += 1
        if chunk.retried:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        if worker.calls == 0 or chunk.retried:
            return False
        return failed.kind in ("crash", "memory") or worker.failed >= self._patience

    def _dismiss_worker(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        for end in (worker.control, worker.channel):
            if end in self._selector.get_map():
                self._selector.unregister(end)
        worker.deadline = time.monotonic() + LEAVE_SECONDS
        self._leaving.append(worker)

    def _expire(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.deadline is not None and worker.deadline <= now]:
            if worker.ending:
                self._ended(worker, {})
                continue
            single = worker.chunk is None or len(worker.chunk.units) == 1
            worker.kill("broken" if worker.broken else "timeout", with_stack=single)
            worker.deadline = now + LAST_WORD_SECONDS
        for worker in self._leaving:
            if worker.deadline <= now:
                worker.end()

    def _pause(self) -> float | None:
        """Seconds until something is due."""
        if self._leaving or len(self._workers) < self._most and any(batch.waiting for batch in self._batches):
            return TICK_SECONDS
        deadlines = [worker.deadline for worker in self._workers if worker.deadline is not None]
        return min(max(0.0, min(deadlines) - time.monotonic()), LONGEST_PAUSE) if deadlines else None

    def _settle(self, batch: Batch) -> None:
        self.beat()
        if batch.finished and batch in self._batches:
            self._batches.remove(batch)
            batch.finish()

    def _started(self, problem: BaseException | None) -> None:
        for future in self._starts:
            future.set_exception(problem) if problem else future.set_result(None)
        self._starts.clear()

    def _refused(self, message: str, worker: WorkerProcess | None = None) -> None:
        """A worker could not start: the others go on without; without others nothing can be scored."""
        if worker is not None:
            worker.kill("closed")
            self._dismiss_worker(worker)
        if any(other.ready for other in self._workers):
            self._most = len(self._workers)
            self._show([f"one worker less: {message}"])
        else:
            self._dismiss(RewardError(f"{self._name}: {message}"))

    def _dismiss(self, problem: BaseException) -> None:
        for batch in self._batches:
            if not batch.future.done():
                batch.future.set_exception(problem)
        self._batches.clear()
        self._started(problem)

    def _clear(self) -> None:
        """Ends all workers and waits until they have gone."""
        for worker in self._workers:
            worker.kill("closed")
        left, deadline = self._workers + self._leaving, time.monotonic() + LEAVE_SECONDS
        while left := self._still_there(left):
            if time.monotonic() > deadline:
                for worker in left:
                    worker.end()
            time.sleep(0.005)
        self._workers, self._leaving = [], []

    def _still_there(self, workers: list[WorkerProcess]) -> list[WorkerProcess]:
        """Those of killed workers that are not gone yet."""
        left = []
        for worker in workers:
            gone = worker.gone()
            self._reported(worker)
            if gone:
                worker.forget()
            else:
                worker.wake()
                left.append(worker)
        return left

    def _show(self, lines: list[str]) -> None:
        """What the plugin prints, up to a limit."""
        for line in lines:
            if self._shown >= SHOWN:
                return
            line = line[: SHOWN - self._shown]
            self._shown += len(line) + 1
            print(f"[reward {self._name}] {line}", file=sys.stderr)
            if self._shown >= SHOWN:
                print(f"[reward {self._name}] … what it prints from here on is not shown", file=sys.stderr, flush=True)
