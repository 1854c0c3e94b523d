"""A server that the run starts, kills and starts again, each time under a guardian of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ruyi_rl.rollout.servers import guardian

STOP_SECONDS = 5.0
"""What a server has to end by itself when it is told to."""
PATIENCE_SECONDS = 60.0
"""What a guardian has to clear a server away."""
TAIL_BYTES = 256 * 1024
PREFIX = re.compile(r"^(\([^()]*pid=\d+\)\s*)?((ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\]\s*)?")
"""What vLLM writes before each line."""
ERROR = re.compile(r"([\w.]*(Error|Exception)(:|$)|guardian:|[\w.]+: error:)")
SOCKET = "http"
"""Name of the socket on which a server listens, in the folder of its own."""


@dataclass(frozen=True)
class Launch:
    """How to start a server."""

    command: Sequence[str]
    environment: Mapping[str, str]


class LocalServer:
    """One server of the run; a restart gives it another folder, and so another socket.

    Args:
        launch: says how to start the server that is to listen on `<folder>/http`.
        folder: for the folders of its starts; its path is short.
        log: file that its output is appended to.
    """

    def __init__(self, launch: Callable[[Path], Launch], folder: Path, log: Path):
        self.launch, self.parent, self.log = launch, folder, log
        self.starts = 0
        self._guardian: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def folder(self) -> Path:
        """Of this start."""
        return self.parent.with_name(f"{self.parent.name}-{self.starts}")

    @property
    def socket(self) -> Path:
        return self.folder / SOCKET

    def start(self) -> None:
        """Starts the server; it answers some time later."""
        self.starts += 1
        self.folder.mkdir(mode=0o700)
        launch = self.launch(self.folder)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self._log_start = log.tell()
            self._guardian = subprocess.Popen(
                [*guardian_command(), "--grace", str(STOP_SECONDS), *launch.command],
                env=dict(launch.environment),
                stdin=subprocess.PIPE,
                bufsize=0,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> str | None:
        """How the server ended, with the line of its log that tells why; None while it runs."""
        code = None if self._guardian is None else self._guardian.poll()
        if self._guardian is None:
            return "it was stopped"
        if code is None:
            return None
        reason = self.complaint()
        return how_ended(code) + (f": {reason}" if reason else "")

    def killed(self) -> bool:
        """Whether the server ended because somebody killed it or a part of it, not by itself."""
        code = None if self._guardian is None else self._guardian.poll()
        return code is not None and (code < 0 or code == guardian.BROKEN or code > 128)

    def begin_stop(self, kill: bool = False) -> None:
        """Tells the server to end, and does not wait for it."""
        if self._guardian is not None:
            tell(self._guardian, b"k" if kill else b"s")

    def stop(self, kill: bool = False) -> None:
        """Ends the server and all that it has started; at once with `kill`. May be called twice."""
        self.begin_stop(kill)
        process, self._guardian = self._guardian, None
        if process is None:
            return
        try:
            code = process.wait(STOP_SECONDS + PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code < 0:
            # The guardian itself was killed. Its session has no other members than the server's processes.
            kill_group(process.pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self) -> None:
        """Kills what runs and starts anew."""
        self.stop(kill=True)
        self.start()

    def complaint(self) -> str:
        """The line of this start's log that tells best what went wrong; empty where it says nothing."""
        with open(self.log, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - TAIL_BYTES))
            return complaint(log.read().decode(errors="replace"))


class Caretaker:
    """Removes folders when the run is gone without having done so itself."""

    def __init__(self, folders: Sequence[Path]):
        removals = [word for folder in folders for word in ("--remove", str(folder))]
        self._process = subprocess.Popen(
            [*guardian_command(), *removals], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def close(self) -> None:
        """Ends it; the folders go now."""
        tell(self._process, b"s")
        self._process.wait(PATIENCE_SECONDS)


def guardian_command() -> list[str]:
    """Starts a guardian of this process."""
    return [sys.executable, "-I", "-S", guardian.__file__, "--run", str(os.getpid())]


def tell(process: subprocess.Popen[bytes], word: bytes) -> None:
    """Writes a word to a guardian, if it still reads, and closes its standard input.

    Closing alone would not do: a child of the run that was forked may hold it open.
    """
    if process.stdin is None or process.stdin.closed:
        return
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(word)
    process.stdin.close()


def kill_group(group: int) -> None:
    """Kills the processes of a group, but for Python's resource trackers, which then clear up and end by themselves."""
    for pid in guardian.processes():
        if guardian.group(pid) == group and not guardian.is_tracker(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def how_ended(code: int) -> str:
    """A guardian's exit status in words."""
    if code == guardian.BROKEN:
        return "a part of it died"
    if code < 0:
        return f"its guardian was killed by {signal_name(-code)}"
    return f"it was killed by {signal_name(code - 128)}" if code > 128 else f"it ended with status {code}"


def signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def complaint(text: str) -> str:
    """The last line of a log that names an error, without vLLM's prefix; empty if there is none.

    An engine's error is followed by those of the processes that wait for it, which only say that it failed.
    """
    lines = [PREFIX.sub("", line).rstrip() for line in text.splitlines()]
    errors = [line for line in lines if ERROR.match(line)]
    telling = [line for line in errors if "See root cause above" not in line and "See stack trace" not in line]
    return (telling or errors or [""])[-1][:500]
