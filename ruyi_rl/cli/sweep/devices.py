"""Sharing this machine's GPUs and cores out among jobs that run at the same time. Imports no torch."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ruyi_rl.refusal import Refusal

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"
POLL_SECONDS = 0.5
"""Between two looks at whether the sweep is to stop, while a job waits for devices."""


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that processes started with this environment see, as CUDA_VISIBLE_DEVICES writes them."""
    if VISIBLE in environment:
        names = [name.strip() for name in environment[VISIBLE].split(",")]
        end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]  # CUDA itself reads no further than the first that is none
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, text=True, timeout=60)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    return [str(number) for number in range(count)]


def jobs_at_once(wanted: int, jobs: int, needs: Sequence[int], gpus: int, cores: int) -> int:
    """How many jobs run at the same time.

    Args:
        wanted: joblib's `n_jobs`: -1 for all cores, -2 for all but one, and so on.
        jobs: how many there are.
        needs: GPUs of each job.
        gpus: GPUs of this machine.
        cores: cores of this machine.

    Raises:
        Refusal: a job needs more GPUs than there are.
    """
    if needs and max(needs) > gpus:
        job = next(number for number, need in enumerate(needs, 1) if need > gpus)
        raise Refusal(
            "hydra.launcher.gpus_per_job",
            f"job {job} needs {max(needs)} GPUs, one a rank, and {gpus} are visible",
            "a smaller num_processes, or gpus_per_job=0: every job sees all GPUs",
        )
    fewest = min((need for need in needs if need), default=0)
    if wanted == 0:
        raise Refusal("hydra.launcher.n_jobs", "0 jobs at a time", "1 or more; -1: as many as there is room for")
    most = wanted if wanted > 0 else max(1, cores + 1 + wanted)
    return max(1, min(most, jobs, gpus // fewest if fewest else jobs))


def threads_per_rank(cores: int, at_once: int, ranks: int) -> int:
    """OMP_NUM_THREADS of each rank of a job, so that the jobs that run together have a thread a core, at least 1."""
    return max(1, cores // (at_once * ranks))


class DevicePool:
    """GPUs that jobs borrow: first come, first served."""

    def __init__(self, gpus: Sequence[str]):
        self._free = list(gpus)
        self._turn = threading.Lock()
        self._returned = threading.Condition()

    @contextmanager
    def borrowed(self, count: int, stopped: Callable[[], bool]) -> Iterator[list[str] | None]:
        """`count` GPUs, once they are free; None where the sweep was stopped before."""
        # In turn: a job that needs many is not overtaken for ever by those that need few.
        with self._turn, self._returned:
            while len(self._free) < count and not stopped():
                self._returned.wait(POLL_SECONDS)
            taken = None if stopped() else [self._free.pop(0) for _ in range(count)]
        try:
            yield taken
        finally:
            with self._returned:
                self._free.extend(taken or ())
                self._returned.notify_all()
