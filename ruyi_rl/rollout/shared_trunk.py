"""A vLLM model loader by which the engines of one family hold its trunk once. Import it only where vLLM is used.

The deepest engine is made first and loads the trunk; an engine made in `sharing(...)` takes the trunk's modules from
it. Whole modules are taken, not tensors: the CPU build keeps the weights of a linear layer packed, outside of any
tensor. This happens inside `load_model`, so that CUDA graphs, which are captured later, hold the shared addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

from ruyi_rl.rollout.engine_arguments import LOAD_FORMAT


@dataclass(frozen=True)
class Trunk:
    """What an engine takes from a deeper one."""

    model: nn.Module
    """The deeper engine's model."""
    layers: int
    """Number of trunk layers below the engine's own layer."""
    head: bool
    """Whether the LM head is shared too."""


_trunk: ContextVar[Trunk | None] = ContextVar("trunk", default=None)


@contextmanager
def sharing(trunk: Trunk | None) -> Iterator[None]:
    """An engine that is made in here takes its trunk from `trunk.model`; with None it holds all of its weights."""
    token = _trunk.set(trunk)
    try:
        yield
    finally:
        _trunk.reset(token)


@register_model_loader(LOAD_FORMAT)
class BranchLoader(DummyModelLoader):
    """Makes a branch without its weights, which the first sync brings.

    The engine's own copy of the trunk lives until the whole model is made: for that moment a GPU holds it twice.
    """

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        model = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        trunk = _trunk.get()
        if trunk is None:
            return model
        take_trunk(model, trunk)
        # With the sleep mode's allocator vLLM frees what is unused itself, and emptying the cache would fail.
        if torch.cuda.is_available() and not model_config.enable_sleep_mode:
            torch.cuda.empty_cache()
        return model


def take_trunk(model: nn.Module, trunk: Trunk) -> None:
    """Replaces a branch's trunk modules by those of a deeper branch, and hides them from the branch's own reloads.

    A reload visits `model.modules()`, empties each and warns of those that get no weights; what belongs to another
    engine must not be touched by it.
    """
    shared = set()
    for name in trunk_names(model, trunk):
        parent, _, attribute = name.rpartition(".")
        module = trunk.model.get_submodule(name)
        setattr(model.get_submodule(parent), attribute, module)
        shared.add(module)

    def named_modules(memo=None, prefix: str = "", remove_duplicate: bool = True):
        for name, module in nn.Module.named_modules(model, memo, prefix, remove_duplicate):
            if module not in shared:
                yield name, module

    model.named_modules = named_modules


def trunk_names(model: nn.Module, trunk: Trunk) -> list[str]:
    """Names of the trunk's modules that hold tensors, but for attention, which owns its engine's key-value cache."""
    prefixes = ["model.embed_tokens.", *(f"model.layers.{index}." for index in range(trunk.layers))]
    if trunk.head:
        prefixes.append("lm_head.")
    attention = [f"{name}." for name, module in model.named_modules() if is_deferred_attention_layer(module)]

    def holds_tensors(module: nn.Module) -> bool:
        return any(tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values()))

    return [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if f"{name}.".startswith(tuple(prefixes))
        and not f"{name}.".startswith(tuple(attention))
        and holds_tensors(module)
    ]
