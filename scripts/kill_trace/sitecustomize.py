"""Writes down when a run enters which phase. Python imports this at its start where `kill_anywhere.py` has put this
folder on PYTHONPATH; it changes nothing but commands `python -m ruyi_rl` with RUYI_RL_TRACE set.

A line a phase, `<seconds since the epoch> <phase>`, in `$RUYI_RL_TRACE/rank-<n>`: the phases of a training's clock, and
`evaluation` for generation outside of them.
"""

import os
import sys
import threading
import time
from contextlib import contextmanager
from functools import wraps

POLL_SECONDS = 0.05


class Trace:
    """The file of this process, opened at its first line."""

    def __init__(self, folder):
        self.folder, self.file, self.newest = folder, None, None

    def __call__(self, phase):
        if self.file is None:
            path = os.path.join(self.folder, "rank-" + os.environ.get("RANK", "0"))
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if phase != self.newest:
            self.newest = phase
            os.write(self.file, f"{time.time():.6f} {phase}\n".encode())


def trace_phases(clock, trace):
    enter, turn_to = clock.__call__, clock.turn_to

    @contextmanager
    def entered(self, name):
        with enter(self, name):
            trace(name)
            yield
        trace(self._open[-1])

    @wraps(turn_to)
    def turned(self, name):
        turn_to(self, name)
        trace(self._open[-1])

    clock.__call__, clock.turn_to = entered, turned


def trace_evaluation(rollout, trace):
    generate = rollout.generate

    @wraps(generate)
    def generated(self, *arguments, **keywords):
        before = trace.newest
        if before in (None, "other", "evaluation"):
            trace("evaluation")
        return generate(self, *arguments, **keywords)

    rollout.generate = generated


def watch(trace):
    """Patches each class once its module is there: importing it from here would change what the run does."""
    waiting = {
        ("ruyi_rl.training.phases", "PhaseClock"): trace_phases,
        ("ruyi_rl.rollout.transformers", "TransformersRollout"): trace_evaluation,
        ("ruyi_rl.rollout.vllm", "VllmRollout"): trace_evaluation,
        ("ruyi_rl.rollout.vllm_server", "VllmServerRollout"): trace_evaluation,
    }
    while waiting:
        for (module, name), patch in list(waiting.items()):
            if (found := getattr(sys.modules.get(module), name, None)) is not None:
                del waiting[module, name]
                patch(found, trace)
        time.sleep(POLL_SECONDS)


if "RUYI_RL_TRACE" in os.environ and "ruyi_rl" in sys.orig_argv:
    threading.Thread(target=watch, args=(Trace(os.environ["RUYI_RL_TRACE"]),), daemon=True).start()
