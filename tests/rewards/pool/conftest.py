"""Pools on plugins that a test writes."""

import pytest
from worker_leftovers import EARLIER, children, eventually, processes, temporary_folders

from ruyi_rl.rewards.pool import PoolLimits, RewardPool


@pytest.fixture(autouse=True)
def earlier_children():
    EARLIER.clear()
    EARLIER.update(children())


@pytest.fixture
def pool(tmp_path):
    """Writes a plugin and gives a pool on it; every pool is closed at the end, and nothing of it may be left."""
    pools = []

    def make(source, kwargs=None, **limits):
        file = tmp_path / f"plugin{len(pools)}.py"
        file.write_text(source)
        pools.append(RewardPool("it", str(file), kwargs, PoolLimits(**limits)))
        return pools[-1]

    yield make
    for made in pools:
        made.close()
    assert not children()
    assert not temporary_folders()
    assert eventually(lambda: not processes())
