"""How ranks hear of each other: each one's pulse in a file for the user, and in a store that all ranks reach."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from ruyi_rl.heart import Pulse

FOLDER = "ranks"
"""Folder in the stage's that holds a file for each rank."""
STORE_SECONDS = 60
"""How long the store may take to answer."""


class Store(Protocol):
    """What is needed of `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None: ...

    def multi_get(self, keys: list[str]) -> list[bytes]: ...


class Heartbeats:
    """A thread that tells this rank's pulse now and then, and hears the others'.

    It is apart from the watchdog, because what it does may hang with the rest of the run: a disk that is gone, a link
    that is cut. Then it falls silent, and nothing else does.

    Args:
        pulse: makes this rank's pulse as it is now.
        folder: the stage's.
        world_size: number of ranks.
        connect: gives a store of this run that all ranks share; called in the thread. None with one rank.
        seconds: between two pulses.
    """

    def __init__(
        self,
        pulse: Callable[[], Pulse],
        folder: Path,
        world_size: int,
        connect: Callable[[], Store] | None,
        seconds: float,
    ):
        self._pulse, self._connect, self.seconds = pulse, connect, seconds
        self.file = folder / FOLDER / f"rank-{pulse().rank}.json"
        self._keys = [f"rank-{rank}" for rank in range(world_size)]
        self._texts: dict[int, str] = {}
        self._hurry, self._ended = threading.Event(), threading.Event()
        self.told: Pulse | None = None
        """The newest pulse that the others can read; None where there are none, or no way to them."""
        self.lost = False
        """Whether the store is gone."""
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; does not wait for one that hangs."""
        self._ended.set()
        self._hurry.set()
        self._thread.join(self.seconds)

    def remove(self) -> None:
        """Takes the file away, and the folder with the last one."""
        self.file.unlink(missing_ok=True)
        with suppress(OSError):
            self.file.parent.rmdir()

    def hurry(self, seconds: float) -> None:
        """From now on so many seconds between two pulses, and one at once."""
        self.seconds = seconds
        self._hurry.set()

    def heard(self) -> Mapping[int, Pulse]:
        """The newest pulse of every rank that was heard of, this one's own among them."""
        return {rank: Pulse.read(text) for rank, text in self._texts.items()}

    def _run(self) -> None:
        store: Store | None = None
        while not self._ended.is_set():
            pulse = self._pulse()
            self._write(pulse)
            if self._connect is not None and not self.lost:
                try:
                    store = store or self._connect()
                    store.set(f"rank-{pulse.rank}", pulse.text())
                    self.told = pulse
                    texts = store.multi_get(self._keys)
                except RuntimeError:  # torch's errors of a store are of this kind
                    self.lost = True
                else:
                    self._texts = {rank: text.decode() for rank, text in enumerate(texts)}
            self._hurry.wait(self.seconds)
            self._hurry.clear()

    def _write(self, pulse: Pulse) -> None:
        """Not synced as other files are: a heartbeat that a power cut loses is no loss."""
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(pulse.text())
            temporary.replace(self.file)
        except OSError:  # a full disk must not end the run here
            return


def connect_to_run(name: str) -> Store:
    """A connection of its own to the store by which the ranks of this run have found each other.

    Args:
        name: keys begin with it.

    Raises:
        RuntimeError: nobody answers at MASTER_ADDR and MASTER_PORT.
    """
    from torch.distributed import PrefixStore, TCPStore

    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=STORE_SECONDS),
        wait_for_workers=False,
    )
    return PrefixStore(name, store)
