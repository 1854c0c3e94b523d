"""Measures what a rank holds under ZeRO, and prints the table of docs/zero.md.

    python scripts/zero_memory.py [--dtypes float32 bf16] [--modes off zero1 …] [--ranks 1 2 4] [--layers 23]

A family of about 200 M random parameters with three exits is trained by joint SFT on gloo ranks. In the middle of the
second optimiser step, when the moments are there and the gradients of the first micro-batch are accumulated, each rank
adds up the tensors that module, engine and optimiser hold. The table has bytes a parameter on rank 0 and their sum
against `ruyi_rl/training/memory.py`; `process` is what is resident of the process alone, less what was before the
family was loaded.

A mode for which there is not enough free memory is left out, and said so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from transformers import Qwen3Config, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.memory import training_state
from ruyi_rl.training.options import ZERO_STAGES, DeepSpeedOptions
from ruyi_rl.training.session import enter_deepspeed
from ruyi_rl.training.sft_trainer import FamilySFTTrainer
from tests.forked_ranks import end_process, run_ranks

KINDS = ("weights", "gradients", "masters", "moments")
LOADING = 8
"""Bytes a parameter, at most, that loading takes besides what is held afterwards."""
M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt: from which size on freed memory goes back to the system at once."""


def write_family(folder: Path, layers: int, bits16: bool) -> int:
    """Saves the family; returns its number of parameters."""
    tokenizer = byte_tokenizer()
    backbone = Qwen3Config(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    family = Family.from_scratch(backbone, {"small": layers // 5, "medium": layers // 2, "large": layers - 1})
    (family.bfloat16() if bits16 else family).save_pretrained(folder)
    return sum(parameter.numel() for parameter in family.parameters())


def rank(mode: str, bits16: bool, family: Path, folder: Path) -> None:
    """One rank: two optimiser steps; writes what it held in the second."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # else most of what is resident is freed
    before, ranks = resident(), int(os.environ["WORLD_SIZE"])
    if ranks == 1:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):  # a run on one rank has no launcher, and no DDP
            del os.environ[name]
    config = deepspeed_config(DeepSpeedOptions(mode=mode), ranks)
    enter_deepspeed(config)
    args = SFTConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        gradient_checkpointing=False,
        max_length=16,
        max_steps=2,
        learning_rate=1e-4,
        bf16=bits16,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        deepspeed=config,
    )
    loaded = Family.from_pretrained(family, dtype="auto")
    trainer = FamilySFTTrainer(
        model=loaded if config else loaded.float(),  # as `load_to_train` does
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "1+1=", "completion": "2"}] * 32),
        processing_class=byte_tokenizer(),
    )
    del loaded
    trainer.add_callback(InSecondStep(trainer, before, folder / f"rank-{os.environ.get('RANK', '0')}.json"))
    trainer.train()
    torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None
    end_process()


class InSecondStep(TrainerCallback):
    """Writes what is held between the second step's micro-batches."""

    def __init__(self, trainer: FamilySFTTrainer, before: int, file: Path):
        self.trainer, self.before, self.file = trainer, before, file

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.file.write_text(json.dumps({**held(self.trainer), "process": resident() - self.before}))


def resident() -> int:
    """Bytes of this process that no other one shares."""
    return psutil.Process().memory_full_info().uss


def held(trainer: FamilySFTTrainer) -> dict[str, int]:
    """Kind -> bytes of the tensors that model, engine and optimiser hold, each storage counted once."""
    parameters, counted, sizes = list(trainer.model.parameters()), set(), {}
    zero = trainer.deepspeed.optimizer if trainer.is_deepspeed_enabled else None
    masters = getattr(zero, "fp32_partitioned_groups_flat", None) or getattr(
        zero, "single_partition_of_fp32_groups", []
    )
    optimizer = trainer.optimizer.optimizer if zero is None else zero.optimizer
    tensors = {
        "weights": [parameter.data for parameter in parameters] + attributes(parameters, "ds_tensor"),
        "masters": masters,
        "moments": [value for state in optimizer.state.values() for value in state.values()],
        "gradients": [
            *attributes(parameters, "grad", "grad_accum"),
            *attributes(masters, "grad"),
            *attributes([zero], "grad_partitions_flat_buffer"),
            *nested(getattr(zero, "averaged_gradients", {})),
            *nested(getattr(zero, "all_grad_tensors", {})),
        ],
    }
    for kind, found in tensors.items():
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
        sizes[kind] = sum(size for place, size in storages.items() if place not in counted)
        counted |= set(storages)
    return sizes


def attributes(owners: Iterable, *names: str) -> list[torch.Tensor]:
    """The owners' attributes, but for those that are missing or None."""
    values = [getattr(owner, name, None) for owner in owners for name in names]
    return [value for value in values if value is not None]


def nested(groups: dict) -> Iterator[torch.Tensor]:
    """ZeRO-1 and 2 keep lists of gradients, or None, by group."""
    for tensors in groups.values():
        yield from (tensor for tensor in tensors or [] if tensor is not None)


def row(mode: str, ranks: int, bits16: bool, family: Path, parameters: int, folder: Path) -> list[str]:
    expected = training_state(mode, ranks, parameters, 0, bits16).total
    needed, free = ranks * (expected + LOADING * parameters), psutil.virtual_memory().available
    cells = ["bf16" if bits16 else "float32", mode, str(ranks)]
    if needed > free:
        return [*cells, f"not run: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"]
    run_ranks("zero_memory:rank", mode, bits16, family, folder, ranks=ranks, log=folder / "log", timeout=1200.0)
    found = json.loads((folder / "rank-0.json").read_text())
    total = sum(found[kind] for kind in KINDS)
    if mode == "off" and ranks > 1:
        total += found["gradients"]  # the buckets of the sum over ranks, which torch's C++ part holds
    values = [*(found[kind] for kind in KINDS), total, expected]
    return [
        *cells,
        *(f"{value / parameters:.2f}" for value in values),
        f"{total / expected:.3f}",
        f"{found['process'] / parameters:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bf16"), default=("float32", "bf16"))
    parser.add_argument("--modes", nargs="+", choices=("off", *ZERO_STAGES), default=("off", *ZERO_STAGES))
    parser.add_argument("--ranks", nargs="+", type=int, default=(1, 2, 4))
    parser.add_argument("--layers", type=int, default=23)
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    header = ["dtype", "mode", "ranks", *KINDS, "sum", "arithmetic", "ratio", "process"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in arguments.dtypes:
            bits16, family = dtype == "bf16", Path(folder, dtype)
            parameters = write_family(family, arguments.layers, bits16)
            for mode in arguments.modes:
                for ranks in arguments.ranks:
                    cells = row(mode, ranks, bits16, family, parameters, Path(folder))
                    print("| " + " | ".join(cells) + " |", flush=True)
        print(f"\n{parameters:,} parameters; bytes a parameter on rank 0")


if __name__ == "__main__":
    main()
