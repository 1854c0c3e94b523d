"""Rollouts by vLLM servers, each bound to one exit: started by the run on this machine, or given as addresses."""

from __future__ import annotations

import atexit
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

import torch

from ruyi_rl import ranks
from ruyi_rl.family import Family
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.engine_arguments import sampling_arguments
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.servers.addresses import check_addresses
from ruyi_rl.rollout.servers.command import check_engine, command_line
from ruyi_rl.rollout.servers.exchange import Exchange, check_room, exchange_bytes, open_exchange
from ruyi_rl.rollout.servers.plan import ServerPlan, planned_servers, server_counts
from ruyi_rl.rollout.servers.pool import Pool
from ruyi_rl.rollout.servers.process import SOCKET, Caretaker, Launch, LocalServer
from ruyi_rl.rollout.servers.transfer import Senders
from ruyi_rl.rollout.servers.transport import resolved_transport
from ruyi_rl.rollout.servers.work import ExitWork, grouped
from ruyi_rl.rollout.servers.worker import Worker
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.rollout.weights import branch_layout, branch_tensors, write_branch_config, write_branch_weights
from ruyi_rl.rollout.worker import (
    Arrived,
    Completion,
    ExitStatistics,
    Request,
    RolloutFailed,
    RolloutSpec,
    Sampling,
    WorkerHealth,
)

Value = TypeVar("Value")
LARGEST_GROUP = 64
"""Most samples of one HTTP request."""


def print_line(line: str) -> None:
    """Prints on standard error."""
    print(line, file=sys.stderr, flush=True)


class VllmServerRollout:
    """A pool of vLLM servers that rank 0 looks after; the other ranks hand their requests to it.

    A server that dies, hangs or answers rubbish is given up and, where the run has started it, started anew with the
    current weights; its unanswered requests go to the other workers of its exit. The same requests with the same seeds
    give the same tokens whichever worker answers them, as far as an engine gives the same log-probs whatever else is in
    its batch: nearly always in float32, less often in bfloat16.

    The servers' output is in `<spec.folder>/<exit>-<number>.log`.

    Args:
        report: called on rank 0 with one line for each worker that is given up.
        command: vLLM's arguments -> the command that starts a server with them.
        beat: called on rank 0 whenever a server has come up, answered or moved on.

    Raises:
        Refusal: on every rank: options that contradict each other, an address that cannot serve its exit, no room for
            the weights, too little memory.
    """

    name = "vllm_server"
    runs_family = False

    def __init__(
        self,
        options: RolloutOptions,
        spec: RolloutSpec,
        *,
        report: Callable[[str], None] = print_line,
        command: Callable[[Mapping[str, Any]], list[str]] = command_line,
        beat: Callable[[], None] = lambda: None,
    ):
        self._beat = beat
        self.options, self.spec, self.report, self.command = options, spec, report, command
        self._layouts = {exit: branch_layout(spec.config, exit) for exit in spec.exits}
        self._pool: Pool | None = None
        self._exchange: Exchange | None = None
        self._senders: Senders | None = None
        self._family: Family | None = None
        self._resources = ExitStack()
        self._token, self._syncs = uuid.uuid4().hex[:8], 0
        atexit.register(self.close)
        try:
            self.transport = ranks.on_rank_zero(self._open)
        except BaseException:
            self.close()
            raise

    def update_weights(self, family: Family) -> None:
        """Sends each worker its exit's branch; the first call waits for the servers to start.

        Raises:
            RolloutFailed: on every rank: too many failures of workers, or no room for the weights.
            Refusal: on every rank: a server cannot start with these options.
        """
        self._syncs += 1
        version = f"{self._token}-{self._syncs}"
        if self.transport == "nccl":
            self._family = family
            self._on_rank_zero(lambda pool: setattr(pool, "version", version))
            self._send()
            return
        folders = self._exchange.weights if self._exchange is not None else {}
        # A disk that is found full while other ranks gather would leave them waiting.
        self._on_rank_zero(lambda pool: check_room(folders, self.spec))
        for exit, layout in self._layouts.items():
            started = time.monotonic()
            folder = folders.get(exit, Path())
            write_branch_weights(family, layout, folder, self.spec.dtype, write=ranks.rank() == 0)
            if self._pool is not None:
                self._pool.statistics.of(exit).sync_seconds += time.monotonic() - started
        self._on_rank_zero(lambda pool: pool.sync(version))

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> list[Completion]:
        """One completion a request, in order, with the log-probs of vLLM.

        Args:
            arrived: called on rank 0 with its own; the other ranks get theirs all together.

        Raises:
            RolloutFailed: on every rank, after too many failures of workers.
            ValueError: a request that no worker could serve.
        """
        shares = ranks.gathered(list(requests))
        everything = [request for share in shares for request in share]
        check_requests(everything, sampling, self.spec)
        works: dict[str, ExitWork] = {}

        def answered(positions: Sequence[int], completions: Sequence[Completion]) -> None:
            own = [position < len(requests) for position in positions]  # this is rank 0, whose requests come first
            arrived(list(compress(positions, own)), list(compress(completions, own)))

        def ask(pool: Pool) -> list[Completion] | None:
            if not works:
                works.update(self._works(everything, sampling, answered if arrived is not None else None))
            if not pool.generate(works, sampling):
                return None
            for exit, work in works.items():
                pool.statistics.of(exit).tokens += work.tokens
                pool.statistics.of(exit).seconds += work.seconds
            answers = {position: answer for work in works.values() for position, answer in work.answers.items()}
            return [answers[position] for position in range(len(everything))]

        while (completions := self._on_rank_zero(ask)) is None:
            self._send()  # to workers that were started anew
        start = sum(map(len, shares[: ranks.rank()]))
        return completions[start : start + len(requests)]

    def statistics(self) -> dict[str, ExitStatistics]:
        """Exit -> what its workers have done since the last call, on rank 0; nothing on the others.

        `seconds` is wall time, and exits work at the same time: theirs do not add up. `sync_seconds` is the time of
        writing the exit's weights and of the slowest worker taking them.
        """
        return self._pool.statistics.take() if self._pool is not None else {}

    def health(self) -> list[WorkerHealth]:
        """The state of every worker, on rank 0; nothing on the others."""
        return self._pool.health() if self._pool is not None else []

    def close(self) -> None:
        """Stops the servers that the run has started and removes the exchange folder."""
        atexit.unregister(self.close)
        self._pool = self._senders = None
        self._resources.close()

    def _on_rank_zero(self, function: Callable[[Pool], Value]) -> Value:
        """What rank 0 does with the pool, on every rank.

        Raises:
            RolloutFailed, Refusal: on every rank, where rank 0 raised it.
        """

        def caught() -> tuple[Value | None, str | None]:
            if self._pool is None:
                raise RuntimeError("the rollout was closed")
            try:
                return function(self._pool), None
            except RolloutFailed as error:
                return None, str(error)

        value, failure = ranks.on_rank_zero(caught)
        if failure is not None:
            raise RolloutFailed(failure)
        return value

    def _send(self) -> None:
        """Sends weights by NCCL to every worker that is up and lacks them, until every exit has a worker with them."""

        def lacking(pool: Pool) -> list[str]:
            return self._senders.lacking() if self._senders is not None else []

        def end(pool: Pool) -> None:
            if self._senders is not None:
                self._senders.end()

        while exits := self._on_rank_zero(lacking):
            for exit in exits:
                if self._senders is not None:
                    self._senders.begin(exit)
                for item in branch_tensors(self._family, self._layouts[exit]):
                    if self._senders is not None:
                        self._senders.feed(item)
                self._on_rank_zero(end)

    def _works(self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None) -> dict[str, ExitWork]:
        limit = min(LARGEST_GROUP, int(self.options.engine.get("max_num_seqs") or LARGEST_GROUP))
        groups = grouped(requests, sampling, limit)
        exits = dict.fromkeys(group.exit for group in groups)
        return {exit: ExitWork([group for group in groups if group.exit == exit], arrived) for exit in exits}

    def _open(self) -> str:
        """Makes the pool (rank 0); returns how weights travel."""
        options, spec = self.options, self.spec
        check_engine(options.engine)
        counts = server_counts(options, spec)
        if any(counts.values()) and self.command is command_line and (problem := vllm_problem()):
            raise Refusal(
                "rollout", f"vllm_server cannot start servers: {problem}", "install vLLM, or rollout.addresses"
            )
        transport = resolved_transport(options, counts)
        check_addresses(options, spec, nccl=transport == "nccl")
        exchange = open_exchange(options.exchange, spec.exits, exchange_bytes(spec) if transport == "files" else 0)
        self._exchange = exchange
        caretaker = Caretaker(exchange.folders)
        self._resources.callback(caretaker.close)
        self._resources.callback(exchange.close)
        for exit, folder in exchange.weights.items():
            write_branch_config(spec.config, exit, folder, spec.dtype, spec.end_token_ids)
        cpu = not torch.cuda.is_available()
        plans = planned_servers(options, spec, counts, exchange.weights, transport=transport, cpu=cpu)
        workers = [self._worker(plan, exchange.sockets / f"s{number}") for number, plan in enumerate(plans)]
        for exit in spec.exits:
            for url in options.addresses.get(exit, ()):
                workers.append(Worker(exit, f"{exit} at {url}", address=url.rstrip("/"), gpus=options.tensor_parallel))
        self._resources.callback(stop_all, workers)
        for worker in workers:
            worker.start()
        folders = exchange.weights if transport == "files" else None
        self._pool = Pool(spec, options, workers, folders, self.report, self._beat)
        if transport == "nccl":
            self._senders = Senders(self._pool, self._layouts)
            self._resources.callback(self._senders.close)
        return transport

    def _worker(self, plan: ServerPlan, folder: Path) -> Worker:
        def launch(folder: Path) -> Launch:
            return Launch(self.command({**plan.arguments, "uds": str(folder / SOCKET)}), plan.environment(folder))

        server = LocalServer(launch, folder, self.spec.folder / plan.log_name)
        return Worker(plan.exit, plan.name, server, gpus=self.options.tensor_parallel)


def check_requests(requests: Sequence[Request], sampling: Sampling, spec: RolloutSpec) -> None:
    """Checks what a healthy worker would refuse, and be given up for.

    Raises:
        ValueError: saying what no worker could serve.
    """
    sampling_arguments(sampling, spec.end_token_ids, seed=0)
    for request in requests:
        if request.exit not in spec.exits:
            raise ValueError(f"no exit {request.exit!r} among {', '.join(spec.exits)}")
        if not 0 < len(request.prompt_ids) <= spec.max_model_len - sampling.max_new_tokens:
            raise ValueError(
                f"a prompt of {len(request.prompt_ids)} tokens and {sampling.max_new_tokens} new ones do not fit "
                f"into {spec.max_model_len}"
            )


def stop_all(workers: Sequence[Worker]) -> None:
    """Stops the servers of the run, all at the same time."""
    servers = [worker.server for worker in workers if worker.server is not None]
    for server in servers:
        server.begin_stop()
    for server in servers:
        server.stop()
