"""Weights to servers by NCCL, with vLLM's own weight transfer.

This has not run on GPUs yet: what is tested is what goes into vLLM's sender and what it says to the servers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch

from ruyi_rl.rollout.servers.client import CONNECT_SECONDS, Endpoint
from ruyi_rl.rollout.servers.pool import Pool
from ruyi_rl.rollout.servers.transport import meeting_point
from ruyi_rl.rollout.servers.worker import Worker
from ruyi_rl.rollout.weights import BranchTensor

AHEAD = 4
"""Tensors that may wait for a worker: gathered, and not sent yet."""


class BranchSource:
    """A branch on its way to one worker, as vLLM's `WeightSource`: metadata, and what is fed tensor by tensor.

    Feeding takes part in the run's collectives and sending in the worker's; so they happen in different threads, and a
    worker that hangs holds up nobody who feeds.
    """

    def __init__(self, layout: Sequence[BranchTensor], dtype: torch.dtype):
        self.layout, self.dtype = layout, dtype
        self._tensors: queue.Queue[tuple[str, torch.Tensor] | None] = queue.Queue()

    def metadata(self) -> list[Any]:
        """vLLM's `ParamMeta` of every tensor, in the order in which they come."""
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(tensor.name, self.dtype, tensor.shape) for tensor in self.layout]

    def begin(self) -> None:
        """Before the tensors of one transfer."""
        self._tensors = queue.Queue(AHEAD)

    def put(self, item: tuple[str, torch.Tensor] | None, seconds: float) -> bool:
        """Hands over (name, whole tensor), or None after the last; False where nobody took one for so long."""
        if item is not None:
            item = item[0], item[1].to(self.dtype).contiguous()
        try:
            self._tensors.put(item, timeout=seconds)
        except queue.Full:
            return False
        return True

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        while (item := self._tensors.get()) is not None:
            yield item


class SyncClient:
    """vLLM's `VLLMWeightSyncClient` over HTTP, also over a socket of this machine.

    Args:
        seconds: for an answer.
    """

    def __init__(self, endpoint: Endpoint, seconds: float):
        uds = None if endpoint.socket is None else str(endpoint.socket)
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        transport = httpx.HTTPTransport(uds=uds, trust_env=False)
        self._client = httpx.Client(base_url=endpoint.url, transport=transport, timeout=timeout, trust_env=False)

    def _post(self, path: str, body: dict[str, Any]) -> None:
        self._client.post(path, json=body).raise_for_status()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("/start_weight_update", {})

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update", {} if weight_version is None else {"weight_version": weight_version})


class Senders:
    """The senders of a pool's workers (rank 0); a worker that was started anew gets a new one."""

    def __init__(self, pool: Pool, layouts: Mapping[str, Sequence[BranchTensor]]):
        self.pool, self.layouts = pool, layouts
        self._senders: dict[Worker, Sender] = {}
        self._active: list[Sender] = []

    def lacking(self) -> list[str]:
        """Waits until every exit has a worker that is up; the exits with workers that are up and need weights."""
        self.pool.reach()
        return [exit for exit in self.layouts if any(self._wanting(exit))]

    def _wanting(self, exit: str) -> Iterator[Worker]:
        return (w for w in self.pool.workers if w.exit == exit and w.up and not self.pool.holds(w))

    def begin(self, exit: str) -> None:
        """Starts sending to the workers of an exit that need weights."""
        self._active = [self._sender(worker) for worker in self._wanting(exit)]
        for sender in self._active:
            sender.begin()

    def feed(self, item: tuple[str, torch.Tensor]) -> None:
        """Hands (name, whole tensor) to all of them."""
        if item[1].is_cuda:
            torch.cuda.current_stream().synchronize()  # the senders work on streams of their own
        for sender in self._active:
            sender.feed(item)

    def end(self) -> None:
        """Waits until they have all tensors, and gives up those that have not.

        Raises:
            RolloutFailed: one failure too many.
        """
        for sender in self._active:
            sender.end()
        if self._active:
            seconds = max(sender.worker.sync_seconds for sender in self._active)
            self.pool.statistics.of(self._active[0].worker.exit).sync_seconds += seconds
        for sender in self._active:
            if sender.problem is None:
                self.pool.settle(sender.worker)
            else:
                del self._senders[sender.worker]
                self.pool.give_up(sender.worker, sender.problem)
        self._active = []

    def _sender(self, worker: Worker) -> Sender:
        sender = self._senders.get(worker)
        if sender is None or sender.start != worker.starts:
            if sender is not None:
                sender.close()
            seconds = self.pool.options.timeout
            sender = Sender(worker, self.layouts[worker.exit], self.pool.spec.dtype, seconds)
            self._senders[worker] = sender
        return sender

    def close(self) -> None:
        """Leaves all NCCL groups."""
        for sender in self._senders.values():
            sender.close()


class Sender:
    """Sends a branch to one start of a worker, in a thread of its own.

    Args:
        seconds: without any progress, after which it has failed.
    """

    def __init__(self, worker: Worker, layout: Sequence[BranchTensor], dtype: torch.dtype, seconds: float):
        self.worker, self.seconds = worker, seconds
        self.start = worker.starts
        self.source = BranchSource(layout, dtype)
        self.problem: str | None = None
        """Why it has failed."""
        self._engine: Any = None
        self._thread: threading.Thread | None = None
        self._started = 0.0

    def begin(self) -> None:
        """Starts a transfer; the tensors are fed next."""
        self.source.begin()
        self._started = time.monotonic()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        # A daemon: a transfer that hangs must not keep the run from ending.
        self._thread = threading.Thread(target=self._run, args=(device,), daemon=True)
        self._thread.start()

    def feed(self, item: tuple[str, torch.Tensor] | None) -> None:
        """Hands (name, tensor) over, or None after the last, unless the transfer has failed."""
        deadline = time.monotonic() + self.seconds
        while self.problem is None and not self.source.put(item, 0.2):
            ended = self.worker.server.ended() if self.worker.server is not None else None
            if ended or time.monotonic() > deadline:
                self.problem = ended or f"it took no weights for {self.seconds:g} s"

    def end(self) -> None:
        """Waits until the worker has all tensors; afterwards `problem` says whether it has."""
        self.feed(None)
        if self._thread is not None:
            self._thread.join(0.0 if self.problem else self.seconds)
            if self._thread.is_alive() and self.problem is None:
                self.problem = f"it did not finish taking weights within {self.seconds:g} s"
        self.worker.sync_seconds = time.monotonic() - self._started
        if self.problem is not None:
            self.close()

    def close(self) -> None:
        """Leaves the NCCL group, also in the middle of a transfer."""
        group = getattr(self._engine, "model_update_group", None)
        if group is not None:
            group.destroy()
        self._engine = None

    def _run(self, device: int | None) -> None:
        if device is not None:
            torch.cuda.set_device(device)
        try:
            if self._engine is None:
                self._engine = self._meet()
            self._engine.send_weights()
        except Exception as error:  # noqa: BLE001 - whatever it is, only this worker has failed
            self.problem = f"it did not take the weights: {type(error).__name__} {error}".rstrip()

    def _meet(self) -> Any:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        host = urlsplit(self.worker.endpoint.url).hostname if self.worker.server is None else None
        address, port = meeting_point(host)
        info = NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=1 + self.worker.gpus, rank=0)
        client = SyncClient(self.worker.endpoint, self.seconds)
        return NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=self.source)
