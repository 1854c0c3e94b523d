"""A worker and its guard, as the pool sees them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ruyi_rl
from ruyi_rl.rewards.pool.batch import Chunk
from ruyi_rl.rewards.pool.frames import TAG, Received, frame
from ruyi_rl.rewards.pool.leftovers import NOTE, end_processes, remove
from ruyi_rl.rewards.pool.replies import decoded
from ruyi_rl.rewards.sandbox.cgroups import LEFTOVERS

_COMMAND = "import sys; sys.path.insert(0, {root!r}); from ruyi_rl.rewards.pool.guard import main; main()"
_READ = 2**20


@dataclass(frozen=True)
class Plugin:
    """What a worker needs to know to serve a plugin."""

    path: str
    """An absolute file, `file.py:function`, or a dotted name."""
    file: str
    """The file alone; "" for a dotted name."""
    kwargs: bytes
    """Keyword arguments, pickled."""
    memory: int
    """Bytes that a worker may hold."""
    told: Mapping[str, Any]
    """`timeout` and `scope` of the config, for a start hook that names them."""
    folder: str
    """Working folder."""


class WorkerProcess:
    """One worker: it starts, then answers one chunk at a time, and ends.

    Attributes:
        control: socket to the guard. channel: socket to the worker.
        chunk: what it works on; None where it is idle.
        since, allowed, deadline: when it got that (monotonic), seconds that it may take, and when it is to be killed;
            a deadline of None: never.
        ready: whether it has started.
        calls: how many chunks it has answered. failed: how many samples have failed in it since the last that did not.
        batch: number of the batch whose whole columns it has.
        ending: why it was killed (`timeout`, `broken`, `closed`), or "".
        end: what is known of how it has ended.
        broken: whether nothing can be heard of it any more.
        line: the beginning of the line that it is printing.
    """

    def __init__(self, plugin: Plugin):
        self.chunk: Chunk | None = None
        self.deadline: float | None = None
        self.ready, self.calls, self.failed, self.batch, self.ending = False, 0, 0, -1, ""
        self.since, self.allowed = time.monotonic(), 0.0
        self.end: dict[str, Any] = {}
        self.broken, self.line = False, ""
        self._folder = Path(tempfile.gettempdir(), f"ruyi_rl_reward_{os.getpid()}_{uuid.uuid4().hex[:8]}")
        self._received, self._lines = Received(), b""
        self.control, guards = socket.socketpair()
        self.channel, workers = socket.socketpair()
        root = str(Path(ruyi_rl.__file__).parents[1])
        arguments = [str(os.getpid()), str(workers.fileno()), str(plugin.memory), str(self._folder)]
        # One thread each, unless the user has said otherwise: the workers share the cores already.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        environment |= dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(self._folder))
        environment[LEFTOVERS] = str(self._folder / NOTE)
        try:
            # Not multiprocessing's spawn: that would run the caller's script again.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND.format(root=root), *arguments],
                stdin=guards, stdout=subprocess.DEVNULL, pass_fds=[workers.fileno()], cwd=plugin.folder,
                env=environment, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            self.control.close()
            self.channel.close()
            raise
        finally:
            guards.close()
            workers.close()
        self.control.setblocking(False)
        self.channel.setblocking(False)
        self.unsent = memoryview(b"")
        sys_path = [folder or os.getcwd() for folder in sys.path]
        setup = {"path": plugin.path, "kwargs": plugin.kwargs, "told": plugin.told, "sys_path": sys_path}
        self.send(pickle.dumps(setup))

    @property
    def idle(self) -> bool:
        return self.ready and self.chunk is None and not self.ending and not self.broken

    def send(self, message: bytes) -> None:
        """Send a message, as much of it as can be sent now; `flush` sends the rest."""
        self._tag = os.urandom(TAG)
        self.unsent = memoryview(frame(self._tag + message))
        self.flush()

    def flush(self) -> None:
        """Send more of the message."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.channel.send(self.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.unsent = memoryview(b"")  # its end is told by the guard

    def replies(self) -> Iterator[dict[str, Any]]:
        """What the worker has sent since the last time.

        Raises:
            EOFError: it has closed its end.
            ValueError: it has sent what is no reply, or not to the last message.
        """
        try:
            data = self.channel.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise EOFError
        for message in self._received.add(data):
            tag, self._tag = self._tag, b""
            if not tag or message[:TAG] != tag:
                raise ValueError("a reply that nobody has asked for")
            yield decoded(message[TAG:])

    def reports(self) -> Iterator[dict[str, Any]]:
        """What the guard has told since the last time; {"ended": {}} where it has ended without a word."""
        try:
            data = self.control.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            yield {"ended": {}}
            return
        *lines, self._lines = (self._lines + data).split(b"\n")
        yield from map(json.loads, lines)

    def kill(self, why: str, with_stack: bool = False) -> None:
        """End the worker and all that it started; the guard tells when it has."""
        self.ending = self.ending or why
        self.wake()
        try:
            self.control.send(b"t" if with_stack else b"k")
        except OSError:
            return  # the guard has ended already

    def gone(self) -> bool:
        """Whether nothing is left of it; then it has been waited for."""
        return self._process.poll() is not None

    def forget(self) -> None:
        """Close what the pool has of a worker that is gone."""
        self.control.close()
        self.channel.close()
        # All this the guard does, unless it was killed itself.
        if self._process.returncode != 0:
            end_processes(self._folder)
        remove(self._folder)

    def wake(self) -> None:
        """Let a guard go on that the plugin has stopped."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill the guard too; for a guard that does not end."""
        self._process.kill()
