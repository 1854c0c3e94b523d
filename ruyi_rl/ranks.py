"""The processes of one run: who is rank 0, and how ranks agree. Importing this module imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from socket import gethostname
from typing import Any

from ruyi_rl.network_interface import GLOO, choose_interface
from ruyi_rl.refusal import Refusal

PATIENCE = timedelta(hours=2)
"""How long a rank waits for another: rank 0 may prepare data, or one rank may judge longer completions."""


def rank() -> int:
    """This process's rank; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of ranks; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Number of ranks on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def host_count() -> int:
    """Number of hosts; 1 without a launcher."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


@contextmanager
def connected() -> Iterator[None]:
    """The process group of the run: NCCL with GPUs, gloo without; nothing with one rank."""
    if world_size() == 1:
        yield
        return
    import torch

    mine = not torch.distributed.is_initialized()
    if mine:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(local_rank())
        if host_count() > 1 and (interface := choose_interface()) is not None:
            os.environ[GLOO] = interface
        torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    yield
    # Not in a `finally`: after an exception the other ranks may be gone, and leaving the group would wait for them.
    if mine and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def barrier() -> None:
    """Waits until all ranks are here."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def from_rank_zero(value: Any) -> Any:
    """Rank 0's `value` on every rank (picklable)."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_rank_zero(function: Callable[[], Any]) -> Any:
    """What `function()` gives on rank 0, on every rank (picklable).

    Raises:
        Refusal: on every rank, where rank 0 was refused, so that none waits for it.
        RuntimeError: on the other ranks, where rank 0 failed otherwise.
    """
    if world_size() == 1:
        return function()
    value = refusal = error = None
    if rank() == 0:
        try:
            value = function()
        except Refusal as raised:
            refusal = raised.key, raised.problem, raised.allowed
        except Exception as raised:  # noqa: BLE001 - whatever it is, the other ranks must not wait for it
            error = raised
    value, refusal, failed = from_rank_zero((value, refusal, repr(error) if error else None))
    if refusal is not None:
        raise Refusal(*refusal)
    if error is not None:
        raise error
    if failed is not None:
        raise RuntimeError(f"rank 0 failed: {failed}")
    return value


def everywhere(function: Callable[[], Any]) -> Any:
    """What `function()` gives on this rank, once all ranks have called it.

    Raises:
        Refusal: on every rank, where one was refused, naming its host where there are several.
        RuntimeError: on the other ranks, where one failed otherwise.
    """
    if world_size() == 1:
        return function()
    value = refusal = error = None
    try:
        value = function()
    except Refusal as raised:
        host = f" (rank {rank()} on {gethostname()})" if host_count() > 1 else ""
        refusal = raised.key, raised.problem + host, raised.allowed
    except Exception as raised:  # noqa: BLE001 - whatever it is, the other ranks must not wait for it
        error = raised
    answers = gathered((refusal, f"rank {rank()} failed: {error!r}" if error else None))
    if error is not None:
        raise error
    for refused, failed in answers:
        if refused is not None:
            raise Refusal(*refused)
        if failed is not None:
            raise RuntimeError(failed)
    return value


def group(members: Sequence[int]) -> Any:
    """A process group of some ranks for tensors in the processor's memory; every rank calls it."""
    import torch.distributed as dist

    return dist.new_group(list(members), timeout=PATIENCE, backend="gloo")


def gathered(value: Any) -> list[Any]:
    """Every rank's `value` (picklable), in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
