"""How a worker ended, as a failure of the chunk that it worked on."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

from ruyi_rl.rewards.pool.values import Failed
from ruyi_rl.rewards.pool.worker import CLOSED, PACKAGE

_FRAME = re.compile(r'^  File "(.*)", line (\d+) in ', re.MULTILINE)
_NO_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory")


def failure(why: str, seconds: float, end: dict[str, Any], file: str, limit: int) -> Failed:
    """What a worker's end says of its chunk.

    Args:
        why: why the pool has killed it: `timeout`, `broken` (it does not answer) or "" (it ended of itself).
        seconds: that the chunk was given.
        end: what its guard told: `status`, `held`, `stack`, `output`; {} where the guard told nothing.
        file: the plugin's file; "" where it has none.
        limit: bytes that the worker was allowed to hold.
    """
    place = stack_place(end.get("stack", ""), file)
    printed = end.get("output", "").strip()
    last = f"; it printed: {printed.splitlines()[-1]}" if printed else ""
    if end.get("held"):
        return Failed("memory", f"held {end['held'] / 2**30:.2f} GiB of {limit / 2**30:.2f} GiB", place)
    if why == "timeout":
        return Failed("timeout", f"took more than {seconds:.3g} s", place)
    if any(words in printed[-1000:] for words in _NO_MEMORY):
        return Failed("memory", f"no memory left of {limit / 2**30:.2f} GiB{last}", place)
    return Failed("crash", _status(end.get("status"), why) + last, place)


def stack_place(stack: str, file: str) -> str:
    """`file.py:12`: the innermost line of the plugin in a stack that faulthandler wrote; else the innermost one that is
    not the pool's; "" without."""
    frames = _FRAME.findall(stack)
    own = [frame for frame in frames if frame[0] == file]
    others = [frame for frame in frames if not frame[0].startswith(PACKAGE)]
    found = (own or others)[:1]
    return f"{os.path.basename(found[0][0])}:{found[0][1]}" if found else ""


def _status(status: int | None, why: str) -> str:
    if status is None:
        return "the worker's guard was killed"
    if status == CLOSED or why == "broken" and status == -signal.SIGKILL:
        return "closed or flooded the worker's channel"
    if status >= 0:
        return f"the worker exited with status {status}"
    try:
        return f"the worker was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"the worker was killed by signal {-status}"
