"""The memory of a program's processes as /proc shows it: the watch where no memory cgroup can be had."""

from pathlib import Path

_HELD = ("RssAnon:", "RssShmem:", "VmSwap:")


def tree_memory(process: int) -> int:
    """Bytes that the children of a process and all below them hold for themselves, above what they were born with.

    Born with: what `process` itself, which forked the first of them, holds. Pages of files do not count, and processes
    that end meanwhile do not either.
    """
    own = _held(process)
    total, found = 0, _children(process)
    while found:
        child = found.pop()
        total += max(0, _held(child) - own)
        found += _children(child)
    return total


def _children(process: int) -> list[int]:
    children: list[int] = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    except OSError:
        return children
    return children


def _held(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(_HELD)) << 10
