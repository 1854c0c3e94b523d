"""A rank of `test_linked_hosts.py`: meets the other host, mirrors a file, then waits for a host that is cut off."""

import sys
from functools import partial
from pathlib import Path

import torch

from ruyi_rl import hosts, ranks
from ruyi_rl.heart import Heart
from ruyi_rl.heartbeats import connect_to_run
from ruyi_rl.stuck_launcher import exit_beside_launcher
from ruyi_rl.watchdog import Patience, Watchdog

LIMIT, LAUNCHER_SECONDS = 6.0, 20.0


def main(run: Path) -> None:
    with ranks.connected():
        copies = hosts.meet(run)
        if ranks.rank() == 0:
            (run / "family").write_bytes(bytes(1000))
        copies.mirror(run)
        print(f"rank {ranks.rank()} of {ranks.host_count()} hosts, copies of {copies.keepers}", flush=True)
        heart = Heart()
        heart.enter("rollout")
        end = partial(exit_beside_launcher, patience=LAUNCHER_SECONDS)
        patience, connect = Patience(LIMIT, ranks.world_size()), partial(connect_to_run, "watchdog/test")
        with Watchdog(heart, run, patience, lambda happened: "recorded", rank=ranks.rank(), connect=connect, end=end):
            while True:
                torch.distributed.all_reduce(torch.zeros(1))
                heart.beat()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
