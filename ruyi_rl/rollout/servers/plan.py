"""Which servers a run starts, and whether the machine can hold them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rollout.servers.command import gpu_shares, server_arguments, server_environment, threads_per_server
from ruyi_rl.rollout.servers.exchange import GIB, available_memory, branch_bytes, file_name

if TYPE_CHECKING:
    from ruyi_rl.rollout.options import RolloutOptions
    from ruyi_rl.rollout.worker import RolloutSpec

PROGRAM_BYTES = GIB
"""What a server takes for the libraries of its two processes."""


@dataclass(frozen=True)
class ServerPlan:
    """A server that the run starts."""

    exit: str
    number: int
    """Among the servers of its exit."""
    arguments: Mapping[str, Any]
    """vLLM's, but for where it listens."""
    cpu: bool
    threads: int
    """Of its engine, on a CPU."""
    devices: str | None
    """Its CUDA_VISIBLE_DEVICES; None: as they are."""

    @property
    def name(self) -> str:
        return f"{self.exit}-{self.number}"

    @property
    def log_name(self) -> str:
        return f"{file_name(self.exit)}-{self.number}.log"

    def environment(self, folder: Path) -> dict[str, str]:
        """Of a start that has this folder for itself."""
        return server_environment(self.arguments, folder, cpu=self.cpu, threads=self.threads, devices=self.devices)


def server_counts(options: RolloutOptions, spec: RolloutSpec) -> dict[str, int]:
    """Exit -> servers that the run starts; none for an exit with addresses.

    Raises:
        Refusal: workers, devices or addresses of exits that there are not, or that contradict each other.
    """
    for key in ("workers", "devices", "addresses"):
        for exit in getattr(options, key):
            if exit not in spec.config.exits:
                raise Refusal(f"rollout.{key}.{exit}", "there is no such exit", nearest(exit, spec.config.exits))
    counts = {}
    for exit in spec.exits:
        count, devices = options.workers.get(exit, 1), options.devices.get(exit)
        if options.addresses.get(exit) and exit in options.workers:
            raise Refusal(
                f"rollout.workers.{exit}",
                "the run starts no servers for an exit whose servers are given",
                f"leave it out, or rollout.addresses.{exit}",
            )
        if count < 1:
            raise Refusal(f"rollout.workers.{exit}", f"{count} servers", "1 or more")
        if devices and len(devices) != count:
            raise Refusal(
                f"rollout.devices.{exit}",
                f"{len(devices)} entries for {count} servers",
                f"one entry a server, or rollout.workers.{exit}={len(devices)}",
            )
        counts[exit] = 0 if options.addresses.get(exit) else count
    return counts


def planned_servers(
    options: RolloutOptions,
    spec: RolloutSpec,
    counts: Mapping[str, int],
    models: Mapping[str, Path],
    *,
    transport: str,
    cpu: bool,
) -> list[ServerPlan]:
    """The servers that the run starts.

    Args:
        counts: of `server_counts`.
        models: exit -> folder with its `config.json`.
        transport: `nccl` or `files`.
        cpu: whether vLLM runs on the CPU.

    Raises:
        Refusal: a cache without room for one sequence, or, on a CPU, too little memory.
    """
    listed = [(exit, number) for exit in spec.exits for number in range(counts[exit])]
    devices = [options.devices[exit][number] if options.devices.get(exit) else None for exit, number in listed]
    threads = threads_per_server(len(os.sched_getaffinity(0)), len(listed))
    plans = []
    for (exit, number), visible, share in zip(listed, devices, gpu_shares(devices)):
        arguments = server_arguments(options, spec, exit, models[exit], transport=transport, cpu=cpu, share=share)
        plans.append(ServerPlan(exit, number, arguments, cpu, threads, visible))
    if cpu:
        check_memory(spec, plans, available_memory())
    return plans


def check_memory(spec: RolloutSpec, plans: list[ServerPlan], available: int) -> None:
    """Refuses more servers on a CPU than this machine's memory holds.

    Raises:
        Refusal: with what they need and what is free.
    """
    sizes = [PROGRAM_BYTES + branch_bytes(spec, plan.exit) + plan.arguments["kv_cache_memory_bytes"] for plan in plans]
    if sum(sizes) > available:
        raise Refusal(
            "rollout.workers",
            f"{len(plans)} servers take about {sum(sizes) / GIB:.1f} GiB of memory, and {available / GIB:.1f} are free",
            "fewer servers, or a smaller rollout.kv_cache_gib",
        )
