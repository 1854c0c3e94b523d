"""Compares ZeRO on 1, 2 and 4 ranks with plain torch, and prints the tables of docs/zero.md.

    python scripts/zero_equality.py [--modes off zero1 …] [--ranks 1 2 4]

Joint SFT and GRPO of a four-layer family with three exits, in float32 on gloo ranks. The reference is
tests/training/plain_torch.py: stock branches and torch.optim on one process, without trainer, TRL and family forward.

  * updates: five steps of SGD with clipping, each of two micro-batches. The largest, over all parameters, of
    ‖update - plain torch's‖ / ‖plain torch's‖, and over all steps of the gradient norm's relative error before it is
    clipped, which hides a wrong scale.
  * losses: twenty steps of AdamW, in GRPO two on each batch of completions. The largest difference of an exit's loss
    or KL at any step.
  * layouts: the same eight rows (prompts) a step as micro-batch × accumulation × ranks; updates as above.

Ends with status 1 where an update is off by more than 1e-4 or a loss by more than 1e-5.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training")]

import plain_torch
import zero_run
from transformers.utils.logging import disable_progress_bar

from ruyi_rl.training.options import ZERO_STAGES
from tests.forked_ranks import run_ranks

UPDATE, LOSS = 1e-4, 1e-5
KINDS = ("sft", "grpo")
EXITS = {"all": ("whole", "adamw"), "one": ("middle exit", "adamw, one exit")}
"""Exits -> the case whose updates, and the case whose losses are compared."""
LAYOUTS = {1: "1 micro-batches", 2: "whole", 4: "4 micro-batches", 8: "8 micro-batches"}
"""Micro-batches a step -> case."""


@dataclass(frozen=True)
class Found:
    update: float
    loss: float


class Comparison:
    """One mode on some ranks: all its cases in one run of the ranks."""

    def __init__(self, start: Path, folder: Path, mode: str, ranks: int, expected):
        self.start, self.folder, self.mode, self.ranks, self.expected = start, folder, mode, ranks, expected
        self.layouts = {count: name for count, name in LAYOUTS.items() if zero_run.STEP % (ranks * count) == 0}
        names = {name for pair in EXITS.values() for name in pair} | set(self.layouts.values())
        runs = [(kind, name) for kind in KINDS for name in sorted(names)]
        run_ranks("zero_run:main", mode, start, folder, runs, ranks=ranks, log=folder / "log", timeout=1200.0)

    def found(self, kind: str, name: str) -> Found:
        case, folder = zero_run.CASES[name], self.folder / kind / name
        expected = self.expected(kind, name)
        return Found(
            max(*plain_torch.update_errors(folder, self.start, case, expected).values(), norm_error(folder, expected)),
            max(plain_torch.loss_errors(folder, kind, case, expected).values()),
        )

    def rows(self) -> Iterator[tuple[list[str], bool]]:
        """Cells of the first table, and whether they are within the tolerances."""
        for kind in KINDS:
            for exits, (sgd, adamw) in EXITS.items():
                update, loss = self.found(kind, sgd).update, self.found(kind, adamw).loss
                cells = [self.mode, str(self.ranks), kind, exits, f"{update:.1e}", f"{loss:.1e}"]
                yield cells, update <= UPDATE and loss <= LOSS

    def layout_rows(self) -> Iterator[tuple[list[str], bool]]:
        """Cells of the second table, and whether they are within the tolerance."""
        for count, name in self.layouts.items():
            updates = [self.found(kind, name).update for kind in KINDS]
            layout = f"{zero_run.STEP // self.ranks // count} × {count} × {self.ranks}"
            yield [self.mode, layout, *(f"{update:.1e}" for update in updates)], max(updates) <= UPDATE


def norm_error(folder: Path, expected: plain_torch.Descent) -> float:
    """Largest relative error of a step's gradient norm, before clipping."""
    norms = [row["grad_norm"] for row in json.loads((folder / "logs.json").read_text())]
    return max(abs(norm / wanted - 1) for norm, wanted in zip(norms, expected.norms, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=("off", *ZERO_STAGES), default=("off", *ZERO_STAGES))
    parser.add_argument("--ranks", nargs="+", type=int, default=(1, 2, 4))
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    rows, layouts = [], []
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "start")
        plain_torch.write_families(start)
        expected = functools.cache(
            lambda kind, name: {"sft": plain_torch.sft, "grpo": plain_torch.grpo}[kind](start, zero_run.CASES[name])
        )
        for mode in arguments.modes:
            for ranks in arguments.ranks:
                out = Path(folder, f"{mode}-{ranks}")
                out.mkdir()
                comparison = Comparison(start, out, mode, ranks, expected)
                rows += comparison.rows()
                layouts += comparison.layout_rows()
                print(f"{mode} on {ranks} ranks: done", file=sys.stderr, flush=True)
    table(["mode", "ranks", "stage", "exits", "updates", "losses"], rows)
    table(["mode", "rows × micro-batches × ranks", "sft", "grpo"], layouts)
    return 0 if all(right for _, right in [*rows, *layouts]) else 1


def table(header: list[str], rows: list[tuple[list[str], bool]]) -> None:
    """Prints Markdown."""
    for cells in (header, ["---"] * len(header), *(cells for cells, _ in rows)):
        print("| " + " | ".join(cells) + " |")
    print()


if __name__ == "__main__":
    raise SystemExit(main())
