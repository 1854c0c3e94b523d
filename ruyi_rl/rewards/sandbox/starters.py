"""How residents come to be: one interpreter for each, or forks of a warm one."""

import os
import socket
import subprocess
import tempfile

from ruyi_rl.rewards.sandbox.bubblewrap import ENVIRONMENT, bubblewrap_command
from ruyi_rl.rewards.sandbox.languages import Language
from ruyi_rl.rewards.sandbox.payload import BOOT
from ruyi_rl.rewards.sandbox.residences import START_SECONDS, Residence, SandboxFailure


class ColdStarter:
    """Starts an interpreter for every program. `close` it.

    Args:
        language: of the programs.
        payload: what `payload.payload` gave.
        confined: in a bubblewrap of its own; else in a folder of its own.
    """

    def __init__(self, language: Language, payload: bytes, confined: bool):
        self._interpreter, self._confined = language.command(), confined
        self._bubblewrap = bubblewrap_command(language) if confined else []
        self._payload = os.memfd_create("ruyi-sandbox")
        os.write(self._payload, payload)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`

    def start(self, residence: Residence) -> None:
        """Start a resident for it; whether it comes up, `Residence.greet` tells."""
        folder = None
        if not self._confined:
            residence.folder = tempfile.TemporaryDirectory(prefix="ruyi-sandbox-")
            folder = residence.folder.name
        residence.started = self.spawn("resident", residence.given, folder)

    def spawn(self, module: str, passed: list[int], folder: str | None = None) -> subprocess.Popen:
        """Start an interpreter that runs the `main` of a module of the payload with these descriptors."""
        arguments = ["-c", BOOT, str(self._payload), module, *map(str, passed)]
        return subprocess.Popen(
            [*self._bubblewrap, *self._interpreter, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=[self._payload, *passed],
            env=ENVIRONMENT | ({"HOME": folder, "TMPDIR": folder} if folder else {}),
            cwd=folder or "/",
            start_new_session=True,
        )

    def said(self) -> str:
        """The last line of what bubblewrap and the resident wrote of their troubles."""
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").splitlines()
        return lines[-1].strip()[:300] if lines else "it said nothing"

    def close(self) -> None:
        os.close(self._payload)
        self._errors.close()


class WarmStarter(ColdStarter):
    """Starts one interpreter, the zygote, and lets it fork a resident for every program. `close` it."""

    def __init__(self, language: Language, payload: bytes):
        super().__init__(language, payload, True)
        self._zygote: subprocess.Popen | None = None
        self._control: socket.socket | None = None

    def start(self, residence: Residence) -> None:
        if self._zygote is not None and self._zygote.poll() is not None:
            self._stop()
        if self._zygote is None:
            self._begin()
        try:
            socket.send_fds(self._control, [b"F"], residence.given)
        except OSError as error:
            self._stop()
            raise SandboxFailure(f"the warm interpreter is gone: {error}") from None

    def close(self) -> None:
        self._stop()
        super().close()

    def _begin(self) -> None:
        self._control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_control:
            self._zygote = self.spawn("zygote", [its_control.fileno()])
        self._control.settimeout(START_SECONDS)
        try:
            ready = self._control.recv(1)
        except TimeoutError:
            ready = b""
        if ready != b"Z":
            self._stop()
            raise SandboxFailure("the sandbox did not start")

    def _stop(self) -> None:
        if self._zygote is not None:
            self._control.close()
            try:
                self._zygote.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
            self._zygote = self._control = None
