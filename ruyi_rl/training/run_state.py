"""What a training goes on with beside its weights, its optimiser and its schedule: counters, open sums, rollouts."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

FOLDER = "run_state"
"""In a checkpoint; holds a JSON file, and where there are tensors a safetensors file, for each rank."""


@dataclass
class RunState:
    """One rank's, as it was after an optimiser step."""

    values: dict[str, Any] = field(default_factory=dict)
    """JSON values."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, checkpoint: Path, rank: int) -> None:
        """Writes this rank's files into a checkpoint."""
        folder = checkpoint / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{rank}.json").write_text(json.dumps(self.values, default=float) + "\n")
        if self.tensors:
            # A copy of each: safetensors takes no two that share memory, and views would be written whole.
            copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.tensors.items()}
            save_file(copies, folder / f"rank-{rank}.safetensors")

    @classmethod
    def load(cls, checkpoint: Path, rank: int) -> RunState | None:
        """This rank's; None where another number of ranks has written the checkpoint and this one had no part in it."""
        path = checkpoint / FOLDER / f"rank-{rank}.json"
        if not path.is_file():
            return None
        tensors = path.with_suffix(".safetensors")
        return cls(json.loads(path.read_text()), load_file(tensors) if tensors.is_file() else {})


@dataclass(frozen=True)
class RandomStates:
    """Of every generator that a library may draw from without being asked."""

    python: tuple
    numpy: dict[str, Any]
    torch: torch.Tensor
    accelerator: torch.Tensor | None

    @classmethod
    def now(cls) -> RandomStates:
        return cls(
            random.getstate(),
            np.random.get_state(legacy=False),
            torch.get_rng_state(),
            torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        )

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.accelerator is not None:
            torch.cuda.set_rng_state(self.accelerator)


def flat_batches(batches: Sequence[Mapping[str, Any]], name: str) -> RunState:
    """Micro-batches as a state: `<name>` lists what each holds besides tensors, these are `<name>.<number>.<key>`."""
    values, tensors = [], {}
    for number, batch in enumerate(batches):
        values.append({key: value for key, value in batch.items() if not isinstance(value, torch.Tensor)})
        tensors |= {f"{name}.{number}.{key}": value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    return RunState({name: values}, tensors)


def batches_of(state: RunState, name: str, device: torch.device) -> list[dict[str, Any]] | None:
    """What `flat_batches` was given; None where the state holds none."""
    if state.values.get(name) is None:
        return None
    batches = [dict(values) for values in state.values[name]]
    for key, tensor in state.tensors.items():
        prefix, number, field_name = key.split(".", 2)
        if prefix == name:
            batches[int(number)][field_name] = tensor.to(device)
    return batches
