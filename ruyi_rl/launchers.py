"""Ranks end with the launcher that started them. Importing this module imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from ruyi_rl.launcher_command import launcher

LAUNCHER = "RUYI_RL_LAUNCHER"
"""Environment variable of a rank: the process id of the `num_processes=n` command that started it."""
SET_PARENT_DEATH_SIGNAL = 1  # <sys/prctl.h>


def end_with_launcher() -> None:
    """Has the system kill this rank when its launcher ends, however that ends; without a known launcher nothing.

    Ranks that outlive a killed launcher would go on training, with nobody to stop them, and hold the run's folder.
    Linux only. The signal is sent at the end of the *thread* that started this process: torchrun and DeepSpeed's
    launcher do that from their main one.
    """
    if sys.platform != "linux" or launcher() is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    # Had the launcher ended before, no signal would come; whose child an orphan becomes differs between systems.
    if (ours := os.environ.get(LAUNCHER)) is not None and os.getppid() != int(ours):
        os.kill(os.getpid(), signal.SIGKILL)
