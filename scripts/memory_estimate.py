"""Holds the memory estimate of joint SFT against a process's peak, and prints the table of docs/zero.md.

    python scripts/memory_estimate.py [--layers 7] [--rows 1 4] [--length 512]

A family of random parameters with three exits is trained for two steps on the CPU, in a process of its own for each
line. `measured` is the peak of what is resident, less what was before the family was loaded; the estimate is that of
`ruyi_rl/training/memory_estimate.py` without what it assumes for the process itself. Activations are the difference of
either to the training state.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import multiprocessing
import sys
import tempfile
from pathlib import Path

import datasets
from datasets import Dataset
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from zero_memory import M_MMAP_THRESHOLD, write_family

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.family.shape import family_shape
from ruyi_rl.training.memory_estimate import MemoryEstimate, memory_estimate, rows_load
from ruyi_rl.training.sft_trainer import FamilySFTTrainer


def resident(kind: str) -> int:
    """Bytes of this process that are resident (`VmRSS`), or were at most since `forget_peak` (`VmHWM`)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{kind}:")]
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    """The peak begins anew (proc(5): clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def train(folder: Path, rows: int, length: int, checkpointing: bool) -> None:
    """Two steps; writes what they took."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # else most of what is resident is freed
    disable_progress_bar()
    datasets.disable_progress_bars()
    forget_peak()
    before = resident("VmRSS")
    text = "x" * (length - 1)  # a byte is a token, and the end is one
    trainer = FamilySFTTrainer(
        model=Family.from_pretrained(folder, dtype="float32"),
        args=SFTConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=rows,
            gradient_checkpointing=checkpointing,
            max_length=length,
            max_steps=2,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"text": text}] * 2 * rows),
        processing_class=byte_tokenizer(),
    )
    trainer.train()
    (folder / "measured.json").write_text(json.dumps(resident("VmHWM") - before))


def estimate(folder: Path, rows: int, length: int, checkpointing: bool) -> MemoryEstimate:
    stored = json.loads((folder / "config.json").read_text())
    exits = dict(zip(stored["exit_names"], stored["early_exit_points"]))
    shape = family_shape(stored, exits)
    counts = (shape.parameters, shape.parameters)
    return memory_estimate(shape, "off", 1, counts, rows_load(exits, rows * length), False, checkpointing, "cpu")


def measured(folder: Path, *arguments: object) -> int:
    process = multiprocessing.get_context("spawn").Process(target=train, args=(folder, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the training ended with status {process.exitcode}")
    return json.loads((folder / "measured.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 4))
    parser.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    header = ["rows × tokens", "checkpointing", "state", "activations and head", "sum", "measured", "ratio"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path, "family")
        parameters = write_family(folder, arguments.layers, bits16=False)
        for rows in arguments.rows:
            for checkpointing in (True, False):
                found = estimate(folder, rows, arguments.length, checkpointing)
                got = measured(folder, rows, arguments.length, checkpointing)
                total = found.training - found.overhead
                sizes = [found.state.total, total - found.state.total, total, got]
                cells = [f"{rows} × {arguments.length}", "yes" if checkpointing else "no"]
                cells += [*(f"{size / 1e9:.2f} GB" for size in sizes), f"{got / total:.2f}"]
                print("| " + " | ".join(cells) + " |", flush=True)
        print(f"\n{parameters:,} parameters")


if __name__ == "__main__":
    main()
