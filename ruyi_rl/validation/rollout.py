"""The `rollout` block."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ruyi_rl.ranks import rank
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rollout.engine_arguments import OWNED
from ruyi_rl.rollout.options import BACKENDS, TRANSPORTS, RolloutOptions
from ruyi_rl.rollout.selection import REMEDY
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.validation.trainer_fields import class_fields
from ruyi_rl.validation.values import require, require_choice, require_exits

ENGINES = ("auto", "vllm", "vllm_server")
READ_BY = {
    "batch_size": ("auto", "transformers"),
    **dict.fromkeys(("max_model_len", "kv_cache_gib", "gpu_memory_utilization", "tensor_parallel", "engine"), ENGINES),
    "sleep": ("auto", "vllm"),
    **dict.fromkeys(("workers", "devices", "addresses", "transport", "exchange"), ("vllm_server",)),
    **dict.fromkeys(("timeout", "start_timeout", "max_failures"), ("vllm_server",)),
}
"""Option -> the back ends that read it."""
ADDRESS = re.compile(r"https?://[^\s/:]+(:\d+)?(/\S*)?")


def check_rollout(options: RolloutOptions, depths: Mapping[str, int] | None, world_size: int) -> None:
    """Check the block.

    Args:
        depths: exit name -> layers of its branch; None where the family is not known.
        world_size: ranks over all machines.

    Raises:
        Refusal: an unknown or impossible value, an option that the back end does not read, vLLM asked for where it is
            not installed or of another version.
    """
    require_choice("rollout.backend", options.backend, BACKENDS)
    require_choice("rollout.transport", options.transport, TRANSPORTS)
    _check_read(options)
    require("rollout.batch_size", options.batch_size, options.batch_size >= 1, "1 or more")
    length, cache = options.max_model_len, options.kv_cache_gib
    require("rollout.max_model_len", length, length is None or length >= 2, "2 or more, or null")
    require("rollout.kv_cache_gib", cache, cache is None or cache > 0, "above 0, or null")
    share = options.gpu_memory_utilization
    require("rollout.gpu_memory_utilization", share, 0 < share <= 1, "above 0, at most 1")
    parallel = options.tensor_parallel
    require("rollout.tensor_parallel", parallel, parallel >= 1, "1 or more")
    if options.backend in ("auto", "vllm") and world_size % parallel:
        raise Refusal(
            "rollout.tensor_parallel",
            f"{parallel} ranks share an engine, but there are {world_size}",
            f"a divisor of {world_size}",
        )
    for name in ("timeout", "start_timeout"):
        require(f"rollout.{name}", getattr(options, name), getattr(options, name) > 0, "seconds, above 0")
    require("rollout.max_failures", options.max_failures, options.max_failures >= 0, "0 or more")
    _check_workers(options, depths)
    starts = options.backend == "vllm_server" and (depths is None or not set(depths) <= set(options.addresses))
    problem = vllm_problem() if options.backend == "vllm" or starts else None
    if problem:
        raise Refusal("rollout", f"{options.backend} cannot be used: {problem}", REMEDY)
    if options.engine and vllm_problem() is None:
        _check_engine(options.engine)
    if options.addresses and rank() == 0:
        _ask_addresses(options, depths)


def _check_read(options: RolloutOptions) -> None:
    defaults = RolloutOptions()
    for field in fields(RolloutOptions):
        readers = READ_BY.get(field.name, BACKENDS)
        if options.backend not in readers and getattr(options, field.name) != getattr(defaults, field.name):
            raise Refusal(
                f"rollout.{field.name}", f"has no effect with rollout={options.backend}", f"rollout={readers[-1]}"
            )


def _check_engine(engine: Mapping[str, Any]) -> None:
    names = class_fields("vllm/engine/arg_utils.py", "EngineArgs")
    for key, value in engine.items():
        if key in OWNED:
            raise Refusal(f"rollout.engine.{key}", f"{value!r} cannot be set", OWNED[key])
        if key not in names:
            close = nearest(key, names.keys() - OWNED.keys())
            raise Refusal(
                f"rollout.engine.{key}",
                "vLLM has no such engine argument",
                close if close.startswith("did") else "any other of vLLM's engine arguments",
            )


def _check_workers(options: RolloutOptions, depths: Mapping[str, int] | None) -> None:
    for name in ("workers", "devices", "addresses"):
        require_exits(f"rollout.{name}", list(getattr(options, name)), depths)
    for exit, count in options.workers.items():
        require(f"rollout.workers.{exit}", count, count >= 1, "1 or more")
        if exit in options.addresses:
            raise Refusal(f"rollout.workers.{exit}", f"{count}, but its addresses are given", "one of the two")
    for exit, devices in options.devices.items():
        count = options.workers.get(exit, 1)
        require(f"rollout.devices.{exit}", devices, len(devices) == count, f"one entry for each of its {count} servers")
    seen: dict[str, str] = {}
    for exit, addresses in options.addresses.items():
        key = f"rollout.addresses.{exit}"
        require(key, addresses, bool(addresses), "at least one address")
        for address in addresses:
            require(key, address, bool(ADDRESS.fullmatch(address)), "such as http://10.0.0.2:8000")
            other = seen.setdefault(address.rstrip("/"), exit)
            if other != exit or [a.rstrip("/") for a in addresses].count(address.rstrip("/")) > 1:
                raise Refusal(key, f"{address} stands there twice", "each server serves one exit, and is named once")
    if options.exchange is not None:
        folder = Path(options.exchange)
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise Refusal("rollout.exchange", f"cannot write in {folder}", "a folder that is there and can be written")


def _ask_addresses(options: RolloutOptions, depths: Mapping[str, int] | None) -> None:
    """Refuse servers that do not answer or serve another depth; all else is asked when the engines are needed."""
    # httpx is for those who name servers.
    from ruyi_rl.rollout.servers.addresses import answering_layers

    listed = [(exit, url) for exit, urls in options.addresses.items() for url in urls]
    for (exit, url), layers in zip(listed, answering_layers([url for _, url in listed])):
        key = f"rollout.addresses.{exit}"
        if layers is None:
            command = "stage=serve serve.exit=<exit> prints a command that starts it"
            raise Refusal(key, f"{url} does not answer", command)
        if depths is not None and layers and layers != depths[exit]:
            raise Refusal(
                key,
                f"{url} serves another model, of {layers} layers: the branch of {exit} has {depths[exit]}",
                "the address of a server of this exit",
            )


def check_lengths(options: RolloutOptions, trainer: Mapping[str, Any], max_new_tokens: int | None) -> None:
    """Refuse an engine that could not hold a completion alone; prompts are looked at where they are known.

    Args:
        trainer: `grpo.trainer`.
        max_new_tokens: `evaluation.max_new_tokens`.
    """
    if options.max_model_len is None:
        return
    for key, limit in (
        ("grpo.trainer.max_completion_length", trainer.get("max_completion_length")),
        ("evaluation.max_new_tokens", max_new_tokens),
    ):
        if limit is not None and limit >= options.max_model_len:
            raise Refusal(
                "rollout.max_model_len",
                f"{options.max_model_len} leaves no room for a prompt beside {key} {limit}",
                f"{limit} and the longest prompt together, or null",
            )
