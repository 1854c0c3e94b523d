"""How weights travel: by files, or by NCCL, and then between which GPUs and where they meet."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ruyi_rl.refusal import Refusal

if TYPE_CHECKING:
    from ruyi_rl.rollout.options import RolloutOptions


def resolved_transport(options: RolloutOptions, servers: Mapping[str, int]) -> str:
    """`nccl` or `files`.

    `auto` is NCCL where this process has a GPU and every server is started by the run on GPUs of its own: an NCCL group
    does not take the same GPU twice, and of an address it is not known.

    Args:
        servers: exit -> servers that the run starts.

    Raises:
        Refusal: NCCL is asked for and impossible.
    """
    if options.transport == "files":
        return "files"
    asked = options.transport == "nccl"
    if not torch.cuda.is_available():
        if asked:
            raise Refusal("rollout.transport", "nccl needs GPUs, and this process has none", "files")
        return "files"
    mine = run_devices(os.environ)
    for exit, count in servers.items():
        listed = options.devices.get(exit) or [None] * count
        shared = [devices for devices in listed if devices is None or set(devices.split(",")) & mine]
        if shared and asked:
            raise Refusal(
                f"rollout.devices.{exit}",
                f"with transport=nccl servers need GPUs that the run does not use itself ({', '.join(sorted(mine))})",
                "other GPUs, or rollout.transport=files",
            )
        if shared:
            return "files"
    return "nccl" if asked or not any(options.addresses.values()) else "files"


def run_devices(environment: Mapping[str, str]) -> set[str]:
    """The GPUs that the ranks of this machine use, as CUDA_VISIBLE_DEVICES names them."""
    count = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return set(visible.split(",")[:count] if visible else map(str, range(count)))


def meeting_point(host: str | None) -> tuple[str, int]:
    """An address of this machine that a server reaches, and a free port.

    Args:
        host: the server's; None: this machine.
    """
    address = "127.0.0.1"
    if host is not None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((host, 9))  # nothing is sent: it only chooses the way
            address = route.getsockname()[0]
    with socket.socket() as listener:
        listener.bind((address, 0))
        return address, listener.getsockname()[1]
