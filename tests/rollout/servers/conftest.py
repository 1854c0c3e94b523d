"""Pools of fake servers."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FakePool, alive, children, gone

from ruyi_rl.rollout.servers import guardian


@pytest.fixture
def open_pool(tmp_path: Path) -> Iterator[Callable[..., FakePool]]:
    """Opens pools of fakes; afterwards they are closed, and nothing of them may be left."""
    pools: list[FakePool] = []

    def opened(script: dict | None = None, **options) -> FakePool:
        pool = FakePool(tmp_path, script, **options)
        pools.append(pool)
        return pool

    yield opened
    guardians = [pid for pid in guardian.children(os.getpid()) if guardian.__file__ in guardian.process_name(pid)]
    started = [process for pid in guardians for process in (pid, *children(pid))]
    folders = [folder for pool in pools if pool.rollout._exchange for folder in pool.rollout._exchange.folders]
    for pool in pools:
        pool.rollout.close()
    assert gone(started), [pid for pid in started if alive(pid)]
    assert not [folder for folder in folders if folder.exists()]
