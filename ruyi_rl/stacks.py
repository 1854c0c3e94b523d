"""Where the threads of this process are. Importing this module imports no torch."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from itertools import islice
from pathlib import Path
from traceback import walk_stack

COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")
"""Parts of the paths of the files whose calls wait for other ranks."""
INNERMOST = 4
"""Calls that may lie between the main thread's innermost and the collective."""


def all_stacks() -> str:
    """The stacks of all threads, each with its innermost call first."""
    # In memory: a disk may be what the process waits for.
    with os.fdopen(os.memfd_create("stacks"), "r+", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def main_call() -> tuple[str, bool]:
    """The innermost call of the main thread, as `name, file.py:12`, and whether it waits for other ranks."""
    frame = sys._current_frames()[threading.main_thread().ident]
    innermost = [(inner.f_code, line) for inner, line in islice(walk_stack(frame), INNERMOST)]
    code, line = innermost[0]
    waits = any(part in each.co_filename for each, _ in innermost for part in COLLECTIVES)
    return f"{code.co_name}, {Path(code.co_filename).name}:{line}", waits
