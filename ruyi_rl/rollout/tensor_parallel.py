"""Consecutive ranks that share one engine: each has a part of it, and all give it the same requests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from ruyi_rl import ranks
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.worker import Request

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_tensor_parallel(size: int, world_size: int, config: PreTrainedConfig) -> None:
    """Refuses what cannot be split over `size` ranks.

    Raises:
        Refusal: ranks, heads or the MLP's width are not divisible.
    """
    key = "rollout.tensor_parallel"
    if size < 1 or world_size % size:
        raise Refusal(key, f"{world_size} rank(s) cannot be divided into groups of {size}", "a divisor of the ranks")
    for what, number in (("heads", config.num_attention_heads), ("numbers of the MLP", config.intermediate_size)):
        if number % size:
            raise Refusal(key, f"{number} {what} cannot be divided by {size}")
    heads = config.num_key_value_heads
    if heads % size and size % heads:
        raise Refusal(key, f"{heads} key-value heads can be neither divided by {size} nor repeated to it")


@contextmanager
def own_shared_memory(size: int) -> Iterator[None]:
    """While engines of `size` ranks are made: what they share on a CPU gets a name of this run's.

    vLLM's name is the same in all runs of a machine, and an engine refuses one that is taken, by another run or by what
    a killed one has left. Once every rank has the memory its name is removed, so that no kill leaves any.
    """
    if size == 1:
        yield
        return
    from vllm.distributed import parallel_state

    number = ranks.from_rank_zero(secrets.randbelow(2**31))
    parallel_state._group_name_counter["tp"] = number
    yield
    for path in Path("/dev/shm").glob(f"*tp:{number}-*cpushm_*"):
        path.unlink(missing_ok=True)


class RequestGroup:
    """The ranks that share this rank's engines; every rank of the run makes its group at the same time.

    Args:
        size: ranks of a group; 1: every rank has its own engines.
    """

    def __init__(self, size: int):
        self.size = size
        self._group: dist.ProcessGroup | None = None
        if size > 1:
            # Every rank has to take part in making every group.
            for first in range(0, ranks.world_size(), size):
                group = dist.new_group(list(range(first, first + size)), backend="gloo", timeout=ranks.PATIENCE)
                if first <= ranks.rank() < first + size:
                    self._group = group

    def gathered(self, requests: Sequence[Request]) -> tuple[list[Request], int]:
        """The requests of all ranks of the group, in rank order, and the place of this rank's first."""
        if self._group is None:
            return list(requests), 0
        parts: list[list[Request]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, list(requests), self._group)
        place = dist.get_rank(self._group)
        return [request for part in parts for request in part], sum(map(len, parts[:place]))

    def close(self) -> None:
        """Destroys the group; may be called twice."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
