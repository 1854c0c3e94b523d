"""A vLLM worker for several sleeping engines in one process. vLLM alone imports it, by `worker_cls`.

vLLM keeps what can sleep in memory pools of one allocator a process, and lets a process have one engine in them.
Nothing needs that but the allocator's list of pools, which has room for one a tag: a second engine's pool would replace
the first's there, which then would be collected while its tensors live. So the pools that are there are kept under
other names. Sleeping and waking go by the tags of the allocations, so one engine's sleep puts the memory of all to
sleep, and the others' sleeps find nothing left to do.

It has not run on a GPU yet: its tests run it with an allocator that only keeps the books.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from vllm.device_allocator import get_mem_allocator_instance
from vllm.v1.worker.gpu_worker import Worker


class SleepingWorker(Worker):
    """vLLM's worker, which opens a further pool where another engine has one."""

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager:
        if not self.vllm_config.model_config.enable_sleep_mode:
            return super()._maybe_get_memory_pool_context(tag)
        allocator = get_mem_allocator_instance()
        pools: dict[str, Any] = allocator.allocator_and_pools
        if tag in pools:
            pools[f"{tag} {len(pools)}"] = pools.pop(tag)
        return allocator.use_memory_pool(tag=tag)


@contextmanager
def pools_held() -> Iterator[None]:
    """Keeps the pools while engines shut down, each of which would release those of all others, whose tensors live."""
    pools: dict[str, Any] = get_mem_allocator_instance().allocator_and_pools
    held = pools.copy()
    pools.clear()
    try:
        yield
    finally:
        pools.update(held)
