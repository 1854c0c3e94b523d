"""One worker of a pool as the pool knows it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.servers.client import Endpoint
from ruyi_rl.rollout.servers.process import LocalServer
from ruyi_rl.rollout.worker import RolloutFailed

MEMORY_SHORTAGES = (
    "No available memory for the cache blocks",
    "larger than the available KV cache",
    "less than requested memory for kv",
    "less than desired GPU memory utilization",
    "out of memory",
)
"""Parts of what vLLM and CUDA say where an engine does not fit."""


@dataclass(eq=False)
class Worker:
    """A server that serves one exit."""

    exit: str
    name: str
    server: LocalServer | None = None
    """Where the run has started it."""
    address: str | None = None
    """Its base URL, where it has not."""
    gpus: int = 1
    up: bool = False
    """Whether it has answered since it was started, or since it was given up."""
    served: bool = False
    """Whether it has ever answered."""
    version: str | None = None
    """Of the weights that it holds; None: nobody knows."""
    since: float = field(default_factory=time.monotonic)
    """When it was started or given up."""
    starts: int = 0
    """How often it was started, or came back."""
    sync_seconds: float = 0.0
    """What the last transfer of weights to it took."""

    @property
    def endpoint(self) -> Endpoint:
        if self.server is not None:
            return Endpoint("http://server", self.server.socket)
        return Endpoint(self.address or "")

    @property
    def place(self) -> str:
        """Where to look for more."""
        return f"log: {self.server.log}" if self.server is not None else self.endpoint.url

    def answers(self) -> None:
        """It is there."""
        self.up = self.served = True
        self.starts += 1

    def lose(self) -> None:
        """Nothing is known of it any more."""
        self.up, self.version, self.since = False, None, time.monotonic()

    def start(self) -> None:
        """Starts the server of the run."""
        if self.server is not None:
            self.server.start()
        self.since = time.monotonic()

    def restart(self) -> None:
        """Kills the server of the run with all that belongs to it, and starts it anew; not the server of an address."""
        if self.server is not None:
            self.server.restart()
        self.since = time.monotonic()

    def check_start(self) -> None:
        """Tells a server that cannot run at all from one that has met with an accident.

        Raises:
            Refusal: it ended by itself before it first answered, because of an option.
            RolloutFailed: it did so for another reason.
        """
        if self.server is None or self.served or self.server.killed() or self.server.ended() is None:
            return
        reason = self.server.complaint()
        log = f"see {self.server.log}"
        flag = re.search(r"(?:unrecognized arguments:|argument) --([\w-]+)", reason)
        if flag:
            key = flag.group(1).removeprefix("no-").replace("-", "_")
            raise Refusal(f"rollout.engine.{key}", f"vLLM does not take it: {reason}", log)
        if any(part in reason for part in MEMORY_SHORTAGES):
            raise Refusal(
                "rollout.kv_cache_gib",
                f"vLLM has too little memory for the exit {self.exit}: {reason}",
                f"more memory, fewer rollout.workers, or a smaller rollout.max_model_len; {log}",
            )
        raise RolloutFailed(f"worker {self.name} does not start: {self.server.ended()} ({log})")
