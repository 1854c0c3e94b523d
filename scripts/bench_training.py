"""`bench.py grpo` and `bench.py sft`: what a step costs beside TRL's own trainer on the exported branches."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from bench_baseline import add_baseline_arguments, against_baseline
from bench_family import EXITS, Shape, family_of, shape_of

WARM_UP = 2
"""Rounds before those that count."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=list(EXITS), default="ruyi2")
    parser.add_argument("--hidden", type=int, help="width; default: the shape's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32, on a GPU bfloat16")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for MFU; default on a GPU: 989, an H100's")
    parser.add_argument("--lengths", choices=["both", "equal", "uneven"], default="both")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure peak memory")
    add_baseline_arguments(parser)


def add_grpo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", metavar="P,R,G", help="tokens of a prompt and a completion, samples")
    parser.add_argument("--prompts", type=int, default=1, help="of a step")
    parser.add_argument("--token-budget", type=int, help="of our packs; default: none, the step is one pack")
    add_arguments(parser)


def add_sft_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", metavar="ROWS,TOKENS")
    add_arguments(parser)


def grpo(arguments: argparse.Namespace) -> dict[str, object]:
    if arguments.prompts < 1:
        raise SystemExit("--prompts is a whole number, at least 1")
    import bench_grpo

    return measured(bench_grpo, arguments)


def sft(arguments: argparse.Namespace) -> dict[str, object]:
    import bench_sft

    return measured(bench_sft, arguments)


def measured(bench: ModuleType, arguments: argparse.Namespace) -> dict[str, object]:
    """All cases: proved equal, timed, printed, and compared with the baseline where that is asked for."""
    import torch
    from bench_memory import peaks, show_memory
    from bench_results import show

    prepare(arguments)
    shape, command = shape_of(arguments.shape, arguments.hidden), bench.__name__.removeprefix("bench_")
    cases = bench.cases_of(arguments)
    rows, equalities = [], []
    for case in cases:
        equality, found = raced(bench, case, shape, arguments)
        print(equality, flush=True)
        if not found:
            sys.exit(f"{case.name}: our results are not TRL's")
        show(found)
        equalities.append(equality)
        rows += found
        gc.collect()
    memory = [] if arguments.no_memory else [peaks(command, case, shape, arguments) for case in cases]
    show_memory(memory)
    label = f"{command} {arguments.shape} {shape.hidden}"
    ratios = {f"{label} | {row.case} | {row.phase}": row.ratio.median for row in rows if row.bound}
    ratios |= {f"{label} | {peak.case} | memory": peak.whole for peak in memory}
    against_baseline(arguments, ratios)
    return {
        "setting": {
            "shape": asdict(shape),
            "threads": arguments.threads,
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
            "dtype": arguments.dtype,
            "rounds": arguments.rounds,
            "torch": torch.__version__,
        },
        "equality": [asdict(equality) for equality in equalities],
        "rows": [asdict(row) for row in rows],
        "memory": [asdict(peak) for peak in memory],
    }


def prepare(arguments: argparse.Namespace) -> None:
    import torch

    from ruyi_rl.report.libraries import quiet_libraries

    if min(arguments.rounds, arguments.threads) < 1:
        raise SystemExit("--rounds and --threads are whole numbers, at least 1")
    cuda = arguments.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit("--device cuda: no GPU here")
    arguments.dtype = arguments.dtype or ("bfloat16" if cuda else "float32")
    arguments.peak_tflops = arguments.peak_tflops or (989.0 if cuda else None)
    torch.set_num_threads(arguments.threads)
    quiet_libraries()


def raced(bench: ModuleType, case, shape: Shape, arguments: argparse.Namespace):
    """The proof of equality, and the rows of the table; none where it fails."""
    from bench_results import rows_of_phases
    from bench_step import step
    from bench_timing import keep_memory, phases_in_turn

    keep_memory()
    device = arguments.device
    batch = bench.batch_of(case, shape, device)
    parts = bench.parts_of(batch, shape.deepest_first)
    with tempfile.TemporaryDirectory() as folder:
        family = family_of(shape, device, arguments.dtype)
        branches = {name: family.branch(name) for name in shape.deepest_first}
        us = bench.ours(family, case, batch, device, Path(folder) / "family")
        them = {
            name: bench.theirs(branch, case, parts[name], device, Path(folder) / name)
            for name, branch in branches.items()
        }
        equality = bench.compare(family, case, us, them, batch)
        if not equality.holds(arguments.dtype):
            return equality, []
        contestants = {"TRL": lambda: step(list(them.values())), "ours": lambda: step([us])}
        phases_in_turn(contestants, WARM_UP)  # the optimisers' states are made, and the allocator has its pages
        seconds = phases_in_turn(contestants, arguments.rounds)
    tokens, work = bench.scored_tokens(batch, len(branches)), bench.work_of(case, shape, device)
    return equality, rows_of_phases(case.name, seconds, tokens, work, arguments.peak_tflops, bench.wanted(case))
