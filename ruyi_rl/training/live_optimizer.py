"""The optimiser of a prepared trainer, parameter by parameter, however ZeRO has partitioned it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)


@dataclass(frozen=True)
class Flat:
    """A tensor that the inner optimiser steps: a parameter, or this rank's part of several, joined."""

    tensor: torch.Tensor
    parameters: Sequence[torch.nn.Parameter]
    group: dict[str, Any]
    """Learning rate, weight decay and whatever else the inner optimiser's group has."""


@dataclass(frozen=True)
class LiveOptimizer:
    """What is put into it is what the next step starts from."""

    inner: torch.optim.Optimizer
    flats: Sequence[Flat]
    put_weight: Callable[[torch.nn.Parameter, torch.Tensor], None]
    """Sets a parameter and its float32 master; the value is whole, of the parameter's shape, the same on every rank."""
    put_state: Callable[[torch.nn.Parameter, torch.Tensor, str], None]
    """Sets a state of a parameter's elements, of a key that `begin` was given; the value as for `put_weight`."""
    link: Callable[[], None] = lambda: None

    def begin(
        self, keys: Sequence[str], scalars: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
    ) -> None:
        """Makes room for the states, and sets what is one number for a flat tensor or a group.

        Args:
            keys: of the states that have an element for each of a parameter's.
            scalars: the other states, of each flat tensor.
            groups: what the group of each flat tensor is to have.
        """
        for flat, numbers, group in zip(self.flats, scalars, groups, strict=True):
            flat.group.update(group)
            on_device = group.get("fused") or group.get("capturable")  # where torch wants the number of steps
            device = flat.tensor.device if on_device else None
            self.inner.state[flat.tensor] = {key: torch.zeros_like(flat.tensor) for key in keys} | {
                key: value.clone().to(device) if isinstance(value, torch.Tensor) else value
                for key, value in numbers.items()
            }
        self.link()


def live_optimizer(wrapped) -> LiveOptimizer:
    """The optimiser of a trainer.

    Args:
        wrapped: a prepared trainer's `optimizer`.

    Raises:
        ValueError: one of DeepSpeed's that is not known here.
    """
    optimizer = wrapped.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _zero3(optimizer)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return _zero12(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"{type(optimizer).__name__} takes only what as many ranks have written under the same mode")
    return _plain(optimizer)


def _plain(inner: torch.optim.Optimizer) -> LiveOptimizer:
    def put_state(parameter: torch.nn.Parameter, value: torch.Tensor, key: str) -> None:
        inner.state[parameter][key].copy_(value)

    flats = [Flat(parameter, [parameter], group) for group in inner.param_groups for parameter in group["params"]]
    return LiveOptimizer(inner, flats, lambda parameter, value: parameter.copy_(value), put_state)


def _zero12(optimizer: DeepSpeedZeroOptimizer) -> LiveOptimizer:
    def put_weight(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        safe_set_full_fp32_param(parameter, value)
        parameter.copy_(value)

    inner = optimizer.optimizer
    parts = zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, inner.param_groups, strict=True)
    flats = [Flat(tensor, parameters, group) for tensor, parameters, group in parts]
    # DeepSpeed looks for the states of a parameter after its own first step only.
    link = optimizer._lazy_init_hp_params_optimizer_state
    return LiveOptimizer(inner, flats, put_weight, safe_set_full_optimizer_state, link)


def _zero3(optimizer: DeepSpeedZeroOptimizer_Stage3) -> LiveOptimizer:
    if optimizer.swap_optimizer:
        raise ValueError("states that are offloaded to NVMe cannot be spread anew")

    def part(parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """(part,): this rank's; safe_set_full_* fails where the last rank's has to be filled up."""
        length, rank = parameter.partition_numel(), torch.distributed.get_rank()
        mine = value.flatten()[rank * length : (rank + 1) * length]
        return torch.nn.functional.pad(mine, (0, length - mine.numel()))

    def put_weight(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        safe_set_local_fp32_param(parameter, part(parameter, value))
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)

    def put_state(parameter: torch.nn.Parameter, value: torch.Tensor, key: str) -> None:
        safe_set_local_optimizer_state(parameter, part(parameter, value), key)

    inner, groups = optimizer.optimizer, optimizer.sub_group_to_group_id
    parts = enumerate(zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True))
    flats = [Flat(tensor, parameters, inner.param_groups[groups[n]]) for n, (tensor, parameters) in parts]
    return LiveOptimizer(inner, flats, put_weight, put_state)
