"""How long a plugin takes: the sizes of chunks, their deadlines and the number of workers follow from it."""

from __future__ import annotations

TARGET_SECONDS = 0.25
"""Of a call: so long a chunk may keep others waiting."""
SHORTEST_SECONDS = 0.01
"""Of a call, where there is work for it: below, sending it costs more than it gives."""
LARGEST = 256
"""Completions of a chunk."""
GROWTH = 4
"""How much larger than any before it a chunk may be, and how much smaller it is after a kill."""
SHORT_DEADLINE = 1.0
"""Seconds that a chunk may take at least before it is taken to hang."""
PATIENCE = 4.0
"""How many times the expected time a chunk may take before it is taken to hang."""
UNIT_PATIENCE = 30.0
"""The same for a group or a batch that cannot be cut: its deadline fails it."""
FIRST_START = 0.2
"""Seconds that a worker's start is taken to take before the first one has been measured."""
FIRST_CALL = 2.0
"""Seconds of a worker's first call that are taken to be imports, before one has been measured."""


class Pace:
    """What has been measured of a plugin so far.

    Args:
        timeout: seconds that one sample may take.
        concurrent: whether a call takes as long as its slowest sample (an `async` function), not as all together.
    """

    def __init__(self, timeout: float, concurrent: bool = False):
        self._timeout, self.concurrent = timeout, concurrent
        self._seconds: float | None = None  # of a sample; of a call where they run concurrently
        self._slowest = 0.0
        self._warm = False  # whether it has been measured on a worker that had been called before
        self._size = 1
        self._start = FIRST_START
        self._first_call: float | None = None
        self._missed = 0.0  # seconds that one worker more would have spared so far

    def started(self, seconds: float) -> None:
        """A worker has taken so long to start."""
        self._start = seconds

    def answered(self, samples: int, seconds: float, fresh: bool) -> None:
        """A call has taken so long; `fresh`: the first one of its worker, which may have imported much."""
        self._size = max(self._size, samples)
        if fresh:
            self._first_call = max(seconds, 0.9 * (self._first_call or 0.0))
            if self._seconds is not None:
                return
        measured = max(seconds if self.concurrent else seconds / samples, 1e-7)
        self._seconds = 0.7 * self._seconds + 0.3 * measured if self._warm else measured
        self._slowest = max(seconds, 0.98 * self._slowest) if self._warm else seconds
        self._warm = not fresh

    def missed(self, seconds: float, workers: int) -> None:
        """A call has ended while more work waited: another worker would have spared its share of it.

        Args:
            seconds: of the call.
            workers: that there are.
        """
        self._missed += seconds / (workers * (workers + 1))

    def recruited(self) -> None:
        """A worker has been started."""
        self._missed = 0.0

    def killed(self) -> None:
        """A chunk has cost a worker: the next ones are smaller."""
        self._size = max(1, self._size // GROWTH)

    def chunk(self, remaining: int, workers: int) -> int:
        """Completions of the next chunk.

        Args:
            remaining: completions that are not yet with a worker.
            workers: among which they will be shared.
        """
        if self._seconds is None:
            return 1
        if self.concurrent:
            size = remaining / workers
        else:
            # Half of a fair share, so that all workers end at about the same time.
            size = max(remaining / (2 * workers), SHORTEST_SECONDS / self._seconds)
            size = min(size, TARGET_SECONDS / self._seconds)
        return max(1, min(round(size), LARGEST, GROWTH * self._size))

    def deadline(self, samples: int, units: int, fresh: bool) -> float:
        """Seconds that a chunk may take.

        Args:
            samples: completions in it.
            units: parts that it can be cut into. One alone fails at its deadline; several are tried again in parts.
            fresh: whether its worker has not been called before.
        """
        whole = self._timeout * samples
        if self._seconds is None or samples == 1:
            return whole
        expected = self._seconds if self.concurrent else self._seconds * samples
        if units == 1:
            return whole if fresh else min(whole, max(self._timeout, UNIT_PATIENCE * expected))
        short = max(SHORT_DEADLINE, PATIENCE * expected, 1.5 * self._slowest)
        if fresh:
            short += 2 * self._first_call if self._first_call is not None else self._timeout
        return min(whole, short)

    def pays(self, remaining: int, workers: int, waited: float) -> bool:
        """Whether one worker more would spare more time than its start takes, or would have by now: batches too small
        to pay for it come again and again in a training.

        Args:
            remaining: completions that are not yet with a worker.
            workers: that there are, those that are starting included.
            waited: seconds that the longest unanswered call has taken so far, for a sample of it.
        """
        seconds = max(self._seconds if self._warm else 0.0, waited)
        return remaining > 0 and seconds * remaining / workers + self._missed > self._start + (self._first_call or 0.0)
