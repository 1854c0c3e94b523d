"""The parent's side of one running program: its descriptors, how it is let go, and how it is ended."""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

START_SECONDS = 60.0
"""For a resident to report. A machine under load is slow; only a broken one is this slow."""


class SandboxFailure(RuntimeError):
    """The sandbox itself failed, not the program in it; the message has what bubblewrap said."""


def _reading_end() -> tuple[int, int]:
    reads, writes = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reads, False)
    return reads, writes


@dataclass
class Residence:
    """One program's place while it lasts. Whoever made it must `end` it.

    Attributes:
        lifeline, channel: sockets to the resident and to the program.
        stdout, stderr: read ends of pipes, non-blocking.
        given: the other ends of the four, for the resident; closed here by `greet`.
        number, process: id and pidfd of the resident: process 1 of the program's pid namespace.
        started: bubblewrap (or, unconfined, the resident), where it was started for this program.
        folder: unconfined, the program's working directory.
    """

    lifeline: socket.socket
    channel: socket.socket
    stdout: int
    stderr: int
    given: list[int]
    number: int = 0
    process: int = -1
    started: subprocess.Popen | None = None
    folder: tempfile.TemporaryDirectory | None = field(default=None, repr=False)

    @classmethod
    def make(cls) -> "Residence":
        """Descriptors for a program that is to be started with `given`."""
        lifeline, its_lifeline = socket.socketpair()
        channel, its_channel = socket.socketpair()
        # The kernel vouches for the sender's process id, in our own count of processes.
        lifeline.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        channel.setblocking(False)
        (stdout, its_stdout), (stderr, its_stderr) = _reading_end(), _reading_end()
        given = [its_lifeline.detach(), its_channel.detach(), its_stdout, its_stderr]
        return cls(lifeline, channel, stdout, stderr, given)

    def greet(self) -> None:
        """Wait until the resident is ready for its program.

        Raises:
            SandboxFailure: it is not.
        """
        self._close_given()
        self.lifeline.settimeout(START_SECONDS)
        try:
            ready, ancillary, _, _ = self.lifeline.recvmsg(1, socket.CMSG_SPACE(12))
            if ready == b"R":
                (self.number,) = struct.unpack("i", ancillary[0][2][:4])
                self.process = os.pidfd_open(self.number)
        except OSError as error:
            raise SandboxFailure(f"the sandbox did not start: {error}") from None
        if ready != b"R":
            raise SandboxFailure("the sandbox did not start")
        self.lifeline.setblocking(False)

    def let_go(self) -> bool:
        """Let the resident start its program; False where it has died meanwhile."""
        try:
            return self.lifeline.send(b"G") == 1 and not select.select([self.process], [], [], 0)[0]
        except OSError:
            return False

    def end(self) -> None:
        """Kill all that is left of the program, and wait until it is gone."""
        self._close_given()
        if self.process >= 0:
            with _gone():
                signal.pidfd_send_signal(self.process, signal.SIGKILL)
        self.lifeline.close()
        self.channel.close()
        os.close(self.stdout)
        os.close(self.stderr)
        if self.started is not None:
            if self.folder is not None:
                with _gone():
                    os.killpg(self.started.pid, signal.SIGKILL)
            elif self.process < 0:
                self.started.kill()
            self.started.wait()
        if self.process >= 0:
            select.select([self.process], [], [])
            os.close(self.process)
        if self.folder is not None:
            self.folder.cleanup()

    def _close_given(self) -> None:
        while self.given:
            os.close(self.given.pop())


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    """What is to be killed may have ended."""
    with contextlib.suppress(ProcessLookupError):
        yield
