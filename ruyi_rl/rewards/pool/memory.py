"""How much memory a tree of processes holds."""

from __future__ import annotations

import os

from ruyi_rl.rollout.servers.guardian import descendants, read

FASTEST = 4 * 2**30
"""Bytes a second that a worker is taken to fill at most."""
SHORTEST, LONGEST = 0.02, 0.25
"""Seconds between two looks."""


class Watch:
    """Looks how much memory the descendants of a process hold, the sooner again the nearer they are to the limit.

    Args:
        process: its descendants are counted, without itself.
        limit: in bytes.
    """

    def __init__(self, process: int, limit: int):
        self._process, self._limit, self.exceeded = process, limit, 0

    def look(self) -> float:
        """Take note of what is held (`exceeded`: bytes, where it is over the limit).

        Returns:
            Seconds until the next look.
        """
        processes = descendants(self._process)
        held = sum(resident(process) for process in processes)
        # Forked processes share pages, which the quick sum counts for each of them.
        if held > self._limit and len(processes) > 1:
            held = sum(proportional(process) for process in processes)
        if held > self._limit:
            self.exceeded = held
            return 0.0
        return min(max((self._limit - held) / FASTEST, SHORTEST), LONGEST)


def resident(process: int) -> int:
    """Bytes that a process holds, shared ones included; 0 where it is gone."""
    return _pages(process)[0] * os.sysconf("SC_PAGE_SIZE")


def proportional(process: int) -> int:
    """Bytes that a process holds, with its part of those that it shares; 0 where it is gone."""
    for line in read(f"/proc/{process}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    # Another user's process does not tell: those that share nothing count in full, and the shared part not at all.
    held, shared = _pages(process)
    return (held - shared) * os.sysconf("SC_PAGE_SIZE")


def _pages(process: int) -> tuple[int, int]:
    """Pages that a process holds, and how many of them are files or shared memory."""
    fields = read(f"/proc/{process}/statm").split()
    return (int(fields[1]), int(fields[2])) if fields else (0, 0)
