"""Ends a run in which nothing moves on any more, and says which rank stands where. Importing imports no torch."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ruyi_rl import ranks
from ruyi_rl.heart import GAVE_UP, RECORDED, WORKING, Heard, Heart, Pulse, Silence, moment
from ruyi_rl.heartbeats import FOLDER, Heartbeats, Store, connect_to_run
from ruyi_rl.run_folder import write_text
from ruyi_rl.stacks import all_stacks, main_call
from ruyi_rl.stuck_launcher import exit_beside_launcher

if TYPE_CHECKING:
    from ruyi_rl.execution import StageContext

STACKS = "stacks-rank-{}.txt"
"""File in the stage's folder for the stacks of a rank."""
SHOWN_RANKS = 8
"""Ranks that a message names; of more, those that come first in the order of `standing`."""
STUCK_INTERPRETER = 4
"""Limits after which a rank ends in which no Python runs at all, the watchdog neither. It counts wall time, stopped or
not, so that it has to be longer than a batch system keeps a job stopped."""


@dataclass(frozen=True)
class Patience:
    """How long the watchdog waits for what, in seconds."""

    limit: float
    """For any rank to move on."""
    world_size: int = 1

    @property
    def stuck(self) -> float:
        """For a process in which no Python runs at all; longer than the watchdog itself takes for everything."""
        return max(STUCK_INTERPRETER * self.limit, self.limit + 6 * self.grace)

    @property
    def tick(self) -> float:
        """Between two looks."""
        return min(1.0, self.limit / 10)

    @property
    def pulse(self) -> float:
        """Between two pulses; one store answers all ranks."""
        return max(min(3.0, self.limit / 10), self.world_size / 20)

    @property
    def grace(self) -> float:
        """For all ranks to write their stacks, and again for one of them to record the end."""
        return max(10.0, 3 * self.pulse)


class Watchdog:
    """A thread that ends this process when no rank of the run has moved on for too long; a context manager.

    A rank that waits for another is silent for as long as that one works, so all must be silent, or not heard of.
    When that is so, every rank writes its stacks; one of them records the end, and all exit with status 1. Until then
    the thread itself reads and writes nothing, because what holds the run may hold that too.

    Args:
        heart: of this rank.
        folder: the stage's.
        record: called with what has happened, by the first rank that can; returns what else is to be said.
        rank: of this process.
        keeps: whether this rank records the end in any case, in a copy of the folder that the first may not see.
        connect: see `Heartbeats`.
        end: ends the process with a status.
        now: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        heart: Heart,
        folder: Path,
        patience: Patience,
        record: Callable[[str], str],
        rank: int = 0,
        keeps: bool = False,
        connect: Callable[[], Store] | None = None,
        end: Callable[[int], None] = os._exit,
        now: Callable[[], float] = time.monotonic,
    ):
        self.heart, self.folder, self.patience, self.rank = heart, folder, patience, rank
        self._record, self._keeps, self._end, self._now = record, keeps, end, now
        self._state, self._number, self._last_beat = WORKING, 0, time.time()
        self._silence = Silence(patience.tick)
        self._others = {other: Heard(patience.tick) for other in range(patience.world_size) if other != rank}
        self._beats = Heartbeats(self._pulse, folder, patience.world_size, connect, patience.pulse)
        self._rearmed = 0.0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.heart.beat()
        self.heart.watched = True
        self._rearm()
        self._beats.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.heart.watched = False
        self._left.set()
        self._thread.join()  # a moment; where it is ending the process, for ever
        faulthandler.cancel_dump_traceback_later()
        self._beats.stop()
        if kind is None:
            self._beats.remove()

    def look(self, elapsed: float) -> bool:
        """Takes notice of the beats and pulses of `elapsed` seconds; returns whether the run is to end."""
        beaten, self.heart.beaten = self.heart.beaten, False
        if beaten:
            self._last_beat = time.time()
        self._silence.look(elapsed, beaten)
        heard = self._beats.heard()
        for rank, other in self._others.items():
            other.look(elapsed, heard.get(rank))
        quiet = min([self._silence.seconds, *(other.silence for other in self._others.values())])
        return quiet > self.patience.limit or any(pulse.state != WORKING for pulse in heard.values())

    def standing(self) -> str:
        """Where every rank stands, on one line: first those that wait for no other, silent for longest."""
        gone = self.patience.grace / 2  # all of which such a rank was waited for
        lines = [told(self.rank, self._pulse(), self._silence.seconds, 0.0)]
        for rank, other in self._others.items():
            lines.append(told(rank, other.pulse, other.silence, other.unheard if other.unheard > gone else 0.0))
        lines.sort(key=lambda line: line[:2])
        more = [f"and {len(lines) - SHOWN_RANKS} ranks more"] if len(lines) > SHOWN_RANKS else []
        return "; ".join([line for *_, line in lines[:SHOWN_RANKS]] + more)

    def _pulse(self) -> Pulse:
        self._number += 1
        call, waits = ("", False) if self._state == WORKING else main_call()
        return Pulse(
            rank=self.rank,
            host=socket.gethostname(),
            process=os.getpid(),
            phase=self.heart.phase,
            step=self.heart.step,
            since=moment(self.heart.since),
            beat=moment(self._last_beat),
            silence=round(self._silence.seconds, 1),
            call=call,
            waits=waits,
            state=self._state,
            number=self._number,
        )

    def _watch(self) -> None:
        before = self._now()
        while not self._left.wait(self.patience.tick):
            now = self._now()
            elapsed, before = now - before, now
            self._rearmed += elapsed
            if self._rearmed > self.patience.limit / 2:
                self._rearm()
            if self.look(elapsed):
                words = threading.Thread(target=self._last_words, name="last words", daemon=True)
                words.start()
                words.join(3 * self.patience.grace)
                self._end(1)
                return

    def _rearm(self) -> None:
        """Should no Python run any more in this process, this ends it from without."""
        self._rearmed = 0.0
        faulthandler.dump_traceback_later(self.patience.stuck, exit=True, file=2)

    def _last_words(self) -> None:
        """May hang: on a full pipe, a dead disk, a cut link."""
        stacks = all_stacks()
        silent = shown(self._silence.seconds)
        say(f"{self._pulse().place()}, process {os.getpid()}, has moved nothing for {silent}. Its stacks:\n{stacks}")
        self._state = GAVE_UP
        self._beats.hurry(self.patience.tick / 10)
        write_text(self.folder / STACKS.format(self.rank), stacks)
        everyone = self.patience.world_size
        self._await(lambda heard: sum(pulse.state != WORKING for pulse in heard.values()) == everyone)
        happened = f"no progress for {shown(self.patience.limit)}: {self.standing()}"
        if any(pulse.state != WORKING and rank < self.rank for rank, pulse in self._beats.heard().items()):
            if self._keeps:
                self._record(happened)
            self._await(lambda heard: any(pulse.state == RECORDED for pulse in heard.values()))
        else:
            say(happened)
            say(self._record(happened))
            self._state = RECORDED
            self._await(lambda heard: self.rank in heard and heard[self.rank].state == RECORDED)
        sys.stdout.flush()
        sys.stderr.flush()

    def _await(self, reached: Callable[[Mapping[int, Pulse]], bool]) -> None:
        """Waits until the ranks' pulses are so, for as long as is granted and there is news of them."""
        before = self._now()
        deadline = before + self.patience.grace
        while self._others and not reached(self._beats.heard()) and not self._beats.lost and before < deadline:
            time.sleep(0.01)
            now = self._now()
            self.look(now - before)
            before = now


@contextmanager
def watched(context: StageContext) -> Iterator[None]:
    """All ranks enter together; inside, the run ends where none of them moves on for `watchdog_minutes`.

    Inside itself, as in an evaluation between two steps, it does nothing: one watchdog listens to a heart.
    """
    minutes = context.config.watchdog_minutes
    if not minutes or context.heart.watched:
        yield
        return
    if context.copies.keeps:
        # What an attempt left that was killed, on more ranks perhaps. A rank that is late to leave the section before
        # may take the folder away just now.
        with suppress(FileNotFoundError):
            for left in (context.folder / FOLDER).glob("rank-*.json"):
                left.unlink(missing_ok=True)
    # A name of its own for every time: in the launcher's store an earlier attempt may have left its end.
    name = ranks.from_rank_zero(uuid.uuid4().hex)
    connect = partial(connect_to_run, f"watchdog/{name}") if ranks.world_size() > 1 else None
    with Watchdog(
        context.heart,
        context.folder,
        Patience(60 * minutes, ranks.world_size()),
        context.give_up,
        ranks.rank(),
        context.copies.keeps,
        connect,
        exit_beside_launcher,
    ):
        yield


def told(rank: int, pulse: Pulse | None, silence: float, unheard: float) -> tuple[bool, float, str]:
    """Whether a rank waits for others, minus its seconds of silence, and where it stands.

    Args:
        unheard: seconds since its last pulse; 0: it speaks.
    """
    if pulse is None:
        return False, -silence, f"rank {rank}, of which nothing was heard"
    if unheard:
        return False, -silence, f"{pulse.place()} when it was last heard of, {shown(unheard)} ago"
    return pulse.waits, -silence, f"{pulse.place()}, silent for {shown(silence)}"


def say(text: str) -> None:
    """Writes on standard error, past Python's own file, whose lock a thread that hangs in a `print` may hold."""
    rest = f"ruyi_rl: {text}\n".encode()
    while rest:
        rest = rest[os.write(2, rest) :]


def shown(seconds: float) -> str:
    """`30 min`, or `12.5 s` of less than two minutes."""
    return f"{seconds / 60:.3g} min" if seconds >= 120 else f"{seconds:.3g} s"
