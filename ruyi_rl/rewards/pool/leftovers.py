"""What a worker may leave behind: its folder of temporary files, and what it started where its guard was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from ruyi_rl.rollout.servers.guardian import GONE, process_state, processes, shared_memory, signal_all

SECONDS = 2.0
"""How long killed processes may take to go."""
NOTE = "leftovers"
"""File in the folder that names cgroups, a line each, which go when their processes have."""


def end_processes(folder: Path) -> None:
    """Kills what was started with this folder for its temporary files, and removes the shared memory that it leaves.

    For a worker whose guard was killed: its processes are nobody's children then, but have the folder's name, which is
    unique, in the environment that they were started with (unless the plugin has started them without).
    """
    segments: set[Path] = set()
    deadline = time.monotonic() + SECONDS
    while (victims := _started_with(str(folder))) and time.monotonic() < deadline:
        segments |= shared_memory(victims)
        signal_all(victims, signal.SIGKILL)
        time.sleep(0.01)
    if segments := {path for path in segments if path.exists()}:
        for path in segments - shared_memory(processes()):
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Removes a folder, and what lies in folders of it that the plugin has locked; and the cgroups that it names."""
    with contextlib.suppress(OSError):
        for group in (folder / NOTE).read_text().splitlines():
            _remove_cgroup(Path(group))
    if folder.exists():
        shutil.rmtree(folder, onerror=_force)


def _remove_cgroup(group: Path) -> None:
    """Removes a cgroup, which takes until the kernel has done with the processes that it held."""
    deadline = time.monotonic() + SECONDS
    while group.is_dir() and time.monotonic() < deadline:
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.01)


def _started_with(folder: str) -> list[int]:
    mark, found = f"TMPDIR={folder}".encode(), []
    for process in processes():
        with contextlib.suppress(OSError):  # gone, or another user's
            if mark in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return [process for process in found if process != os.getpid() and process_state(process) not in GONE]


def _force(_function, path: str, _error) -> None:
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700)
        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.unlink(path)
