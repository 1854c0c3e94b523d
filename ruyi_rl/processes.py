"""Other processes of this machine, as far as the system tells. Imports no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

EXITING = 0x4  # PF_EXITING of <linux/sched.h>


def has_ended(pid: int) -> bool:
    """Whether a process is gone or on its way: killed, it may still be freeing gigabytes before it closes its files."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        # Its name, in parentheses, may hold anything; after it come state, parent, …, flags.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return Path("/proc/self/stat").exists()  # without it, the signal's answer is all there is to know
    return state in "ZX" or bool(int(rest[5]) & EXITING)


def holders(path: Path) -> list[int]:
    """Processes that have `path` open, as far as this one may see."""
    name, found = str(path.resolve()), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or gone meanwhile
            if any(opened.path == name for opened in process.open_files()):
                found.append(process.pid)
    return found
