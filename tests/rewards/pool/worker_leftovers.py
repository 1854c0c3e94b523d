"""What a pool may leave behind when it ends: nothing."""

import os
import tempfile
import time
from pathlib import Path

import psutil

EARLIER = set()
"""Children of this process that were there before the test; other tests' servers may live as long as it does."""


def children(process=None):
    """Process ids of the direct children of a process (this one: those since the test began), zombies too."""
    found = {child.pid for child in psutil.Process(process).children()}
    return found if process else found - EARLIER


def temporary_folders(process=None):
    """Folders that workers of a process (this one) have for their temporary files."""
    return set(Path(tempfile.gettempdir()).glob(f"ruyi_rl_reward_{process or os.getpid()}_*"))


def processes(process=None):
    """Guards, workers and their forked children of the pools of a process (this one)."""
    mark = f"ruyi_rl_reward_{process or os.getpid()}_"
    return [found.pid for found in psutil.process_iter() if any(mark in word for word in _command(found))]


def descriptors():
    """Open files of this process."""
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)}


def alive(process):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{int(process)}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def eventually(condition, seconds=30):
    """Whether the condition holds within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_open(name):
    return os.path.lexists(f"/proc/self/fd/{name}")
