"""A checkpoint's weights and optimiser states, parameter by parameter, whatever ranks and ZeRO mode have written them.

Read from files that are mapped into memory, a run of one parameter's elements at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors import safe_open

WEIGHT = "weight"
"""Key of a parameter itself, in float32, beside those of its optimiser states."""
PICKLED = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
"""What DeepSpeed's files hold besides tensors and plain values; nothing else is unpickled."""


@dataclass(frozen=True)
class Run:
    """Consecutive elements of a parameter in one file."""

    tensor: int
    """Number of the flat tensor that holds them."""
    start: int
    """First element there."""
    length: int


@dataclass(frozen=True)
class FileContents:
    """What one file says of the optimiser, without its tensors: picklable."""

    runs: Mapping[str, Run]
    """Parameter name -> its elements here."""
    keys: tuple[str, ...]
    """Names of the states that are tensors with an element for each of the parameter's."""
    scalars: Mapping[str, Mapping[str, Any]]
    """Parameter name -> its other states, such as the number of steps."""
    groups: Mapping[str, Mapping[str, Any]]
    """Parameter name -> learning rate, weight decay and whatever else its group of parameters has."""


class StoredFile(Protocol):
    """One file of a checkpoint: a rank's shard, or the whole optimiser."""

    contents: FileContents

    def read(self, name: str, key: str) -> torch.Tensor:
        """(length,): the run of a parameter's elements, or of a state's of theirs, in this file."""


class WholeOptimizer:
    """`optimizer.pt` and the weights beside it: a checkpoint without DeepSpeed.

    Args:
        names: of the trained parameters, in the optimiser's order.
    """

    def __init__(self, checkpoint: Path, names: Sequence[str]):
        stored = torch.load(checkpoint / "optimizer.pt", map_location="cpu", mmap=True, weights_only=True)
        numbers = [number for group in stored["param_groups"] for number in group["params"]]
        if len(numbers) != len(names):
            raise ValueError(f"{checkpoint} has states of {len(numbers)} parameters, not of {len(names)}")
        self._states = {name: stored["state"][number] for number, name in zip(numbers, names, strict=True)}
        self._weights = {}
        for file in checkpoint.glob("model*.safetensors"):
            opened = safe_open(file, framework="pt")
            self._weights |= {name: opened for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        by_number = {number: group for group in stored["param_groups"] for number in group["params"]}
        lengths = {name: math.prod(self._weights[name].get_slice(name).get_shape()) for name in names}
        self.contents = FileContents(
            {name: Run(place, 0, lengths[name]) for place, name in enumerate(names)},
            _tensor_keys([(states, lengths[name]) for name, states in self._states.items()]),
            {name: _scalars(states) for name, states in self._states.items()},
            {name: _hyperparameters(by_number[number]) for number, name in zip(numbers, names, strict=True)},
        )

    def read(self, name: str, key: str) -> torch.Tensor:
        found = self._weights[name].get_tensor(name) if key == WEIGHT else self._states[name][key]
        return found.flatten()


class Shard:
    """One rank's `…_optim_states.pt` of DeepSpeed.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        stored = _load(path)["optimizer_state_dict"]
        if stored["zero_stage"] == ZeroStageEnum.weights:
            inner, self._weights = stored["optimizer_state_dict"], stored["fp32_flat_groups"]
            runs = _partitioned_runs(path, stored["partition_count"])
        else:
            inner, self._weights = stored["base_optimizer_state"], stored["single_partition_of_fp32_groups"]
            runs = {
                name: Run(tensor, address.start, address.numel)
                for tensor, group in enumerate(stored["param_slice_mappings"])
                for name, address in group.items()
            }
        # The flat tensors are numbered as the optimiser numbers them: group after group.
        by_number = {number: group for group in inner["param_groups"] for number in group["params"]}
        self._states = [inner["state"][number] for number in by_number]
        groups = [_hyperparameters(group) for group in by_number.values()]
        self._runs = runs
        self.contents = FileContents(
            runs,
            _tensor_keys([(states, None) for states in self._states]),
            {name: _scalars(self._states[run.tensor]) for name, run in runs.items()},
            {name: groups[run.tensor] for name, run in runs.items()},
        )

    def read(self, name: str, key: str) -> torch.Tensor:
        run = self._runs[name]
        flat = self._weights[run.tensor] if key == WEIGHT else self._states[run.tensor][key]
        return flat.narrow(0, run.start, run.length)


def shard_paths(checkpoint: Path) -> list[Path]:
    """The shards of a checkpoint on this host, by rank."""
    return sorted(checkpoint.glob("global_step*/*_optim_states.pt"), key=shard_rank)


def shard_rank(path: Path) -> int:
    """Rank that wrote `…zero_pp_rank_<rank>_mp_rank_00_optim_states.pt`."""
    return int(path.name.partition("zero_pp_rank_")[2].partition("_")[0])


def _partitioned_runs(path: Path, ranks: int) -> dict[str, Run]:
    """ZeRO-3 cuts every parameter into equal parts, the last one filled up, and joins a rank's parts to flat tensors.

    The parameters' order is in the file of the weights that the same rank has written.
    """
    model = path.with_name(path.name.replace("bf16_", "").replace("optim_states", "model_states"))
    runs, rank = {}, shard_rank(path)
    for tensor, shapes in enumerate(_load(model)["param_shapes"]):
        start = 0
        for name, shape in shapes.items():
            part = -(-shape.numel() // ranks)
            length = min(part, shape.numel() - rank * part)
            if length > 0:
                runs[name] = Run(tensor, start, length)
            start += part
    return runs


def _load(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals(PICKLED):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _tensor_keys(states: Sequence[tuple[Mapping[str, Any], int | None]]) -> tuple[str, ...]:
    """Names of the states with an element for each of a parameter's.

    Args:
        states: of each parameter or flat tensor, with its number of elements where that is known.

    Raises:
        ValueError: a state that is neither such nor one number.
    """
    keys: dict[str, None] = {}
    for found, length in states:
        for key, value in found.items():
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                continue
            if length is not None and value.numel() != length:
                raise ValueError(f"the optimiser's {key} has {value.numel()} numbers for {length} weights")
            keys[key] = None
    return tuple(keys)


def _scalars(states: Mapping[str, Any]) -> dict[str, Any]:
    """States of one number, as they are; tensors are copied out of the file."""
    return {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in states.items()
        if not isinstance(value, torch.Tensor) or value.ndim == 0
    }
