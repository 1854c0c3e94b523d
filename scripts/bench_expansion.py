"""`bench.py expansion`: an SFT step of an expanded exit with train_only=expansion, beside one of its whole branch."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_family import EXITS, Shape, family_of, shape_of
from bench_memory import ALLOCATOR, MIB, forget_peak, peak, resident
from bench_results import Equality
from bench_timing import Spread, keep_memory, phases_in_turn

BLOCKS, WARM_UP = 3, 2
WAYS = {"what is new": "expansion", "whole branch": None}
"""Contestant -> `train_only`."""
PHASES = ("forward", "backward", "optimiser", "whole step")


@dataclass(frozen=True)
class Row:
    """One phase of a step."""

    phase: str
    new: Spread
    """Seconds, of what is new alone."""
    whole: Spread
    """Seconds, of the whole branch."""
    ratio: Spread
    """Of the whole branch's over the other's, in the same round."""
    bound: float | None
    """The same in matrix operations."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=list(EXITS), default="ruyi2")
    parser.add_argument("--hidden", type=int, help="width; default: the shape's")
    parser.add_argument("--case", default="4,256", metavar="ROWS,TOKENS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def expansion(arguments: argparse.Namespace) -> dict[str, object]:
    """Proves that what both train gets the same gradients, then times steps in turn, and measures their memory."""
    import torch
    from bench_sft import Case, batch_of
    from bench_step import gradient_error, gradients, step

    from ruyi_rl.report.libraries import quiet_libraries

    try:
        rows, length = map(int, arguments.case.split(","))
    except ValueError:
        raise SystemExit(f"--case {arguments.case}: a case is rows,tokens, as in 4,256") from None
    if min(rows, length - 1, arguments.rounds, arguments.threads) < 1:
        raise SystemExit("at least 1 row of 2 tokens, 1 round and 1 thread")
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    keep_memory()
    shape = shape_of(arguments.shape, arguments.hidden)
    case = Case(rows, length, uneven=False)
    batch = batch_of(case, shape, arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        learners = {name: learner(name, shape, batch, arguments.device, Path(folder) / name) for name in WAYS}
        new, whole = (gradients(learners[name]) for name in WAYS)
        error, worst = gradient_error(new, {name: whole[name] for name in new})
        equality = Equality(case.name, 0.0, error, worst)
        print(f"gradients of the {len(new)} of {len(whole)} trained tensors within {error:.1e} ({worst})")
        if not equality.holds("float32"):
            raise SystemExit("the results differ: nothing is timed")
        for _ in range(WARM_UP):
            step(list(learners.values()))
        contestants = {name: lambda name=name: step([learners[name]]) for name in WAYS}
        found = rows_of(phases_in_turn(contestants, arguments.rounds), shape, case)
    for row in found:
        bound = f"   in operations {row.bound:.2f}" if row.bound else ""
        print(f"{row.phase:11} {row.new!s:>22} s  {row.whole!s:>22} s  ratio {row.ratio}{bound}")
    memory = {name: in_process(name, shape, case, arguments) for name in WAYS}
    for name, (held, highest) in memory.items():
        print(f"{name:13} peak {highest:6.0f} MiB, of which {held:6.0f} between steps")
    return {
        "gradients": asdict(equality),
        "rows": [asdict(row) for row in found],
        "memory_mib": {name: {"between_steps": held, "peak": highest} for name, (held, highest) in memory.items()},
    }


def learner(name: str, shape: Shape, batch, device: str, folder: Path):
    """The family with its shallowest exit expanded, every new matrix with weights of its own, in a trainer."""
    import torch
    from bench_sft import learner_of

    from ruyi_rl.training.sft_trainer import FamilySFTTrainer

    family, exit = family_of(shape, device), shape.deepest_first[-1]
    family.expand(exit, BLOCKS)
    with torch.no_grad():
        for parameter in family.model.expansions.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02, generator=torch.Generator(device).manual_seed(parameter.numel()))

    def trainer(**given):
        return FamilySFTTrainer(**given, exits=[exit], train_only=WAYS[name])

    return learner_of(trainer, family, batch, device, folder)


def rows_of(seconds, shape: Shape, case) -> list[Row]:
    from bench_arithmetic import head_work, layer_work, times, triangle

    tokens, scored = sum(case.lengths()), sum(case.lengths()) - case.rows
    layer = layer_work(shape, tokens, sum(triangle(length) for length in case.lengths()))
    depth = shape.exits[shape.deepest_first[-1]] + 1 + BLOCKS
    head = head_work(shape, scored)
    branch, trained = times(layer, depth) + head, times(layer, BLOCKS) + head
    bounds = {
        "backward": branch.backward / trained.backward,
        "whole step": (branch.forward + branch.backward) / (branch.forward + trained.backward),
    }
    found = []
    for phase in PHASES:
        parts = PHASES[:3] if phase == "whole step" else (phase,)
        new, whole = ([sum(values) for values in zip(*(seconds[name][part] for part in parts))] for name in WAYS)
        ratio = Spread.of([b / a for a, b in zip(new, whole, strict=True)])
        found.append(Row(phase, Spread.of(new), Spread.of(whole), ratio, bounds.get(phase)))
    return found


def in_process(name: str, shape: Shape, case, arguments: argparse.Namespace) -> tuple[float, float]:
    """MiB above an empty process, between steps and at most: each contestant in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        task, result = Path(folder) / "task", Path(folder) / "result"
        task.write_bytes(pickle.dumps((name, shape, case, arguments.device, arguments.threads, result)))
        environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(arguments.threads)}
        subprocess.run([sys.executable, __file__, str(task)], check=True, env=environment)
        return tuple(json.loads(result.read_text()))


def measure(name: str, shape: Shape, case, device: str, threads: int, result: Path) -> None:
    """In the process of its own: the second step's peak, when the optimiser has its state."""
    import torch
    from bench_sft import TINY, batch_of
    from bench_step import step

    from ruyi_rl.report.libraries import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        tiny = shape_of("tiny")
        step([learner(name, tiny, batch_of(TINY, tiny, device), device, Path(folder) / "warm")])
        empty = resident(device)
        measured = learner(name, shape, batch_of(case, shape, device), device, Path(folder))
        step([measured])
        held = resident(device)
        forget_peak(device)
        step([measured])
        highest = peak(device)
    result.write_text(json.dumps([(held - empty) / MIB, (highest - empty) / MIB]))


if __name__ == "__main__":
    measure(*pickle.loads(Path(sys.argv[1]).read_bytes()))
