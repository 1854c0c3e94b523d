"""What a rank is doing, and whether it still gets on with it. Importing this module imports no torch."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Self

WORKING, GAVE_UP, RECORDED = "working", "gave up", "recorded"
"""States of a rank's watchdog: all is well; it has written its stacks; it has also recorded how the stage ended."""


class Heart:
    """Beats whenever its rank gets on: at the borders of phases, with each token, answer, reward and file.

    A beat is an assignment, so that the innermost loop can afford it; any thread may beat.
    """

    def __init__(self) -> None:
        self.phase = "start"
        self.step = 0
        """Optimiser steps done."""
        self.since = time.time()
        """Seconds since the epoch at which the phase began."""
        self.beaten = False
        """Whether it has beaten since the watchdog last looked, who takes it back."""

        self.watched = False
        """Whether a watchdog listens."""

    def beat(self) -> None:
        """Something has moved on."""
        self.beaten = True

    def enter(self, phase: str) -> None:
        """Another phase has begun."""
        self.phase, self.since, self.beaten = phase, time.time(), True

    def at_step(self, step: int) -> None:
        """So many optimiser steps are done."""
        self.step, self.beaten = step, True


@dataclass(frozen=True)
class Pulse:
    """What a rank tells of itself: the file that a user finds, and what the other ranks' watchdogs read."""

    rank: int
    host: str
    process: int
    phase: str
    step: int
    """Optimiser steps done."""
    since: str
    """When the phase began, ISO 8601 UTC."""
    beat: str
    """When it was last seen to move on, ISO 8601 UTC."""
    silence: float
    """Seconds without a beat, in which the rank itself was running."""
    call: str = ""
    """The innermost call of its main thread, once its watchdog has given up."""
    waits: bool = False
    """Whether that call waits for other ranks."""
    state: str = WORKING
    number: int = 0
    """Grows with every pulse: one that does not come any more is no news."""

    @classmethod
    def read(cls, text: str) -> Self:
        return cls(**json.loads(text))

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def place(self) -> str:
        """`rank 1 (host b) in rollout after step 12`, and where its main thread is."""
        call = f" ({self.call})" if self.call else ""
        stands = "waits in" if self.waits else "in"
        return f"rank {self.rank} (host {self.host}) {stands} {self.phase} after step {self.step}{call}"


class Silence:
    """Seconds without a beat that count: not those in which the process itself was stopped or its machine slept.

    Args:
        tick: how often it is looked, in seconds. Of a longer time in between, two ticks count.
    """

    def __init__(self, tick: float):
        self.tick, self.seconds = tick, 0.0

    def look(self, elapsed: float, beaten: bool) -> None:
        """`elapsed` seconds have passed since the last look."""
        self.seconds = 0.0 if beaten else self.seconds + min(elapsed, 2 * self.tick)


class Heard:
    """What was heard of another rank, and how long ago it moved on, by this rank's own clock.

    Args:
        tick: as of `Silence`.
    """

    def __init__(self, tick: float):
        self.pulse: Pulse | None = None
        self._silence = Silence(tick)
        self.unheard = 0.0
        """Seconds since its last pulse came."""

    @property
    def silence(self) -> float:
        """Seconds since it last moved on, as far as is known."""
        return self._silence.seconds

    def look(self, elapsed: float, pulse: Pulse | None) -> None:
        """`elapsed` seconds have passed since the last look, and this is its newest pulse."""
        news = pulse is not None and (self.pulse is None or pulse.number != self.pulse.number)
        if news:
            self.pulse, self.unheard, self._silence.seconds = pulse, 0.0, pulse.silence
        else:
            self.unheard += elapsed
            self._silence.look(elapsed, beaten=False)


def moment(seconds: float) -> str:
    """ISO 8601, UTC, of seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
