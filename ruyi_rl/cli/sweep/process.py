"""One process a job: starting it with a log, waiting for it, stopping it so that it can save. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Self

from ruyi_rl.cli.sweep.record import DONE, FAILED, INTERRUPTED, KILLED
from ruyi_rl.launchers import SET_PARENT_DEATH_SIGNAL

PARENT = "RUYI_RL_SWEEP"
"""Environment variable of a job: the process id of the sweep that started it."""
POLL_SECONDS = 0.1
KILLING = 3
"""The signal that ends jobs which two signals have not ended."""
MESSAGE = "ruyi_rl: "
"""Begins what the command says of its end."""
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of a job that was told to stop."""


def end_with_sweep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has the system tell this job to stop, and so to save, when the sweep that started it ends, however that ends.

    Linux only.
    """
    parent = environment.pop(PARENT, None)  # the job's own processes are not the sweep's
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


class SweepStop:
    """Context in which SIGINT and SIGTERM stop the sweep: every running job is told, and no further one starts.

    A second signal is passed on too, which stops a job at once; a third kills what still runs.

    Args:
        announce: called with a line for the user at the first signal.
    """

    def __init__(self, announce: Callable[[str], None] = lambda line: None):
        self.announce = announce
        self.number: int | None = None
        """The signal that came first."""
        self.count = 0
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        return self.number is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def following(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Passes signals on to `process` meanwhile."""
        self._running[process.pid] = process
        try:
            if self.requested:
                self._pass_on(process, self.number)
            yield
        finally:
            del self._running[process.pid]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self.count += 1
        for process in list(self._running.values()):
            self._pass_on(process, number)
        if self.count == 1:
            name = signal.Signals(number).name
            self.announce(f"{name}: the running jobs save and stop; once more stops them at once")

    def _pass_on(self, process: subprocess.Popen[bytes], number: int | None) -> None:
        with suppress(ProcessLookupError):
            if self.count >= KILLING:
                os.killpg(process.pid, signal.SIGKILL)
            elif number is not None:
                process.send_signal(number)


def run_job(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    stop: SweepStop,
    follow: Callable[[], None] = lambda: None,
) -> int:
    """Runs a job and waits for it.

    Args:
        command: the job's words.
        log: what it prints is appended to this file.
        environment: variables that it has besides this process's.
        stop: passes signals on.
        follow: called ten times a second meanwhile, and once after the end.

    Returns:
        The exit status, 128 + the signal's number for a job that a signal ended.
    """
    with open(log, "ab") as file:
        # A session of its own: a terminal's Ctrl-C reaches it through the sweep alone, once.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, PARENT: str(os.getpid())},
            start_new_session=True,
        )
    with stop.following(process):
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            follow()
    follow()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def outcome(status: int) -> str:
    """What an exit status makes of a job.

    One that refused itself has failed: what was in its way, such as another process in its folder, may be gone later.
    """
    if status in STOPPED:
        return INTERRUPTED
    return DONE if status == 0 else KILLED if status > 128 else FAILED


def last_message(log: Path, start: int, status: int) -> str | None:
    """Why a job ended, on one line: its own message, else what killed it, else the last line of its log.

    Args:
        log: the job's.
        start: byte at which this attempt begins.
        status: its exit status; None is returned for 0.
    """
    if status == 0:
        return None
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix(MESSAGE) for line in lines if line.startswith(MESSAGE)]
    if said and outcome(status) != KILLED:
        return said[-1]
    if status > 128:
        name = signal.Signals(status - 128).name if status - 128 in set(signal.Signals) else str(status - 128)
        return name + (": by hand, or by the system where memory ran out" if name == "SIGKILL" else "")
    return lines[-1] if lines else "said nothing"


def last_line(log: Path, size: int = 4096) -> str:
    """The last line with words in it of a log's last `size` bytes."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip(" \r─") for line in reversed(lines) if any(map(str.isalnum, line))), "")
