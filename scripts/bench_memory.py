"""Peak memory of a step: ours for all exits beside TRL's for the deepest branch alone, each in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_family import Shape, family_of

MIB = 2**20
# Large blocks go back to the system when they are freed, so that resident memory follows what is allocated.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True)
class Peak:
    """Of one case; memory in MiB."""

    case: str
    ours: float
    """Above the state before the model was built: weights, gradients, optimiser and activations."""
    trl: float
    whole: float
    """Ratio of the two."""
    ours_transient: float
    """Above the state right before the step: gradients and activations."""
    trl_transient: float
    transient: float
    """Ratio of the two."""


def peaks(command: str, case, shape: Shape, arguments) -> Peak:
    """Both sides, one after the other."""
    whole, transient = zip(*(in_process(command, case, shape, arguments, side) for side in ("ours", "theirs")))
    return Peak(case.name, *whole, whole[0] / whole[1], *transient, transient[0] / transient[1])


def show_memory(found: Sequence[Peak]) -> None:
    if found:
        print(
            f"\n{'peak memory of a step':28} {'ours, MiB':>10} {'deepest, TRL':>12} {'ratio':>6}   of the step: ratio"
        )
    for peak in found:
        print(
            f"{peak.case:28} {peak.ours:10.0f} {peak.trl:12.0f} {peak.whole:6.2f} "
            f"{peak.ours_transient:8.0f} {peak.trl_transient:8.0f} {peak.transient:6.2f}"
        )


def in_process(command: str, case, shape: Shape, arguments, side: str) -> tuple[float, float]:
    """MiB of the whole and of the step alone."""
    with tempfile.TemporaryDirectory() as folder:
        task, result = Path(folder) / "task", Path(folder) / "result"
        task.write_bytes(pickle.dumps((command, case, shape, arguments, side, result)))
        environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(arguments.threads)}
        subprocess.run([sys.executable, __file__, str(task)], check=True, env=environment)
        return tuple(json.loads(result.read_text()))


def measure(command: str, case, shape: Shape, arguments, side: str, result: Path) -> None:
    """In the process of its own: the second step's peak, when the optimiser has its state."""
    import importlib

    import torch
    from bench_step import step
    from bench_training import prepare

    prepare(arguments)
    bench = importlib.import_module(f"bench_{command}")
    batch, device, deepest = bench.batch_of(case, shape, arguments.device), arguments.device, shape.deepest_first[0]
    with tempfile.TemporaryDirectory() as folder:
        warm_up(bench, arguments, Path(folder) / "warm")
        empty = resident(device)
        model = family_of(shape, device, arguments.dtype)
        if side == "ours":
            learner = bench.ours(model, case, batch, device, Path(folder))
        else:
            model = model.branch(deepest)
            part = bench.parts_of(batch, shape.deepest_first)[deepest]
            learner = bench.theirs(model, case, part, device, Path(folder))
        step([learner])
        before = resident(device)
        forget_peak(device)
        step([learner])
        highest = peak(device)
    torch.set_num_threads(1)
    result.write_text(json.dumps([(highest - empty) / MIB, (highest - before) / MIB]))


def warm_up(bench, arguments, folder: Path) -> None:
    """Everything that is imported or set up once is there before anything is measured."""
    from bench_family import shape_of
    from bench_step import step

    tiny = shape_of("tiny")
    case = bench.TINY
    batch = bench.batch_of(case, tiny, arguments.device)
    family = family_of(tiny, arguments.device, arguments.dtype)
    name = tiny.deepest_first[0]
    part = bench.parts_of(batch, tiny.deepest_first)[name]
    step([bench.theirs(family.branch(name), case, part, arguments.device, folder / "theirs")])
    step([bench.ours(family, case, batch, arguments.device, folder / "ours")])


def resident(device: str) -> int:
    """Bytes held now."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def forget_peak(device: str) -> None:
    """Peaks count from here on."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int:
    """Bytes at most since `forget_peak`."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    measure(*pickle.loads(Path(sys.argv[1]).read_bytes()))
