"""A worker's guard: starts the worker, watches its memory and output, and leaves nothing of it.

One process a worker, run by the pool in a session of its own. It ends the worker and
all that the worker has started when the pool says so, and when the pool's process is gone; it removes their folder of
temporary files.

Standard input is a socket to the pool: `k` kills the worker, `t` too, but first lets it write where it is. What goes
the other way are JSON lines: {"output": …} with the beginning of what the worker prints, {"known": …} when its end is
sure, and {"ended": …} when nothing is left of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from ruyi_rl.rewards.pool.leftovers import remove
from ruyi_rl.rewards.pool.memory import Watch
from ruyi_rl.rewards.pool.worker import DUMP_SIGNAL, serve
from ruyi_rl.rollout.servers.guardian import SET_CHILD_SUBREAPER, SET_PARENT_DEATH_SIGNAL, EndOfRun, clear, reap

SHOWN, KEPT = 8192, 4096
"""Bytes of the worker's output that are passed on, from its beginning, and kept, from its end."""
STACK_BYTES = 8192
"""Of the stacks that the worker has written."""
DUMP_SECONDS = 0.2
"""How long a worker that hangs may take to write where it is."""
_TELLING = threading.Lock()
"""Two threads tell the pool, and a long line may go out in pieces."""


def main() -> None:
    """Arguments: the pool's process id, the worker's channel, its limit of memory in bytes, its temporary folder."""
    run, channel, memory = (int(argument) for argument in sys.argv[1:4])
    folder = Path(sys.argv[4])
    folder.mkdir(mode=0o700)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the worker become children of this process
    # A plugin may have stopped this process: it must go on at the run's end, to clear up.
    libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGCONT, 0, 0, 0)
    faults = os.memfd_create("faults")
    read, write = os.pipe()
    guard = os.getpid()
    # A fork, not another interpreter: that would double the time of a start.
    worker = os.fork()
    if worker == 0:
        libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(0)
        os.setsid()
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(read)
        os.close(write)
        serve(channel, faults, memory)
    os.close(write)
    os.close(channel)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *received: None)  # the pool decides when a worker ends, not who signals everybody
    end = watch(worker, EndOfRun(run), Output(read), faults, memory)
    remove(folder)
    tell(ended=end)


def watch(worker: int, end_of_run: EndOfRun, output: Output, faults: int, memory: int) -> dict:
    """Waits until the worker or the run ends, or the memory is over its limit; leaves nothing of the worker.

    Returns:
        `status`, as `os.waitstatus_to_exitcode`; `held`, bytes, where they were over the limit; `stack`, what the
        worker wrote of where it was; `output`, the end of what it printed.
    """
    ended: dict[int, int] = {}
    held = Watch(os.getpid(), memory)
    told = None
    while worker not in ended and not told and not held.exceeded:
        told = end_of_run.wait(held.look())
        reap(ended)
    if told == "t" and worker not in ended:
        os.kill(worker, DUMP_SIGNAL)
        await_stack(faults, DUMP_SECONDS)
    status = os.waitstatus_to_exitcode(ended[worker]) if worker in ended else -signal.SIGKILL
    known = {"status": status, "held": held.exceeded}
    tell(known=known)  # to clear up may take long
    clear(ended)
    output.finish()
    return known | {
        "stack": os.pread(faults, STACK_BYTES, 0).decode(errors="replace"),
        "output": output.tail.decode(errors="replace"),
    }


def await_stack(faults: int, seconds: float) -> None:
    """Waits until the stack has been written, at most so long."""
    deadline, size = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        time.sleep(0.01)
        before, size = size, os.fstat(faults).st_size
        if size and size == before:
            return


class Output:
    """Takes all that the worker and its children print, however much; passes the beginning on and keeps the end."""

    def __init__(self, descriptor: int):
        self._descriptor, self._left, self.tail = descriptor, SHOWN, b""
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for the rest, when nobody is left who could print."""
        self._thread.join(1.0)

    def _drain(self) -> None:
        while data := os.read(self._descriptor, 2**20):
            self.tail = (self.tail + data[-KEPT:])[-KEPT:]
            if self._left > 0:
                tell(output=data[: self._left].decode(errors="replace"))
                self._left -= len(data)


def tell(**message: object) -> None:
    """Send a line to the pool, if it is still there."""
    rest = json.dumps(message).encode() + b"\n"
    with _TELLING, contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(0, rest) :]


if __name__ == "__main__":
    main()
