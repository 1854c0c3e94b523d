"""Ends a torchrun that would outlive its ranks for a quarter of an hour. Importing this module imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys

from ruyi_rl import ranks
from ruyi_rl.launcher_command import TORCHRUN, launcher

PATIENCE_SECONDS = 45
"""How long torchrun may take after its rank's end: by itself it waits 30 s for its other ranks."""
WAIT_AND_KILL = """
import os, signal, sys, time
launcher, patience = int(sys.argv[1]), float(sys.argv[2])
deadline = time.monotonic() + patience
try:
    while time.monotonic() < deadline:
        os.kill(launcher, 0)
        time.sleep(0.2)
    os.kill(launcher, signal.SIGKILL)
    print(f"ruyi_rl: torchrun, process {launcher}, still waited for a host that does not answer, and was killed",
          file=sys.stderr)
except (ProcessLookupError, PermissionError):
    pass
"""


def exit_beside_launcher(status: int, patience: float = PATIENCE_SECONDS) -> None:
    """Ends this process at once, and its torchrun some time later where that does not end by itself.

    On a host that has lost the others torchrun waits in a system call for the host of its rendezvous, deaf to signals,
    until TCP gives the connection up: 15 minutes on Linux. It is left alone where it may start its ranks again.
    """
    tries = (os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if launcher() == TORCHRUN and ranks.host_count() > 1 and ranks.local_rank() == 0 and tries[0] == tries[1]:
        subprocess.Popen(
            [sys.executable, "-c", WAIT_AND_KILL, str(os.getppid()), str(patience)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    os._exit(status)
