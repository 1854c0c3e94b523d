"""`bench.py growth`: how the time and the memory of a GRPO step grow with samples, length, exits and vocabulary.

    python scripts/bench_growth.py [--rounds 3] [--threads 4] [--json FILE] [--figure FILE]

A step here is the pass for old log-probs and the forward and backward of the update, for all exits; no optimiser. Its
time is measured packed, in padded rows, and as the sum of TRL's own trainers on the exported branches, in turn; packed,
its peak memory above the weights, in a fresh process, apart from gradients, which are as large as the weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING

from bench_family import Shape, shape_of

if TYPE_CHECKING:
    from bench_grpo import Case
    from bench_step import Learner

EXITS = MappingProxyType(
    {1: (12,), 2: (2, 12), 3: (1, 6, 12), 4: (1, 4, 8, 12), 6: (0, 2, 4, 6, 9, 12)},
)
"""Number of exits -> trunk layers below each; always the same trunk."""
SIZES = MappingProxyType(
    {
        "samples": (2, 4, 8, 16, 32),
        "completion": (32, 64, 128, 256, 512),
        "exits": tuple(EXITS),
        "vocabulary": (1024, 4096, 16384, 32768, 65536, 131072),
    }
)
"""What grows -> its sizes. Log-probs are computed in tiles of at most 32,768 of the vocabulary."""
LEAST = MappingProxyType({"samples": 2, "completion": 2, "exits": 1, "vocabulary": 512})
"""The tokenizer's padding has a number below 512."""
CURVES = ("packed", "padded", "TRL")
"""Whose time is measured."""


@dataclass(frozen=True)
class Point:
    """One size of what grows."""

    x: int
    """The size; for exits the layers that their branches have together."""
    label: str
    shape: Shape
    case: Case

    @property
    def token_layers(self) -> int:
        """Layers times tokens that a packed pass computes, which activations are proportional to."""
        depths, case = self.shape.exits.values(), self.case
        own = case.samples * (case.completion - 1) * sum(depth + 1 for depth in depths)
        return case.prompt * (max(depths) + len(depths)) + own


@dataclass(frozen=True)
class Curve:
    """A quantity over the sizes of what grows."""

    sweep: str
    name: str
    unit: str
    x: list[int]
    labels: list[str]
    values: list[float]
    """Medians over the rounds; memory is measured once."""
    ranges: list[tuple[float, float]]
    """Lowest and highest."""
    exponent: float
    """Of the larger sizes."""
    expected: float | None
    """The same of what the quantity should be proportional to: time to operations, activations to token-layers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, sizes in SIZES.items():
        help = f"default: {' '.join(map(str, sizes))}"
        choices = list(EXITS) if name == "exits" else None
        parser.add_argument(f"--{name}", type=int, nargs="+", default=list(sizes), choices=choices, help=help)
    parser.add_argument("--hidden", type=int, default=128, help="width; default: 128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32, on a GPU bfloat16")
    parser.add_argument("--figure", type=Path, help="a PNG to draw")
    parser.set_defaults(peak_tflops=None)


def growth(arguments: argparse.Namespace) -> dict[str, object]:
    """Measures, prints and draws; what is returned can be written as JSON."""
    for name in SIZES:
        sizes = sorted(set(getattr(arguments, name)))
        if len(sizes) < 2 or sizes[0] < LEAST[name]:
            raise SystemExit(f"--{name}: at least two sizes, each at least {LEAST[name]}, not {sizes}")
    import torch
    from bench_training import prepare

    prepare(arguments)
    sweeps = sweeps_of(arguments)
    curves = []
    for sweep, points in sweeps.items():
        measured = []
        for point in points:
            measured.append(seconds_of(point, arguments))
            medians = ", ".join(f"{name} {median(seconds):.3f} s" for name, seconds in measured[-1].items())
            print(f"{sweep} {point.label}: {medians}", flush=True)
        curves += time_curves(sweep, points, measured, arguments.device)
    memory = iter(memory_of([point for points in sweeps.values() for point in points], arguments))
    for sweep, points in sweeps.items():
        curves += memory_curves(sweep, points, [next(memory) for _ in points])
    show(curves)
    if arguments.figure:
        draw(curves, arguments.figure)
    return {
        "setting": {
            "hidden": arguments.hidden,
            "threads": arguments.threads,
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
            "dtype": arguments.dtype,
            "rounds": arguments.rounds,
            "torch": torch.__version__,
            "points": {sweep: [asdict(point) for point in points] for sweep, points in sweeps.items()},
        },
        "curves": [asdict(curve) for curve in curves],
    }


def sweeps_of(arguments: argparse.Namespace) -> dict[str, list[Point]]:
    """What grows -> its points."""
    from bench_grpo import Case

    def shape(exits: int = 3, vocabulary: int = 1024) -> Shape:
        depths = {f"exit{depth}": depth for depth in EXITS[exits]}
        return replace(shape_of("ruyi2", arguments.hidden), exits=depths, vocabulary=vocabulary)

    def case(samples: int = 8, completion: int = 64, prompt: int = 64) -> Case:
        return Case(prompt, completion, samples, uneven=False)

    sizes = {name: sorted(set(getattr(arguments, name))) for name in SIZES}
    return {
        "samples": [Point(n, str(n), shape(), case(samples=n)) for n in sizes["samples"]],
        "completion": [Point(n, str(n), shape(), case(samples=4, completion=n)) for n in sizes["completion"]],
        "exits": [Point(sum(EXITS[n]) + n, str(n), shape(exits=n), case()) for n in sizes["exits"]],
        "vocabulary": [
            Point(n, str(n), shape(vocabulary=n), case(samples=4, completion=32, prompt=32))
            for n in sizes["vocabulary"]
        ],
    }


def seconds_of(point: Point, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Curve -> seconds of a step in each round.

    Raises:
        SystemExit: the three do not compute the same log-probs.
    """
    import bench_grpo
    import torch
    from bench_family import family_of
    from bench_results import TOLERANCES
    from bench_timing import phases_in_turn

    from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer

    shape, case, device = point.shape, point.case, arguments.device
    batch = bench_grpo.batch_of(case, shape, device)
    plain = dict(batch)
    parts = bench_grpo.parts_of(batch, shape.deepest_first)
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        family = family_of(shape, device, arguments.dtype)
        kind = partial(FamilyGRPOTrainer, packed=False)
        learners = {
            "packed": [bench_grpo.ours(family, case, batch, device, Path(folder))],
            "padded": [bench_grpo.learner_of(kind, family, case, plain, device, Path(folder))],
            "TRL": [
                bench_grpo.theirs(family.branch(name), case, part, device, Path(folder)) for name, part in parts.items()
            ],
        }
        contestants = {name: partial(passes, members) for name, members in learners.items()}
        phases_in_turn(contestants, 1)  # the allocator has its pages, and every batch its old log-probs
        stock = torch.cat([part["old_per_token_logps"] for part in parts.values()])
        for other in (plain["old_per_token_logps"], stock):
            apart = float((batch["old_per_token_logps"] - other).abs().max())
            # Written so that NaN fails.
            if not apart <= TOLERANCES[arguments.dtype][0]:
                raise SystemExit(f"{case.name}: log-probs differ by {apart:.1e}")
        seconds = phases_in_turn(contestants, arguments.rounds)
    return {name: seconds[name]["step"] for name in CURVES}


def passes(learners: Sequence[Learner]) -> dict[str, float]:
    """Seconds of a step of each learner, one after the other."""
    from bench_step import settle

    start = time.perf_counter()
    for learner in learners:
        learner.old()
        learner.loss().backward()
        settle()
        learner.optimizer.zero_grad(set_to_none=True)
    return {"step": time.perf_counter() - start}


def time_curves(sweep: str, points: Sequence[Point], measured: Sequence[Mapping], device: str) -> list[Curve]:
    from bench_grpo import work_of
    from bench_results import operations

    found = []
    for name in CURVES:
        flops = []
        for point in points:
            trl, padded, packed = work_of(point.case, point.shape, device)
            work = {"TRL": trl, "padded": padded, "packed": packed}[name]
            flops.append(operations(work, ("old", "forward", "backward"), old=True))
        found.append(curve_of(sweep, name, "s", points, [seconds[name] for seconds in measured], flops))
    return found


def memory_curves(sweep: str, points: Sequence[Point], measured: Sequence[tuple[float, float, float]]) -> list[Curve]:
    _, activations, gradients = zip(*measured, strict=True)
    # What is kept of the trunk does not know the vocabulary.
    layers = None if sweep == "vocabulary" else [point.token_layers for point in points]
    return [
        curve_of(sweep, "activations", "MiB", points, [[value] for value in activations], layers),
        curve_of(sweep, "gradients", "MiB", points, [[value] for value in gradients], None),
    ]


def curve_of(
    sweep: str, name: str, unit: str, points: Sequence[Point], rounds: Sequence[Sequence[float]], expected
) -> Curve:
    from bench_timing import Spread

    spreads = [Spread.of(values) for values in rounds]
    x, values = [point.x for point in points], [spread.median for spread in spreads]
    return Curve(
        sweep,
        name,
        unit,
        x,
        [point.label for point in points],
        values,
        [(spread.lowest, spread.highest) for spread in spreads],
        exponent(x, values),
        None if expected is None else exponent(x, expected),
    )


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of y ~ x^b over the larger half of the points, at least two: least squares in log-log.

    Args:
        x: growing, positive.
        y: positive.
    """
    start = min(len(x) // 2, len(x) - 2)
    across, up = ([math.log(value) for value in values[start:]] for values in (x, y))
    middle, height = sum(across) / len(across), sum(up) / len(up)
    spread = sum((a - middle) ** 2 for a in across)
    return sum((a - middle) * (b - height) for a, b in zip(across, up, strict=True)) / spread


def memory_of(points: Iterable[Point], arguments: argparse.Namespace) -> list[tuple[float, float, float]]:
    """Of each point's packed step, in a fresh process each, see `measure`."""
    from bench_memory import ALLOCATOR

    tasks = [(point.shape, point.case, arguments) for point in points]
    with tempfile.TemporaryDirectory() as folder:
        task, result = Path(folder) / "task", Path(folder) / "result"
        task.write_bytes(pickle.dumps((tasks, result)))
        environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(arguments.threads)}
        subprocess.run([sys.executable, __file__, "--measure", str(task)], check=True, env=environment)
        return [tuple(values) for values in json.loads(result.read_text())]


def measure_all(tasks: Sequence[tuple], result: Path) -> None:
    """One forked process a task: none imports anything anew, and nothing has been computed here that a fork breaks."""
    import bench_grpo  # noqa: F401
    import datasets  # noqa: F401

    import ruyi_rl.training.grpo_trainer  # noqa: F401

    context, found = multiprocessing.get_context("fork"), []
    for task in tasks:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=lambda task=task, sender=sender: sender.send(measure(*task)))
        process.start()
        sender.close()  # so that a child that dies is an end of file
        found.append(receiver.recv())
        process.join()
    result.write_text(json.dumps(found))


def measure(shape: Shape, case: Case, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """MiB of a packed step: the peak above the state before it, the same without gradients, and all gradients.

    How much of a peak is gradients changes during the backward: it is read, and begun anew, whenever one is complete.
    """
    import bench_grpo
    from bench_family import family_of
    from bench_memory import MIB, forget_peak, peak, resident, warm_up
    from bench_training import prepare

    prepare(arguments)
    device, whole, rest = arguments.device, [], []
    with tempfile.TemporaryDirectory() as folder:
        warm_up(bench_grpo, arguments, Path(folder) / "warm")
        family = family_of(shape, device, arguments.dtype)
        batch = bench_grpo.batch_of(case, shape, device)
        learner = bench_grpo.ours(family, case, batch, device, Path(folder) / "ours")
        parameters = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]

        def gradients() -> int:
            return sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)

        passes([learner])
        before = resident(device)

        def mark(_=None) -> None:
            highest = peak(device) - before
            whole.append(highest)
            rest.append(highest - gradients())
            forget_peak(device)

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(mark)
        forget_peak(device)
        learner.old()
        loss = learner.loss()
        mark()
        loss.backward()
        mark()
        return max(whole) / MIB, max(rest) / MIB, gradients() / MIB


def show(curves: Sequence[Curve]) -> None:
    print(f"\n{'against':12} {'':12} {'exponent':>8} {'expected':>8}   sizes: medians")
    for curve in curves:
        expected = "" if curve.expected is None else f"{curve.expected:.2f}"
        values = ", ".join(f"{label}: {value:.3g}" for label, value in zip(curve.labels, curve.values, strict=True))
        print(f"{curve.sweep:12} {curve.name:12} {curve.exponent:8.2f} {expected:>8}   {values} {curve.unit}")


AXES = MappingProxyType(
    {
        "samples": "samples of a prompt and exit (G)",
        "completion": "tokens of a completion (R)",
        "exits": "layers of all branches (number of exits)",
        "vocabulary": "vocabulary / 1000",
    }
)
# Okabe and Ito's colours, which colour-blind eyes tell apart.
STYLES = MappingProxyType(
    {
        "packed": ("#0072B2", "o", "time, packed"),
        "padded": ("#E69F00", "s", "time, padded rows"),
        "TRL": ("#D55E00", "^", "time, TRL on every branch, summed"),
        "activations": ("#009E73", "D", "memory, packed, without gradients"),
        "gradients": ("#7F7F7F", "v", "memory, gradients"),
    }
)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Linear axes from 0: a straight curve, as the dotted lines are, is linear growth, whatever it begins at."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(12.5, 6.2), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(AXES))
    for column, (sweep, axis) in enumerate(AXES.items()):
        for row, unit in enumerate(("s", "MiB")):
            panel = panels[row][column]
            shown = [curve for curve in curves if curve.sweep == sweep and curve.unit == unit]
            for curve in shown:
                colour, marker, label = STYLES[curve.name]
                x = [value / 1000 for value in curve.x] if sweep == "vocabulary" else curve.x
                panel.plot(x, curve.values, color=colour, marker=marker, markersize=5, label=label)
                panel.fill_between(x, *zip(*curve.ranges, strict=True), color=colour, alpha=0.2, linewidth=0)
                panel.plot([x[0], x[-1]], [curve.values[0], curve.values[-1]], color=colour, linestyle=":", linewidth=1)
                if sweep == "exits":
                    panel.set_xticks(x, [f"{size}\n({label})" for size, label in zip(x, curve.labels, strict=True)])
            panel.set_xlabel(axis, fontsize=10)
            # Room at the right for a marker, above for the exponents.
            panel.set_xlim(0, 1.06 * x[-1])
            panel.set_ylim(0, 1.35 * max(value for curve in shown for value in curve.values))
            panel.grid(alpha=0.25)
            panel.text(
                0.03, 0.97, "\n".join(map(exponent_line, shown)), transform=panel.transAxes, va="top", fontsize=9
            )
            if column == 0:
                panel.set_ylabel("seconds of a step" if unit == "s" else "MiB above the weights", fontsize=10)
    entries = [entry for row in panels for entry in zip(*row[0].get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    canvas.draw()
    # A third of the bytes, in a file that is kept in git.
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    image.convert("RGB").quantize(64).save(path, optimize=True)


def exponent_line(curve: Curve) -> str:
    expected = "" if curve.expected is None else f" (expected {curve.expected:.2f})"
    # Without a minus before 0.00.
    return f"{curve.name} ~ $x^{{{round(curve.exponent, 2) + 0.0:.2f}}}${expected}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_all(*pickle.loads(arguments.measure.read_bytes()))
        return
    found = growth(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
