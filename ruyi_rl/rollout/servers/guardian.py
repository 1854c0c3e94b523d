"""Keeps a server, and every process that it starts, from outliving the run that started it.

A script on the standard library alone: the run starts it by its path, in a session of its own, so that a terminal's
Ctrl-C does not reach it. It ends the server when its standard input is closed, which the system sees to however the run
ends, and when the run's process is gone; it ends what is left of the server when a part of it dies.

    python -I -S guardian.py --run <pid> [--grace <seconds>] [--remove <folder>] [command ...]

Standard input: `s`, or its end, stops the server (SIGTERM first); `k` kills it at once. The exit status is the
server's, 128 and its signal's number where one killed it, or `BROKEN`. Without a command it only waits for the end of
the run, and then removes the folders.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

BROKEN = 99
"""Exit status where a process died that the server cannot do without, but not the server."""
PATROL_SECONDS = 1.0
"""How often the server's own processes are counted."""
KILL_SECONDS = 30.0
"""How long killed processes may take to go."""
TRACKER_SECONDS = 5.0
"""How long Python's resource trackers may take to remove what the killed processes have left."""
VITAL = "VLLM::"
"""How the names begin of the processes that a vLLM server cannot do without."""
GONE = ("Z", "X", "")
"""States of processes that have ended."""
SET_PARENT_DEATH_SIGNAL, SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>


def main(arguments: list[str] | None = None) -> int:
    """Guards until the run or the server ends; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=int, required=True)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--remove", type=Path, action="append", default=[])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *received: None)  # the run decides when a server ends, not who signals everybody
    end_of_run = EndOfRun(options.run)
    if options.command:
        status = guard(options.command, end_of_run, options.grace)
    else:
        while not end_of_run.wait(None):
            pass
        status = 0
    for folder in options.remove:
        shutil.rmtree(folder, ignore_errors=True)
    return status


def guard(command: list[str], end_of_run: EndOfRun, grace: float) -> int:
    """Runs the command until it, a vital part of it, or the run ends; leaves nothing of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the server become children of this process
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509 - one thread
    ).pid
    ended: dict[int, int] = {}
    vital: dict[int, str] = {}
    broken = False
    while not broken:
        told = end_of_run.wait(PATROL_SECONDS)
        reap(ended)
        if server in ended:
            break
        if told:
            stop(server, 0.0 if told == "k" else grace, ended)
            break
        alive = descendants(os.getpid())
        if gone := [f"{name} ({pid})" for pid, name in vital.items() if pid not in alive]:
            print(f"guardian: {' and '.join(gone)} died, and the server is of no use without", flush=True)
            broken = True
        # Added, not replaced: one that dies just now has lost its name already, and is missed at the next patrol.
        vital |= vital_processes(alive)
    clear(ended)
    if broken:
        return BROKEN
    code = os.waitstatus_to_exitcode(ended.get(server, 0))
    return 128 - code if code < 0 else code


class EndOfRun:
    """Notices that standard input is closed or told something, or that the run's process is gone."""

    def __init__(self, run: int):
        self.run = run
        self.poll = select.poll()
        self.poll.register(sys.stdin.fileno(), select.POLLIN)
        # A child of the run that was forked may hold the other end of standard input for longer than the run lives.
        self.process = os.pidfd_open(run) if hasattr(os, "pidfd_open") and os.getppid() == run else None
        if self.process is not None:
            self.poll.register(self.process, select.POLLIN)
        # Else a child's end would not end the waiting.
        self.wake, write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self.poll.register(self.wake, select.POLLIN)

    def wait(self, seconds: float | None) -> str | None:
        """Waits for the end of the run, or a signal, at most so long; returns what was told."""
        if os.getppid() != self.run:
            return "s"
        for descriptor, _ in self.poll.poll(None if seconds is None else seconds * 1000):
            if descriptor == self.wake:
                os.read(self.wake, 4096)
            elif descriptor == sys.stdin.fileno():
                try:
                    return os.read(descriptor, 1).decode() or "s"
                except ConnectionResetError:  # a socket whose other end was closed before all was read there
                    return "s"
            else:
                return "s"
        return None


def stop(server: int, grace: float, ended: dict[int, int]) -> None:
    """Asks the server to end, and waits at most `grace` seconds for it."""
    if grace <= 0:
        return
    os.kill(server, signal.SIGTERM)
    wait_for([server], grace, ended)


def clear(ended: dict[int, int]) -> None:
    """Kills every descendant of this process, and removes the shared memory that they leave."""
    me = os.getpid()
    segments = shared_memory(descendants(me))
    deadline = time.monotonic() + KILL_SECONDS
    while (victims := [pid for pid in descendants(me) if not is_tracker(pid)]) and time.monotonic() < deadline:
        signal_all(victims, signal.SIGKILL)
        wait_for(victims, 0.5, ended)
    # What the trackers know of, they remove now by themselves.
    trackers = [pid for pid in descendants(me) if is_tracker(pid)]
    wait_for(trackers, TRACKER_SECONDS, ended)
    signal_all(trackers, signal.SIGKILL)
    # Each process whose parent has ended is a child of this one, and is left for good when it has been waited for.
    deadline = time.monotonic() + 1.0
    while children(me) and time.monotonic() < deadline:
        time.sleep(0.01)
        reap(ended)
    if segments := {path for path in segments if path.exists()}:
        for path in segments - shared_memory(processes()):
            path.unlink(missing_ok=True)


def signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_for(pids: Iterable[int], seconds: float, ended: dict[int, int]) -> None:
    """Waits until these processes have ended, at most so long."""
    deadline = time.monotonic() + seconds
    while any(process_state(pid) not in GONE for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
        reap(ended)


def reap(ended: dict[int, int]) -> None:
    """Takes note of the children that have ended: process id -> wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        ended[pid] = status


def descendants(pid: int) -> list[int]:
    """The children of a process, theirs, and so on; ended ones that nobody has waited for are left out."""
    found: list[int] = []
    for child in children(pid):
        if process_state(child) not in GONE:
            found.append(child)
        found.extend(descendants(child))
    return found


def children(pid: int) -> list[int]:
    """The children of a process."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    texts = [read(f"/proc/{pid}/task/{thread}/children") for thread in threads]
    if any(texts) or Path("/proc/self/task", str(os.getpid()), "children").exists():
        return [int(child) for text in texts for child in text.split()]
    # A kernel that does not list them.
    return [other for other in processes() if parent(other) == pid]


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def process_name(pid: int) -> str:
    """The beginning of its command line, which a process may set to say what it is."""
    return read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()[:200]


def vital_processes(pids: Iterable[int]) -> dict[int, str]:
    """Those that a vLLM server cannot do without: process id -> name.

    What one of them forks to run another program has its name until then, and is not one.
    """
    names = {pid: process_name(pid) for pid in pids}
    return {pid: name for pid, name in names.items() if name.startswith(VITAL) and names.get(parent(pid)) != name}


def parent(pid: int) -> int:
    """The parent of a process; 0 where it is gone."""
    return int(status(pid)[1])


def group(pid: int) -> int:
    """The process group of a process; 0 where it is gone."""
    return int(status(pid)[2])


def process_state(pid: int) -> str:
    """The letter that `ps` shows; empty where it is gone."""
    return status(pid)[0]


def status(pid: int) -> list[str]:
    """State, parent, group and more of a process, as /proc lists them."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split() or ["", "0", "0"]


def is_tracker(pid: int) -> bool:
    """Whether this is Python's resource tracker, which removes what other processes leave."""
    return "multiprocessing.resource_tracker" in read(f"/proc/{pid}/cmdline")


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Segments that lie in shared memory itself (not in a folder there) and that one of these processes uses."""
    lines = (line for pid in pids for line in read(f"/proc/{pid}/maps").splitlines() if "/dev/shm/" in line)
    paths = {Path(line[line.index("/dev/shm/") :].removesuffix(" (deleted)")) for line in lines}
    return {path for path in paths if path.parent == Path("/dev/shm")}


def read(path: str) -> str:
    """A file of /proc; empty where the process is gone or is another user's."""
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
