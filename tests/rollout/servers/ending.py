"""A run that ends in some way: `ending.py folder way`; test_server_ending.py starts it and looks what it leaves.

It writes `ready.json` when it generates: its processes, its folders, its shared memory.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from fakes import FakePool, children

from ruyi_rl.signals import StopSignal


def main(folder: Path, way: str) -> None:
    script = {f"s{server}-1": {"segment": True, "slow": 0.0 if way == "exception" else 60.0} for server in range(3)}
    if way == "sync":
        script = {"s0-1": {"segment": True, "on_load": "hang"}, "s1-1": {"segment": True}, "s2-1": {"segment": True}}
    pool = FakePool(folder, script, workers={"small": 2})
    threading.Thread(target=tell, args=(pool, folder), daemon=True).start()
    with StopSignal():
        pool.sync()
        pool.check()
    while not (folder / "ready.json").exists():
        time.sleep(0.05)
    raise ValueError("the run fails")


def tell(pool: FakePool, folder: Path) -> None:
    """Writes what the run has started, once every server has its first request."""
    names = [f"s{server}-1" for server in range(3)]
    segments = [pool.events(name, "up")[0]["segment"] for name in names if pool.pid(name)]
    while not all(pool.events(name) or pool.events(name, "load") for name in names):
        time.sleep(0.02)
    state = {
        "processes": children(os.getpid()),
        "folders": [str(path) for path in pool.rollout._exchange.folders],
        "segments": segments,
    }
    (folder / ".ready").write_text(json.dumps(state))
    (folder / ".ready").rename(folder / "ready.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
